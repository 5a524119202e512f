"""``omniq doctor``: what a store says of itself, and what is said of one that cannot be reached."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from omniq import Every, TaskQueue
from omniq.cli import main
from omniq.cli.doctor import as_lines
from omniq.cli.terminal import Screen
from omniq.storage import Finding, Severity
from tests.cli.program import run_omniq
from tests.cli.test_terminal import Terminal

URL = "sqlite:///jobs.db"


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("app", ["shop:queue", URL])
def test_a_sound_store_is_told_to_be_sound(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", app]) == 0

    first, *findings, last = capsys.readouterr().out.splitlines()
    assert first == URL
    assert "✓ journal mode  wal" in findings
    assert "✓ integrity     no damage found" in findings
    assert last.startswith("no errors, ")


@pytest.mark.usefixtures("store")
def test_json_has_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "shop:queue", "--json"]) == 0

    answer = json.loads(capsys.readouterr().out)
    assert answer["url"] == URL
    assert {"severity": "ok", "subject": "integrity", "message": "no damage found"} in answer["findings"]


def test_an_error_makes_the_exit_code(store: TaskQueue, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    @store.task
    def work() -> None: ...

    store.enqueue_many([work.call() for _ in range(2000)])
    store.close()
    spoil(folder / "jobs.db", "omniq.ready")

    assert main(["doctor", URL]) == 1
    *_, summary = lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("✗ integrity     ") for line in lines)
    assert summary.startswith("1 error, ")
    assert main(["doctor", URL, "--json"]) == 1
    assert "error" in [finding["severity"] for finding in json.loads(capsys.readouterr().out)["findings"]]


def test_a_record_that_cannot_be_read_is_named_with_the_command_that_removes_it(
    store: TaskQueue, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @store.task
    def work() -> None: ...

    good, bad = store.enqueue_many([work.call(), work.call()])
    for name in ("nightly", "hourly run"):
        store.schedule(work.call(), Every(3600), id=name)
    with contextlib.closing(sqlite3.connect(folder / "jobs.db", isolation_level=None)) as connection:
        connection.execute("UPDATE \"omniq.task\" SET options = '{' WHERE id = ?", (bad.id,))
        connection.execute("UPDATE \"omniq.schedule\" SET body = '{' WHERE id = 'hourly run'")

    assert main(["doctor", URL]) == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    assert summary.startswith("2 errors, ")
    commands = [line.partition("remove it with: ")[2] for line in lines if "cannot be read" in line]
    assert commands == ["omniq schedules delete 'hourly run'", f"omniq tasks delete {bad.id}"]
    assert main(["schedules", "list", URL]) == 0
    assert "nightly" in capsys.readouterr().out

    for command in commands:
        _, group, verb, name = shlex.split(command)
        assert main([group, verb, URL, name]) == 0
    assert main(["doctor", URL]) == 0
    assert "cannot be read" not in capsys.readouterr().out
    assert store.get(good.id) is not None
    assert [schedule.id for schedule in store.schedules()] == ["nightly"]


def spoil(path: Path, index: str) -> None:
    """Write nonsense into an index of a database."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        root, size = connection.execute(
            "SELECT rootpage, (SELECT page_size FROM pragma_page_size) FROM sqlite_schema WHERE name = ?", [index]
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size + 12)
        file.write(b"\xff" * 64)


@pytest.mark.usefixtures("folder")
def test_a_store_that_cannot_be_reached_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "sqlite:///no/such/folder.db"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("omniq: error: ")
    assert captured.err.count("\n") == 1

    assert main(["doctor", "sqlite:///no/such/folder.db", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["severity"], finding["subject"]) == ("error", "connection")
    assert f"omniq: error: {finding['message']}\n" == captured.err


def test_a_store_in_memory_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "memory://"]) == 0
    url, finding, summary = capsys.readouterr().out.splitlines()
    assert url == "memory://"
    assert finding.startswith("! durability  tasks live in the memory of this process")
    assert summary == "no errors, 1 warning"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "url", ["unheard-of://ada:hidden@example.org/0", "sqlite:///jobs.db?password=hidden", "nowhere://hid/den@host"]
)
def test_credentials_are_never_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--json"], ["-v"]):
        assert main(["doctor", url, *more]) == 2
        captured = capsys.readouterr()
        assert "hidden" not in captured.out + captured.err
        assert "hid/den" not in captured.out + captured.err


FINDINGS: Sequence[Finding] = (
    Finding(severity=Severity.OK, subject="version", message="7.2"),
    Finding(severity=Severity.WARNING, subject="eviction", message="allkeys-lru: " + "tasks may vanish " * 8),
    Finding(severity=Severity.ERROR, subject="persistence", message="off\x1b[2J"),
)


def test_findings_are_marked_by_how_bad_they_are(store: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal(columns=60)
    screen = Screen(terminal.stream)
    for line in as_lines(FINDINGS, store, screen):
        screen.say(line)
    shown = terminal.written().splitlines()
    terminal.close()

    assert shown[1] == "\x1b[32m✓\x1b[0m version      7.2"
    assert shown[2].startswith("\x1b[33m!\x1b[0m eviction     allkeys-lru: tasks may vanish")
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in shown[2:-2]]
    assert len(plain) > 1
    assert all(line[:15] == " " * 15 for line in plain[1:])
    assert all(len(line) <= 60 for line in plain)
    assert shown[-2] == "\x1b[31m✗\x1b[0m persistence  off\\x1b[2J"
    assert shown[-1] == "1 error, 1 warning"


def test_where_marks_cannot_be_shown_words_stand_for_them(folder: Path) -> None:
    ended = run_omniq("doctor", "memory://", cwd=folder, PYTHONUTF8="0", PYTHONIOENCODING="ascii")

    assert ended.returncode == 0
    assert ended.stdout.splitlines()[1].startswith("warning durability  tasks live in the memory")
