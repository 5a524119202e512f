"""``omniq dashboard`` as a process: it says where it is, ends when told to, and leaves nothing half done."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from omniq import TaskQueue, TaskState
from omniq.testing import wait_until
from tests.dashboard.support import SAME_ORIGIN, STORES, served, url_on

OMNIQ = [sys.executable, "-m", "omniq"]
_FIELD = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')
MANY = 20_000


def test_it_says_where_it_is_and_ends_when_told_to(tmp_path: Path) -> None:
    with served([*OMNIQ, "dashboard", f"sqlite:///{tmp_path}/jobs.db"]) as (process, client):
        assert "No tasks yet" in client.get("/").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_the_demo_shows_a_shop_with_life_in_it_and_leaves_nothing(tmp_path: Path) -> None:
    def interruptible() -> None:  # also where the tests themselves were started in the background of a shell
        signal.signal(signal.SIGINT, signal.default_int_handler)

    options = {"cwd": tmp_path, "env": {**os.environ, "TMPDIR": str(tmp_path)}, "preexec_fn": interruptible}
    with served([*OMNIQ, "demo", "--dashboard"], **options) as (process, client):
        assert "newsletter" in client.get("/queues").text
        wait_until(lambda: "charge_card" in client.get("/tasks?state=succeeded").text, timeout=60, what="an order")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["sqlite", *STORES[2:]])  # the first is within a process
def test_one_that_is_killed_in_the_middle_of_an_action_leaves_nothing_half_done(store: str, tmp_path: Path) -> None:
    with url_on(store, tmp_path) as url, TaskQueue(url) as queue:

        @queue.task(name="job")
        def job(n: int) -> None: ...

        queue.enqueue_many([job.call(n) for n in range(MANY)])
        with served([*OMNIQ, "dashboard", url]) as (process, client):
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
        # In NATS a step is several messages, elsewhere all or nothing.
        assert store == "nats" or cancelled % 500 == 0
        with served([*OMNIQ, "dashboard", url]) as (_, client):
            assert f"Cancel {ready:,} tasks?" in client.get("/bulk/cancel").text or ready == 0
