"""What each verb of the contract means, written once: pure functions over a few primitives of a transaction.

A store that can run Python inside its transaction runs these, through :class:`~omniq.storage.SimpleStorage`; one that
does its verbs in another language (SQL, Lua) does what these do. Which records qualify and who loses a race is said in
:class:`~omniq.storage.Storage`, whose methods these functions are named after; here it can be read as code.

Nothing here does I/O or looks at a clock of its own: the primitives do, and ``tx.now`` is the store's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

from attrs import evolve

from omniq.errors import FlowClosed
from omniq.flow import Flow, Gate, GateState, NewFlow, NewGate, StoredFlow, StoredGate
from omniq.schedule import Schedule
from omniq.storage.attempts import with_lost_line
from omniq.storage.base import Enqueued, Lease, LeaseState
from omniq.storage.validation import Salvaged
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
    record_of,
)

__all__ = [
    "LATEST",
    "Transaction",
    "answered_task",
    "claimed_task",
    "count_ends",
    "due_at",
    "later",
    "promoted_task",
    "stored_task",
]

LATEST = datetime.max.replace(tzinfo=UTC)
"""The last point in time that a datetime can name; what would come after it comes then."""


class Transaction(Protocol):
    """What a store can do within one transaction. Reads see the transaction's own writes.

    A task that any of these returns is locked until the transaction ends, or the transaction is the only one that
    writes: no other changes it meanwhile.

    In place of a task that cannot be read they return a :class:`~omniq.storage.validation.Salvaged` one, by the id by
    which it was found. To save that ends it: it is found as failed from then on, and of what is stored the error and
    the times of its end are written, nothing else.
    """

    now: datetime
    """The store's clock, aware and in UTC; the same throughout the transaction."""

    @abstractmethod
    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        """Return tasks by their ids, without those that are not there. Their bodies and results may be left out."""

    @abstractmethod
    def insert(self, tasks: Sequence[StoredTask]) -> None:
        """Add tasks, behind all others in the order of enqueueing."""

    @abstractmethod
    def save(self, tasks: Sequence[StoredTask]) -> None:
        """Replace what can change of tasks that another primitive returned before."""

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> None:
        """Remove tasks that :meth:`load` returned before, with all that belongs to them."""

    @abstractmethod
    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the id of the task that has not ended for each unique key that one has."""

    @abstractmethod
    def paused(self) -> set[str]:
        """Return the queues that are paused."""

    @abstractmethod
    def promote(self, queue: str, limit: int) -> None:
        """Make scheduled tasks of a queue ready whose ``run_at`` has come, the earliest first."""

    @abstractmethod
    def ready(self, queue: str, limit: int) -> list[StoredTask]:
        """Return ready tasks of a queue with their bodies, in the order of the claim."""

    @abstractmethod
    def lapsed(self, limit: int) -> list[StoredTask]:
        """Return running tasks whose lease has run out, the longest ago first, with their bodies."""

    @abstractmethod
    def expired(self, limit: int) -> list[StoredTask]:
        """Return scheduled and ready tasks whose ``expires_at`` has come."""

    @abstractmethod
    def in_states(self, queue: str, states: Sequence[TaskState], limit: int) -> list[StoredTask]:
        """Return tasks of a queue in these states, in any order. Their bodies and results may be left out."""

    @abstractmethod
    def dropped(self, limit: int) -> list[StoredTask]:
        """Return tasks of no flow that have ended and whose ``result_ttl`` is over, the longest ago first.

        Their bodies and results may be left out.
        """

    @abstractmethod
    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        """Return flows by their ids, without those that are not there or cannot be read; locked in order of the ids."""

    @abstractmethod
    def save_flow(self, flow: StoredFlow) -> None:
        """Add a flow, or replace the one with its id; its gates stay.

        It is found by :meth:`flow_of_key` until it has ended, and by :meth:`due_flows` as :func:`due_at` says.
        """

    @abstractmethod
    def remove_flow(self, flow_id: str) -> None:
        """Remove a flow that is there, with its gates."""

    @abstractmethod
    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        """Return gates of a flow by their numbers, without those that are not there; without numbers all of them."""

    @abstractmethod
    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        """Add gates, or replace those with their numbers."""

    @abstractmethod
    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        """Return tasks of a flow in these states, in the order of enqueueing. Bodies and results may be left out.

        :param behind: only those behind this gate; None: all, with those that are behind none.
        """

    @abstractmethod
    def count_members(self, flow_id: str) -> Mapping[TaskState, int]:
        """Return how many tasks of a flow are in each state; 0 may be left out."""

    @abstractmethod
    def flow_of_key(self, key: str) -> str | None:
        """Return the id of the flow that has not ended and has a unique key."""

    @abstractmethod
    def due_flows(self, ended: bool, limit: int) -> list[str]:
        """Return flows whose :func:`due_at` has come, the longest ago first, and which have ended or have not."""

    @abstractmethod
    def seen(self, worker: str, lease: float, about: str | None) -> None:
        """Note that a worker is alive, for so many seconds from now; 0 signs it off.

        :param about: what the worker tells about itself; None: what is stored stays. Signing off removes it.
        """

    @abstractmethod
    def revision(self, schedule_id: str) -> int | None:
        """Return the revision of a schedule; 0 if it cannot be told, None if there is no such schedule."""

    @abstractmethod
    def schedule(self, schedule_id: str) -> Schedule | None:
        """Return a schedule; None if it is not there, or cannot be read."""

    @abstractmethod
    def store_schedule(self, schedule: Schedule) -> None:
        """Add a schedule, or replace the one with its id, whatever is stored of that."""

    @abstractmethod
    def remove_schedule(self, schedule_id: str) -> None:
        """Remove a schedule that is there, without reading it."""

    @abstractmethod
    def revision_floor(self) -> int:
        """Return what was last given to :meth:`raise_revision_floor`; 0 if nothing was."""

    @abstractmethod
    def raise_revision_floor(self, revision: int) -> None:
        """Remember a number from which the revisions of new schedules go on."""


@lru_cache(maxsize=64)  # the same few, such as a result_ttl, again and again
def _span(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def later(now: datetime, seconds: float | timedelta) -> datetime:
    """Return a point in time some seconds (or a timedelta) after another, or the last that there is."""
    try:
        return now + (seconds if isinstance(seconds, timedelta) else _span(seconds))
    except OverflowError:
        return LATEST


# From one state to another


def _point(when: When, now: datetime) -> datetime:
    return later(now, when) if isinstance(when, timedelta) else when.astimezone(UTC)


def stored_task(new: NewTask, now: datetime) -> StoredTask:
    """Return a new task as it is stored, unless it stands behind a gate that is not open."""
    run_at = now if new.run_at is None else max(now, _point(new.run_at, now))
    # Every other field of an order is one of the record, by the same name. With one that is none, and be it for a
    # moment, Python would give each record a table of names of its own, which takes more than all else that is stored.
    given = vars(new).copy()
    expires = given.pop("expires")
    values = _AT_FIRST | given
    values["state"] = TaskState.SCHEDULED if run_at > now else TaskState.READY
    values["created_at"], values["run_at"] = now, run_at
    values["expires_at"] = None if expires is None else _point(expires, now)
    return record_of(StoredTask, values)


_AT_FIRST = vars(StoredTask(id="", queue="", name="", body=b"", created_at=LATEST, run_at=LATEST))


def _changed(task: StoredTask, **changes: object) -> StoredTask:
    return record_of(StoredTask, vars(task) | changes)


def promoted_task(task: StoredTask) -> StoredTask:
    """Return a scheduled task whose time has come as a ready one."""
    return _changed(task, state=TaskState.READY)


def _ended(task: StoredTask, state: TaskState, now: datetime, **changes: object) -> StoredTask:
    if isinstance(task, Salvaged):
        return evolve(task, finished_at=now)
    return _changed(task, state=state, finished_at=now, lease_until=None, **changes)


def _waiting(task: StoredTask, now: datetime, delay: float, **changes: object) -> StoredTask:
    state = TaskState.SCHEDULED if delay > 0 else TaskState.READY
    return _changed(task, **{"state": state, "lease_until": None, "run_at": later(now, delay), **changes})


def answered_task(task: StoredTask, outcome: Outcome, now: datetime) -> StoredTask:
    """Return a running task as it stands after an outcome that is accepted."""
    match outcome:
        case Succeeded():
            return _ended(task, TaskState.SUCCEEDED, now, result_payload=outcome.result, error=None)
        case Failed():
            return _ended(
                task, TaskState.FAILED, now, error=outcome.error, attempt_log=outcome.attempt_log or task.attempt_log
            )
        case Retry():
            changes: dict[str, object] = {
                "error": outcome.error,
                "attempt_log": outcome.attempt_log or task.attempt_log,
            }
        case Released():
            changes = {"attempt": task.attempt - 1, "error": outcome.error or task.error}
        case Cancelled():
            return _ended(task, TaskState.CANCELLED, now, attempt_log=outcome.attempt_log or task.attempt_log)
        case _:
            raise TypeError(f"not an outcome that a store knows: {outcome!r}")
    if task.cancel_requested:
        return _ended(task, TaskState.CANCELLED, now, **changes)
    if isinstance(outcome, Released) and outcome.delay <= 0:
        changes["run_at"] = task.run_at  # back to its old place
    return _waiting(task, now, outcome.delay, **changes)


def _taken_back(task: StoredTask, now: datetime) -> StoredTask:
    if isinstance(task, Salvaged):
        return _ended(task, TaskState.FAILED, now)
    task = _changed(task, attempt_log=with_lost_line(task, now))
    if task.cancel_requested:
        return _ended(task, TaskState.CANCELLED, now)
    if task.attempt <= task.max_retries:
        return _waiting(task, now, 0, run_at=task.run_at)
    message = f"worker {task.worker} died or lost its lease in attempt {task.attempt}, the last one"
    return _ended(task, TaskState.FAILED, now, error=TaskError(type="WorkerLost", message=message))


def _is_held(task: StoredTask | None, lease: Lease | Outcome) -> bool:
    return task is not None and task.state is TaskState.RUNNING and task.delivery == lease.delivery


def _save(tx: Transaction, tasks: Sequence[StoredTask]) -> None:
    """Save tasks that were not final before, and count in their flows those that are now."""
    tx.save(tasks)
    members = [task for task in tasks if task.flow is not None and task.state.is_final]
    if members:
        count_ends(tx, members)


# The verbs


def enqueue(tx: Transaction, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
    if flow is not None or any(task.flow is not None for task in tasks):
        return _enqueue_into_flow(tx, tasks, flow)
    known = set(tx.load(task.id for task in tasks))
    holders = tx.holders({task.unique for task in tasks if task.unique is not None})
    new: list[StoredTask] = []
    answers = []
    for task in tasks:
        holder = None if task.unique is None else holders.get(task.unique)
        if task.id in known:
            answers.append(Enqueued(task.id, False))
        elif holder is not None:
            answers.append(Enqueued(holder, False))
        else:
            known.add(task.id)
            if task.unique is not None:
                holders[task.unique] = task.id
            new.append(stored_task(task, tx.now))
            answers.append(Enqueued(task.id, True))
    tx.insert(new)
    return answers


def claim(tx: Transaction, demand: Mapping[str, int], worker: str, lease: float, limit: int | None) -> list[StoredTask]:
    settle(tx, SETTLED)
    paused, claimed = tx.paused(), []
    left = sum(demand.values()) if limit is None else limit
    until = later(tx.now, lease)
    for queue, most in demand.items():
        if queue in paused:
            continue
        wanted = min(most, left)
        tx.promote(queue, max(PROMOTED, 2 * wanted))
        while wanted > 0 and (found := tx.ready(queue, wanted)):
            changed = [claimed_task(task, worker, tx.now, until) for task in found]
            _save(tx, changed)
            taken = [task for task in changed if task.state is TaskState.RUNNING]
            claimed += taken
            left, wanted = left - len(taken), wanted - len(taken)
    return claimed


PROMOTED = 1000
"""Scheduled tasks that one claim makes ready at most, unless it takes more itself."""


def claimed_task(task: StoredTask, worker: str, now: datetime, until: datetime) -> StoredTask:
    """Return a ready task as it is handed to a worker; one whose time is over as cancelled."""
    if isinstance(task, Salvaged):
        return _ended(task, TaskState.FAILED, now)
    if task.expires_at is not None and task.expires_at <= now:
        return _ended(task, TaskState.CANCELLED, now)
    return _changed(
        task,
        state=TaskState.RUNNING,
        attempt=task.attempt + 1,
        delivery=task.delivery + 1,
        worker=worker,
        started_at=now,
        lease_until=until,
        progress=None,
    )


def finish(tx: Transaction, outcomes: Sequence[Outcome]) -> list[bool]:
    tasks = tx.load(outcome.id for outcome in outcomes)
    answers = []
    changed: dict[str, StoredTask] = {}
    for outcome in outcomes:
        task = tasks.get(outcome.id)
        answers.append(_is_held(task, outcome))
        if task is not None and answers[-1]:
            tasks[outcome.id] = changed[outcome.id] = answered_task(task, outcome, tx.now)
    _save(tx, list(changed.values()))
    return answers


def heartbeat(
    tx: Transaction, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
) -> list[LeaseState]:
    tx.seen(worker, lease, about)
    tasks, until = tx.load(one.id for one in leases), later(tx.now, lease)
    states = []
    extended = {}
    for one in leases:
        task = tasks.get(one.id)
        if task is None or not _is_held(task, one):
            states.append(LeaseState.LOST)
            continue
        states.append(LeaseState.CANCEL_REQUESTED if task.cancel_requested else LeaseState.HELD)
        extended[one.id] = _changed(task, lease_until=until)
    tx.save(list(extended.values()))
    return states


def recover(tx: Transaction, limit: int) -> list[StoredTask]:
    lost = [_taken_back(task, tx.now) for task in tx.lapsed(limit)]
    _save(tx, lost)
    if limit > len(lost):
        _save(tx, [_ended(task, TaskState.CANCELLED, tx.now) for task in tx.expired(limit - len(lost))])
    settle(tx, SETTLED)
    return lost


def cancel(tx: Transaction, ids: Sequence[str]) -> list[bool]:
    def change(task: StoredTask) -> StoredTask | None:
        if task.state is TaskState.RUNNING:
            return _changed(task, cancel_requested=True)
        return None if task.state.is_final else _ended(task, TaskState.CANCELLED, tx.now)

    return _each(tx, ids, change)


def retry(tx: Transaction, ids: Sequence[str]) -> list[bool]:
    tasks = tx.load(ids)
    holders = tx.holders({task.unique for task in tasks.values() if task.unique is not None})
    flows = _opened(tx, [task for task in tasks.values() if task.flow is not None])

    def change(task: StoredTask) -> StoredTask | None:
        if task.state not in (TaskState.FAILED, TaskState.CANCELLED) or task.unique in holders:
            return None
        if isinstance(task, Salvaged):
            return None
        if task.flow is not None:
            step = flows.get(task.flow)
            return step.revived(task) if step is not None and step.can_retry(task) else None
        if task.unique is not None:
            holders[task.unique] = task.id
        return _anew(task, tx.now)

    answers = _each(tx, ids, change)
    for step in flows.values():
        step.close()
    return answers


def _anew(task: StoredTask, now: datetime) -> StoredTask:
    over = task.expires_at is not None and task.expires_at <= now
    expires_at = None if over else task.expires_at
    return _waiting(task, now, 0, attempt=0, finished_at=None, cancel_requested=False, expires_at=expires_at)


def run_now(tx: Transaction, ids: Sequence[str]) -> list[bool]:
    def change(task: StoredTask) -> StoredTask | None:
        is_later = task.state is TaskState.SCHEDULED and task.run_at > tx.now
        return _waiting(task, tx.now, 0) if is_later else None

    return _each(tx, ids, change)


def _each(tx: Transaction, ids: Sequence[str], change: Callable[[StoredTask], StoredTask | None]) -> list[bool]:
    """Change tasks one after the other, so that one that is named twice is changed by the second as the first left it.

    :param change: returns the new record, or None if the task stays as it is.
    """
    tasks = tx.load(ids)
    answers = []
    changed: dict[str, StoredTask] = {}
    for task_id in ids:
        new = change(tasks[task_id]) if task_id in tasks else None
        answers.append(new is not None)
        if new is not None:
            tasks[task_id] = changed[task_id] = new
    _save(tx, list(changed.values()))
    return answers


def delete(tx: Transaction, ids: Sequence[str]) -> list[bool]:
    tasks = tx.load(ids)
    answers = []
    removed = []
    for task_id in ids:
        task = tasks.pop(task_id, None)
        answers.append(task is not None and task.state is not TaskState.RUNNING)
        if task is not None and answers[-1]:
            removed.append(task)
    _remove(tx, removed)
    return answers


def _remove(tx: Transaction, tasks: Sequence[StoredTask]) -> None:
    """Remove tasks that are not running, and count those that were live as cancelled."""
    tx.remove([task.id for task in tasks])
    members = [task for task in tasks if task.flow is not None and not task.state.is_final]
    if members:
        count_ends(tx, [_ended(task, TaskState.CANCELLED, tx.now) for task in members])
    _doubt(tx, [task for task in tasks if isinstance(task, Salvaged)])


def purge(tx: Transaction, queue: str, states: Sequence[TaskState], limit: int) -> int:
    tasks = tx.in_states(queue, states, limit)
    _remove(tx, tasks)
    return len(tasks)


def prune(tx: Transaction, limit: int) -> int:
    tasks = tx.dropped(limit)
    tx.remove([task.id for task in tasks])
    removed = len(tasks)
    for flow_id in tx.due_flows(True, limit):
        if removed >= limit:
            break
        members = tx.members(flow_id, None, tuple(TaskState), limit - removed)
        tx.remove([task.id for task in members])
        removed += len(members)
        if removed < limit:
            tx.remove_flow(flow_id)
    return removed


def set_progress(tx: Transaction, updates: Mapping[Lease, Progress]) -> None:
    tasks = tx.load(lease.id for lease in updates)
    tx.save(
        [
            _changed(tasks[lease.id], progress=progress)
            for lease, progress in updates.items()
            if _is_held(tasks.get(lease.id), lease)
        ]
    )


def put_schedule(tx: Transaction, schedule: Schedule, expected: int | None) -> Schedule | None:
    revision = tx.revision(schedule.id) or 0
    if expected is not None and expected != revision and (expected != 0 or tx.schedule(schedule.id) is not None):
        return None
    new = evolve(schedule, revision=1 + (revision or tx.revision_floor()))
    tx.store_schedule(new)
    return new


def delete_schedule(tx: Transaction, schedule_id: str) -> bool:
    revision = tx.revision(schedule_id)
    if revision is None:
        return False
    # So that no revision is ever used again: one who read it before would take its successor for it.
    tx.raise_revision_floor(max(tx.revision_floor(), revision))
    tx.remove_schedule(schedule_id)
    return True


def fire(tx: Transaction, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
    if schedule.revision == 0 or put_schedule(tx, schedule, schedule.revision) is None:
        return None
    return enqueue(tx, tasks)


# Flows. What becomes of a task behind a gate is done a bounded number at a time, so that no step is long; what is left
# stands on the flow's agenda, which any claim, recover or settle works off.

SETTLED_AT_ONCE = 200
"""Tasks behind gates that are moved in the step that opens or breaks them, at most."""
SETTLED = 1000
"""Tasks that a claim or a recover moves for others at most."""
AUDIT_SECONDS = 300.0
"""After which a flow that has not ended is looked at again: whether it waits for what cannot come."""
_WAITING = (TaskState.BLOCKED, TaskState.READY, TaskState.SCHEDULED)
_MOVING = (TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING)
_RETRIED = (TaskState.FAILED, TaskState.CANCELLED)
_UPSTREAM = "UpstreamFailed"
_MISSED = "a task that it waits for is not in the store, or cannot be read"
_ABANDONED = "the flow was not built to its end: what built it died, or took longer than its hold"


def due_at(flow: StoredFlow) -> datetime | None:
    """Return when there is something to do about a flow: for :func:`settle`, or for :func:`prune` once it has ended."""
    if flow.finished_at is not None:
        return later(flow.finished_at, flow.result_ttl)
    return flow.created_at if flow.agenda or flow.cancelling else flow.hold_until or flow.audit_at


class _FlowStep:
    """One flow within one transaction: what was read of it, and what is to be saved."""

    def __init__(self, tx: Transaction, flow: StoredFlow) -> None:
        self.flow = flow
        self._tx = tx
        self._gates: dict[int, StoredGate] = {}
        self._changed: dict[int, StoredGate] = {}

    # Gates

    def read(self, numbers: Iterable[int]) -> None:
        """Read gates together that are going to be asked for."""
        wanted = [n for n in dict.fromkeys(numbers) if n not in self._gates]
        if wanted:
            self._gates.update(self._tx.gates(self.flow.id, wanted))

    def gate(self, n: int) -> StoredGate | None:
        self.read([n])
        return self._gates.get(n)

    def add(self, new: NewGate) -> None:
        gate = StoredGate(n=new.n, rank=new.rank, unmet=int(new.hold), holds=int(new.hold))
        self._gates[new.n] = self._changed[new.n] = gate
        self.flow.held += gate.holds

    def count(self, gate: StoredGate, step: int, failures: int = 0, error: str = "") -> None:
        """Count inputs of a gate that come (1) or go (-1), and failures with them; and see what becomes of it."""
        gate.unmet += step
        gate.failed += failures
        gate.error = gate.error or error
        self._changed[gate.n] = gate
        if gate.state is GateState.BROKEN and not gate.failed:
            gate.state, gate.error, gate.revives = GateState.SHUT, "", True
            self.flow.agenda[gate.n] = None
        self.look(gate)

    def look(self, gate: StoredGate) -> None:
        if gate.state is GateState.SHUT and (gate.failed or not gate.unmet):
            gate.state = GateState.BROKEN if gate.failed else GateState.OPEN
            self._changed[gate.n] = gate
            self.flow.agenda[gate.n] = None

    def _fed(self, task: StoredTask) -> list[tuple[StoredGate, bool]]:
        """Return the gates that count a task, and whether each needs its success. An open one has counted all."""
        self.read(feed.gate for feed in task.feeds)
        found = [(self._gates.get(feed.gate), feed.needs_success) for feed in task.feeds]
        return [(gate, needs) for gate, needs in found if gate is not None and gate.state is not GateState.OPEN]

    # Tasks

    def end(self, task: StoredTask) -> None:
        """Count the end of a task."""
        self.flow.live -= 1
        if isinstance(task, Salvaged):
            self.flow.doubtful = True  # the gates that it feeds may be among what cannot be read
        for gate, needs_success in self._fed(task):
            fails = needs_success and task.state is not TaskState.SUCCEEDED
            self.count(gate, -1, int(fails), _reason(task) if fails else "")

    def revived(self, task: StoredTask) -> StoredTask:
        """Return a task that had failed or was cancelled as it waits again."""
        self.flow.live += 1
        self.flow.finished_at = None
        for gate, needs_success in self._fed(task):
            self.count(gate, 1, -int(needs_success))
        own = None if task.behind is None else self.gate(task.behind)
        new = _anew(task, self._tx.now)
        if _is_upstream(task):
            new = _changed(new, error=None)
        if own is None or (own.state is GateState.OPEN and task.started_at is not None):
            return new
        if own.state is GateState.OPEN:
            return self._released(_changed(new, run_at=task.run_at))
        if own.state is GateState.BROKEN:
            self.flow.agenda[own.n] = None
        return _changed(new, state=TaskState.BLOCKED, run_at=task.run_at)

    def can_retry(self, task: StoredTask) -> bool:
        return not self.flow.cancelled and not _is_upstream(task)

    def _released(self, task: StoredTask) -> StoredTask:
        now = self._tx.now
        if isinstance(task, Salvaged) or (task.expires_at is not None and task.expires_at <= now):
            return _ended(task, TaskState.CANCELLED, now)
        run_at = task.run_at if task.opening_delay is None else later(now, task.opening_delay)
        return _changed(task, state=TaskState.SCHEDULED if run_at > now else TaskState.READY, run_at=run_at)

    # What follows

    def settle(self, limit: int) -> int:
        """Do what follows from gates that opened or broke, and from a cancellation; return how many tasks moved."""
        moved = 0
        while moved < limit and (self.flow.cancelling or self.flow.agenda):
            if self.flow.cancelling:
                step = self._cancel(limit - moved)
            else:
                step = self._work_off(next(iter(self.flow.agenda)), limit - moved)
            moved += step or 1  # a gate without tasks behind it takes its part of the step, too
        return moved

    def _cancel(self, limit: int) -> int:
        tx = self._tx
        waiting = tx.members(self.flow.id, None, _WAITING, limit)
        self._save_moved([_ended(task, TaskState.CANCELLED, tx.now) for task in waiting])
        if len(waiting) < limit:
            # Nothing waits any more: what runs now is all that can still run.
            running = tx.members(self.flow.id, None, (TaskState.RUNNING,), None)
            tx.save([_changed(task, cancel_requested=True) for task in running if not task.cancel_requested])
            self.flow.cancelling = False
        return len(waiting)

    def _save_moved(self, tasks: Sequence[StoredTask]) -> None:
        self._tx.save(tasks)
        self.read(feed.gate for task in tasks for feed in task.feeds)
        for task in tasks:
            if task.state.is_final:
                self.end(task)

    def _work_off(self, n: int, limit: int) -> int:
        tx, gate = self._tx, self.gate(n)
        blocked: list[StoredTask] = []
        dead: list[StoredTask] = []
        if gate is not None and gate.state is not GateState.SHUT:
            blocked = tx.members(self.flow.id, n, (TaskState.BLOCKED,), limit)
            if gate.state is GateState.OPEN:
                self._save_moved([self._released(task) for task in blocked])
            else:
                error = TaskError(type=_UPSTREAM, message=gate.error)
                self._save_moved([_ended(task, TaskState.CANCELLED, tx.now, error=error) for task in blocked])
        if gate is not None and gate.state is not GateState.BROKEN and gate.revives:
            ended = tx.members(self.flow.id, n, (TaskState.CANCELLED,), None)
            dead = [task for task in ended if _is_upstream(task)][: limit - len(blocked)]
            self._save_moved([self.revived(task) for task in dead])
        if len(blocked) + len(dead) < limit:
            self.flow.agenda.pop(n, None)
            if gate is not None and gate.revives:
                gate.revives = False
                self._changed[n] = gate
        return len(blocked) + len(dead)

    def _audit(self) -> None:
        """Break the gates that can never open, as a record was damaged: those of a flow in which nothing can run.

        Each end is counted in its step. So a task that waits while nothing is left that could end waits for one whose
        end was not counted: nobody could read of which flow it was, or which gates it feeds.
        """
        tx, flow = self._tx, self.flow
        flow.audit_at = later(tx.now, AUDIT_SECONDS)
        if flow.agenda or flow.cancelling or flow.held:
            return
        counts = tx.count_members(flow.id)
        if any(counts.get(state) for state in _MOVING):
            return
        flow.live = counts.get(TaskState.BLOCKED, 0)
        for n, stored in tx.gates(flow.id, None).items():
            gate = self._gates.setdefault(n, stored)
            if gate.state is GateState.SHUT:
                self.count(gate, 0, 1, _MISSED)

    def break_held(self) -> None:
        """Break the gates whose holds have run out."""
        for n, gate in self._tx.gates(self.flow.id, None).items():
            if gate.holds:
                self._gates[n] = gate
                self.release(gate, failures=1)

    def release(self, gate: StoredGate, failures: int = 0) -> None:
        holds, gate.holds = gate.holds, 0
        self.flow.held -= holds
        self.count(gate, -holds, failures, _ABANDONED if failures else "")

    def close(self, limit: int = SETTLED_AT_ONCE) -> int:
        """Do what follows, as far as the step reaches, and save everything; return how many tasks were moved."""
        flow = self.flow
        moved = self.settle(limit)
        if not flow.is_over and (flow.doubtful or flow.audit_at is None or flow.audit_at <= self._tx.now):
            self._audit()
            moved += self.settle(limit - moved)
        if not flow.held:
            flow.hold_until = None
        if flow.is_over:
            flow.agenda, flow.cancelling = {}, False
            flow.finished_at = flow.finished_at or self._tx.now
        self._tx.save_gates(flow.id, self._changed.values())
        self._tx.save_flow(flow)
        return moved


def _is_upstream(task: StoredTask) -> bool:
    """Return whether a task was ended as its gate broke. The gate of one that was ever started is open."""
    ended = task.state is TaskState.CANCELLED and task.started_at is None
    return ended and task.error is not None and task.error.type == _UPSTREAM


def _reason(task: StoredTask) -> str:
    """Return what became of a task without success, for those that needed it."""
    if _is_upstream(task) and task.error is not None:
        return task.error.message  # where it began says more than what came of it on the way
    what = f"task {task.id} ({task.name})"
    if task.state is TaskState.CANCELLED or task.error is None:
        return f"{what} was cancelled"
    return f"{what} failed: {task.error.type}: {task.error.message[:_LONGEST_REASON]}"


_LONGEST_REASON = 1000
"""Characters of an error that those who needed the task's success are told."""


def _opened(tx: Transaction, members: Sequence[StoredTask]) -> dict[str, _FlowStep]:
    ids = {task.flow for task in members if task.flow is not None}
    return {flow_id: _FlowStep(tx, flow) for flow_id, flow in tx.flows(sorted(ids)).items()} if ids else {}


def count_ends(tx: Transaction, members: Sequence[StoredTask]) -> None:
    """Count in their flows tasks that have just ended; all verbs that end tasks come here."""
    flows = _opened(tx, members)
    for flow_id, step in flows.items():
        mine = [task for task in members if task.flow == flow_id]
        step.read(feed.gate for task in mine for feed in task.feeds)
        for task in mine:
            step.end(task)
        step.close()


def _doubt(tx: Transaction, members: Sequence[StoredTask]) -> None:
    """Look whether flows still get what they wait for, now that tasks of them are gone whose ends may be uncounted."""
    for step in _opened(tx, members).values():
        step.flow.doubtful = True
        step.close()


def _enqueue_into_flow(tx: Transaction, tasks: Sequence[NewTask], new: NewFlow | None) -> list[Enqueued]:
    named = {task.flow for task in tasks if task.flow is not None} | ({new.id} if new is not None else set())
    if len(named) > 1:
        raise ValueError(f"one call adds to one flow, not to {len(named)}")
    (flow_id,) = named
    members = [task for task in tasks if task.flow is not None]
    if new is not None and len(members) < len(tasks):
        raise ValueError(f"one of the tasks is not of the flow {flow_id!r} with which it is enqueued")
    stored = tx.flows([flow_id]).get(flow_id)
    if stored is None:
        if new is None:
            raise ValueError(f"there is no flow {flow_id!r} in this store to which a task could be added")
        holder = None if new.unique is None else tx.flow_of_key(new.unique)
        if holder is not None:
            return [Enqueued(holder, False) for _ in tasks]
        stored = StoredFlow(id=new.id, unique=new.unique, created_at=tx.now, result_ttl=new.result_ttl)
        stored.audit_at = later(tx.now, AUDIT_SECONDS)
    others = iter(enqueue(tx, [task for task in tasks if task.flow is None]) if new is None else ())
    step = _FlowStep(tx, stored)
    known = set(tx.load(task.id for task in members))
    fresh = {task.id: task for task in reversed(members) if task.id not in known}
    fresh = dict(reversed(fresh.items()))
    gates = {gate.n: gate for gate in (() if new is None else new.gates)}
    step.read([*gates, *(n for task in fresh.values() for n in _gates_of(task))])
    fresh_gates = [gate for gate in gates.values() if step.gate(gate.n) is None]
    _check_members(step, fresh.values(), {gate.n: gate for gate in fresh_gates})
    if stored.cancelled and (fresh or fresh_gates):
        raise FlowClosed(f"flow {flow_id} was cancelled; nothing can be added to it")
    for gate in fresh_gates:
        step.add(gate)
    if new is not None and stored.held:
        stored.hold_until = later(tx.now, new.hold_ttl)
    tx.insert([_stored_member(step, task, tx.now) for task in fresh.values()])
    for gate in fresh_gates:
        added = step.gate(gate.n)
        assert added is not None
        step.look(added)
    if fresh:
        stored.finished_at = None
    step.close()
    created = set(fresh)
    answers = []
    for task in tasks:
        if task.flow is None:
            answers.append(next(others))
        else:
            answers.append(Enqueued(task.id, task.id in created))
            created.discard(task.id)
    return answers


def _gates_of(task: NewTask) -> list[int]:
    fed = [feed.gate for feed in task.feeds]
    return fed if task.behind is None else [task.behind, *fed]


def _check_members(step: _FlowStep, tasks: Iterable[NewTask], new: Mapping[int, NewGate]) -> None:
    """Refuse tasks that cannot be added to a flow.

    :param new: the gates that come with them.
    """
    for task in tasks:
        if task.unique is not None:
            raise ValueError(f"task {task.id} ({task.name}) of a flow has a unique key; only the flow can have one")
        found: dict[int, StoredGate | NewGate] = {}
        for n in _gates_of(task):
            gate = step.gate(n) or new.get(n)
            if gate is None:
                raise ValueError(f"flow {step.flow.id} has no gate {n}, which task {task.id} ({task.name}) names")
            found[n] = gate
        for feed in task.feeds:
            gate = found[feed.gate]
            if task.behind is not None and not found[task.behind].rank < gate.rank:
                raise ValueError(
                    f"task {task.id} ({task.name}) would stand behind gate {task.behind} and feed gate {feed.gate}, "
                    "which does not rank after it: a flow has no cycles"
                )
            if isinstance(gate, StoredGate) and gate.state is not GateState.SHUT:
                raise FlowClosed(
                    f"gate {gate.n} of flow {step.flow.id} is {gate.state}; task {task.id} ({task.name}) can no longer "
                    "be one of those that it waits for"
                )


def _stored_member(step: _FlowStep, new: NewTask, now: datetime) -> StoredTask:
    """Return a new task of a flow as it is stored, and count it in the gates that it feeds."""
    step.flow.live += 1
    for feed in new.feeds:
        fed = step.gate(feed.gate)
        assert fed is not None
        step.count(fed, 1)
    own = None if new.behind is None else step.gate(new.behind)
    if own is None or own.state is GateState.OPEN:
        return stored_task(new, now)
    # Its place is that of its enqueueing, so that those of older flows come first when they are released.
    delay = max(0.0, new.run_at.total_seconds()) if isinstance(new.run_at, timedelta) else None
    task = stored_task(new if delay is None else evolve(new, run_at=None), now)
    if own.state is GateState.BROKEN:
        step.flow.agenda[own.n] = None
    return _changed(task, state=TaskState.BLOCKED, opening_delay=delay)


def release_hold(tx: Transaction, flow_id: str, n: int) -> bool:
    flow = tx.flows([flow_id]).get(flow_id)
    if flow is None:
        return False
    step = _FlowStep(tx, flow)
    gate = step.gate(n)
    if gate is None or not gate.holds:
        return False
    step.release(gate)
    step.close()
    return True


def get_flows(tx: Transaction, ids: Sequence[str]) -> list[Flow | None]:
    stored = tx.flows(sorted(set(ids)))
    shown = {flow_id: _shown(tx, flow) for flow_id, flow in stored.items()}
    return [shown.get(flow_id) for flow_id in ids]


def _shown(tx: Transaction, flow: StoredFlow) -> Flow:
    gates = sorted(tx.gates(flow.id, None).values(), key=lambda gate: gate.n)
    return Flow(
        id=flow.id,
        unique=flow.unique,
        created_at=flow.created_at,
        finished_at=flow.finished_at,
        cancelled=flow.cancelled,
        hold_until=flow.hold_until,
        counts=dict.fromkeys(TaskState, 0) | dict(tx.count_members(flow.id)),
        gates=tuple(
            Gate(n=gate.n, rank=gate.rank, state=gate.state, unmet=gate.unmet, failed=gate.failed, error=gate.error)
            for gate in gates
        ),
    )


def cancel_flow(tx: Transaction, flow_id: str) -> bool:
    flow = tx.flows([flow_id]).get(flow_id)
    if flow is None or flow.cancelled or flow.is_over:
        return False
    flow.cancelled = flow.cancelling = flow.doubtful = True
    step = _FlowStep(tx, flow)
    if flow.held:
        step.break_held()
    step.close()
    return True


def retry_flow(tx: Transaction, flow_id: str) -> int:
    flow = tx.flows([flow_id]).get(flow_id)
    if flow is None:
        return 0
    flow.cancelled = flow.cancelling = False
    step = _FlowStep(tx, flow)
    ended = tx.members(flow_id, None, _RETRIED, None)
    tasks = [task for task in ended if not isinstance(task, Salvaged) and not _is_upstream(task)]
    step.read(feed.gate for task in tasks for feed in task.feeds)
    tx.save([step.revived(task) for task in tasks])
    step.close()
    return len(tasks)


def settle(tx: Transaction, limit: int) -> int:
    moved = 0
    while moved < limit and (due := tx.due_flows(False, 1)):
        flow = tx.flows(due).get(due[0])
        if flow is None:
            break
        step = _FlowStep(tx, flow)
        if flow.hold_until is not None and flow.hold_until <= tx.now:
            step.break_held()
        moved += step.close(limit - moved) or 1
    return moved
