"""From one state of a task to the next: pure functions of a record and the time, over which the verbs are written.

Nothing here reads or writes a store, or looks at a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from attrs import evolve

from omniq.flow import StoredFlow
from omniq.limit import Limited
from omniq.storage.attempts import with_lost_line
from omniq.storage.values import Lease, Salvaged
from omniq.task import (
    Cancelled,
    Failed,
    LimitedTask,
    NewTask,
    Outcome,
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
    "anew_task",
    "answered_task",
    "changed_task",
    "claimed_task",
    "due_at",
    "ended_task",
    "holds_key",
    "is_held",
    "later",
    "promoted_task",
    "stored_task",
    "taken_back_task",
    "waiting_task",
]

LATEST = datetime.max.replace(tzinfo=UTC)
"""The last point in time that a datetime can name; what would come after it comes then."""


@lru_cache(maxsize=64)  # the same few, such as a result_ttl, again and again
def _span(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def later(now: datetime, seconds: float | timedelta) -> datetime:
    """Return a point in time some seconds (or a timedelta) after another, or the last that there is."""
    try:
        return now + (seconds if isinstance(seconds, timedelta) else _span(seconds))
    except OverflowError:
        return LATEST


def _point(when: When, now: datetime) -> datetime:
    return later(now, when) if isinstance(when, timedelta) else when.astimezone(UTC)


def stored_task(new: NewTask, now: datetime, first_at: datetime | None = None) -> StoredTask:
    """Return a new task as it is stored, unless it stands behind a gate that is not open.

    :param first_at: of the task whose place a debounced one takes.
    """
    # Every other field of an order is one of the record, by the same name. With one that is none, and be it for a
    # moment, Python would give each record a table of names of its own, which takes more than all else that is stored.
    given = vars(new).copy()
    expires, key, limit, debounce = given.pop("expires"), given.pop("key"), given.pop("limit"), given.pop("debounce")
    run_at = now
    if debounce is not None:
        first_at = first_at or now
        latest = LATEST if debounce.max_wait is None else later(first_at, debounce.max_wait)
        run_at = max(now, min(later(now, debounce.wait), latest))
    elif given["run_at"] is not None:
        run_at = max(now, _point(given["run_at"], now))
    if key is not None or limit is not None or first_at is not None:
        given["limited"] = Limited(key, limit, first_at)
    values = _AT_FIRST | given
    values["created_at"], values["run_at"] = now, run_at
    if run_at > now:
        values["state"] = TaskState.SCHEDULED
    if expires is not None:
        values["expires_at"] = _point(expires, now)
    return record_of(LimitedTask if "limited" in values else StoredTask, values)


_AT_FIRST = vars(StoredTask(id="", queue="", name="", body=b"", created_at=LATEST, run_at=LATEST))


def changed_task(task: StoredTask, **changes: object) -> StoredTask:
    """Return a task with other values in some fields."""
    return record_of(StoredTask if task.limited is None else LimitedTask, vars(task) | changes)


def promoted_task(task: StoredTask) -> StoredTask:
    """Return a scheduled task whose time has come as a ready one."""
    return changed_task(task, state=TaskState.READY)


def ended_task(task: StoredTask, state: TaskState, now: datetime, **changes: object) -> StoredTask:
    """Return a task as it has ended; one that could not be read keeps what is stored of it."""
    if isinstance(task, Salvaged):
        return evolve(task, finished_at=now)
    return changed_task(task, state=state, finished_at=now, lease_until=None, **changes)


def waiting_task(task: StoredTask, now: datetime, delay: float, **changes: object) -> StoredTask:
    """Return a task as it waits for a claim, from so many seconds from now."""
    state = TaskState.SCHEDULED if delay > 0 else TaskState.READY
    return changed_task(task, **{"state": state, "lease_until": None, "run_at": later(now, delay), **changes})


def answered_task(task: StoredTask, outcome: Outcome, now: datetime) -> StoredTask:
    """Return a running task as it stands after an outcome that is accepted."""
    match outcome:
        case Succeeded():
            return ended_task(task, TaskState.SUCCEEDED, now, result_payload=outcome.result, error=None)
        case Failed():
            return ended_task(
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
            return ended_task(task, TaskState.CANCELLED, now, attempt_log=outcome.attempt_log or task.attempt_log)
        case _:
            raise TypeError(f"not an outcome that a store knows: {outcome!r}")
    if task.cancel_requested:
        return ended_task(task, TaskState.CANCELLED, now, **changes)
    if isinstance(outcome, Released) and outcome.delay <= 0:
        changes["run_at"] = task.run_at  # back to its old place
    return waiting_task(task, now, outcome.delay, **changes)


def taken_back_task(task: StoredTask, now: datetime) -> StoredTask:
    """Return a running task whose lease has run out as it is taken back: to be run again, or ended."""
    if isinstance(task, Salvaged):
        return ended_task(task, TaskState.FAILED, now)
    task = changed_task(task, attempt_log=with_lost_line(task, now))
    if task.cancel_requested:
        return ended_task(task, TaskState.CANCELLED, now)
    if task.attempt <= task.max_retries:
        return waiting_task(task, now, 0, run_at=task.run_at)
    message = f"worker {task.worker} died or lost its lease in attempt {task.attempt}, the last one"
    return ended_task(task, TaskState.FAILED, now, error=TaskError(type="WorkerLost", message=message))


def holds_key(task: StoredTask) -> bool:
    """Return whether a task has its unique key: as long as it has not ended; of a debounced one until it is started."""
    return task.unique is not None and not task.state.is_final and (task.first_at is None or task.delivery == 0)


def is_held(task: StoredTask | None, lease: Lease | Outcome) -> bool:
    """Return whether a task runs under the claim that a lease or an outcome names."""
    return task is not None and task.state is TaskState.RUNNING and task.delivery == lease.delivery


def claimed_task(task: StoredTask, worker: str, now: datetime, until: datetime) -> StoredTask:
    """Return a ready task as it is handed to a worker; one whose time is over as cancelled."""
    if isinstance(task, Salvaged):
        return ended_task(task, TaskState.FAILED, now)
    if task.expires_at is not None and task.expires_at <= now:
        return ended_task(task, TaskState.CANCELLED, now)
    return changed_task(
        task,
        state=TaskState.RUNNING,
        attempt=task.attempt + 1,
        delivery=task.delivery + 1,
        worker=worker,
        started_at=now,
        lease_until=until,
        progress=None,
    )


def anew_task(task: StoredTask, now: datetime) -> StoredTask:
    """Return a task that had ended as it is to be run again, from its first attempt."""
    over = task.expires_at is not None and task.expires_at <= now
    expires_at = None if over else task.expires_at
    return waiting_task(task, now, 0, attempt=0, finished_at=None, cancel_requested=False, expires_at=expires_at)


def due_at(flow: StoredFlow) -> datetime | None:
    """Return when there is something to do about a flow: for ``settle``, or for ``prune`` once it has ended."""
    if flow.finished_at is not None:
        return later(flow.finished_at, flow.result_ttl)
    return flow.created_at if flow.is_due else flow.hold_until or flow.audit_at
