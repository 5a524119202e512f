"""What can be said of how a task runs, and what is refused where it is written."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniq import TaskFunction, TaskQueue
from omniq._tasks.options import LONGEST_TEXT, TaskOptions, check_count, check_queue, check_queues, check_text

NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001  # the mistake that is tested
AWARE = datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"queue": 5}, TypeError, "queue must be a string"),
        ({"queue": ""}, ValueError, "queue '' cannot be used"),
        ({"queue": "a b"}, ValueError, "queue 'a b' cannot be used"),
        ({"queue": "a/b"}, ValueError, "queue 'a/b' cannot be used"),
        ({"queue": "-a"}, ValueError, "queue '-a' cannot be used"),
        ({"queue": "käse"}, ValueError, "queue 'käse' cannot be used"),
        ({"queue": "a\n"}, ValueError, "cannot be used"),
        ({"queue": "a" * 101}, ValueError, "1 to 100 letters"),
        ({"priority": 101}, ValueError, "priority must be between -100 and 100"),
        ({"priority": -101}, ValueError, "priority must be between -100 and 100"),
        ({"priority": True}, TypeError, "priority must be an int"),
        ({"priority": 1.0}, TypeError, "priority must be an int"),
        ({"priority": "high"}, TypeError, "priority must be an int"),
        ({"max_retries": -1}, ValueError, "max_retries must be between 0"),
        ({"max_retries": 10**7}, ValueError, "max_retries must be between 0"),
        ({"max_retries": 1.5}, TypeError, "max_retries must be an int"),
        ({"max_retries": False}, TypeError, "max_retries must be an int"),
        ({"retry": "exponential"}, TypeError, "retry must be a RetryPolicy"),
        ({"timeout": 0}, ValueError, "timeout must be more than zero"),
        ({"timeout": -1}, ValueError, "timeout must be zero or more"),
        ({"timeout": float("nan")}, ValueError, "timeout"),
        ({"timeout": float("inf")}, ValueError, "timeout must be at most a hundred years"),
        ({"timeout": "30s"}, TypeError, "timeout must be seconds"),
        ({"result_ttl": -1}, ValueError, "result_ttl must be zero or more"),
        ({"result_ttl": timedelta(days=-1)}, ValueError, "result_ttl must be zero or more"),
        ({"unique": ""}, ValueError, "unique must have 1 to"),
        ({"unique": 5}, TypeError, "unique must be a string, or True"),
        ({"unique": "x" * (LONGEST_TEXT + 1)}, ValueError, "unique must have 1 to"),
        ({"unique": "a\0"}, ValueError, "unique must be text"),
        ({"unique": "\udcff"}, ValueError, "unique must be text"),
        ({"tags": "red"}, TypeError, r"write \['red'\]"),
        ({"tags": [""]}, ValueError, "a tag must have 1 to"),
        ({"tags": [5]}, TypeError, "a tag must be a string"),
        ({"tags": ["\ud800"]}, ValueError, "a tag must be text"),
        ({"tags": map(str, range(51))}, ValueError, "at most 50 tags"),
        ({"delay": -1}, ValueError, "delay must be zero or more"),
        ({"delay": "1h"}, TypeError, "delay must be seconds"),
        ({"delay": True}, TypeError, "delay must be seconds"),
        ({"run_at": NAIVE}, ValueError, "run_at must be an aware datetime"),
        ({"run_at": 5}, TypeError, "run_at must be an aware datetime.*there is delay"),
        ({"run_at": AWARE, "delay": 1}, ValueError, "either delay or run_at"),
        ({"expires": NAIVE}, ValueError, "expires must be an aware datetime"),
        ({"expires": -1}, ValueError, "expires must be zero or more"),
        ({"expires": "tomorrow"}, TypeError, "expires must be an aware datetime"),
    ],
)
def test_a_wrong_option_is_refused_and_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    @TaskQueue("memory://").task
    def note() -> None: ...

    with pytest.raises(error, match=message):
        note.using(**options)


def test_every_option_of_using_is_one_of_the_options() -> None:
    # Written out twice for the sake of type checkers; they must not drift apart.
    of_function = set(inspect.signature(TaskFunction.using).parameters)

    # In whose transaction a task is stored is nothing that it keeps.
    assert of_function - {"self", "delay", "connection"} == set(inspect.signature(TaskOptions).parameters)


def test_options_that_are_not_given_stay_as_they_are() -> None:
    options = TaskOptions().using(priority=5, tags=["a"], unique="k", delay=3)

    assert options.using() == options
    assert options.using(priority=0).priority == 0
    assert options.using(tags=[]).tags == ()
    assert options.using(unique=False).unique is None


def test_the_later_of_delay_and_run_at_counts() -> None:
    options = TaskOptions().using(delay=60)

    assert options.run_at == timedelta(seconds=60)
    assert options.using(run_at=AWARE).run_at == AWARE
    assert options.using(run_at=AWARE).using(delay=timedelta(minutes=2)).run_at == timedelta(minutes=2)


def test_times_are_kept_in_utc_and_durations_as_seconds() -> None:
    options = TaskOptions(run_at=AWARE, expires=timedelta(hours=1), timeout=timedelta(minutes=1), result_ttl=0)

    assert isinstance(options.run_at, datetime)
    assert options.run_at.tzinfo is UTC
    assert options.expires == timedelta(hours=1)
    assert (options.timeout, options.result_ttl) == (60.0, 0.0)


def test_a_tag_that_is_given_twice_counts_once() -> None:
    assert TaskOptions(tags=["b", "a", "b"]).tags == ("b", "a")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", fullmatch=True))
def test_what_every_store_can_hold_is_the_name_of_a_queue(name: str) -> None:
    assert check_queue(name) == name


@given(st.text(max_size=120))
def test_any_other_name_of_a_queue_is_refused(name: str) -> None:
    try:
        accepted = check_queue(name)
    except ValueError:
        return
    assert accepted.isascii()
    assert 0 < len(accepted) <= 100
    assert accepted[0].isalnum()
    assert not set(accepted) & set(" /\\:*?\n\0'\"")


@given(st.text(min_size=1, max_size=LONGEST_TEXT))
def test_a_text_that_is_accepted_can_be_encoded(text: str) -> None:
    try:
        accepted = check_text(text, "it")
    except ValueError:
        assert "\0" in text or any(0xD800 <= ord(character) <= 0xDFFF for character in text)
        return
    assert "\0" not in accepted
    assert accepted.encode().decode() == text


@pytest.mark.parametrize("queues", ["mail", [], ["a b"], [5], {}])
def test_queues_that_a_worker_cannot_serve_are_refused(queues: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="queue"):
        check_queues(queues)


def test_queues_are_served_once_each_in_the_order_given() -> None:
    assert check_queues(["b", "a", "b"]) == ("b", "a")


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "3", None])
def test_a_count_is_a_whole_number_of_one_or_more(value: Any) -> None:
    with pytest.raises(ValueError, match="threads must be a whole number of 1 or more"):
        check_count(value, "threads")
