"""The servers' clock as a client reckons it, and times as records have them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from omniq_nats.times import Clock, after, from_micros, micros, moment, read_stamp

SECOND = 1_000_000


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the machine's steady clock, to be set."""
    seconds = [1000.0]
    monkeypatch.setattr("omniq_nats.times.time.monotonic", lambda: seconds[0])
    return seconds


def test_the_clock_is_the_servers_whatever_the_machine_thinks(steady: list[float]) -> None:
    clock = Clock()
    clock.learn(999.8, 1000.0, 5 * SECOND)
    steady[0] = 1002.0
    assert abs(clock.now() - int(7.1 * SECOND)) <= 2


def test_a_slow_answer_does_not_spoil_what_a_quick_one_told(steady: list[float]) -> None:
    clock = Clock()
    clock.learn(1000.0, 1000.001, 5 * SECOND)
    before = clock.now()
    clock.learn(1000.0, 1000.4, 5 * SECOND + 10_000)
    assert clock.now() - before < 1000


def test_a_server_whose_clock_was_set_is_believed(steady: list[float]) -> None:
    clock = Clock()
    for stamp in (5 * SECOND, 3600 * SECOND, 2 * SECOND):
        clock.learn(1000.0, 1000.001, stamp)
        assert abs(clock.now() - stamp) < 2000


def test_each_time_is_later_than_the_one_before_it(steady: list[float]) -> None:
    clock = Clock()
    clock.learn(1000.0, 1000.001, 5 * SECOND)
    first, second = clock.now(), clock.now()
    clock.learn(1000.0, 1000.0008, 5 * SECOND - 100)
    assert first < second < clock.now()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1970-01-01T00:00:01Z", SECOND),
        ("1970-01-01T00:00:01.5Z", SECOND + 500_000),
        ("1970-01-01T00:00:01.123456789Z", SECOND + 123_456),
        ("1970-01-01T01:00:01.000001+01:00", SECOND + 1),
    ],
)
def test_the_servers_way_to_write_a_time_is_read(text: str, value: int) -> None:
    assert read_stamp(text) == value


def test_times_are_exact_to_the_microsecond_and_never_overflow() -> None:
    there = datetime(2101, 7, 8, 11, 30, 0, 999999, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    assert from_micros(micros(there)) == there
    assert from_micros(micros(there)).tzinfo is UTC
    assert moment(timedelta(seconds=1, microseconds=1), 5) == SECOND + 6
    for endless in (float("inf"), 1e300):
        assert from_micros(after(5, endless)).year == 9999
    assert from_micros(moment(timedelta.max, 5)).year == 9999
