from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq.storage.durations import aware, duration, when

CENTURY = 100 * 365 * 86400


@given(st.one_of(st.integers(0, CENTURY), st.floats(0, CENTURY)))
def test_a_number_of_seconds_is_that_many_seconds(seconds: float) -> None:
    assert duration(seconds, "delay") == seconds
    assert isinstance(duration(seconds, "delay"), float)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(seconds=CENTURY)))
def test_a_timedelta_is_its_seconds(length: timedelta) -> None:
    assert duration(length, "delay") == length.total_seconds()
    assert when(length, "run_at") == length


@pytest.mark.parametrize("value", [-1, -0.001, timedelta(seconds=-1), -math.inf, -(10**400), math.nan])
def test_less_than_nothing_is_refused_and_named(value: object) -> None:
    with pytest.raises(ValueError, match="delay must be zero or more seconds"):
        duration(value, "delay")


@pytest.mark.parametrize("value", [math.inf, 10**400, CENTURY + 1, timedelta.max])
def test_more_than_a_hundred_years_is_refused_and_named(value: object) -> None:
    with pytest.raises(ValueError, match="delay must be at most a hundred years"):
        duration(value, "delay")


@pytest.mark.parametrize("value", [True, False, "60", None, Decimal(1), datetime.now(UTC), [1]])
def test_what_is_no_duration_is_a_type_error_that_names_the_parameter(value: object) -> None:
    with pytest.raises(TypeError, match=r"delay must be seconds .* or a timedelta"):
        duration(value, "delay")


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)))  # noqa: DTZ001  # hypothesis wants them naive
def test_an_aware_datetime_becomes_the_same_moment_in_utc(moment: datetime) -> None:
    assert aware(moment, "run_at") == moment.astimezone(UTC)
    assert aware(moment, "run_at").tzinfo is UTC
    assert when(moment, "run_at") == moment.astimezone(UTC)


@pytest.mark.parametrize("give", [aware, when])
def test_a_naive_datetime_is_a_value_error_that_says_so(give: object) -> None:
    naive = datetime(2026, 3, 29, 2, 30)  # noqa: DTZ001  # the mistake under test

    assert callable(give)
    with pytest.raises(ValueError, match=r"run_at must be an aware datetime.*has no time zone") as caught:
        give(naive, "run_at")
    assert "datetime.now(UTC)" in str(caught.value)


def test_of_the_two_half_past_twos_when_summer_time_ends_the_fold_decides() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first = datetime(2026, 10, 25, 2, 30, tzinfo=berlin)

    assert aware(first, "run_at") == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert aware(first.replace(fold=1), "run_at") == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "moment",
    [
        datetime.min.replace(tzinfo=timezone(timedelta(hours=2))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-2))),
    ],
)
def test_a_moment_that_utc_cannot_tell_is_refused_and_named(moment: datetime) -> None:
    with pytest.raises(ValueError, match="run_at"):
        aware(moment, "run_at")


@pytest.mark.parametrize("value", ["tomorrow", 60, None, date(2026, 1, 1)])
def test_what_is_no_datetime_is_a_type_error_that_names_the_parameter(value: object) -> None:
    with pytest.raises(TypeError, match="run_at must be an aware datetime"):
        aware(value, "run_at")


@pytest.mark.parametrize("value", ["tomorrow", True, None, date(2026, 1, 1)])
def test_what_is_no_point_in_time_is_a_type_error_that_names_both_forms(value: object) -> None:
    with pytest.raises(TypeError, match=r"run_at must be an aware datetime, or seconds"):
        when(value, "run_at")


def test_seconds_count_from_the_stores_now() -> None:
    assert when(90, "run_at") == timedelta(seconds=90)
    with pytest.raises(ValueError, match="run_at must be zero or more"):
        when(-90, "run_at")
