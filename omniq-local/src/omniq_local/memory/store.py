"""The primitives of a memory store, over which :mod:`omniq.storage.transitions` does the verbs; and what is read of it.

Callers hold :data:`LOCK` while they use a :class:`Store`, and call :meth:`Store.begin` first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from weakref import WeakSet

from omniq.flow import NewFlow, StoredFlow, StoredGate
from omniq.schedule import Schedule
from omniq.storage import Enqueued, QueueStats, StoredWorker, TaskPage, TaskQuery, transitions
from omniq.storage.flow_transitions import count_ends
from omniq.storage.paging import Pager
from omniq.storage.posix import at_fork
from omniq.storage.states import answered_task, later, promoted_task, stored_task
from omniq.task import NewTask, Outcome, StoredTask, TaskState
from omniq_local.memory.flows import Flows
from omniq_local.memory.records import Index, Line, Record, Register
from omniq_local.memory.waiting import Waiters

__all__ = ["LOCK", "Store"]

LOCK = threading.Lock()
"""One for all memory stores of the process: under it a fork finds every store whole."""

READY, SCHEDULED, RUNNING, BLOCKED = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING, TaskState.BLOCKED
SUCCEEDED = TaskState.SUCCEEDED


class Store:
    """All tasks and schedules of one memory store, and the primitives of a transaction on it.

    :param clock: returns the time in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.waiters = Waiters()
        self._records = Register()
        self._lines: dict[str, Line] = {}
        self._paused: set[str] = set()
        self._unique: dict[str, str] = {}
        self._leases = Index()
        self._expiring = Index()
        self._kept = Index()
        """The tasks that have ended, by the time at which their results are over."""
        self._flows = Flows()
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
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = Line()
        line.counts[state] += 1
        if task.flow is not None:
            self._flows.enter(record)
        if state is READY:
            index = line.ready.get(task.priority)
            if index is None:
                index = line.ready[task.priority] = Index()
            index.put(record, task.run_at)
            self.waiters.wake_for_work(queue, self.now)
        elif state is SCHEDULED:
            line.scheduled.put(record, task.run_at)
            self.waiters.wake_for_work(queue, task.run_at)
        elif state is RUNNING:
            assert task.lease_until is not None
            self._leases.put(record, task.lease_until)
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
        if task.unique is not None:
            self._unique[task.unique] = task.id
        if task.expires_at is not None:
            self._expiring.put(record, task.expires_at)

    def _leave(self, record: Record) -> None:
        task = record.task
        state = task.state
        line = self._lines[task.queue]
        line.counts[state] -= 1
        if task.flow is not None:
            self._flows.leave(record)
        if state is RUNNING:
            self._leases.discard(record)
            return
        if state is READY:
            index = line.ready.get(task.priority)
            if index is not None:
                index.discard(record)
                if not index:
                    del line.ready[task.priority]
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
        line = self._lines.get(queue)
        if line is not None and not any(line.counts.values()):
            del self._lines[queue]

    def _promote(self, line: Line, limit: int) -> None:
        self.save([promoted_task(record.task) for record in line.scheduled.take(limit, self.now)])

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

    def promote(self, queue: str, limit: int) -> None:
        if queue in self._lines:
            self._promote(self._lines[queue], limit)

    def ready(self, queue: str, limit: int) -> list[StoredTask]:
        found: list[StoredTask] = []
        ready = self._lines[queue].ready if queue in self._lines else {}
        for priority in sorted(ready, reverse=True):
            found += [record.task for record in ready[priority].take(limit - len(found))]
            if len(found) == limit:
                break
        return found

    def lapsed(self, limit: int) -> list[StoredTask]:
        return [record.task for record in self._leases.take(limit, self.now)]

    def expired(self, limit: int) -> list[StoredTask]:
        return [record.task for record in self._expiring.take(limit, self.now)]

    def in_states(self, queue: str, states: Sequence[TaskState], limit: int) -> list[StoredTask]:
        if queue in self._lines:
            self._promote(self._lines[queue], sum(self._lines[queue].counts.values()))
        matching = (r.task for r in self._records.latest() if r.task.queue == queue and r.task.state in states)
        return list(islice(matching, limit))

    def dropped(self, limit: int) -> list[StoredTask]:
        self._workers = {worker: seen for worker, seen in self._workers.items() if seen[1] > self.now}
        return [record.task for record in self._kept.take(limit, self.now)]

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        return self._flows.get(ids)

    def save_flow(self, flow: StoredFlow) -> None:
        self._flows.save(flow)
        if flow.agenda or flow.cancelling:
            self.waiters.wake_for_schedule(self.now)  # the next claim goes on with it

    def remove_flow(self, flow_id: str) -> None:
        self._flows.remove(flow_id)

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        return self._flows.gates(flow_id, numbers)

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        self._flows.save_gates(flow_id, gates)

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        return self._flows.members(flow_id, behind, states, limit)

    def count_members(self, flow_id: str) -> dict[TaskState, int]:
        return self._flows.count(flow_id)

    def flow_of_key(self, key: str) -> str | None:
        return self._flows.holder(key)

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        return self._flows.due(ended, limit, self.now)

    def seen(self, worker: str, lease: float, about: str | None) -> None:
        if lease <= 0:
            self._workers.pop(worker, None)
            return
        if about is None and worker in self._workers:
            about = self._workers[worker][2]
        self._workers[worker] = self.now, later(self.now, lease), about

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
        if flow is not None or any(task.flow is not None for task in tasks):
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
        members: list[StoredTask] = []
        answers = [self._finish(outcome, members) for outcome in outcomes]
        if members:
            count_ends(self, members)
        return answers

    def _finish(self, outcome: Outcome, members: list[StoredTask]) -> bool:
        record = self._records.by_id.get(outcome.id)
        if record is None or record.task.state is not RUNNING or record.task.delivery != outcome.delivery:
            return False
        task = answered_task(record.task, outcome, self.now)
        self._move(record, task)
        if task.flow is not None and task.state.is_final:
            members.append(task)
        return True

    # Reading

    def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        found = self.load(ids)
        return [found.get(task_id) for task_id in ids]

    def page(self, query: TaskQuery, before: int | None) -> TaskPage[StoredTask]:
        pager = Pager(query)
        for record in self._candidates(query, before):
            if pager.is_done_with(record.sequence, record.task):
                break
        return pager.page()

    def _candidates(self, query: TaskQuery, before: int | None) -> Iterable[Record]:
        """Return the records to look at for a page: those in the states asked for, where they are few among all."""
        if query.states is None or not query.states.isdisjoint({SUCCEEDED, BLOCKED}):
            return self._records.latest(before)  # these are kept in no order of their own
        lines = [line for queue, line in self._lines.items() if query.queue in (None, queue)]
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
        for queue in sorted(self._paused | self._lines.keys()):
            line = self._lines.get(queue) or Line()
            self._promote(line, sum(line.counts.values()))
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

    def schedules(self, ids: Sequence[str] | None) -> list[Schedule]:
        wanted = sorted(self._schedules) if ids is None else ids
        return [self._schedules[schedule_id] for schedule_id in wanted if schedule_id in self._schedules]

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
        lines = [self._lines[queue] for queue in queues if queue in self._lines and queue not in self._paused]
        times = [at for line in lines for at in (line.oldest(), line.scheduled.first()) if at is not None]
        return min(times, default=None)

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
