"""Schedules: stored, and fired by one of any number who try."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage import Enqueued, transitions
from omniq.storage.corrupt_records import read_schedule, readable, unreadable
from omniq.storage.escaping import get_logger
from omniq.storage.records import dump_schedule
from omniq.task import NewTask
from omniq_postgres import binary_params
from omniq_postgres.encoding import columns_of
from omniq_postgres.enqueueing import FEW, enqueue_rest, settle
from omniq_postgres.flow_tx import FlowTx, transaction
from omniq_postgres.flows import has_limits
from omniq_postgres.operations import Context, Rows, Steps

__all__ = ["check", "delete_schedule", "due_schedules", "fire", "get_schedules", "put_schedule"]

_log = get_logger("omniq.postgres")


def put_schedule(schedule: Schedule, expected: int | None, context: Context) -> Steps[Schedule | None]:
    """Store a schedule; see :meth:`~omniq.storage.Storage.put_schedule`."""
    given = _parameters(schedule)
    if expected is None:
        rows = yield context.query("schedules.put", *given)
    elif expected == 0:
        rows = yield context.query("schedules.add", *given)
        if not rows:
            rows = yield from _supplant(schedule.id, given, context)
    else:
        rows = yield context.query("schedules.replace", *given, binary_params.bigint(expected))
    return _stored(schedule, rows, context)


def _supplant(schedule_id: str, given: Sequence[Any], context: Context) -> Steps[Rows]:
    """Store a schedule in place of one that cannot be read, which counts as absent."""
    for row in (yield context.query("schedules.get", binary_params.texts([schedule_id]))):
        if not list(_readable([row])):
            return (yield context.query("schedules.replace", *given, binary_params.bigint(row[1])))
    return []


def fire(schedule: Schedule, tasks: Sequence[NewTask], context: Context) -> Steps[list[Enqueued] | None]:
    """Fire a schedule; see :meth:`~omniq.storage.Storage.fire`."""
    if any(has_limits(task) for task in tasks):
        return (yield from _fire_limited(schedule, tasks, context))
    first: dict[str, NewTask] = {}
    for task in tasks:
        first.setdefault(task.id, task)
    rows = yield context.query(
        "schedules.fire",
        *columns_of(list(first.values())),
        *_parameters(schedule),
        binary_params.bigint(schedule.revision),
        prepare=len(first) <= FEW,
    )
    if not rows:
        return None
    _tell_of(schedule, rows[0][0], context)
    answers: dict[str, Enqueued] = {}
    yield from settle(list(first.values()), [row[1:] for row in rows if row[1] is not None], answers, context)
    return (yield from enqueue_rest(tasks, first, answers, context))


def _fire_limited(schedule: Schedule, tasks: Sequence[NewTask], context: Context) -> Steps[list[Enqueued] | None]:
    def work(tx: FlowTx) -> list[Enqueued] | None:
        tx.store_first(tasks)
        rows = tx.ask("schedules.replace", *_parameters(schedule), binary_params.bigint(schedule.revision))
        if not rows:
            return None
        _tell_of(schedule, rows[0][1], context)
        return transitions.enqueue(tx, tasks)

    return (yield from transaction(work, context))


def delete_schedule(schedule_id: str, context: Context) -> Steps[bool]:
    """Remove a schedule; see :meth:`~omniq.storage.Storage.delete_schedule`."""
    return bool((yield context.query("schedules.delete", binary_params.text(schedule_id))))


def get_schedules(ids: Sequence[str] | None, context: Context) -> Steps[list[Schedule]]:
    """Return schedules; see :meth:`~omniq.storage.Storage.get_schedules`."""
    if ids is None:
        return list(_readable((yield context.query("schedules.all"))))
    rows = yield context.query("schedules.get", binary_params.texts(list(ids)))
    found = {row[0]: row for row in rows}
    return list(_readable(found[schedule_id] for schedule_id in ids if schedule_id in found))


def due_schedules(limit: int, context: Context) -> Steps[list[Schedule]]:
    """Return schedules that are due; see :meth:`~omniq.storage.Storage.due_schedules`."""
    asked = limit
    while True:
        rows = yield context.query("schedules.due", binary_params.integer(asked))
        schedules = list(_readable(rows))[:limit]
        if len(schedules) == limit or len(rows) < asked:
            return schedules
        # Those that cannot be read take no place.
        asked = 2 * asked + limit - len(schedules)


def _parameters(schedule: Schedule) -> list[Any]:
    return [
        binary_params.text(schedule.id),
        None if schedule.next_run is None else binary_params.timestamp(schedule.next_run),
        binary_params.boolean(schedule.paused),
        binary_params.text(dump_schedule(schedule)),
    ]


def _stored(schedule: Schedule, rows: Rows, context: Context) -> Schedule | None:
    if not rows:
        return None
    ((revision, seconds),) = rows
    _tell_of(schedule, seconds, context)
    return evolve(schedule, revision=revision)


def _tell_of(schedule: Schedule, seconds: float | None, context: Context) -> None:
    """Notify others of the next run of a schedule.

    :param seconds: in how many it is.
    """
    if seconds is not None and not schedule.paused:
        # No queue is called so: it wakes the process that fires schedules.
        context.news.ready("", seconds)


def check(context: Context) -> Steps[list[CorruptRecord]]:
    """Return what is wrong with schedules, see :meth:`~omniq.storage.Storage.check`."""
    return unreadable((yield context.query("schedules.all")), _schedule)


def _readable(rows: Iterable[Sequence[Any]]) -> Iterator[Schedule]:
    """Make schedules of rows; one that cannot be read must not keep the others from firing."""
    return readable(rows, _schedule, _log)


def _schedule(row: Sequence[Any]) -> Schedule:
    schedule_id, revision, next_run, paused, body = row
    return read_schedule(body, id=schedule_id, revision=revision, next_run=next_run, paused=paused)
