"""Putting what a store holds into words for people: times, durations and numbers."""

from __future__ import annotations

import math
from datetime import datetime

__all__ = ["ago", "exact", "local_time", "plural", "relative", "rough_duration"]

# From twice a unit on it is exact enough.
_UNITS = ((2 * 31536000, 31536000, "y"), (2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (60, 60, "min"))


def plural(number: int, noun: str) -> str:
    """Return ``1 task``, ``1,204 tasks``, ``no tasks``."""
    if number == 0:
        return f"no {noun}s"
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def local_time(moment: datetime) -> str:
    """Return a point in time as the clocks here show it."""
    return f"{_here(moment):%Y-%m-%d %H:%M:%S}"


def _here(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except (OverflowError, ValueError, OSError):  # at the ends of what a datetime can say
        return moment


def exact(moment: datetime, now: datetime) -> str:
    """Return a point in time with its time zone, and how far away it is."""
    return f"{local_time(moment)} {_here(moment):%Z} ({relative(moment, now)})"


def rough_duration(seconds: float) -> str:
    """Return a duration in one unit, for tables: ``12 s``, ``90 min``, ``5 h``, ``12 d``, ``3 y``."""
    if not math.isfinite(seconds):
        return "?"
    whole = int(max(seconds, 0.0))
    for least, size, unit in _UNITS:
        if whole >= least:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def ago(moment: datetime | None, now: datetime) -> str:
    """Return how long a point in time is past: ``3 min ago``; ``-`` if there is none."""
    return "-" if moment is None else f"{rough_duration((now - moment).total_seconds())} ago"


def relative(moment: datetime, now: datetime) -> str:
    """Return how far a point in time is away: ``in 3 min``, ``3 min ago``."""
    ahead = (moment - now).total_seconds()
    return f"in {rough_duration(ahead)}" if ahead > 0 else ago(moment, now)
