"""The memory storage: tasks that live and end with this process. The simplest correct store, the measure of the others.

``memory://NAME`` is one store for all code of the process that uses that name (and namespace), on whatever loop or
thread; ``memory://`` is private to the storage that was made for it and its siblings. Nothing here polls: waiters are
woken by the change itself, or by a timer for the next due time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence, Set
from copy import copy
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from omniq.errors import StorageUnavailable
from omniq.flow import NewFlow
from omniq.storage import (
    Capability,
    Enqueued,
    Finding,
    QueueStats,
    Severity,
    StorageConfig,
    StorageLimits,
)
from omniq.storage.limits import Line
from omniq.storage.transactional import TransactionalStorage
from omniq.storage.transactions import CallerTransaction
from omniq.task import NewTask, Outcome, StoredTask
from omniq_local.memory.store import LOCK, Store
from omniq_local.memory.waiting import Waiter

__all__ = ["MemoryStorage", "SubscribableClock"]

R = TypeVar("R")

OVERDUE_SCHEDULE_PAUSE = 1.0
"""Seconds. A schedule that is due but not fired (no scheduler runs) must not make idle workers spin."""


@runtime_checkable
class SubscribableClock(Protocol):
    """A clock that is moved by hand, and tells when it was.

    It holds no lock while it calls the callbacks: they take the store's, and the store reads the clock under its own.
    """

    def __call__(self) -> float:
        """Return the time in seconds since the epoch."""
        ...

    def subscribe(self, callback: Callable[[], None], /) -> object:
        """Have a function called after each move, on any thread."""
        ...


class MemoryStorage(TransactionalStorage):
    """A storage in the memory of this process.

    :param config: ``memory://`` or ``memory://NAME``; no options.
    :param clock: returns the time in seconds since the epoch. If it has a method ``subscribe``, see
        :class:`SubscribableClock`, moving it wakes the callers that wait. None: the clock that the store of that name
        has already, or else the system's.
    :param any_connection: whether :meth:`join` takes any object for a connection. What is done through it is done at
        once, whatever becomes of its transaction: so tests can try code that is made for another store.
    :raises ValueError: if there is an unknown option, or the store of that name runs by another clock.
    """

    capabilities: Set[Capability] = frozenset({Capability.NOTIFICATIONS})
    _purge_step = sys.maxsize
    limits = StorageLimits(flow_step=5_000, lost_wakeup=0, stalled_client=0, flows=True, task_limits=True)

    def __init__(
        self, config: StorageConfig, *, clock: Callable[[], float] | None = None, any_connection: bool = False
    ) -> None:
        config.check_options(())
        self.config = config
        self._store = _find_store(config, clock)
        self._any_connection = any_connection
        self._is_open = False
        self._waiters: set[Waiter] = set()

    def __repr__(self) -> str:
        return f"MemoryStorage({self.config!r})"

    # Life

    def sibling(self) -> Self:
        twin = copy(self)
        twin._is_open = False
        twin._waiters = set()
        return twin

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False
        with LOCK:
            for waiter in self._waiters:
                waiter.wake()

    def _opened(self) -> Store:
        if not self._is_open:
            raise StorageUnavailable(f"{self.config.redacted} is not open: call open() first")
        return self._store.begin()

    async def _run(self, verb: Callable[..., R], *values: Any, write: bool = True, wakes: bool = False) -> R:
        with LOCK:
            return verb(self._opened(), *values)

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        with LOCK:
            return self._opened().enqueue(tasks, flow)

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        with LOCK:
            return self._store.begin().enqueue(tasks) if self._is_open else None

    def join(self, connection: object) -> CallerTransaction:
        return _AtOnce(self._store) if self._any_connection else super().join(connection)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        with LOCK:
            return self._opened().finish(outcomes)

    # Waiting

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        waiter = Waiter(frozenset(queues))
        with LOCK:
            store = self._opened()
            now, work = store.now, store.next_work(queues)
            is_overdue, run = store.outlook()
            if (work is not None and work <= now) or store.due_flows(False, 1):
                return
            if is_overdue:
                timeout = min(timeout, OVERDUE_SCHEDULE_PAUSE)
            waiter.until = min((at for at in (work, run) if at is not None and at > now), default=None)
            if waiter.until is not None:
                timeout = min(timeout, (waiter.until - now).total_seconds())
            # Under the same lock as the look before it: what changes from here on wakes.
            store.waiters.add(waiter)
            self._waiters.add(waiter)
        try:
            await waiter.sleep(timeout)
        finally:
            with LOCK:
                self._waiters.discard(waiter)
                store.waiters.discard(waiter)

    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            waiter = Waiter()
            seconds = deadline - loop.time()
            with LOCK:
                store = self._opened()
                ended = store.ended(ids)
                if ended or not ids or seconds <= 0:
                    return ended
                store.waiters.add(waiter, ids)
                self._waiters.add(waiter)
            try:
                await waiter.sleep(seconds)
            finally:
                with LOCK:
                    self._waiters.discard(waiter)
                    store.waiters.discard(waiter, ids)

    # Reading

    async def stats(self) -> list[QueueStats]:
        with LOCK:
            return self._opened().stats()

    async def lost_lines(self, lines: Sequence[Line]) -> list[StoredTask]:
        return []  # only damage leaves lines so

    async def diagnose(self) -> list[Finding]:
        with LOCK:
            self._opened()
        return [
            Finding(
                severity=Severity.WARNING,
                subject="durability",
                message="tasks live in the memory of this process and end with it; "
                "to keep them, and to share them between processes, use sqlite:///jobs.db",
            )
        ]


_shared: dict[tuple[str, str], Store] = {}


class _AtOnce(CallerTransaction):
    """Stands for a transaction of the caller's, and does everything at once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def enqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        with LOCK:
            return self._store.begin().enqueue(tasks, flow)

    def finish(self, outcome: Outcome) -> bool:
        with LOCK:
            return self._store.begin().finish([outcome])[0]


def _find_store(config: StorageConfig, clock: Callable[[], float] | None) -> Store:
    name = config.location.partition("://")[2].strip("/")
    if not name:
        return _new_store(clock)
    with LOCK:
        store = _shared.get((name, config.namespace))
        if store is None:
            store = _shared[name, config.namespace] = _new_store(clock)
    if clock is not None and store.clock is not clock:
        raise ValueError(f"{config.redacted} runs by another clock already; take another name for the store")
    return store


def _new_store(clock: Callable[[], float] | None) -> Store:
    store = Store(time.time if clock is None else clock)
    if isinstance(clock, SubscribableClock):
        clock.subscribe(lambda: _wake_all(store))
    return store


def _wake_all(store: Store) -> None:
    with LOCK:
        store.waiters.wake_all()
