"""Schedules: stored, and fired by one of any number who try."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.records import dump_schedule, load_schedule
from omniq.schedule import Schedule
from omniq.storage import Enqueued
from omniq.task import NewTask
from omniq_local.sqlite.enqueueing import enqueue
from omniq_local.sqlite.rows import microseconds, moment
from omniq_local.sqlite.statements import Statements
from omniq_local.sqlite.transaction import Transaction

__all__ = ["delete_schedule", "due_schedules", "fire", "get_schedules", "put_schedule"]

_log = get_logger("omniq.sqlite")

T = TypeVar("T")
R = TypeVar("R")


def put_schedule(schedule: Schedule, expected: int | None, tx: Transaction) -> Schedule | None:
    """See :meth:`~omniq.storage.Storage.put_schedule`."""
    revision = _revision(tx, schedule.id)
    if expected is not None and expected != revision:
        return None
    stored = evolve(schedule, revision=(revision or _revision_floor(tx)) + 1)
    _put(tx, stored)
    return stored


def fire(schedule: Schedule, tasks: Sequence[NewTask], tx: Transaction) -> list[Enqueued] | None:
    """See :meth:`~omniq.storage.Storage.fire`."""
    revision = _revision(tx, schedule.id)
    if revision == 0 or revision != schedule.revision:
        return None
    enqueued = enqueue(tasks, tx)
    _put(tx, evolve(schedule, revision=revision + 1))
    return enqueued


def delete_schedule(schedule_id: str, tx: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.delete_schedule`."""
    tx.run("schedules.raise_revision_floor", schedule_id)
    return tx.run("schedules.delete", schedule_id) == 1


def get_schedules(ids: Sequence[str] | None, sql: Statements, connection: sqlite3.Connection) -> list[Schedule]:
    """See :meth:`~omniq.storage.Storage.get_schedules`."""
    if ids is None:
        return _readable(connection.execute(sql["schedules.all"]).fetchall())
    rows = (connection.execute(sql["schedules.get"], (schedule_id,)).fetchone() for schedule_id in ids)
    return [_schedule(row) for row in rows if row is not None]


def due_schedules(limit: int, now: int, sql: Statements, connection: sqlite3.Connection) -> list[Schedule]:
    """See :meth:`~omniq.storage.Storage.due_schedules`."""
    return _readable(connection.execute(sql["schedules.due"], (now, limit)).fetchall())


def _readable(rows: Iterable[Sequence[Any]]) -> list[Schedule]:
    """Make schedules of rows; one that cannot be read must not keep the others from firing."""
    schedules = []
    for row in rows:
        try:
            schedules.append(_schedule(row))
        except CorruptRecord as error:
            _log.error("%s", error)
    return schedules


def _revision(tx: Transaction, schedule_id: str) -> int:
    row = tx.one("schedules.revision", schedule_id)
    return 0 if row is None else row[0]


def _revision_floor(tx: Transaction) -> int:
    row = tx.one("schedules.revision_floor")
    return 0 if row is None else row[0]


def _put(tx: Transaction, schedule: Schedule) -> None:
    next_run = _optional(_point, schedule.next_run)
    tx.run("schedules.put", schedule.id, schedule.revision, next_run, int(schedule.paused), dump_schedule(schedule))
    if not schedule.paused:
        tx.schedule_due(next_run)


def _optional(convert: Callable[[T], R], value: T | None) -> R | None:
    return None if value is None else convert(value)


def _point(at: datetime) -> int:
    return microseconds(at, 0)


def _schedule(row: Sequence[Any]) -> Schedule:
    schedule_id, revision, next_run, paused, body = row
    known = {"id": schedule_id, "revision": revision, "paused": bool(paused)}
    return load_schedule(body, next_run=_optional(moment, next_run), **known)
