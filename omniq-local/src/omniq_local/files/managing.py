"""Control: cancel, retry, delete, purge, pause, resume."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.task import TaskState
from omniq_local.files.change import Change
from omniq_local.files.records import ENDED, Record

__all__ = ["cancel", "delete", "pause", "purge_step", "resume", "retry"]

STEP = 500
"""Tasks that are removed in one go."""


def cancel(ids: Sequence[str], change: Change) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.cancel`."""
    return [_cancel(change.fetch(task_id), change) for task_id in ids]


def _cancel(record: Record | None, change: Change) -> bool:
    if record is None or record.state in ENDED:
        return False
    if record.state is TaskState.RUNNING:
        record.cancel_requested = True
        change.touch(record)
    else:
        change.end(record, TaskState.CANCELLED)
    return True


def retry(ids: Sequence[str], change: Change) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.retry`."""
    return [_retry(change.fetch(task_id), change) for task_id in ids]


def _retry(record: Record | None, change: Change) -> bool:
    if record is None or record.stand_in is not None or record.state not in (TaskState.FAILED, TaskState.CANCELLED):
        return False
    if not change.take_key(record):
        return False
    if record.expires_at is not None and record.expires_at <= change.now:
        record.expires_at = None
    record.attempt = 0
    record.finished_at = None
    record.cancel_requested = False
    change.give_back(record, change.now)
    return True


def delete(ids: Sequence[str], change: Change) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.delete`."""
    return [_delete(change.fetch(task_id), change) for task_id in ids]


def _delete(record: Record | None, change: Change) -> bool:
    if record is None or record.state is TaskState.RUNNING:
        return False
    if record.stand_in is not None:
        change.erase(record.order.id)
    else:
        change.remove(record)
    return True


def purge_step(queue_name: str, state: TaskState | None, last: int, change: Change) -> int:
    """Remove some tasks of a queue that are not running.

    :param last: only those enqueued up to this sequence number.
    :return: how many; 0: there are no more.
    """
    queue = change.queue(queue_name)
    removed = 0
    for each in TaskState if state is None else (state,):
        if each is TaskState.RUNNING or not queue.counts[each.value]:
            continue
        for path in queue.shelves[each.value].all():
            record = change.fetch_named(queue, each.value, path.rpartition("/")[2])
            if record is None or record.sequence > last:
                continue
            change.remove(record)
            removed += 1
            if removed == STEP:
                return removed
    return removed


def pause(queue_name: str, change: Change) -> bool:
    """See :meth:`~omniq.storage.Storage.pause`."""
    queue = change.queue(queue_name)
    if queue.paused:
        return False
    queue.paused = True
    change.mark(queue)
    return True


def resume(queue_name: str, change: Change) -> bool:
    """See :meth:`~omniq.storage.Storage.resume`."""
    queue = change.queue(queue_name)
    if not queue.paused:
        return False
    queue.paused = False
    change.mark(queue)
    change.woken.add(queue_name)
    return True
