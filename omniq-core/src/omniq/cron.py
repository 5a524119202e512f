"""Cron expressions: which local times fit one. What a time zone makes of these is said in ``triggers``."""

from __future__ import annotations

import calendar
import re
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from attrs import frozen

__all__ = ["ALIASES", "CronExpression", "parse_cron"]

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SEARCHED = 60 * 12
"""Months after which nothing more is looked for: 29 February on a certain weekday comes within 40 years."""

Time = tuple[int, int, int]


@frozen
class _Field:
    """One field of an expression: what it may hold."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()

    def number(self, text: str) -> int:
        if text in self.names:
            return self.names.index(text) + self.least
        if not re.fullmatch(r"[0-9]{1,4}", text) or not self.least <= int(text) <= self.most:
            names = f", or {self.names[0]} … {self.names[-1]}" if self.names else ""
            raise ValueError(f"{text!r} is no {self.name} ({self.least}–{self.most}{names})")
        return int(text)

    def values(self, item: str) -> Sequence[int]:
        """Return what an item of a list stands for: ``5``, ``mon-fri``, ``*/15``, ``10-50/20``; ``fri-mon``, too."""
        span, slash, step_text = item.partition("/")
        low_text, hyphen, high_text = span.partition("-")
        if low_text == "*" and not hyphen:
            low, high = self.least, self._last
        else:
            low = self.number(low_text)
            high = self.number(high_text) if hyphen else (self._last if slash else low)
        if low > high:  # on past the end, and from the beginning
            high += self._last - self.least + 1
        size = self._last - self.least + 1
        if slash and (not re.fullmatch(r"[0-9]{1,4}", step_text) or not 1 <= int(step_text) <= size):
            raise ValueError(
                f"{item!r}: a step of the {self.name} is 1 to {size}, as each round of them begins anew; for any other "
                "interval there is Every(…)"
            )
        return [self._wrapped(value) for value in range(low, high + 1, int(step_text) if slash else 1)]

    @property
    def _last(self) -> int:
        return self.most

    def _wrapped(self, value: int) -> int:
        return value if value <= self._last else value - (self._last - self.least + 1)


class _Weekday(_Field):
    """The day of week: 0 and 7 are Sunday."""

    @property
    def _last(self) -> int:
        return 6

    def _wrapped(self, value: int) -> int:
        return value % 7


_MINUTE = _Field("minute", 0, 59)
_HOUR = _Field("hour", 0, 23)
_DAY = _Field("day of month", 1, 31)
_MONTH = _Field("month", 1, 12, _MONTHS)
_WEEKDAY = _Weekday("day of week", 0, 7, _WEEKDAYS)
_SECOND = _Field("second", 0, 59)


@frozen
class CronExpression:
    """A cron expression, read. All days of week are counted from Sunday, 0."""

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    days: frozenset[int]
    last_day: bool
    """Whether the last day of the month fits, whichever it is."""
    weekdays: frozenset[int]
    nth_weekdays: frozenset[tuple[int, int]]
    """The day of week, and which of the month's: 2 is the second."""
    last_weekdays: frozenset[int]
    either_day: bool
    """Whether one of both day fields has to fit, rather than both."""

    def next_after(self, local: datetime) -> datetime | None:
        """Return the first time that fits and is later than another; None if none comes within decades.

        :param local: a naive datetime.
        """
        try:
            moment = local.replace(microsecond=0) + timedelta(seconds=1)
        except OverflowError:
            return None
        year, month, day = moment.year, moment.month, moment.day
        time = self._time_from((moment.hour, moment.minute, moment.second))
        if time is None:
            day += 1
        for _ in range(_SEARCHED):
            for found in _days(self, year, month) if month in self.months else ():
                if found == day and time is not None:
                    return datetime(year, month, found, *time)  # noqa: DTZ001  # local
                if found >= day:
                    return datetime(year, month, found, self.hours[0], self.minutes[0], self.seconds[0])  # noqa: DTZ001  # local
            day, time = 0, None
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
            if year > 9999:
                return None
        return None

    def _time_from(self, time: Time) -> Time | None:
        """Return the first time of day that fits and is not earlier than another."""
        hour, minute, second = time
        if hour in self.hours:
            if minute in self.minutes and (found := _not_before(self.seconds, second)) is not None:
                return hour, minute, found
            if (found := _not_before(self.minutes, minute + 1)) is not None:
                return hour, found, self.seconds[0]
        if (found := _not_before(self.hours, hour + 1)) is not None:
            return found, self.minutes[0], self.seconds[0]
        return None

    def fits(self, year: int, month: int, day: int) -> bool:
        """Tell whether a day fits the day fields."""
        length = calendar.monthrange(year, month)[1]
        weekday = calendar.weekday(year, month, day)
        weekday = (weekday + 1) % 7
        by_date = day in self.days or (self.last_day and day == length)
        by_weekday = (
            weekday in self.weekdays
            or (weekday, (day + 6) // 7) in self.nth_weekdays
            or (weekday in self.last_weekdays and day > length - 7)
        )
        return by_date or by_weekday if self.either_day else by_date and by_weekday


def _not_before(values: tuple[int, ...], least: int) -> int | None:
    at = bisect_left(values, least)
    return values[at] if at < len(values) else None


@lru_cache(maxsize=4096)
def _days(expression: CronExpression, year: int, month: int) -> tuple[int, ...]:
    length = calendar.monthrange(year, month)[1]
    return tuple(day for day in range(1, length + 1) if expression.fits(year, month, day))


def parse_cron(expr: str) -> CronExpression:
    """Read a cron expression.

    :param expr: five fields (minute, hour, day of month, month, day of week) or six (then the second), or an alias.
    :raises ValueError: if it is none; the message says what is wrong with it.
    """
    fields = _expanded(expr).lower().split()
    if len(fields) not in (5, 6):
        raise ValueError(
            f"it has {len(fields)} fields; write minute, hour, day of month, month, day of week, and if you like "
            "second, which comes last (Quartz and Spring put it first)"
        )
    minute, hour, day, month, weekday = fields[:5]
    try:
        for text in fields:
            _refuse_strangers(text)
        seconds = _plain(_SECOND, fields[5]) if len(fields) == 6 else [0]
        days, last_day = _days_of_month(day)
        weekdays, nth_weekdays, last_weekdays = _days_of_week(weekday)
        return CronExpression(
            seconds=tuple(sorted(set(seconds))),
            minutes=tuple(sorted(set(_plain(_MINUTE, minute)))),
            hours=tuple(sorted(set(_plain(_HOUR, hour)))),
            months=frozenset(_plain(_MONTH, month)),
            days=days,
            last_day=last_day,
            weekdays=weekdays,
            nth_weekdays=nth_weekdays,
            last_weekdays=last_weekdays,
            # As in Vixie cron: a field that begins with a star, be it with a step, restricts the other one.
            either_day=day[0] not in "*?" and weekday[0] not in "*?",
        )
    except ValueError as error:
        if len(fields) == 6:
            raise ValueError(
                f"{error}; of six fields the last is the second (Quartz and Spring put it first)"
            ) from None
        raise


def _expanded(expr: str) -> str:
    name, _, rest = expr.strip().lower().partition(" ")
    if not name.startswith("@"):
        return expr
    if name == "@reboot":
        raise ValueError("it names no time; enqueue the task where your program starts")
    if name == "@every":
        raise ValueError("for an interval there is Every(seconds)")
    if name not in ALIASES or rest:
        raise ValueError(f"the aliases are {', '.join(ALIASES)}")
    return ALIASES[name]


def _refuse_strangers(text: str) -> None:
    for item in text.split(","):
        if re.match(r"h($|[(/])", item):
            raise ValueError(f"{item!r}: H is of Jenkins; write a number, and spread runs with jitter= of the schedule")
        if re.match(r"r($|[(/])", item):
            raise ValueError(
                f"{item!r}: a random value would be another in each process; write a number, or use jitter="
            )
        if re.fullmatch(r"l?w|[0-9]+w", item):
            raise ValueError(f"{item!r}: W (the nearest working day) is not understood")


def _plain(field: _Field, text: str) -> list[int]:
    return [value for item in text.split(",") for value in field.values(item)]


def _days_of_month(text: str) -> tuple[frozenset[int], bool]:
    items = ("*" if text == "?" else text).split(",")
    plain = [item for item in items if item != "l"]
    return frozenset(value for item in plain for value in _DAY.values(item)), len(plain) < len(items)


def _days_of_week(text: str) -> tuple[frozenset[int], frozenset[tuple[int, int]], frozenset[int]]:
    plain: set[int] = set()
    nth: set[tuple[int, int]] = set()
    last: set[int] = set()
    for item in ("*" if text == "?" else text).split(","):
        day, mark, number = item.partition("#")
        if mark:
            if number not in ("1", "2", "3", "4", "5"):
                raise ValueError(f"{item!r}: after # comes 1 to 5, such as fri#2 for the second Friday")
            nth.add((_WEEKDAY.number(day) % 7, int(number)))
        elif item.startswith("l") and len(item) > 1:
            last.add(_WEEKDAY.number(item[1:]) % 7)
        elif item.endswith("l"):
            raise ValueError(f"{item!r}: the last Friday of a month is Lfri or L5")
        else:
            plain.update(_WEEKDAY.values(item))
    return frozenset(plain), frozenset(nth), frozenset(last)
