"""Claim: ready tasks into running ones, under a lease."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from omniq.errors import CorruptRecord
from omniq.task import Task, TaskError
from omniq_local.sqlite.rows import CANCELLED, FAILED, READY, RUNNING, SCHEDULED, dump_error, span, task_of
from omniq_local.sqlite.transaction import Row, Transaction

__all__ = ["Claim", "Claimed", "Picked", "claim", "end_corrupt", "end_expired", "read"]

_log = logging.getLogger("omniq.sqlite")

PROMOTED = 1000
"""So many tasks that are due are made ready in one claim, or twice as many as are asked for."""
EXPIRED = 1000
"""So many tasks that expired are ended in one step."""
EXPIRED_STEPS = 10

Picked = list[list[Any]]
"""Rows of the columns ``CLAIMED``."""


@frozen(kw_only=True)
class Claim:
    """What a worker asks for."""

    demand: Mapping[str, int]
    worker: str
    lease: float
    limit: int | None
    waiter: int | None
    """The token of a name on the table of waiters, to be taken off if something is found."""


@frozen
class Claimed:
    """What it got."""

    tasks: list[Task]
    unreadable: list[tuple[Row, str]]
    """Rows that were claimed but are no tasks, and why: to be ended."""


def claim(asked: Claim, tx: Transaction) -> Picked:
    """Claim tasks within a transaction; see :meth:`~omniq.storage.Storage.claim`.

    :return: their rows as they were before; :func:`read` makes tasks of them, once the lock on the file is free again.
    """
    tx.fold()
    obstacles = tx.one("claim.obstacles", tx.now)
    assert obstacles is not None
    paused = json.loads(obstacles[0])
    if obstacles[1]:
        _end_all_expired(tx)
    picked: Picked = []
    left = sum(asked.demand.values()) if asked.limit is None else asked.limit
    for queue, wanted in asked.demand.items():
        room = min(wanted, left)
        if room > 0 and queue not in paused:
            promoted = tx.run("claim.promote", queue, tx.now, max(PROMOTED, 2 * room))
            if promoted:
                tx.count(queue, SCHEDULED, -promoted)
                tx.count(queue, READY, promoted)
                tx.rows += promoted
            found = _pick(tx, queue, room)
            if found:
                tx.count(queue, READY, -len(found))
                tx.count(queue, RUNNING, len(found))
                left -= len(found)
                picked += found
    if picked:
        lease = span(asked.lease)
        seqs = json.dumps([row[0] for row in picked])
        tx.run("claim.take", tx.now + lease, lease, asked.worker, tx.now, seqs)
        tx.rows += len(picked)
        if asked.waiter is not None:
            tx.run("waiting.unregister", asked.waiter)
        for row in picked:
            row[5] = RUNNING
            row[8] += 1
            row[9] += 1
            row[10:13] = tx.now + lease, asked.worker, tx.now
            row[19] = None
            if row[20] is None:
                row[20] = _body(tx, row[0])
    return picked


def _pick(tx: Transaction, queue: str, limit: int) -> Picked:
    try:
        picked: Picked = tx.value("claim.pick", queue, tx.now, limit)
    except (sqlite3.OperationalError, ValueError) as error:
        # A row that is no text, or that no JSON can hold, spoils the statement for all: so each by itself.
        _log.warning("a task in queue %r cannot be read: %s", queue, error)
        return [_pick_one(tx, seq) for seq in tx.value("claim.pick_seqs", queue, tx.now, limit)]
    return picked


def _pick_one(tx: Transaction, seq: int) -> list[Any]:
    try:
        row: list[Any] = tx.value("claim.pick_one", seq)
    except (sqlite3.OperationalError, ValueError) as error:
        # Its id may be what cannot be read; the error takes the place of its options, which then say why.
        row = [seq, "", "", "", 0, 0, 0, 0, 0, 0, *[None] * 7, str(error), None, None, "", "", None]
    return row


def _body(tx: Transaction, seq: int) -> bytes | None:
    found = tx.one("claim.body", seq)
    return None if found is None else found[0]


def read(picked: Picked) -> Claimed:
    """Make tasks of claimed rows."""
    tasks: list[Task] = []
    unreadable: list[tuple[Row, str]] = []
    for row in picked:
        try:
            tasks.append(task_of(row))
        except CorruptRecord as error:
            unreadable.append(((row[0], row[1], row[2], RUNNING), str(error)))
    return Claimed(tasks, unreadable)


def end_corrupt(rows: list[tuple[Row, str]], tx: Transaction) -> None:
    """End tasks that cannot be read, with all that is stored of them kept."""
    tx.fold()
    for row, message in rows:
        _log.error("%s; it ends as failed, with its bytes kept", message)
    tx.conclude(
        (row, FAILED, None, dump_error(TaskError(type="CorruptRecord", message=message))) for row, message in rows
    )


def end_expired(limit: int, tx: Transaction) -> int:
    """End tasks whose ``expires_at`` has come before they began.

    :param limit: how many at most.
    :return: how many.
    """
    rows = [(row[0], row[1], row[2], row[3]) for row in tx.value("claim.expired", tx.now, limit)]
    tx.conclude((row, CANCELLED, None, None) for row in rows)
    return len(rows)


def _end_all_expired(tx: Transaction) -> None:
    # Bounded, so that no claim is long; those that are left are passed over.
    for _ in range(EXPIRED_STEPS):
        if end_expired(EXPIRED, tx) < EXPIRED:
            return

