"""Queues in which as many tasks run, or were cancelled, as their record can hold: nothing is lost, and it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from omniq.errors import PayloadTooLarge, StorageUnavailable
from omniq.storage import Lease, LeaseState
from omniq.task import Failed, Progress, Retry, StoredTask, Succeeded, TaskError, TaskState
from omniq_nats.storage import NatsStorage
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Yield a server that takes messages of 64 KB."""
    with NatsServer(tmp_path_factory.mktemp("small"), ["max_payload: 64KB"]) as server:
        yield server


async def claim_all(storage: NatsStorage, step: int) -> list[StoredTask]:
    """Claim until the queue is full."""
    held: list[StoredTask] = []

    async def fill() -> None:
        while some := await storage.claim({"work": step}, worker="w", lease=600):
            held.extend(some)

    with pytest.raises(StorageUnavailable, match="'work' has as many running tasks as its record can hold"):
        await fill()
    return held


@pytest.mark.parametrize("step", [1000, 50])
async def test_a_queue_that_is_full_gives_no_more_and_the_others_do(small_server: NatsServer, step: int) -> None:
    async with opened(fresh(small_server.url)) as storage:
        await storage.enqueue([task() for _ in range(800)])
        held = await claim_all(storage, step)
        assert 200 < len(held) < 800
        (other,) = await storage.enqueue([task(queue="other")])
        assert [one.id for one in await storage.claim({"work": 9, "other": 9}, worker="w", lease=600)] == [other.id]
        with pytest.raises(StorageUnavailable, match="more can be claimed as these end"):
            await storage.claim({"work": 9, "other": 9}, worker="w", lease=600)
        leases = [Lease(one.id, one.delivery) for one in held]
        assert await storage.heartbeat("w", leases, 600) == [LeaseState.HELD] * len(held)
        counts = {stat.queue: stat.counts for stat in await storage.stats()}["work"]
        assert counts[TaskState.RUNNING] == len(held)
        assert counts[TaskState.READY] == 800 - len(held)


async def test_all_that_run_in_a_full_queue_can_end_whatever_they_give(small_server: NatsServer) -> None:
    async with opened(fresh(small_server.url)) as storage:
        ids = [answer.id for answer in await storage.enqueue([task(max_retries=1) for _ in range(600)])]
        error = TaskError(type="ValueError", message="m" * 500, traceback="t\n" * 500)
        results = [b"x" * 1900, b'"' * 1900, b"\x00" * 1900, b"\xff" * 1900, b"small", b"y" * 20_000]
        given: dict[str, bytes | TaskError] = {}
        held = await claim_all(storage, 1000)
        while held:
            for start in range(0, len(held), 100):
                some = held[start : start + 100]
                told: list[Succeeded | Failed | Retry] = []
                for number, one in enumerate(some):
                    fields: dict[str, Any] = {"id": one.id, "delivery": one.delivery}
                    if number % 7 == 6 and one.attempt == 1:
                        told.append(Retry(**fields, delay=0, error=error))
                    elif number % 5 == 4:
                        told.append(Failed(**fields, error=error))
                        given[one.id] = error
                    else:
                        told.append(Succeeded(**fields, result=results[number % 6]))
                        given[one.id] = results[number % 6]
                assert await storage.finish(told) == [True] * len(told)
            held = await storage.claim({"work": 1000}, worker="w", lease=600)
        records = await storage.get(ids)
        assert [record and (record.result_payload or record.error) for record in records] == [given[one] for one in ids]


async def test_notes_of_progress_leave_room_for_the_end(small_server: NatsServer) -> None:
    async with opened(fresh(small_server.url)) as storage:
        await storage.enqueue([task() for _ in range(800)])
        held = await claim_all(storage, 1000)

        async def note() -> None:
            for one in held:
                await storage.set_progress({Lease(one.id, one.delivery): Progress(done=1, total=2, note="n" * 300)})

        with pytest.raises(PayloadTooLarge):
            await note()
        held.reverse()  # those without a note come first, and their ends take more than they did
        for start in range(0, len(held), 100):
            told = [Succeeded(id=one.id, delivery=1, result=b"x" * 300) for one in held[start : start + 100]]
            assert await storage.finish(told) == [True] * len(told)


async def test_what_was_cancelled_far_ahead_leaves_room_for_claims(small_server: NatsServer) -> None:
    async with opened(fresh(small_server.url)) as storage:
        first = [answer.id for answer in await storage.enqueue([task() for _ in range(10)])]
        ids = [answer.id for answer in await storage.enqueue([task() for _ in range(4000)])]
        cancelled = 0

        async def cancel(step: int) -> None:
            nonlocal cancelled
            while True:
                assert await storage.cancel(ids[cancelled : cancelled + step]) == [True] * step
                cancelled += step

        for step in (100, 10, 1):
            with pytest.raises(PayloadTooLarge, match="were cancelled at once"):
                await cancel(step)
        assert cancelled > 500
        for one in first:
            (claimed,) = await storage.claim({"work": 1}, worker="w", lease=600)
            assert claimed.id == one
            assert await storage.finish([Succeeded(id=one, delivery=1, result=b"x" * 2000)]) == [True]
        (claimed,) = await storage.claim({"work": 1}, worker="w", lease=600)
        assert claimed.id == ids[cancelled]
        assert await storage.cancel(ids[-100:]) == [True] * 100
