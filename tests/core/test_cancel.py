"""Cancelling a task: at once while it waits, by asking while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from omniq import TaskCancelled, TaskQueue, TaskState, current_task
from omniq.testing import await_until, wait_until
from tests.core.running import Gate, MakeQueue, working


@pytest.mark.parametrize("delay", [0, 60])
def test_a_waiting_task_is_cancelled_at_once_and_never_starts(queue: TaskQueue, delay: float) -> None:
    @queue.task
    async def note() -> None:
        raise AssertionError("it was started")

    handle, control = note.using(delay=delay).enqueue(), note.using(delay=60).enqueue()

    assert handle.cancel() is True
    assert handle.cancel() is False
    assert handle.task().state is TaskState.CANCELLED
    with working(queue), pytest.raises(TaskCancelled, match=handle.id) as caught:
        handle.result(30)
    assert caught.value.task_id == handle.id
    assert control.task().state is TaskState.SCHEDULED


async def test_a_running_coroutine_is_cancelled_by_an_error_that_it_can_clean_up_on(queue: TaskQueue) -> None:
    started = asyncio.Event()
    cleaned = asyncio.Event()

    @queue.task(retry_on=BaseException)
    async def hold() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert current_task().cancelled
            cleaned.set()
            raise

    handle = await hold.aenqueue()
    async with queue.worker(lease=1.5):
        await started.wait()
        assert await handle.acancel() is True
        with pytest.raises(TaskCancelled):
            await handle.aresult(30)
    assert cleaned.is_set()
    record = await handle.atask()
    assert (record.state, record.attempt) == (TaskState.CANCELLED, 1)
    assert record.cancel_requested


async def test_a_running_task_says_that_it_was_asked_to_stop(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    handle = await hold.aenqueue()
    async with queue.worker():
        await await_until(lambda: gate.arrived == 1)
        await handle.acancel()
        record = await handle.atask()
        assert (record.state, record.cancel_requested) == (TaskState.RUNNING, True)
        assert await handle.acancel() is True, "it still runs"
        gate.open()


async def test_a_coroutine_that_swallows_its_cancellation_keeps_its_result(queue: TaskQueue) -> None:
    started = asyncio.Event()

    @queue.task
    async def stubborn() -> str:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "done all the same"

    @queue.task
    async def after() -> str:
        return "still here"

    handle = await stubborn.aenqueue()
    async with queue.worker(lease=1.5):
        await started.wait()
        await handle.acancel()
        assert await handle.aresult(30) == "done all the same"
        assert await (await after.aenqueue()).aresult(30) == "still here"


@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_thread_that_looks_can_stop_itself(queue: TaskQueue, how: str) -> None:
    @queue.task
    def poll() -> str:
        wait_until(lambda: current_task().cancelled)
        if how == "raises":
            raise ValueError("stopped half way")
        return "half a result"

    handle = poll.enqueue()
    with working(queue, lease=1.5):
        wait_until(lambda: handle.task().state is TaskState.RUNNING)
        handle.cancel()
        with pytest.raises(TaskCancelled):
            handle.result(30)
    assert handle.task().result is None


def test_a_thread_that_never_looks_keeps_its_result(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def busy() -> str:
        gate.wait()
        return "done all the same"

    handle = busy.enqueue()
    with working(queue, lease=1.5):
        wait_until(lambda: gate.arrived == 1)
        handle.cancel()
        gate.open()
        assert handle.result(30) == "done all the same"


def test_a_task_that_fails_after_it_was_asked_to_stop_is_cancelled_and_not_retried(
    queue: TaskQueue, gate: Gate
) -> None:
    @queue.task(max_retries=5)
    def fail() -> None:
        gate.wait()
        raise ValueError("no matter")

    handle = fail.enqueue()
    with working(queue):
        wait_until(lambda: gate.arrived == 1)
        handle.cancel()
        gate.open()
        with pytest.raises(TaskCancelled):
            handle.result(30)
    assert handle.task().attempt == 1


def test_a_task_that_waits_for_its_retry_can_be_cancelled(queue: TaskQueue) -> None:
    @queue.task
    def fail() -> None:
        current_task().retry(delay=60)

    handle = fail.enqueue()
    with working(queue):
        wait_until(lambda: handle.task().state is TaskState.SCHEDULED)
        assert handle.cancel() is True
        with pytest.raises(TaskCancelled):
            handle.result(30)


async def test_a_task_that_was_asked_to_stop_is_not_put_back_by_a_worker_that_stops(queue: TaskQueue) -> None:
    started = asyncio.Event()

    @queue.task
    async def hold() -> None:
        started.set()
        await asyncio.Event().wait()

    handle = await hold.aenqueue()
    # A lease so long that no heartbeat tells of the cancellation in time.
    async with queue.worker(lease=3600, grace=0):
        await started.wait()
        await handle.acancel()
    assert (await handle.atask()).state is TaskState.CANCELLED


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_a_cancelled_task_can_be_made_to_run_again(make_queue: MakeQueue, kind: str) -> None:
    queue = make_queue()

    def answer() -> int:
        return 42

    async def answer_in_coroutine() -> int:
        return 42

    function: Any = answer if kind == "thread" else answer_in_coroutine
    handle = queue.task(function).enqueue()
    handle.cancel()
    assert queue.retry(handle.id) is True
    with working(queue):
        assert handle.result(30) == 42
