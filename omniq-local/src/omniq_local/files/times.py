"""Points in time: whole microseconds since the epoch, which is how a file store compares them, and text in files."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache

from omniq.storage.times import LATEST, MICROSECOND, from_micros, to_micros
from omniq.task import When

__all__ = ["after", "read_time", "show_time", "when"]


def after(now: int, seconds: float) -> int:
    """Return what comes some seconds after a point in time, or the last that there is."""
    return min(now + round(min(seconds, 1e12) * 1e6), LATEST)


def when(given: When, now: int) -> int:
    """Return the point in time that a producer named."""
    if isinstance(given, timedelta):
        return min(max(now + given // MICROSECOND, 0), LATEST)
    return max(to_micros(given), 0)


# Many tasks of a batch have the same times.
@lru_cache(512)
def show_time(at: int) -> str:
    """Return a point in time as it stands in a file."""
    return from_micros(at).isoformat()


@lru_cache(512)
def read_time(text: str) -> int:
    """Read what :func:`show_time` wrote.

    :raises ValueError: if it is no time, or one before 1970.
    """
    at = to_micros(datetime.fromisoformat(text))
    if at < 0:
        raise ValueError(f"{text!r} is before 1970")
    return at
