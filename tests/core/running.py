"""What the tests of the core share: a worker on a thread of its own, and a gate that holds tasks back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, Unpack

from omniq import TaskQueue, Worker
from omniq._worker.metrics import Metrics
from omniq._worker.worker import WorkerOptions

__all__ = ["Gate", "MakeQueue", "was_delivered", "working"]


class MakeQueue(Protocol):
    """Makes another queue on the store of a test. It is closed afterwards."""

    def __call__(self, **options: Any) -> TaskQueue: ...


@contextlib.contextmanager
def working(queue: TaskQueue, metrics: Metrics | None = None, **options: Unpack[WorkerOptions]) -> Generator[Worker]:
    """Run a worker on a thread of its own, for tests that have no event loop."""
    worker = queue.worker(**options)
    worker.metrics = metrics
    loop = asyncio.new_event_loop()
    started = threading.Event()
    failures: list[BaseException] = []

    async def run() -> None:
        loop.call_soon(started.set)
        await worker.run()

    def serve() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(run())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    try:
        yield worker
    finally:
        with contextlib.suppress(RuntimeError):  # its loop has ended, by a failure that is raised below
            loop.call_soon_threadsafe(worker.stop)
        thread.join()
        if failures:
            raise failures[0]


def was_delivered(queue: TaskQueue, task_id: str, times: int) -> Callable[[], Awaitable[bool]]:
    """Return a condition to wait for: that a task was claimed so many times."""

    async def delivered() -> bool:
        return (await queue.arecord(task_id)).delivery >= times

    return delivered


class Gate:
    """Holds plain functions back until it is opened, and counts those that have come to it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.arrived = 0

    def wait(self) -> None:
        with self._lock:
            self.arrived += 1
        self._open.wait()

    def open(self) -> None:
        self._open.set()
