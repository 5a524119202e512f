"""Flows on PostgreSQL beyond the contract: a caller's transactions, locks, and what a process leaves that dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest

from omniq.flow import Flow, GateState, NewFlow, NewGate
from omniq.storage import flow_transitions
from omniq.storage.ids import new_id
from omniq.task import Failed, Feed, NewTask, Retry, StoredTask, TaskError, TaskState
from omniq.testing import await_until
from omniq_postgres import finishing, flow_tx, libpq
from omniq_postgres.connecting import AsyncConnection
from omniq_postgres.operations import Context, Query, Rows, Steps
from omniq_postgres.storage import PostgresStorage
from tests.postgres.support import done, new_task, opened, table_of, take
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer

DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"


def fan_in(number: int, **options: Any) -> tuple[list[NewTask], NewFlow]:
    """Return a flow of some tasks, and one of queue ``last`` that waits for them."""
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),), **options)
    inputs = [new_task(flow=flow.id, feeds=(Feed(0, needs_success=True),)) for _ in range(number)]
    return [*inputs, new_task(flow=flow.id, behind=0, queue="last")], flow


async def flow_of(store: PostgresStorage, flow: NewFlow) -> Flow | None:
    (found,) = await store.get_flows([flow.id])
    return found


async def unmet(store: PostgresStorage, flow: NewFlow) -> int:
    found = await flow_of(store, flow)
    assert found is not None
    return found.gates[0].unmet


# In a transaction of the caller's


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_flow_is_there_if_and_only_if_the_caller_commits(
    server: PostgresServer, storage_url: str, is_async: bool, commit: bool
) -> None:
    tasks, flow = fan_in(3)
    async with opened(storage_url) as store:
        if is_async:
            async with await psycopg.AsyncConnection.connect(server.url) as connection:
                await store.join(connection).aenqueue_flow(tasks, flow)
                assert await flow_of(store, flow) is None
                await (connection.commit() if commit else connection.rollback())
        else:
            with psycopg.connect(server.url) as blocking:
                store.join(blocking).enqueue_flow(tasks, flow)
                assert await flow_of(store, flow) is None
                (blocking.commit if commit else blocking.rollback)()
        assert (await flow_of(store, flow) is not None) is commit
        for task in await take(store, 5):
            assert await store.finish([done(task)]) == [True]
        assert [task.id for task in await take(store, queue="last")] == ([tasks[-1].id] if commit else [])


async def test_what_the_caller_refuses_leaves_the_transaction_as_it_was(
    server: PostgresServer, storage_url: str
) -> None:
    (first, _), _ = fan_in(1)
    async with opened(storage_url) as store:
        with psycopg.connect(server.url) as connection:
            joined = store.join(connection)
            with pytest.raises(ValueError, match="no flow"):
                joined.enqueue([first])
            joined.enqueue([other := new_task(queue="other")])
        assert [task.id for task in await take(store, queue="other")] == [other.id]


async def test_a_task_is_added_to_a_flow_in_a_transaction(server: PostgresServer, storage_url: str) -> None:
    tasks, flow = fan_in(1)
    sibling = new_task(flow=flow.id, feeds=tasks[0].feeds)
    async with opened(storage_url) as store:
        await store.enqueue(tasks, flow)
        with psycopg.connect(server.url) as connection:
            store.join(connection).enqueue([sibling])
        for left in (2, 1):
            assert await unmet(store, flow) == left
            (task,) = await take(store)
            await store.finish([done(task)])
        assert len(await take(store, queue="last")) == 1


@pytest.mark.parametrize("commit", [True, False])
async def test_a_transaction_that_completes_a_task_delays_no_other_of_its_flow(
    server: PostgresServer, storage_url: str, commit: bool
) -> None:
    """It may stay open for long. Whatever needs the flow goes on meanwhile, and it counts once it is committed."""
    tasks, flow = fan_in(3)
    async with opened(storage_url, timeout=10) as store:
        await store.enqueue(tasks, flow)
        mine, other, third = await take(store, 3)
        with psycopg.connect(server.url) as connection:
            assert store.join(connection).finish(done(mine))
            # Each of these would raise after the time-out, were it to wait for the transaction.
            assert await store.finish([done(other)]) == [True]
            assert await unmet(store, flow) == 2
            assert await store.enqueue([late := new_task(flow=flow.id, feeds=tasks[0].feeds)])
            assert await store.cancel([late.id]) == [True]
            assert await store.retry([late.id]) == [True]
            assert await store.finish([done(task) for task in await take(store)]) == [True]
            (connection.commit if commit else connection.rollback)()
        # As a worker does whose task has completed itself.
        assert await store.finish([done(mine), done(third)]) == [not commit, True]
        assert await unmet(store, flow) == 0
        (last,) = await take(store, queue="last")
        assert last.id == tasks[-1].id


async def test_a_flow_is_cancelled_while_one_of_its_tasks_is_being_completed(
    server: PostgresServer, storage_url: str
) -> None:
    tasks, flow = fan_in(2)
    async with opened(storage_url, timeout=10) as store:
        await store.enqueue(tasks, flow)
        (mine,) = await take(store)
        with psycopg.connect(server.url) as connection:
            assert store.join(connection).finish(done(mine))
            assert await store.cancel_flow(flow.id)
        shown = await flow_of(store, flow)
        assert shown is not None
        assert shown.finished_at is not None
        assert (shown.counts[TaskState.SUCCEEDED], shown.counts[TaskState.CANCELLED]) == (1, 2)


@pytest.mark.parametrize("goes_on", [False, True])
async def test_a_cancellation_comes_to_a_task_that_was_being_changed_meanwhile(
    server: PostgresServer, storage_url: str, goes_on: bool
) -> None:
    tasks, flow = fan_in(1)
    async with opened(storage_url, timeout=10) as store:
        await store.enqueue(tasks, flow)
        (mine,) = await take(store)
        with psycopg.connect(server.url) as connection:
            if goes_on:
                again = Retry(id=mine.id, delivery=mine.delivery, delay=60)
                assert store.join(connection).finish(again)
            else:
                # As a heartbeat does.
                connection.execute(
                    f"SELECT id FROM {table_of(storage_url, 'live')} WHERE id = %s FOR UPDATE".encode(), [mine.id]
                )
            assert await store.cancel_flow(flow.id)

        async def is_told() -> bool:
            await store.settle(100)
            (found,) = await store.get([mine.id])
            assert found is not None
            return found.state is TaskState.CANCELLED if goes_on else found.cancel_requested

        await await_until(is_told, what="the task to be told")


# Ends that are committed in the middle of a step


def failed(task: StoredTask) -> Failed:
    return Failed(id=task.id, delivery=task.delivery, error=TaskError(type="ValueError", message="no"))


def commit_at(monkeypatch: pytest.MonkeyPatch, step: str, end: Callable[[], None]) -> None:
    """Have a task end in another process when a transaction has counted the ends so far and goes on to read."""
    kept = getattr(flow_tx.FlowTx, step)
    ends = [end]

    def after_an_end(self: flow_tx.FlowTx, *given: Any) -> Any:
        while ends:
            ends.pop()()
        return kept(self, *given)

    monkeypatch.setattr(flow_tx.FlowTx, step, after_an_end)


async def test_an_end_that_comes_while_its_flow_is_retried_is_counted_once(
    server: PostgresServer, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, flow = fan_in(2)
    async with opened(storage_url) as store:
        await store.enqueue(tasks, flow)
        first, second = await take(store, 2)
        assert await store.finish([failed(first)]) == [True]

        def fail_second() -> None:
            with psycopg.connect(server.url) as connection:
                assert store.join(connection).finish(failed(second))

        commit_at(monkeypatch, "members", fail_second)
        await store.retry_flow(flow.id)
        await store.retry_flow(flow.id)
        again = await take(store, 5)
        assert {task.id for task in again} == {first.id, second.id}
        assert await store.finish([done(task) for task in again]) == [True, True]
        (last,) = await take(store, queue="last")
        assert await store.finish([done(last)]) == [True]
        ended = await flow_of(store, flow)
        assert ended is not None
        assert ended.finished_at is not None
        assert (ended.gates[0].unmet, ended.gates[0].failed) == (0, 0)


async def test_an_end_that_comes_while_its_flow_is_audited_breaks_no_gate(
    server: PostgresServer, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, flow = fan_in(1)
    async with opened(storage_url) as store:
        monkeypatch.setattr(flow_transitions, "AUDIT_SECONDS", 0.0)
        await store.enqueue(tasks, flow)
        (first,) = await take(store)
        monkeypatch.undo()

        def succeed() -> None:
            with psycopg.connect(server.url) as connection:
                assert store.join(connection).finish(done(first))

        commit_at(monkeypatch, "count_members", succeed)
        await store.settle(100)
        # As a worker does whose task has completed itself.
        assert await store.finish([done(first)]) == [False]
        assert [task.id for task in await take(store, queue="last")] == [tasks[-1].id]


# Locks


async def finish_at_random(store: PostgresStorage, tasks: list[StoredTask]) -> None:
    """Finish tasks, in batches of several flows each, in any order."""
    while tasks:
        batch = [tasks.pop(random.randrange(len(tasks))) for _ in range(min(len(tasks), random.randint(1, 6)))]
        assert await store.finish([done(task) for task in batch]) == [True] * len(batch)


async def test_many_finish_tasks_of_two_flows_and_none_waits_in_a_circle(
    server: PostgresServer, storage_url: str
) -> None:
    before = server.execute(DEADLOCKS)
    made = [fan_in(150), fan_in(150)]
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(storage_url, connections=4)) for _ in range(3)]
        for tasks, flow in made:
            await stores[0].enqueue(tasks, flow)
        claimed = await take(stores[0], 300)
        random.shuffle(claimed)
        shares = [claimed[number::9] for number in range(9)]

        async def disturb(store: PostgresStorage) -> None:
            for _ in range(20):
                await store.settle(100)
                await store.recover(10)
                await store.get_flows([flow.id for _, flow in reversed(made)])

        await asyncio.gather(
            *(finish_at_random(stores[number % 3], share) for number, share in enumerate(shares)),
            *(disturb(store) for store in stores),
        )
        last = await take(stores[0], 10, queue="last")
        assert sorted(task.id for task in last) == sorted(tasks[-1].id for tasks, _ in made)
        for _, flow in made:
            assert await unmet(stores[0], flow) == 0
    assert server.execute(DEADLOCKS) == before


# Deaths


def leave_uncounted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have ends of tasks left uncounted, as of a process that dies right then; return what undoes it."""

    def nothing(flows: object, context: Context, unsure: object = ()) -> Steps[None]:
        yield from ()

    kept = flow_tx.count_ends_of
    monkeypatch.setattr(finishing, "count_ends_of", nothing)
    return lambda: monkeypatch.setattr(finishing, "count_ends_of", kept)


async def test_what_a_process_leaves_uncounted_others_count(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    undo = leave_uncounted(monkeypatch)
    tasks, flow = fan_in(1)
    async with opened(storage_url) as store, opened(storage_url) as other:
        await store.enqueue(tasks, flow)
        (task,) = await take(store)
        assert await store.finish([done(task)]) == [True]
        undo()
        # An idle worker, whatever it serves, finds it.
        async with asyncio.timeout(30):
            while not await take(other, queue="last"):
                await other.wait_for_work(["another"], 20)
                await take(other, queue="another")


@pytest.mark.parametrize(
    "look",
    [
        lambda store, flow, task: store.get_flows([flow.id]),
        lambda store, flow, task: store.settle(1),
        lambda store, flow, task: store.finish([done(task)]),
        lambda store, flow, task: store.enqueue([new_task(flow=flow.id)]),
    ],
    ids=["get_flows", "settle", "finish again", "enqueue"],
)
async def test_whoever_opens_a_flow_counts_what_was_left(
    storage_url: str,
    monkeypatch: pytest.MonkeyPatch,
    look: Callable[[PostgresStorage, NewFlow, StoredTask], Awaitable[object]],
) -> None:
    undo = leave_uncounted(monkeypatch)
    tasks, flow = fan_in(1)
    async with opened(storage_url) as store:
        await store.enqueue(tasks, flow)
        (task,) = await take(store)
        await store.finish([done(task)])
        undo()
        await look(store, flow, task)
        assert [one.id for one in await take(store, queue="last")] == [tasks[-1].id]
        shown = await flow_of(store, flow)
        assert shown is not None
        assert (shown.gates[0].state, shown.gates[0].unmet) == (GateState.OPEN, 0)


# Costs


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Query]:
    """Return what is sent, one entry for each round trip."""
    found: list[Query] = []
    run = libpq.rows

    def noted(connection: AsyncConnection, query: Query) -> Awaitable[Rows]:
        found.append(query)
        return run(connection, query)

    monkeypatch.setattr(libpq, "rows", noted)
    return found


async def test_a_batch_of_a_flow_takes_as_many_round_trips_as_a_task(storage_url: str, sent: list[Query]) -> None:
    tasks, flow = fan_in(101)
    async with opened(storage_url) as store:
        await store.enqueue(tasks, flow)
        trips = []
        for number in (1, 100):
            claimed = await take(store, number)
            sent.clear()
            assert await store.finish([done(task) for task in claimed]) == [True] * number
            trips.append([query.text.split()[0] for query in sent if b"pg_notify" not in query.text])
        assert len(trips[0]) == 3, "the tasks end; the flow is locked and read; it is written and committed"
        # The last of all has the gate opened, too.
        assert len(trips[1]) <= 5
        assert len(await take(store, queue="last")) == 1


async def test_tasks_of_no_flow_ask_for_none(storage_url: str, sent: list[Query]) -> None:
    async with opened(storage_url) as store:
        await store.enqueue([new_task() for _ in range(10)])
        claimed = await take(store, 10)
        sent.clear()
        assert await store.finish([done(task) for task in claimed]) == [True] * 10
        assert len([query for query in sent if b"pg_notify" not in query.text]) == 1


# Behind a proxy, and what cannot be read


async def finish_some(store: PostgresStorage) -> None:
    for task in await take(store, 7):
        assert await store.finish([done(task)]) == [True]


async def test_a_flow_goes_its_whole_way_behind_a_proxy(
    server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tasks, flow = fan_in(20)
    with PgBouncer(tmp_path_factory.mktemp("pgbouncer"), server) as proxy:
        url = f"{proxy.url}?namespace=t{new_id()[-8:]}"
        async with opened(url) as store, opened(url) as other:
            await store.enqueue(tasks, flow)
            await asyncio.gather(*(finish_some(each) for each in (store, other, store, other)))
            for task in await take(other, 1, queue="last"):
                assert await store.finish([done(task)]) == [True]
            shown = await flow_of(store, flow)
            assert shown is not None
            assert shown.finished_at is not None
            assert shown.counts[TaskState.SUCCEEDED] == 21
            assert await store.cancel_flow(flow.id) is False


async def test_flows_that_cannot_be_read_are_found_and_harm_no_other(server: PostgresServer, storage_url: str) -> None:
    made = [fan_in(1) for _ in range(3)]
    async with opened(storage_url) as store:
        for tasks, flow in made:
            await store.enqueue(tasks, flow)
        server.execute(f"UPDATE {table_of(storage_url, 'flow')} SET body = '[' WHERE id = '{made[0][1].id}'")
        server.execute(f"UPDATE {table_of(storage_url, 'gate')} SET body = '7' WHERE flow = '{made[1][1].id}'")
        assert [await flow_of(store, flow) is None for _, flow in made] == [True, False, False]
        found = " ".join(finding.message for finding in await store.check())
        assert all(flow.id in found for _, flow in made[:2])
        assert made[2][1].id not in found
        for task in await take(store, 3):
            assert await store.finish([done(task)]) == [True]
        assert [task.id for task in await take(store, 3, queue="last")] == [made[2][0][-1].id]


async def test_a_flow_that_is_retried_has_no_old_ends_left_though_a_worker_is_at_it(storage_url: str) -> None:
    """Of more tasks than move in a step: what a worker has locked is passed by where others settle."""
    async with opened(storage_url) as store, opened(storage_url) as worker:
        tasks, flow = fan_in(1500)
        await store.enqueue(tasks, flow)
        await store.cancel_flow(flow.id)
        while await store.settle(1000):
            pass
        assert await states_of(store, tasks) == {TaskState.CANCELLED}

        retried, *_ = await asyncio.gather(store.retry_flow(flow.id), *(worker.settle(1000) for _ in range(4)))

        assert retried == 1501
        assert await states_of(store, tasks) == {TaskState.READY, TaskState.BLOCKED}


async def states_of(store: PostgresStorage, tasks: list[NewTask]) -> set[TaskState | None]:
    found = await store.get([task.id for task in tasks])
    return {None if task is None else task.state for task in found}
