"""How a schedule is stored: as JSON that only clients read. What the server acts on is kept beside it."""

from __future__ import annotations

import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from attrs import asdict, evolve

from omniq.errors import CorruptRecord
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.task import NewTask
from omniq_redis.times import microseconds

__all__ = ["dump_schedule", "load_schedule", "next_run_of", "readable"]

_log = logging.getLogger("omniq.redis")

_MICROSECOND = timedelta(microseconds=1)


def dump_schedule(schedule: Schedule) -> bytes:
    """Give the text of a schedule."""
    return json.dumps(asdict(evolve(schedule, revision=0)), default=_dump).encode()


def _dump(value: object) -> Any:
    if isinstance(value, datetime):
        return {"at": value.isoformat()}
    if isinstance(value, timedelta):
        return {"in": value // _MICROSECOND}
    if isinstance(value, bytes):
        return {"bytes": b64encode(value).decode()}
    raise TypeError(f"a schedule cannot hold {value!r}")


def _load(value: dict[str, Any]) -> Any:
    match value:
        case {"at": str(text)}:
            return datetime.fromisoformat(text)
        case {"in": int(number)}:
            return timedelta(microseconds=number)
        case {"bytes": str(text)}:
            return b64decode(text)
    return value


def load_schedule(stored: bytes) -> Schedule:
    """Read what is stored of a schedule: its revision, and its text.

    :raises CorruptRecord: if that cannot be done.
    """
    try:
        fields = json.loads(stored[8:], object_hook=_load)
        task = fields.pop("task")
        return Schedule(
            **{
                **fields,
                "task": NewTask(**{**task, "tags": tuple(task["tags"])}),
                "misfire": Misfire(fields["misfire"]),
                "overlap": Overlap(fields["overlap"]),
                "revision": int.from_bytes(stored[:8], "big"),
            }
        )
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError, RecursionError) as problem:
        raise CorruptRecord(f"a schedule cannot be read: {problem}") from problem


def readable(found: Iterable[bytes | None]) -> list[Schedule]:
    """Read schedules; one that cannot be read must not keep the others from firing."""
    schedules = []
    for stored in found:
        try:
            if stored is not None:
                schedules.append(load_schedule(stored))
        except CorruptRecord as error:
            _log.error("%s", error)
    return schedules


def next_run_of(schedule: Schedule) -> bytes:
    """Give when a schedule fires next, as the server has it; empty if it is not to."""
    if schedule.paused or schedule.next_run is None:
        return b""
    return b"%d" % microseconds(schedule.next_run)
