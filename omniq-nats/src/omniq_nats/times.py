"""Points in time as whole microseconds since the epoch, as records have them, and the clock of the servers."""

from __future__ import annotations

import functools
import re
import time
from datetime import UTC, datetime, timedelta

from omniq.task import When

__all__ = ["Clock", "clock_of", "from_micros", "is_moment", "micros", "moment", "span"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")


def micros(when: datetime) -> int:
    """Return a point in time as microseconds."""
    return (when - _EPOCH) // _MICROSECOND


@functools.lru_cache(maxsize=256)  # tasks that are claimed or enqueued together have the same ones
def from_micros(value: int) -> datetime:
    """Return microseconds as a point in time, in UTC."""
    return _EPOCH + timedelta(microseconds=value)


def is_moment(value: object) -> bool:
    """Return whether a value can be a point in time, in microseconds."""
    return type(value) is int and _FIRST <= value <= _LAST


def span(seconds: float) -> int:
    """Return seconds as microseconds, of endless ones the most that there are."""
    return int(min(seconds * 1e6, _LAST))


def moment(when: When, now: int) -> int:
    """Return a time, counted from now or by the calendar, as microseconds."""
    if isinstance(when, timedelta):
        return min(now + when // _MICROSECOND, _LAST)
    return micros(when)


def after(now: int, seconds: float) -> int:
    """Return the time some seconds later, or the last that there is."""
    return min(now + span(seconds), _LAST)


def read_stamp(text: str) -> int:
    """Return a time as the server writes it as microseconds."""
    match = _STAMP.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time as the server writes it")
    zone = "+00:00" if match[3] == "Z" else match[3]
    return micros(datetime.fromisoformat(match[1] + zone)) + int((match[2] or "0").ljust(6, "0")[:6])


class Clock:
    """The servers' clock, as far as questions and answers tell it: exact to half a round trip, and never going back.

    One for all storages of a process that are on the same store. Between two looks at the servers' clock the time goes
    on with the machine's steady one, so that a worker whose own clock is wrong, or is set, is not misled. There is no
    lock, which a fork might catch held: at worst two threads get the same time.
    """

    LOOK_EVERY = 20.0
    """Seconds after which the servers are asked again."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._doubt = 0.0
        self._looked_at = 0.0
        self._latest = 0

    @property
    def is_stale(self) -> bool:
        """Whether it is time to ask the servers."""
        return self._offset is None or time.monotonic() - self._looked_at > self.LOOK_EVERY

    def learn(self, sent: float, received: float, stamp: int) -> None:
        """Take note of what a server said.

        :param sent: the machine's steady clock when it was asked.
        :param received: and when the answer was there.
        :param stamp: the server's time.
        """
        offset = stamp - (sent + received) / 2 * 1e6
        doubt = (received - sent) / 2 * 1e6
        age = received - self._looked_at
        known = self._offset
        # A slow answer says less than an earlier quick one, unless both cannot be true.
        if known is None or doubt <= self._doubt or abs(offset - known) > doubt + self._doubt + age * 100:
            self._offset, self._doubt = offset, doubt
        elif age > 4 * self.LOOK_EVERY:
            self._doubt *= 2
        self._looked_at = received

    def now(self) -> int:
        """Return the time in microseconds; each is later than the one before."""
        offset = time.time() * 1e6 - time.monotonic() * 1e6 if self._offset is None else self._offset
        now = int(time.monotonic() * 1e6 + offset)
        if now <= self._latest and self._latest - now < 1_000_000:
            # Set back by a little: go on slowly. By more: the server's own clock was set, and it decides.
            now = self._latest + 1
        self._latest = now
        return now


_clocks: dict[object, Clock] = {}


def clock_of(place: object) -> Clock:
    """Return the clock of a store, the same one for all storages in this process."""
    return _clocks.setdefault(place, Clock())
