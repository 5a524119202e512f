"""How parts of a record stand in a store that keeps them as text, for those who write one.

JSON in pure ASCII, so that whatever characters a message holds can be stored. What was read from a store may have been
written by anyone: whatever is wrong with it, it is a :exc:`ValueError`, or a :exc:`~omniq.errors.CorruptRecord`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import asdict, has

from omniq.errors import CorruptRecord
from omniq.flow import NewFlow, NewGate
from omniq.limit import Debounce, Limit, Rate, UnreadableLimit
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.storage.escaping import shown_reason
from omniq.task import Feed, NewTask, Progress, TaskError

__all__ = [
    "corrupt_limit",
    "dump_error",
    "dump_fields",
    "dump_flow",
    "dump_limit",
    "dump_progress",
    "dump_schedule",
    "load_error",
    "load_fields",
    "load_flow",
    "load_limit",
    "load_progress",
    "load_schedule",
    "read_limit",
    "unreadable_limit",
]

_MICROSECOND = timedelta(microseconds=1)
_UNREADABLE = (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError)


def dump_error(error: TaskError) -> str:
    """Return an error as text."""
    return json.dumps([error.type, error.message, error.traceback])


def load_error(text: str | bytes) -> TaskError:
    """Read what :func:`dump_error` returned.

    :raises ValueError: if that cannot be done.
    """
    kind, message, traceback = _parts(text, "an error")
    if not (isinstance(kind, str) and isinstance(message, str) and isinstance(traceback, str)):
        raise ValueError(f"this is no error: {text!r}")
    return TaskError(type=kind, message=message, traceback=traceback)


def dump_progress(progress: Progress) -> str:
    """Return a note of progress as text."""
    return json.dumps([progress.done, progress.total, progress.note])


def load_progress(text: str | bytes) -> Progress:
    """Read what :func:`dump_progress` returned.

    :raises ValueError: if that cannot be done.
    """
    done, total, note = _parts(text, "progress")
    return Progress(done=done, total=total, note=note)


def _parts(text: str | bytes, what: str) -> list[Any]:
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not {what}: {error}") from error
    if not isinstance(parts, list) or len(parts) != 3:
        raise ValueError(f"this is not {what}: {text!r}")
    return parts


def dump_schedule(schedule: Schedule) -> str:
    """Return a schedule as text: all of it but its revision, which counts what a store does with it."""
    return json.dumps(asdict(schedule, filter=lambda attribute, _: attribute.name != "revision"), default=_dump)


def dump_fields(fields: Mapping[str, Any]) -> str:
    """Return the fields of a record as text; points in time and bytes among them come back as what they were."""
    return _encode(fields)


def load_fields(text: str | bytes) -> Any:
    """Read what :func:`dump_fields` returned.

    :raises ValueError: if that cannot be done.
    """
    return _decode(text if isinstance(text, str) else text.decode())


def _dump(value: Any) -> dict[str, Any]:
    if isinstance(value, datetime):
        return {"at": value.isoformat()}
    if isinstance(value, timedelta):
        return {"in": value // _MICROSECOND}
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if has(type(value)):
        return asdict(value, recurse=False)
    raise TypeError(f"a record cannot hold {value!r}")


def _load(value: dict[str, Any]) -> Any:
    if len(value) != 1:
        return value
    match value:
        case {"at": str(text)}:
            return datetime.fromisoformat(text)
        case {"in": int(number)}:
            return timedelta(microseconds=number)
        case {"base64": str(text)}:
            return base64.b64decode(text, validate=True)
    return value


_encode = json.JSONEncoder(default=_dump, separators=(",", ":")).encode
_decode = json.JSONDecoder(object_hook=_load).decode


def _load_task(fields: dict[str, Any]) -> NewTask:
    feeds = tuple(Feed(**feed) for feed in fields["feeds"])
    debounce = fields.get("debounce")
    more = {"feeds": feeds, "debounce": None if debounce is None else Debounce(**debounce)}
    return NewTask(**{**fields, "tags": tuple(fields["tags"]), **more})


def dump_flow(flow: NewFlow, tasks: Sequence[NewTask]) -> str:
    """Return a flow that has not been stored yet, and its tasks, as text."""
    return _encode([flow, list(tasks)])


def load_flow(text: str | bytes) -> tuple[NewFlow, list[NewTask]]:
    """Read what :func:`dump_flow` returned.

    :raises ValueError: if that cannot be done.
    """
    try:
        flow, tasks = load_fields(text)
        gates = tuple(NewGate(**gate) for gate in flow["gates"])
        return NewFlow(**{**flow, "gates": gates}), [_load_task(task) for task in tasks]
    except _UNREADABLE as error:
        raise ValueError(f"this is no flow: {error}") from error


def load_schedule(text: str | bytes, **known: Any) -> Schedule:
    """Read what :func:`dump_schedule` returned.

    :param known: fields that the store keeps apart from the text as well, such as ``revision`` and ``paused``: these
        count.
    :raises CorruptRecord: if that cannot be done; names the schedule and what to do about it.
    """
    name: object = known.get("id")
    try:
        fields = {**json.loads(text, object_hook=_load), **known}
        name = fields["id"]
        task = fields["task"]
        return Schedule(
            **{
                **fields,
                "task": _load_task(task),
                "misfire": Misfire(fields["misfire"]),
                "overlap": Overlap(fields["overlap"]),
                "apps": tuple(fields.get("apps", ())),
                "live_tasks": tuple(fields.get("live_tasks", ())),
            }
        )
    except _UNREADABLE as error:
        called = "a schedule" if name is None else f"schedule {name!r}"
        raise CorruptRecord(
            f"{called} cannot be read: {error}; delete it (omniq schedules delete) and store it anew"
        ) from error


def dump_limit(limit: Limit) -> str:
    """Return a limit as text, with its revision."""
    return json.dumps(asdict(limit), separators=(",", ":"))


def load_limit(text: str | bytes, limit_id: str) -> Limit:
    """Read what :func:`dump_limit` returned.

    :param limit_id: by which it was found.
    :raises CorruptRecord: if that cannot be done, or it is another limit.
    """
    try:
        limit = _load_limit(json.loads(text))
        if limit.id != limit_id:
            raise ValueError(f"its record is that of the limit {limit.id!r}")
        if type(limit.revision) is not int or limit.revision < 0:
            raise ValueError(f"its revision is {limit.revision!r}")
    except _UNREADABLE as error:
        raise corrupt_limit(limit_id, error) from error
    return limit


def corrupt_limit(limit_id: str, problem: BaseException | str) -> CorruptRecord:
    """Return the error that says that a limit cannot be read, what that does, and what to do about it."""
    reason = shown_reason(problem)
    return CorruptRecord(
        f"the limit {limit_id!r} cannot be read: {reason}; no task of it starts until it is set anew "
        "(omniq limits set) or deleted (omniq limits delete)",
        kind="limit",
        name=limit_id,
    )


def read_limit(text: Any, limit_id: str, problems: list[CorruptRecord]) -> Limit | None:
    """Read what :func:`dump_limit` returned, as a transaction needs it.

    :param text: anything: it may have been damaged.
    :param limit_id: by which it was found.
    :param problems: where it is noted that it cannot be read.
    :return: an :class:`~omniq.limit.UnreadableLimit` if it cannot be read; None if the id is none, either.
    """
    try:
        return load_limit(text, limit_id)
    except CorruptRecord as problem:
        problems.append(problem)
        return unreadable_limit(limit_id, problem)


def unreadable_limit(limit_id: str, problem: CorruptRecord) -> UnreadableLimit | None:
    """Return what holds in place of a limit that cannot be read; None if its id is none.

    :param limit_id: by which it was found.
    :param problem: what is wrong with it.
    """
    kind, _, name = limit_id.partition(":")
    reason = shown_reason(problem.__cause__ or problem)
    try:
        if kind == "queue":
            return UnreadableLimit(queue=name, problem=reason)
        if kind == "name":
            return UnreadableLimit(name=name, problem=reason)
    except ValueError:
        pass  # no task can name it
    return None


def _load_limit(fields: dict[str, Any]) -> Limit:
    rate, per_key = fields["rate"], fields["per_key"]
    parts = {
        "rate": None if rate is None else Rate(**rate),
        "per_key": None if per_key is None else _load_limit(per_key),
    }
    return Limit(**{**fields, **parts})
