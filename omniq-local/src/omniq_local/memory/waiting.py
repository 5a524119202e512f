"""Who waits for a memory store to change, and how they are woken: from any thread, by the change itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from datetime import datetime

__all__ = ["Waiter", "Waiters"]


class Waiter:
    """One coroutine that waits, on whichever loop it runs.

    :param queues: in which it looks for work.
    """

    __slots__ = ("_future", "_loop", "_thread", "_woken", "queues", "until")

    def __init__(self, queues: frozenset[str] = frozenset()) -> None:
        self.queues = queues
        self.until: datetime | None = None
        """When it looks again by itself; None: not of its own accord."""
        self._woken = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._future: asyncio.Future[None] = self._loop.create_future()

    async def sleep(self, seconds: float) -> None:
        """Wait until woken, at most some seconds."""
        timer = self._loop.call_later(seconds, self._set)
        try:
            await self._future
        finally:
            timer.cancel()

    def looks_after(self, at: datetime) -> bool:
        """Whether it would look again by itself only after a moment."""
        return self.until is None or at < self.until

    def wake(self) -> None:
        if self._woken:
            return
        self._woken = True
        try:
            if threading.get_ident() == self._thread:
                self._set()
            else:
                self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            # The loop was closed under the waiting coroutine: there is none to be woken.
            pass

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


class Waiters:
    """All that wait for one store. Used under the store's lock."""

    def __init__(self) -> None:
        self._for_work: set[Waiter] = set()
        self._for_end: dict[str, set[Waiter]] = {}

    def add(self, waiter: Waiter, ids: Iterable[str] = ()) -> None:
        """Register a waiter for work in its queues or, if ids are given, for the end of those tasks."""
        if not ids:
            self._for_work.add(waiter)
        for task_id in ids:
            self._for_end.setdefault(task_id, set()).add(waiter)

    def discard(self, waiter: Waiter, ids: Iterable[str] = ()) -> None:
        self._for_work.discard(waiter)
        for task_id in ids:
            waiters = self._for_end.get(task_id, set())
            waiters.discard(waiter)
            if not waiters:
                self._for_end.pop(task_id, None)

    def clear(self) -> None:
        self._for_work.clear()
        self._for_end.clear()

    def wake_for_work(self, queue: str, at: datetime) -> None:
        """Wake who would look at this queue only later than a task of it is ready."""
        for waiter in self._for_work:
            if queue in waiter.queues and waiter.looks_after(at):
                waiter.wake()

    def wake_for_schedule(self, at: datetime) -> None:
        for waiter in self._for_work:
            if waiter.looks_after(at):
                waiter.wake()

    def wake_for_end(self, task_id: str) -> None:
        for waiter in self._for_end.get(task_id, ()):
            waiter.wake()

    def wake_all(self) -> None:
        for waiter in self._for_work.union(*self._for_end.values()):
            waiter.wake()
