"""``omniq queues``: looking, pausing, resuming, and emptying with care."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniq import TaskQueue
from omniq.cli import main
from omniq.cli.app import load_queue, store_of
from tests.cli.program import environment, run_omniq
from tests.fork_server import Popen

URL = "sqlite:///jobs.db"


@pytest.fixture
def shop(folder: Path) -> Iterator[TaskQueue]:
    with load_queue("shop:queue") as queue:
        yield queue


def names(shop: TaskQueue) -> dict[str, bool]:
    """The queues of the store, and whether they are paused."""
    return {stats.queue: stats.paused for stats in shop.stats()}


def total(shop: TaskQueue, queue: str) -> int:
    return sum(sum(stats.counts.values()) for stats in shop.stats() if stats.queue == queue)


@pytest.fixture
def full(shop: TaskQueue) -> TaskQueue:
    """Three tasks that wait, one that was cancelled, and one that runs, all in one queue."""
    sleep = shop.functions["shop.sleep"]

    async def claim() -> None:
        assert len(await (await store_of(shop)).claim({"slow": 1}, worker="w", lease=600)) == 1

    sleep.enqueue(60)
    shop.run(claim())
    for _ in range(3):
        sleep.enqueue(60)
    sleep.enqueue(60).cancel()
    return shop


class Keyboard(io.StringIO):
    """Somebody at a terminal."""

    def isatty(self) -> bool:
        return True


# Looking


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("app", ["shop:queue", URL])
def test_a_list_shows_what_stats_shows(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "list", app, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [queue["queue"] for queue in listed] == ["slow"]
    assert (listed[0]["ready"], listed[0]["running"], listed[0]["cancelled"]) == (3, 1, 1)

    assert main(["queues", "list", app]) == 0
    header, row, blank, nobody = capsys.readouterr().out.splitlines()
    assert (blank, nobody) == ("", "no worker is alive to run 3 ready tasks")
    assert header.split()[0] == "queue"
    assert row.split()[:7] == ["slow", "0", "3", "1", "0", "0", "1"]


@pytest.mark.usefixtures("shop")
def test_a_store_without_queues_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "list", URL]) == 0
    assert capsys.readouterr().out == f"no queue has been used on {URL} yet\n"


# Pausing and resuming


def test_queues_are_paused_and_resumed_again(full: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    full.functions["shop.add"].enqueue(1, 2)

    assert main(["queues", "pause", "shop:queue", "slow", "default"]) == 0
    assert names(full) == {"default": True, "slow": True}
    assert main(["queues", "pause", "shop:queue", "slow"]) == 0
    assert main(["queues", "resume", "shop:queue", "slow"]) == 0
    assert names(full) == {"default": True, "slow": False}
    assert main(["queues", "resume", "shop:queue", "slow"]) == 0

    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "queue slow is paused",
        "queue default is paused",
        "queue slow was paused already",
        "queue slow goes on",
        "queue slow was not paused",
    ]
    assert captured.err == ""


def test_a_queue_that_was_never_used_can_be_paused_with_a_word_about_it(
    full: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queues", "pause", URL, "slwo"]) == 0

    captured = capsys.readouterr()
    assert captured.out == "queue slwo is paused\n"
    assert captured.err == "omniq: note: queue slwo has no tasks yet; did you mean slow?\n"
    assert names(full)["slwo"] is True


def test_a_queue_that_is_not_there_cannot_be_resumed(full: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    full.pause("slow")

    assert main(["queues", "resume", URL, "slwo", "slow"]) == 1

    captured = capsys.readouterr()
    assert captured.err == "omniq: error: there is no queue 'slwo'; did you mean slow?\n"
    assert captured.out == "queue slow goes on\n"
    assert names(full) == {"slow": False}


def test_nothing_is_paused_where_one_name_cannot_be_a_queue(
    full: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["queues", "pause", URL, "slow", "no queue"]) == 2

    assert "argument QUEUE: queue 'no queue' cannot be used: " in capsys.readouterr().err
    assert names(full) == {"slow": False}


# Emptying


def test_a_dry_run_only_counts(full: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "purge", URL, "slow", "--dry-run"]) == 0
    assert main(["queues", "purge", URL, "slow", "--dry-run", "--state", "ready"]) == 0
    assert main(["queues", "purge", URL, "other", "--dry-run"]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "would remove 4 tasks of queue slow",
        "would remove 3 ready tasks of queue slow",
        "would remove no tasks of queue other",
    ]
    assert total(full, "slow") == 5


def test_yes_removes_without_a_question(full: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "purge", URL, "slow", "--state", "cancelled", "--yes"]) == 0
    assert total(full, "slow") == 4
    assert main(["queues", "purge", URL, "slow", "-y"]) == 0
    assert total(full, "slow") == 1

    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "removed 1 cancelled task of queue slow",
        "removed 3 tasks of queue slow",
    ]
    assert captured.err == ""


@pytest.mark.usefixtures("full")
def test_where_there_is_nothing_to_remove_nothing_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queues", "purge", URL, "slow", "--state", "failed"]) == 0
    assert main(["queues", "purge", URL, "slwo"]) == 0

    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "there is nothing to remove: no failed tasks of queue slow",
        "there is nothing to remove: no tasks of queue slwo; did you mean slow?",
    ]
    assert captured.err == ""


def test_a_script_must_say_yes(full: TaskQueue, folder: Path) -> None:
    ended = run_omniq("queues", "purge", "shop:queue", "slow", cwd=folder)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "omniq: error: this would remove 4 tasks of queue slow for good; add --yes to do so, or --dry-run to look\n"
    )
    assert total(full, "slow") == 5


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_a_person_is_asked(
    answer: str, full: TaskQueue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(answer))

    assert main(["queues", "purge", URL, "slow"]) == 0

    captured = capsys.readouterr()
    assert captured.err == f"Remove 4 tasks of queue slow on {URL} for good? [y/N] "
    assert captured.out == "removed 4 tasks of queue slow\n"
    assert total(full, "slow") == 1


@pytest.mark.parametrize("answer", ["n\n", "\n", "what?\n", ""])
def test_anything_but_yes_means_no(
    answer: str, full: TaskQueue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(answer))

    assert main(["queues", "purge", URL, "slow"]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("omniq: error: nothing was removed\n")
    assert total(full, "slow") == 5


def test_the_question_is_seen_at_a_terminal(full: TaskQueue, folder: Path) -> None:
    keyboard, terminal = pty.openpty()
    process = Popen(
        [sys.executable, "-m", "omniq", "queues", "purge", "shop:queue", "slow"],
        cwd=folder,
        env=environment(),
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
    )
    os.close(terminal)
    seen = ""
    while "[y/N]" not in seen:
        seen += os.read(keyboard, 4096).decode()
    os.write(keyboard, b"y\n")
    out, _ = process.communicate(timeout=30)
    os.close(keyboard)

    assert (process.returncode, out) == (0, "removed 4 tasks of queue slow\n")
    assert total(full, "slow") == 1
