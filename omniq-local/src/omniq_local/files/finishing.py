"""How deliveries end, and how they are held until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omniq.storage import Lease, LeaseState
from omniq.task import Cancelled, Failed, Outcome, Progress, Released, Retry, Succeeded, TaskError, TaskState
from omniq_local.files.change import Change
from omniq_local.files.names import about_path, worker_path
from omniq_local.files.records import Record, dump_json
from omniq_local.files.times import after, show_time

__all__ = ["finish", "forget_worker", "heartbeat", "recover", "set_progress"]


def _held(task_id: str, delivery: int, change: Change) -> Record | None:
    record = change.fetch(task_id)
    if record is None or record.state is not TaskState.RUNNING or record.delivery != delivery:
        return None
    return record


def finish(outcomes: Sequence[Outcome], change: Change) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.finish`."""
    return [_finish(outcome, change) for outcome in outcomes]


def _finish(outcome: Outcome, change: Change) -> bool:
    record = _held(outcome.id, outcome.delivery, change)
    if record is None:
        return False
    match outcome:
        case Succeeded():
            record.error = None
            record.result = outcome.result
            change.end(record, TaskState.SUCCEEDED)
        case Failed():
            change.end(record, TaskState.FAILED, outcome.error)
        case Cancelled():
            change.end(record, TaskState.CANCELLED)
        case Retry():
            record.error = outcome.error
            _give_back(record, after(change.now, outcome.delay), change)
        case Released():
            record.attempt -= 1
            record.error = outcome.error or record.error
            _give_back(record, after(change.now, outcome.delay) if outcome.delay else record.run_at, change)
        case _:
            raise TypeError(f"not an outcome that a store knows: {outcome!r}")
    return True


def _give_back(record: Record, run_at: int, change: Change) -> None:
    if record.cancel_requested:
        change.end(record, TaskState.CANCELLED)
    else:
        change.give_back(record, run_at)


def heartbeat(
    worker: str, leases: Sequence[Lease], lease: float, about: str | None, change: Change
) -> list[LeaseState]:
    """See :meth:`~omniq.storage.Storage.heartbeat`."""
    until = after(change.now, lease)
    if lease > 0:
        alive = {"worker": worker, "seen_at": show_time(change.now), "until": show_time(until)}
        _replace(worker_path(worker), dump_json(alive), change)
        if about is not None:
            _replace(about_path(worker), about.encode(), change)
    else:
        forget_worker(worker, change)
    return [_extend(held, until, change) for held in leases]


def _replace(path: str, content: bytes, change: Change) -> None:
    change.writes.append(("write", path, content, change.content(path)))


def forget_worker(worker: str, change: Change) -> None:
    """Remove the files of a worker."""
    for path in (worker_path(worker), about_path(worker)):
        if change.content(path) is not None:
            change.writes.append(("remove", path))


def _extend(lease: Lease, until: int, change: Change) -> LeaseState:
    record = _held(lease.id, lease.delivery, change)
    if record is None:
        return LeaseState.LOST
    record.lease_until = until
    change.touch(record)
    return LeaseState.CANCEL_REQUESTED if record.cancel_requested else LeaseState.HELD


def set_progress(updates: Mapping[Lease, Progress], change: Change) -> None:
    """See :meth:`~omniq.storage.Storage.set_progress`."""
    for lease, progress in updates.items():
        record = _held(lease.id, lease.delivery, change)
        if record is not None:
            record.progress = progress
            change.touch(record)


def recover(record: Record, change: Change) -> None:
    """Take back a task whose lease has run out."""
    if record.cancel_requested:
        change.end(record, TaskState.CANCELLED)
    elif record.attempt <= record.order.max_retries:
        change.give_back(record, record.run_at)
    else:
        message = f"worker {record.worker} died or lost its lease in attempt {record.attempt}, the last one"
        change.end(record, TaskState.FAILED, TaskError(type="WorkerLost", message=message))
