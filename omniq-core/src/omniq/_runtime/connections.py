"""One storage for each event loop that uses a queue, and one behind the portal for synchronous callers.

A storage object belongs to one loop. A queue is used from any number: web server, scripts, threads with loops of
their own, tests that start a loop a test. After a fork the child starts afresh; what it inherited is the parent's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from omniq._runtime.batching import Batcher
from omniq._runtime.portal import Portal
from omniq._runtime.threads import in_thread
from omniq.storage import Enqueued, Storage, StorageLimits
from omniq.storage.posix import at_fork
from omniq.task import NewTask

__all__ = ["Connection", "Connections"]

R = TypeVar("R")


class Connection:
    """What one event loop holds: an open storage and the group commit in front of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, storage: Storage) -> None:
        self.loop = loop
        self.storage = storage
        self.enqueue: Batcher[NewTask, Enqueued] = Batcher(storage.enqueue)
        self._opening: asyncio.Task[None] | None = None
        self._open = False

    async def ready(self) -> Connection:
        """Open the storage unless it is; several callers at once share one attempt."""
        if not self._open:
            opening = self._opening
            if opening is None or opening.done():
                # A failed attempt is not kept: the next call tries again. A cancelled caller leaves it to the others.
                opening = self._opening = self.loop.create_task(self.storage.open())
            await asyncio.shield(opening)
            self._open = True
        return self

    async def close(self) -> None:
        """Let what is under way end, then close the storage."""
        if self.loop is asyncio.get_running_loop():
            if self._opening is not None:
                # Or it would be open again after it was closed. The caller has been told whether it worked.
                await asyncio.gather(self._opening, return_exceptions=True)
            await self.enqueue.drain()
        await self.storage.close()


class Connections:
    """The storages of one queue.

    :param storage: an unopened storage, from which the others are made.
    """

    def __init__(self, storage: Storage) -> None:
        self._prototype = storage
        self.storage_limits: StorageLimits = storage.limits
        self._lock = threading.Lock()
        self._by_loop: dict[int, Connection] = {}
        self._portal = Portal()
        self._blocking: Storage | None = None
        self._inherited: list[object] = []
        _alive.add(self)

    def sibling(self) -> Storage:
        """Return an unopened storage on the same store; the caller opens and closes it."""
        return self._prototype.sibling()

    async def current(self) -> Connection:
        """Return the open connection of the running loop."""
        loop = asyncio.get_running_loop()
        connection = self._by_loop.get(id(loop))
        if connection is None or connection.loop is not loop:
            await self._forget_closed_loops()
            with self._lock:
                connection = self._by_loop.get(id(loop))
                if connection is None:
                    connection = self._by_loop[id(loop)] = Connection(loop, self._prototype.sibling())
        return await connection.ready()

    def run(self, coroutine: Coroutine[Any, Any, R], *, instead: str | None = None) -> R:
        """Run a coroutine for a synchronous caller; see :meth:`Portal.run`."""
        return self._portal.run(coroutine, instead=instead)

    def blocking(self) -> Storage:
        """Return an open storage for calls that do their work on the calling thread."""
        if self._blocking is None:
            self._blocking = self.run(self._current_storage())
        return self._blocking

    async def _current_storage(self) -> Storage:
        return (await self.current()).storage

    async def _forget_closed_loops(self) -> None:
        # asyncio.run() ends a loop without telling us; its storage is closed at the next occasion.
        with self._lock:
            stale = [key for key, connection in self._by_loop.items() if connection.loop.is_closed()]
            connections = [self._by_loop.pop(key) for key in stale]
        for connection in connections:
            with contextlib.suppress(Exception):
                await connection.close()

    async def close(self) -> None:
        """Close every storage, of whichever loop, and end the portal."""
        await self._forget_closed_loops()
        with self._lock:
            connections = list(self._by_loop.values())
            self._by_loop.clear()
            self._blocking = None
        here = asyncio.get_running_loop()
        for connection in connections:
            if connection.loop is here or not connection.loop.is_running():
                await connection.close()
            else:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(connection.close(), connection.loop))
        if self._portal.loop is not None and self._portal.loop is not here:
            await in_thread(self._portal.stop)

    def close_blocking(self) -> None:
        """Close everything, for a synchronous caller.

        :raises RuntimeError: inside a coroutine whose event loop uses the queue: it would wait for itself.
        """
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            if id(here) in self._by_loop:
                raise RuntimeError("close() would wait for the loop that it is called on; write `await queue.aclose()`")
        self._portal.run(self.close())
        self._portal.stop()

    def after_fork(self) -> None:
        # Kept, not closed: finalizers run in the child would act on connections that the parent still uses.
        self._inherited += [self._by_loop, self._portal, self._blocking, self._prototype]
        self._prototype = self._prototype.sibling()
        self._lock = threading.Lock()
        self._by_loop = {}
        self._portal = Portal()
        self._blocking = None


_alive: weakref.WeakSet[Connections] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for connections in list(_alive):
        connections.after_fork()


at_fork(after_in_child=_after_fork_in_child)
