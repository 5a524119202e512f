"""What ``omniq export`` writes and ``omniq import`` reads: a line of JSON for each record, in plain ASCII.

The first line is ``{"omniq": "export", "format": 1, ...}``, the last says how many lines of each kind came before it,
so that a file that was cut off can be told from a whole one. Each line between them is an object of one member: its
kind, and the record. Kinds stand in the order of :data:`KINDS`, tasks in the order of enqueueing. Within a record
``{"at": ...}`` is a point in time, ``{"base64": ...}`` bytes; what has its default is left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeAlias

from attrs import asdict, fields

from omniq.errors import CorruptRecord
from omniq.flow import Flow, Gate, GateState
from omniq.limit import Limit, Limited, limit_id
from omniq.schedule import Schedule
from omniq.storage.corrupt_records import read_schedule
from omniq.storage.records import dump_fields, dump_schedule, load_fields, load_limit
from omniq.storage.validation import UNREADABLE, check_task, check_text
from omniq.task import Feed, LimitedTask, Progress, StoredTask, TaskError, TaskState

__all__ = ["FORMAT", "KINDS", "CutOff", "Record", "end_line", "first_line", "has_limits", "is_end", "line_of", "read"]

FORMAT = 1
"""Of the file. One who reads a larger number knows too little to go on."""
KINDS = ("paused", "limit", "flow", "task", "schedule")
"""A pause (the queue's name), a limit, a flow with its gates, a task, a schedule."""

Record: TypeAlias = str | Limit | Flow | StoredTask | Schedule
"""What one line holds; a text is the name of a queue that is paused."""


class CutOff(ValueError):
    """The file ends before its last line."""


def first_line(place: str, at: datetime, *, limits: bool) -> str:
    """Return the first line of a file.

    :param place: where the records come from, to be shown.
    :param at: when they were read.
    :param limits: whether there are limits in it, or tasks that only a store that holds limits can hold.
    """
    first = {"omniq": "export", "format": FORMAT, "from": place, "exported_at": at.isoformat()}
    return _line({**first, "limits": True} if limits else first)


def end_line(counts: Mapping[str, int]) -> str:
    """Return the last line of a file.

    :param counts: how many lines of each kind came before it.
    """
    return _line({"end": {kind: counts.get(kind, 0) for kind in KINDS}})


def line_of(record: Record) -> str:
    """Return the line of a record."""
    if isinstance(record, str):
        return _line({"paused": record})
    if isinstance(record, Schedule):
        return f'{{"schedule":{dump_schedule(record)}}}\n'
    if isinstance(record, Limit):
        # Keys of tasks may be anything, and so are no names of members here.
        fields = {**asdict(record), "weights": list(record.weights.items()), "revision": 0}
        return f'{{"limit":{dump_fields(fields)}}}\n'
    kind = "flow" if isinstance(record, Flow) else "task"
    return f'{{"{kind}":{dump_fields(_without_defaults(record))}}}\n'


def _line(value: object) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _without_defaults(record: Flow | StoredTask) -> dict[str, Any]:
    defaults = _DEFAULTS[type(record)]
    return {name: value for name, value in asdict(record, recurse=False).items() if value != defaults[name]}


_DEFAULTS = {kind: {field.name: field.default for field in fields(kind)} for kind in (Flow, StoredTask, LimitedTask)}


def is_end(line: bytes) -> bool:
    """Return whether a line is the last of a file."""
    return line.startswith(b'{"end":') and line.endswith(b"\n")


def has_limits(line: bytes) -> bool:
    """Return whether a first line says that only a store that holds limits can hold what is in the file."""
    return b'"limits":true' in line


def read(lines: Iterable[bytes]) -> Iterator[tuple[str, Record]]:
    """Yield the kind of each line between the first and the last, and its record.

    :raises CutOff: at the end, if the last line is missing.
    :raises ValueError: if a line cannot be read, or the file was written in a newer format; names the line.
    """
    counts: Counter[str] = Counter()
    number, ended = 0, False
    for number, line in enumerate(lines, 1):
        if ended:
            raise ValueError(f"line {number}: there is more after the last line; import one file at a time")
        if not line.endswith(b"\n"):
            break
        try:
            value = load_fields(line)
            if number == 1:
                _check_first(value)
                continue
            ((kind, content),) = value.items()
            record = None if kind == "end" else _READERS[kind](content)
        except CorruptRecord as problem:
            raise ValueError(f"line {number}: {problem}") from problem
        except KeyError as problem:
            raise ValueError(
                f"line {number}: there is no {problem} in it, or nothing of that name is known"
            ) from problem
        except UNREADABLE as problem:
            raise ValueError(f"line {number}: {problem}") from problem
        if record is not None:
            counts[kind] += 1
            yield kind, record
            continue
        ended = True
        if content != {kind: counts[kind] for kind in KINDS}:
            raise ValueError(
                f"line {number}: it counts {content}, and before it stand {dict(counts)}: lines are missing"
            )
    if not ended:
        raise CutOff(f"the file ends after {number:,} lines without its last one: the export was cut off")


def _check_first(value: Any) -> None:
    if not isinstance(value, dict) or value.get("omniq") != "export":
        raise ValueError("this is no file that omniq export wrote")
    known = value.get("format")
    if not isinstance(known, int) or known > FORMAT:
        raise ValueError(
            f"its format is {known}, and this version of OmniQ reads up to {FORMAT}; import it with a newer one"
        )


def _read_flow(content: dict[str, Any]) -> Flow:
    gates = tuple(Gate(**{**gate, "state": GateState(gate["state"])}) for gate in content["gates"])
    counts = {TaskState(state): int(count) for state, count in content["counts"].items()}
    check_text(content["id"], "id of a flow")
    given = {"unique": None, "finished_at": None, "hold_until": None, "cancelled": False}
    return Flow(**{**given, **content, "gates": gates, "counts": dict.fromkeys(TaskState, 0) | counts})


def _read_task(content: dict[str, Any]) -> StoredTask:
    error, progress, limited = content.get("error"), content.get("progress"), content.get("limited")
    made, own = (StoredTask, {}) if limited is None else (LimitedTask, {"limited": Limited(**limited)})
    return check_task(
        made(
            **{
                **content,
                "state": TaskState(content.get("state", TaskState.READY)),
                "tags": tuple(content.get("tags", ())),
                "feeds": tuple(Feed(**feed) for feed in content.get("feeds", ())),
                "error": None if error is None else TaskError(**error),
                "progress": None if progress is None else Progress(**progress),
                **own,
            }
        )
    )


def _read_limit(content: dict[str, Any]) -> Limit:
    fields = {**content, "weights": dict(content["weights"])}
    return load_limit(dump_fields(fields), limit_id(content["queue"], content["name"]))


_READERS: Mapping[str, Callable[[Any], Record]] = {
    "paused": lambda content: check_text(content, "queue"),
    "limit": _read_limit,
    "flow": _read_flow,
    "task": _read_task,
    "schedule": lambda content: read_schedule(dump_fields(content)),
}
