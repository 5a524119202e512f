"""Triggers in words: ``every hour``, ``Monday to Friday at 09:00 Europe/Berlin``.

Only what can be said in a few words is; any other cron expression is shown as it is.
"""

from __future__ import annotations

import re

from omniq._cron import ALIASES
from omniq.cli.terminal import human_duration
from omniq.cli.wording import local_time
from omniq.schedule import Trigger
from omniq.triggers import EPOCH, At, Cron, Every

__all__ = ["in_words"]

_DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DAY_NAMES = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_SINGLE_UNITS = {"1 min": "minute", "1 h": "hour", "1 d": "day"}


def in_words(trigger: Trigger) -> str:
    """Say when a trigger fires."""
    match trigger:
        case Every():
            return _every(trigger)
        case At():
            return f"once, at {local_time(trigger.at)}"
        case Cron():
            words = _cron(ALIASES.get(trigger.expr, trigger.expr)) or f"cron {trigger.expr}"
            return f"{words} {trigger.tz}"
    return repr(trigger)


def _every(trigger: Every) -> str:
    text = _interval(trigger.seconds)
    return f"every {text}" if trigger.anchor == EPOCH else f"every {text} from {local_time(trigger.anchor)}"


def _interval(seconds: float) -> str:
    if seconds < 60:
        return "second" if seconds == 1 else f"{seconds:g} s"
    # What is dropped when a long duration is rounded matters here: 86,430 s are no day.
    text = human_duration(seconds)
    kept = sum(
        int(number) * {"d": 86400, "h": 3600, "min": 60, "s": 1}[unit]
        for number, unit in re.findall(r"(\d+) (\w+)", text)
    )
    return _SINGLE_UNITS.get(text, text) if kept == seconds else f"{seconds:,.10g} s"


def _cron(expr: str) -> str | None:
    fields = expr.split()
    if len(fields) != 5:
        return None
    minute, hour, day, month, weekday = fields
    if [hour, day, month, weekday] == ["*"] * 4:
        return _within_the_hour(minute)
    if not (minute.isdecimal() and hour.isdecimal()) or month != "*":
        return None
    days = _days(day, weekday)
    return None if days is None else f"{days} at {int(hour):02}:{int(minute):02}"


def _within_the_hour(minute: str) -> str | None:
    if minute in ("*", "*/1"):
        return "every minute"
    if minute.isdecimal():
        return f"every hour at :{int(minute):02}"
    step = re.fullmatch(r"\*/(\d+)", minute)
    # Any other step begins anew at the full hour.
    return f"every {step[1]} min" if step is not None and 60 % int(step[1]) == 0 else None


def _days(day: str, weekday: str) -> str | None:
    if day == weekday == "*":
        return "every day"
    if weekday == "*" and day.isdecimal():
        return f"day {int(day)} of every month"
    if day != "*":
        return None
    span = re.fullmatch(r"(\w+)-(\w+)", weekday)
    names = [_day(part) for part in (span.groups() if span else weekday.split(","))]
    known = [name for name in names if name is not None]
    if len(known) < len(names):
        return None
    return " to ".join(known) if span else ", ".join(dict.fromkeys(known))


def _day(text: str) -> str | None:
    number = _DAY_NAMES.get(text.lower(), text)
    return _DAYS[int(number)] if re.fullmatch("[0-7]", str(number)) else None
