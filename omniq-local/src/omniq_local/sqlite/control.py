"""Cancel, retry, run now, delete, purge, pause, resume: what people do to tasks and queues."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omniq.task import TaskState
from omniq_local.sqlite import flows, limits
from omniq_local.sqlite.claiming import promote
from omniq_local.sqlite.encoding import (
    BLOCKED,
    CANCELLED,
    FAILED,
    NUMBER_OF,
    READY,
    RUNNING,
    SCHEDULED,
    SUCCEEDED,
    is_id,
)
from omniq_local.sqlite.lines import ALL_WAITERS
from omniq_local.sqlite.transaction import Row, Transaction

__all__ = ["cancel", "delete", "last_seq", "pause", "purge_step", "resume", "retry", "run_now"]

PURGED = 2000
"""Tasks removed in one transaction, so that none holds up others for long."""


def _rows(tx: Transaction, ids: Sequence[str]) -> dict[str, Row]:
    found = tx.value("finish.held", json.dumps(ids))
    return {task_id: (seq, task_id, queue, state, flow) for task_id, seq, queue, state, _, _, flow, _ in found}


def _lined(tx: Transaction, ids: Sequence[str]) -> list[int]:
    """Return those of some tasks that have a key or a named limit."""
    return [found[1] for found in tx.value("finish.held", json.dumps(ids)) if found[7] is not None]


def _rows_without_id(tx: Transaction, ids: Sequence[str]) -> dict[str, Row]:
    """Return what is shown by its place, as its id is no text."""
    found = {}
    for place in ids:
        name, _, seq = place.partition(" ")
        if name == "row" and seq.isdecimal() and len(seq) < 19:
            row = tx.one("control.place", int(seq))
            if row is not None and not is_id(row[1]):
                found[place] = (row[0], place, row[2], row[3], row[4])
    return found


def cancel(ids: Sequence[str], tx: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.cancel`."""
    tx.fold()
    rows = _rows(tx, ids)
    live = {task_id: row for task_id, row in rows.items() if row[3] < SUCCEEDED or row[3] == BLOCKED}
    running = [row[0] for row in live.values() if row[3] == RUNNING]
    if running:
        tx.run("control.request_cancel", json.dumps(running))
    flows.conclude([(row, CANCELLED, None, None, None) for row in live.values() if row[3] != RUNNING], tx)
    # Named twice: by the second time it has ended, unless it runs.
    seen: set[str] = set()
    results = []
    for task_id in ids:
        row = live.get(task_id)
        results.append(row is not None and (row[3] == RUNNING or task_id not in seen))
        seen.add(task_id)
    return results


def retry(ids: Sequence[str], tx: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.retry`."""
    tx.fold()
    rows = _rows(tx, ids)
    members = {task_id for task_id, row in rows.items() if row[4] is not None}
    of_flows = iter(flows.retry([task_id for task_id in ids if task_id in members], tx) if members else ())
    others = iter(_made_ready("control.revive", [task_id for task_id in ids if task_id not in members], rows, tx))
    return [next(of_flows if task_id in members else others) for task_id in ids]


def run_now(ids: Sequence[str], tx: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.run_now`."""
    tx.fold()
    return _made_ready("control.run_now", ids, _rows(tx, ids), tx)


def _made_ready(statement: str, ids: Sequence[str], rows: Mapping[str, Row], tx: Transaction) -> list[bool]:
    results = []
    revived = []
    for task_id in ids:
        row = rows.get(task_id)
        done = row is not None and tx.run(statement, tx.stamp, tx.now, row[0]) == 1
        if done and row is not None:
            tx.count(row[2], row[3], -1)
            tx.count(row[2], READY, 1)
            tx.made_ready(row[2])
            revived.append(task_id)
        results.append(done)
    limits.moved(_lined(tx, revived), tx)
    return results


def delete(ids: Sequence[str], tx: Transaction) -> list[bool]:
    """See :meth:`~omniq.storage.Storage.delete`."""
    tx.fold()
    found = _rows(tx, ids) | _rows_without_id(tx, ids)
    rows = {task_id: row for task_id, row in found.items() if row[3] != RUNNING}
    _forget(rows.values(), tx)
    # Named twice: the second time it is gone.
    return [rows.pop(task_id, None) is not None for task_id in ids]


def _forget(rows: Collection[Row], tx: Transaction) -> None:
    members = [row for row in rows if row[4] is not None]
    tx.forget([row for row in rows if row[4] is None])
    if members:
        flows.delete([row[0] for row in members], tx)


def last_seq(tx: Transaction) -> int:
    """Return the number of the latest task."""
    return tx.last_seq()


def purge_step(queue: str, state: TaskState | None, last: int, tx: Transaction) -> int:
    """Remove some tasks of a queue that are not running; see :meth:`~omniq.storage.Storage.purge`.

    :param last: the latest task to remove, so that the end is reached though others be enqueued meanwhile.
    :return: how many; 0: there are no more.
    """
    tx.fold()
    # What is due is ready, though its record does not say so yet.
    promote(tx, queue, PURGED, lined=True)
    rows: list[Row] = []
    for number in range(SCHEDULED, BLOCKED + 1) if state is None else [NUMBER_OF[state]]:
        left = PURGED - len(rows)
        if left > 0 and number != RUNNING:
            rows += [tuple(row) for row in _tombstones(tx, queue, number, last, left)]
    _forget(rows, tx)
    return len(rows)


def _tombstones(tx: Transaction, queue: str, state: int, last: int, limit: int) -> list[Any]:
    found: list[Any] = []
    if state == SCHEDULED:
        found = tx.value("control.doomed_scheduled", queue, last, limit)
    elif state == READY:
        found = tx.value("control.doomed_ready", queue, last, limit)
        found += tx.value("control.doomed_lined", queue, last, limit - len(found))
    elif state == BLOCKED:
        found = tx.value("control.doomed_blocked", queue, last, limit)
    elif state in (SUCCEEDED, FAILED, CANCELLED):
        found = tx.value("control.doomed_ended", queue, state, last, limit)
    return found


def pause(queue: str, tx: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.pause`."""
    return tx.run("control.pause", queue) == 1


def resume(queue: str, tx: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.resume`."""
    if tx.run("control.resume", queue) == 0:
        return False
    tx.made_ready(queue, ALL_WAITERS)
    return True
