"""Recover and prune: what dead workers left, and results that are past their time."""

from __future__ import annotations

import json
from typing import Any

from omniq.storage.attempts import LONGEST_LOG
from omniq.storage.records import dump_error
from omniq.storage.validation import UNREADABLE
from omniq.task import StoredTask, TaskError
from omniq_local.sqlite import flows, limits
from omniq_local.sqlite.claiming import end_expired
from omniq_local.sqlite.encoding import CANCELLED, FAILED, READY, RUNNING, load_options
from omniq_local.sqlite.limits import Left
from omniq_local.sqlite.reading import make_task
from omniq_local.sqlite.transaction import End, Transaction

__all__ = ["prune", "recover"]


def recover(limit: int, tx: Transaction) -> list[StoredTask]:
    """Take back tasks within a transaction; see :meth:`~omniq.storage.Storage.recover`."""
    tx.fold()
    # Leases that end later than they can are of a time before the clock was put back. Their workers, if they live,
    # renew them within the time that they get now.
    tx.execute(tx.sql["maintenance.shorten"], {"now": tx.now})
    lapsed = tx.value("maintenance.lapsed", tx.now, limit)
    ended: list[End] = []
    back: list[tuple[Any, ...]] = []
    left = [Left(row[0], row[2], row[8] is not None) for row in lapsed if row[8] is not None or tx.has_lanes]
    for seq, task_id, queue, attempt, cancel, worker, options, flow, _ in lapsed:
        row = (seq, task_id, queue, RUNNING, flow)
        if cancel:
            ended.append((row, CANCELLED, None, None, None))
        elif attempt <= _max_retries(options):
            back.append((seq, READY, None, 0, 1, None, None))
            tx.count(queue, RUNNING, -1)
            tx.count(queue, READY, 1)
            tx.made_ready(queue)
        else:
            message = f"worker {worker} died or lost its lease in attempt {attempt}, the last one"
            ended.append((row, FAILED, None, dump_error(TaskError(type="WorkerLost", message=message)), None))
    if lapsed:
        tx.run("maintenance.log_lost", tx.now, LONGEST_LOG, json.dumps([seq for seq, *_ in lapsed]))
    if back:
        tx.batch("finish.give_back", back)
    if ended:
        flows.conclude(ended, tx)
    if left:
        limits.follow(left, tx)
    if len(lapsed) < limit:
        end_expired(limit - len(lapsed), tx)
    flows.settle(flows.SETTLED, tx)
    return [make_task(tx.one("reading.by_seq", seq) or ()) for seq, *_ in lapsed]


def _max_retries(options: str) -> int:
    try:
        return load_options(options).max_retries
    except UNREADABLE:
        # It cannot be claimed again anyway; that ends it, and says why.
        return 2**31


def prune(limit: int, tx: Transaction) -> int:
    """Remove what is over within a transaction; see :meth:`~omniq.storage.Storage.prune`."""
    tx.fold()
    rows = [tuple(row) for row in tx.value("maintenance.outdated", tx.now, limit)]
    tx.forget(rows)
    members = flows.prune(limit - len(rows), tx)
    limits.prune(limit, tx)
    tx.run("maintenance.dead_workers", tx.now)
    tx.run("maintenance.dead_waiters", tx.now)
    tx.flush_counts()
    tx.run("maintenance.empty_counters")
    return len(rows) + members
