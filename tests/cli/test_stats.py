"""``omniq stats``: queues in numbers, for people and for programs."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq import QueueStats, TaskQueue, TaskState
from omniq.cli import main
from omniq.cli.live import Frame, Look, worker_lines
from omniq.cli.stats import as_json, as_table
from omniq.cli.terminal import Screen
from omniq.storage import StoredWorker
from omniq.task import StoredTask
from omniq.testing import wait_until
from tests.cli.program import Program, environment
from tests.fork_server import Popen

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


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

    header, default, slow, blank, nobody = capsys.readouterr().out.splitlines()
    assert (blank, nobody) == ("", "no worker is alive to run 2 ready tasks")
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
        "queue": "default", "blocked": 0,
        "scheduled": 1, "ready": 2, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 0,
        "paused": False, "limit": None,
    }  # fmt: skip
    assert slow["oldest_ready"] is None


def look_at(
    at: float, *stats: QueueStats, workers: Sequence[StoredWorker] = (), tasks: Sequence[StoredTask] = ()
) -> Look:
    return Look(at=at, now=NOW, stats=stats, workers=workers, running={task.id: task for task in tasks})


def queue_of(name: str, **counts: int) -> QueueStats:
    return QueueStats(queue=name, counts={TaskState(state): number for state, number in counts.items()})


def test_rates_are_those_since_the_last_look() -> None:
    before = look_at(10.0, queue_of("a", ready=10, succeeded=5), queue_of("b", ready=700))
    after = look_at(14.0, queue_of("a", ready=2, running=6, succeeded=6, failed=1), queue_of("b", cancelled=700))

    frame = Frame(after, before)

    assert (frame.incoming("a"), frame.ending("a")) == ("0", "0.5")
    assert (frame.incoming("b"), frame.ending("b")) == ("0", "175")


def test_a_queue_that_is_new_has_rates_and_one_that_shrinks_has_none_below_zero() -> None:
    before = look_at(10.0, queue_of("old", succeeded=50))
    after = look_at(12.0, queue_of("new", ready=3), queue_of("old", succeeded=10))

    frame = Frame(after, before)

    assert (frame.incoming("new"), frame.ending("new")) == ("1.5", "0")
    assert (frame.incoming("old"), frame.ending("old")) == ("0", "0")


def test_the_first_look_has_no_rates() -> None:
    frame = Frame(look_at(10.0, queue_of("a", ready=10)), None)
    assert (frame.incoming("a"), frame.ending("a")) == ("-", "-")


def running(task_id: str, name: str, seconds: float) -> StoredTask:
    started = NOW - timedelta(seconds=seconds)
    return StoredTask(
        id=task_id,
        queue="a",
        name=name,
        body=b"",
        state=TaskState.RUNNING,
        created_at=started,
        run_at=started,
        started_at=started,
    )


def test_workers_are_shown_with_what_they_run() -> None:
    workers = [
        StoredWorker(id="idle", seen_at=NOW),
        StoredWorker(id="busy", seen_at=NOW, running=("1", "2", "3", "4")),
    ]
    tasks = [running("1", "shop.add", 5), running("2", "shop.add", 200), running("3", "shop.sleep", 9)]
    looked = look_at(1.0, workers=workers, tasks=tasks)

    header, idle, busy = worker_lines(looked, Screen(io.StringIO()))

    assert header.split() == ["worker", "tasks", "longest", "which"]
    assert idle.split() == ["idle", "0", "-", "-"]
    assert busy.split("  ")[-1] == "shop.add x2, shop.sleep, …"
    assert busy.split()[:4] == ["busy", "4", "3", "min"]


def test_that_no_worker_is_alive_is_told_the_louder_the_more_waits() -> None:
    screen = Screen(io.StringIO())
    assert worker_lines(look_at(1.0), screen) == ["no worker is alive"]
    waiting = look_at(1.0, queue_of("a", ready=2), queue_of("b", ready=1, scheduled=4))
    assert worker_lines(waiting, screen) == ["no worker is alive to run 3 ready tasks"]


def test_workers_that_are_alive_are_seen_while_watching(filled: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    async def claim() -> None:
        storage = (await filled.connections.current()).storage
        await storage.heartbeat("the-worker", [], 600)
        assert len(await storage.claim({"default": 2}, worker="the-worker", lease=600)) == 2

    filled.run(claim())
    name = next(name for name in filled.functions if name.endswith("work"))

    assert main(["stats", "shop:queue", "--watch", "--count", "1"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("the-worker"))
    assert line.split()[1] == "2"
    assert line.endswith(f"{name} ×2")


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
    process = Popen(
        [sys.executable, "-m", "omniq", "stats", "shop:queue", "--watch", "--interval", "0.05"],
        cwd=folder,
        env=environment(TERM="xterm", NO_COLOR=""),
        stdin=writing,
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    seen = ""
    while seen.count("\x1b[7F\x1b[J") < 2:
        seen += os.read(reading, 4096).decode()
    process.send_signal(signal.SIGINT)
    while "\x1b[?25h" not in seen:
        seen += os.read(reading, 4096).decode()

    assert process.wait(60) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    os.close(reading)
    assert seen.startswith("\x1b[?25l")
    assert "default" in seen


ODD = """
from omniq import TaskQueue
from omniq.storage.urls import parse_url
from omniq_local.sqlite import SQLiteStorage


class Odd(SQLiteStorage):
    \"\"\"A store with records in it that nobody foresaw.\"\"\"

    looks = 0

    async def stats(self):
        Odd.looks += 1
        if Odd.looks == 2:
            b"\\xff".decode()
        return await super().stats()

    async def workers(self):
        raise OverflowError("date value out of range\\x1b[2J")


queue = TaskQueue(Odd(parse_url("sqlite:///jobs.db")))
"""


@pytest.mark.usefixtures("filled")
def test_whatever_is_in_the_store_watching_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "odd", raising=False)

    assert main(["stats", "odd:queue", "--watch", "--count", "3", "--interval", "0"]) == 0

    shown = capsys.readouterr().out
    assert shown.count("default") == 2
    assert shown.count("what workers run cannot be read: OverflowError: date value out of range\\x1b[2J") == 2
    assert "now: UnicodeDecodeError: 'utf-8' codec can't decode" in shown


@pytest.mark.parametrize("seconds", [float("inf"), float("-inf"), float("nan"), 1e300])
def test_a_number_that_is_none_ends_no_table(seconds: float) -> None:
    stats = QueueStats(queue="a", counts=dict.fromkeys(TaskState, 0), paused=False, oldest_ready=seconds)
    assert len(as_table([stats], Screen(io.StringIO()))) == 2
