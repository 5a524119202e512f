"""Claim: ready tasks into running ones, under a lease."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt_error
from omniq.storage.escaping import get_logger
from omniq.storage.records import dump_error
from omniq.storage.times import from_micros, span
from omniq.task import StoredTask
from omniq_local.sqlite import flows, limits
from omniq_local.sqlite.encoding import CANCELLED, FAILED, READY, RUNNING, SCHEDULED, claimed_task
from omniq_local.sqlite.transaction import End, Row, Transaction

__all__ = ["Claim", "Claimed", "Picked", "claim", "end_corrupt", "end_expired", "promote", "read"]

_log = get_logger("omniq.sqlite")

PROMOTED = 1000
"""So many tasks that are due are made ready in one claim, or twice as many as are asked for."""
EXPIRED = 1000
"""So many tasks that expired are ended in one step."""
EXPIRED_STEPS = 10


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
class Picked:
    """What it gets, as rows of the columns ``CLAIMED`` as they were before, each with its queue."""

    now: int
    lease_until: int
    rows: list[tuple[str, list[Any]]]
    tasks: list[StoredTask]
    """And those of queues that have limits or lines."""


@frozen
class Claimed:
    """What it gets, as tasks."""

    tasks: list[StoredTask]
    unreadable: list[tuple[Row, CorruptRecord]]
    """Rows that were claimed but are no tasks, and why: to be ended."""


def claim(asked: Claim, tx: Transaction) -> Picked:
    """Claim tasks within a transaction; see :meth:`~omniq.storage.Storage.claim`.

    :return: rows; :func:`read` makes tasks of them, once the lock on the file is free again.
    """
    tx.fold()
    paused, expired, has_agenda, lined = tx.value("claim.obstacles", tx.now, tx.now)
    if has_agenda:
        flows.settle(flows.SETTLED, tx)
    if expired:
        _end_all_expired(tx)
    picked: list[tuple[str, list[Any]]] = []
    taken: list[StoredTask] = []
    left = sum(asked.demand.values()) if asked.limit is None else asked.limit
    for queue, wanted in asked.demand.items():
        if queue in paused:
            continue
        room = min(wanted, left)
        if (tx.has_lanes and limits.has_lane(queue, tx)) or promote(tx, queue, max(PROMOTED, 2 * room), lined=lined):
            found = limits.claim(queue, room, asked.worker, asked.lease, tx) if room > 0 else []
            left -= len(found)
            taken += found
            continue
        rows = _pick(tx, queue, room) if room > 0 else []
        if rows:
            tx.count(queue, READY, -len(rows))
            tx.count(queue, RUNNING, len(rows))
            left -= len(rows)
            picked += [(queue, row) for row in rows]
    lease = span(asked.lease)
    if picked:
        seqs = json.dumps([row[0] for _, row in picked])
        tx.run("claim.take", tx.now + lease, lease, asked.worker, tx.now, seqs)
        tx.rows += len(picked)
        for _, row in picked:
            if row[14] is None:
                row[14] = _body(tx, row[0])
    if asked.waiter is not None and (picked or taken):
        tx.run("waiting.unregister", asked.waiter)
    return Picked(tx.now, tx.now + lease, picked, taken)


def promote(tx: Transaction, queue: str, limit: int, *, lined: bool = False) -> bool:
    """Make tasks of a queue ready whose time has come.

    :param limit: how many at most, the earliest first.
    :param lined: whether some of them may have a key or a named limit.
    :return: whether some of them have.
    """
    if lined:
        return limits.promote(queue, limit, tx)
    promoted = tx.run("claim.promote", queue, tx.now, limit)
    if promoted:
        tx.count(queue, SCHEDULED, -promoted)
        tx.count(queue, READY, promoted)
        tx.rows += promoted
    return False


def _pick(tx: Transaction, queue: str, limit: int) -> list[list[Any]]:
    try:
        picked: list[list[Any]] = tx.exact_value("claim.pick", queue, tx.now, limit)
    except (sqlite3.OperationalError, ValueError) as error:
        # A row that is no text, or that no JSON can hold, spoils the statement for all: so each by itself.
        _log.debug("a task in queue %r cannot be read: %s", queue, error)
        return [_pick_one(tx, seq) for seq in tx.value("claim.pick_seqs", queue, tx.now, limit)]
    return picked


def _pick_one(tx: Transaction, seq: int) -> list[Any]:
    try:
        row: list[Any] = tx.exact_value("claim.pick_one", seq)
    except (sqlite3.OperationalError, ValueError) as error:
        # Its id may be what cannot be read; the error takes the place of its options, which then say why.
        row = [seq, "", "", 0, 0, 0, 0, 0, None, None, str(error), None, None, None, ""]
    return row


def _body(tx: Transaction, seq: int) -> bytes | None:
    found = tx.one("claim.body", seq)
    return None if found is None else found[0]


def read(picked: Picked, asked: Claim) -> Claimed:
    """Make tasks of claimed rows."""
    now, lease_until = from_micros(picked.now), from_micros(picked.lease_until)
    tasks: list[StoredTask] = []
    unreadable: list[tuple[Row, CorruptRecord]] = []
    for queue, row in picked.rows:
        try:
            tasks.append(claimed_task(row, queue, asked.worker, now, lease_until))
        except CorruptRecord as error:
            unreadable.append(((row[0], row[1], queue, RUNNING, None), error))
    if picked.tasks:
        places = {queue: place for place, queue in enumerate(asked.demand)}
        tasks = sorted([*tasks, *picked.tasks], key=lambda task: places.get(task.queue, 0))
    return Claimed(tasks, unreadable)


def end_corrupt(rows: list[tuple[Row, CorruptRecord]], tx: Transaction) -> None:
    """End tasks that cannot be read, with all that is stored of them kept."""
    tx.fold()
    for _, problem in rows:
        _log.error("%s; it ends as failed, with its bytes kept", problem)
    ended: list[End] = []
    for (seq, *known, _), problem in rows:
        (flow,) = tx.one("claim.flow_of", seq) or (None,)
        ended.append(((seq, *known, flow), FAILED, None, dump_error(corrupt_error(problem)), None))
    flows.conclude(ended, tx)


def end_expired(limit: int, tx: Transaction) -> int:
    """End tasks whose ``expires_at`` has come before they began.

    :param limit: how many at most.
    :return: how many.
    """
    rows = [tuple(row) for row in tx.value("claim.expired", tx.now, limit)]
    flows.conclude([(row, CANCELLED, None, None, None) for row in rows], tx)
    return len(rows)


def _end_all_expired(tx: Transaction) -> None:
    # Bounded, so that no claim is long; those that are left are passed over.
    for _ in range(EXPIRED_STEPS):
        if end_expired(EXPIRED, tx) < EXPIRED:
            return
