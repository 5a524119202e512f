"""How those who wait are woken: no more of them than there is work for, seldom asking, and in any case."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from omniq.limit import Limit
from omniq.schedule import Schedule
from omniq.task import Retry
from omniq.testing import await_until
from omniq_redis import waiting
from omniq_redis.storage import RedisStorage
from tests.redis.redis_support import calls, done, new_task, opened, take
from tests.servers.proxy import Proxy
from tests.servers.redis import RedisServer

Tasks = set[asyncio.Task[int]]
LONG = 60.0
"""Seconds: longer than any test lasts."""


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody find anything by himself: what wakes is a call."""
    monkeypatch.setattr(waiting, "LOOK_EVERY", LONG)


def names_in(server: RedisServer, namespace: str, queue: str = "q") -> int:
    found = server.ask("ZCARD", f"{{{namespace}}}:idle:{queue}")
    assert isinstance(found, int)
    return found


async def waits(server: RedisServer, namespace: str, store: RedisStorage, *queues: str) -> asyncio.Task[None]:
    """Let a storage wait for work, and return when its name is with the queue."""
    queues = queues or ("q",)
    before = names_in(server, namespace, queues[0])
    task = asyncio.create_task(store.wait_for_work(queues, LONG))
    await await_until(lambda: names_in(server, namespace, queues[0]) > before or task.done())
    return task


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize("is_limited", [False, True], ids=["plain", "limited"])
def test_a_worker_that_was_called_for_a_queue_and_took_of_another_calls_the_next(
    redis_server: RedisServer, namespace: str, is_limited: bool
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as other:
            if is_limited:
                await store.put_limit(Limit(queue="b", concurrency=9))
                assert await take(store, "b") == []
            first = await waits(redis_server, namespace, store, "b", "a")
            second = await waits(redis_server, namespace, other, "b")
            await store.enqueue([new_task(queue="b")])
            await first
            await store.enqueue([new_task(queue="a")])
            (task,) = await store.claim({"a": 1, "b": 1}, worker="w", lease=LONG, limit=1)
            assert task.queue == "a"
            async with asyncio.timeout(20):
                await second

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_one_task_wakes_one_of_fifty_idle_workers(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        claims = 0

        async def work(store: RedisStorage) -> None:
            nonlocal claims
            while True:
                await store.wait_for_work(["q"], LONG)
                claims += 1
                await store.finish(done(await take(store, n=1)))

        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(opened(redis_server.url, namespace)) for _ in range(50)]
            producer = stores[0].sibling()
            await producer.open()
            workers = [asyncio.create_task(work(store)) for store in stores]
            await await_until(lambda: names_in(redis_server, namespace) == 50)
            for number in range(1, 4):
                (stored,) = await producer.enqueue([new_task()])
                assert await producer.wait_finished([stored.id], 10) == {stored.id}
                await await_until(lambda: names_in(redis_server, namespace) == 50)
                assert claims == number
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await producer.close()

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_a_batch_wakes_as_many_workers_as_find_something_in_it(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async def work(store: RedisStorage) -> int:
            await store.wait_for_work(["q"], LONG)
            return len(await take(store, n=10))

        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(opened(redis_server.url, namespace)) for _ in range(5)]
            workers = [asyncio.create_task(work(store)) for store in stores]
            await await_until(lambda: names_in(redis_server, namespace) == 5)
            async with opened(redis_server.url, namespace) as producer:
                await producer.enqueue([new_task() for _ in range(25)])
            ended, idle = await _some_end(workers, 3)
            assert sorted(worker.result() for worker in ended) == [5, 10, 10]
            assert len(idle) == 2
            for worker in idle:
                worker.cancel()
            await asyncio.gather(*idle, return_exceptions=True)

    asyncio.run(scenario())


async def _some_end(tasks: list[asyncio.Task[int]], number: int) -> tuple[Tasks, Tasks]:
    await await_until(lambda: sum(task.done() for task in tasks) >= number)
    # Had one more been called, its call would be here before the answer to this.
    await asyncio.sleep(0.1)  # what must not happen would have by now
    return {task for task in tasks if task.done()}, {task for task in tasks if not task.done()}


@pytest.mark.usefixtures("no_looks")
def test_a_name_whose_owner_died_takes_no_call_from_another(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as producer:
            redis_server.ask("ZADD", f"{{{namespace}}}:idle:q", 1, "of-a-dead-process:1", 2, "of-another:7")
            worker = await waits(redis_server, namespace, store)
            await producer.enqueue([new_task()])
            await asyncio.wait_for(worker, 30)
            assert names_in(redis_server, namespace) == 0

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_who_is_called_but_waits_no_longer_passes_the_call_on(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            busy, idle, producer = [
                await stack.enter_async_context(opened(redis_server.url, namespace)) for _ in range(3)
            ]
            gone = await waits(redis_server, namespace, busy)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            worker = await waits(redis_server, namespace, idle)
            assert names_in(redis_server, namespace) == 2, "the name of one who may wait again at once stays"
            await producer.enqueue([new_task()])
            await asyncio.wait_for(worker, 30)

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_who_is_called_and_gives_up_passes_the_call_on(
    redis_server: RedisServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            leaving, idle, producer = [
                await stack.enter_async_context(opened(redis_server.url, namespace)) for _ in range(3)
            ]
            gone = await waits(redis_server, namespace, leaving)
            worker = await waits(redis_server, namespace, idle)
            assert leaving._waiting is not None
            hear = leaving._waiting._told

            def hear_and_leave(text: bytes, is_due: bool) -> None:
                hear(text, is_due)
                gone.cancel()

            monkeypatch.setattr(leaving._waiting, "_told", hear_and_leave)
            await producer.enqueue([new_task()])
            await asyncio.gather(gone, return_exceptions=True)
            await leaving.close()
            assert gone.cancelled()
            await asyncio.wait_for(worker, 30)

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_all_who_wait_hear_of_a_time_that_is_sooner(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            first, second, producer = [
                await stack.enter_async_context(opened(redis_server.url, namespace)) for _ in range(3)
            ]
            await producer.enqueue([new_task(run_at=timedelta(hours=1)), new_task()])
            claimed = await take(producer)
            workers = [await waits(redis_server, namespace, store) for store in (first, second)]
            await producer.finish([Retry(id=claimed[0].id, delivery=1, delay=0.2)])
            await asyncio.wait_for(asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED), 30)
            assert len(await take(producer)) == 1
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_a_schedule_that_is_put_forward_wakes_in_time(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as other:
            worker = await waits(redis_server, namespace, store)
            soon = await other.now() + timedelta(seconds=0.2)
            await other.put_schedule(Schedule(id="s", task=new_task(), trigger="[]", next_run=soon))
            await asyncio.wait_for(worker, 30)
            assert [schedule.id for schedule in await store.due_schedules(1)] == ["s"]

    asyncio.run(scenario())


def test_a_call_that_is_lost_costs_a_look(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as producer:
            worker = await waits(redis_server, namespace, store)
            redis_server.ask("DEL", f"{{{namespace}}}:idle:q")
            await producer.enqueue([new_task()])
            await asyncio.wait_for(worker, 30)

    asyncio.run(scenario())


def test_an_end_whose_message_is_lost_costs_a_look(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as other:
            (stored,) = await other.enqueue([new_task()])
            ends = asyncio.create_task(store.wait_finished([stored.id], LONG))
            key = f"{{{namespace}}}:waiting"
            await await_until(lambda: redis_server.ask("HLEN", key) == 1)
            redis_server.ask("DEL", key)
            await other.finish(done(await take(other)))
            assert await asyncio.wait_for(ends, 30) == {stored.id}
            assert redis_server.ask("EXISTS", key) == 0

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize("what", ["work", "end"])
def test_who_waits_is_called_after_his_subscription_was_cut(
    redis_server: RedisServer, namespace: str, what: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as other:
            (stored,) = await other.enqueue([new_task(queue="another")])
            waiter: asyncio.Task[Any]
            if what == "work":
                waiter = await waits(redis_server, namespace, store)
            else:
                waiter = asyncio.create_task(store.wait_finished([stored.id], LONG))
                await await_until(lambda: redis_server.ask("HLEN", f"{{{namespace}}}:waiting") == 1)
            redis_server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            await await_until(lambda: subscribers(redis_server, namespace) == 1)
            await other.enqueue([new_task()])
            await other.cancel([stored.id])
            await asyncio.wait_for(waiter, 30)

    asyncio.run(scenario())


def listeners(server: RedisServer) -> set[str]:
    """Return the numbers of the connections that have subscribed."""
    told = str(server.ask("CLIENT", "LIST", "TYPE", "pubsub"))
    return {line.split()[0] for line in told.splitlines()}


def subscribers(server: RedisServer, namespace: str) -> int:
    found = server.ask("PUBSUB", "NUMSUB", f"{{{namespace}}}:due")
    assert isinstance(found, list)
    number: int = found[1]
    return number


def test_an_idle_worker_sends_at_most_one_request_a_second(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            far = timedelta(days=1)
            await store.enqueue([new_task(run_at=far) for _ in range(100)])
            await store.put_schedule(
                Schedule(id="far", task=new_task(), trigger="[]", next_run=await store.now() + far)
            )
            await store.wait_for_work(["q"], 0)
            redis_server.ask("CONFIG", "RESETSTAT")
            await store.wait_for_work(["q"], 4.0)
            requests = calls(redis_server)["evalsha"]
            assert requests <= 4, "more than one a second"
            assert requests >= 2, "nobody looks"

    asyncio.run(scenario())


def test_nothing_of_those_who_waited_is_left(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as other:
            (stored,) = await other.enqueue([new_task(queue="another")])
            worker = await waits(redis_server, namespace, store, "q", "r")
            assert await store.wait_finished([stored.id], 0.05) == set()
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            await other.delete([stored.id])
            await other.stats()
        keys = redis_server.ask("KEYS", f"{{{namespace}}}:*")
        assert isinstance(keys, list)
        assert sorted(key.partition(":")[2] for key in keys) == ["meta", "seq"]

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize("what", ["work", "end"])
def test_who_waits_is_called_though_his_subscription_died_without_a_word(
    redis_server: RedisServer, namespace: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "PING_EVERY", 0.2)

    async def scenario() -> None:
        with Proxy(redis_server.port) as proxy:
            url = f"redis://127.0.0.1:{proxy.port}/0?timeout=0.5"
            async with opened(url, namespace) as store, opened(redis_server.url, namespace) as other:
                (stored,) = await other.enqueue([new_task(queue="another")])
                waiter: asyncio.Task[Any]
                if what == "work":
                    waiter = await waits(redis_server, namespace, store)
                else:
                    waiter = asyncio.create_task(store.wait_finished([stored.id], LONG))
                    await await_until(lambda: redis_server.ask("HLEN", f"{{{namespace}}}:waiting") == 1)
                # The peer acknowledges what is sent, and is silent.
                before = listeners(redis_server)
                proxy.freeze(lambda said: b"SUBSCRIBE" in said)
                await await_until(lambda: listeners(redis_server) - before)
                await other.enqueue([new_task()])
                await other.cancel([stored.id])
                await asyncio.wait_for(waiter, 30)

    asyncio.run(scenario())
