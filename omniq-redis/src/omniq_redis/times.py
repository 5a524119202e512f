"""Points in time and durations, as the scripts have them: microseconds, in the first case since the epoch."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta

__all__ = ["EPOCH", "LATEST", "microseconds", "moment", "span"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = 253_402_300_799_999_968
"""The last microsecond that both a datetime and, exactly, Lua's numbers can name."""
LONGEST = 100 * 366 * 86400.0
"""A hundred years, in seconds."""


def microseconds(when: datetime) -> int:
    """Return microseconds since the epoch; none before it."""
    return max((when - EPOCH) // timedelta(microseconds=1), 0)


# The tasks of a batch share most of their times.
@functools.lru_cache(maxsize=1024)
def moment(value: int) -> datetime:
    """Return the datetime of microseconds since the epoch, exactly."""
    return EPOCH + timedelta(0, 0, value)


def span(seconds: float) -> int:
    """Return a duration in microseconds; what no calendar can hold becomes a hundred years."""
    return int(min(max(seconds, 0.0), LONGEST) * 1e6 + 0.5)
