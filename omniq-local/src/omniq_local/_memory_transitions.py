"""The states of the tasks in a memory store, and everything that must move with them.

Every transition of a task goes through :meth:`Transitions.move`, so that a task is in exactly one state, one count and
one order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from weakref import WeakSet

from omniq.task import TaskState
from omniq_local._memory_records import Index, Line, Record, Register
from omniq_local._memory_waiting import Waiters

__all__ = ["LOCK", "Transitions", "later"]

LOCK = threading.Lock()
"""One for all memory stores of the process: under it a fork finds every store whole."""

NEVER = datetime.max.replace(tzinfo=UTC)


class Transitions:
    """The tasks of one store.

    :param clock: gives the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.records = Register()
        self.lines: dict[str, Line] = {}
        self.unique: dict[str, str] = {}
        self.leases = Index()
        self.expiring = Index()
        self.kept = Index()
        """The tasks that have ended, by the time at which their results are over."""
        self.waiters = Waiters()
        _stores.add(self)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def move(self, record: Record, state: TaskState, now: datetime) -> None:
        self.leave(record)
        self.enter(record, state, now)

    def enter(self, record: Record, state: TaskState, now: datetime) -> None:
        record.state = state
        queue = record.order.queue
        line = self.line(queue)
        line.counts[state] += 1
        if state is TaskState.READY:
            index = line.ready.get(record.order.priority)
            if index is None:
                index = line.ready[record.order.priority] = Index()
            index.put(record, record.run_at)
            self.waiters.wake_for_work(queue, now)
        elif state is TaskState.SCHEDULED:
            line.scheduled.put(record, record.run_at)
            self.waiters.wake_for_work(queue, record.run_at)
        elif state is TaskState.RUNNING:
            assert record.lease_until is not None
            self.leases.put(record, record.lease_until)
            return
        else:
            self._end(record, now)
            return
        if record.expires_at is not None:
            self.expiring.put(record, record.expires_at)

    def leave(self, record: Record) -> None:
        state = record.state
        line = self.lines[record.order.queue]
        line.counts[state] -= 1
        if state is TaskState.RUNNING:
            self.leases.discard(record)
            record.lease_until = None
            return
        if state is TaskState.READY:
            line.ready[record.order.priority].discard(record)
        elif state is TaskState.SCHEDULED:
            line.scheduled.discard(record)
        else:
            self.kept.discard(record)
        if record.expires_at is not None:
            self.expiring.discard(record)

    def _end(self, record: Record, now: datetime) -> None:
        record.finished_at = now
        self.kept.put(record, later(now, record.order.result_ttl))
        self.free_key(record)
        self.waiters.wake_for_end(record.order.id)

    def free_key(self, record: Record) -> None:
        key = record.order.unique
        if key is not None and self.unique.get(key) == record.order.id:
            del self.unique[key]

    def line(self, queue: str) -> Line:
        line = self.lines.get(queue)
        if line is None:
            line = self.lines[queue] = Line()
        return line

    def promote(self, line: Line, now: datetime) -> None:
        while record := line.scheduled.due(now):
            self.move(record, TaskState.READY, now)


def later(now: datetime, seconds: float) -> datetime:
    """Give a time some seconds later, or the last that there is."""
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError:
        return NEVER


_stores: WeakSet[Transitions] = WeakSet()


def _after_fork_in_child() -> None:
    # Whoever waited does so in the parent, on event loops that do not run here.
    for store in _stores:
        store.waiters.clear()
    LOCK.release()


# Held across the fork, so that no other thread is in the middle of a change when the child gets its copy.
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=_after_fork_in_child)
