"""Threads that work off what is handed to them, and tell the event loops that wait: once for many answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

__all__ = ["Answer", "IoThread", "Operation", "deliver", "on_io_thread"]

J = TypeVar("J")

LARGEST_GROUP = 64
"""Errands that are worked off together at most, so that a group does not grow as long as it takes."""

_here = threading.local()


def on_io_thread() -> bool:
    """Tell whether this is the thread of an I/O thread."""
    return getattr(_here, "is_lane", False)


class Operation(Generic[J]):
    """Something to do, and who waits for its answer.

    :param job: what to do.
    :param future: of the loop that waits, or one that a thread waits for.
    :param loop: the loop, or None for a thread.
    """

    __slots__ = ("future", "job", "loop", "since")

    def __init__(
        self, job: J, future: asyncio.Future[Any] | Future[Any], loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self.job = job
        self.future = future
        self.loop = loop
        self.since = time.monotonic()
        """When it was handed over, by the monotonic clock."""


Answer = tuple[Operation[Any], Any, BaseException | None]
"""An operation with its result or its error."""


def deliver(answers: Iterable[Answer]) -> None:
    """Hand answers to the coroutines that wait for them."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for answer in answers:
        loop = answer[0].loop
        if loop is None:
            _settle([answer])
        else:
            by_loop.setdefault(loop, []).append(answer)
    for loop, entries in by_loop.items():
        # On a loop that was closed meanwhile no coroutine waits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, entries)


def _settle(answers: Sequence[Answer]) -> None:
    for operation, result, error in answers:
        if operation.future.done():
            continue
        if error is None:
            operation.future.set_result(result)
        else:
            operation.future.set_exception(error)


class IoThread(Generic[J]):
    """One thread, started when it is first needed, that works off operations: all that have gathered at a time.

    :param name: the thread's name.
    :param work: does the operations and delivers their answers; must not raise.
    """

    def __init__(self, name: str, work: Callable[[list[Operation[J]]], None]) -> None:
        self._name = name
        self._work = work
        self._queue: SimpleQueue[Operation[J] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, operation: Operation[J]) -> None:
        """Hand over an operation."""
        self._queue.put(operation)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    self._thread.start()

    def ask(self, job: J) -> asyncio.Future[Any]:
        """Hand over a job from an event loop's thread; return the future of its answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.put(Operation(job, future, loop))
        return future

    def call(self, job: J) -> Any:
        """Have a job done, and wait for it on this thread."""
        future: Future[Any] = Future()
        self.put(Operation(job, future))
        return future.result()

    def stop(self) -> None:
        """Work off what was handed over, and end the thread."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._queue.put(None)
            thread.join()
            self._thread = None

    def _run(self) -> None:
        _here.is_lane = True
        going = True
        while going:
            operations, going = self._gathered()
            # A caller that was cancelled before the work began has no more use for it.
            wanted = [operation for operation in operations if not operation.future.cancelled()]
            if wanted:
                self._work(wanted)
            # Not kept while waiting for the next: a future holds on to what its waiter holds.
            del operations, wanted

    def _gathered(self) -> tuple[list[Operation[J]], bool]:
        operations = []
        operation = self._queue.get()
        while operation is not None:
            operations.append(operation)
            if len(operations) == LARGEST_GROUP:
                return operations, True
            try:
                operation = self._queue.get_nowait()
            except Empty:
                return operations, True
        return operations, False
