"""How deliveries end, and how they are held until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omniq.storage import Lease, LeaseState
from omniq.storage.attempts import appended, lost_line
from omniq.task import Cancelled, Failed, Outcome, Progress, Released, Retry, Succeeded, TaskError, TaskState
from omniq_local.files.encoding import dump_json
from omniq_local.files.names import about_path, worker_path
from omniq_local.files.records import Record
from omniq_local.files.times import after, show_time
from omniq_local.files.transaction import Transaction

__all__ = ["finish", "forget_worker", "heartbeat", "recover", "set_progress"]


def _held(task_id: str, delivery: int, transaction: Transaction) -> Record | None:
    record = transaction.fetch(task_id)
    if record is None or record.state is not TaskState.RUNNING or record.delivery != delivery:
        return None
    return record


def finish(outcomes: Sequence[Outcome], transaction: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.finish`."""
    return [_finish(outcome, transaction) for outcome in outcomes]


def _finish(outcome: Outcome, transaction: Transaction) -> bool:
    record = _held(outcome.id, outcome.delivery, transaction)
    if record is None:
        return False
    if isinstance(outcome, Failed | Retry | Cancelled):
        record.attempt_log = outcome.attempt_log or record.attempt_log
    match outcome:
        case Succeeded():
            record.error = None
            record.result = outcome.result
            transaction.end(record, TaskState.SUCCEEDED)
        case Failed():
            transaction.end(record, TaskState.FAILED, outcome.error)
        case Cancelled():
            transaction.end(record, TaskState.CANCELLED)
        case Retry():
            record.error = outcome.error
            _give_back(record, after(transaction.now, outcome.delay), transaction)
        case Released():
            transaction.released.append(record)
            record.attempt -= 1
            record.error = outcome.error or record.error
            _give_back(record, after(transaction.now, outcome.delay) if outcome.delay else record.run_at, transaction)
        case _:
            raise TypeError(f"not an outcome that a store knows: {outcome!r}")
    return True


def _give_back(record: Record, run_at: int, transaction: Transaction) -> None:
    if record.cancel_requested:
        transaction.end(record, TaskState.CANCELLED)
    else:
        transaction.give_back(record, run_at)


def heartbeat(
    worker: str, leases: Sequence[Lease], lease: float, about: str | None, transaction: Transaction
) -> list[LeaseState]:
    """See :meth:`~omniq.storage.Storage.heartbeat`."""
    until = after(transaction.now, lease)
    if lease > 0:
        alive = {"worker": worker, "seen_at": show_time(transaction.now), "until": show_time(until)}
        _replace(worker_path(worker), dump_json(alive), transaction)
        if about is not None:
            _replace(about_path(worker), about.encode(), transaction)
    else:
        forget_worker(worker, transaction)
    return [_extend(held, until, transaction) for held in leases]


def _replace(path: str, content: bytes, transaction: Transaction) -> None:
    transaction.writes.append(("write", path, content, transaction.content(path)))


def forget_worker(worker: str, transaction: Transaction) -> None:
    """Remove the files of a worker."""
    for path in (worker_path(worker), about_path(worker)):
        if transaction.content(path) is not None:
            transaction.writes.append(("remove", path))


def _extend(lease: Lease, until: int, transaction: Transaction) -> LeaseState:
    record = _held(lease.id, lease.delivery, transaction)
    if record is None:
        return LeaseState.LOST
    record.lease_until = until
    transaction.touch(record)
    return LeaseState.CANCEL_REQUESTED if record.cancel_requested else LeaseState.HELD


def set_progress(updates: Mapping[Lease, Progress], transaction: Transaction) -> None:
    """See :meth:`~omniq.storage.Storage.set_progress`."""
    for lease, progress in updates.items():
        record = _held(lease.id, lease.delivery, transaction)
        if record is not None:
            record.progress = progress
            transaction.touch(record)


def recover(record: Record, transaction: Transaction) -> None:
    """Take back a task whose lease has run out."""
    line = lost_line(record.attempt, record.worker, record.started_at, transaction.now)
    record.attempt_log = appended(record.attempt_log, line)
    if record.cancel_requested:
        transaction.end(record, TaskState.CANCELLED)
    elif record.attempt <= record.order.max_retries:
        transaction.give_back(record, record.run_at)
    else:
        message = f"worker {record.worker} died or lost its lease in attempt {record.attempt}, the last one"
        transaction.end(record, TaskState.FAILED, TaskError(type="WorkerLost", message=message))
