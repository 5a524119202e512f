"""``current_task()``: what a running task knows of itself, and how it says more than a result."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from omniq import CurrentTask, Fixed, Progress, TaskFailed, TaskQueue, TaskState, current_task
from omniq.testing import await_until, wait_until
from tests.core.running import Gate, working

colour: ContextVar[str] = ContextVar("colour", default="none")


def test_outside_a_task_there_is_none() -> None:
    with pytest.raises(RuntimeError, match="outside a running task"):
        current_task()


def test_a_task_is_known_where_its_context_goes_and_elsewhere_the_error_says_what_to_do(queue: TaskQueue) -> None:
    def tell(task: CurrentTask | None = None) -> str:
        return (task or current_task()).id

    @queue.task(max_retries=0)
    async def ask() -> list[str]:
        with ThreadPoolExecutor(1) as pool:
            with pytest.raises(RuntimeError, match=r"hand the object to the thread"):
                pool.submit(tell).result()
            return [
                await asyncio.to_thread(tell),
                await asyncio.create_task(asyncio.to_thread(tell)),
                pool.submit(contextvars.copy_context().run, tell).result(),
                pool.submit(tell, current_task()).result(),
            ]

    with working(queue):
        handle = ask.enqueue()
        assert handle.result(30) == [handle.id] * 4


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_a_task_knows_itself(queue: TaskQueue, kind: str) -> None:
    def describe() -> list[str | int]:
        task = current_task()
        return [task.id, task.name, task.queue, task.attempt, task.max_retries, task.cancelled]

    async def describe_in_coroutine() -> list[str | int]:
        await asyncio.sleep(0)  # others run meanwhile
        return await asyncio.create_task(asyncio.to_thread(describe))

    function: Any = describe if kind == "thread" else describe_in_coroutine
    task = queue.task(name="describe", queue="mail", max_retries=7)(function)
    handle = task.enqueue()

    with working(queue):
        assert handle.result(30) == [handle.id, "describe", "mail", 1, 7, False]
    with pytest.raises(RuntimeError):
        current_task()


# Asking to run again, or to fail


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_a_task_can_ask_to_run_again(queue: TaskQueue, kind: str) -> None:
    def again() -> int:
        try:
            if current_task().attempt < 3:
                current_task().retry(delay=0, message="not yet")
        except Exception:
            return -1  # what a task catches must not swallow it
        return current_task().attempt

    async def again_in_coroutine() -> int:
        return again()

    function: Any = again if kind == "thread" else again_in_coroutine
    # Whatever is retried otherwise: the task itself asks.
    handle = queue.task(max_retries=2, retry=Fixed(3600), retry_on=())(function).enqueue()

    with working(queue):
        assert handle.result(30) == 3


@pytest.mark.parametrize("delay", [60, timedelta(minutes=1), None])
def test_a_task_that_runs_again_waits_as_it_says_or_else_as_its_policy_does(
    queue: TaskQueue, delay: float | timedelta | None
) -> None:
    @queue.task(retry=Fixed(60))
    def later() -> None:
        current_task().retry(delay)

    handle = later.enqueue()
    with working(queue):
        wait_until(lambda: handle.task().state is TaskState.SCHEDULED)

    record = handle.task()
    assert record.started_at is not None
    assert record.started_at + timedelta(seconds=59) <= record.run_at <= datetime.now(UTC) + timedelta(seconds=61)
    assert record.error is not None
    assert record.error.message == "the task asked to run again"


def test_a_task_that_asks_to_run_again_fails_when_no_retries_are_left(queue: TaskQueue) -> None:
    @queue.task(max_retries=1)
    def again() -> None:
        current_task().retry(delay=0, message=f"still locked in attempt {current_task().attempt}")

    handle = again.enqueue()
    with working(queue), pytest.raises(TaskFailed, match="still locked in attempt 2"):
        handle.result(30)


def test_a_task_can_fail_for_good_whatever_retries_are_left(queue: TaskQueue) -> None:
    @queue.task(max_retries=5, retry=Fixed(0))
    def give_up() -> None:
        current_task().fail("no such customer")

    handle = give_up.enqueue()
    with working(queue), pytest.raises(TaskFailed, match="no such customer"):
        handle.result(30)
    assert handle.task().attempt == 1


@pytest.mark.parametrize("delay", [-1, "soon", float("nan")])
def test_a_wrong_delay_is_the_tasks_own_error(queue: TaskQueue, delay: Any) -> None:
    @queue.task(max_retries=0)
    def again() -> None:
        current_task().retry(delay)

    handle = again.enqueue()
    with working(queue), pytest.raises(TaskFailed, match=r"(Type|Value)Error: delay must be"):
        handle.result(30)


# Progress


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_progress_is_seen_while_the_task_runs_and_stays_with_its_record(
    queue: TaskQueue, gate: Gate, kind: str
) -> None:
    def advance() -> None:
        for done in range(100):
            current_task().progress(done, total=100, note="reading")
        current_task().progress(50, total=100, note="writing")

    def advance_in_thread() -> None:
        advance()
        gate.wait()

    async def advance_in_coroutine() -> None:
        advance()
        await asyncio.to_thread(gate.wait)

    function: Any = advance_in_thread if kind == "thread" else advance_in_coroutine
    handle = queue.task(function).enqueue()

    with working(queue):
        # The latest word, not the first.
        wait_until(lambda: handle.task().progress == Progress(done=50, total=100, note="writing"))
        gate.open()
        handle.result(30)
    assert handle.task().progress == Progress(done=50, total=100, note="writing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"done": -1}, "done must be zero or more"),
        ({"done": float("nan")}, "done must be zero or more"),
        ({"done": 1, "total": float("inf")}, "total must be zero or more"),
        ({"done": 3, "total": 2}, "larger than total"),
    ],
)
def test_progress_that_makes_no_sense_is_refused(queue: TaskQueue, arguments: dict[str, Any], message: str) -> None:
    @queue.task(max_retries=0)
    def wrong() -> None:
        current_task().progress(**arguments)

    handle = wrong.enqueue()
    with working(queue), pytest.raises(TaskFailed, match=message):
        handle.result(30)


# Context variables


async def test_what_a_coroutine_sets_in_its_context_no_other_task_sees(queue: TaskQueue) -> None:
    seen: list[str] = []

    @queue.task
    async def paint(name: str) -> None:
        seen.append(colour.get())
        colour.set(name)
        await asyncio.sleep(0)  # others run meanwhile
        seen.append(colour.get())

    names = ["red", "green", "blue"]
    handles = await queue.aenqueue_many(paint.call(name) for name in names)
    # One at a time: the second starts where the first has just ended.
    async with queue.worker(concurrency=1):
        for handle in handles:
            await handle

    assert seen == ["none", "red", "none", "green", "none", "blue"]
    assert colour.get() == "none"


async def test_what_a_thread_sets_in_its_context_no_other_task_sees(queue: TaskQueue) -> None:
    @queue.task
    def paint(name: str) -> tuple[str, str, str]:
        before = colour.get()
        colour.set(name)
        return before, colour.get(), threading.current_thread().name

    handles = await queue.aenqueue_many(paint.call(name) for name in ["red", "green", "blue"])
    async with queue.worker(threads=1):
        seen = [await handle for handle in handles]

    assert [(before, after) for before, after, _ in seen] == [("none", "red"), ("none", "green"), ("none", "blue")]
    assert len({thread for _, _, thread in seen}) == 1


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_what_was_set_when_the_worker_started_every_task_sees(queue: TaskQueue, kind: str) -> None:
    def look() -> str:
        return colour.get()

    async def look_in_coroutine() -> str:
        return colour.get()

    function: Any = look if kind == "thread" else look_in_coroutine
    task = queue.task(function)
    token = colour.set("of the application")
    async with queue.worker():
        colour.reset(token)
        assert await (await task.aenqueue()) == "of the application"


async def test_a_task_is_told_to_stop_through_the_object_that_it_got_at_its_start(queue: TaskQueue, gate: Gate) -> None:
    contexts: list[CurrentTask] = []

    @queue.task
    def hold() -> None:
        contexts.append(current_task())
        gate.wait()

    handle = await hold.aenqueue()
    async with queue.worker(lease=1.5):
        await await_until(lambda: contexts)
        assert not contexts[0].cancelled
        await handle.acancel()
        await await_until(lambda: contexts[0].cancelled)
        gate.open()
