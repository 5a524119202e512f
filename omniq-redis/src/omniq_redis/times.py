"""Points in time as the scripts have them: microseconds since the epoch."""

from __future__ import annotations

from datetime import datetime

from omniq.storage.times import to_micros

__all__ = ["LATEST", "microseconds"]

LATEST = 253_402_300_799_999_968
"""The last microsecond that both a datetime and, exactly, Lua's numbers can name."""


def microseconds(when: datetime) -> int:
    """Return microseconds since the epoch; none before it."""
    return max(to_micros(when), 0)
