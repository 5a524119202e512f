"""What a worker opens before its first task and closes after its last one, and each of its child processes as well."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from omniq import TaskQueue, WorkerState, current_task
from omniq.testing import await_until, trial
from tests.core import resource_tasks

LOG: list[Any] = []
WHO: ContextVar[str] = ContextVar("who", default="nobody")


@pytest.fixture(autouse=True)
def _no_log() -> None:
    LOG.clear()


@asynccontextmanager
async def resources(queue: TaskQueue) -> AsyncIterator[str]:
    async with asyncio.timeout(3600):  # left by the task that entered it
        LOG.append("open")
        WHO.set("set by the lifespan")
        yield "state"
        LOG.append("closed")


@contextmanager
def plain_resources(queue: TaskQueue) -> Iterator[int]:
    token = WHO.set("set by the lifespan")
    LOG.append("open")
    yield threading.get_ident()
    assert threading.get_ident() == threading.main_thread().ident
    WHO.reset(token)
    LOG.append("closed")


@pytest.mark.parametrize("lifespan", [resources, plain_resources])
async def test_a_worker_enters_it_before_its_first_task_and_leaves_it_after_the_last(lifespan: Any) -> None:
    queue = TaskQueue("memory://", lifespan=lifespan)

    @queue.task
    async def on_loop(state: Any = WorkerState()) -> str:
        LOG.append(state == current_task().state)
        await asyncio.sleep(0.01)  # others run meanwhile
        LOG.append("ended")
        return WHO.get()

    @queue.task
    def on_thread() -> str:
        return WHO.get()

    await on_loop.aenqueue()
    threaded = await on_thread.aenqueue()
    worker = queue.worker()
    # Begun and ended by different tasks.
    await asyncio.create_task(worker.start())
    assert LOG[0] == "open"
    assert await threaded == "set by the lifespan"
    await await_until(lambda: True in LOG)
    await asyncio.create_task(worker.drain())
    assert LOG == ["open", True, "ended", "closed"]
    assert WHO.get() == "nobody"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_worker_whose_lifespan_raises_does_not_start(caplog: pytest.LogCaptureFixture, is_async: bool) -> None:
    @asynccontextmanager
    async def broken(queue: TaskQueue) -> AsyncIterator[None]:
        if queue.lifespan is not None:
            raise ConnectionError("no database")
        yield

    @contextmanager
    def plainly_broken(queue: TaskQueue) -> Iterator[None]:
        if queue.lifespan is not None:
            raise ConnectionError("no database")
        yield

    queue = TaskQueue("memory://", lifespan=broken if is_async else plainly_broken)

    @queue.task
    async def send() -> None: ...

    handle = await send.aenqueue()
    with caplog.at_level(logging.ERROR, "omniq.worker"), pytest.raises(ConnectionError, match="no database"):
        async with queue.worker():
            raise AssertionError("not reached")
    (record,) = caplog.records
    assert record.exc_info is not None
    assert (await handle.atask()).attempt == 0


async def test_an_error_in_leaving_it_is_raised_after_all_else() -> None:
    @asynccontextmanager
    async def broken(queue: TaskQueue) -> AsyncIterator[None]:
        yield
        raise ConnectionError("not closed")

    queue = TaskQueue("memory://", lifespan=broken)

    @queue.task
    async def send() -> str:
        return "sent"

    worker = queue.worker()
    await worker.start()
    assert await (await send.aenqueue()) == "sent"
    with pytest.raises(ConnectionError, match="not closed"):
        await worker.drain()


async def test_a_worker_that_is_stopped_while_it_enters_it_does_not_start(caplog: pytest.LogCaptureFixture) -> None:
    entering = asyncio.Event()

    @asynccontextmanager
    async def slow(queue: TaskQueue) -> AsyncIterator[None]:
        entering.set()
        try:
            await asyncio.Event().wait()
        finally:
            LOG.append("cancelled")
        yield

    queue = TaskQueue("memory://", lifespan=slow)
    worker = queue.worker()
    with caplog.at_level(logging.INFO, "omniq.worker"):
        running = asyncio.create_task(worker.run())
        await entering.wait()
        worker.stop()
        await running
    assert LOG == ["cancelled"]
    assert caplog.records == []


async def test_a_worker_stops_when_its_lifespan_ends_by_itself() -> None:
    fails = asyncio.Event()

    async def listen() -> None:
        await fails.wait()
        raise ConnectionError("the connection is lost")

    @asynccontextmanager
    async def listening(queue: TaskQueue) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            yield

    queue = TaskQueue("memory://", lifespan=listening)
    running = asyncio.create_task(queue.worker().run())
    fails.set()
    with pytest.raises(ExceptionGroup) as failed:
        await running
    assert isinstance(failed.value.exceptions[0], ConnectionError)


async def test_two_workers_of_a_queue_have_a_state_each() -> None:
    queue = TaskQueue("memory://", lifespan=resources)
    async with queue.worker(), queue.worker():
        assert LOG == ["open", "open"]
    assert LOG == ["open", "open", "closed", "closed"]


async def test_a_worker_that_is_to_stop_at_once_leaves_it_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq._worker.worker.LAST_WORDS", 0.05)

    @asynccontextmanager
    async def stubborn(queue: TaskQueue) -> AsyncIterator[None]:
        yield
        LOG.append("closing")
        try:
            await asyncio.Event().wait()
        finally:
            LOG.append("cancelled")

    queue = TaskQueue("memory://", lifespan=stubborn)
    worker = queue.worker()
    running = asyncio.create_task(worker.run())
    await await_until(lambda: worker._tasks)
    worker.stop(now=True)
    await running
    await await_until(lambda: LOG == ["closing", "cancelled"])


def test_a_trial_enters_it_for_each_drain() -> None:
    queue = TaskQueue("memory://", lifespan=resources)

    @queue.task
    def send(state: str = WorkerState()) -> str:
        return f"{state} {WHO.get()}"

    @queue.task
    async def asend(state: str = WorkerState()) -> str:
        return f"{state} {WHO.get()}"

    with trial(queue) as tried:
        handles = [send.enqueue(), asend.enqueue()]
        tried.drain()
        handles.append(send.enqueue())
        tried.run_for(60)
        assert [handle.result() for handle in handles] == ["state set by the lifespan"] * 3
    assert LOG == ["open", "closed"] * 2
    assert WHO.get() == "nobody"


async def test_a_trial_enters_it_in_a_coroutine_too_and_an_error_in_leaving_it_is_raised() -> None:
    @contextmanager
    def broken(queue: TaskQueue) -> Iterator[str]:
        yield "state"
        raise ConnectionError("not closed")

    queue = TaskQueue("memory://", lifespan=broken)

    @queue.task
    async def send(state: str = WorkerState()) -> str:
        return state

    with trial(queue) as tried:
        handle = await send.aenqueue()
        with pytest.raises(ConnectionError, match="not closed"):
            await tried.adrain()
        assert await handle == "state"


def test_what_is_no_lifespan_is_refused_where_the_queue_is_made() -> None:
    async def undecorated(queue: TaskQueue) -> AsyncIterator[None]:
        yield

    def plainly_undecorated(queue: TaskQueue) -> Iterator[None]:
        yield

    wrong: list[Any] = [undecorated, plainly_undecorated, "resources"]
    for lifespan, message in zip(wrong, ["@asynccontextmanager", "@contextmanager", "a function of"], strict=True):
        with pytest.raises(TypeError, match=message):
            TaskQueue("memory://", lifespan=lifespan)


async def test_a_lifespan_that_returns_no_context_manager_says_how_to_mend_it() -> None:
    wrong: Any = lambda queue: None  # noqa: E731  # a function of a queue, and no lifespan
    with pytest.raises(TypeError, match="must return a context manager, not None: decorate it with"):
        async with TaskQueue("memory://", lifespan=wrong).worker():
            raise AssertionError("not reached")


# Child processes

TIME = 60.0
"""Seconds after which something hangs: a new process imports all of OmniQ, on a machine that may be busy."""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    monkeypatch.setenv("RESOURCE_TASKS_LOG", str(path))
    return path


def noted(log: Path) -> list[list[str]]:
    return [line.split(" ", 1) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["send", "asend"])
async def test_a_child_process_enters_it_once_and_leaves_it_when_the_worker_stops(
    name: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.processes.LAST_WORDS", TIME)
    task = getattr(resource_tasks, name)
    async with task.owner, task.owner.worker(processes=1):
        first = await (await task.aenqueue(1)).aresult(TIME)
        user, pid, db, who = await (await task.aenqueue(2)).aresult(TIME)
        assert first == (1, pid, db, who)
    assert (user, db) == (2, f"connection of client of {pid}")
    assert who == ("set by the lifespan" if name == "send" else "nobody")
    assert multiprocessing.active_children() == []
    own, words = str(os.getpid()), noted(log)
    assert [word for process, word in words if process == own] == ["open", "closed"]
    assert [word for process, word in words if process == str(pid)] == [
        "open", "client", "connection left", "connection left", "client left", "closed",
    ]  # fmt: skip
    # The worker leaves its own last.
    assert words[-1] == [own, "closed"]


async def test_a_task_whose_child_process_cannot_enter_it_is_tried_again(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = resource_tasks.plain_queue
    async with queue, queue.worker(processes=1):
        log.with_name("refuse").touch()
        handle = await resource_tasks.send.aenqueue(1)
        assert (await handle.aresult(TIME))[0] == 1
        assert (await handle.atask()).attempt == 2
    assert "failed in attempt 1 of 2, runs again in 0.0 s: ConnectionError: no connection left" in caplog.text
