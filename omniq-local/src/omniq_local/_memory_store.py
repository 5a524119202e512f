"""The state of a memory store: plain values and the orders they are kept in.

Every transition of a task goes through :meth:`Store._move`, so that a task is in exactly one state, one count and one
order. Whoever uses a :class:`Store` holds :data:`LOCK`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from weakref import WeakSet

from omniq.schedule import Schedule
from omniq.storage import Enqueued, Lease, LeaseState, QueueStats, TaskPage, TaskQuery, WorkerInfo
from omniq.task import (
    Cancelled,
    Failed,
    NewTask,
    Outcome,
    Progress,
    Released,
    Retry,
    Succeeded,
    Task,
    TaskError,
    TaskState,
    When,
)
from omniq_local._memory_records import Index, Line, Record, Register
from omniq_local._memory_schedules import Schedules
from omniq_local._memory_waiting import Waiters

__all__ = ["LOCK", "Store"]

LOCK = threading.Lock()
"""One for all memory stores of the process: under it a fork finds every store whole."""

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING
NEVER = datetime.max.replace(tzinfo=UTC)
SUCCEEDED, FAILED, CANCELLED = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED


class Store:
    """All tasks and schedules of one memory store.

    :param clock: gives the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._records = Register()
        self._lines: dict[str, Line] = {}
        self._unique: dict[str, str] = {}
        self._leases = Index()
        self._expiring = Index()
        self._ended = Index()
        self._workers: dict[str, tuple[datetime, datetime]] = {}
        self.schedules = Schedules()
        self.waiters = Waiters()
        _stores.add(self)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    # Transitions

    def _move(self, record: Record, state: TaskState, now: datetime) -> None:
        self._leave(record)
        self._enter(record, state, now)

    def _enter(self, record: Record, state: TaskState, now: datetime) -> None:
        record.state = state
        queue = record.order.queue
        line = self._line(queue)
        line.counts[state] += 1
        if state is READY:
            index = line.ready.get(record.order.priority)
            if index is None:
                index = line.ready[record.order.priority] = Index()
            index.put(record, record.run_at)
            self.waiters.wake_for_work(queue, now)
        elif state is SCHEDULED:
            line.scheduled.put(record, record.run_at)
            self.waiters.wake_for_work(queue, record.run_at)
        elif state is RUNNING:
            assert record.lease_until is not None
            self._leases.put(record, record.lease_until)
            return
        else:
            self._end(record, now)
            return
        if record.expires_at is not None:
            self._expiring.put(record, record.expires_at)

    def _leave(self, record: Record) -> None:
        state = record.state
        line = self._lines[record.order.queue]
        line.counts[state] -= 1
        if state is RUNNING:
            self._leases.discard(record)
            record.lease_until = None
            return
        if state is READY:
            line.ready[record.order.priority].discard(record)
        elif state is SCHEDULED:
            line.scheduled.discard(record)
        else:
            self._ended.discard(record)
        if record.expires_at is not None:
            self._expiring.discard(record)

    def _end(self, record: Record, now: datetime) -> None:
        record.finished_at = now
        self._ended.put(record, _later(now, record.order.result_ttl))
        self._free_key(record)
        self.waiters.wake_for_end(record.order.id)

    def _free_key(self, record: Record) -> None:
        key = record.order.unique
        if key is not None and self._unique.get(key) == record.order.id:
            del self._unique[key]

    def _line(self, queue: str) -> Line:
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = Line()
        return line

    def _promote(self, line: Line, now: datetime) -> None:
        while record := line.scheduled.due(now):
            self._move(record, READY, now)

    # From producer to worker and back

    def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        now = self.now()
        # All are read before the first is stored: one that cannot be read leaves nothing behind.
        return [self._add(record, now) for record in self._records_of(tasks, now)]

    def _records_of(self, tasks: Iterable[NewTask], now: datetime) -> list[Record]:
        return [
            Record(
                order=task,
                created_at=now,
                # Nothing is ready before it is there: a time in the past gives no place ahead of others.
                run_at=now if task.run_at is None else max(_moment(task.run_at, now), now),
                expires_at=None if task.expires is None else _moment(task.expires, now),
            )
            for task in tasks
        ]

    def _add(self, record: Record, now: datetime) -> Enqueued:
        order = record.order
        if self._records.get(order.id) is not None:
            return Enqueued(order.id, False)
        if order.unique is not None:
            holder = self._unique.setdefault(order.unique, order.id)
            if holder != order.id:
                return Enqueued(holder, False)
        self._records.add(record)
        self._enter(record, SCHEDULED if record.run_at > now else READY, now)
        return Enqueued(order.id, True)

    def claim(self, demand: Mapping[str, int], worker: str, lease: float, limit: int | None) -> list[Task]:
        now = self.now()
        until = _later(now, lease)
        claimed: list[Task] = []
        for queue, wanted in demand.items():
            line = self._lines.get(queue)
            if line is None or line.paused:
                continue
            self._promote(line, now)
            room = wanted if limit is None else min(wanted, limit - len(claimed))
            for record in self._take(line, room, now):
                record.attempt += 1
                record.delivery += 1
                record.worker = worker
                record.started_at = now
                record.lease_until = until
                record.progress = None
                self._move(record, RUNNING, now)
                claimed.append(record.task())
        return claimed

    def _take(self, line: Line, limit: int, now: datetime) -> Iterator[Record]:
        for priority in sorted(line.ready, reverse=True):
            index = line.ready[priority]
            while limit > 0 and (entry := index.first()):
                record = entry[1]
                if record.expires_at is not None and record.expires_at <= now:
                    self._move(record, CANCELLED, now)
                    continue
                limit -= 1
                yield record
            if not index:
                del line.ready[priority]

    def _held(self, task_id: str, delivery: int) -> Record | None:
        record = self._records.get(task_id)
        if record is None or record.state is not RUNNING or record.delivery != delivery:
            return None
        return record

    def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        now = self.now()
        return [self._finish(outcome, now) for outcome in outcomes]

    def _finish(self, outcome: Outcome, now: datetime) -> bool:
        record = self._held(outcome.id, outcome.delivery)
        if record is None:
            return False
        match outcome:
            case Succeeded():
                record.result = outcome.result
                record.error = None
                self._move(record, SUCCEEDED, now)
            case Failed():
                record.error = outcome.error
                self._move(record, FAILED, now)
            case Cancelled():
                self._move(record, CANCELLED, now)
            case Retry():
                record.error = outcome.error
                self._give_back(record, now, _later(now, outcome.delay))
            case Released():
                record.attempt -= 1
                self._give_back(record, now, _later(now, outcome.delay) if outcome.delay else record.run_at)
            case _:
                raise TypeError(f"not an outcome that a store knows: {outcome!r}")
        return True

    def _give_back(self, record: Record, now: datetime, run_at: datetime) -> None:
        if record.cancel_requested:
            self._move(record, CANCELLED, now)
            return
        record.run_at = run_at
        self._move(record, SCHEDULED if run_at > now else READY, now)

    # Leases

    def heartbeat(self, worker: str, leases: Sequence[Lease], lease: float) -> list[LeaseState]:
        now = self.now()
        until = _later(now, lease)
        if lease > 0:
            self._workers[worker] = now, until
        else:
            self._workers.pop(worker, None)
        return [self._extend(held, until) for held in leases]

    def _extend(self, lease: Lease, until: datetime) -> LeaseState:
        record = self._held(lease.id, lease.delivery)
        if record is None:
            return LeaseState.LOST
        record.lease_until = until
        self._leases.put(record, until)
        return LeaseState.CANCEL_REQUESTED if record.cancel_requested else LeaseState.HELD

    def workers(self) -> list[WorkerInfo]:
        now = self.now()
        running: dict[str | None, list[str]] = {}
        for record in self._leases:
            running.setdefault(record.worker, []).append(record.order.id)
        return [
            WorkerInfo(id=worker, seen_at=seen_at, running=tuple(running.get(worker, ())))
            for worker, (seen_at, until) in sorted(self._workers.items())
            if until > now
        ]

    def recover(self, limit: int) -> list[Task]:
        now = self.now()
        lost: list[Record] = []
        while len(lost) < limit and (record := self._leases.due(now)):
            self._take_back(record, now)
            lost.append(record)
        for _ in range(limit - len(lost)):
            expired = self._expiring.due(now)
            if expired is None:
                break
            self._move(expired, CANCELLED, now)
        return [record.task() for record in lost]

    def _take_back(self, record: Record, now: datetime) -> None:
        if record.cancel_requested:
            self._move(record, CANCELLED, now)
        elif record.attempt <= record.order.max_retries:
            self._move(record, READY, now)
        else:
            record.error = TaskError(
                type="WorkerLost",
                message=f"worker {record.worker} died or lost its lease in attempt {record.attempt}, the last one",
            )
            self._move(record, FAILED, now)

    # Reading

    def get(self, ids: Sequence[str]) -> list[Task | None]:
        found = (self._records.get(task_id) for task_id in ids)
        return [None if record is None else record.task() for record in found]

    def page(self, query: TaskQuery, before: int | None) -> TaskPage:
        found: list[Record] = []
        for record in self._records.latest(before):
            if not record.matches(query):
                continue
            if len(found) == query.limit:
                return TaskPage(tuple(r.task() for r in found), str(found[-1].sequence))
            found.append(record)
        return TaskPage(tuple(record.task() for record in found), None)

    def stats(self) -> list[QueueStats]:
        now = self.now()
        stats = []
        for queue, line in sorted(self._lines.items()):
            self._promote(line, now)
            oldest = line.oldest()
            if line.paused or any(line.counts.values()):
                waited = None if oldest is None else max(0.0, (now - oldest).total_seconds())
                counts = dict(line.counts)
                stats.append(QueueStats(queue=queue, counts=counts, paused=line.paused, oldest_ready=waited))
        return stats

    def ended(self, ids: Iterable[str]) -> set[str]:
        return {task_id for task_id in ids if (record := self._records.get(task_id)) is None or record.finished_at}

    # Control

    def cancel(self, task_id: str) -> bool:
        record = self._records.get(task_id)
        if record is None or record.finished_at:
            return False
        if record.state is RUNNING:
            record.cancel_requested = True
        else:
            self._move(record, CANCELLED, self.now())
        return True

    def retry(self, task_id: str) -> bool:
        record = self._records.get(task_id)
        if record is None or record.state not in (FAILED, CANCELLED):
            return False
        key = record.order.unique
        if key is not None and self._unique.setdefault(key, task_id) != task_id:
            return False
        now = self.now()
        if record.expires_at is not None and record.expires_at <= now:
            record.expires_at = None
        record.attempt = 0
        record.run_at = now
        record.finished_at = None
        record.cancel_requested = False
        self._move(record, READY, now)
        return True

    def delete(self, task_id: str) -> bool:
        record = self._records.get(task_id)
        if record is None or record.state is RUNNING:
            return False
        self._remove(record)
        return True

    def _remove(self, record: Record) -> None:
        self._leave(record)
        self._records.remove(record)
        self._free_key(record)
        self.waiters.wake_for_end(record.order.id)
        self._forget_if_empty(record.order.queue)

    def _forget_if_empty(self, queue: str) -> None:
        line = self._lines[queue]
        if not line.paused and not any(line.counts.values()):
            del self._lines[queue]

    def purge(self, queue: str, state: TaskState | None) -> int:
        if queue in self._lines:
            self._promote(self._lines[queue], self.now())
        query = TaskQuery(queue=queue, state=state)
        doomed = [r for r in self._records.latest() if r.state is not RUNNING and r.matches(query)]
        for record in doomed:
            self._remove(record)
        return len(doomed)

    def pause(self, queue: str) -> bool:
        line = self._line(queue)
        changed = not line.paused
        line.paused = True
        return changed

    def resume(self, queue: str) -> bool:
        line = self._lines.get(queue)
        if line is None or not line.paused:
            return False
        line.paused = False
        self.waiters.wake_for_work(queue, self.now())
        self._forget_if_empty(queue)
        return True

    def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        for lease, progress in updates.items():
            record = self._held(lease.id, lease.delivery)
            if record is not None:
                record.progress = progress

    # Schedules

    def put_schedule(self, schedule: Schedule, expected_revision: int | None) -> Schedule | None:
        if expected_revision is not None and expected_revision != self.schedules.revision(schedule.id):
            return None
        kept = self.schedules.put(schedule)
        if kept.next_run is not None and not kept.paused:
            self.waiters.wake_for_schedule(kept.next_run)
        return kept

    def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> bool:
        # A schedule that is gone has revision 0, which no stored one ever had.
        revision = self.schedules.revision(schedule.id)
        if revision == 0 or revision != schedule.revision:
            return False
        self.enqueue(tasks)
        self.put_schedule(schedule, None)
        return True

    # Upkeep

    def prune(self, limit: int) -> int:
        now = self.now()
        self._workers = {worker: seen for worker, seen in self._workers.items() if seen[1] > now}
        removed = 0
        while removed < limit and (record := self._ended.due(now)):
            self._remove(record)
            removed += 1
        return removed

    # Waiting

    def next_work(self, queues: Iterable[str]) -> datetime | None:
        """Give the time at which a task will be claimable in one of the queues; None: there is no such task."""
        times = []
        for queue in queues:
            line = self._lines.get(queue)
            if line is None or line.paused:
                continue
            scheduled = line.scheduled.first()
            times += [at for at in (line.oldest(), scheduled and scheduled[0]) if at is not None]
        return min(times, default=None)


def _moment(when: When, now: datetime) -> datetime:
    return _later(now, when.total_seconds()) if isinstance(when, timedelta) else when.astimezone(UTC)


def _later(now: datetime, seconds: float) -> datetime:
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError:
        return NEVER


_stores: WeakSet[Store] = WeakSet()


def _after_fork_in_child() -> None:
    # Whoever waited does so in the parent, on event loops that do not run here.
    for store in _stores:
        store.waiters.clear()
    LOCK.release()


# Held across the fork, so that no other thread is in the middle of a change when the child gets its copy.
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=_after_fork_in_child)
