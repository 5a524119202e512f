"""Work on daemon threads: a caller that has decided not to wait any longer is not held up by it.

``asyncio.to_thread`` is for none of it: its few threads may all be taken by tasks, and the end of a loop, and of the
interpreter, waits for them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

__all__ = ["DaemonExecutor", "in_thread", "start_thread"]

P = ParamSpec("P")
R = TypeVar("R")


def start_thread(function: Callable[[], R]) -> Future[R]:
    """Call a function on a thread of its own; the future has what it returns or raises."""
    future: Future[R] = Future()
    threading.Thread(target=_run, args=(future, function), name="omniq-helper", daemon=True).start()
    return future


async def in_thread(function: Callable[[], R]) -> R:
    """Call a function on a thread of its own and return what it returns."""
    return await asyncio.wrap_future(start_thread(function))


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # it is the caller's
        future.set_exception(error)
    else:
        future.set_result(result)


class DaemonExecutor(ThreadPoolExecutor):
    """The default executor of a worker's loop (``asyncio.to_thread``), for whose threads no exit waits."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._free = threading.Semaphore(0)
        self._starting = threading.Lock()
        self._started = 0

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        future: Future[R] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        if not self._free.acquire(blocking=False):
            with self._starting:
                if self._started < self._max_workers:
                    self._started += 1
                    threading.Thread(target=self._work, name="omniq-executor", daemon=True).start()
        return future

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            _run(*call)
            del call  # or it would keep the last result until the next
            self._free.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads that are free, and leave the others to themselves."""
        for _ in range(self._started):
            self._calls.put(None)
