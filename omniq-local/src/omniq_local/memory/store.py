"""The primitives of a memory store, over which :mod:`omniq.storage.transitions` does the verbs; and what is read of it.

Callers hold :data:`LOCK` while they use a :class:`Store`, and call :meth:`Store.begin` first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from weakref import WeakSet

from omniq.flow import NewFlow, StoredFlow
from omniq.limit import PLAIN, Lane, Scope, StoredLine
from omniq.schedule import Schedule
from omniq.storage import Enqueued, QueueStats, StoredWorker, TaskQuery, transitions
from omniq.storage.flow_transitions import count_ends
from omniq.storage.limit_transitions import ASLEEP, ELIGIBLE, give_back, is_lined, moved, outlook
from omniq.storage.paging import Pager
from omniq.storage.posix import at_fork
from omniq.storage.states import answered_task, holds_key, later, promoted_task, stored_task
from omniq.storage.times import from_micros
from omniq.task import NewTask, Outcome, Released, StoredTask, TaskState
from omniq_local.memory.flows import Flows
from omniq_local.memory.limits import Limits
from omniq_local.memory.records import Index, Line, Record, Register
from omniq_local.memory.waiting import Waiters

__all__ = ["LOCK", "Store"]

LOCK = threading.Lock()
"""One for all memory stores of the process: under it a fork finds every store whole."""

READY, SCHEDULED, RUNNING, BLOCKED = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING, TaskState.BLOCKED
SUCCEEDED = TaskState.SUCCEEDED


class Store(Flows, Limits):
    """All that one memory store holds, and the primitives of a transaction on it.

    :param clock: returns the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.waiters = Waiters()
        self._records = Register()
        self._queues: dict[str, Line] = {}
        self._paused: set[str] = set()
        self._unique: dict[str, str] = {}
        self._leases = Index()
        self._expiring = Index()
        self._kept = Index()
        """The tasks that have ended, by the time at which their results are over."""
        self._workers: dict[str, tuple[datetime, datetime, str | None]] = {}
        self._schedules: dict[str, Schedule] = {}
        self._revision_floor = 0
        self.begin()
        _stores.add(self)

    def begin(self) -> Store:
        """Look at the clock, for one transaction."""
        self.now = datetime.fromtimestamp(self.clock(), UTC)
        return self

    # Where a task stands: in one state, one count and one order

    def _enter(self, record: Record) -> None:
        task = record.task
        state, queue = task.state, task.queue
        line = self._queues.get(queue)
        if line is None:
            line = self._queues[queue] = Line()
        line.counts[state] += 1
        if task.flow is not None:
            self.enter_flow(record)
        if state is READY:
            ready = self.ready_with(task) if is_lined(task) else line.ready
            index = ready.get(task.priority)
            if index is None:
                index = ready[task.priority] = Index()
            index.put(record, task.run_at)
            if ready is line.ready:
                self.waiters.wake_for_work(queue, self.now)
        elif state is SCHEDULED:
            line.scheduled.put(record, task.run_at)
            self.waiters.wake_for_work(queue, task.run_at)
        elif state is RUNNING:
            assert task.lease_until is not None
            self._leases.put(record, task.lease_until)
            if task.limited is not None:
                self.enter(queue, task.key, task.limit)
                if task.first_at is not None:
                    self._free_key(task)
            return
        elif state is BLOCKED:
            line.blocked[record.sequence] = record
            return
        else:
            assert task.finished_at is not None
            if state is not SUCCEEDED:
                line.ended[state][record.sequence] = record
            if task.flow is None:
                self._kept.put(record, later(task.finished_at, task.result_ttl))
            self._free_key(task)
            self.waiters.wake_for_end(task.id)
            return
        if task.unique is not None and holds_key(task):
            self._unique[task.unique] = task.id
        if task.expires_at is not None:
            self._expiring.put(record, task.expires_at)

    def _leave(self, record: Record) -> None:
        task = record.task
        state = task.state
        line = self._queues[task.queue]
        line.counts[state] -= 1
        if task.flow is not None:
            self.leave_flow(record)
        if state is RUNNING:
            self._leases.discard(record)
            if task.limited is not None:
                self.leave(task.queue, task.key, task.limit)
            if self.has_lane(task.queue):
                self.waiters.wake_for_work(task.queue, self.now)
            return
        if state is READY:
            lined = is_lined(task)
            ready = self.ready_with(task) if lined else line.ready
            index = ready.get(task.priority)
            if index is not None:
                index.discard(record)
                if not index:
                    del ready[task.priority]
            if lined and not ready:
                self.forget_ready(task)
        elif state is SCHEDULED:
            line.scheduled.discard(record)
        elif state is BLOCKED:
            del line.blocked[record.sequence]
            return
        else:
            if state is not SUCCEEDED:
                line.ended[state].pop(record.sequence, None)
            self._kept.discard(record)
            return
        if task.expires_at is not None:
            self._expiring.discard(record)

    def _move(self, record: Record, task: StoredTask) -> None:
        self._leave(record)
        record.task = task
        self._enter(record)

    def _free_key(self, task: StoredTask) -> None:
        if task.unique is not None and self._unique.get(task.unique) == task.id:
            del self._unique[task.unique]

    def _forget_if_empty(self, queue: str) -> None:
        line = self._queues.get(queue)
        if line is not None and not any(line.counts.values()):
            del self._queues[queue]

    def _promote(self, line: Line, limit: int) -> list[StoredTask]:
        """Return those that were promoted and have a key or a named limit."""
        tasks = [promoted_task(record.task) for record in line.scheduled.take(limit, self.now)]
        self.save(tasks)
        return [task for task in tasks if is_lined(task)]

    # The primitives, see omniq.storage.primitives.Transaction

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        records = self._records.by_id
        return {task_id: records[task_id].task for task_id in ids if task_id in records}

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        for task in tasks:
            self._enter(self._records.add(task))

    def save(self, tasks: Sequence[StoredTask]) -> None:
        for task in tasks:
            self._move(self._records.by_id[task.id], task)

    def remove(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            self._remove(self._records.by_id[task_id])

    def _remove(self, record: Record) -> None:
        task = record.task
        self._leave(record)
        self._records.remove(record)
        self._free_key(task)
        self.waiters.wake_for_end(task.id)
        self._forget_if_empty(task.queue)

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: self._unique[key] for key in keys if key in self._unique}

    def paused(self) -> set[str]:
        return self._paused

    def promote(self, queue: str, limit: int) -> Sequence[StoredTask]:
        return self._promote(self._queues[queue], limit) if queue in self._queues else ()

    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        found: list[Record] = []
        ready = self.ready_in(line)
        if line == PLAIN and queue in self._queues:
            ready = self._queues[queue].ready
        for priority in sorted(ready, reverse=True):
            records = ready[priority].take(limit - len(found))
            found += records
            if self.has_lane(queue):  # there not all that are read are claimed
                for record in records:
                    ready[priority].put(record, record.task.run_at)
            if len(found) == limit:
                break
        return [record.task for record in found]

    def lapsed(self, limit: int) -> list[StoredTask]:
        return [record.task for record in self._leases.take(limit, self.now)]

    def expired(self, limit: int) -> list[StoredTask]:
        return [record.task for record in self._expiring.take(limit, self.now)]

    def in_states(self, queue: str, states: Sequence[TaskState], limit: int) -> list[StoredTask]:
        if queue in self._queues:
            moved(self, self._promote(self._queues[queue], sum(self._queues[queue].counts.values())))
        matching = (r.task for r in self._records.latest() if r.task.queue == queue and r.task.state in states)
        return list(islice(matching, limit))

    def dropped(self, limit: int) -> list[StoredTask]:
        return [record.task for record in self._kept.take(limit, self.now)]

    def save_flow(self, flow: StoredFlow) -> None:
        super().save_flow(flow)
        if flow.is_due:
            self.waiters.wake_for_schedule(self.now)  # the next claim goes on with it

    def seen(self, worker: str, lease: float, about: str | None) -> None:
        if lease <= 0:
            self._workers.pop(worker, None)
            return
        if about is None and worker in self._workers:
            about = self._workers[worker][2]
        self._workers[worker] = self.now, later(self.now, lease), about

    def forget_workers(self) -> None:
        self._workers = {worker: seen for worker, seen in self._workers.items() if seen[1] > self.now}

    def revision(self, schedule_id: str) -> int | None:
        stored = self._schedules.get(schedule_id)
        return None if stored is None else stored.revision

    def schedule(self, schedule_id: str) -> Schedule | None:
        return self._schedules.get(schedule_id)

    def store_schedule(self, schedule: Schedule) -> None:
        self._schedules[schedule.id] = schedule
        if schedule.next_run is not None and not schedule.paused:
            self.waiters.wake_for_schedule(schedule.next_run)

    def remove_schedule(self, schedule_id: str) -> None:
        del self._schedules[schedule_id]

    def revision_floor(self) -> int:
        return self._revision_floor

    def raise_revision_floor(self, revision: int) -> None:
        self._revision_floor = revision

    # Two verbs as they are in transitions, without looking up each task for each primitive

    def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        if flow is not None or any(
            task.flow is not None or task.key is not None or task.limit is not None or task.debounce is not None
            for task in tasks
        ):
            return transitions.enqueue(self, tasks, flow)
        if len(tasks) == 1:
            return [self._add(stored_task(tasks[0], self.now))]
        # All are read before the first is stored: one that cannot be read leaves nothing behind.
        return [self._add(task) for task in [stored_task(new, self.now) for new in tasks]]

    def _add(self, task: StoredTask) -> Enqueued:
        if task.id in self._records.by_id:
            return Enqueued(task.id, False)
        if task.unique is not None and (holder := self._unique.get(task.unique)) is not None:
            return Enqueued(holder, False)
        self._enter(self._records.add(task))
        return Enqueued(task.id, True)

    def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        # All are answered before the first is moved, as above.
        answered: dict[str, tuple[Record, StoredTask, Outcome]] = {}
        answers = []
        for outcome in outcomes:
            record = self._records.by_id.get(outcome.id)
            if (
                record is None
                or record.task.state is not RUNNING
                or record.task.delivery != outcome.delivery
                or outcome.id in answered
            ):
                answers.append(False)
            else:
                answered[outcome.id] = record, answered_task(record.task, outcome, self.now), outcome
                answers.append(True)
        members = []
        for record, task, outcome in answered.values():
            was = record.task
            self._move(record, task)
            if task.limited is not None:
                moved(self, [task])
            if isinstance(outcome, Released):
                give_back(self, [was])
            if task.flow is not None and task.state.is_final:
                members.append(task)
        if members:
            count_ends(self, members)
        return answers

    # Reading

    get = load

    def page(self, query: TaskQuery, before: int | None) -> tuple[list[StoredTask], int | None]:
        pager = Pager(query)
        for record in self._candidates(query, before):
            if pager.is_done_with(record.sequence, record.task):
                break
        return pager.tasks, pager.cursor

    def _candidates(self, query: TaskQuery, before: int | None) -> Iterable[Record]:
        """Return the records to look at for a page: those in the states asked for, where they are few among all."""
        if query.states is None or not query.states.isdisjoint({SUCCEEDED, BLOCKED}):
            return self._records.latest(before)  # these are kept in no order of their own
        lines = [line for queue, line in self._queues.items() if query.queue in (None, queue)]
        number = sum(line.counts[state] for line in lines for state in query.states)
        if number * number > len(self._records.by_id) * query.limit:
            return self._records.latest(before)  # so many that they are soon met
        found = [record for line in lines for state in query.states for record in line.in_state(state)]
        if RUNNING in query.states:
            found += [record for record in self._leases if query.queue in (None, record.task.queue)]
        there = [record for record in found if before is None or record.sequence < before]
        return sorted(there, key=lambda record: -record.sequence)

    def stats(self) -> list[QueueStats]:
        stats = []
        for queue in sorted(self._paused | self._queues.keys()):
            line = self._queues.get(queue) or Line()
            moved(self, self._promote(line, sum(line.counts.values())))
            oldest = line.oldest()
            waited = None if oldest is None else max(0.0, (self.now - oldest).total_seconds())
            paused = queue in self._paused
            stats.append(QueueStats(queue=queue, counts=dict(line.counts), paused=paused, oldest_ready=waited))
        return stats

    def workers(self) -> list[StoredWorker]:
        running: dict[str | None, list[str]] = {}
        for record in self._leases:
            running.setdefault(record.task.worker, []).append(record.task.id)
        return [
            StoredWorker(id=worker, seen_at=seen_at, running=tuple(running.get(worker, ())), about=about)
            for worker, (seen_at, until, about) in sorted(self._workers.items(), key=lambda known: known[0])
            if until > self.now
        ]

    def schedules(self) -> list[Schedule]:
        return list(self._schedules.values())

    def due(self, limit: int) -> list[Schedule]:
        due = sorted((at, schedule.id) for at, schedule in self._planned() if at <= self.now)
        return [self._schedules[schedule_id] for _, schedule_id in due[:limit]]

    def _planned(self) -> list[tuple[datetime, Schedule]]:
        return [(one.next_run, one) for one in self._schedules.values() if one.next_run is not None and not one.paused]

    def pause(self, queue: str) -> bool:
        changed = queue not in self._paused
        self._paused.add(queue)
        return changed

    def resume(self, queue: str) -> bool:
        if queue not in self._paused:
            return False
        self._paused.remove(queue)
        self.waiters.wake_for_work(queue, self.now)
        return True

    # Waiting

    def ended(self, ids: Iterable[str]) -> set[str]:
        """Return those of some tasks that have ended, or are not there."""
        found = self.load(ids)
        return {task_id for task_id in ids if task_id not in found or found[task_id].state.is_final}

    def next_work(self, queues: Iterable[str]) -> datetime | None:
        """Return the time at which a task will be claimable in one of the queues; None: there is no such task."""
        served = [queue for queue in queues if queue not in self._paused]
        times = [at for queue in served if not self.has_lane(queue) for at in self._times(queue)]
        limited = [queue for queue in served if self.has_lane(queue)]
        if limited:
            is_there, moment = outlook(self, limited, self._work)
            times += [self.now] if is_there else [] if moment is None else [moment]
        return min(times, default=None)

    def _times(self, queue: str) -> list[datetime]:
        line = self._queues.get(queue)
        times = () if line is None else (line.oldest(), line.scheduled.first())
        return [at for at in times if at is not None]

    def _work(self, queue: str) -> tuple[bool, datetime | None]:
        line = self._queues.get(queue)
        scheduled = None if line is None else line.scheduled.first()
        is_due = scheduled is not None and scheduled <= self.now
        return is_due or (line is not None and line.oldest() is not None), scheduled

    # Limits, see omniq.storage.primitives.LimitTransaction

    def lock_limits(self) -> None:
        pass

    def save_lane(self, lane: Lane) -> None:
        super().save_lane(lane)
        self.waiters.wake_for_work(lane.queue, self.now)

    def save_line(self, line: StoredLine) -> None:
        super().save_line(line)
        if line.place == ELIGIBLE:
            self.waiters.wake_for_work(line.queue, self.now)
        elif line.place == ASLEEP:
            self.waiters.wake_for_work(line.queue, from_micros(line.until))

    def running(self, scope: Scope) -> int:
        if scope.queue is not None and scope.key is None:
            line = self._queues.get(scope.queue)
            return 0 if line is None else line.counts[RUNNING]
        return super().running(scope)

    def outlook(self) -> tuple[bool, datetime | None]:
        """Return whether a schedule is due, and when the next of the others will be; None: never."""
        times = [at for at, _ in self._planned()]
        return any(at <= self.now for at in times), min((at for at in times if at > self.now), default=None)


_stores: WeakSet[Store] = WeakSet()


def _after_fork_in_child() -> None:
    # Those that waited do so in the parent, on event loops that do not run here.
    for store in _stores:
        store.waiters.clear()
    LOCK.release()


# Held across the fork, so that no other thread is in the middle of a change when the child gets its copy.
at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=_after_fork_in_child)
