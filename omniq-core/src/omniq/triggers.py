"""The triggers that come with OmniQ: at an interval, by a cron expression, once.

The rule for local times, of :class:`Cron`: a local time that does not exist, because clocks are put forward, fires at
the first instant after the gap; one that exists twice, because clocks are put back, fires once, at its first
occurrence.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import ClassVar
from zoneinfo import ZoneInfo

from attrs import field, frozen

from omniq._cron import CronExpression
from omniq.errors import InvalidTrigger
from omniq.schedule import Trigger
from omniq.storage.durations import aware, duration

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
def _parsed(expr: str) -> CronExpression:
    return CronExpression(expr)


def _expression(expr: str) -> str:
    if not isinstance(expr, str):
        raise InvalidTrigger(f"a cron expression must be a string, not {expr!r}")
    expr = " ".join(expr.split())
    try:
        parsed = _parsed(expr)
    except ValueError as error:
        raise InvalidTrigger(f"cron expression {expr!r} cannot be read: {error}") from None
    if parsed.next_after(EPOCH.replace(tzinfo=None)) is None:
        raise InvalidTrigger(f"cron expression {expr!r} never fires: no date fits all its fields")
    return expr


def _zone(tz: str | ZoneInfo) -> str:
    if isinstance(tz, ZoneInfo) and tz.key:
        tz = tz.key
    if not isinstance(tz, str):
        raise InvalidTrigger(f"tz must be the name of an IANA time zone such as 'Europe/Berlin' or 'UTC', not {tz!r}")
    try:
        _zone_of(tz)
    except (KeyError, ValueError, OSError):
        raise InvalidTrigger(
            f"time zone {tz!r} is not known here; use an IANA name such as 'Europe/Berlin' "
            "(on a system without its own zones: pip install tzdata)"
        ) from None
    return tz


@functools.lru_cache(maxsize=256)
def _zone_of(tz: str) -> ZoneInfo:
    return ZoneInfo(tz)


@frozen
class Cron(Trigger):
    """Fires at the times of a cron expression, on the clocks of a time zone.

    Five fields: minute, hour, day of month, month, day of week; a sixth, the last, is the second. Names (``mon``,
    ``jan``), ranges (``fri-mon``, too), steps and lists are understood; ``L`` for the last day of the month, ``Lfri``
    for its last Friday, ``fri#2`` for its second; and ``@hourly``, ``@daily``, ``@midnight``, ``@weekly``,
    ``@monthly``, ``@yearly``. Of the two day fields either may fit; but where one of them begins with ``*``, both must,
    as in Vixie cron: ``0 0 */2 * mon`` fires on Mondays with an odd date.

    :param expr: the expression.
    :param tz: an IANA time zone, by its name or as a ``ZoneInfo``.
    :raises InvalidTrigger: if the expression cannot be read or never fires, or the zone is unknown.
    """

    kind: ClassVar[str] = "cron"

    expr: str = field(converter=_expression)
    tz: str = field(default="UTC", converter=_zone, kw_only=True)

    def next_after(self, moment: datetime) -> datetime | None:
        # On naive local times, which then are put on the time line one by one: so the rule for gaps and repeats is
        # ours.
        zone, parsed = _zone_of(self.tz), _parsed(self.expr)
        local = moment.astimezone(zone).replace(tzinfo=None)
        while True:
            following = parsed.next_after(local)
            if following is None:
                return None
            local = following
            instant = _instant_of(local, zone)
            if instant > moment:
                return instant


def _instant_of(local: datetime, zone: ZoneInfo) -> datetime:
    """Return the instant of a local time: the first of two, or the end of the gap that it falls into."""
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
