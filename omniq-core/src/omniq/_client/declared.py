"""What a program says of a schedule, each part checked where it is written."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from attrs import field, frozen

from omniq._tasks.functions import TaskCall
from omniq._tasks.options import Duration
from omniq.errors import InvalidTrigger
from omniq.schedule import Misfire, Overlap, Trigger
from omniq.storage.durations import aware, duration

__all__ = ["DeclaredSchedule", "ScheduleOptions", "check_schedule_id", "check_trigger"]

C = TypeVar("C", Misfire, Overlap)

LONGEST_ID = 300


def check_schedule_id(schedule_id: object) -> str:
    """Return a schedule's id if it can be one.

    :raises TypeError: if it is no string.
    :raises ValueError: if it is empty, too long, or has characters that cannot be shown.
    """
    if not isinstance(schedule_id, str):
        raise TypeError(f"a schedule's id must be a string, not {schedule_id!r}")
    if not 0 < len(schedule_id) <= LONGEST_ID or not schedule_id.isprintable():
        raise ValueError(f"a schedule's id must have 1 to {LONGEST_ID} printable characters, not {schedule_id!r}")
    return schedule_id


def check_trigger(trigger: object) -> Trigger:
    """Return a trigger if it is one.

    :raises TypeError: if it is none; the message says what to write.
    """
    if isinstance(trigger, Trigger):
        return trigger
    match trigger:
        case str():
            mend = f"write Cron({trigger!r})"
        case int() | float():
            mend = f"write Every({trigger!r})"
        case datetime():
            mend = "write At(...)"
        case _:
            mend = "such as Every(60), Cron('0 9 * * *') or At(...)"
    raise TypeError(f"a schedule's trigger must be a Trigger, not {trigger!r}; {mend}")


def _choice(kind: type[C], value: str, name: str) -> C:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, map(str, kind)))}, not {value!r}") from None


def _misfire(value: str) -> Misfire:
    return _choice(Misfire, value, "misfire")


def _overlap(value: str) -> Overlap:
    return _choice(Overlap, value, "overlap")


def _jitter(value: Duration) -> float:
    return duration(value, "jitter")


def _start(value: datetime | None) -> datetime | None:
    return None if value is None else aware(value, "start")


def _end(value: datetime | None) -> datetime | None:
    return None if value is None else aware(value, "end")


@frozen(kw_only=True)
class ScheduleOptions:
    """What else can be said of a schedule than its call and its trigger. Every field is checked on construction."""

    misfire: Misfire = field(default=Misfire.LATEST, converter=_misfire)
    overlap: Overlap = field(default=Overlap.ALLOW, converter=_overlap)
    jitter: float = field(default=0.0, converter=_jitter)
    start: datetime | None = field(default=None, converter=_start)
    end: datetime | None = field(default=None, converter=_end)

    def __attrs_post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.end < self.start:
            raise InvalidTrigger(f"a schedule ends ({self.end}) before it starts ({self.start})")


@frozen(kw_only=True)
class DeclaredSchedule:
    """A schedule as it was declared in code."""

    id: str = field(converter=check_schedule_id)
    call: TaskCall[Any]
    trigger: Trigger = field(converter=check_trigger)
    options: ScheduleOptions = ScheduleOptions()

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.call, TaskCall):
            raise TypeError(f"{self.call!r} is no call of a task; write function.call(…), which does not run it yet")
