"""Enqueue: new tasks into the store, all or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omniq.flow import NewFlow
from omniq.storage import Enqueued
from omniq.task import NewTask
from omniq_local.sqlite import limits
from omniq_local.sqlite.encoding import BODY_APART, SCHEDULED, columns_of
from omniq_local.sqlite.transaction import Transaction

__all__ = ["enqueue"]


def enqueue(tasks: Sequence[NewTask], tx: Transaction, flow: NewFlow | None = None) -> list[Enqueued]:
    """Store tasks within a transaction; see :meth:`~omniq.storage.Storage.enqueue`."""
    if flow is not None or any(
        task.flow is not None or task.key is not None or task.limit is not None or task.debounce is not None
        for task in tasks
    ):
        return limits.enqueue(tasks, flow, tx)
    rows = [columns_of(task, tx.now, tx.stamp) for task in tasks]
    before = tx.last_seq()
    stored = tx.batch("enqueue.insert", rows)
    if stored == len(rows):
        results = [Enqueued(task.id, True) for task in tasks]
        created = list(zip(tasks, rows, strict=True))
    else:
        results = _outcome(tx, tasks, before)
        created = [
            entry for entry, result in zip(zip(tasks, rows, strict=True), results, strict=True) if result.created
        ]
    # The rows were numbered in the order of the batch, without a gap.
    for seq, (task, _) in enumerate(created, before + 1):
        _add_what_is_apart(tx, task, seq)
    tx.fold()
    if tx.has_waiters:
        for _, row in created:
            _tell(tx, row)
    return results


def _tell(tx: Transaction, row: Sequence[Any]) -> None:
    queue, state, run_at = row[1], row[4], row[6]
    if state == SCHEDULED:
        tx.will_be_ready(queue, run_at)
    else:
        tx.made_ready(queue)


def _outcome(tx: Transaction, tasks: Sequence[NewTask], before: int) -> list[Enqueued]:
    """Find out which of a batch were stored, where not all were."""
    results = []
    new: set[str] = set()
    for task in tasks:
        found = tx.one("enqueue.seq_of", task.id)
        if found is not None:
            results.append(Enqueued(task.id, found[0] > before and task.id not in new))
            new.add(task.id)
        else:
            holder = tx.one("enqueue.holder", task.unique)
            assert holder is not None, "a task is turned away by its id or its unique key alone"
            results.append(Enqueued(holder[0], False))
    return results


def _add_what_is_apart(tx: Transaction, task: NewTask, seq: int) -> None:
    if task.tags:
        tx.batch("enqueue.add_tag", [(tag, seq) for tag in task.tags])
    if len(task.body) > BODY_APART:
        tx.run("enqueue.add_body", seq, task.body)
