"""Points in time: whole microseconds since the epoch, which is how a file store compares them, and text in files."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from omniq.task import When

__all__ = ["LATEST", "after", "micros", "moment", "read_time", "show_time", "when"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = 253_402_300_799_999_999
"""The last microsecond that a datetime can name."""
_MICROSECOND = timedelta(microseconds=1)


def micros(at: datetime) -> int:
    """Return a point in time in microseconds."""
    return (at - EPOCH) // _MICROSECOND


def moment(at: int) -> datetime:
    """Return a number of microseconds as a point in time."""
    return EPOCH + timedelta(0, 0, at)


def after(now: int, seconds: float) -> int:
    """Return what comes some seconds after a point in time, or the last that there is."""
    return min(now + round(min(seconds, 1e12) * 1e6), LATEST)


def when(given: When, now: int) -> int:
    """Return the point in time that a producer named."""
    if isinstance(given, timedelta):
        return min(max(now + given // _MICROSECOND, 0), LATEST)
    return max(micros(given), 0)


# Many tasks of a batch have the same times.
@lru_cache(512)
def show_time(at: int) -> str:
    """Return a point in time as it stands in a file."""
    return (EPOCH + timedelta(0, 0, at)).isoformat()


@lru_cache(512)
def read_time(text: str) -> int:
    """Read what :func:`show_time` wrote.

    :raises ValueError: if it is no time, or one before 1970.
    """
    at = (datetime.fromisoformat(text) - EPOCH) // _MICROSECOND
    if at < 0:
        raise ValueError(f"{text!r} is before 1970")
    return at
