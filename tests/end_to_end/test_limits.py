"""Limits that are changed while worker processes run, and what they mean to the tenants of one queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from omniq import Limit, TaskState
from tests.faults.scene import Scene
from tests.faults.stages import Stage

on_each_store = pytest.mark.parametrize(
    "stage",
    ["sqlite", "redis", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("file", "postgres", "nats"))],
    indirect=True,
)

SHARED_OUT = 10
"""Tasks of each of the lighter tenants."""


@pytest.fixture
def scene(tmp_path: Path, stage: Stage) -> Iterator[Scene]:
    with Scene(tmp_path, stage) as scene:
        yield scene


def running(scene: Scene) -> int:
    return sum(stats.counts[TaskState.RUNNING] for stats in scene.queue.stats())


@on_each_store
def test_a_limit_that_is_raised_starts_what_it_held_back_and_one_that_is_lowered_stops_nothing(scene: Scene) -> None:
    scene.queue.put_limit(Limit(queue="default", concurrency=1))
    scene.worker(concurrency=10)
    flags = [scene.folder / f"go-{number}" for number in range(6)]
    handles = [scene.enqueue("hold_coroutine", str(flag)) for flag in flags]
    scene.wait_for(lambda: scene.is_running(handles[0]), "the first task's start")
    assert [scene.is_running(handle) for handle in handles] == [True] + [False] * 5

    scene.queue.put_limit(Limit(queue="default", concurrency=3))
    scene.wait_for(lambda: all(map(scene.is_running, handles[:3])), "two starts more")
    assert running(scene) == 3

    scene.queue.put_limit(Limit(queue="default", concurrency=1))
    for flag, handle in zip(flags[:2], handles[:2], strict=True):
        assert scene.is_running(handle)
        flag.touch()
        handle.result(60)
    # One goes on, which is as many as may: had another taken a slot in the step of an end, it would show here.
    assert running(scene) == 1
    assert scene.is_running(handles[2])
    flags[2].touch()
    scene.wait_for(lambda: scene.is_running(handles[3]), "the next task's start")
    assert running(scene) == 1

    for flag in flags:
        flag.touch()
    scene.wait_drained()
    ends = {event.task: event.at for event in scene.history.events("ran")}
    starts = {event.task: event.at for event in scene.history.events("started")}
    ids = [handle.id for handle in handles]
    for before, after in pairwise(ids[2:]):
        assert starts[after] > ends[before], "two of them ran at once"
    scene.check()


@on_each_store
def test_tenants_get_starts_by_their_weights_while_all_of_them_have_work(scene: Scene) -> None:
    scene.queue.put_limit(Limit(queue="default", weights={"big": 4}))
    keys = [*["big"] * 4 * SHARED_OUT, *["left"] * SHARED_OUT, *["right"] * SHARED_OUT]
    scene.enqueue_keyed("coroutine", keys)
    scene.worker(concurrency=1)
    scene.wait_drained()

    started = [event.details["key"] for event in scene.history.events("started")]
    half = Counter(started[: len(keys) // 2])
    # Each share is within a task of a round, and a claim may end in the middle of one.
    assert abs(half["big"] - 2 * SHARED_OUT) <= 4
    assert abs(half["left"] - half["right"]) <= 2
    scene.check()


@on_each_store
def test_a_tenant_with_one_task_waits_for_none_of_those_of_a_tenant_at_its_limit(scene: Scene) -> None:
    scene.queue.put_limit(Limit(queue="default", per_key=Limit(concurrency=1)))
    scene.worker(concurrency=4)
    first, *_ = scene.enqueue_keyed("hold_coroutine", ["busy"] * 200, str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(first), "the busy tenant's first task")

    (other,) = scene.enqueue_keyed("coroutine", ["quiet"])

    assert other.result(60)  # while the busy tenant's first task runs, and 199 wait for it
    assert scene.is_running(first)
    assert running(scene) == 1
    scene.flag().touch()
    scene.wait_drained()
    scene.check()
