"""What can be done to a memory store. Whoever uses a :class:`Store` holds :data:`LOCK`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from omniq.schedule import Schedule
from omniq.storage import Enqueued, Lease, LeaseState, QueueStats, StoredWorker, TaskPage, TaskQuery
from omniq.task import (
    Cancelled,
    Failed,
    NewTask,
    Outcome,
    Progress,
    Released,
    Retry,
    StoredTask,
    Succeeded,
    TaskError,
    TaskState,
    When,
)
from omniq_local._memory_records import Line, Record
from omniq_local._memory_schedules import Schedules
from omniq_local._memory_transitions import LOCK, Transitions, later

__all__ = ["LOCK", "Store"]

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING
SUCCEEDED, FAILED, CANCELLED = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED


class Store(Transitions):
    """All tasks and schedules of one memory store.

    :param clock: gives the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.schedules = Schedules()
        self._workers: dict[str, tuple[datetime, datetime, str | None]] = {}

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
        if self.records.get(order.id) is not None:
            return Enqueued(order.id, False)
        if order.unique is not None:
            holder = self.unique.setdefault(order.unique, order.id)
            if holder != order.id:
                return Enqueued(holder, False)
        self.records.add(record)
        self.enter(record, SCHEDULED if record.run_at > now else READY, now)
        return Enqueued(order.id, True)

    def claim(self, demand: Mapping[str, int], worker: str, lease: float, limit: int | None) -> list[StoredTask]:
        now = self.now()
        until = later(now, lease)
        claimed: list[StoredTask] = []
        for queue, wanted in demand.items():
            line = self.lines.get(queue)
            if line is None or line.paused:
                continue
            self.promote(line, now)
            room = wanted if limit is None else min(wanted, limit - len(claimed))
            for record in self._take(line, room, now):
                record.attempt += 1
                record.delivery += 1
                record.worker = worker
                record.started_at = now
                record.lease_until = until
                record.progress = None
                self.move(record, RUNNING, now)
                claimed.append(record.task())
        return claimed

    def _take(self, line: Line, limit: int, now: datetime) -> Iterator[Record]:
        for priority in sorted(line.ready, reverse=True):
            index = line.ready[priority]
            while limit > 0 and (entry := index.first()):
                record = entry[1]
                if record.expires_at is not None and record.expires_at <= now:
                    self.move(record, CANCELLED, now)
                    continue
                limit -= 1
                yield record
            if not index:
                del line.ready[priority]

    def _held(self, task_id: str, delivery: int) -> Record | None:
        record = self.records.get(task_id)
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
                self.move(record, SUCCEEDED, now)
            case Failed():
                record.error = outcome.error
                self.move(record, FAILED, now)
            case Cancelled():
                self.move(record, CANCELLED, now)
            case Retry():
                record.error = outcome.error
                self._give_back(record, now, later(now, outcome.delay))
            case Released():
                record.attempt -= 1
                record.error = outcome.error or record.error
                self._give_back(record, now, later(now, outcome.delay) if outcome.delay else record.run_at)
            case _:
                raise TypeError(f"not an outcome that a store knows: {outcome!r}")
        return True

    def _give_back(self, record: Record, now: datetime, run_at: datetime) -> None:
        if record.cancel_requested:
            self.move(record, CANCELLED, now)
            return
        record.run_at = run_at
        self.move(record, SCHEDULED if run_at > now else READY, now)

    # Leases

    def heartbeat(self, worker: str, leases: Sequence[Lease], lease: float, about: str | None) -> list[LeaseState]:
        now = self.now()
        until = later(now, lease)
        if lease > 0:
            if about is None and worker in self._workers:
                about = self._workers[worker][2]
            self._workers[worker] = now, until, about
        else:
            self._workers.pop(worker, None)
        return [self._extend(held, until) for held in leases]

    def _extend(self, lease: Lease, until: datetime) -> LeaseState:
        record = self._held(lease.id, lease.delivery)
        if record is None:
            return LeaseState.LOST
        record.lease_until = until
        self.leases.put(record, until)
        return LeaseState.CANCEL_REQUESTED if record.cancel_requested else LeaseState.HELD

    def workers(self) -> list[StoredWorker]:
        now = self.now()
        running: dict[str | None, list[str]] = {}
        for record in self.leases:
            running.setdefault(record.worker, []).append(record.order.id)
        return [
            StoredWorker(id=worker, seen_at=seen_at, running=tuple(running.get(worker, ())), about=about)
            for worker, (seen_at, until, about) in sorted(self._workers.items(), key=lambda known: known[0])
            if until > now
        ]

    def recover(self, limit: int) -> list[StoredTask]:
        now = self.now()
        lost: list[Record] = []
        while len(lost) < limit and (record := self.leases.due(now)):
            self._take_back(record, now)
            lost.append(record)
        for _ in range(limit - len(lost)):
            expired = self.expiring.due(now)
            if expired is None:
                break
            self.move(expired, CANCELLED, now)
        return [record.task() for record in lost]

    def _take_back(self, record: Record, now: datetime) -> None:
        if record.cancel_requested:
            self.move(record, CANCELLED, now)
        elif record.attempt <= record.order.max_retries:
            self.move(record, READY, now)
        else:
            record.error = TaskError(
                type="WorkerLost",
                message=f"worker {record.worker} died or lost its lease in attempt {record.attempt}, the last one",
            )
            self.move(record, FAILED, now)

    # Reading

    def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        found = (self.records.get(task_id) for task_id in ids)
        return [None if record is None else record.task() for record in found]

    def page(self, query: TaskQuery, before: int | None) -> TaskPage[StoredTask]:
        found: list[Record] = []
        for record in self.records.latest(before):
            if not record.matches(query):
                continue
            if len(found) == query.limit:
                return TaskPage(tuple(r.task() for r in found), str(found[-1].sequence))
            found.append(record)
        return TaskPage(tuple(record.task() for record in found), None)

    def stats(self) -> list[QueueStats]:
        now = self.now()
        stats = []
        for queue, line in sorted(self.lines.items()):
            self.promote(line, now)
            oldest = line.oldest()
            if line.paused or any(line.counts.values()):
                waited = None if oldest is None else max(0.0, (now - oldest).total_seconds())
                counts = dict(line.counts)
                stats.append(QueueStats(queue=queue, counts=counts, paused=line.paused, oldest_ready=waited))
        return stats

    def ended(self, ids: Iterable[str]) -> set[str]:
        return {task_id for task_id in ids if (record := self.records.get(task_id)) is None or record.finished_at}

    # Control

    def cancel(self, task_id: str) -> bool:
        record = self.records.get(task_id)
        if record is None or record.finished_at:
            return False
        if record.state is RUNNING:
            record.cancel_requested = True
        else:
            self.move(record, CANCELLED, self.now())
        return True

    def retry(self, task_id: str) -> bool:
        record = self.records.get(task_id)
        if record is None or record.state not in (FAILED, CANCELLED):
            return False
        key = record.order.unique
        if key is not None and self.unique.setdefault(key, task_id) != task_id:
            return False
        now = self.now()
        if record.expires_at is not None and record.expires_at <= now:
            record.expires_at = None
        record.attempt = 0
        record.run_at = now
        record.finished_at = None
        record.cancel_requested = False
        self.move(record, READY, now)
        return True

    def delete(self, task_id: str) -> bool:
        record = self.records.get(task_id)
        if record is None or record.state is RUNNING:
            return False
        self._remove(record)
        return True

    def _remove(self, record: Record) -> None:
        self.leave(record)
        self.records.remove(record)
        self.free_key(record)
        self.waiters.wake_for_end(record.order.id)
        self._forget_if_empty(record.order.queue)

    def _forget_if_empty(self, queue: str) -> None:
        line = self.lines[queue]
        if not line.paused and not any(line.counts.values()):
            del self.lines[queue]

    def purge(self, queue: str, state: TaskState | None) -> int:
        if queue in self.lines:
            self.promote(self.lines[queue], self.now())
        query = TaskQuery(queue=queue, state=state)
        doomed = [r for r in self.records.latest() if r.state is not RUNNING and r.matches(query)]
        for record in doomed:
            self._remove(record)
        return len(doomed)

    def pause(self, queue: str) -> bool:
        line = self.line(queue)
        changed = not line.paused
        line.paused = True
        return changed

    def resume(self, queue: str) -> bool:
        line = self.lines.get(queue)
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

    def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        # A schedule that is gone has revision 0, which no stored one ever had.
        revision = self.schedules.revision(schedule.id)
        if revision == 0 or revision != schedule.revision:
            return None
        enqueued = self.enqueue(tasks)
        self.put_schedule(schedule, None)
        return enqueued

    # Upkeep

    def prune(self, limit: int) -> int:
        now = self.now()
        self._workers = {worker: seen for worker, seen in self._workers.items() if seen[1] > now}
        removed = 0
        while removed < limit and (record := self.kept.due(now)):
            self._remove(record)
            removed += 1
        return removed

    # Waiting

    def next_work(self, queues: Iterable[str]) -> datetime | None:
        """Give the time at which a task will be claimable in one of the queues; None: there is no such task."""
        times = []
        for queue in queues:
            line = self.lines.get(queue)
            if line is None or line.paused:
                continue
            scheduled = line.scheduled.first()
            times += [at for at in (line.oldest(), scheduled and scheduled[0]) if at is not None]
        return min(times, default=None)


def _moment(when: When, now: datetime) -> datetime:
    return later(now, when.total_seconds()) if isinstance(when, timedelta) else when.astimezone(UTC)
