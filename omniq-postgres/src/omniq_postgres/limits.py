"""Limits: stored, and kept by claims of queues that have any; :mod:`omniq.storage.limit_transitions` says how.

What is kept of limits is changed by one transaction at a time, under the lock of the namespace's limits. Statements
that end tasks, or give them back, do not wait for it: they note that slots are free, and the next to have the lock,
mostly a step of the same call, wakes what waits for them. Tasks that such a statement, or a transaction of the
caller's, makes ready are stored as due, and go into their lines with the next claim. A ready task in a line is in a
state of its own, so the statements that are about the others cost what they did, however many wait in lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg

from omniq.errors import CorruptRecord
from omniq.limit import Limit, LimitUsage, Scope
from omniq.storage import limit_transitions
from omniq.storage.corrupt_records import unreadable
from omniq.storage.flow_transitions import count_ends
from omniq.storage.limits import Line
from omniq.storage.records import load_limit
from omniq.storage.rows import load_lane, load_line
from omniq.storage.states import later
from omniq.task import StoredTask
from omniq_postgres.errors import Remedy, remedy_for
from omniq_postgres.flow_tx import TRIES, FlowTx, read_only, transaction
from omniq_postgres.operations import Context, Steps

__all__ = [
    "advance",
    "check",
    "claim",
    "delete_limit",
    "get_limit_usage",
    "get_limits",
    "lost_lines",
    "outlook",
    "prune",
    "put_limit",
]

PRUNED = 1000
"""Lines of a queue, and rates, that one prune looks at."""


def put_limit(limit: Limit, expected: int | None, context: Context) -> Steps[Limit | None]:
    """Store a limit; see :meth:`~omniq.storage.limits.LimitStorage.put_limit`."""
    return (yield from transaction(lambda tx: limit_transitions.put_limit(tx, limit, expected), context))


def get_limits(ids: Sequence[str] | None, context: Context) -> Steps[list[Limit]]:
    """Return limits; see :meth:`~omniq.storage.limits.LimitStorage.get_limits`."""
    return (yield from read_only(lambda tx: limit_transitions.get_limits(tx, ids), context))


def get_limit_usage(scopes: Sequence[Scope] | None, context: Context) -> Steps[list[LimitUsage]]:
    """Return what runs under limits; see :meth:`~omniq.storage.limits.LimitStorage.get_limit_usage`."""
    return (yield from read_only(lambda tx: limit_transitions.get_usage(tx, scopes), context))


def delete_limit(limit_id: str, context: Context) -> Steps[bool]:
    """Remove a limit; see :meth:`~omniq.storage.limits.LimitStorage.delete_limit`."""
    return (yield from transaction(lambda tx: limit_transitions.delete_limit(tx, limit_id), context))


def claim(queue: str, wanted: int, worker: str, lease: float, context: Context) -> Steps[list[StoredTask]]:
    """Claim tasks of a queue that has a limit or lines."""

    def work(tx: FlowTx) -> list[StoredTask]:
        def save(tasks: Sequence[StoredTask]) -> None:
            tx.save(tasks)
            limit_transitions.moved(tx, tasks)
            ended = [task for task in tasks if task.flow is not None and task.state.is_final]
            if ended:
                count_ends(tx, ended)

        tx.ahead = wanted
        tx.catch_up([queue])
        if wanted <= 0 or queue in tx.paused:
            return []
        return limit_transitions.claim_lines(tx, queue, wanted, worker, later(tx.now, lease), save)

    return (yield from transaction(work, context))


def advance(queues: Iterable[str], context: Context) -> Steps[None]:
    """Wake what waits for slots that are free by now, right after a statement has freed them.

    :param queues: of which tasks may be due as well.
    """
    wanted = sorted(set(queues))
    if context.joined or not wanted:
        return
    for _ in range(TRIES):
        try:
            yield from transaction(lambda tx: tx.catch_up(wanted), context)
        except psycopg.Error as error:
            # The statement has done its work, and the caller must be told so. The next claim does the rest.
            if remedy_for(error) is not Remedy.REPEAT:
                return
        else:
            return


def outlook(queues: Sequence[str], context: Context) -> Steps[tuple[bool, float | None]]:
    """Find out whether a claim of queues with limits or lines may give something, and in how many seconds one may."""

    def look(tx: FlowTx) -> tuple[bool, float | None]:
        tx.lock_limits()
        if tx.is_behind():
            return True, None
        paused = tx.paused_of(queues)
        lanes = tx.lanes([queue for queue in queues if queue not in paused])
        can_claim, moment = limit_transitions.outlook(tx, list(lanes), tx.prospects)
        return can_claim, None if moment is None else (moment - tx.now).total_seconds()

    return (yield from read_only(look, context))


def prune(context: Context) -> Steps[None]:
    """Forget what is kept of lines and rates that are at rest."""

    def work(tx: FlowTx) -> None:
        tx.lock_limits()
        tx.catch_up([])
        limit_transitions.prune_lines(tx, PRUNED)

    ((found,),) = yield context.query("limits.any")
    if found:
        yield from transaction(work, context)


def lost_lines(lines: Sequence[Line], context: Context) -> Steps[list[StoredTask]]:
    """Return the first tasks of lines that are lost; see :meth:`~omniq.storage.limits.LimitStorage.lost_lines`."""

    def look(tx: FlowTx) -> list[StoredTask]:
        tx.lock_limits()
        return limit_transitions.lost_lines(tx, lines)

    return (yield from transaction(look, context))


def check(context: Context) -> Steps[list[CorruptRecord]]:
    """Return what is wrong with limits and lines, see :meth:`~omniq.storage.Storage.check`."""
    loads: Mapping[str, Callable[[Any, str], object]] = {"limit": load_limit, "lane": load_lane, "line": load_line}
    return unreadable((yield context.query("limits.records")), lambda row: loads[row[0]](row[2], row[1]))
