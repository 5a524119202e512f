"""The one place that says what a record that was read from a store must be like."""

from __future__ import annotations

import logging
import math
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from attrs import evolve

from omniq.schedule import Schedule
from omniq.storage import Severity, StoredWorker, corrupt_records
from omniq.storage.corrupt_records import corrupt, finding, log_once, salvaged
from omniq.storage.ids import new_id
from omniq.storage.validation import LARGEST_COUNT, LONGEST_TEXT, check_schedule, check_task, check_text, check_worker
from omniq.task import NewTask, Progress, StoredTask, TaskError, TaskState

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
NAIVE = NOW.replace(tzinfo=None)
TASK = StoredTask(
    id=new_id(),
    queue="default",
    name="shop.add",
    body=b"1\n{}\n[]",
    state=TaskState.RUNNING,
    attempt=1,
    delivery=2,
    created_at=NOW,
    run_at=NOW,
    started_at=NOW,
    lease_until=NOW,
    worker="w1",
)
ELSEWHERE = timezone(timedelta(hours=2))
SOUND: list[dict[str, Any]] = [
    {},
    {"queue": "日本語", "name": "é" * LONGEST_TEXT, "tags": ("", "ä"), "unique": "k\0"},
    {"attempt": LARGEST_COUNT - 1, "delivery": LARGEST_COUNT - 1, "priority": -100, "max_retries": 2**40},
    {"result_ttl": 0, "error": TaskError(type="E", message="m"), "progress": Progress(done=1, total=2.5)},
    {"state": TaskState.SUCCEEDED, "lease_until": None, "finished_at": NOW, "result_payload": b"\xff"},
    {"created_at": NOW.astimezone(ELSEWHERE), "expires_at": datetime(1, 1, 2, tzinfo=UTC)},
    {"run_at": datetime.max.replace(tzinfo=UTC), "started_at": None, "worker": None, "cancel_requested": True},
]
_TEXTS: list[Any] = [7, b"x", [], "x" * 1_000_001, "\ud800"]
_COUNTS: list[Any] = [-1, LARGEST_COUNT, 2**31 - 1, 10**30, 1.0, "1"]
_NUMBERS: list[Any] = [None, 1e300, "3", 2**63, []]
_TIMES: list[Any] = [0, NAIVE, "infinity", {}]
_TTLS: list[Any] = [math.nan, math.inf, -1, None, "1"]
_TAGS: list[Any] = [None, 0, ["a"], (None,), ("\ud800",), "a", ({},)]
_ERRORS: list[Any] = ["E", TaskError(type="E", message=cast(Any, None)), ["E", "m", ""]]
_NOTES: list[Any] = [1, Progress(done=math.nan), Progress(done=cast(Any, "x")), Progress(done=1, note=cast(Any, b""))]
WRONG: list[tuple[str, Any]] = [
    *[(name, value) for name in ("id", "queue", "name") for value in (None, *_TEXTS)],
    *[(name, value) for name in ("worker", "unique") for value in (0, *_TEXTS)],
    *[(name, value) for name in ("attempt", "delivery") for value in _COUNTS],
    *[(name, value) for name in ("attempt", "priority", "max_retries") for value in _NUMBERS],
    *[(name, value) for name in ("created_at", "run_at") for value in (None, *_TIMES)],
    *[(name, value) for name in ("started_at", "finished_at", "expires_at", "lease_until") for value in _TIMES],
    *[("result_ttl", value) for value in _TTLS],
    *[("tags", value) for value in _TAGS],
    *[("error", value) for value in _ERRORS],
    *[("progress", value) for value in _NOTES],
    ("run_at", datetime(1969, 12, 31, tzinfo=UTC)),
    ("body", "text"),
    ("body", None),
    ("state", "running"),
    ("state", 3),
    ("max_retries", -1),
    ("cancel_requested", 1),
    ("result_payload", "text"),
]


@pytest.mark.parametrize("changes", SOUND)
def test_a_task_that_a_store_can_have_written_is_returned_as_it_is(changes: dict[str, Any]) -> None:
    task = evolve(TASK, **changes)
    assert check_task(task) is task


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_field_of_a_task_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"its {name} is ") as caught:
        check_task(evolve(TASK, **{name: value}))
    assert len(str(caught.value)) < 300


def test_a_running_task_has_a_lease() -> None:
    with pytest.raises(ValueError, match="no lease"):
        check_task(evolve(TASK, lease_until=None))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 7),
        ("next_run", NAIVE),
        ("next_run", datetime(1960, 1, 1, tzinfo=UTC)),
        ("jitter", math.nan),
        ("misfire", "all"),
        ("paused", None),
        ("live_tasks", (1,)),
        ("revision", -1),
        ("task", None),
    ],
)
def test_a_wrong_field_of_a_schedule_is_named(name: str, value: Any) -> None:
    task = NewTask(id="t", queue="q", name="n", body=b"")
    schedule = Schedule(id="s", task=task, trigger="every:60", next_run=NOW)
    assert check_schedule(schedule) is schedule
    with pytest.raises(ValueError, match=f"its {name} is "):
        check_schedule(evolve(schedule, **{name: value}))
    with pytest.raises(ValueError, match="its task's queue is "):
        check_schedule(evolve(schedule, task=evolve(task, queue=cast(str, 1))))


def test_a_wrong_field_of_a_worker_is_named() -> None:
    worker = StoredWorker(id="w", seen_at=NOW, running=("a",), about="{}")
    assert check_worker(worker) is worker
    name: str
    value: Any
    for name, value in (("id", b"w"), ("seen_at", NAIVE), ("running", (1,)), ("about", 1)):
        with pytest.raises(ValueError, match=f"its {name} is "):
            check_worker(evolve(worker, **{name: value}))


def test_a_name_is_a_text() -> None:
    assert check_text("default", "queue") == "default"
    for value in (b"default", None, "\ud800", "x" * 1_000_001):
        with pytest.raises(ValueError, match="its queue is "):
            check_text(value, "queue")


def test_the_error_says_where_the_record_is_and_shows_nothing_raw() -> None:
    error = corrupt("task", "a\x1b[2J", ValueError("its name is \x1b]0;owned\x07" + "x" * 10_000), place="row 7")
    assert str(error).startswith(r"task 'a\x1b[2J' (row 7) cannot be read: its name is \x1b]0;owned\x07xx")
    assert len(str(error)) < 700
    assert (error.kind, error.name, error.place) == ("task", "a\x1b[2J", "row 7")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.kind, copy.place) == (str(error), "task", "row 7")


def test_what_is_known_of_an_unreadable_task_is_shown() -> None:
    error = corrupt("task", "a", "torn")
    shown = salvaged(error, "a", {"id": "b", "queue": "mail", "name": 7, "attempt": -1, "created_at": NOW, "what": 1})
    assert (shown.id, shown.queue, shown.name, shown.attempt, shown.created_at) == ("a", "mail", "", 0, NOW)
    assert shown.state is TaskState.FAILED
    assert shown.error == TaskError(type="CorruptRecord", message="task 'a' cannot be read: torn")
    assert check_task(salvaged(error, "a")).id == "a"


def test_a_finding_names_the_command_that_removes_the_record() -> None:
    found = finding(corrupt("schedule", "nightly run", "torn", place="row 7"))
    assert (found.severity, found.subject) == (Severity.ERROR, "schedule")
    assert found.message == (
        "schedule 'nightly run' (row 7) cannot be read: torn; remove it with: omniq schedules delete 'nightly run'"
    )
    assert "omniq" not in finding(corrupt("worker", b"\xff", "torn")).message


def test_each_record_is_logged_once_and_not_more_than_a_thousand(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrupt_records, "_logged", set())
    log = logging.getLogger("omniq.test")
    for number in range(2000):
        for _ in range(2):
            log_once(log, corrupt("task", str(number), "torn"), "redis://host")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("redis://host: task '0' cannot be read: torn; ")
    assert len(messages) == len(set(messages)) == 1001
    assert "omniq doctor" in messages[-1]
