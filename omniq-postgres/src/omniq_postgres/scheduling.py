"""Schedules: stored, and fired by one of any number who try."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.task import NewTask, When
from omniq_postgres import wire
from omniq_postgres.enqueueing import enqueue
from omniq_postgres.jobs import Context, Rows, Steps

__all__ = ["delete_schedule", "due_schedules", "fire", "get_schedules", "put_schedule"]

_log = logging.getLogger("omniq.postgres")

T = TypeVar("T")
R = TypeVar("R")


def put_schedule(schedule: Schedule, expected: int | None, context: Context) -> Steps[Schedule | None]:
    """Store a schedule; see :meth:`~omniq.storage.Storage.put_schedule`."""
    given = _parameters(schedule)
    if expected is None:
        rows = yield context.query("schedules.put", *given)
    elif expected == 0:
        rows = yield context.query("schedules.add", *given)
    else:
        rows = yield context.query("schedules.replace", *given, wire.bigint(expected))
    return _stored(schedule, rows, context)


def fire(schedule: Schedule, tasks: Sequence[NewTask], context: Context) -> Steps[bool]:
    """Fire a schedule, in one transaction; see :meth:`~omniq.storage.Storage.fire`."""
    rows = yield context.query("schedules.replace", *_parameters(schedule), wire.bigint(schedule.revision))
    if _stored(schedule, rows, context) is None:
        return False
    yield from enqueue(tasks, context)
    return True


def delete_schedule(schedule_id: str, context: Context) -> Steps[bool]:
    """Remove a schedule; see :meth:`~omniq.storage.Storage.delete_schedule`."""
    return bool((yield context.query("schedules.delete", wire.text(schedule_id))))


def get_schedules(ids: Sequence[str] | None, context: Context) -> Steps[list[Schedule]]:
    """Give schedules; see :meth:`~omniq.storage.Storage.get_schedules`."""
    if ids is None:
        return _readable((yield context.query("schedules.all")))
    rows = yield context.query("schedules.get", wire.texts(list(ids)))
    found = {row[0]: row for row in rows}
    return [_schedule(found[schedule_id]) for schedule_id in ids if schedule_id in found]


def due_schedules(limit: int, context: Context) -> Steps[list[Schedule]]:
    """Give schedules that are due; see :meth:`~omniq.storage.Storage.due_schedules`."""
    return _readable((yield context.query("schedules.due", wire.integer(limit))))


def _parameters(schedule: Schedule) -> list[Any]:
    return [
        wire.text(schedule.id),
        None if schedule.next_run is None else wire.timestamp(schedule.next_run),
        wire.boolean(schedule.paused),
        wire.text(_dump(schedule)),
    ]


def _stored(schedule: Schedule, rows: Rows, context: Context) -> Schedule | None:
    if not rows:
        return None
    ((revision, seconds),) = rows
    if seconds is not None and not schedule.paused:
        # No queue is called so: it wakes whoever looks after schedules.
        context.news.ready("", seconds)
    return evolve(schedule, revision=revision)


def _readable(rows: Iterable[Sequence[Any]]) -> list[Schedule]:
    """Make schedules of rows; one that cannot be read must not keep the others from firing."""
    schedules = []
    for row in rows:
        try:
            schedules.append(_schedule(row))
        except CorruptRecord as error:
            _log.error("%s", error)
    return schedules


def _optional(convert: Callable[[T], R], value: T | None) -> R | None:
    return None if value is None else convert(value)


# How a schedule stands in its row: what no statement asks for as one JSON text.


def _dump(schedule: Schedule) -> str:
    task = schedule.task
    return json.dumps(
        {
            "trigger": schedule.trigger,
            "misfire": schedule.misfire,
            "overlap": schedule.overlap,
            "jitter": schedule.jitter,
            "start": _optional(datetime.isoformat, schedule.start),
            "end": _optional(datetime.isoformat, schedule.end),
            "declared": schedule.declared,
            "last_run": _optional(datetime.isoformat, schedule.last_run),
            "last_task": schedule.last_task,
            "task": {
                "id": task.id,
                "queue": task.queue,
                "name": task.name,
                "payload": base64.b64encode(task.payload).decode(),
                "serializer": task.serializer,
                "priority": task.priority,
                "max_retries": task.max_retries,
                "retry": task.retry,
                "timeout": task.timeout,
                "is_async": task.is_async,
                "run_at": _dump_when(task.run_at),
                "expires": _dump_when(task.expires),
                "unique": task.unique,
                "tags": task.tags,
                "result_ttl": task.result_ttl,
                "signature": base64.b64encode(task.signature).decode(),
            },
        }
    )


def _dump_when(when: When | None) -> list[Any] | None:
    if when is None:
        return None
    if isinstance(when, timedelta):
        return ["in", when // timedelta(microseconds=1)]
    return ["at", when.isoformat()]


def _load_when(dumped: list[Any]) -> When:
    kind, value = dumped
    return timedelta(microseconds=value) if kind == "in" else datetime.fromisoformat(value)


def _schedule(row: Sequence[Any]) -> Schedule:
    schedule_id, revision, next_run, paused, body = row
    try:
        fields = json.loads(body)
        task = fields.pop("task")
        for name in ("payload", "signature"):
            task[name] = base64.b64decode(task[name])
        for name in ("run_at", "expires"):
            task[name] = _optional(_load_when, task[name])
        for name in ("start", "end", "last_run"):
            fields[name] = _optional(datetime.fromisoformat, fields[name])
        return Schedule(
            id=schedule_id,
            revision=revision,
            next_run=next_run,
            paused=paused,
            misfire=Misfire(fields.pop("misfire")),
            overlap=Overlap(fields.pop("overlap")),
            task=NewTask(**{**task, "tags": tuple(task["tags"])}),
            **fields,
        )
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CorruptRecord(
            f"schedule {schedule_id!r} cannot be read: {error}; delete it (omniq schedules delete) and store it anew"
        ) from error
