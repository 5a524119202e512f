"""What of flows is particular to this store: several messages that change in one step, and are read apart."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import nats
import pytest
from attrs import evolve
from nats.aio.client import Client
from nats.js.client import JetStreamContext

from omniq.flow import NewFlow, NewGate
from omniq.storage import Lease, Severity, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Failed, Feed, NewTask, StoredTask, Succeeded, TaskError, TaskState
from omniq.testing import await_until
from omniq_nats.messages import Lost, Write
from omniq_nats.names import Names
from omniq_nats.storage import NatsStorage
from omniq_nats.times import Clock
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer

BLOCKED, READY, SUCCEEDED = TaskState.BLOCKED, TaskState.READY, TaskState.SUCCEEDED
CANCELLED = TaskState.CANCELLED


def member(flow: NewFlow, behind: int | None = None, feeds: Sequence[int] = (), **options: Any) -> NewTask:
    return task(flow=flow.id, behind=behind, feeds=tuple(Feed(n) for n in feeds), **options)


def fan_in(queues: Sequence[str], *, count: int, last: str) -> tuple[list[NewTask], NewFlow]:
    """Return a flow of some tasks over several queues, and one behind them."""
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),), result_ttl=0.0)
    tasks = [member(flow, feeds=[0], queue=queues[number % len(queues)]) for number in range(count)]
    return [*tasks, member(flow, 0, queue=last)], flow


async def claim(storage: Storage, queue: str, count: int = 100) -> list[StoredTask]:
    return await storage.claim({queue: count}, worker="w", lease=60)


def ends(tasks: Sequence[StoredTask]) -> list[Succeeded]:
    return [Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in tasks]


async def stream_of(server: NatsServer) -> tuple[Client, JetStreamContext]:
    client = await nats.connect(server.url)
    return client, client.jetstream()


async def test_clients_that_end_tasks_of_one_flow_at_once_in_several_queues_lose_no_end(
    nats_server: NatsServer,
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as one, opened(url) as two, opened(url) as three:
        tasks, flow = fan_in(["a", "b", "c"], count=45, last="last")
        await one.enqueue(tasks, flow)

        async def work(storage: NatsStorage, queue: str) -> None:
            while claimed := await claim(storage, queue, 3):
                assert await storage.finish(ends(claimed)) == [True] * len(claimed)

        await asyncio.gather(*(work(storage, queue) for storage in (one, two, three) for queue in "abc"))
        (stored,) = await two.get_flows([flow.id])
        assert stored is not None
        assert (stored.gates[0].unmet, stored.counts[SUCCEEDED], stored.counts[READY]) == (0, 45, 1)
        assert [found.id for found in await claim(three, "last")] == [tasks[-1].id]
        assert await claim(one, "last") == []


async def test_a_step_that_takes_longer_than_the_changes_of_others_gets_its_turn(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as slow, opened(url) as one, opened(url) as two:
        tasks, flow = fan_in(["work"], count=3, last="last")
        await slow.enqueue(tasks, flow)
        claimed = await claim(slow, "work")
        await slow.enqueue([task(), task()])
        changes = 0
        is_over = asyncio.Event()

        async def change_without_pause(storage: NatsStorage) -> None:
            nonlocal changes
            (mine,) = await claim(storage, "work", 1)
            while not is_over.is_set():
                await storage.heartbeat("w", [Lease(id=mine.id, delivery=mine.delivery)], 60)
                changes += 1

        async def send_late(writes: Sequence[Write], **options: Any) -> int:
            # Others change the queue meanwhile, unless they hold back.
            if len(writes) > 1:
                before = changes
                with contextlib.suppress(AssertionError):
                    await await_until(lambda: changes >= before + 5, timeout=1)
            return await batch(writes, **options)

        assert slow._opened is not None
        batch: Callable[..., Awaitable[int]] = slow._opened.transport.batch
        monkeypatch.setattr(slow._opened.transport, "batch", send_late)
        others = [asyncio.create_task(change_without_pause(storage)) for storage in (one, two)]
        try:
            await await_until(lambda: changes > 5)
            assert await slow.finish(ends(claimed)) == [True] * 3
        finally:
            is_over.set()
        await asyncio.gather(*others)
        (stored,) = await one.get_flows([flow.id])
        assert stored is not None
        assert stored.counts[SUCCEEDED] == 3


async def test_a_reservation_holds_up_no_step_after_the_clock_was_put_back(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url, timeout="1")
    async with opened(url) as ahead, opened(url) as storage:
        tasks, flow = fan_in(["work"], count=1, last="last")
        await storage.enqueue(tasks, flow)
        claimed = await claim(storage, "work")
        assert ahead._opened is not None
        clock = Clock()
        moment = time.monotonic()
        clock.learn(moment, moment, ahead._opened.state_store.clock.now() + 3_600_000_000)
        ahead._opened.state_store.clock = clock
        await ahead._opened.state_store.reserve(["work"], 1)
        assert await storage.finish(ends(claimed)) == [True]
        assert [one.id for one in await claim(storage, "last")] == [tasks[-1].id]


async def test_an_answer_that_is_lost_counts_nothing_twice(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        assert storage._opened is not None
        transport = storage._opened.transport
        batch: Callable[..., Awaitable[int]] = transport.batch
        lost = 0

        async def loses_each_answer(writes: Sequence[Write], **options: Any) -> int:
            nonlocal lost
            await batch(writes, **options)
            lost += 1
            raise Lost("the answer was lost")

        tasks, flow = fan_in(["a"], count=2, last="last")
        monkeypatch.setattr(transport, "batch", loses_each_answer)
        assert [one.created for one in await storage.enqueue(tasks, flow)] == [True] * 3
        monkeypatch.undo()
        claimed, lost = await claim(storage, "a"), 0
        for one, left in zip(claimed, (1, 0), strict=True):
            monkeypatch.setattr(transport, "batch", loses_each_answer)
            assert await storage.finish(ends([one])) == [True]
            monkeypatch.undo()
            (stored,) = await storage.get_flows([flow.id])
            assert stored is not None
            assert stored.gates[0].unmet == left
        assert lost == 2, "each step was stored once"
        assert [one.id for one in await claim(storage, "last")] == [tasks[-1].id]


async def test_a_flow_is_retried_whose_failed_tasks_are_too_many_for_one_message(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        tasks, flow = fan_in(["work"], count=400, last="last")
        await storage.enqueue(tasks, evolve(flow, result_ttl=600))
        await storage.enqueue([member(flow, feeds=[0]) for _ in range(400)])
        error = TaskError(type="Broken", message="m" * 1900)
        while claimed := await claim(storage, "work"):
            failed = [Failed(id=one.id, delivery=one.delivery, error=error) for one in claimed]
            assert await storage.finish(failed) == [True] * len(failed)
        (last,) = await storage.get([tasks[-1].id])
        assert last is not None
        assert last.state is CANCELLED
        assert await storage.retry_flow(flow.id) == 800
        while claimed := await claim(storage, "work"):
            assert await storage.finish(ends(claimed)) == [True] * len(claimed)
        assert [one.id for one in await claim(storage, "last")] == [tasks[-1].id]


async def test_that_a_flow_has_ended_is_known_to_those_who_did_not_end_it(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as one, opened(url) as other:
        tasks, flow = fan_in(["work"], count=1, last="last")
        await one.enqueue(tasks, flow)

        async def blocked() -> int:
            return sum(stats.counts[BLOCKED] for stats in await other.stats())

        assert await blocked() == 1
        await one.cancel([tasks[0].id])
        assert await blocked() == 0
        assert await other.settle(10) == 0


async def test_what_is_blocked_is_not_in_the_state_of_its_queue(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0", hold=True),))
        await storage.enqueue([member(flow, 0) for _ in range(300)], flow)
        ready = task()
        await storage.enqueue([ready])
        assert [one.id for one in await claim(storage, "work")] == [ready.id]
        assert storage._opened is not None
        queue_state = storage._opened.state_store.remembered("work")
        assert queue_state is not None
        assert (len(queue_state.waiting), queue_state.overflow, list(queue_state.lines)) == (0, [], ["p0"])
        (stats,) = await storage.stats()
        assert stats.counts[BLOCKED] == 300


async def test_a_state_that_is_made_anew_has_what_was_released_and_leaves_the_rest_blocked(
    nats_server: NatsServer,
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        flow = NewFlow(id=new_id(), gates=tuple(NewGate(n=n, rank=f"{n}") for n in range(2)))
        first, last = member(flow, feeds=[0]), member(flow, 1)
        behind = [member(flow, 0, [1]) for _ in range(90)]
        await storage.enqueue([first, *behind, last], flow)
        assert await storage.finish(ends(await claim(storage, "work"))) == [True]
        names = storage._settings.names
        client, stream = await stream_of(nats_server)
        await stream.publish(names.queue_state("work"), b"no state of a queue")
        await client.close()
        claimed: list[StoredTask] = []
        while some := await claim(storage, "work", 40):
            claimed += some
        assert {one.id for one in claimed} == {one.id for one in behind}
        (found,) = await storage.get([last.id])
        assert found is not None
        assert found.state is BLOCKED
        assert await storage.finish(ends(claimed)) == [True] * 90
        assert [one.id for one in await claim(storage, "work")] == [last.id]


async def test_nothing_of_a_flow_is_left_once_it_is_pruned(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        tasks, flow = fan_in(["work"], count=3, last="work")
        await storage.enqueue(tasks, evolve(flow, unique="key"))
        assert await storage.delete([tasks[0].id]) == [True]
        while await storage.settle(100):
            pass

        async def is_gone() -> bool:
            while some := await claim(storage, "work"):
                await storage.finish(ends(some))
            await storage.prune(100)
            return await storage.get_flows([flow.id]) == [None]

        await await_until(is_gone, 20)
        await storage.close()
        client, stream = await stream_of(nats_server)
        names: Names = storage._settings.names
        info = await stream.stream_info(names.stream, subjects_filter=f"{names.root}.>")
        await client.close()
        left = [subject for subject in info.state.subjects or {} if subject.split(".")[2] not in "qwu"]
        assert left == [], "beside the state of the queue and what workers told"


async def test_a_flow_that_cannot_be_read_harms_nothing_else_and_is_found(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        bad, good = fan_in(["work"], count=1, last="work"), fan_in(["work"], count=1, last="work")
        for tasks, flow in (bad, good):
            await storage.enqueue(tasks, flow)
        client, stream = await stream_of(nats_server)
        names: Names = storage._settings.names
        await stream.publish(names.flow(bad[1].id), b"no flow")
        await stream.publish(names.roster(bad[1].id, 0), b"no roster")
        await client.close()
        assert await storage.finish(ends(await claim(storage, "work"))) == [True, True]
        await storage.recover(10)
        assert await storage.get_flows([bad[1].id]) == [None]
        assert [one.id for one in await claim(storage, "work")] == [good[0][-1].id]
        assert [found.severity for found in await storage.check()] == [Severity.ERROR] * 2
        page = await storage.list_tasks(TaskQuery(flow=bad[1].id))
        assert {one.id: one.state for one in page} == {bad[0][0].id: SUCCEEDED, bad[0][1].id: BLOCKED}
