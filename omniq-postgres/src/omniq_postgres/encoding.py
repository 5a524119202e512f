"""Rows and values: how a task stands in the database, and how it becomes a :class:`~omniq.task.StoredTask` again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.limit import Limited, line_id
from omniq.storage.corrupt_records import corrupt, log_once, salvaged
from omniq.storage.escaping import get_logger
from omniq.storage.limit_transitions import is_lined
from omniq.storage.records import dump_error, load_error, load_progress
from omniq.storage.times import from_micros, to_micros
from omniq.storage.validation import EARLIEST, UNREADABLE, check_task
from omniq.task import Feed, LimitedTask, NewTask, StoredTask, TaskState, record_of
from omniq_postgres import binary_params
from omniq_postgres.binary_params import Parameter

__all__ = [
    "BARE",
    "BLOCKED",
    "CANCELLED",
    "CLAIMED",
    "FAILED",
    "KEPT_OF_KEY",
    "LIGHT",
    "LINED",
    "LONGEST_KEY",
    "NUMBER_OF",
    "READY",
    "RECORD",
    "RUNNING",
    "SCHEDULED",
    "STATE_OF",
    "SUCCEEDED",
    "bare_task",
    "claimed_task",
    "columns_of",
    "counted_task",
    "dump_member",
    "key_of",
    "limit_columns",
    "make_task",
    "number_of",
    "past_columns",
    "record_columns",
    "task_of",
    "values_of",
]

_log = get_logger("omniq.postgres")

BLOCKED, SCHEDULED, READY, RUNNING, SUCCEEDED, FAILED, CANCELLED = range(7)

STATE_OF = {
    BLOCKED: TaskState.BLOCKED,
    SCHEDULED: TaskState.SCHEDULED,
    READY: TaskState.READY,
    RUNNING: TaskState.RUNNING,
    SUCCEEDED: TaskState.SUCCEEDED,
    FAILED: TaskState.FAILED,
    CANCELLED: TaskState.CANCELLED,
}
"""The state that each number stands for."""
NUMBER_OF = {state: number for number, state in STATE_OF.items()}
LINED = -1
"""What a ready task is stored as that stands in a line, see :mod:`omniq_postgres.limits`."""

LONGEST_KEY = 200
"""Characters. An index cannot hold keys of any length: a longer one is compared by its beginning and its hash, which
are longer together than any key that is compared as it is."""
KEPT_OF_KEY = LONGEST_KEY + 1 - 64
"""Characters of that beginning; a hash has 64."""

RECORD = """
    s.id::text, t.queue, t.name, t.body, t.priority, s.state, s.attempt, s.delivery, t.max_retries,
    t.created_at, s.run_at, s.started_at, s.finished_at, s.expires_at, s.lease_until,
    s.worker, t.unique_key, t.tags, t.result_ttl, s.error, s.progress, s.cancel, s.attempt_log, s.result,
    s.flow::text, t.member, t.seq
"""
"""What :func:`task_of` reads: of ``t``, the order, and ``s``, what has become of it."""

BARE = RECORD.replace("t.body", "octet_length(t.body)").replace("s.result", "octet_length(s.result)")
BARE = BARE.replace("s.attempt_log", "NULL::text")
"""The same with the sizes of body and result, for which the server reads neither."""

LIGHT = RECORD.replace("t.body", "''::bytea").replace("s.result", "NULL::bytea")
LIGHT = LIGHT.replace("s.attempt_log", "NULL::text")
"""The same without them."""

CLAIMED = """
    taken.id::text, t.queue, t.name, t.body, t.priority, taken.attempt, taken.delivery, t.max_retries,
    t.created_at, taken.run_at, taken.started_at, taken.expires_at, taken.lease_until,
    t.unique_key, t.tags, t.result_ttl, taken.error, taken.attempt_log, t.member, t.seq
"""
"""What :func:`claimed_task` reads; the rest it knows."""


# Orders


def number_of(task: StoredTask) -> int:
    """Return the number as which the state of a task is stored."""
    return LINED if task.state is TaskState.READY and is_lined(task) else NUMBER_OF[task.state]


def key_of(unique: str | None) -> str | None:
    """Return a unique key as the index has it."""
    if unique is None or len(unique) <= LONGEST_KEY:
        return unique
    return unique[:KEPT_OF_KEY] + hashlib.sha256(unique.encode()).hexdigest()


def _what(tasks: Sequence[NewTask] | Sequence[StoredTask]) -> list[Parameter]:
    return [
        binary_params.new_ids([task.id for task in tasks]),
        binary_params.texts([task.queue for task in tasks]),
        binary_params.texts([task.name for task in tasks]),
        binary_params.byteas([task.body for task in tasks]),
        binary_params.smallints([task.priority for task in tasks]),
        binary_params.integers([task.max_retries for task in tasks]),
    ]


def _kept(tasks: Sequence[NewTask] | Sequence[StoredTask]) -> list[Parameter]:
    return [
        binary_params.floats([task.result_ttl for task in tasks]),
        binary_params.texts([_tags(task.tags) for task in tasks]),
        binary_params.texts([task.unique for task in tasks]),
        binary_params.texts([key_of(task.unique) for task in tasks]),
    ]


def columns_of(tasks: Sequence[NewTask]) -> list[Parameter]:
    """Return the parameters of the statements in enqueue.sql.

    :raises ValueError: if something cannot be stored: an id that is no UUID, a text with a NUL character.
    """
    points = [task.run_at if isinstance(task.run_at, datetime) else None for task in tasks]
    delays = [task.run_at if isinstance(task.run_at, timedelta) else None for task in tasks]
    ends = [task.expires if isinstance(task.expires, datetime) else None for task in tasks]
    lives = [task.expires if isinstance(task.expires, timedelta) else None for task in tasks]
    return [
        *_what(tasks),
        binary_params.timestamps(points),
        binary_params.intervals(delays),
        binary_params.timestamps(ends),
        binary_params.intervals(lives),
        *_kept(tasks),
    ]


def record_columns(tasks: Sequence[StoredTask]) -> list[Parameter]:
    """Return the parameters of the statement ``flows.insert``, but for the first.

    :raises ValueError: as :func:`columns_of` does.
    """
    return [
        *_what(tasks),
        binary_params.timestamps([task.run_at for task in tasks]),
        binary_params.timestamps([task.expires_at for task in tasks]),
        *_kept(tasks),
        binary_params.smallints([number_of(task) for task in tasks]),
        binary_params.uuids([task.flow for task in tasks]),
        binary_params.bigints([task.behind for task in tasks]),
        binary_params.texts([dump_member(task) for task in tasks]),
    ]


def limit_columns(tasks: Sequence[StoredTask]) -> list[Parameter]:
    """Return what statements that store tasks are to know of their limits: the last of their parameters."""
    return [
        binary_params.texts([line_id(task.queue, task.key, task.limit) if is_lined(task) else None for task in tasks]),
        binary_params.texts([task.key for task in tasks]),
        binary_params.texts([task.limit for task in tasks]),
        binary_params.booleans([None if task.first_at is None else True for task in tasks]),
    ]


def past_columns(tasks: Sequence[StoredTask]) -> list[Parameter]:
    """Return the other parameters of the statement ``flows.adopt``: what tasks have behind them."""
    return [
        binary_params.timestamps([task.created_at for task in tasks]),
        binary_params.timestamps([task.started_at for task in tasks]),
        binary_params.timestamps([task.finished_at for task in tasks]),
        binary_params.integers([task.delivery for task in tasks]),
        binary_params.integers([task.attempt for task in tasks]),
        binary_params.booleans([task.cancel_requested for task in tasks]),
        binary_params.texts([task.worker for task in tasks]),
        binary_params.texts([None if task.error is None else dump_error(task.error) for task in tasks]),
        binary_params.texts([task.attempt_log or None for task in tasks]),
        binary_params.byteas([task.result_payload for task in tasks]),
    ]


def values_of(task: NewTask) -> list[Parameter | None]:
    """Return the parameters of the statement ``enqueue.single``.

    :raises ValueError: as :func:`columns_of` does.
    """
    tags = _tags(task.tags)
    return [
        binary_params.new_id(task.id),
        binary_params.text(task.queue),
        binary_params.text(task.name),
        binary_params.bytea(task.body),
        binary_params.smallint(task.priority),
        binary_params.integer(task.max_retries),
        binary_params.float8(task.result_ttl),
        None if tags is None else binary_params.text(tags),
    ]


def _tags(tags: Sequence[str]) -> str | None:
    if not tags:
        return None
    escaped = (tag.replace("\\", "\\\\").replace('"', '\\"') for tag in tags)
    return "{" + ",".join(f'"{tag}"' for tag in escaped) + "}"


# Records


def make_task(row: Sequence[Any]) -> StoredTask:
    """Make a task of its row, or the most of it if it cannot be read; see :func:`task_of`."""
    try:
        return task_of(row)
    except CorruptRecord as problem:
        log_once(_log, problem)
        fields = dict(zip(_FIELDS, row, strict=True))
        fields["tags"] = tuple(fields["tags"] or ())
        with contextlib.suppress(*UNREADABLE):
            fields.update(_member_of(fields.pop("member")))
        # Its end counts there, whatever else is wrong with it.
        fields["flow"] = fields.pop("of")
        return salvaged(problem, row[0], fields)


def bare_task(row: Sequence[Any]) -> StoredTask:
    """Make a task of a row of :data:`BARE`."""
    values = list(row)
    body, values[_FIELDS.index("body")] = values[_FIELDS.index("body")], b""
    result, values[_FIELDS.index("result_payload")] = values[_FIELDS.index("result_payload")], None
    return make_task(values).bare(body or 0, result)


_FIELDS = (
    "id",
    "queue",
    "name",
    "body",
    "priority",
    "state",
    "attempt",
    "delivery",
    "max_retries",
    "created_at",
    "run_at",
    "started_at",
    "finished_at",
    "expires_at",
    "lease_until",
    "worker",
    "unique",
    "tags",
    "result_ttl",
    "error",
    "progress",
    "cancel_requested",
    "attempt_log",
    "result_payload",
    "of",
    "member",
    "seq",
)
"""What each value of :data:`RECORD` is."""


def _corrupt(row_id: str, seq: int | None, problem: BaseException) -> CorruptRecord:
    return corrupt("task", row_id, problem, place="no order" if seq is None else f"seq {seq}")


def task_of(row: Sequence[Any]) -> StoredTask:
    """Make a task of its row.

    :param row: the values of :data:`RECORD`.
    :raises CorruptRecord: if that cannot be done.
    """
    try:
        return check_task(_task_of(row))
    except UNREADABLE as problem:
        raise _corrupt(row[0], row[-1], problem) from problem


def _task_of(row: Sequence[Any]) -> StoredTask:
    (
        task_id,
        queue,
        name,
        body,
        priority,
        state,
        attempt,
        delivery,
        max_retries,
        created_at,
        run_at,
        started_at,
        finished_at,
        expires_at,
        lease_until,
        worker,
        unique,
        tags,
        result_ttl,
        error,
        progress,
        cancel,
        attempt_log,
        result,
        flow,
        member,
        _,
    ) = row
    task = StoredTask(
        id=task_id,
        queue=queue,
        name=name,
        body=body,
        priority=priority,
        state=TaskState.READY if state == LINED else STATE_OF[state],
        attempt=attempt,
        delivery=delivery,
        max_retries=max_retries,
        created_at=created_at,
        run_at=run_at,
        started_at=started_at,
        finished_at=finished_at,
        expires_at=expires_at,
        lease_until=lease_until,
        worker=worker,
        unique=unique,
        tags=tuple(tags or ()),
        result_ttl=result_ttl,
        error=None if error is None else load_error(error),
        progress=None if progress is None else load_progress(progress),
        cancel_requested=cancel,
        result_payload=result,
        attempt_log=attempt_log or "",
    )
    if member is not None or flow is not None:
        task = _placed(task, _place_of(member, flow))
    if state == LINED and not is_lined(task):
        raise ValueError("it is stored as one that stands in a line, and has neither a key nor a limit")
    return task


def claimed_task(row: Sequence[Any], worker: str) -> StoredTask:
    """Make a task of a row that was claimed.

    :param row: a value that plays no part here, and those of :data:`CLAIMED`.
    :param worker: the worker that claimed it.
    :raises CorruptRecord: if that cannot be done.
    """
    try:
        return check_task(_claimed_task(row, worker))
    except UNREADABLE as problem:
        raise _corrupt(row[1], row[-1], problem) from problem


def _claimed_task(row: Sequence[Any], worker: str) -> StoredTask:
    (
        _,
        task_id,
        queue,
        name,
        body,
        priority,
        attempt,
        delivery,
        max_retries,
        created_at,
        run_at,
        started_at,
        expires_at,
        lease_until,
        unique,
        tags,
        result_ttl,
        error,
        attempt_log,
        member,
        _,
    ) = row
    task = StoredTask(
        id=task_id,
        queue=queue,
        name=name,
        body=body,
        priority=priority,
        state=TaskState.RUNNING,
        attempt=attempt,
        delivery=delivery,
        max_retries=max_retries,
        created_at=created_at,
        run_at=run_at,
        started_at=started_at,
        expires_at=expires_at,
        lease_until=lease_until,
        worker=worker,
        unique=unique,
        tags=tuple(tags) if tags else (),
        result_ttl=result_ttl,
        error=None if error is None else load_error(error),
        attempt_log=attempt_log or "",
    )
    return task if member is None else _placed(task, _member_of(member))


# Places in flows and lines


def dump_member(task: StoredTask) -> str | None:
    """Return a task's place in its flow, and its limits, as text; None if it has neither."""
    if task.flow is None and task.limited is None:
        return None
    feeds = [[feed.gate, feed.needs_success] for feed in task.feeds]
    place: list[Any] = [task.flow, task.behind, feeds, task.opening_delay]
    if task.limited is not None:
        place += [task.key, task.limit, None if task.first_at is None else to_micros(task.first_at)]
    return json.dumps(place, separators=(",", ":"))


def _placed(task: StoredTask, place: Mapping[str, Any]) -> StoredTask:
    return record_of(LimitedTask if "limited" in place else StoredTask, {**vars(task), **place})


@functools.lru_cache(maxsize=1024)  # of the tasks of a group it is the same
def _member_of(text: str) -> Mapping[str, Any]:
    flow, behind, feeds, opening_delay, *limits = json.loads(text)
    fed = tuple(Feed(gate, needs_success) for gate, needs_success in feeds)
    place = {"flow": flow, "behind": behind, "feeds": fed, "opening_delay": opening_delay}
    if limits:
        key, limit, first_at = limits
        place["limited"] = Limited(key, limit, None if first_at is None else from_micros(first_at))
    return place


def _place_of(member: str | None, flow: str | None) -> Mapping[str, Any]:
    place = {} if member is None else _member_of(member)
    if place.get("flow") != flow:
        raise ValueError(f"its place is one in flow {place.get('flow')!r:.100}, and it counts in flow {flow!r}")
    return place


@functools.lru_cache(maxsize=1024)
def _counted_as(member: str | None, flow: str, state: int) -> StoredTask:
    return check_task(_placed(StoredTask(**_NOTHING, id=flow, state=STATE_OF[state]), _place_of(member, flow)))


_NOTHING: Mapping[str, Any] = {"queue": "", "name": "", "body": b"", "created_at": EARLIEST, "run_at": EARLIEST}


def counted_task(row: Sequence[Any]) -> StoredTask:
    """Make of a task that has ended what its gates are to know of it.

    :param row: id, flow, state, place in the flow; and, unless it succeeded, name, error, and when it was started.
    """
    task_id, flow, state, member, name, error, started_at = row
    try:
        task = _counted_as(member, flow, state)
        if state == SUCCEEDED:
            return task
        fields = {"id": task_id, "name": name, "error": None if error is None else load_error(error)}
        return check_task(evolve(task, started_at=started_at, **fields))
    except UNREADABLE as problem:
        place: Mapping[str, Any] = {}
        with contextlib.suppress(*UNREADABLE):
            place = _place_of(member, flow)
        return salvaged(corrupt("task", task_id, problem), task_id, {**place, "flow": flow})
