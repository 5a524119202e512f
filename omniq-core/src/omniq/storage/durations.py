"""How users say "when" and "how long", and what is refused: one meaning for durations and datetimes everywhere."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

from omniq.task import When

__all__ = ["aware", "duration", "when"]

LONGEST = 100 * 365 * 86400.0
"""A hundred years in seconds: past it a wait is a mistake, and dates leave what datetime can hold."""


def duration(value: object, name: str) -> float:
    """Return the seconds of a duration.

    :param value: seconds as int or float, or a timedelta.
    :param name: what the duration is for, to be named in the error.
    :return: seconds, zero or more.
    :raises TypeError: if it is neither a number nor a timedelta.
    :raises ValueError: if it is negative, not finite or over a hundred years.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = _as_float(value)
    else:
        raise TypeError(f"{name} must be seconds (int or float) or a timedelta, not {value!r}")
    if math.isnan(seconds) or seconds < 0:
        raise ValueError(f"{name} must be zero or more seconds, not {value!r}")
    if seconds > LONGEST:
        raise ValueError(f"{name} must be at most a hundred years, not {value!r}")
    return seconds


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an int past what a float holds is as good as endless, and refused as that
        return math.inf if number > 0 else -math.inf


def aware(value: object, name: str) -> datetime:
    """Return the datetime in UTC.

    :param value: an aware datetime.
    :param name: what it is for, to be named in the error.
    :raises TypeError: if it is no datetime.
    :raises ValueError: if it has no time zone, or cannot be told in UTC (the first and last hours of the calendar).
    """
    if not isinstance(value, datetime):
        raise TypeError(f"{name} must be an aware datetime, not {value!r}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(
            f"{name} must be an aware datetime, but {value!r} has no time zone; "
            "write datetime.now(UTC) or datetime(..., tzinfo=ZoneInfo('Europe/Berlin'))"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(
            f"{name} must be a datetime that UTC can tell, but {value!r} is outside its calendar"
        ) from None


def when(value: object, name: str) -> When:
    """Return a point in time from an aware datetime, or from a duration that counts from the store's now.

    :raises TypeError: if it is neither.
    :raises ValueError: if it is a naive datetime or a negative duration.
    """
    if isinstance(value, datetime):
        return aware(value, name)
    if isinstance(value, bool) or not isinstance(value, (int, float, timedelta)):
        raise TypeError(
            f"{name} must be an aware datetime, or seconds (int, float) or a timedelta from now, not {value!r}"
        )
    return timedelta(seconds=duration(value, name))
