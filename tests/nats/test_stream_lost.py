"""A stream that is removed, emptied or replaced while processes use it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from omniq import Every, TaskQueue
from omniq.errors import StorageUnavailable
from omniq.task import NewTask, Succeeded, TaskState
from omniq.testing import await_until
from omniq_nats.storage import NatsStorage
from tests.nats.support import fresh, make, opened, task
from tests.nats.test_opening import js, stream_of
from tests.servers.nats import NatsServer


async def work_off(storage: NatsStorage) -> list[str]:
    """Claim and finish what there is; return the ids."""
    claimed = await storage.claim({"work": 99, "other": 99}, worker="w", lease=99)
    told = [Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in claimed]
    assert await storage.finish(told) == [True] * len(told)
    return [one.id for one in claimed]


async def remove(url: str, worker: NatsStorage) -> None:
    assert (await js(url, f"STREAM.DELETE.{stream_of(url)}"))["success"]


async def empty(url: str, worker: NatsStorage) -> None:
    assert (await js(url, f"STREAM.PURGE.{stream_of(url)}"))["success"]


async def replace(url: str, worker: NatsStorage) -> None:
    """Remove it, and have another process make it anew and use it."""
    await remove(url, worker)
    async with opened(url) as other:
        await other.enqueue([task(queue="else")])
        await other.enqueue([task(queue="other")])


@pytest.mark.parametrize("lose", [remove, empty, replace])
async def test_processes_go_on_with_another_stream_and_lose_nothing_that_comes_after(
    nats_server: NatsServer,
    lose: Callable[[str, NatsStorage], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = fresh(nats_server.url, timeout="20")
    async with opened(url) as producer, opened(url) as worker:
        before = [task(), task(), task(priority=5)]
        for one in before:
            await producer.enqueue([one])
        assert set(await work_off(worker)) == {one.id for one in before}
        (late,) = await producer.enqueue([task()])
        (held,) = await worker.claim({"work": 1}, worker="w", lease=99)
        await lose(url, worker)

        # The producer knew all lines of the queue, and that it knows them wrongly by now has nobody told it.
        after: list[NewTask] = [task(), task(priority=5), task(queue="other")]
        for one in after:
            assert (await producer.enqueue([one]))[0].created
        done: set[str] = set()

        async def all_done() -> bool:
            done.update(await work_off(worker))
            if not done >= {one.id for one in after}:
                await worker.wait_for_work(["work", "other"], 3)
            return done >= {one.id for one in after}

        await await_until(all_done, 40, "what was enqueued after the loss to run")
        assert not done & {one.id for one in before}, "finished tasks ran again"
        assert await worker.get([held.id]) == [None]
        assert await worker.finish([Succeeded(id=held.id, delivery=held.delivery, result=b"1")]) == [False]
        assert late.id == held.id
        records = await producer.get([one.id for one in after])
        assert [record and record.state for record in records] == [TaskState.SUCCEEDED] * 3
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors
    assert all("results and schedules that it held are lost" in message for message in errors)
    assert len(errors) <= 2, errors


async def test_a_stream_in_memory_is_made_anew_after_its_server_was_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with NatsServer(tmp_path) as server:
        url = fresh(server.url, storage="memory", timeout="10")
        async with opened(url) as producer, opened(url) as worker:
            (old,) = await producer.enqueue([task()])
            assert await work_off(worker) == [old.id]
            waits = asyncio.create_task(worker.wait_for_work(["work"], 600))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            (new,) = await producer.enqueue([task()])
            async with asyncio.timeout(30):
                await asyncio.gather(waits, return_exceptions=True)
            assert await work_off(worker) == [new.id]
            assert await worker.get([old.id]) == [None]
    assert "is gone: the tasks, results and schedules that it held are lost" in caplog.text


async def test_a_worker_stores_the_schedules_anew_that_its_code_declares(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    queue = TaskQueue(url)
    ran: list[str] = []

    @queue.task(schedule=Every(1))
    async def tick() -> None:
        ran.append("")

    async with queue, queue.worker(recover_every=0.5):
        await await_until(lambda: ran, 60, "the schedule to fire")
        await js(url, f"STREAM.DELETE.{stream_of(url)}")

        async def is_there() -> bool:
            return bool(await queue.aschedules())

        await await_until(is_there, 40, "the schedule to be stored anew")
        number = len(ran)
        await await_until(lambda: len(ran) > number, 60, "it to fire again")


async def test_a_stream_that_cannot_be_made_anew_is_an_error_until_it_can(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = fresh(nats_server.url, timeout="1")
    async with opened(url) as storage:
        await storage.enqueue([task()])
        await js(url, f"STREAM.DELETE.{stream_of(url)}")
        names = storage._settings.names
        await js(url, "STREAM.CREATE.IN_THE_WAY", {"name": "IN_THE_WAY", "subjects": names.subjects})
        with pytest.raises(StorageUnavailable):
            await storage.enqueue([task()])
        await js(url, "STREAM.DELETE.IN_THE_WAY")
        new = task()

        async def has_enqueued() -> bool:
            try:
                return bool(await storage.enqueue([new]))
            except StorageUnavailable:
                return False

        await await_until(has_enqueued, 60, "the stream to be made")
        assert await work_off(storage) == [new.id]
    assert [one.levelname for one in caplog.records].count("ERROR") == 1
    assert repr(make(url))
