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
from typing import Protocol

from attrs import evolve

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

__all__ = ["LATEST", "Transaction", "answered_task", "claimed_task", "later", "promoted_task", "stored_task"]

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


def later(now: datetime, seconds: float | timedelta) -> datetime:
    """Return a point in time some seconds (or a timedelta) after another, or the last that there is."""
    try:
        return now + (seconds if isinstance(seconds, timedelta) else timedelta(seconds=seconds))
    except OverflowError:
        return LATEST


# From one state to another


def _point(when: When, now: datetime) -> datetime:
    return later(now, when) if isinstance(when, timedelta) else when.astimezone(UTC)


def stored_task(new: NewTask, now: datetime) -> StoredTask:
    """Return a new task as it is stored."""
    run_at = now if new.run_at is None else max(now, _point(new.run_at, now))
    # Every other field of an order is one of the record, by the same name.
    values = _AT_FIRST | vars(new)
    expires = values.pop("expires")
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


# The verbs


def enqueue(tx: Transaction, tasks: Sequence[NewTask]) -> list[Enqueued]:
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
            tx.save(changed)
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
    tx.save(list(changed.values()))
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
    tx.save(lost)
    if limit > len(lost):
        tx.save([_ended(task, TaskState.CANCELLED, tx.now) for task in tx.expired(limit - len(lost))])
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

    def change(task: StoredTask) -> StoredTask | None:
        if task.state not in (TaskState.FAILED, TaskState.CANCELLED) or task.unique in holders:
            return None
        if isinstance(task, Salvaged):
            return None
        if task.unique is not None:
            holders[task.unique] = task.id
        over = task.expires_at is not None and task.expires_at <= tx.now
        return _waiting(
            task,
            tx.now,
            0,
            attempt=0,
            finished_at=None,
            cancel_requested=False,
            expires_at=None if over else task.expires_at,
        )

    return _each(tx, ids, change)


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
    tx.save(list(changed.values()))
    return answers


def delete(tx: Transaction, ids: Sequence[str]) -> list[bool]:
    tasks = tx.load(ids)
    answers = []
    removed = []
    for task_id in ids:
        task = tasks.pop(task_id, None)
        answers.append(task is not None and task.state is not TaskState.RUNNING)
        if answers[-1]:
            removed.append(task_id)
    tx.remove(removed)
    return answers


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
