"""A clock that a test moves by hand, and with it leases, retries, delays, schedules and result TTLs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from omniq.storage.durations import aware, duration

__all__ = ["ManualClock"]

START = datetime(2030, 1, 1, tzinfo=UTC)


class ManualClock:
    """Stands still until it is moved. Pass it to a memory storage; callers that wait there are woken when it moves.

    :param now: an aware datetime to start from.
    """

    def __init__(self, now: datetime = START) -> None:
        self._lock = threading.Lock()
        self._now = aware(now, "now")
        self._listeners: list[Callable[[], None]] = []

    def __call__(self) -> float:
        """Return the time in seconds since 1970-01-01 UTC, as ``time.time()`` does."""
        return self._now.timestamp()

    def __repr__(self) -> str:
        return f"ManualClock({self._now.isoformat()})"

    @property
    def now(self) -> datetime:
        """The time, aware, in UTC."""
        return self._now

    def advance(self, by: float | timedelta) -> datetime:
        """Move on.

        :param by: seconds (or a timedelta), zero or more.
        :return: the new time.
        """
        return self.set(self._now + timedelta(seconds=duration(by, "by")))

    def set(self, now: datetime) -> datetime:
        """Move to a time, which may be earlier: clocks do that.

        :param now: an aware datetime.
        :return: the new time, in UTC.
        """
        with self._lock:
            self._now = aware(now, "now")
            listeners = list(self._listeners)
        for listener in listeners:
            listener()
        return self._now

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Have a function called whenever the clock was moved.

        :param listener: called without arguments, on the thread that moves the clock.
        """
        with self._lock:
            self._listeners.append(listener)
