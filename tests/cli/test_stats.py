"""``omniq stats``: queues in numbers, for people and for programs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omniq import QueueStats, TaskQueue, TaskState
from omniq.cli import main
from omniq.cli.stats import as_json
from omniq.testing import wait_until
from tests.cli.program import Program, environment


@pytest.fixture
def filled(store: TaskQueue) -> TaskQueue:
    """Three tasks that wait, one of them for later, and one that was cancelled."""

    @store.task
    def work() -> None: ...

    @store.task(queue="slow")
    def crawl() -> None: ...

    work.enqueue()
    work.enqueue()
    work.using(delay=60).enqueue()
    crawl.enqueue().cancel()
    return store


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("app", ["shop:queue", "sqlite:///jobs.db"])
def test_a_table_shows_every_queue(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", app]) == 0

    header, default, slow = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "queue", "scheduled", "ready", "running", "succeeded", "failed", "cancelled", "paused", "oldest", "ready",
    ]  # fmt: skip
    assert default.split()[:8] == ["default", "1", "2", "0", "0", "0", "0", "no"]
    assert default.endswith(" s")
    assert slow.split() == ["slow", "0", "0", "0", "0", "0", "1", "no", "-"]


@pytest.mark.usefixtures("filled")
def test_json_is_a_list_of_objects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "shop:queue", "--json"]) == 0

    default, slow = json.loads(capsys.readouterr().out)
    assert 0 <= default.pop("oldest_ready") < 60
    assert default == {
        "queue": "default", "scheduled": 1, "ready": 2, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0,
        "paused": False,
    }  # fmt: skip
    assert slow["oldest_ready"] is None


def test_a_paused_queue_is_shown_as_paused() -> None:
    stats = QueueStats(queue="a", counts=dict.fromkeys(TaskState, 0), paused=True, oldest_ready=1.23456)
    assert as_json([stats])[0]["paused"] is True
    assert as_json([stats])[0]["oldest_ready"] == 1.235


@pytest.mark.usefixtures("store")
def test_a_store_without_queues_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "shop:queue"]) == 0
    assert capsys.readouterr().out == "no queue has been used on sqlite:///jobs.db yet\n"
    assert main(["stats", "shop:queue", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_a_file_that_is_no_database_is_a_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "jobs.db").write_text("no database at all, but long enough to look at\n" * 100)

    for watching in ([], ["--watch"]):
        assert main(["stats", "shop:queue", *watching]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("omniq: error: ")
        assert "jobs.db" in captured.err
        assert captured.err.count("\n") == 1


@pytest.mark.usefixtures("filled")
def test_watching_without_a_terminal_prints_plain_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "shop:queue", "--watch", "--count", "2", "--interval", "0"]) == 0

    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert [line.split()[0] for line in text.splitlines() if line][1:4] == ["queue", "default", "slow"]
    assert text.count("default") == 2


@pytest.mark.usefixtures("filled")
def test_watching_as_json_prints_a_line_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", "shop:queue", "--watch", "--json", "--count", "3", "--interval", "0"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [[queue["queue"] for queue in json.loads(line)] for line in lines] == [["default", "slow"]] * 3


def test_what_changes_is_seen_while_watching(filled: TaskQueue, start: Callable[..., Program]) -> None:
    program = start("stats", "shop:queue", "--watch", "--json", "--interval", "0.05")

    def shown() -> dict[str, Any]:
        assert program.process.poll() is None, program.stderr
        complete = program.stdout.rpartition("\n")[0]
        return {queue["queue"]: queue for queue in json.loads(complete.splitlines()[-1])} if complete else {}

    wait_until(lambda: "default" in shown())
    filled.enqueue(filled.functions[next(name for name in filled.functions if name.endswith("crawl"))])
    wait_until(lambda: shown()["slow"]["ready"] == 1)
    assert program.stop(signal.SIGINT) == 130


@pytest.mark.usefixtures("filled")
def test_on_a_terminal_the_table_is_redrawn_in_place(folder: Path) -> None:
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "omniq", "stats", "shop:queue", "--watch", "--interval", "0.05"],
        cwd=folder,
        env=environment(TERM="xterm", NO_COLOR=""),
        stdin=writing,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    seen = ""
    while seen.count("\x1b[5F\x1b[J") < 2:
        seen += os.read(reading, 4096).decode()
    process.send_signal(signal.SIGINT)
    while "\x1b[?25h" not in seen:
        seen += os.read(reading, 4096).decode()

    assert process.wait(20) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    os.close(reading)
    assert seen.startswith("\x1b[?25l")
    assert "default" in seen
