"""Logging of what fails again and again."""

from __future__ import annotations

import logging

import pytest

from omniq.storage.outages import QUIET_SECONDS, REMINDER_SECONDS, Outage


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outage(clock: Clock, caplog: pytest.LogCaptureFixture) -> Outage:
    caplog.set_level(logging.INFO, "test.outage")
    return Outage(logging.getLogger("test.outage"), "db: the connection is lost", "db: connected again", clock=clock)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_beginning_and_end_are_told_once_each(outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outage.succeeded()
    for _ in range(50):
        outage.failed(OSError("refused"))
        clock.now += 0.1
    assert 4 < outage.seconds < 6
    outage.succeeded()
    outage.succeeded()
    assert outage.seconds == 0
    assert lines(caplog) == [
        ("WARNING", "db: the connection is lost, trying again: OSError: refused"),
        ("INFO", "db: connected again after 5.0 s"),
    ]


def test_a_long_one_is_told_at_error_again_and_again_but_rarely(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(6000):
        outage.failed(TimeoutError())
        clock.now += 0.1
    assert outage.lasts
    levels = [level for level, _ in lines(caplog)]
    assert levels[0] == "WARNING"
    assert set(levels[1:]) == {"ERROR"}
    assert len(levels[1:]) in (600 // int(REMINDER_SECONDS), 600 // int(REMINDER_SECONDS) - 1)
    told = lines(caplog)[1][1]
    assert told.startswith("db: the connection is lost for 60 s now (60")
    assert told.endswith(": TimeoutError")  # an error without a text has its name


def test_another_error_is_told_but_a_changing_text_is_no_flood(
    outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outage.failed("refused")
    clock.now += QUIET_SECONDS
    outage.failed("wrong password")
    assert lines(caplog)[1] == ("WARNING", "db: the connection is lost for 10 s now (2 tries): wrong password")
    for number in range(300):
        outage.failed(f"no answer within {number} ms")
        clock.now += 0.1
    assert len(lines(caplog)) in (4, 5)


def test_one_that_comes_and_goes_is_no_flood(outage: Outage, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(600):
        outage.failed("refused")
        clock.now += 0.05
        outage.succeeded()
        clock.now += 0.05
    assert len(lines(caplog)) <= 2 * (60 // int(QUIET_SECONDS))
