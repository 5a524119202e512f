"""Limits on PostgreSQL: what tasks without any cost, and what holds between the steps of a call or in a transaction."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest

from omniq.flow import NewFlow
from omniq.limit import Debounce, Limit, Rate
from omniq.schedule import Schedule
from omniq.storage import Adoption, Enqueued
from omniq.task import NewTask, Released, TaskState
from omniq.testing import await_until
from omniq.testing.contract.limits import most_in
from omniq.testing.contract.waiting import arrival
from omniq_postgres import claiming, finishing, libpq
from omniq_postgres.operations import Context, News, Query
from omniq_postgres.statements import Statements
from tests.postgres.support import connection_of, done, new_task, opened, settings_of, take
from tests.servers.postgres import PostgresServer


def names_of(queries: list[Query], url: str) -> list[str]:
    statements = Statements(settings_of(url).names)
    texts = {statements[name]: name for name in statements}
    return [texts[one.text] for query in queries for one in (*query.lead, query)]


@contextlib.contextmanager
def noting(sent: list[Query]) -> Iterator[None]:
    """Note each query of this process that is sent."""
    run = libpq.rows

    def noted(connection: Any, query: Query) -> Any:
        sent.append(query)
        return run(connection, query)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libpq, "rows", noted)
        yield


async def test_what_has_no_limits_is_one_statement_a_call(storage_url: str) -> None:
    sent: list[Query] = []
    async with opened(storage_url) as store:
        await store.put_limit(Limit(queue="other", concurrency=1))
        await store.enqueue([new_task(queue="other", key="a")])
        with noting(sent):
            await store.enqueue([new_task()])
            await store.enqueue([new_task(), new_task()])
            tasks = await take(store, 3)
            await store.wait_for_work(["q"], 0)
            await store.finish([done(task) for task in tasks[:2]])
            await store.finish([Released(id=tasks[2].id, delivery=tasks[2].delivery)])
    # Now and then a claim looks for flows as well, or asks whether dead rows pile up.
    asked = [name.replace("settling", "claim") for name in names_of(sent, storage_url)]
    assert [name for name in asked if name not in ("claim.dead", "waiting.notify", "waiting.notify_ended")] == [
        "enqueue.single",
        "enqueue.fresh",
        "claim.claim",
        "waiting.prospects",
        "finish.final",
        "finish.mixed",
    ]


async def test_what_has_limits_takes_as_many_round_trips_however_many_keys_there_are(storage_url: str) -> None:
    sent: list[Query] = []
    async with opened(storage_url) as store:
        per_key = Limit(concurrency=1, rate=Rate(1000))
        await store.put_limit(Limit(queue="q", concurrency=500, rate=Rate(1_000_000, burst=1000), per_key=per_key))
        await store.enqueue([new_task(key="first")])
        assert len(await take(store)) == 1
        trips: list[list[int]] = []
        with noting(sent):
            for number in (5, 150):
                sent.clear()
                await store.enqueue([new_task(key=f"{number} {n}") for n in range(number) for _ in range(2)])
                enqueued = len(sent)
                tasks = await take(store, number)
                assert len({task.key for task in tasks}) == number
                claimed = len(sent)
                assert await take(store, number) == []
                parked = len(sent)
                assert await store.finish([done(task) for task in tasks]) == [True] * number
                trips.append([enqueued, claimed - enqueued, parked - claimed, len(sent) - parked])
                assert await store.purge("q", TaskState.READY) == number
    # Those included that tell others of work, or ask whether dead rows pile up.
    assert max(trips[0]) <= 14
    assert all(many <= few + 3 for few, many in zip(*trips, strict=True)), trips


async def test_a_paused_queue_with_a_limit_costs_the_claims_of_others_nothing(storage_url: str) -> None:
    sent: list[Query] = []
    async with opened(storage_url) as store:
        await store.put_limit(Limit(queue="paused", concurrency=1))
        await store.pause("paused")
        await store.enqueue([new_task(queue="paused"), new_task()])
        with noting(sent):
            found = await store.claim({"paused": 1, "q": 1}, worker="w", lease=60)
        assert [task.queue for task in found] == ["q"]
        assert "limits.lock" not in names_of(sent, storage_url)
        await store.resume("paused")
        assert len(await take(store, queue="paused")) == 1


async def test_calls_that_wait_for_a_connection_have_no_thread_yet(storage_url: str, server: PostgresServer) -> None:
    def threads() -> int:
        return sum(thread.name == "omniq-postgres-transition" for thread in threading.enumerate())

    async with opened(f"{storage_url}&connections=2") as store, asyncio.timeout(60):
        with psycopg.connect(server.url) as connection:
            store.join(connection).enqueue([new_task(key="a", unique="k")])
            calls = [asyncio.create_task(store.enqueue([new_task(key="a", unique="k")])) for _ in range(20)]
            await await_until(lambda: is_blocked_by(server, connection))
            assert threads() <= 2
            calls.pop().cancel()
            connection.rollback()
        answers = [answer for call in calls for answer in await call]
        assert sum(answer.created for answer in answers) == 1
        await await_until(lambda: threads() == 0)


async def test_a_callers_open_transaction_holds_up_no_claim(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        await store.enqueue([new_task(key="a"), new_task(key="a"), new_task(key="b")])
        first, other = sorted(await take(store, 9), key=lambda task: task.key or "")
        with psycopg.connect(server.url) as connection:
            joined = store.join(connection)
            assert joined.finish(done(first))
            joined.enqueue([new_task(key="c"), new_task(key="c", limit="x")])
            assert await take(store, 9) == []
            await store.enqueue([new_task(key="d")])
            assert [task.key for task in await take(store, 9)] == ["d"]
            assert await store.finish([done(other)]) == [True]
            connection.commit()
        assert sorted(str(task.key) for task in await take(store, 9)) == ["a", "c"]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_a_debounced_enqueue_in_an_open_transaction_holds_up_no_claim(
    server: PostgresServer, storage_url: str, ends: str
) -> None:
    def debounced() -> NewTask:
        return new_task(key="a", unique="k", debounce=Debounce("k", 0.001))

    async with opened(storage_url) as store, asyncio.timeout(30):
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        await store.enqueue([new_task(key="a")])
        (running,) = await take(store)
        old, new = debounced(), debounced()
        await store.enqueue([old])

        async def is_ready() -> bool:
            assert await take(store) == []
            (task,) = await store.get([old.id])
            return task is not None and task.state is TaskState.READY

        await await_until(is_ready)
        with psycopg.connect(server.url) as connection:
            assert [one.created for one in store.join(connection).enqueue([new])] == [True]
            assert await store.finish([done(running)]) == [True]
            await store.enqueue([new_task(key="b")])
            assert [task.key for task in await take(store, 9)] == ["b"]
            assert await take(store, 9) == []
            getattr(connection, ends)()
        found = await arrival(store, "q")
        assert found.id == (new if ends == "commit" else old).id


async def is_blocked_by(server: PostgresServer, connection: psycopg.Connection[Any]) -> bool:
    blocking = "SELECT pid FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
    return bool(server.execute(blocking, connection.info.backend_pid))


@pytest.mark.parametrize("way", ["debounced", "unique", "in a batch", "beside a flow's", "of a flow", "retried"])
async def test_who_waits_for_a_key_of_an_open_transaction_holds_up_no_claim(
    server: PostgresServer, storage_url: str, way: str
) -> None:
    def task() -> NewTask:
        return new_task(key="a", unique="k", debounce=Debounce("k", 1) if way == "debounced" else None)

    first, second = task(), task()
    flow, same_flow, other_flow = (NewFlow(id=new_task().id, unique="k") for _ in range(3))

    async def call() -> list[Any]:
        if way == "retried":
            return await other.retry([second.id])
        if way == "of a flow":
            answers = await other.enqueue([new_task(key="c", flow=same_flow.id)], same_flow)
            return [(answer.id, answer.created) for answer in answers]
        before = {
            "in a batch": [new_task(key="c"), new_task(unique="d", debounce=Debounce("d", 1))],
            "beside a flow's": [new_task(key="c", flow=other_flow.id)],
        }
        answers = await other.enqueue([*before.get(way, []), second])
        return [(answer.id, answer.created) for answer in answers[-1:]]

    async with opened(storage_url) as store, opened(storage_url) as other, asyncio.timeout(30):
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        if way == "retried":
            await store.enqueue([second])
            assert await store.cancel([second.id]) == [True]
        if way == "beside a flow's":
            await store.enqueue([new_task(queue="elsewhere", flow=other_flow.id)], other_flow)
        with psycopg.connect(server.url) as connection:
            if way == "of a flow":
                store.join(connection).enqueue_flow([new_task(key="a", flow=flow.id)], flow)
            else:
                store.join(connection).enqueue([first])
            waits = asyncio.create_task(call())
            await await_until(lambda: is_blocked_by(server, connection))
            await store.enqueue([new_task(key="b")])
            assert [task.key for task in await take(store, 9)] == ["b"]
            assert not waits.done()
            connection.commit()
        kept = {"debounced": (second.id, True), "of a flow": (flow.id, False), "retried": False}
        assert await waits == [kept.get(way, (first.id, False))]


@pytest.mark.parametrize("way", ["with limits", "some debounced", "retried"])
async def test_batches_with_the_same_keys_take_them_in_one_order(
    server: PostgresServer, storage_url: str, way: str
) -> None:
    limit_key = None if way == "retried" else "a"
    later = Debounce("k2", 60) if way == "some debounced" else None
    both = [new_task(key=limit_key, unique="k2", debounce=later), new_task(key=limit_key, unique="k1")]
    ids = [task.id for task in both]

    async def call() -> list[bool] | list[Enqueued]:
        return await (other.retry(ids) if way == "retried" else other.enqueue(both))

    async with opened(storage_url) as store, opened(storage_url) as other, asyncio.timeout(30):
        if way == "retried":
            await store.enqueue(both)
            assert await store.cancel(ids) == [True, True]
        with psycopg.connect(server.url) as connection:
            store.join(connection).enqueue([new_task(key=limit_key, unique="k1")])
            waits = asyncio.create_task(call())
            await await_until(lambda: is_blocked_by(server, connection))
            # It waits for the first key, and has not taken the other one from those who want both.
            (answer,) = await store.enqueue([new_task(key=limit_key, unique="k2")])
            assert answer.created
            connection.rollback()
        enqueued = [Enqueued(answer.id, False), Enqueued(ids[1], True)]
        assert await waits == ([False, True] if way == "retried" else enqueued)


async def test_of_two_that_retry_a_task_with_limits_at_once_one_does(server: PostgresServer, storage_url: str) -> None:
    held, task = new_task(key="a", unique="k"), new_task(key="a", unique="k")
    async with opened(storage_url) as store, opened(storage_url) as other, asyncio.timeout(30):
        await store.enqueue([task])
        assert await store.cancel([task.id]) == [True]
        with psycopg.connect(server.url) as connection:
            store.join(connection).enqueue([held])
            waits = [asyncio.create_task(one.retry([task.id])) for one in (store, other)]

            async def both_wait() -> bool:
                return len(server.execute("SELECT pid FROM pg_stat_activity WHERE pg_blocking_pids(pid) <> '{}'")) == 2

            await await_until(both_wait)
            connection.rollback()
        assert sorted([answer for one in waits for answer in await one]) == [False, True]
        (stats,) = await store.stats()
        assert (stats.counts[TaskState.READY], stats.counts[TaskState.CANCELLED]) == (1, 0)


@pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "api"}], ids=["queue", "key", "name"])
async def test_a_rate_holds_in_every_span_whatever_the_clocks_of_clients_say(
    storage_url: str, monkeypatch: pytest.MonkeyPatch, place: dict[str, str]
) -> None:
    rate = Rate(20, per=0.5, burst=3)
    async with opened(storage_url) as store, asyncio.timeout(60):
        await store.put_limit(Limit(queue="q", rate=None if place else rate, per_key=Limit(rate=rate)))
        await store.put_limit(Limit(name="api", rate=rate))
        await store.enqueue([new_task(**place) for _ in range(30)])
        real, apart = time.time, itertools.cycle([0, 3600, -3600])
        monkeypatch.setattr(time, "time", lambda: real() - next(apart))
        began: list[datetime] = []
        while len(began) < 30:
            began += [task.started_at for task in await take(store, 9) if task.started_at is not None]
            await store.wait_for_work(["q"], 0.2)
    assert most_in(began, 0.5) <= 22
    assert most_in(began, 0.025) <= 3


async def test_a_slot_is_free_though_who_freed_it_died_before_it_told_of_that(storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        await store.enqueue([new_task(key="a") for _ in range(2)])
        (task,) = await take(store, 9)
        assert await take(store, 9) == []
        async with connection_of(storage_url) as connection:
            steps = finishing.finish([done(task)], Context(Statements(settings_of(storage_url).names), News()))
            steps.send(await libpq.rows(connection, next(steps)))
            steps.close()
        await store.wait_for_work(["q"], 600)
        assert [task.key for task in await take(store, 9)] == ["a"]


async def test_a_released_task_of_a_limited_queue_gives_its_start_back(storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.put_limit(Limit(queue="q", rate=Rate(1, per=3600)))
        await store.enqueue([new_task()])
        (task,) = await take(store, 9)
        assert await store.finish([Released(id=task.id, delivery=task.delivery)]) == [True]
        assert [one.id for one in await take(store, 9)] == [task.id]


async def test_a_schedule_fires_a_task_with_a_key_into_its_line(storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        schedule = await store.put_schedule(Schedule(id="s", task=new_task(), trigger="t", next_run=None))
        assert schedule is not None
        tasks = [new_task(key="a"), new_task(key="a"), new_task()]
        answers = await store.fire(schedule, tasks)
        assert [answer.created for answer in answers or ()] == [True] * 3
        assert await store.fire(schedule, tasks) is None
        assert sorted(str(task.key) for task in await take(store, 9)) == ["None", "a"]


async def test_lists_and_counts_show_what_waits_in_lines_as_ready(storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.enqueue([new_task(key="a"), new_task(), new_task(key="b", limit="x")])
        (stats,) = await store.stats()
        assert stats.counts[TaskState.READY] == 3
        assert stats.oldest_ready is not None
        tasks = await store.get([task.id for task in await take(store, 9)])
        assert sorted((str(task.key), str(task.limit)) for task in tasks if task) == [
            ("None", "None"),
            ("a", "None"),
            ("b", "x"),
        ]


async def test_a_purge_removes_what_waits_in_lines(storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        await store.enqueue([new_task(key="a") for _ in range(3)])
        assert len(await take(store, 9)) == 1
        assert await store.purge("q", TaskState.READY) == 2


async def test_adopted_tasks_stand_in_their_lines(storage_url: str) -> None:
    async with opened(storage_url) as source:
        await source.enqueue([new_task(key="a"), new_task(key="a"), new_task(limit="x")])
        records = [task for task in await source.get([t.id for t in await take(source, 9)]) if task is not None]
        for task in records:
            await source.finish([Released(id=task.id, delivery=task.delivery)])
        records = [task for task in await source.get([task.id for task in records]) if task is not None]
    async with opened(f"{storage_url}-copy") as store:
        await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
        assert await store.adopt(records) == [Adoption.STORED] * 3
        assert sorted(str(task.key) for task in await take(store, 9)) == ["None", "a"]


async def test_what_is_claimed_of_one_queue_is_handed_out_though_another_cannot_be_claimed_of(
    server: PostgresServer, storage_url: str
) -> None:
    async with opened(storage_url, timeout=2) as store:
        await store.put_limit(Limit(queue="limited", concurrency=5))
        await store.enqueue([new_task(queue="plain"), new_task(queue="limited")])
        lock = settings_of(storage_url).names.of_all()["limit_lock"]
        with psycopg.connect(server.url) as connection:
            connection.execute(f"SELECT pg_advisory_xact_lock({lock})".encode())
            claimed = await store.claim({"plain": 1, "limited": 1}, worker="w", lease=60)
        assert [task.queue for task in claimed] == ["plain"]
        claimed = await store.claim({"plain": 1, "limited": 1}, worker="w", lease=60)
        assert [task.queue for task in claimed] == ["limited"]


async def test_a_queue_with_limits_is_served_also_where_claims_go_on_past_dead_rows(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "MANY_DEAD", -1)
    async with opened(storage_url) as store:
        assert store._session is not None
        await store.put_limit(Limit(queue="limited", concurrency=50))
        await store.enqueue([new_task(queue=queue) for queue in ("plain", "limited") for _ in range(20)])

        async def claim() -> list[str]:
            return [task.queue for task in await store.claim({"plain": 5, "limited": 5}, worker="w", lease=60)]

        store._session.frontier.pinned_until = float("inf")
        assert len(await claim()) == 10
        store._session.frontier.claims.looked_at = float("inf")  # it does not look at everything again
        for _ in range(3):
            assert await claim() == ["plain"] * 5 + ["limited"] * 5
