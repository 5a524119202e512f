"""Enqueueing."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.flow import NewFlow
from omniq.storage import Enqueued, transitions
from omniq.task import NewTask
from omniq_local.files.records import Record, new_record
from omniq_local.files.transaction import Transaction

__all__ = ["enqueue"]


def enqueue(tasks: Sequence[NewTask], transaction: Transaction, flow: NewFlow | None = None) -> list[Enqueued]:
    """See :meth:`~omniq.storage.Storage.enqueue`."""
    if flow is not None or any(task.flow is not None or task.debounce is not None for task in tasks):
        return transitions.enqueue(transaction.flows, tasks, flow)
    # All are read before the first is stored: one that cannot be read leaves nothing behind.
    records = [new_record(task, transaction.now) for task in tasks]
    return [_add(record, transaction) for record in records]


def _add(record: Record, transaction: Transaction) -> Enqueued:
    order = record.order
    if transaction.fetch(order.id) is not None:
        return Enqueued(order.id, False)
    if order.unique is not None:
        holder = transaction.holder(order.unique)
        if holder is not None:
            return Enqueued(holder, False)
    transaction.add(record)
    return Enqueued(order.id, True)
