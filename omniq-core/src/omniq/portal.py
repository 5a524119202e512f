"""The background event loop on which synchronous callers' work runs.

Started at the first need, in a daemon thread; one for each queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from omniq.errors import StorageUnavailable

__all__ = ["Portal"]

R = TypeVar("R")


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

    def run(self, coroutine: Coroutine[Any, Any, R]) -> R:
        """Run a coroutine on the background loop and wait for it.

        :return: what it returns; it raises what the coroutine raises.
        :raises StorageUnavailable: if :meth:`stop` came before its end.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a synchronous call of a queue cannot be made from its own background loop")
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
