"""Triggers say when a schedule fires: over a year with both changes of the clocks, against a calculation of its own."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib.metadata import requires, version
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from omniq import At, Cron, Every, InvalidTrigger, Trigger
from omniq._tasks.policies import decode_value, encode_value
from omniq.plugins import default_plugins

YEAR = datetime(2026, 1, 1, tzinfo=UTC)
END = YEAR + timedelta(days=366)
QUARTER = timedelta(minutes=15)
"""Every change of clocks falls on a quarter of an hour, and so do all times of these expressions."""

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Santiago",  # puts the clocks forward at midnight
    "Asia/Beirut",  # likewise
    "Australia/Lord_Howe",  # by half an hour
    "Africa/Casablanca",  # back for the month of Ramadan
    "Pacific/Chatham",  # an offset with three quarters of an hour
    "Asia/Kathmandu",  # never changes
]
EXPRESSIONS: dict[str, Callable[[datetime], bool]] = {
    "30 2 * * *": lambda local: (local.hour, local.minute) == (2, 30),
    "0 0 * * *": lambda local: (local.hour, local.minute) == (0, 0),
    "*/15 0-3 * feb-apr,sep-nov *": lambda local: local.hour <= 3 and local.month in (2, 3, 4, 9, 10, 11),
    "0 */6 * * *": lambda local: local.minute == 0 and local.hour % 6 == 0,
    "15 1 * * sun": lambda local: (local.hour, local.minute) == (1, 15) and local.isoweekday() == 7,
    "45 23 L * *": lambda local: (local.hour, local.minute) == (23, 45) and (local + timedelta(days=1)).day == 1,
    "30 1 * mar,oct,nov fri#2": lambda local: (
        (local.hour, local.minute) == (1, 30)
        and local.month in (3, 10, 11)
        and local.isoweekday() == 5
        and 8 <= local.day <= 14
    ),
}


def fires(trigger: Trigger, start: datetime, end: datetime) -> Iterator[datetime]:
    moment = trigger.next_after(start)
    while moment is not None and moment < end:
        yield moment
        moment = trigger.next_after(moment)


@functools.cache
def year_on_the_wall(tz: str) -> list[tuple[datetime, list[datetime]]]:
    """Walk through the year by the quarter of an hour and look at the clock on the wall, as a person would.

    Gives each instant with the wall times that come up then for the first time: one, none (the clocks went back), or
    several (a gap was jumped).
    """
    zone = ZoneInfo(tz)
    instant = YEAR - timedelta(days=1)
    seen = instant.astimezone(zone).replace(tzinfo=None)
    walk: list[tuple[datetime, list[datetime]]] = []
    while instant < END:
        local = instant.astimezone(zone).replace(tzinfo=None)
        new = []
        while seen < local:
            seen += QUARTER
            new.append(seen)
        walk.append((instant, new))
        instant += QUARTER
    return walk


def expected(fits: Callable[[datetime], bool], tz: str) -> list[datetime]:
    return [instant for instant, new in year_on_the_wall(tz) if instant > YEAR and any(map(fits, new))]


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_cron_fires_once_for_each_local_time_also_where_clocks_change(expr: str, tz: str) -> None:
    assert list(fires(Cron(expr, tz=tz), YEAR, END)) == expected(EXPRESSIONS[expr], tz)


def test_a_local_time_in_the_gap_fires_at_the_first_instant_after_it() -> None:
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)

    assert Cron("30 2 * * *", tz="Europe/Berlin").next_after(before) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


def test_a_local_time_that_comes_twice_fires_the_first_time_only() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    cron = Cron("30 2 * * *", tz="Europe/Berlin")

    assert cron.next_after(first - timedelta(hours=3)) == first
    assert cron.next_after(first) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_a_sixth_field_is_the_second() -> None:
    assert Cron("* * * * * 30").next_after(YEAR) == YEAR + timedelta(seconds=30)


@pytest.mark.parametrize(
    ("alias", "expr"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ],
)
def test_an_alias_means_its_expression(alias: str, expr: str) -> None:
    end = YEAR + timedelta(days=800)
    found, wanted = (list(itertools.islice(fires(Cron(text), YEAR, end), 200)) for text in (alias, expr))

    assert found == wanted


@pytest.mark.parametrize(
    ("expr", "says"),
    [
        ("0 0 30 2 *", "never fires"),
        ("61 * * * *", "cannot be read"),
        ("* * * *", "has 4 fields"),
        ("", "has 0 fields"),
        ("@reboot", "cannot be read: it names no time; enqueue the task where your program starts"),
        ("@every 5m", r"Every\(seconds\)"),
        ("@fortnightly", "the aliases are @hourly, @daily"),
        ("* * * foo *", "'foo' is no month"),
        ("* * * * * * 2030", "has 7 fields.*second, which comes last .Quartz and Spring put it first"),
        ("0 0 12 ? * MON-FRI", "the second .Quartz and Spring put it first"),
        ("H 3 * * *", "H is of Jenkins; write a number, and spread runs with jitter="),
        ("0 R(1-5) * * *", "random value would be another in each process"),
        ("0 0 15W * *", "nearest working day"),
        ("0 0 * * 5L", "Lfri or L5"),
        ("0 0 * * fri#6", "after # comes 1 to 5"),
        ("0 0 * * 8", "'8' is no day of week"),
        ("*/90 * * * *", r"a step of the minute is 1 to 60.*Every"),
        ("*/0 * * * *", "a step of the minute"),
        ("1, * * * *", "'' is no minute"),
        ("-1 * * * *", "'' is no minute"),
        ("5-5 * * * *", "'5-5': a range of one value, .* is written as a list"),
        ("0 0 * * 7-sun", "'7-sun': a range of one value"),
        ("59/15 * * * *", "'59/15': .* a step past the last"),
        ("0 22-4/3 * * *", "'22-4/3': .* a step past the last"),
        ("0 ? * * *", r"'\?' is no hour"),
    ],
)
def test_an_expression_that_cannot_fire_is_refused(expr: str, says: str) -> None:
    with pytest.raises(InvalidTrigger, match=says):
        Cron(expr)


@pytest.mark.parametrize(
    ("expr", "fits"),
    [
        ("0 0 13 * fri#2", lambda day: day.day == 13 or (day.isoweekday() == 5 and 8 <= day.day <= 14)),
        ("0 0 L * mon#1", lambda day: is_last(day) or (day.isoweekday() == 1 and day.day <= 7)),
        ("0 0 1,L * Lfri", lambda day: day.day == 1 or is_last(day) or (day.isoweekday() == 5 and is_last(day, 7))),
        ("0 0 13 * fri", lambda day: day.day == 13 or day.isoweekday() == 5),
        ("0 0 */2 * mon", lambda day: day.day % 2 == 1 and day.isoweekday() == 1),
        ("0 0 1-7 * */2", lambda day: day.day <= 7 and day.isoweekday() in (7, 2, 4, 6)),
        ("0 0 ? * fri-mon", lambda day: day.isoweekday() in (5, 6, 7, 1)),
        (
            "0 0 * * 5-7,wed#3",
            lambda day: day.isoweekday() in (5, 6, 7) or (day.isoweekday() == 3 and 15 <= day.day < 22),
        ),
        ("0 0 28-3 nov-feb *", lambda day: (day.day >= 28 or day.day <= 3) and day.month in (11, 12, 1, 2)),
        ("0 0 5/10 3/4 *", lambda day: day.day in (5, 15, 25) and day.month in (3, 7, 11)),
        ("0 0 1,30 * *", lambda day: day.day in (1, 30)),
        ("0 0 2-31,L * ?", lambda day: day.day >= 2),
        ("0 0 30 2 fri", lambda day: (day.isoweekday(), day.month) == (5, 2)),
        ("0 0 * * 1-7/3 0", lambda day: day.isoweekday() in (1, 4, 7)),
        ("0 0 * * 7,L7,7#1,tue 0", lambda day: day.isoweekday() in (2, 7)),
        ("0 0 29 2 *", lambda day: (day.month, day.day) == (2, 29)),
    ],
)
def test_cron_fires_on_the_days_that_fit(expr: str, fits: Callable[[datetime], bool]) -> None:
    end = YEAR + timedelta(days=2 * 366)
    days = [YEAR + timedelta(days=number) for number in range(1, 2 * 366)]

    assert list(fires(Cron(expr), YEAR, end)) == [day for day in days if fits(day)]


def is_last(day: datetime, days: int = 1) -> bool:
    return (day + timedelta(days=days)).month != day.month


def test_cron_finds_every_time_of_a_day() -> None:
    cron = Cron("10-20/5,50 22-1 * * * 1,59")
    moment = datetime(2026, 3, 5, 1, 50, 1, tzinfo=UTC)

    found = list(itertools.islice(fires(cron, moment, moment + timedelta(days=1)), 4))

    assert [f"{time:%H:%M:%S}" for time in found] == ["01:50:59", "22:10:01", "22:10:59", "22:15:01"]


def test_threads_may_ask_the_same_cron_at_once() -> None:
    usual = sys.getswitchinterval()
    cron = Cron("*/5 * * * *")
    moments = [YEAR + timedelta(hours=hours) for hours in range(1600)]
    alone = [cron.next_after(moment) for moment in moments]

    with ThreadPoolExecutor(4) as threads:
        try:
            sys.setswitchinterval(1e-6)
            found = [*threads.map(lambda way: [cron.next_after(moment) for moment in moments[::way]], [1, -1] * 3)]
        finally:
            sys.setswitchinterval(usual)

    assert found == [alone, alone[::-1]] * 3


@pytest.mark.long
def test_all_this_holds_with_the_lowest_croniter_that_is_allowed(tmp_path: Path) -> None:
    (needed,) = (text for text in requires("omniq-core") or () if text.startswith("croniter"))
    (lowest,) = (part.version for part in Requirement(needed).specifier if part.operator == ">=")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*pip, f"croniter=={lowest}"], check=True)

    quick = "not where_clocks_change and not lowest and not alias"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-k", quick, __file__],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_cron_is_computed_by_a_croniter_of_the_tested_range() -> None:
    assert (6, 1) <= tuple(map(int, version("croniter").split(".")[:2])) < (8,)


def test_the_end_of_the_calendar_is_no_error() -> None:
    assert Cron("* * * * *").next_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)) is None


def test_a_zone_can_be_given_as_python_has_it() -> None:
    assert Cron("0 9 * * *", tz=ZoneInfo("Asia/Tokyo")) == Cron("0 9 * * *", tz="Asia/Tokyo")
    with pytest.raises(InvalidTrigger, match="name of an IANA time zone such as 'Europe/Berlin' or 'UTC', not"):
        Cron("0 9 * * *", tz=UTC)  # type: ignore[arg-type]  # that is the mistake


@pytest.mark.parametrize("tz", ["Mars/Olympus", "", "../etc/passwd", "europe"])
def test_an_unknown_zone_is_refused_with_an_example(tz: str) -> None:
    with pytest.raises(InvalidTrigger, match="Europe/Berlin"):
        Cron("* * * * *", tz=tz)


def test_a_leap_day_is_found_years_ahead() -> None:
    assert Cron("0 0 29 2 *").next_after(YEAR) == datetime(2028, 2, 29, tzinfo=UTC)


@given(
    interval=st.timedeltas(timedelta(seconds=1), timedelta(days=400)),
    moment=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  # made aware
)
def test_every_fires_at_the_next_whole_interval_from_its_anchor(interval: timedelta, moment: datetime) -> None:
    every = Every(interval, anchor=datetime(2026, 5, 1, tzinfo=UTC))

    following = every.next_after(moment)

    assert following > moment
    assert following - moment <= interval
    assert (following - every.anchor) % timedelta(seconds=every.seconds) == timedelta(0)


def test_every_keeps_its_rhythm_when_clocks_change() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    start = datetime(2026, 3, 28, 20, tzinfo=berlin)

    times = list(fires(Every(3600, anchor=start), start, start + timedelta(days=2)))

    assert {later - earlier for earlier, later in itertools.pairwise(times)} == {timedelta(hours=1)}


def test_every_without_an_anchor_fires_at_the_same_times_in_every_process() -> None:
    assert Every(3600).next_after(YEAR + timedelta(minutes=1)) == YEAR + timedelta(hours=1)


@pytest.mark.parametrize("interval", [0, -1, timedelta(0), float("nan"), 1e-9])
def test_an_interval_of_nothing_is_refused(interval: float | timedelta) -> None:
    with pytest.raises(InvalidTrigger):
        Every(interval)


def test_at_fires_once() -> None:
    at = At(YEAR)

    assert at.next_after(YEAR - timedelta(seconds=1)) == YEAR
    assert at.next_after(YEAR) is None
    assert at.first(YEAR + timedelta(days=1)) == YEAR


def test_a_naive_time_is_refused() -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  # that is the point

    with pytest.raises(ValueError, match="aware"):
        At(naive)
    with pytest.raises(ValueError, match="aware"):
        Every(60, anchor=naive)


@pytest.mark.parametrize(
    "trigger", [Every(90.5), Every(60, anchor=YEAR), Cron("0 9 * * mon", tz="Asia/Tokyo"), At(YEAR)], ids=repr
)
def test_a_trigger_comes_back_from_the_store_as_it_was(trigger: Trigger) -> None:
    assert decode_value(encode_value(trigger), default_plugins().trigger) == trigger
