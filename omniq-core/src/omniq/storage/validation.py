"""What a record that was read from a store must be like.

Those who can write to a store can write anything. A backend checks what it decodes here, one record at a time, so
that a record that cannot be read harms nothing but itself::

    try:
        return check_task(StoredTask(id=row.id, ...))
    except UNREADABLE as error:
        raise corrupt("task", row.id, error, place=f"row {row.number}") from error

What takes its place is in :mod:`omniq.storage.corrupt_records`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from omniq.limit import Limited
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.storage.values import Salvaged, StoredWorker
from omniq.task import Feed, NewTask, Progress, StoredTask, TaskError, TaskState

__all__ = [
    "EARLIEST",
    "LARGEST_COUNT",
    "LARGEST_REVISION",
    "LONGEST_TEXT",
    "UNREADABLE",
    "check_adoptable",
    "check_schedule",
    "check_task",
    "check_text",
    "check_worker",
    "is_text",
    "quoted",
    "right_fields",
]

UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError, struct.error)
"""What comes of decoding values that are not what they should be."""
LARGEST_COUNT = 2**31 - 2**16
"""Of attempts and deliveries: a store that counts in 32 bits can still count on."""
LARGEST_REVISION = 2**62
"""Of a schedule: a store that counts in 64 bits can still count on."""
LONGEST_TEXT = 1_000_000
"""Characters of an id, a name, a queue, a key or a tag: more than any that the core lets through."""
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
"""The earliest time of a record; the latest is the last that a datetime can name."""

_LARGEST_INTEGER = 2**63


def check_task(task: StoredTask) -> StoredTask:
    """Return a task that was read from a store.

    :raises ValueError: if one of its fields has a wrong type or is out of range; names the field.
    """
    try:
        if _is_sound(task):
            return task
    except UNREADABLE:
        pass
    _check(task, _TASK_FIELDS)
    if task.state is TaskState.RUNNING and task.lease_until is None:
        raise ValueError("it is running and has no lease")
    return task


def _is_sound(task: StoredTask) -> bool:
    """Return True if each field is for certain as it must be: the short way, which each task of a claim goes.

    What does not show itself to be right within a few steps is False, or raises one of :data:`UNREADABLE`.
    """
    worker, unique, tags = task.worker, task.unique, task.tags
    # Anything can be in any of them, whatever their types say.
    state: Any = task.state
    cancelled: Any = task.cancel_requested
    texts = "".join(
        (task.id, task.queue, task.name, "" if worker is None else worker, "" if unique is None else unique)
    )
    started, ended, expires, lease = task.started_at, task.finished_at, task.expires_at, task.lease_until
    result, error, progress = task.result_payload, task.error, task.progress
    return (
        len(texts) <= LONGEST_TEXT
        and texts.isascii()
        and type(task.body) is bytes
        and type(state) is TaskState
        # To combine them raises a TypeError for anything but integers.
        and 0 <= (task.attempt | task.delivery) < _SMALL
        and -_SMALL <= (task.priority | 0) < _SMALL
        and 0 <= (task.max_retries | 0) < _SMALL
        and task.created_at >= EARLIEST
        and task.run_at >= EARLIEST
        and (started is None or started >= EARLIEST)
        and (ended is None or ended >= EARLIEST)
        and (expires is None or expires >= EARLIEST)
        and (state is not TaskState.RUNNING if lease is None else lease >= EARLIEST)
        and 0 <= task.result_ttl < _INFINITE
        and (tags == () or _are_texts(tags))
        and (error is None or _is_error(error))
        and (progress is None or _is_progress(progress))
        and type(cancelled) is bool
        and (result is None or type(result) is bytes)
        and type(task.attempt_log) is str
        and (task.flow is None or _is_placed(task))
        and (task.limited is None or _is_limited(task.limited))
    )


def _is_placed(task: StoredTask) -> bool:
    return all(is_right(getattr(task, name)) for name, is_right, _ in _PLACE_FIELDS)


def _is_limited(value: Any) -> bool:
    return (
        isinstance(value, Limited)
        and all(one is None or is_text(one) for one in (value.key, value.limit))
        and (value.first_at is None or _is_time(value.first_at))
    )


_SMALL = 2**30
"""Numbers below it are right in each place."""
_INFINITE = math.inf


def check_adoptable(tasks: Iterable[StoredTask]) -> None:
    """Refuse tasks that :meth:`~omniq.storage.Storage.adopt` cannot store as they stand.

    :raises ValueError: if one of them is running, was listed bare, or could not be read; names it.
    """
    for task in tasks:
        if isinstance(task, Salvaged):
            problem = "it could not be read where it was stored"
        elif task.omitted is not None:
            problem = "it was listed bare, so its arguments are not known"
        elif task.state is TaskState.RUNNING or task.lease_until is not None:
            problem = f"worker {task.worker} has it; stop the workers first"
        elif task.state.is_final is (task.finished_at is None):
            problem = f"its state is {task.state}, and its finished_at {task.finished_at}"
        else:
            try:
                check_task(task)
                continue
            except ValueError as error:
                problem = str(error)
        raise ValueError(f"task {task.id} ({task.name}) cannot be adopted: {problem}")


def check_schedule(schedule: Schedule) -> Schedule:
    """Return a schedule that was read from a store.

    :raises ValueError: if one of its fields, or of its task's, has a wrong type or is out of range; names the field.
    """
    _check(schedule, _SCHEDULE_FIELDS)
    _check(schedule.task, _NEW_TASK_FIELDS, "task's ")
    return schedule


def check_worker(worker: StoredWorker) -> StoredWorker:
    """Return a worker that was read from a store.

    :raises ValueError: if one of its fields has a wrong type or is out of range; names the field.
    """
    _check(worker, _WORKER_FIELDS)
    return worker


def check_text(value: object, name: str) -> str:
    """Return an id, or the name of a queue or a key, that was read from a store.

    :param name: what it is, to be named in the error.
    :raises ValueError: if it is no text, too long, or holds half of a surrogate pair.
    """
    if not is_text(value):
        raise _wrong(name, value, _A_TEXT)
    assert isinstance(value, str)
    return value


def right_fields(fields: Mapping[str, object]) -> dict[str, Any]:
    """Return those fields of a task that are as they must be.

    :param fields: by name; may be anything.
    """
    return {name: fields[name] for name, is_right, _ in _TASK_FIELDS if name in fields and is_right(fields[name])}


def _check(record: object, fields: _Fields, whose: str = "") -> None:
    for name, is_right, what in fields:
        value = getattr(record, name)
        if not is_right(value):
            raise _wrong(f"{whose}{name}", value, what)


def _wrong(name: str, value: object, what: str) -> ValueError:
    return ValueError(f"its {name} is {quoted(value)}, not {what}")


def quoted(value: object) -> str:
    """Return a value as Python writes it, without writing out a large one."""
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= 100 else f"{value[:60]!r}… ({len(value):,} long)"
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a number of {value.bit_length()} bits"
    return repr(value) if isinstance(value, int | float | datetime | None) else f"of type {type(value).__name__}"


def is_text(value: Any) -> bool:
    """Return whether a value can be an id, or the name of something."""
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < LARGEST_COUNT


def _is_integer(value: Any) -> bool:
    return type(value) is int and -_LARGEST_INTEGER <= value < _LARGEST_INTEGER


def _is_time(value: Any) -> bool:
    return _is_aware(value) and bool(value >= EARLIEST)


def _is_aware(value: Any) -> bool:
    return isinstance(value, datetime) and value.utcoffset() is not None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_duration(value: Any) -> bool:
    return _is_number(value) and bool(value >= 0)


def _is_when(value: Any) -> bool:
    return isinstance(value, timedelta) or _is_aware(value)


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(map(is_text, value))


def _is_a(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


def _is_error(value: Any) -> bool:
    return isinstance(value, TaskError) and all(
        isinstance(part, str) for part in (value.type, value.message, value.traceback)
    )


def _is_progress(value: Any) -> bool:
    return (
        isinstance(value, Progress)
        and _is_number(value.done)
        and (value.total is None or _is_number(value.total))
        and isinstance(value.note, str)
    )


def _are_feeds(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(feed, Feed) and _is_count(feed.gate) and isinstance(feed.needs_success, bool) for feed in value
    )


_Fields: TypeAlias = Iterable[tuple[str, Callable[[Any], bool], str]]
_A_TEXT = f"a text of at most {LONGEST_TEXT:,} characters of Unicode"
_A_COUNT = f"a whole number from 0 to {LARGEST_COUNT - 1}"
_A_TIME = "a time with a time zone, in 1970 or later"
_SECONDS = "a number of seconds, 0 or more"

_PLACE_FIELDS: _Fields = (
    ("flow", _or_none(is_text), _A_TEXT),
    ("behind", _or_none(_is_count), "the number of a gate"),
    ("feeds", _are_feeds, "a list of gates"),
    ("opening_delay", _or_none(_is_duration), _SECONDS),
)
_NEW_TASK_FIELDS: _Fields = (
    ("id", is_text, _A_TEXT),
    ("queue", is_text, _A_TEXT),
    ("name", is_text, _A_TEXT),
    ("body", _is_a(bytes), "bytes"),
    ("priority", _is_integer, "a whole number of 64 bits"),
    ("max_retries", lambda value: _is_integer(value) and value >= 0, "a whole number, 0 or more"),
    ("unique", _or_none(is_text), _A_TEXT),
    ("tags", _are_texts, "a list of texts"),
    ("result_ttl", _is_duration, _SECONDS),
    ("run_at", _or_none(_is_when), "a time with a time zone, or a timedelta"),
    ("expires", _or_none(_is_when), "a time with a time zone, or a timedelta"),
)
_TASK_FIELDS: _Fields = (
    *(field for field in _NEW_TASK_FIELDS if field[0] not in ("run_at", "expires")),
    *_PLACE_FIELDS,
    ("limited", _or_none(_is_limited), "a key, a named limit, or the time of a first one"),
    ("state", _is_a(TaskState), "a state"),
    ("attempt", _is_count, _A_COUNT),
    ("delivery", _is_count, _A_COUNT),
    ("created_at", _is_time, _A_TIME),
    ("run_at", _is_time, _A_TIME),
    ("started_at", _or_none(_is_time), _A_TIME),
    ("finished_at", _or_none(_is_time), _A_TIME),
    # Before 1970 it has passed, as any other that has.
    ("expires_at", _or_none(_is_aware), "a time with a time zone"),
    ("lease_until", _or_none(_is_time), _A_TIME),
    ("worker", _or_none(is_text), _A_TEXT),
    ("error", _or_none(_is_error), "an error"),
    ("progress", _or_none(_is_progress), "a progress"),
    ("cancel_requested", _is_a(bool), "true or false"),
    ("result_payload", _or_none(_is_a(bytes)), "bytes"),
    ("attempt_log", _is_a(str), "a text"),
)
_SCHEDULE_FIELDS: _Fields = (
    ("id", is_text, _A_TEXT),
    ("task", _is_a(NewTask), "a task"),
    ("trigger", _is_a(str), "a text"),
    ("next_run", _or_none(_is_time), _A_TIME),
    ("misfire", _is_a(Misfire), "what to do with missed runs"),
    ("overlap", _is_a(Overlap), "what to do with overlapping runs"),
    ("jitter", _is_duration, _SECONDS),
    ("start", _or_none(_is_aware), "a time with a time zone"),
    ("end", _or_none(_is_aware), "a time with a time zone"),
    ("paused", _is_a(bool), "true or false"),
    ("declared", _is_a(bool), "true or false"),
    ("apps", _are_texts, "a list of texts"),
    ("last_run", _or_none(_is_aware), "a time with a time zone"),
    ("last_task", _or_none(is_text), _A_TEXT),
    ("live_tasks", _are_texts, "a list of texts"),
    ("revision", lambda value: _is_integer(value) and 0 <= value < LARGEST_REVISION, "a whole number, 0 or more"),
)
_WORKER_FIELDS: _Fields = (
    ("id", is_text, _A_TEXT),
    ("seen_at", _is_time, _A_TIME),
    ("running", _are_texts, "a list of texts"),
    ("about", _or_none(_is_a(str)), "a text"),
)
