"""``omniq dashboard`` as a process: it says where it is, ends when told to, and leaves nothing half done."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from omniq import TaskQueue, TaskState
from omniq.testing import wait_until
from tests.dashboard.support import SAME_ORIGIN

_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+")
_FIELD = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')
MANY = 20_000


@contextlib.contextmanager
def dashboard(*arguments: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Yield the process and a client that has come in with its token."""
    command = [sys.executable, "-m", "omniq", *arguments, "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout is not None
        try:
            found = next((found for line in process.stdout if (found := _ADDRESS.search(line))), None)
            assert found is not None
            base = found[0].partition("/?")[0]
            with httpx.Client(base_url=base, timeout=60, follow_redirects=True) as client:
                assert client.get(found[0]).status_code == 200
                yield process, client
        finally:
            if process.poll() is None:
                process.kill()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


def test_it_says_where_it_is_and_ends_when_told_to(url: str) -> None:
    with dashboard("dashboard", url) as (process, client):
        assert "No tasks yet" in client.get("/").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_the_demo_shows_a_shop_with_life_in_it_and_leaves_nothing(tmp_path: Path) -> None:
    def interruptible() -> None:  # also where the tests themselves were started in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)

    options = {"cwd": tmp_path, "env": {**os.environ, "TMPDIR": str(tmp_path)}, "preexec_fn": interruptible}
    with dashboard("demo", "--dashboard", **options) as (process, client):
        assert "newsletter" in client.get("/queues").text
        wait_until(lambda: "charge_card" in client.get("/tasks?state=succeeded").text, timeout=60, what="an order")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_killed_in_the_middle_of_an_action_leaves_nothing_half_done(url: str) -> None:
    with TaskQueue(url) as queue:

        @queue.task(name="job")
        def job(n: int) -> None: ...

        queue.enqueue_many([job.call(n) for n in range(MANY)])
        with dashboard("dashboard", url) as (process, client):
            form = client.get("/bulk/cancel").text.partition('<form method="post"')[2]
            fields: dict[str, list[str]] = {}
            for name, value in _FIELD.findall(form):
                fields.setdefault(name, []).append(value)
            begun = client.post("/bulk/cancel", data={**fields, "typed": [str(MANY)]}, headers=SAME_ORIGIN)
            assert "/bulk/cancel/job" in str(begun.url)
            wait_until(lambda: queue.count_tasks(state="cancelled").number > 0, timeout=60, what="the first step")
            process.kill()
            process.wait()
        (stats,) = queue.stats()
        cancelled, ready = stats.counts[TaskState.CANCELLED], stats.counts[TaskState.READY]
        assert cancelled + ready == MANY
        assert cancelled % 500 == 0
        with dashboard("dashboard", url) as (_, client):
            assert f"Cancel {ready:,} tasks?" in client.get("/bulk/cancel").text or ready == 0
