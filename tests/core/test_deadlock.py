"""Tasks that wait for other tasks: what would stand still is refused, or warned of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from omniq import TaskCancelled, TaskFailed, TaskFunction, TaskQueue
from omniq._worker.worker import WorkerOptions
from omniq.storage.urls import parse_url
from omniq.task import StoredTask
from omniq.testing import await_until
from omniq_local.memory.storage import MemoryStorage

WARNING = "tasks that wait for the results of other tasks"


@pytest.fixture
def queue() -> TaskQueue:
    return TaskQueue("memory://", max_retries=0)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for record in caplog.records if WARNING in (message := record.getMessage())]


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_parents_that_take_all_slots_and_wait_for_children_are_warned_of_once(
    kind: str, queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    children: list[str] = []

    @queue.task
    def plain_child() -> None: ...

    @queue.task
    def plain_parent() -> None:
        child = plain_child.enqueue()
        children.append(child.id)
        child.result()

    @queue.task
    async def coroutine_child() -> None: ...

    @queue.task
    async def coroutine_parent() -> None:
        child = await coroutine_child.aenqueue()
        children.append(child.id)
        await child

    parent: TaskFunction[[], Any] = plain_parent if kind == "plain" else coroutine_parent
    slots: WorkerOptions = {"threads": 2} if kind == "plain" else {"concurrency": 2}
    async with queue, queue.worker(**slots):
        parents = [await parent.aenqueue(), await parent.aenqueue()]
        with caplog.at_level(logging.WARNING, "omniq.worker"):
            await await_until(lambda: warnings_in(caplog), what="the warning")
            (warning,) = warnings_in(caplog)
            assert f"all 2 {'threads' if kind == 'plain' else 'slots for coroutines'}" in warning
            assert parent.name in warning
            assert any(child in warning for child in children)
            for child in children:
                await queue.acancel(child)
            for handle in parents:
                with pytest.raises(TaskFailed, match=TaskCancelled.__name__):
                    await handle
        assert len(warnings_in(caplog)) == 1, "once while it lasts"


class Watched(MemoryStorage):
    """A memory storage that counts how often it is asked for what others wait for."""

    looks = 0

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        type(self).looks += 1
        return await super().get(ids)


async def test_parents_whose_children_run_elsewhere_are_not_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.deadlock.LOOKS", 10**9)
    monkeypatch.setattr(Watched, "looks", 0)
    queue = TaskQueue(Watched(parse_url("memory://")), max_retries=0)
    running, release = asyncio.Event(), asyncio.Event()

    @queue.task(queue="children")
    async def child() -> None:
        running.set()
        await release.wait()

    @queue.task
    async def parent() -> None:
        await (await child.aenqueue())

    async with queue, queue.worker(queues=["default"], concurrency=1), queue.worker(queues=["children"]):
        handle = await parent.aenqueue()
        await asyncio.wait_for(running.wait(), 20)
        monkeypatch.setattr("omniq._worker.deadlock.LOOKS", 1)
        before = Watched.looks
        await await_until(lambda: Watched.looks >= before + 3, what="three looks at the child")
        release.set()
        await handle
    assert warnings_in(caplog) == []


async def test_a_coroutine_that_waits_synchronously_fails_and_the_worker_goes_on(queue: TaskQueue) -> None:
    @queue.task
    async def child() -> int:
        return 1

    @queue.task
    async def parent() -> int:
        return (await child.aenqueue()).result()

    async with queue, queue.worker():
        with pytest.raises(TaskFailed, match=r"RuntimeError: .*`await ….aresult\(…\)`"):
            await (await parent.aenqueue())
        assert await (await child.aenqueue()) == 1


async def test_a_plain_function_may_wait_where_a_slot_is_left(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    @queue.task
    def child() -> int:
        return 1

    @queue.task
    def parent() -> int:
        return child.enqueue().result() + 1

    async with queue, queue.worker(threads=2):
        assert await (await parent.aenqueue()) == 2
    assert warnings_in(caplog) == []
