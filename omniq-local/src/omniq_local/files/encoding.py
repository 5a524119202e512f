"""A task's file: two lines of JSON, the producer's order and what has become of it.

The first line never changes. The second is written anew in place with each transition, which costs the same whatever
the size of the payload; that it is written whole, the journal sees to.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from omniq.errors import CorruptRecord
from omniq.limit import PLAIN, line_id
from omniq.storage.corrupt_records import salvaged
from omniq.storage.times import from_micros, to_micros
from omniq.storage.validation import LONGEST_TEXT, UNREADABLE, check_task
from omniq.task import Feed, NewTask, Progress, StoredTask, TaskError, TaskState
from omniq_local.files.journal import LAST_SEQUENCE
from omniq_local.files.names import token
from omniq_local.files.records import ENDED, Record
from omniq_local.files.times import read_time, show_time

__all__ = [
    "LARGE",
    "dump_head",
    "dump_json",
    "dump_order",
    "dump_status",
    "id_in",
    "load_order",
    "parse_bare",
    "parse_record",
    "stand_in",
]

LARGE = 16 * 1024
"""Bytes. Of a body or a result that is larger the size is told before it, for lists that need no more."""
_DIGITS = 12
_BODY, _RESULT, _LOG = b', "body": ', b', "result": ', b', "attempt_log": '
"""What ends that part of a line that is not large: within a text of JSON each of its quotes would be escaped."""
_STATES: dict[str, TaskState] = {state.value: state for state in TaskState}
_encode = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": ")).encode


def dump_json(value: Mapping[str, Any]) -> bytes:
    """Return a line of JSON."""
    return f"{_encode(value)}\n".encode(errors="surrogatepass")


def _show_bytes(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _read_bytes(value: str | dict[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else base64.b64decode(value["base64"], validate=True)


_PLAIN: tuple[tuple[str, Any], ...] = (
    ("priority", 0),
    ("max_retries", 3),
    ("unique", None),
    ("key", None),
    ("limit", None),
    ("result_ttl", 86400.0),
)
"""Fields of an order that stand in the file unless they have the usual value."""


def dump_order(order: NewTask) -> dict[str, Any]:
    """Return a producer's order as JSON, without ``run_at`` and ``expires``."""
    text: dict[str, Any] = {"id": order.id, "queue": order.queue, "name": order.name}
    for name, usual in _PLAIN:
        value = getattr(order, name)
        if value != usual:
            text[name] = value
    if order.tags:
        text["tags"] = list(order.tags)
    if order.flow is not None:
        text["flow"] = order.flow
        if order.behind is not None:
            text["behind"] = order.behind
        if order.feeds:
            text["feeds"] = [[feed.gate, feed.needs_success] for feed in order.feeds]
    text["body"] = _show_bytes(order.body)
    return text


def load_order(text: dict[str, Any]) -> NewTask:
    """Read what :func:`dump_order` returned."""
    options = {name: text[name] for name, _ in _PLAIN if name in text}
    if "tags" in text:
        options["tags"] = tuple(text["tags"])
    if "flow" in text:
        options["flow"], options["behind"] = text["flow"], text.get("behind")
        options["feeds"] = _read_feeds(text.get("feeds", ()))
    return NewTask(id=text["id"], queue=text["queue"], name=text["name"], body=_read_bytes(text["body"]), **options)


def _read_feeds(value: Iterable[tuple[Any, Any]]) -> tuple[Feed, ...]:
    return tuple(Feed(gate, needs_success) for gate, needs_success in value)


def dump_head(record: Record) -> bytes:
    """Return the first line.

    :raises ValueError: if a text of it holds half of a surrogate pair.
    """
    head = {"sequence": record.sequence, "created_at": show_time(record.created_at), **dump_order(record.order)}
    if record.opening_delay is not None:
        head = {"opening_delay": record.opening_delay, **head}
    if record.first_at is not None:
        head = {"first_at": show_time(record.first_at), **head}
    if len(record.order.body) > LARGE:
        # Where the second line begins is told by as many digits as there may have to be.
        body = head.pop("body")
        head |= {"body_size": len(record.order.body), "second_line": 0, "body": body}
        length = len(f"{_encode(head)}\n".encode()) - 1 + _DIGITS
        head["second_line"] = int(f"1{length:0{_DIGITS - 1}d}")
    # Not every text of Python's is text to others.
    return f"{_encode(head)}\n".encode()


def dump_status(record: Record) -> bytes:
    """Return the second line."""
    # By hand, since it is done twice for each task; texts alone need an encoder.
    parts = [
        f'{{"state": "{record.state.value}"',
        f'"attempt": {record.attempt}',
        f'"delivery": {record.delivery}',
        f'"run_at": "{show_time(record.run_at)}"',
    ]
    if record.started_at is not None:
        parts.append(f'"started_at": "{show_time(record.started_at)}"')
    if record.finished_at is not None:
        parts.append(f'"finished_at": "{show_time(record.finished_at)}"')
    if record.expires_at is not None:
        parts.append(f'"expires_at": "{show_time(record.expires_at)}"')
    if record.lease_until is not None:
        parts.append(f'"lease_until": "{show_time(record.lease_until)}"')
    if record.worker is not None:
        parts.append(f'"worker": {_encode(record.worker)}')
    if record.cancel_requested:
        parts.append('"cancel_requested": true')
    if record.error is not None:
        error = {"type": record.error.type, "message": record.error.message, "traceback": record.error.traceback}
        parts.append(f'"error": {_encode(error)}')
    if record.progress is not None:
        progress = {"done": record.progress.done, "total": record.progress.total, "note": record.progress.note}
        parts.append(f'"progress": {_encode(progress)}')
    if record.result is not None:
        if len(record.result) > LARGE:
            parts.append(f'"result_size": {len(record.result)}')
        parts.append(f'"result": {_encode(_show_bytes(record.result))}')
    if record.attempt_log:
        parts.append(f'"attempt_log": {_encode(record.attempt_log)}')
    return (", ".join(parts) + "}\n").encode(errors="surrogatepass")


def parse_bare(
    data: bytes, size: int, read_on: Callable[[int], bytes], sequence: int, id_token: str
) -> StoredTask | None:
    """Return the task of a large file without reading its body and its result; None: it has to be read whole.

    :param data: the first :data:`LARGE` bytes.
    :param size: of the file.
    :param read_on: returns what follows a place, as far as it is not large.
    :param sequence: by which it was found, and id.
    :raises ValueError: or another of :data:`~omniq.storage.validation.UNREADABLE`, if it is torn or no task's file.
    """
    start, mark, _ = data.partition(_BODY)
    if not mark:
        return None
    head = _decode(start + b"}")
    at = int(str(head["second_line"])[1:])
    line = read_on(at)
    result: int | None = None
    if at + len(line) < size:
        start, mark, _ = line.partition(_RESULT)
        if not mark:
            start, mark, _ = line.partition(_LOG)
        if not mark:
            return None
        line = start + b"}"
    status = _decode(line)
    if "result_size" in status:
        result = int(status["result_size"])
    elif "result" in status:
        result = len(_read_bytes(status["result"]))
    record = _record({**head, "body": ""}, {**status, "attempt_log": "", "result": ""}, b"", b"")
    if (record.sequence, record.id_token) != (sequence, id_token):
        return None
    return check_task(record.task()).bare(int(head["body_size"]), result)


def parse_record(data: bytes, sequence: int | None = None, id_token: str | None = None) -> Record:
    """Read a task's file.

    :param sequence: by which it was found, and id; None: by something else.
    :raises ValueError: or another of :data:`~omniq.storage.validation.UNREADABLE`, if it is torn, or no task's file, or
        another task's.
    """
    first, second, rest = data.split(b"\n")
    if rest:
        raise ValueError("there is more than two lines")
    record = _record(_decode(first), _decode(second), first, second)
    if not _is_plain(record):
        check_task(record.task())
    if type(record.sequence) is not int or not 0 < record.sequence <= LAST_SEQUENCE:
        raise ValueError(f"its sequence number is {record.sequence!r}")
    if (id_token is not None and record.id_token != id_token) or (sequence is not None and record.sequence != sequence):
        raise ValueError(f"it is another task, {record.order.id!r}")
    record.was = record.aim = record.stand()
    return record


def _is_plain(record: Record) -> bool:
    """Return whether a record is sound for certain: the short way past the check of all fields, for most of them.

    Its times were checked where they were read.

    :raises TypeError: if a field has a wrong type, unless it returns False.
    """
    order, worker, unique = record.order, record.worker, record.order.unique
    texts = "".join((order.id, order.queue, order.name, "" if worker is None else worker, unique or ""))
    # Anything can be in any of them, whatever their types say.
    cancelled: Any = record.cancel_requested
    return (
        len(texts) <= LONGEST_TEXT
        and texts.isascii()
        and (unique is None or type(unique) is str)
        # To combine them raises a TypeError for anything but integers.
        and 0 <= (record.attempt | record.delivery) < 2**30
        and -(2**30) <= (order.priority | 0) < 2**30
        and 0 <= (order.max_retries | 0) < 2**30
        and 0 <= order.result_ttl < math.inf
        and not order.tags
        and order.flow is None
        and record.line == PLAIN
        and record.error is None
        and record.progress is None
        and record.attempt_log == ""
        and type(cancelled) is bool
    )


def stand_in(problem: CorruptRecord, data: bytes, task_id: str, queue: str = "") -> Record:
    """Return what stands for a task that cannot be read.

    :param data: what is in its file.
    :param task_id: by which it was found.
    :param queue: the queue that it was found in.
    """
    fields = _legible(data)
    shown = salvaged(problem, task_id, {**fields, "queue": queue} if queue else fields)
    created = max(to_micros(shown.created_at), 0)
    return Record(
        order=NewTask(
            id=task_id,
            queue=shown.queue,
            name=shown.name,
            body=shown.body,
            priority=shown.priority,
            max_retries=shown.max_retries,
            unique=shown.unique,
            tags=shown.tags,
            result_ttl=shown.result_ttl,
            flow=shown.flow,
            behind=shown.behind,
            feeds=shown.feeds,
        ),
        sequence=0,
        created_at=created,
        run_at=max(to_micros(shown.run_at), 0),
        state=TaskState.FAILED,
        attempt=shown.attempt,
        delivery=shown.delivery,
        started_at=None if shown.started_at is None else to_micros(shown.started_at),
        finished_at=created,
        expires_at=None if shown.expires_at is None else max(to_micros(shown.expires_at), 0),
        worker=shown.worker,
        error=shown.error,
        result=shown.result_payload,
        attempt_log=shown.attempt_log,
        id_token=token(task_id),
        stand_in=shown,
    )


def id_in(data: bytes, id_token: str) -> str | None:
    """Return the id in a file that cannot be read, if it is the one that its name is made of."""
    task_id = _legible(data).get("id")
    try:
        return task_id if isinstance(task_id, str) and token(task_id) == id_token else None
    except UnicodeEncodeError:
        return None


def _legible(data: bytes) -> dict[str, Any]:
    """Return what can be read of a task's file, by the names of a task's fields."""
    fields: dict[str, Any] = {}
    for line in data.split(b"\n")[:2]:
        with contextlib.suppress(*UNREADABLE):
            fields.update(_decode(line))
    for name, read in _READ:
        if name in fields:
            try:
                fields[name] = read(fields[name])
            except UNREADABLE:
                del fields[name]
    fields["result_payload"] = fields.pop("result", None)
    return fields


def _read_moment(text: str) -> datetime:
    return from_micros(read_time(text))


_READ: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    *((name, _read_moment) for name in ("created_at", "run_at", "started_at", "finished_at", "expires_at")),
    ("body", _read_bytes),
    ("result", _read_bytes),
    ("tags", tuple),
    ("feeds", _read_feeds),
    ("progress", lambda value: Progress(**value)),
)


def _decode(line: bytes) -> Any:
    return json.loads(line.decode(errors="surrogatepass"))


def _record(head: dict[str, Any], status: dict[str, Any], first: bytes, second: bytes) -> Record:
    order = load_order(head)
    times: dict[str, Any] = {
        name: read_time(status[name])
        for name in ("started_at", "finished_at", "expires_at", "lease_until")
        if name in status
    }
    error, progress = status.get("error"), status.get("progress")
    record = Record(
        order=order,
        sequence=head["sequence"],
        created_at=read_time(head["created_at"]),
        run_at=read_time(status["run_at"]),
        state=_STATES[status["state"]],
        attempt=status["attempt"],
        delivery=status["delivery"],
        worker=status.get("worker"),
        error=None if error is None else TaskError(**error),
        progress=None if progress is None else Progress(**progress),
        cancel_requested=status.get("cancel_requested", False),
        result=_read_bytes(status["result"]) if "result" in status else None,
        attempt_log=status.get("attempt_log", ""),
        opening_delay=head.get("opening_delay"),
        first_at=read_time(head["first_at"]) if "first_at" in head else None,
        id_token=token(order.id),
        line=line_id(order.queue, order.key, order.limit),
        head=first + b"\n",
        status=second + b"\n",
        **times,
    )
    if order.flow is None and (record.state is TaskState.BLOCKED or order.behind is not None or order.feeds):
        raise ValueError(f"a task that is {record.state} with a place in a flow that it does not name")
    if (record.lease_until is None) is (record.state is TaskState.RUNNING):
        raise ValueError(f"a task that is {record.state} with lease_until {record.lease_until}")
    if (record.finished_at is None) is (record.state in ENDED):
        raise ValueError(f"a task that is {record.state} with finished_at {record.finished_at}")
    return record
