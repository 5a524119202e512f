"""Many at once on the same tasks, keys and ids: nobody gets what another one has, and nobody waits in a circle."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from multiprocessing.synchronize import Barrier
from typing import Any

import psycopg
import pytest
from attrs import field, frozen

from omniq.schedule import Schedule
from omniq.storage import Enqueued, Lease, LeaseState
from omniq.task import Cancelled, NewTask, Outcome, TaskState
from omniq.testing import await_until
from omniq_postgres.storage import PostgresStorage
from tests.postgres.support import counts, done, new_task, opened, take
from tests.repeating import short_and_long
from tests.servers.postgres import PostgresServer

# Many workers


PROCESSES = 3
CONNECTIONS = 50
"""Of each process: so many of its workers are served at once, and the others crowd behind them."""


DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"


@frozen
class Seen:
    """What the workers of one process were told."""

    claims: list[tuple[str, int]] = field(factory=list)
    ends: list[tuple[str, int]] = field(factory=list)
    """Deliveries whose end was accepted."""


_all_are_ready: Barrier


def _wait_for(barrier: Barrier) -> None:
    global _all_are_ready
    _all_are_ready = barrier


def _work(url: str, names: Sequence[str], ids: Sequence[str]) -> Seen:
    """Be many workers at once, in a process of their own."""

    async def run() -> Seen:
        seen = Seen()
        async with opened(url, connections=CONNECTIONS, timeout=60) as store:
            await asyncio.gather(*(store.heartbeat(name, [], 60) for name in names[:CONNECTIONS]))
            _all_are_ready.wait(60)
            await asyncio.gather(*(_be_worker(name, ids, store, seen) for name in names))
        return seen

    return asyncio.run(run())


async def _be_worker(name: str, ids: Sequence[str], store: PostgresStorage, seen: Seen) -> None:
    chance = random.Random(name)
    while tasks := await store.claim({"q": chance.randint(1, 3)}, worker=name, lease=60):
        seen.claims.extend((task.id, task.delivery) for task in tasks)
        leases = [Lease(task.id, task.delivery) for task in tasks]
        if chance.random() < 0.1:
            # Their lease is over at once, and they are anybody's. A lease that is locked at that moment stays
            # as it is, so it is said again until others have taken all of them.
            while set(await store.heartbeat(name, leases, 0)) != {LeaseState.LOST}:
                await store.recover(20)
            continue
        if chance.random() < 0.1:
            await store.cancel(chance.sample(ids, 10))
        states = await store.heartbeat(name, leases, 60)
        assert LeaseState.LOST not in states
        outcomes: list[Outcome] = [
            done(task) if state is LeaseState.HELD else Cancelled(id=task.id, delivery=task.delivery)
            for task, state in zip(tasks, states, strict=True)
        ]
        assert all(await store.finish(outcomes))
        seen.ends.extend((task.id, task.delivery) for task in tasks)


@contextmanager
def without_deadlock(server: PostgresServer) -> Iterator[None]:
    """Fail if the server had to end a circle of statements that wait for each other, though they be repeated."""
    ((before,),) = server.execute(DEADLOCKS)
    size = server.log.stat().st_size
    yield
    assert server.execute(DEADLOCKS) == [(before,)]
    assert b"deadlock" not in server.log.read_bytes()[size:]


@pytest.mark.timeout(400)  # a crowd of processes and connections
@pytest.mark.parametrize("workers", short_and_long(300, 2000))
async def test_many_workers_that_claim_at_once_get_each_delivery_once_and_never_lock_each_other_out(
    server: PostgresServer, storage_url: str, workers: int
) -> None:
    with without_deadlock(server):
        await _many_workers(storage_url, workers, tasks=workers * 3 // 2)


async def _many_workers(storage_url: str, workers: int, tasks: int) -> None:
    async with opened(storage_url) as store:
        ids = [
            entry.id
            for entry in await store.enqueue([new_task(priority=n % 3, max_retries=1000) for n in range(tasks)])
        ]
        names = [f"worker-{number}" for number in range(workers)]
        spawn = multiprocessing.get_context("spawn")
        barrier = spawn.Barrier(PROCESSES)
        with ProcessPoolExecutor(PROCESSES, spawn, _wait_for, (barrier,)) as pool:
            parts = [pool.submit(_work, storage_url, names[n::PROCESSES], ids) for n in range(PROCESSES)]
            seen = [await asyncio.wrap_future(part) for part in parts]
        # What the last of them gave up.
        rest = Seen()
        while await store.recover(1000) or (await counts(store)).get(TaskState.READY):
            await _be_worker("last", ids, store, rest)

        claims = Counter(claim for part in (*seen, rest) for claim in part.claims)
        ends = Counter(task_id for part in (*seen, rest) for task_id, _ in part.ends)
        assert max(claims.values()) == 1, "a delivery was claimed twice"
        assert max(ends.values()) == 1, "a task has ended twice"
        found = {task.id: task for task in await store.get(ids) if task is not None}
        assert {task_id: task.delivery for task_id, task in found.items() if task.delivery} == Counter(
            task_id for task_id, _ in claims
        )
        assert {task.state for task in found.values()} == {TaskState.SUCCEEDED, TaskState.CANCELLED}
        assert sum((await counts(store)).values()) == tasks


# Keys and ids


async def test_batches_with_the_same_keys_in_any_order_do_not_lock_each_other_out(
    server: PostgresServer, storage_url: str
) -> None:
    keys = [f"key {number}" for number in range(40)]
    async with opened(storage_url) as store, AsyncExitStack() as others:
        stores = [await others.enter_async_context(opened(storage_url)) for _ in range(10)]

        async def enqueue(number: int) -> list[Enqueued]:
            order = keys[number:] + keys[:number]
            return await stores[number].enqueue(
                [new_task(unique=key) for key in (order if number % 2 else order[::-1])]
            )

        with without_deadlock(server):
            async with await psycopg.AsyncConnection.connect(server.url) as connection:
                # Somebody has one of the keys for a moment, so that all of them are on their way at once.
                await store.join(connection).aenqueue([new_task(unique=keys[20])])
                batches = [asyncio.create_task(enqueue(number)) for number in range(10)]
                await until_somebody_waits(server, 10)
                await connection.rollback()
            answers = [answer for batch in await asyncio.gather(*batches) for answer in batch]
        assert sum(answer.created for answer in answers) == len(keys)
        assert len({answer.id for answer in answers}) == len(keys)
        assert await counts(store) == {TaskState.READY: len(keys)}


async def fired(store: PostgresStorage, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
    schedule = await store.put_schedule(Schedule(id="s", task=new_task(), trigger="t", next_run=await store.now()))
    assert schedule is not None
    return await store.fire(schedule, tasks)


STORED: Sequence[Callable[[PostgresStorage, Sequence[NewTask]], Awaitable[Any]]] = (PostgresStorage.enqueue, fired)
"""The ways in which tasks are stored."""


async def until_somebody_waits(server: PostgresServer, number: int = 1) -> None:
    """Return when so many statements wait for somebody's transaction."""

    def wait() -> bool:
        ((waiting,),) = server.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(waiting >= number)

    await await_until(wait, 60, f"{number} statements that wait")


@pytest.mark.parametrize("way", STORED, ids=lambda way: way.__name__)
async def test_a_task_that_waited_for_its_key_was_created_after_the_one_before_it_ended(
    server: PostgresServer, storage_url: str, way: Callable[..., Awaitable[Any]]
) -> None:
    async with opened(storage_url) as store:
        holder, following = new_task(unique="key"), new_task(unique="key")
        await store.enqueue([holder])
        (claimed,) = await take(store)
        async with await psycopg.AsyncConnection.connect(server.url) as connection:
            waiting = asyncio.ensure_future(way(store, [following]))
            await waiting  # there is nothing to wait for yet: the key is taken
            assert await store.get([following.id]) == [None]
            await store.join(connection).afinish(done(claimed))
            waiting = asyncio.ensure_future(way(store, [following]))
            await until_somebody_waits(server)
            before_the_end = await store.now()
        assert await waiting
        (found,) = await store.get([following.id])
        assert found is not None
        assert found.created_at > before_the_end


@pytest.mark.parametrize("way", STORED, ids=lambda way: way.__name__)
async def test_a_task_that_came_and_ended_while_another_try_to_store_it_waited_is_stored_once(
    server: PostgresServer, storage_url: str, way: Callable[..., Awaitable[Any]]
) -> None:
    """As where a call is repeated though its first try is still under way on the server."""
    async with opened(storage_url) as store, opened(storage_url) as other:
        task = new_task(unique="key")
        async with await psycopg.AsyncConnection.connect(server.url) as connection:
            await store.join(connection).aenqueue([new_task(unique="key")])
            waiting = asyncio.ensure_future(way(store, [task]))
            await until_somebody_waits(server)
            await other.enqueue([new_task(id=task.id)])
            (claimed,) = await take(other)
            assert await other.finish([done(claimed)]) == [True]
            await connection.rollback()
        answer = await waiting
        assert answer == [Enqueued(task.id, False)]
        assert await counts(store) == {TaskState.SUCCEEDED: 1}


async def test_a_batch_that_waits_for_a_key_keeps_no_other_batch_waiting(
    server: PostgresServer, storage_url: str
) -> None:
    async with opened(storage_url) as store:
        async with await psycopg.AsyncConnection.connect(server.url) as connection:
            await store.join(connection).aenqueue([new_task(unique="key")])
            waiting = asyncio.create_task(store.enqueue([new_task(unique="key"), new_task()]))
            await until_somebody_waits(server)
            answers = await store.enqueue([new_task(), new_task(unique="another")])
            answers += await store.enqueue([new_task(), new_task()])
            assert all(answer.created for answer in answers)
            assert not waiting.done()
        assert [answer.created for answer in await waiting] == [False, True]
