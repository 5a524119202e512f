"""Rows and values: how a task stands in the database, and how it becomes a :class:`~omniq.task.StoredTask` again.

What a statement asks for has a column of its own. The rest of what a store acts on (``max_retries``, tags,
``result_ttl``) is one JSON text, ``options``: for the tasks of one function it is nearly always the same text, so that
writing and reading it is a look into a cache.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from omniq.errors import CorruptRecord
from omniq.limit import PLAIN, Limited, line_id
from omniq.storage import corrupt_records
from omniq.storage.corrupt_records import corrupt
from omniq.storage.records import load_error, load_progress
from omniq.storage.times import LATEST, MICROSECOND, from_micros, span, to_micros
from omniq.storage.validation import UNREADABLE, check_task, is_text
from omniq.task import Feed, LimitedTask, NewTask, StoredTask, TaskState, When, record_of

__all__ = [
    "BARE",
    "BLOCKED",
    "BODY_APART",
    "CANCELLED",
    "CLAIMABLE",
    "CLAIMED",
    "COLUMNS",
    "FAILED",
    "FRESH",
    "NUMBER_OF",
    "READY",
    "RUNNING",
    "SCHEDULED",
    "SLIM",
    "STATE_OF",
    "SUCCEEDED",
    "Options",
    "claimed_task",
    "columns_of",
    "dump_feeds",
    "dump_options",
    "is_id",
    "load_options",
    "microseconds",
    "salvaged",
    "task_of",
]

FRESH, SCHEDULED, READY, RUNNING, SUCCEEDED, FAILED, CANCELLED, BLOCKED = range(8)
"""A fresh task is a ready one that is neither counted nor in the index of ready tasks yet, see transaction.py."""

STATE_OF = {
    FRESH: TaskState.READY,
    SCHEDULED: TaskState.SCHEDULED,
    READY: TaskState.READY,
    RUNNING: TaskState.RUNNING,
    SUCCEEDED: TaskState.SUCCEEDED,
    FAILED: TaskState.FAILED,
    CANCELLED: TaskState.CANCELLED,
    BLOCKED: TaskState.BLOCKED,
}
"""The state that each number stands for."""

NUMBER_OF = {state: number for number, state in STATE_OF.items()}
"""The number of each state; of ready, not that of fresh."""

BODY_APART = 1000
"""Bytes. A larger body has a row of its own: claiming and finishing write a task's row anew."""

_STANDING = """
    seq, id, queue, name, priority, state, created_at, run_at, attempt, delivery, lease_until, worker, started_at,
    finished_at, expires_at, unique_key, cancel, options, error"""
_PLACED = """flow, behind, feeds, opening_delay,
    limit_key, limit_name, first_at, line"""
_LARGE = 'FROM "{ns}.body" AS large WHERE large.seq = "{ns}.task".seq'

COLUMNS = f"{_STANDING}, progress, {_PLACED}, attempt_log, coalesce(body, (SELECT body {_LARGE})), result"
"""What :func:`task_of` reads."""

BARE = f"{_STANDING}, progress, {_PLACED}, NULL, coalesce(length(body), (SELECT length(body) {_LARGE})), length(result)"
"""The same with the sizes of body and result, for which SQLite reads neither, and without the attempt log."""

SLIM = f"{_STANDING}, NULL, {_PLACED}, NULL, x'', NULL"
"""The same with nothing in place of what no step of a flow asks for."""

_CLAIM = """
    seq, id, name, priority, created_at, run_at, attempt, delivery, expires_at, unique_key, options, error,
    attempt_log"""

CLAIMABLE = f"""{_CLAIM},
    iif(flow IS NULL AND first_at IS NULL, NULL, '' || json_array(flow, behind, feeds, opening_delay, first_at))
    AS place
"""
"""What a claim reads, besides the body; the rest it knows, for it is what the claim writes."""

CLAIMED = f"{_CLAIM}, place, iif(body IS NULL, NULL, hex(body))"
"""The same as values of JSON, which cannot hold bytes; without a large body."""


# Time


def microseconds(when: When, now: int) -> int:
    """Return a point in time as the database has it.

    :param when: an aware datetime, or a timedelta from now.
    :param now: the store's now.
    """
    if isinstance(when, timedelta):
        return min(now + when // MICROSECOND, LATEST)
    return to_micros(when)


# Orders


class Options(NamedTuple):
    """What of an order is in its JSON text."""

    max_retries: int
    tags: tuple[str, ...]
    result_ttl: float


# typed: 1 and 1.0 are one key otherwise, and what comes back would depend on who was first.
@functools.lru_cache(maxsize=4096, typed=True)
def dump_options(max_retries: int, tags: tuple[str, ...], result_ttl: float) -> str:
    """Return the JSON text of an order.

    :raises ValueError: if the ``result_ttl`` is no number of seconds.
    """
    if not math.isfinite(result_ttl):
        raise ValueError(f"result_ttl must be a number of seconds, not {result_ttl!r}")
    return json.dumps([max_retries, list(tags), result_ttl])


@functools.lru_cache(maxsize=4096)
def load_options(text: str) -> Options:
    """Read the JSON text of an order.

    :raises ValueError: if it is none.
    """
    max_retries, tags, result_ttl = json.loads(text)
    if not (
        isinstance(max_retries, int)
        and isinstance(result_ttl, int | float)
        and all(isinstance(tag, str) for tag in tags)
    ):
        raise ValueError("options of the wrong types")
    return Options(max_retries, tuple(tags), result_ttl)


@functools.lru_cache(maxsize=1024)
def dump_feeds(feeds: tuple[Feed, ...]) -> str | None:
    """Return the JSON text of the gates that a task feeds; None: it feeds none."""
    return json.dumps([[feed.gate, feed.needs_success] for feed in feeds]) if feeds else None


@functools.lru_cache(maxsize=1024)
def _load_feeds(text: str | None) -> tuple[Feed, ...]:
    return () if text is None else tuple(Feed(gate, needs_success) for gate, needs_success in json.loads(text))


def columns_of(task: NewTask, now: int, stamp: int, ready: int = READY) -> tuple[Any, ...]:
    """Return what is stored of a new task, in the order of the statement ``enqueue.insert``.

    :param now: the store's now, by which ``run_at`` and ``expires`` are judged.
    :param stamp: what counts as now in the order of tasks; not before that of the latest task, though the clock be
        put back.
    :param ready: the state of a task that is ready at once.
    """
    run_at = None if task.run_at is None else microseconds(task.run_at, now)
    later = run_at is not None and run_at > now
    options = dump_options(task.max_retries, task.tags, task.result_ttl)
    return (
        task.id,
        task.queue,
        task.name,
        task.priority,
        SCHEDULED if later else ready,
        stamp,
        # Nothing is ready before it is there: a time in the past gets no place ahead of others.
        run_at if later else stamp,
        None if task.expires is None else microseconds(task.expires, now),
        task.unique,
        span(task.result_ttl),
        options,
        task.body if len(task.body) <= BODY_APART else None,
    )


# Records


def task_of(row: Sequence[Any]) -> StoredTask:
    """Make a task of its row.

    :param row: the values of :data:`COLUMNS`.
    :raises CorruptRecord: if that cannot be done.
    """
    try:
        return check_task(_task_of(*row))
    except UNREADABLE as error:
        raise _corrupt(row, error) from error


def _corrupt(row: Sequence[Any], error: BaseException) -> CorruptRecord:
    return corrupt("task", row[1], error, place=f"row {row[0]}")


def _task_of(
    _: int,
    task_id: str,
    queue: str,
    name: str,
    priority: int,
    state: int,
    created_at: int,
    run_at: int,
    attempt: int,
    delivery: int,
    lease_until: int | None,
    worker: str | None,
    started_at: int | None,
    finished_at: int | None,
    expires_at: int | None,
    unique: str | None,
    cancel: int | None,
    options_text: str,
    error: str | None,
    progress: str | None,
    flow: str | None,
    behind: int | None,
    feeds: str | None,
    opening_delay: float | None,
    key: str | None,
    limit: str | None,
    first_at: int | None,
    line: str | None,
    attempt_log: str | None,
    body: bytes | None,
    result: bytes | None,
) -> StoredTask:
    options = load_options(options_text)
    if body is None:
        raise ValueError("its body is missing")
    if (line or PLAIN) != line_id(queue, key, limit):
        raise ValueError(f"it stands in the line {line!r}, which is not that of its key and its named limit")
    task = StoredTask(
        id=_check_id(task_id),
        queue=queue,
        name=name,
        body=body,
        priority=priority,
        state=STATE_OF[state],
        attempt=attempt,
        delivery=delivery,
        max_retries=options.max_retries,
        created_at=from_micros(created_at),
        run_at=from_micros(run_at),
        started_at=None if started_at is None else from_micros(started_at),
        finished_at=None if finished_at is None else from_micros(finished_at),
        expires_at=None if expires_at is None else from_micros(expires_at),
        lease_until=None if lease_until is None else from_micros(lease_until),
        worker=worker,
        unique=unique,
        tags=options.tags,
        result_ttl=options.result_ttl,
        flow=flow,
        behind=behind,
        feeds=_load_feeds(feeds),
        opening_delay=opening_delay,
        error=None if error is None else load_error(error),
        progress=None if progress is None else load_progress(progress),
        cancel_requested=cancel is not None,
        result_payload=result,
        attempt_log=attempt_log or "",
    )
    limited = _limited(key, limit, first_at)
    return task if limited is None else LimitedTask(**vars(task), limited=limited)


def _limited(key: str | None, limit: str | None, first_at: int | None) -> Limited | None:
    if key is None and limit is None and first_at is None:
        return None
    return Limited(key, limit, None if first_at is None else from_micros(first_at))


_Place = tuple[str | None, int | None, tuple[Feed, ...], float | None, Limited | None]
_NO_PLACE: _Place = (None, None, (), None, None)


# The tasks of a group share theirs.
@functools.lru_cache(maxsize=1024)
def _place(text: str) -> _Place:
    flow, behind, feeds, opening_delay, first_at = json.loads(text)
    return flow, behind, _load_feeds(feeds), opening_delay, _limited(None, None, first_at)


def claimed_task(row: Sequence[Any], queue: str, worker: str, now: datetime, lease_until: datetime) -> StoredTask:
    """Make a task of a row that was claimed.

    :param row: the values of :data:`CLAIMED` as they were before; the body may be bytes, too.
    :param queue: the queue it is of.
    :param worker: the worker that claimed it.
    :param now: when.
    :param lease_until: until when its lease holds.
    :raises CorruptRecord: if that cannot be done.
    """
    try:
        _, task_id, name, priority, created_at, run_at, attempt, delivery, expires_at, unique, text, error = row[:12]
        attempt_log, place, body = row[12:]
        flow, behind, feeds, opening_delay, limited = _NO_PLACE if place is None else _place(place)
        max_retries, tags, result_ttl = load_options(text)
        if body is None:
            raise ValueError("its body is missing")
        created = from_micros(created_at)
        fields: dict[str, Any] = {
            "id": _check_id(task_id),
            "queue": queue,
            "name": name,
            "body": bytes.fromhex(body) if isinstance(body, str) else body,
            "priority": priority,
            "state": TaskState.RUNNING,
            "attempt": attempt + 1,
            "delivery": delivery + 1,
            "max_retries": max_retries,
            "created_at": created,
            "run_at": created if run_at == created_at else from_micros(run_at),
            "started_at": now,
            "expires_at": None if expires_at is None else from_micros(expires_at),
            "lease_until": lease_until,
            "worker": worker,
            "unique": unique,
            "tags": tags,
            "result_ttl": result_ttl,
            "flow": flow,
            "behind": behind,
            "feeds": feeds,
            "opening_delay": opening_delay,
            "error": None if error is None else load_error(error),
            "finished_at": None,
            "progress": None,
            "cancel_requested": False,
            "result_payload": None,
            "omitted": None,
            "attempt_log": attempt_log or "",
        }
        if limited is None:
            return check_task(record_of(StoredTask, fields))
        return check_task(record_of(LimitedTask, fields | {"limited": limited}))
    except UNREADABLE as problem:
        raise _corrupt(row, problem) from problem


def is_id(value: object) -> bool:
    """Return whether a task can be found by what stands in place of its id: SQLite's JSON ends a text at a NUL."""
    return is_text(value) and "\0" not in str(value)


def _check_id(task_id: str) -> str:
    if "\0" in task_id:
        raise ValueError("its id holds a NUL")
    return task_id


def salvaged(row: Sequence[Any], error: CorruptRecord) -> StoredTask:
    """Make the most of a row that cannot be read, so that it can be seen, deleted, and does not hide others.

    :param row: the values of :data:`COLUMNS`.
    :param error: what was found.
    """
    known: dict[str, object] = {name: row[place] for name, place in _SALVAGED.items()}
    for name in ("created_at", "run_at", "finished_at"):
        value = known[name]
        known[name] = from_micros(value) if isinstance(value, int) and 0 <= value <= LATEST else None
    with contextlib.suppress(*UNREADABLE):
        known["feeds"] = _load_feeds(row[_FEEDS])
    with contextlib.suppress(*UNREADABLE):
        known["limited"] = _limited(*row[_LIMITED])
    return corrupt_records.salvaged(error, row[1] if is_id(row[1]) else None, known)


_SALVAGED = {
    "queue": 2,
    "name": 3,
    "priority": 4,
    "created_at": 6,
    "run_at": 7,
    "attempt": 8,
    "delivery": 9,
    "finished_at": 13,
    "flow": 20,
    "behind": 21,
    "body": 29,
}
"""Where in a row that stands which can be shown of it by itself."""
_FEEDS = 22
"""And where the gates that it feeds,"""
_LIMITED = slice(24, 27)
"""and its key, its named limit and the time of the first."""
