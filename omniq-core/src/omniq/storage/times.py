"""Points in time and durations as stores keep them: whole microseconds, which come back exactly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

__all__ = ["EPOCH", "LATEST", "MICROSECOND", "from_micros", "optional_micros", "optional_moment", "span", "to_micros"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
LATEST = 253_402_300_799_999_999
"""The last microsecond that a datetime can name."""
LONGEST = 100 * 366 * 86400.0
"""A hundred years, in seconds."""


def to_micros(moment: datetime) -> int:
    """Return an aware datetime as microseconds since the epoch."""
    return (moment - EPOCH) // MICROSECOND


# The tasks of one batch share most of their times.
@lru_cache(maxsize=1024)
def from_micros(number: int) -> datetime:
    """Return microseconds since the epoch as a datetime in UTC."""
    return EPOCH + timedelta(0, 0, number)


def optional_micros(moment: datetime | None) -> int | None:
    """Return an aware datetime as microseconds since the epoch, or None."""
    return None if moment is None else to_micros(moment)


def optional_moment(number: int | None) -> datetime | None:
    """Return microseconds since the epoch as a datetime in UTC, or None."""
    return None if number is None else from_micros(number)


def span(seconds: float) -> int:
    """Return a duration in microseconds; what no calendar can hold becomes a hundred years."""
    return int(min(max(seconds, 0.0), LONGEST) * 1e6 + 0.5)
