"""The memory storage: tasks that live and end with this process. The simplest correct store, the measure of the others.

``memory://NAME`` is one store for everyone in the process who uses that name (and namespace), on whatever loop or
thread; ``memory://`` is private to the storage that was made for it and its siblings. Nothing here polls: whoever waits
is woken by the change itself, or by a timer for the next due time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from copy import copy
from datetime import datetime
from typing import Protocol, Self, runtime_checkable

from omniq.errors import StorageUnavailable
from omniq.flow import Flow, NewFlow
from omniq.limit import Limit, LimitUsage, Scope
from omniq.schedule import Schedule
from omniq.storage import (
    Adoption,
    Capability,
    Enqueued,
    Finding,
    Lease,
    LeaseState,
    QueueStats,
    Severity,
    Storage,
    StorageConfig,
    StorageLimits,
    StoredWorker,
    TaskPage,
    TaskQuery,
    flow_transitions,
    limit_transitions,
    transitions,
)
from omniq.storage.transactions import CallerTransaction
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState
from omniq_local.memory.store import LOCK, Store
from omniq_local.memory.waiting import Waiter

__all__ = ["MemoryStorage", "SubscribableClock"]

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


class MemoryStorage(Storage):
    """A storage in the memory of this process.

    :param config: ``memory://`` or ``memory://NAME``; no options.
    :param clock: gives the time in seconds since the epoch. If it has a method ``subscribe``, see
        :class:`SubscribableClock`, moving it wakes the callers that wait. None: the clock that the store of that name
        has already, or else the system's.
    :param any_connection: whether :meth:`join` takes any object for a connection. What is done through it is done at
        once, whatever becomes of its transaction: so tests can try code that is made for another store.
    :raises ValueError: if there is an unknown option, or the store of that name runs by another clock.
    """

    capabilities: Set[Capability] = frozenset({Capability.NOTIFICATIONS})
    limits = StorageLimits(flow_step=5_000, lost_wakeup=0, stalled_client=0, flows=True, task_limits=True)

    def __init__(
        self, config: StorageConfig, *, clock: Callable[[], float] | None = None, any_connection: bool = False
    ) -> None:
        config.check_options(())
        self._config = config
        self._store = _find_store(config, clock)
        self._any_connection = any_connection
        self._is_open = False
        self._waiters: set[Waiter] = set()

    def __repr__(self) -> str:
        return f"MemoryStorage({self._config!r})"

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
            raise StorageUnavailable(f"{self._config.redacted} is not open: call open() first")
        return self._store.begin()

    async def now(self) -> datetime:
        with LOCK:
            return self._opened().now

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        with LOCK:
            return self._opened().enqueue(tasks, flow)

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        with LOCK:
            return self._store.begin().enqueue(tasks) if self._is_open else None

    def join(self, connection: object) -> CallerTransaction:
        return _AtOnce(self._store) if self._any_connection else super().join(connection)

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        with LOCK:
            return transitions.claim(self._opened(), demand, worker, lease, limit)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        with LOCK:
            return self._opened().finish(outcomes)

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        with LOCK:
            return transitions.heartbeat(self._opened(), worker, leases, lease, about)

    async def recover(self, limit: int) -> list[StoredTask]:
        with LOCK:
            return transitions.recover(self._opened(), limit)

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

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        with LOCK:
            return self._opened().get(ids)

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal()):
            raise ValueError(f"{cursor!r} is not a cursor of {self._config.redacted}")
        with LOCK:
            return self._opened().page(query, None if cursor is None else int(cursor))

    async def stats(self) -> list[QueueStats]:
        with LOCK:
            return self._opened().stats()

    async def workers(self) -> list[StoredWorker]:
        with LOCK:
            return self._opened().workers()

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        with LOCK:
            return transitions.cancel(self._opened(), ids)

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        with LOCK:
            return transitions.retry(self._opened(), ids)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        with LOCK:
            return transitions.run_now(self._opened(), ids)

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        with LOCK:
            return transitions.delete(self._opened(), ids)

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        states = [one for one in TaskState if one is not TaskState.RUNNING and state in (None, one)]
        with LOCK:
            return transitions.purge(self._opened(), queue, states, sys.maxsize)

    async def pause(self, queue: str) -> bool:
        with LOCK:
            return self._opened().pause(queue)

    async def resume(self, queue: str) -> bool:
        with LOCK:
            return self._opened().resume(queue)

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        with LOCK:
            transitions.set_progress(self._opened(), updates)

    # Flows

    async def release_hold(self, flow_id: str, gate: int) -> bool:
        with LOCK:
            return flow_transitions.release_hold(self._opened(), flow_id, gate)

    async def get_flows(self, ids: Sequence[str]) -> list[Flow | None]:
        with LOCK:
            return flow_transitions.get_flows(self._opened(), ids)

    async def cancel_flow(self, flow_id: str) -> bool:
        with LOCK:
            return flow_transitions.cancel_flow(self._opened(), flow_id)

    async def retry_flow(self, flow_id: str) -> int:
        with LOCK:
            return flow_transitions.retry_flow(self._opened(), flow_id)

    async def settle(self, limit: int) -> int:
        with LOCK:
            return flow_transitions.settle(self._opened(), limit)

    # Limits

    async def put_limit(self, limit: Limit, expected_revision: int | None = None) -> Limit | None:
        with LOCK:
            return limit_transitions.put_limit(self._opened(), limit, expected_revision)

    async def get_limits(self, ids: Sequence[str] | None = None) -> list[Limit]:
        with LOCK:
            return limit_transitions.get_limits(self._opened(), ids)

    async def get_limit_usage(self, scopes: Sequence[Scope] | None = None) -> list[LimitUsage]:
        with LOCK:
            return limit_transitions.get_usage(self._opened(), scopes)

    async def delete_limit(self, limit_id: str) -> bool:
        with LOCK:
            return limit_transitions.delete_limit(self._opened(), limit_id)

    # Schedules

    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        with LOCK:
            return transitions.put_schedule(self._opened(), schedule, expected_revision)

    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        with LOCK:
            return self._opened().schedules(ids)

    async def delete_schedule(self, schedule_id: str) -> bool:
        with LOCK:
            return transitions.delete_schedule(self._opened(), schedule_id)

    async def due_schedules(self, limit: int) -> list[Schedule]:
        with LOCK:
            return self._opened().due(limit)

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        with LOCK:
            return transitions.fire(self._opened(), schedule, tasks)

    # Upkeep

    async def prune(self, limit: int) -> int:
        with LOCK:
            return transitions.prune(self._opened(), limit)

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
        with LOCK:
            return transitions.adopt(self._opened(), tasks, flows)

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

    def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return self.enqueue_flow(tasks, None)

    async def aenqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return self.enqueue(tasks)

    def enqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        with LOCK:
            return self._store.begin().enqueue(tasks, flow)

    def finish(self, outcome: Outcome) -> bool:
        with LOCK:
            return self._store.begin().finish([outcome])[0]

    async def afinish(self, outcome: Outcome) -> bool:
        return self.finish(outcome)


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
        clock.subscribe(lambda: _wake_everyone(store))
    return store


def _wake_everyone(store: Store) -> None:
    with LOCK:
        store.waiters.wake_everyone()
