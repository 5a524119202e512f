"""Schedules: stored, and fired by one of any number who try."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage import Enqueued
from omniq.storage.corrupt_records import corrupt, read_schedule, readable, unreadable
from omniq.storage.escaping import get_logger
from omniq.storage.records import dump_schedule
from omniq.storage.times import from_micros
from omniq.storage.validation import LARGEST_REVISION, UNREADABLE
from omniq.task import NewTask
from omniq_local.sqlite.encoding import microseconds
from omniq_local.sqlite.enqueueing import enqueue
from omniq_local.sqlite.statements import Statements
from omniq_local.sqlite.transaction import Transaction

__all__ = ["check_schedules", "delete_schedule", "due_schedules", "fire", "get_schedules", "put_schedule"]

_log = get_logger("omniq.sqlite")

T = TypeVar("T")
R = TypeVar("R")


def put_schedule(schedule: Schedule, expected: int | None, tx: Transaction) -> Schedule | None:
    """See :meth:`~omniq.storage.Storage.put_schedule`."""
    revision = _revision(tx, schedule.id)
    if expected is not None and expected != revision and (expected != 0 or _is_readable(tx, schedule.id)):
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
        return list(_readable(connection.execute(sql["schedules.all"])))
    rows = [connection.execute(sql["schedules.get"], (schedule_id,)).fetchone() for schedule_id in ids]
    return list(_readable(row for row in rows if row is not None))


def due_schedules(limit: int, now: int, sql: Statements, connection: sqlite3.Connection) -> list[Schedule]:
    """See :meth:`~omniq.storage.Storage.due_schedules`."""
    # Those that cannot be read take no place.
    return list(islice(_readable(connection.execute(sql["schedules.due"], (now,))), limit))


def check_schedules(sql: Statements, connection: sqlite3.Connection) -> list[CorruptRecord]:
    """Return what is wrong with schedules, see :meth:`~omniq.storage.Storage.check`."""
    return unreadable(connection.execute(sql["schedules.all"]), _schedule)


def _readable(rows: Iterable[Sequence[Any]]) -> Iterator[Schedule]:
    """Return the schedules of rows; one that cannot be read must not keep the others from firing."""
    return readable(rows, _schedule, _log)


def _is_readable(tx: Transaction, schedule_id: str) -> bool:
    row = tx.one("schedules.get", schedule_id)
    return row is not None and bool(list(_readable([row])))


def _revision(tx: Transaction, schedule_id: str) -> int:
    row = tx.one("schedules.revision", schedule_id)
    return row[0] if row is not None and 0 <= row[0] < LARGEST_REVISION else 0


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
    try:
        due = _optional(from_micros, next_run)
    except UNREADABLE as error:
        raise corrupt("schedule", schedule_id, error) from error
    return read_schedule(body, id=schedule_id, revision=revision, paused=bool(paused), next_run=due)
