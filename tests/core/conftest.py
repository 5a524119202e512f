"""Queues for the tests of the core. A test that asks for one runs on every store named here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omniq import TaskQueue
from omniq.storage.ids import new_id
from omniq.testing import wait_until
from tests.core.running import Gate, MakeQueue


@pytest.fixture(params=["memory", "sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a store that is empty."""
    urls = {
        "memory": f"memory://{new_id()}",
        "sqlite": f"sqlite:///{tmp_path}/jobs.db",
        "file": f"file://{tmp_path}/jobs",
    }
    return urls[request.param]


@pytest.fixture
def make_queue(url: str) -> Iterator[MakeQueue]:
    made: list[TaskQueue] = []

    def make(**options: Any) -> TaskQueue:
        queue = TaskQueue(options.pop("url", url), **options)
        made.append(queue)
        return queue

    yield make
    for queue in made:
        queue.close()
    wait_until(lambda: not _our_threads(), what="the end of every thread of ours")


def _our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("omniq-")]


@pytest.fixture
def queue(make_queue: MakeQueue) -> TaskQueue:
    return make_queue()


@pytest.fixture
def gate(make_queue: MakeQueue) -> Iterator[Gate]:
    """Yield a gate that opens before the queues are closed, so that no thread stays behind it."""
    gate = Gate()
    yield gate
    gate.open()
