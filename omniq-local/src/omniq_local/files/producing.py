"""Enqueueing."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.storage import Enqueued
from omniq.task import NewTask
from omniq_local.files.change import Change
from omniq_local.files.records import Record, new_record

__all__ = ["enqueue"]


def enqueue(tasks: Sequence[NewTask], change: Change) -> list[Enqueued]:
    """See :meth:`~omniq.storage.Storage.enqueue`."""
    # All are read before the first is stored: one that cannot be read leaves nothing behind.
    records = [new_record(task, change.now) for task in tasks]
    return [_add(record, change) for record in records]


def _add(record: Record, change: Change) -> Enqueued:
    order = record.order
    if change.fetch(order.id) is not None:
        return Enqueued(order.id, False)
    if order.unique is not None:
        holder = change.holder(order.unique)
        if holder is not None:
            return Enqueued(holder, False)
    change.add(record)
    return Enqueued(order.id, True)
