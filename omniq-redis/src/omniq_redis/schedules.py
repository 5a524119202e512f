"""What a schedule is on the server: its revision, its text that only clients read, and when it fires."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage.corrupt_records import corrupt, read_schedule
from omniq_redis.times import microseconds

__all__ = ["next_run_of", "schedules_of"]


def schedules_of(found: Sequence[Any]) -> Iterator[Schedule | CorruptRecord]:
    """Read what is stored of schedules; what cannot be read is the error that says so.

    :param found: ids, and the revision and text of each.
    """
    for name, stored in _both(*found):
        if stored is not None:
            yield _read(name, stored)


def _both(names: Iterable[bytes], stored: Iterable[bytes | None]) -> Iterable[tuple[bytes, bytes | None]]:
    return zip(names, stored, strict=True)


def _read(word: bytes, stored: bytes) -> Schedule | CorruptRecord:
    name = word.decode("utf-8", "surrogateescape")
    try:
        schedule = read_schedule(stored[8:], revision=int.from_bytes(stored[:8], "big"))
        if schedule.id != name:
            return corrupt("schedule", name, f"its record is that of schedule {schedule.id!r}")
    except CorruptRecord as problem:
        return corrupt("schedule", name, problem.__cause__ or problem, place="key schedules")
    return schedule


def next_run_of(schedule: Schedule) -> bytes:
    """Return when a schedule fires next, as the server has it; empty if it is not to."""
    if schedule.paused or schedule.next_run is None:
        return b""
    return b"%d" % microseconds(schedule.next_run)
