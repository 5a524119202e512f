"""Enqueueing."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.flow import NewFlow
from omniq.storage import Enqueued, transitions
from omniq.storage.flow_transitions import enqueue_into_flow
from omniq.task import NewTask
from omniq_local.files.encoding import Record, new_record
from omniq_local.files.transaction import Transaction

__all__ = ["enqueue"]


def enqueue(tasks: Sequence[NewTask], transaction: Transaction, flow: NewFlow | None = None) -> list[Enqueued]:
    """See :meth:`~omniq.storage.Storage.enqueue`."""
    if flow is not None or any(task.flow is not None for task in tasks):
        return _enqueue_into_flow(tasks, flow, transaction)
    if any(task.debounce is not None for task in tasks):
        return transitions.enqueue(transaction.flows, tasks)
    # All are read before the first is stored: one that cannot be read leaves nothing behind.
    records = [new_record(task, transaction.now) for task in tasks]
    return [_add(record, transaction) for record in records]


def _enqueue_into_flow(tasks: Sequence[NewTask], flow: NewFlow | None, transaction: Transaction) -> list[Enqueued]:
    if flow is not None:
        return enqueue_into_flow(transaction.flows, tasks, flow)
    added = iter(enqueue_into_flow(transaction.flows, [task for task in tasks if task.flow is not None], None))
    others = iter(enqueue([task for task in tasks if task.flow is None], transaction))
    return [next(others if task.flow is None else added) for task in tasks]


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
