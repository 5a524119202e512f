"""Flows on a Redis server: keys of other types, and what other threads add."""

from __future__ import annotations

import asyncio

import pytest

from omniq.errors import FlowClosed
from omniq.flow import NewFlow, NewGate
from omniq.storage import Enqueued
from omniq.storage.ids import new_id
from omniq.task import Feed, NewTask, TaskState
from tests.redis.redis_support import done, finish_all, new_task, only, opened, take, total
from tests.servers.redis import RedisServer


def fan_out(number: int) -> tuple[list[NewTask], NewFlow]:
    """Return a task, others that wait for it, and their flow."""
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
    first = new_task(flow=flow.id, feeds=(Feed(0),))
    return [first, *(new_task(flow=flow.id, behind=0) for _ in range(number))], flow


@pytest.mark.parametrize("key", ["ft:ID", "fb:ID", "fl:ID", "blocked:q", "flows:due", "flows:ended", "flows:unique"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_flow_ends_though_a_key_of_another_type_stood_in_its_way(
    redis_server: RedisServer, namespace: str, key: str, when: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks, flow = fan_out(5)
            await store.enqueue(tasks, flow)
            redis_server.ask("SET", f"{{{namespace}}}:{key.replace('ID', flow.id)}", "another")
            if when == "before":
                await store.recover(100)
            assert await store.finish(done(await take(store))) == [True]
            await store.recover(100)
            while await store.recover(100):
                pass
            assert await finish_all(store) == 5
            (shown,) = await store.get_flows([flow.id])
            assert shown is not None
            assert (shown.finished_at is not None, shown.counts[TaskState.SUCCEEDED]) == (True, 6)
            assert await total(store, TaskState.BLOCKED) == 0

    asyncio.run(scenario())


def test_those_that_wait_end_when_their_flow_is_lost(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks, flow = fan_out(2)
            await store.enqueue(tasks, flow)
            redis_server.ask("SET", f"{{{namespace}}}:f:{flow.id}", "another")
            assert await store.finish(done(await take(store))) == [True]
            await store.recover(100)
            assert (await only(store, tasks[0].id)).state is TaskState.SUCCEEDED
            for task in tasks[1:]:
                ended = await only(store, task.id)
                assert ended.state is TaskState.CANCELLED
                assert ended.error is not None
                assert ended.error.type == "UpstreamFailed"
            assert await store.get_flows([flow.id]) == [None]

    asyncio.run(scenario())


def test_a_flow_with_a_gate_that_cannot_be_read_ends(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks, flow = fan_out(2)
            await store.enqueue(tasks, flow)
            redis_server.ask("HSET", f"{{{namespace}}}:f:{flow.id}", "g0", "another")
            assert [flow.id in finding.message for finding in await store.check()] == [True]
            assert await store.get_flows([flow.id]) == [None]
            assert await store.finish(done(await take(store))) == [True]
            for task in tasks[1:]:
                assert (await only(store, task.id)).state is TaskState.CANCELLED
            (shown,) = await store.get_flows([flow.id])
            assert shown is not None
            assert shown.finished_at is not None

    asyncio.run(scenario())


def test_a_thread_adds_to_a_flow(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks, flow = fan_out(1)
            await store.enqueue(tasks, flow)
            sibling = new_task(flow=flow.id, feeds=(Feed(0),))
            assert await asyncio.to_thread(store.enqueue_blocking, [sibling]) == [Enqueued(sibling.id, True)]
            assert await finish_all(store) == 3
            with pytest.raises(FlowClosed):
                await asyncio.to_thread(store.enqueue_blocking, [new_task(flow=flow.id, feeds=(Feed(0),))])

    asyncio.run(scenario())


def test_a_task_that_feeds_more_gates_than_it_can_is_refused(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            gates = tuple(NewGate(n=n, rank="0") for n in range(17_000))
            flow = NewFlow(id=new_id(), gates=gates)
            with pytest.raises(ValueError, match="feeds 17,000 gates"):
                await store.enqueue([new_task(flow=flow.id, feeds=tuple(Feed(n) for n in range(17_000)))], flow)
            assert await store.get_flows([flow.id]) == [None]
            await store.enqueue([new_task(flow=flow.id, feeds=tuple(Feed(n) for n in range(9_000)))], flow)
            assert await finish_all(store) == 1

    asyncio.run(scenario())


def test_a_large_flow_that_takes_long_is_looked_at_in_steps_that_come_to_an_end(
    redis_server: RedisServer, namespace: str
) -> None:
    """After some minutes it is looked at whether a flow waits for what cannot come, by a thousand tasks at a time."""

    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
            inputs = [new_task(flow=flow.id, feeds=(Feed(0),)) for _ in range(2100)]
            await store.enqueue([*inputs, new_task(flow=flow.id, behind=0, queue="last")], flow)
            for _ in range(2):
                await store.finish(done(await take(store, n=1000)))
            redis_server.ask("HSET", f"{{{namespace}}}:f:{flow.id}", "audit_at", "1")
            redis_server.ask("ZADD", f"{{{namespace}}}:flows:due", "1", flow.id)
            looks = 0
            while await store.settle(1000):
                looks += 1
                assert looks < 10, "there is always something left to do about the flow"
            assert await finish_all(store) == 100
            assert len(await take(store, "last")) == 1

    asyncio.run(scenario())


def test_a_large_flow_that_is_stored_already_can_be_enqueued_again(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks, flow = fan_out(5000)
            assert all(answer.created for answer in await store.enqueue(tasks, flow))
            # As a producer does whose answer was lost.
            assert await store.enqueue(tasks, flow) == [Enqueued(task.id, created=False) for task in tasks]

    asyncio.run(scenario())
