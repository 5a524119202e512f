"""What is stored of a task, and how it is read again. ``lua/parts/task.lua`` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from struct import Struct
from typing import Any, NamedTuple

from omniq.errors import CorruptRecord
from omniq.limit import Limited
from omniq.storage.corrupt_records import corrupt, salvaged
from omniq.storage.records import load_error, load_progress
from omniq.storage.times import from_micros
from omniq.storage.validation import UNREADABLE, check_task
from omniq.task import LimitedTask, StoredTask, TaskState, record_of
from omniq_redis.encoding import load_options
from omniq_redis.limits import LIMITED, read_limited
from omniq_redis.members import MARK, Member, read_member

__all__ = [
    "Stored",
    "claimed_task",
    "id_of",
    "next_delivery",
    "task_of",
    "task_or_stand_in",
]

STATES = {
    b"b": TaskState.BLOCKED,
    b"s": TaskState.SUCCEEDED,
    b"f": TaskState.FAILED,
    b"c": TaskState.CANCELLED,
}
NO_MEMBER = Member("", None, (), None)

_ORDER = Struct(">QQQQQIBHH")
_PAST = Struct(">cQIIQQQ?H")
_LENGTHS = Struct(">II")
_RUNNING = Struct(">IIQQQ?H")
_COUNTS = Struct(">II")

Stored = tuple[bytes | None, bytes | None, bytes | None, bytes | None]
"""An order, its past, its running record and the time of its lease."""


class _Past(NamedTuple):
    state: bytes
    delivery: int
    attempt: int
    started: int
    run: int
    cancel: bool
    finished: int
    expires: int
    worker: bytes
    error: bytes
    progress: bytes
    result: bytes
    attempt_log: str


def _read_past(text: bytes) -> _Past:
    state, finished, delivery, attempt, started, run, expires, cancel, length = _PAST.unpack_from(text)
    at = _PAST.size + length
    error, progress = _LENGTHS.unpack_from(text, at)
    first = at + _LENGTHS.size
    second = first + error
    third = second + progress
    latest_error, _, attempt_log = text[first:second].partition(b"\n")
    return _Past(
        state=state,
        delivery=delivery,
        attempt=attempt,
        started=started,
        run=run,
        cancel=cancel,
        finished=finished,
        expires=expires,
        worker=text[_PAST.size : at],
        error=latest_error,
        progress=text[second:third],
        result=text[third:],
        # What it was cut to may begin within a character.
        attempt_log=attempt_log.decode(errors="replace"),
    )


def task_of(task_id: str, stored: Sequence[bytes | None], now: int) -> StoredTask | None:
    """Make a task of what is stored of it.

    :param stored: see :data:`Stored`.
    :param now: when it was read, in microseconds: a task whose time has come is ready.
    :return: None if nothing is stored.
    :raises CorruptRecord: if that cannot be done.
    """
    order = stored[0]
    if order is None:
        return None
    try:
        return check_task(_task_of(task_id, order, stored[1], stored[2], stored[3], now))
    except UNREADABLE as problem:
        raise corrupt("task", task_id, problem, place=f"key o:{task_id}") from problem


def _task_of(
    task_id: str, order: bytes, past_text: bytes | None, running: bytes | None, lease: bytes | None, now: int
) -> StoredTask:
    _, created, run, expires, _, _, place, queue_length, unique_length = _ORDER.unpack_from(order)
    at = _ORDER.size + queue_length
    queue = order[_ORDER.size : at].decode()
    unique, member, limited = None, NO_MEMBER, None
    if unique_length:
        unique, member, limited = _read_key(order[at : at + unique_length - 1])
        at += unique_length - 1
    head, body = order[at:].split(b"\n", 1)
    options = load_options(head)
    delivery = attempt = started = finished = 0
    cancel = False
    worker = error = progress = result = b""
    state, attempt_log = None, ""
    if past_text is not None:
        past = _read_past(past_text)
        _, delivery, attempt, started, run, cancel, finished, expires, worker, error, progress, result, attempt_log = (
            past
        )
        state = STATES.get(past.state)
    elif member.behind is not None:
        state = TaskState.BLOCKED
    lease_until = None
    if running is not None:
        delivery, attempt, started, run, expires, cancel, length = _RUNNING.unpack_from(running)
        first = _RUNNING.size + length
        worker = running[_RUNNING.size : first]
        progress = running[first + at :]
        state, finished, result = TaskState.RUNNING, 0, b""
        lease_until = None if lease is None else from_micros(int(float(lease)))
    values = {
        "id": task_id,
        "queue": queue,
        "name": options.name,
        "body": body,
        "priority": 100 - place,
        "state": state or (TaskState.SCHEDULED if run > now else TaskState.READY),
        "attempt": attempt,
        "delivery": delivery,
        "max_retries": options.max_retries,
        "created_at": from_micros(created),
        "run_at": from_micros(run),
        "started_at": from_micros(started) if started else None,
        "finished_at": from_micros(finished) if finished else None,
        "expires_at": from_micros(expires) if expires else None,
        "lease_until": lease_until,
        "worker": worker.decode() if delivery else None,
        "unique": unique,
        "tags": options.tags,
        "result_ttl": options.result_ttl,
        "flow": member.flow or None,
        "behind": member.behind,
        "feeds": member.feeds,
        "opening_delay": member.opening_delay,
        "error": load_error(error) if error else None,
        "progress": load_progress(progress) if progress else None,
        "cancel_requested": cancel,
        "result_payload": result if state is TaskState.SUCCEEDED else None,
        "attempt_log": attempt_log,
        "omitted": None,
    }
    return _record(values, limited)


def _record(values: dict[str, Any], limited: Limited | None) -> StoredTask:
    if limited is None:
        return record_of(StoredTask, values)
    values["limited"] = limited
    return record_of(LimitedTask, values)


def _read_key(word: bytes) -> tuple[str | None, Member, Limited | None]:
    """Return the unique key of a task, or its place in its flow, and what limits it."""
    limited, inner = read_limited(word) if word.startswith(LIMITED) else (None, word)
    if inner is None:
        return None, NO_MEMBER, limited
    if inner.startswith(MARK):
        return None, read_member(inner), limited
    return inner.decode(), NO_MEMBER, limited


def claimed_task(
    task_id: str, order: bytes, past_text: bytes | None, worker: str, now: datetime, lease_until: datetime
) -> StoredTask:
    """Make a task of what a claim returns: its order, and its past as it was before.

    :param worker: the worker that claimed it.
    :param now: when.
    :param lease_until: until when its lease holds.
    :raises CorruptRecord: if that cannot be done.
    """
    try:
        _, created, run, expires, _, _, place, queue_length, unique_length = _ORDER.unpack_from(order)
        at = 49 + queue_length
        queue = order[49:at].decode()
        unique, member, limited = None, NO_MEMBER, None
        if unique_length:
            unique, member, limited = _read_key(order[at : at + unique_length - 1])
            at += unique_length - 1
        head, body = order[at:].split(b"\n", 1)
        name, max_retries, tags, result_ttl = load_options(head)
        delivery = attempt = 0
        error, attempt_log = None, ""
        if past_text is not None:
            past = _read_past(past_text)
            delivery, attempt, run, expires = past.delivery, past.attempt, past.run, past.expires
            error, attempt_log = load_error(past.error) if past.error else None, past.attempt_log
        created_at = from_micros(created)
        values = {
            "id": task_id,
            "queue": queue,
            "name": name,
            "body": body,
            "priority": 100 - place,
            "state": TaskState.RUNNING,
            "attempt": attempt + 1,
            "delivery": delivery + 1,
            "max_retries": max_retries,
            "created_at": created_at,
            "run_at": created_at if run == created else from_micros(run),
            "started_at": now,
            "expires_at": from_micros(expires) if expires else None,
            "lease_until": lease_until,
            "worker": worker,
            "unique": unique,
            "tags": tags,
            "result_ttl": result_ttl,
            "flow": member.flow or None,
            "behind": member.behind,
            "feeds": member.feeds,
            "opening_delay": member.opening_delay,
            "error": error,
            "finished_at": None,
            "progress": None,
            "cancel_requested": False,
            "result_payload": None,
            "omitted": None,
            "attempt_log": attempt_log,
        }
        return check_task(_record(values, limited))
    except UNREADABLE as problem:
        raise corrupt("task", task_id, problem, place=f"key o:{task_id}") from problem


def id_of(word: bytes) -> str:
    """Return an id that the server returned; one that is no text, too: the record can be deleted by it."""
    return word.decode("utf-8", "surrogateescape")


def next_delivery(past: bytes | None) -> int:
    """Return the delivery that a claim began, of a task that can otherwise not be read."""
    return 1 if past is None else (int(_COUNTS.unpack_from(past, 9)[0]) + 1) & 0xFFFF_FFFF


def task_or_stand_in(task_id: str, stored: Sequence[bytes | None], now: int) -> StoredTask | None:
    """Make a task of what is stored of it, or a stand-in for it if that cannot be read; None if nothing is stored."""
    try:
        return task_of(task_id, stored, now)
    except CorruptRecord as problem:
        return salvaged(problem, task_id)
