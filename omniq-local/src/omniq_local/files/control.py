"""Control: cancel, retry, run now, delete, purge, pause, resume."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.storage.transitions import retry as retry_tasks
from omniq.task import TaskState
from omniq_local.files.queues import shelves_of
from omniq_local.files.records import ENDED, Record
from omniq_local.files.transaction import Transaction

__all__ = ["cancel", "delete", "pause", "purge_step", "resume", "retry", "run_now"]

STEP = 500
"""Tasks that are removed in one go."""


def cancel(ids: Sequence[str], transaction: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.cancel`."""
    return [_cancel(transaction.fetch(task_id), transaction) for task_id in ids]


def _cancel(record: Record | None, transaction: Transaction) -> bool:
    if record is None or record.state in ENDED:
        return False
    if record.state is TaskState.RUNNING:
        record.cancel_requested = True
        transaction.touch(record)
    else:
        transaction.end(record, TaskState.CANCELLED)
    return True


def retry(ids: Sequence[str], transaction: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.retry`."""
    records = {task_id: transaction.fetch(task_id) for task_id in ids}
    members = {task_id for task_id, record in records.items() if record is not None and record.order.flow is not None}
    revived = iter(_retry_members([task_id for task_id in ids if task_id in members], transaction))
    return [next(revived) if task_id in members else _retry(records[task_id], transaction) for task_id in ids]


def _retry_members(ids: Sequence[str], transaction: Transaction) -> list[bool]:
    return retry_tasks(transaction.flows, ids) if ids else []


def _retry(record: Record | None, transaction: Transaction) -> bool:
    if record is None or record.stand_in is not None or record.state not in (TaskState.FAILED, TaskState.CANCELLED):
        return False
    if not transaction.take_key(record):
        return False
    if record.expires_at is not None and record.expires_at <= transaction.now:
        record.expires_at = None
    record.attempt = 0
    record.finished_at = None
    record.cancel_requested = False
    transaction.give_back(record, transaction.now)
    return True


def run_now(ids: Sequence[str], transaction: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.run_now`."""
    return [_run_now(transaction.fetch(task_id), transaction) for task_id in ids]


def _run_now(record: Record | None, transaction: Transaction) -> bool:
    if record is None or record.state is not TaskState.SCHEDULED or record.run_at <= transaction.now:
        return False
    transaction.give_back(record, transaction.now)
    return True


def delete(ids: Sequence[str], transaction: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.delete`."""
    return [_delete(transaction.fetch(task_id), transaction) for task_id in ids]


def _delete(record: Record | None, transaction: Transaction) -> bool:
    if record is None or record.state is TaskState.RUNNING:
        return False
    if record.stand_in is not None:
        transaction.erase(record.order.id)
    else:
        transaction.remove(record)
    return True


def purge_step(queue_name: str, state: TaskState | None, last: int, transaction: Transaction) -> int:
    """Remove some tasks of a queue that are not running.

    :param last: only those enqueued up to this sequence number.
    :return: how many; 0: there are no more.
    """
    queue = transaction.queue(queue_name)
    removed = 0
    for each in TaskState if state is None else (state,):
        for shelf in shelves_of(each):
            if each is TaskState.RUNNING or not queue.counts[shelf]:
                continue
            for path in queue.state_folders[shelf].all():
                record = transaction.fetch_named(queue, shelf, path.rpartition("/")[2])
                if record is None or record.sequence > last:
                    continue
                transaction.remove(record)
                removed += 1
                if removed == STEP:
                    return removed
    return removed


def pause(queue_name: str, transaction: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.pause`."""
    queue = transaction.queue(queue_name)
    if queue.paused:
        return False
    queue.paused = True
    transaction.mark(queue)
    return True


def resume(queue_name: str, transaction: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.resume`."""
    queue = transaction.queue(queue_name)
    if not queue.paused:
        return False
    queue.paused = False
    transaction.mark(queue)
    transaction.woken.add(queue_name)
    return True
