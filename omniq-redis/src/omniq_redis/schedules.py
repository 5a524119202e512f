"""What a schedule is on the server: its revision, its text that only clients read, and when it fires."""

from __future__ import annotations

from collections.abc import Iterable

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.records import load_schedule
from omniq.schedule import Schedule
from omniq_redis.times import microseconds

__all__ = ["next_run_of", "read_schedule", "readable"]

_log = get_logger("omniq.redis")


def read_schedule(stored: bytes) -> Schedule:
    """Read what is stored of a schedule: its revision, and its text.

    :raises CorruptRecord: if that cannot be done.
    """
    return load_schedule(stored[8:], revision=int.from_bytes(stored[:8], "big"))


def readable(found: Iterable[bytes | None]) -> list[Schedule]:
    """Read schedules; one that cannot be read must not keep the others from firing."""
    schedules = []
    for stored in found:
        try:
            if stored is not None:
                schedules.append(read_schedule(stored))
        except CorruptRecord as error:
            _log.error("%s", error)
    return schedules


def next_run_of(schedule: Schedule) -> bytes:
    """Give when a schedule fires next, as the server has it; empty if it is not to."""
    if schedule.paused or schedule.next_run is None:
        return b""
    return b"%d" % microseconds(schedule.next_run)
