"""What a worker tells about itself: what it says, when it says it, and how it is read."""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Sequence
from copy import copy
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Self

import pytest
from attrs import evolve

from omniq import StorageUnavailable, TaskQueue
from omniq._worker.worker_info import LARGEST_NAMES, WorkerAbout, dump_about, load_about, some_names
from omniq.storage import Lease, LeaseState
from omniq.storage.urls import parse_url
from omniq.testing import await_until
from omniq_local.memory.storage import MemoryStorage

ABOUT = WorkerAbout(
    hostname="blue",
    pid=7,
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    versions={"omniq-core": "1.0", "python": "3.13.0"},
    queues=("urgent", "default"),
    concurrency=100,
    slots={"loop": 100, "thread": 20, "process": 2},
    lease=30.0,
    recover_every=15.0,
    serializers=("json",),
    functions=("a", "b\ud800"),
    function_count=2,
)


async def test_a_worker_tells_what_it_is(queue: TaskQueue) -> None:
    @queue.task(name="b")
    def second() -> None: ...

    @queue.task(name="a")
    def first() -> None: ...

    before = datetime.now(UTC)
    options = {"concurrency": 7, "threads": 5, "processes": 3, "lease": 20}
    labels = {"zone": "a"}
    async with queue.worker(queues={"urgent": 3, "default": 1}, labels=labels, **options):  # type: ignore[arg-type]  # all are numbers
        await await_until_told(queue)
        (seen,) = await queue.aworkers()
        about = seen.about
        assert about is not None
        assert before <= about.started_at <= datetime.now(UTC)
        assert about == WorkerAbout(
            hostname=socket.gethostname(),
            pid=os.getpid(),
            started_at=about.started_at,
            versions={
                "omniq-core": version("omniq-core"),
                "omniq-local": version("omniq-local"),
                "python": platform.python_version(),
            },
            queues={"urgent": 3, "default": 1},
            concurrency=7,
            slots={"loop": 7, "thread": 5, "process": 3},
            lease=20.0,
            recover_every=10.0,
            labels={"zone": "a"},
            serializers=("json",),
            functions=("a", "b"),
            function_count=2,
        )
    async with queue.worker(queues=["b", "a"]):
        await await_until_told(queue)
        assert [seen.about and seen.about.queues for seen in await queue.aworkers()] == [("b", "a")]
    async with queue.worker():
        await await_until_told(queue)
        assert [seen.about and seen.about.queues for seen in await queue.aworkers()] == [None]


async def await_until_told(queue: TaskQueue) -> None:
    async def told() -> bool:
        return any(seen.about for seen in await queue.aworkers())

    await await_until(told, what="the worker to tell what it is")


class Listening(MemoryStorage):
    """A memory storage that notes which heartbeats tell something, and can be made to fail."""

    def __init__(self) -> None:
        super().__init__(parse_url("memory://"))
        self.told: list[bool] = []
        self.failing: set[str] = set()

    def sibling(self) -> Self:
        return copy(super().sibling())  # the same list

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        self.told.append(about is not None)
        if self.failing:
            raise StorageUnavailable("cut")
        return await super().heartbeat(worker, leases, lease, about)


async def test_it_tells_so_rarely_and_again_once_the_store_may_have_lost_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq._worker.heartbeat.TELL_EVERY", 3)
    storage = Listening()
    async with TaskQueue(storage) as queue, queue.worker(lease=3):
        await await_until(lambda: len(storage.told) >= 5, 60)
        assert storage.told[:5] == [True, False, False, True, False]
        storage.failing.add("heartbeat")
        await await_until(lambda: len(storage.told) >= 7, 60)
        storage.failing.clear()
        failed = len(storage.told)
        await await_until(lambda: len(storage.told) > failed, 60)
        assert all(storage.told[6 : failed + 1])


@pytest.mark.parametrize("queues", [None, ("urgent", "default"), {"urgent": 3, "default": 1}], ids=repr)
def test_what_was_told_is_read_whatever_a_newer_version_adds(queues: dict[str, int] | tuple[str, ...] | None) -> None:
    about = evolve(ABOUT, queues=queues)
    text = dump_about(about)
    assert text.isascii()
    assert load_about(text) == about
    assert load_about(text[:-1] + ',"of tomorrow":{}}') == about


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "{}",
        "[" * 100_000,
        dump_about(ABOUT)[:-1],
        dump_about(ABOUT).replace('"pid":7', '"pid":"7"'),
        dump_about(ABOUT).replace('["json"]', '"json"'),
        dump_about(ABOUT).replace("2026-01", "2026-99"),
        dump_about(ABOUT).replace("+00:00", ""),
        dump_about(ABOUT).replace('"thread":20', '"thread":null'),
        dump_about(ABOUT).replace('"lease":30.0', f'"lease":{10**400}'),
        dump_about(ABOUT).replace('"lease":30.0', '"lease":Infinity'),
        dump_about(ABOUT).replace('"recover_every":15.0', '"recover_every":NaN'),
    ],
    ids=lambda text: text if len(text) < 5 else None,
)
def test_what_cannot_be_read_is_none(text: str) -> None:
    assert load_about(text) is None


def test_of_many_functions_some_are_named() -> None:
    assert some_names(["b", "a"]) == ("a", "b")
    assert len(some_names(f"{number:03}" for number in range(600))) == 500
    long = some_names("é" * 400 + f"{number:03}" for number in range(600))
    assert 0 < len(long) < 30
    assert len(dump_about(evolve(ABOUT, functions=long))) < LARGEST_NAMES + 1000


@pytest.mark.parametrize(
    "labels",
    [
        {"zone": ""},
        {"": "a"},
        {"zone": "a\nb"},
        {"zone": "x" * 101},
        {"zone": 7},
        {f"name {n}": "a" for n in range(21)},
    ],
    ids=lambda labels: str(labels)[:20],
)
def test_labels_that_cannot_be_shown_are_refused(queue: TaskQueue, labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="label"):
        queue.worker(labels=labels)


def test_what_a_worker_of_before_told_has_no_labels() -> None:
    told = json.loads(dump_about(ABOUT))
    del told["labels"]
    assert load_about(json.dumps(told)) == ABOUT
