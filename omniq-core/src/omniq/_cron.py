"""Cron expressions, computed by croniter: what it reads otherwise than cron does is split or refused here."""

from __future__ import annotations

import re
from copy import copy
from datetime import datetime
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from croniter import croniter

__all__ = ["ALIASES", "CronExpression"]

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_REFUSED_ALIASES = {
    "@reboot": "it names no time; enqueue the task where your program starts",
    "@every": "for an interval there is Every(seconds)",
}
_REFUSED_ITEMS = {
    r"h([(/].*)?": "H is of Jenkins; write a number, and spread runs with jitter= of the schedule",
    r"r([(/].*)?": "a random value would be another in each process; write a number, or use jitter=",
    r"l?w|\d+w|w\d+": "W (the nearest working day) is not understood",
    r"([0-7]|[a-z]{3})l": "the last Friday of a month is Lfri or L5",
    r".*#(?![1-5]$).*": "after # comes 1 to 5, such as fri#2 for the second Friday",
}


@frozen
class _Field:
    name: str
    least: int
    most: int
    names: str = ""

    def number(self, text: str) -> int:
        if text in (names := self.names.split()):
            return names.index(text) + self.least
        if not re.fullmatch("[0-9]{1,4}", text) or not self.least <= int(text) <= self.most:
            raise ValueError(f"{text!r} is no {self.name} ({', '.join([f'{self.least}–{self.most}', *names])})")
        return int(text)

    def item(self, item: str) -> str:
        """Return an item of the field's list as croniter takes it."""
        for pattern, says in _REFUSED_ITEMS.items():
            if re.fullmatch(pattern, item):
                raise ValueError(f"{item!r}: {says}")
        if self is _DAY and item == "l":
            return item
        if self is _WEEKDAY and re.match(r"l.|\w+#", item):
            day, mark, nth = item.removeprefix("l").partition("#")
            return f"{self.number(day) % 7}#{nth}" if mark else f"l{self.number(day) % 7}"
        span, slash, step = item.partition("/")
        low, hyphen, high = span.partition("-")
        last = self.most - (self is _WEEKDAY)
        size = last - self.least + 1
        length = size if span == "*" else (self.number(high) if hyphen else last) - self.number(low)
        if slash and not (re.fullmatch("[0-9]{1,4}", step) and 1 <= int(step) <= size):
            says = f"a step of the {self.name} is 1 to {size}, as each round of them begins anew"
            raise ValueError(f"{item!r}: {says}; for any other interval there is Every(…)")
        if length <= 0 and (slash or (hyphen and length % size == 0)):
            raise ValueError(f"{item!r}: a range of one value, or with a step past the last, is written as a list")
        return re.sub("(?<!/)7", "0", item) if self is _WEEKDAY else item  # croniter 6 knows no 7 beside seconds

    def parts(self, text: str) -> list[str]:
        """Return the parts of which one has to fit: croniter combines an L or # with nothing else."""
        items = ["*"] if text == "?" and self in (_DAY, _WEEKDAY) else [self.item(item) for item in text.split(",")]
        special = [item for item in items if re.match("l|.#", item)]
        plain = [item for item in items if item not in special]
        return [",".join(plain), *special] if plain else special


_DAY = _Field("day of month", 1, 31)
_MONTH = _Field("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec")
_WEEKDAY = _Field("day of week", 0, 7, "sun mon tue wed thu fri sat")
_FIELDS = _Field("minute", 0, 59), _Field("hour", 0, 23), _DAY, _MONTH, _WEEKDAY, _Field("second", 0, 59)


def _alternatives(expr: str) -> list[str]:
    """Return the expressions of which one has to fit."""
    if expr.startswith("@") and expr not in ALIASES:
        raise ValueError(_REFUSED_ALIASES.get(expr.partition(" ")[0], f"the aliases are {', '.join(ALIASES)}"))
    fields = ALIASES.get(expr, expr).split()
    quartz = "(Quartz and Spring put it first)"
    if len(fields) not in (5, 6):
        names = ", ".join(field.name for field in _FIELDS[:5])
        raise ValueError(
            f"it has {len(fields)} fields; write {names}, and if you like second, which comes last {quartz}"
        )
    try:
        parts = [field.parts(text) for field, text in zip(_FIELDS, fields, strict=False)]
    except ValueError as error:
        if len(fields) == 5:
            raise
        raise ValueError(f"{error}; of six fields the last is the second {quartz}") from None
    # As in Vixie cron: a field that begins with a star, be it with a step, restricts the other one.
    if fields[2][0] in "*?" or fields[4][0] in "*?":
        days = [(day, weekday) for day in parts[2] for weekday in parts[4]]
    else:
        days = [*((day, "*") for day in parts[2]), *(("*", weekday) for weekday in parts[4])]
    return [" ".join([*fields[:2], day, fields[3], weekday, *fields[5:]]) for day, weekday in days]


class CronExpression:
    """A cron expression, read."""

    def __init__(self, expr: str) -> None:
        parts = _alternatives(expr.lower())
        from croniter import croniter  # imported late: it costs more than the whole of omniq

        start = datetime(1970, 1, 1)  # noqa: DTZ001  # local
        # 29 February is a Sunday within 40 years. What never fires is left out, or it would be searched for each time.
        each = (croniter(part, start, datetime, day_or=False, max_years_between_matches=41) for part in parts)
        self._croniters = [one for one in each if _next(one, start)]

    def next_after(self, local: datetime) -> datetime | None:
        """Return the first time that fits and is later than another, both naive; None if none comes within decades."""
        return min((time for one in self._croniters if (time := _next(one, local))), default=None)


def _next(one: croniter[datetime], local: datetime) -> datetime | None:
    try:
        # A copy, as a croniter remembers where it stands and threads share it.
        return copy(one).get_next(start_time=local.replace(microsecond=0))
    except (ValueError, OverflowError):  # the years, or the calendar, are at their end
        return None
