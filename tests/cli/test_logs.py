"""Log lines of the command line."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime

import pytest

from omniq.cli.logs import JsonFormatter, LineFormatter, logging_to_stderr


def test_a_line_has_time_level_logger_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(logging.INFO):
        logging.getLogger("omniq.worker").info("hello %s", "world")

    line = capsys.readouterr().err
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO    omniq\.worker: hello world\n", line)


def test_lines_below_the_level_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(logging.WARNING):
        logging.getLogger("omniq.worker").info("hello")

    assert capsys.readouterr().err == ""


def test_afterwards_logging_is_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with logging_to_stderr(logging.DEBUG):
        pass

    assert (root.level, root.handlers) == before


def test_several_processes_are_told_apart() -> None:
    record = logging.makeLogRecord({"name": "omniq.worker", "msg": "hello", "process": 4711})
    assert "[4711] omniq.worker: hello" in LineFormatter(with_process=True).format(record)


def test_a_record_of_a_task_names_it_once() -> None:
    about = {"task_id": "0197-abc", "task_name": "shop.resize"}
    silent = logging.makeLogRecord({"msg": "hello", **about})
    telling = logging.makeLogRecord({"msg": "task 0197-abc failed", **about})

    assert LineFormatter().format(silent).endswith(": hello [task 0197-abc shop.resize]")
    assert LineFormatter().format(telling).endswith(": task 0197-abc failed")


def test_as_json_each_record_is_one_object_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    about = {"task_id": "0197-abc", "task_name": "shop.resize", "task_queue": "mail"}
    before = datetime.now(UTC)
    with logging_to_stderr(logging.INFO, as_json=True):
        logging.getLogger("shop").info("two\nlines of %s \N{SNOWMAN}", "it", extra={**about, "other": object()})
        try:
            raise LookupError("sold\nout")
        except LookupError:
            logging.getLogger("shop").exception("no")

    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert before.replace(microsecond=0) <= datetime.fromisoformat(first.pop("time")) <= datetime.now(UTC)
    assert isinstance(first.pop("process"), int)
    assert first == {"level": "INFO", "logger": "shop", "message": "two\nlines of it \N{SNOWMAN}", **about}
    assert (second["level"], second["message"]) == ("ERROR", "no")
    assert second["exception"].startswith("Traceback (most recent call last):\n")
    assert second["exception"].endswith("LookupError: sold\nout")
    assert "task_id" not in second


def test_as_json_a_stack_is_shown_where_one_was_asked_for() -> None:
    record = logging.makeLogRecord({"name": "shop", "msg": "here", "stack_info": "Stack (most recent call last):\n  x"})

    assert json.loads(JsonFormatter().format(record))["stack"] == "Stack (most recent call last):\n  x"
