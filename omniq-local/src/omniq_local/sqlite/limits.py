"""Limits: the verbs of :mod:`omniq.storage.limit_transitions`, over primitives of a transaction.

Tasks with neither a key nor a named limit, in queues without limits, never come here. Of the others, whatever does not
concern limits (leases, the outcome itself) is done by the same statements as for all; what becomes ready or stops
running is then followed here. A queue that has limits or lines is claimed by the shared transition.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from omniq.errors import CorruptRecord
from omniq.flow import NewFlow
from omniq.limit import PLAIN
from omniq.storage import Enqueued, limit_transitions, primitives, transitions
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.limit_transitions import is_lined
from omniq.storage.times import optional_micros, optional_moment, to_micros
from omniq.task import NewTask, StoredTask, TaskState
from omniq_local.sqlite.encoding import READY, RUNNING, SCHEDULED
from omniq_local.sqlite.flows import FlowTransaction
from omniq_local.sqlite.statements import Statements
from omniq_local.sqlite.transaction import SOON, Transaction

__all__ = [
    "Left",
    "check_limits",
    "claim",
    "enqueue",
    "follow",
    "has_lane",
    "look",
    "moved",
    "outlook",
    "promote",
    "prospects",
    "prune",
    "run",
]

R = TypeVar("R")

_log = get_logger("omniq.sqlite")


class Left(NamedTuple):
    """A task that has stopped running, of a queue that may have limits or lines."""

    seq: int
    queue: str
    is_lined: bool
    is_released: bool = False
    """Whether it was given back unstarted."""


class ClaimTransaction(FlowTransaction, primitives.ClaimTransaction):
    """One transaction as a claim and the verbs of limits have it.

    :param tx: the transaction.
    """

    def paused(self) -> set[str]:
        return {queue for (queue,) in self._tx.all("limits.paused")}

    def promote(self, queue: str, limit: int) -> list[StoredTask]:
        due = self._tx.all("claim.due", queue, self._tx.now, limit)
        if not due:
            return []
        self._tx.run("claim.make_ready", json.dumps([seq for seq, _ in due]))
        self._tx.count(queue, SCHEDULED, -len(due))
        self._tx.count(queue, READY, len(due))
        self._tx.rows += len(due)
        return self.by_seqs([seq for seq, lined in due if lined])

    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        if line == PLAIN:
            return self._tasks("limits.ready_plain", queue, limit)
        return self._tasks("limits.ready", line, limit)

    def save(self, tasks: Sequence[StoredTask]) -> None:
        started: list[StoredTask] = []
        others: list[StoredTask] = []
        for task in tasks:
            starts = task.state is TaskState.RUNNING and self._rows[task.id][3] != RUNNING
            (started if starts else others).append(task)
        if started:
            self._start(started)
        super().save(others)

    def _start(self, tasks: Sequence[StoredTask]) -> None:
        """Note a claim: all that it starts has the same worker and the same lease."""
        until = to_micros(tasks[0].lease_until or self.now)
        seqs = []
        for task in tasks:
            seq, task_id, queue, before, flow = self._rows[task.id]
            self._tx.went(task_id, queue, before, RUNNING)
            self._rows[task.id] = (seq, task_id, queue, RUNNING, flow)
            seqs.append(seq)
            self.starts(task.queue, task.key, task.limit)
        self._tx.run("claim.take", until, until - self._tx.now, tasks[0].worker, self._tx.now, json.dumps(seqs))
        self._tx.rows += len(seqs)

    def revision_floor(self) -> int:
        found = self._tx.one("schedules.revision_floor")
        return 0 if found is None else int(found[0])

    def raise_revision_floor(self, revision: int) -> None:
        self._tx.execute(self._tx.sql["limits.raise_revision_floor"], {"revision": revision})

    def work(self, queue: str) -> tuple[bool, datetime | None]:
        """Return whether tasks without key and named limit are ready, or any due; and when the next will be."""
        given = {"queue": queue, "now": self._tx.now}
        there, at = self._tx.execute(self._tx.sql["limits.work"], given).fetchone()
        return bool(there), optional_moment(at)


# Tasks


def enqueue(tasks: Sequence[NewTask], flow: NewFlow | None, tx: Transaction) -> list[Enqueued]:
    """Store tasks of which some are of a flow, or have a key, a named limit or a debounce."""
    tx.fold()
    return transitions.enqueue(ClaimTransaction(tx), tasks, flow)


def has_lane(queue: str, tx: Transaction) -> bool:
    """Return whether a queue has limits or lines."""
    return tx.one("limits.has_lane", queue) is not None


def claim(queue: str, wanted: int, worker: str, lease: float, tx: Transaction) -> list[StoredTask]:
    """Claim tasks of a queue that has limits or lines."""
    steps = ClaimTransaction(tx)
    claimed = transitions.claim(steps, {queue: wanted}, worker, lease, None)
    _log_problems(steps)
    return claimed


def _log_problems(steps: ClaimTransaction) -> None:
    for problem in steps.problems:
        log_once(_log, problem)


def promote(queue: str, limit: int, tx: Transaction) -> bool:
    """Make tasks ready whose time has come, and return whether some have a key or a named limit."""
    steps = ClaimTransaction(tx)
    lined = steps.promote(queue, limit)
    limit_transitions.moved(steps, lined)
    return bool(lined)


def moved(seqs: Sequence[int], tx: Transaction) -> None:
    """Follow tasks with a key or a named limit that were changed."""
    if seqs:
        steps = ClaimTransaction(tx)
        limit_transitions.moved(steps, steps.by_seqs(seqs))


def follow(left: Sequence[Left], tx: Transaction) -> None:
    """Let those go on that waited for what tasks held which have stopped running."""
    steps = ClaimTransaction(tx)
    lanes = steps.lanes({task.queue for task in left})
    limited = [task for task in left if task.is_lined or task.queue in lanes]
    if not limited:
        return
    found = {task.seq: task for task in limited}
    tasks = steps.by_seqs([task.seq for task in limited if task.is_lined or task.is_released])
    limit_transitions.moved(steps, [task for task in tasks if is_lined(task)])
    released = [task for task in tasks if found[steps.seq_of(task)].is_released]
    if released:
        limit_transitions.give_back(steps, released)
    for task in limited:
        if task.queue in lanes:  # which may have a slot for another by now
            tx.made_ready(task.queue)


def prune(limit: int, tx: Transaction) -> None:
    """Forget lines that are idle and rates that are at rest."""
    limit_transitions.prune_lines(ClaimTransaction(tx), limit)


# Waiting


def outlook(queues: Sequence[str], tx: Transaction) -> tuple[bool, int | None]:
    """Return whether a claim of queues that have limits or lines may return something, and when that may change."""
    steps = ClaimTransaction(tx)
    there, at = limit_transitions.outlook(steps, queues, steps.work)
    return there, optional_micros(at)


def prospects(tx: Transaction, queues: Sequence[str]) -> dict[str, bool]:
    """Return of those of some queues that have limits or lines whether a claim may return something, now or soon."""
    found = {}
    for queue in ClaimTransaction(tx).lanes(queues):
        there, at = outlook([queue], tx)
        found[queue] = there or (at is not None and at - tx.now < SOON)
    return found


# The verbs of flows and limits


def run(verb: Callable[..., R], values: Sequence[Any], tx: Transaction) -> R:
    """Run a transition that may write."""
    tx.fold()
    return verb(ClaimTransaction(tx), *values)


def look(verb: Callable[..., R], values: Sequence[Any], sql: Statements, now: int, connection: sqlite3.Connection) -> R:
    """Run a transition that only reads."""
    steps = ClaimTransaction(Transaction(connection, sql, now))
    found = verb(steps, *values)
    _log_problems(steps)
    return found


def check_limits(sql: Statements, now: int, connection: sqlite3.Connection) -> list[CorruptRecord]:
    """Return what is wrong with limits, see :meth:`~omniq.storage.Storage.check`."""
    steps = ClaimTransaction(Transaction(connection, sql, now))
    steps.lanes(None)
    steps.task_limits(None)
    return steps.problems
