"""The background event loop on which synchronous callers' work runs.

Started at the first need, in a daemon thread; one for each queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import warnings
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from omniq.errors import StorageUnavailable

__all__ = ["Portal", "is_on_running_loop", "refuse_on_running_loop", "warn_on_running_loop"]

R = TypeVar("R")


def refuse_on_running_loop(asynchronous: str) -> None:
    """Refuse a synchronous call that waits, where it would keep a running event loop from doing anything meanwhile.

    :param asynchronous: what to write instead, such as ``await handle.aresult()``.
    :raises RuntimeError: on a thread whose event loop runs.
    """
    if is_on_running_loop():
        raise RuntimeError(
            f"this call waits, and would block the event loop that runs on this thread: write `{asynchronous}`"
        )


def warn_on_running_loop(asynchronous: str) -> None:
    """Warn, once for each place in the caller's code, that a short synchronous call blocks a running event loop.

    :param asynchronous: what to write instead, such as ``await task.aenqueue(…)``.
    """
    if is_on_running_loop():
        text = f"this call blocks the event loop that runs on this thread: write `{asynchronous}`"
        warnings.warn(text, RuntimeWarning, stacklevel=_level_of_caller())


def is_on_running_loop() -> bool:
    """Return whether an event loop runs on this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _level_of_caller() -> int:
    # As seen from the function that warns: the first frame that is not OmniQ's own.
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("omniq."):
        frame = frame.f_back
        level += 1
    return level


class Portal:
    """Runs coroutines for callers that have no event loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, if it was started."""
        return self._loop

    def run(self, coroutine: Coroutine[Any, Any, R], *, instead: str | None = None) -> R:
        """Run a coroutine on the background loop and wait for it.

        :param instead: what to write on a thread whose event loop runs, which is refused; None: it may be blocked.
        :return: what it returns; it raises what the coroutine raises.
        :raises StorageUnavailable: if :meth:`stop` came before its end.
        :raises RuntimeError: on the background loop itself, and where it would block another one.
        """
        try:
            if threading.current_thread() is self._thread:
                raise RuntimeError("a synchronous call of a queue cannot be made from its own background loop")
            if instead is not None:
                refuse_on_running_loop(instead)
        except RuntimeError:
            coroutine.close()
            raise
        with self._lock:
            # Under the lock, so that the loop has it before a stop: what is under way then is cancelled, never lost.
            future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            return future.result()
        except CancelledError:
            raise StorageUnavailable("the queue was closed while this call was under way") from None
        except BaseException:
            # KeyboardInterrupt, say: the caller has gone, so the work is no longer wanted.
            future.cancel()
            raise

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(loop,), name="omniq-portal", daemon=True)
            self._thread.start()
            self._loop = loop
            # A queue that was dropped without being closed leaves no thread behind.
            weakref.finalize(self, _let_end, loop).atexit = False
        return self._loop

    def stop(self) -> None:
        """End the loop and its thread. A later :meth:`run` starts a new one."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


def _let_end(loop: asyncio.AbstractEventLoop) -> None:
    with contextlib.suppress(RuntimeError):  # it has ended
        loop.call_soon_threadsafe(loop.stop)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
