"""Workers that stand still, block, or cannot reach the store for longer than their leases, and come back."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from omniq import Every, TaskCancelled, TaskHandle, TaskState
from omniq.testing import wait_until
from tests.faults.scene import Scene
from tests.faults.stages import LOCAL, SERVERS, ServerStage, SqliteStage, seed_of_this_run
from tests.servers.starting import MOSTLY_LONG

everywhere = pytest.mark.parametrize("stage", [*LOCAL, *MOSTLY_LONG], indirect=True)
locally = pytest.mark.parametrize("stage", LOCAL, indirect=True)


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("sqlite", "hold_coroutine"),
        ("sqlite", "stubborn"),
        *((stage, "hold_thread") for stage in (*LOCAL, SERVERS[0])),
        *(pytest.param(stage, "hold_thread", marks=pytest.mark.long) for stage in SERVERS[1:]),
    ],
    indirect=["stage"],
)
def test_the_late_completion_of_a_worker_that_was_suspended_is_rejected(scene: Scene, kind: str) -> None:
    suspended = scene.worker()
    handle = scene.enqueue(kind, str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(handle), "the task's start")
    suspended.suspend()

    second = scene.worker()
    scene.wait_for(lambda: handle.task().state is TaskState.SUCCEEDED, "its run elsewhere")
    result = handle.result(0)
    scene.flag().touch()
    suspended.resume()

    if kind != "hold_coroutine":  # which may be stopped before it ends, for its lease is lost
        scene.wait_for(lambda: "rejected the late completion" in suspended.text(), "the rejection", suspended)
        assert [event.task for event in suspended.events("rejected")] == [handle.id]
    assert handle.result(0) == result
    assert handle.task().delivery == 2
    # It goes on to serve.
    second.send(signal.SIGTERM)
    assert second.ended() == 0
    after = scene.enqueue("thread")
    scene.wait_for(lambda: after.task().state is TaskState.SUCCEEDED, "another task", suspended)
    scene.check()
    assert [event.pid for event in scene.history.events("accepted", task=after.id)] == [suspended.pid]
    scene.check_nothing_is_left()


@everywhere
def test_a_late_completion_does_not_end_the_run_that_goes_on_elsewhere(scene: Scene) -> None:
    suspended = scene.worker()
    handle = scene.enqueue("hold_each", str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(handle), "the task's start")
    suspended.suspend()
    second = scene.worker()
    scene.wait_for(lambda: second.events("started"), "its start elsewhere")

    Path(f"{scene.flag()}-1").touch()
    suspended.resume()
    scene.wait_for(lambda: suspended.events("rejected"), "the rejection", suspended)
    assert handle.task().state is TaskState.RUNNING
    Path(f"{scene.flag()}-2").touch()

    scene.wait_drained()
    scene.check()
    assert [event.pid for event in scene.history.events("accepted")] == [second.pid]
    assert str(handle.result(0)).startswith(f"{second.pid}-")


def test_a_task_that_blocks_the_event_loop_for_three_leases_keeps_its_lease(scene: Scene) -> None:
    for _ in range(2):
        scene.worker(lease=1.5)
    handle = scene.enqueue("block_loop", 4.5)

    scene.wait_drained()

    assert handle.task().delivery == 1
    assert scene.history.events("recovered", "rejected") == []
    scene.check()


@locally
def test_a_running_coroutine_is_cancelled_from_another_process(scene: Scene) -> None:
    worker = scene.worker()
    handle = scene.enqueue("hold_coroutine", str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(handle), "the task's start")

    assert handle.cancel() is True

    with pytest.raises(TaskCancelled):
        handle.result(30)
    scene.check()
    assert [event.details["how"] for event in worker.events("accepted")] == ["cancelled"]
    assert scene.history.events("ran") == []


def locked_for(database: Path, enough: Callable[[], object]) -> None:
    """Keep everybody else from writing until something has happened."""
    connection = sqlite3.connect(database, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        # The end of waiting in vain on a loaded machine, and no bound of what is tested.
        wait_until(enough, timeout=60, what="what is to happen while the store is locked")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.fixture
def impatient(tmp_path: Path) -> SqliteStage:
    return SqliteStage(tmp_path, "?busy_timeout=0.1")


def test_nothing_is_lost_or_accepted_twice_when_the_store_cannot_be_written_for_longer_than_a_lease(
    impatient: SqliteStage, tmp_path: Path
) -> None:
    with Scene(tmp_path, impatient) as scene:
        workers = [scene.worker() for _ in range(2)]
        held: list[TaskHandle[str]] = [
            scene.enqueue(kind, str(scene.flag())) for kind in ("hold_coroutine", "hold_thread", "stubborn")
        ]
        quick = [scene.enqueue(kind, 0.02) for kind in ("coroutine", "thread") * 10]
        scene.wait_for(lambda: all(scene.is_running(handle) for handle in held), "the start of the held tasks")

        locked_for(impatient.database, lambda: any("giving up" in worker.text() for worker in workers))
        scene.flag().touch()
        scene.wait_drained()

        assert all(handle.result(0) for handle in [*held, *quick])
        assert all(worker.alive for worker in workers)
        scene.check()
        scene.check_nothing_is_left()


def test_a_producer_is_told_that_a_locked_store_took_nothing(impatient: SqliteStage, tmp_path: Path) -> None:
    with Scene(tmp_path, impatient) as scene:
        scene.enqueue("coroutine").cancel()  # creates the store
        producer = scene.producer(count=1, batch=4)
        locked_for(impatient.database, lambda: scene.history.events("refused", pid=producer.pid))

        assert producer.ended() == 0
        (refused,) = producer.events("refused")
        assert "StorageUnavailable" in refused.details["error"]
        assert len(scene.queue.tasks()) == 1
        scene.check()


@pytest.mark.parametrize("stage", MOSTLY_LONG, indirect=True)
def test_schedulers_that_are_suspended_in_the_middle_of_what_they_do_keep_nobody_waiting(
    scene: Scene, server_stage: ServerStage
) -> None:
    chance = random.Random(seed_of_this_run())
    function = scene.function("coroutine")
    # With longer leases than other tests: on this network nothing is quick, and each of them always on its way.
    workers = [scene.worker(lease=3) for _ in range(4)]
    undisturbed = scene.worker(undisturbed=True)
    first = scene.queue.schedule(function.call(), Every(0.05), id="ticks", misfire="all").next_run
    server_stage.proxy.delay(0.15, jitter=0.05)

    def fired() -> int:
        return sum(sum(stats.counts.values()) for stats in scene.queue.stats())

    def more(ticks: int) -> None:
        enough = fired() + ticks
        # Much sooner than a server gives up a client that says nothing.
        scene.wait_for(lambda: fired() >= enough, "more ticks", timeout=10)

    for _ in range(2):
        scene.wait_for(lambda: fired() > 0, "ticks")
        suspended = chance.sample(workers, 3)
        undisturbed.suspend()
        more(5)
        for worker in suspended:
            worker.suspend()
        undisturbed.resume()
        more(20)
        for worker in suspended:
            worker.resume()
    server_stage.proxy.pass_on()
    scene.queue.pause_schedule("ticks")
    scene.wait_drained()

    following = scene.queue.schedules()[0].next_run
    assert first is not None
    assert following is not None
    assert fired() == round((following - first).total_seconds() / 0.05)
    scene.check()


@pytest.mark.parametrize(
    "stage", ["sqlite", *(pytest.param(stage, marks=pytest.mark.long) for stage in SERVERS)], indirect=True
)
def test_of_several_schedulers_that_stand_still_and_come_back_one_fires_each_tick(scene: Scene) -> None:
    function = scene.function("coroutine")
    workers = [scene.worker() for _ in range(5)]
    first = scene.queue.schedule(function.call(), Every(0.05), id="ticks", misfire="all").next_run

    def fired() -> int:
        return len(scene.queue.tasks(name=function.name, limit=1000))

    def more(ticks: int) -> None:
        before = fired()
        scene.wait_for(lambda: fired() >= before + ticks, "more ticks")

    for worker in workers[:2]:
        more(30)
        worker.suspend()
        more(60)  # three seconds: longer than every lease
        worker.resume()
    scene.wait_for(lambda: fired() >= 200, "two hundred ticks")
    scene.queue.pause_schedule("ticks")
    scene.wait_drained()

    following = scene.queue.schedules()[0].next_run
    assert first is not None
    assert following is not None
    assert fired() == round((following - first).total_seconds() / 0.05)
    scene.check()
