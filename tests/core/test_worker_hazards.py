"""What tasks do that must not hurt the worker, nor the tasks beside them."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest

from omniq import Fixed, TaskFailed, TaskQueue, TaskState, current_task
from omniq.testing import wait_until
from tests.core.running import Gate, working


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_ends_a_program_does_not_end_the_worker(queue: TaskQueue, kind: str, error: type[BaseException]) -> None:
    def fail() -> None:
        if error is SystemExit:
            sys.exit("enough")
        raise error("enough")

    async def fail_in_coroutine() -> None:
        fail()

    @queue.task
    def after() -> str:
        return "still here"

    function: Any = fail if kind == "thread" else fail_in_coroutine
    handle = queue.task(function).enqueue()
    with working(queue):
        with pytest.raises(TaskFailed, match=f"{error.__name__}: enough"):
            handle.result(30)
        assert after.enqueue().result(30) == "still here"


def test_an_error_that_cannot_be_shown_does_not_end_the_worker(queue: TaskQueue) -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise SystemExit

    @queue.task(max_retries=0)
    async def fail() -> None:
        raise Wordless

    @queue.task(max_retries=0)
    def surrogates() -> None:
        raise ValueError("caf\udce9 " + "x" * 1_000_000)

    with working(queue):
        with pytest.raises(TaskFailed, match="no text"):
            fail.enqueue().result(30)
        with pytest.raises(TaskFailed, match=r"caf\\udce9 x+\n… 990,005 characters left out") as caught:
            surrogates.enqueue().result(30)
    assert len(str(caught.value)) < 100_000


def test_a_coroutine_over_its_timeout_is_stopped_and_tried_again(queue: TaskQueue) -> None:
    @queue.task(timeout=0.5, max_retries=1, retry=Fixed(0))
    async def slow() -> int:
        if current_task().attempt == 1:
            await asyncio.Event().wait()
        return current_task().attempt

    handle = slow.enqueue()
    with working(queue):
        assert handle.result(30) == 2


def test_a_thread_over_its_timeout_fails_and_its_late_result_is_dropped(queue: TaskQueue, gate: Gate) -> None:
    @queue.task(timeout=0.05, max_retries=0)
    def slow() -> str:
        gate.wait()
        return "too late"

    @queue.task
    def after() -> str:
        return "in its place"

    handle = slow.enqueue()
    with working(queue, threads=1):
        with pytest.raises(TaskFailed, match=r"TaskTimeout: .*slow took longer than its timeout of 0\.05 s"):
            handle.result(30)
        assert after.enqueue().result(30) == "in its place"
        gate.open()
        wait_until(lambda: _lane_threads() == 1, what="the end of the thread that nobody waits for")
        assert after.enqueue().result(30) == "in its place"
    assert handle.task().state is TaskState.FAILED


def _lane_threads() -> int:
    return sum(thread.name == "omniq-thread" for thread in threading.enumerate())


def test_a_thread_over_its_timeout_runs_again_elsewhere_and_only_the_second_result_counts(
    queue: TaskQueue, gate: Gate
) -> None:
    @queue.task(timeout=0.5, max_retries=1, retry=Fixed(0))
    def slow() -> str:
        attempt = current_task().attempt
        if attempt == 1:
            gate.wait()
        return f"of attempt {attempt}"

    handle = slow.enqueue()
    with working(queue, threads=1):
        assert handle.result(30) == "of attempt 2"
        gate.open()
        wait_until(lambda: _lane_threads() == 1)
    assert handle.result(0) == "of attempt 2"


async def test_a_task_that_blocks_the_loop_keeps_its_lease(queue: TaskQueue) -> None:
    @queue.task(max_retries=0)
    async def block() -> int:
        time.sleep(5)  # more than two leases  # noqa: ASYNC251  # the mistake that is tested
        return current_task().attempt

    handle = await block.aenqueue()
    lease = 2  # within which a loaded machine gets a heartbeat through
    with working(queue, lease=lease, recover_every=0.1), working(queue, lease=lease, recover_every=0.1):
        assert await handle.aresult(30) == 1
    assert (await handle.atask()).delivery == 1


def test_a_task_that_cancels_its_own_asyncio_task_fails_at_once(queue: TaskQueue) -> None:
    @queue.task(max_retries=0)
    async def give_up() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(0)  # where the cancellation is raised

    with working(queue), pytest.raises(TaskFailed, match="CancelledError"):
        give_up.enqueue().result(30)
