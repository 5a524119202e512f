"""The triggers that come with OmniQ: at an interval, by a cron expression, once.

The rule for local times, of :class:`Cron`: a local time that does not exist, because clocks are put forward, fires at
the first instant after the gap; one that exists twice, because clocks are put back, fires once, at its first
occurrence.
"""

from __future__ import annotations

import functools
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar
from zoneinfo import ZoneInfo

from attrs import field, frozen

from omniq.durations import aware, duration
from omniq.errors import InvalidTrigger
from omniq.schedule import Trigger

if TYPE_CHECKING:
    from croniter import croniter

__all__ = ["At", "Cron", "Every"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = timedelta(microseconds=1)


def _interval(value: float | timedelta) -> float:
    try:
        seconds = duration(value, "Every")
    except ValueError as error:
        raise InvalidTrigger(str(error)) from None
    if seconds < 0.001:
        raise InvalidTrigger(f"Every must be at least a millisecond, not {value!r}")
    return seconds


def _anchor(value: datetime) -> datetime:
    return aware(value, "anchor")


@frozen
class Every(Trigger):
    """Fires at ``anchor`` and every so many seconds before and after it.

    The rhythm does not depend on when the schedule was made or a worker started: ``Every(3600)`` fires at each full
    hour (UTC).

    :param seconds: the interval, in seconds or as a timedelta; a millisecond or more.
    :param anchor: an aware datetime; default 1970-01-01 00:00 UTC.
    """

    kind: ClassVar[str] = "every"

    seconds: float = field(converter=_interval)
    anchor: datetime = field(default=EPOCH, converter=_anchor)

    def next_after(self, moment: datetime) -> datetime:
        # In whole microseconds, since a float cannot count them over decades.
        interval = timedelta(seconds=self.seconds)
        return self.anchor + ((moment - self.anchor) // interval + 1) * interval


def _at(value: datetime) -> datetime:
    return aware(value, "At")


@frozen
class At(Trigger):
    """Fires once. A time in the past fires at once, or not at all where the schedule's ``misfire`` is ``"skip"``.

    :param at: an aware datetime.
    """

    kind: ClassVar[str] = "at"

    at: datetime = field(converter=_at)

    def first(self, moment: datetime) -> datetime:
        return self.at

    def next_after(self, moment: datetime) -> datetime | None:
        return self.at if self.at > moment else None


@functools.lru_cache(maxsize=1024)
def _parsed(expr: str) -> croniter:
    from croniter import croniter  # imported late: it costs more than the whole of omniq

    return croniter(expr, EPOCH.replace(tzinfo=None))


def _expression(expr: str) -> str:
    if not isinstance(expr, str):
        raise InvalidTrigger(f"a cron expression must be a string, not {expr!r}")
    expr = " ".join(expr.split())
    if not expr.startswith("@") and len(expr.split()) not in (5, 6):
        raise InvalidTrigger(
            f"cron expression {expr!r} has {len(expr.split())} fields; write minute, hour, day of month, month, day of "
            "week, and if you like second"
        )
    try:
        _parsed(expr)
    except (ValueError, KeyError) as error:
        raise InvalidTrigger(f"cron expression {expr!r} cannot be read: {error}") from None
    try:
        _next_local(expr, EPOCH.replace(tzinfo=None))
    except ValueError:
        raise InvalidTrigger(f"cron expression {expr!r} never fires: no date fits all its fields") from None
    return expr


def _zone(tz: str) -> str:
    try:
        _zone_of(tz)
    except (KeyError, ValueError, OSError, TypeError):
        raise InvalidTrigger(
            f"time zone {tz!r} is not known here; use an IANA name such as 'Europe/Berlin' "
            "(on a system without its own zones: pip install tzdata)"
        ) from None
    return tz


@functools.lru_cache(maxsize=256)
def _zone_of(tz: str) -> ZoneInfo:
    return ZoneInfo(tz)


_reading = threading.Lock()


def _next_local(expr: str, local: datetime) -> datetime:
    with _reading:  # a croniter remembers where it stands
        found: datetime = _parsed(expr).get_next(datetime, start_time=local)
    return found


@frozen
class Cron(Trigger):
    """Fires at the times of a cron expression, on the clocks of a time zone.

    Five fields: minute, hour, day of month, month, day of week; a sixth is the second. Names (``mon``, ``jan``),
    ``L`` (the last), ``#`` (``fri#2``: the second Friday), ranges, steps and lists are understood, and ``@hourly``,
    ``@daily``, ``@midnight``, ``@weekly``, ``@monthly``, ``@yearly``. Where both day fields are restricted, either
    may fit, as in Vixie cron.

    :param expr: the expression.
    :param tz: an IANA time zone.
    :raises InvalidTrigger: if the expression cannot be read or never fires, or the zone is unknown.
    """

    kind: ClassVar[str] = "cron"

    expr: str = field(converter=_expression)
    tz: str = field(default="UTC", converter=_zone, kw_only=True)

    def next_after(self, moment: datetime) -> datetime | None:
        # On naive local times, which then are put on the time line one by one: so the rule for gaps and repeats is
        # ours.
        zone = _zone_of(self.tz)
        local = moment.astimezone(zone).replace(tzinfo=None)
        while True:
            try:
                local = _next_local(self.expr, local)
            except ValueError:
                return None
            instant = _instant_of(local, zone)
            if instant > moment:
                return instant


def _instant_of(local: datetime, zone: ZoneInfo) -> datetime:
    """Give the instant of a local time: the first of two, or the end of the gap that it falls into."""
    instant = local.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == local:
        return instant
    # In a gap the offset before it (fold=0) gives an instant after the change, the offset after it (fold=1) one before.
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    after = instant
    offset = after.astimezone(zone).utcoffset()
    while after - before > _INSTANT:
        middle = before + (after - before) // 2
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after
