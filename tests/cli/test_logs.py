"""Log lines of the command line."""

from __future__ import annotations

import logging
import re

import pytest

from omniq.cli.logs import LineFormatter, logging_to_stderr


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
