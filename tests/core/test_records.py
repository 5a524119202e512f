"""What stores keep as text comes back as it was; and what is no such text says so, whatever it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.storage.records import dump_error, dump_progress, dump_schedule, load_error, load_progress, load_schedule
from omniq.task import NewTask, Progress, TaskError

DEEP = "[" * 100_000
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
SCHEDULE = Schedule(
    id="s",
    task=NewTask(
        id="t",
        queue="q",
        name="n",
        body=b"\x00\xff",
        run_at=timedelta(microseconds=3),
        expires=NOON,
        tags=("a", "b"),
        unique="ü\ud800",
    ),
    trigger='{"kind": "cron"}',
    next_run=NOON,
    misfire=Misfire.ALL,
    overlap=Overlap.SKIP,
    jitter=1.5,
    start=NOON,
    paused=True,
    last_run=NOON,
    last_task="t0",
    revision=7,
)


def test_errors_and_progress_come_back_as_they_were() -> None:
    error = TaskError(type="ValueError", message="ü\x00\ud800", traceback="\n")
    assert load_error(dump_error(error)) == error
    assert dump_error(error).isascii()
    for progress in (Progress(done=1, total=None, note=""), Progress(done=0.5, total=2, note="ü")):
        assert load_progress(dump_progress(progress)) == progress


def test_a_schedule_comes_back_as_it_was_with_what_the_store_knows_of_it() -> None:
    text = dump_schedule(SCHEDULE)
    assert text.isascii()
    assert load_schedule(text, revision=7) == SCHEDULE
    assert load_schedule(text.encode(), revision=8, paused=False) == evolve(SCHEDULE, revision=8, paused=False)


@pytest.mark.parametrize("text", ["", "{", "[]", '["a"]', "[1, 2, 3]", "7", "null", '{"a": 1}', DEEP])
def test_what_is_no_error_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no"):
        load_error(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", "7", "null", '{"a": 1}', DEEP])
def test_what_is_no_progress_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="progress"):
        load_progress(text)


def without(field: str) -> str:
    fields = json.loads(dump_schedule(SCHEDULE))
    del fields[field]
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        DEEP,
        without("task"),
        without("misfire"),
        without("trigger"),
        dump_schedule(SCHEDULE).replace('"skip"', '"never"'),
        dump_schedule(SCHEDULE).replace(NOON.isoformat(), "noon"),
        dump_schedule(SCHEDULE).replace('"queue"', '"line"'),
        dump_schedule(SCHEDULE).replace('"base64": "', '"base64": "!'),
        '{"__proto__": 1, ' + dump_schedule(SCHEDULE)[1:],
    ],
)
def test_what_is_no_schedule_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(CorruptRecord, match=r"schedule 's' cannot be read: .*omniq schedules delete"):
        load_schedule(text, id="s")
