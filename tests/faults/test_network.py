"""Networks that lose connections and answers, stand still, or are slow, between workers, producers and the server."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from omniq import Every, StorageUnavailable, TaskHandle, TaskQueue, TaskState
from tests.faults.scene import Actor, Scene
from tests.faults.stages import ServerStage, seed_of_this_run
from tests.servers.starting import MOSTLY_LONG

T = TypeVar("T")

mostly_long = pytest.mark.parametrize("stage", MOSTLY_LONG, indirect=True)


def insist(call: Callable[[], T]) -> T:
    """Do what every caller does that is told that the store is unavailable: try again."""
    for _ in range(50):
        try:
            return call()
        except StorageUnavailable:
            continue
    raise AssertionError("the store stays unavailable")


def check_that_the_load_was_carried(scene: Scene) -> None:
    assert all(event.details["unavailable"] for event in scene.history.events("refused"))
    assert len(scene.history.events("enqueued")) > 0
    scene.check(answers_were_lost=True)
    assert {task.state for task in scene.all_tasks()} == {TaskState.SUCCEEDED}
    scene.check_nothing_is_left()


@mostly_long
def test_nothing_is_lost_or_done_twice_when_every_connection_is_cut_again_and_again(
    scene: Scene, server_stage: ServerStage
) -> None:
    chance = random.Random(seed_of_this_run())
    scene.load()
    for _ in range(5):
        scene.more_run(chance.randrange(5, 40))
        server_stage.proxy.drop()
    scene.more_run(20)
    scene.end_of_load()
    check_that_the_load_was_carried(scene)


@mostly_long
def test_nothing_is_lost_or_done_twice_when_answers_are_lost_at_random(scene: Scene, server_stage: ServerStage) -> None:
    server_stage.proxy.reseed(seed_of_this_run())
    scene.load()
    server_stage.proxy.lossy(0.02)
    scene.wait_for(lambda: server_stage.proxy.lost >= 20, "lost answers", timeout=120)
    server_stage.proxy.pass_on()
    scene.end_of_load()
    check_that_the_load_was_carried(scene)


@mostly_long
def test_schedulers_that_lose_answers_fire_each_tick_once(scene: Scene, server_stage: ServerStage) -> None:
    server_stage.proxy.reseed(seed_of_this_run())
    function = scene.function("coroutine")
    for _ in range(3):
        scene.worker()
    first = scene.queue.schedule(function.call(), Every(0.05), id="ticks", misfire="all").next_run
    server_stage.proxy.lossy(0.05)

    def fired() -> int:
        return len(scene.queue.tasks(name=function.name, limit=1000))

    scene.wait_for(lambda: fired() >= 60 and server_stage.proxy.lost >= 10, "ticks", timeout=120)
    server_stage.proxy.pass_on()
    scene.queue.pause_schedule("ticks")
    scene.wait_drained(60)

    following = scene.queue.schedules()[0].next_run
    assert first is not None
    assert following is not None
    assert fired() == round((following - first).total_seconds() / 0.05)
    scene.check(answers_were_lost=True)


def held_on(scene: Scene, worker: Actor) -> list[TaskHandle[str]]:
    held = [scene.enqueue(kind, str(scene.flag())) for kind in ("hold_thread", "hold_coroutine")]
    scene.wait_for(lambda: all(scene.is_running(handle) for handle in held), "the start of the held tasks", worker)
    return held


@mostly_long
def test_a_worker_that_is_cut_off_for_longer_than_a_lease_gives_up_and_its_late_completion_is_rejected(
    scene: Scene, server_stage: ServerStage
) -> None:
    cut_off = scene.worker()
    held = held_on(scene, cut_off)
    server_stage.proxy.blackhole()

    scene.wait_for(lambda: "giving up 2 tasks" in cut_off.text(), "the worker to give up", cut_off)
    elsewhere = scene.worker(undisturbed=True)
    meanwhile = scene.enqueue("thread")
    scene.wait_drained(60)
    results = [handle.result(0) for handle in held]
    scene.flag().touch()
    scene.wait_for(lambda: cut_off.events("ran"), "the late end", cut_off)
    server_stage.proxy.pass_on()

    scene.wait_for(lambda: cut_off.events("rejected"), "the rejection of the late completion", cut_off, timeout=60)
    assert [handle.result(0) for handle in held] == results
    assert all(event.pid == elsewhere.pid for event in scene.history.events("accepted"))
    assert meanwhile.task().attempt == 1
    # It goes on to serve.
    elsewhere.stop()
    after = scene.enqueue("coroutine")
    scene.wait_for(lambda: after.task().state is TaskState.SUCCEEDED, "another task", cut_off)
    scene.check(answers_were_lost=True)
    scene.check_nothing_is_left()


@mostly_long
@pytest.mark.parametrize("how", ["delay", pytest.param("trickle", marks=pytest.mark.long)])
def test_on_a_slow_network_everything_is_right_and_only_slower(
    scene: Scene, server_stage: ServerStage, how: str
) -> None:
    # With more patience than users have who say nothing: nothing here is to look like a failure, on a busy machine too.
    scene.environment["OMNIQ_URL"] = f"{server_stage.disturbed_url_of(patient=True)}&timeout=60"
    if how == "delay":
        server_stage.proxy.delay(0.2, jitter=0.15)
    else:
        server_stage.proxy.trickle(size=64, pause=0.001)
    for _ in range(2):
        scene.start_worker(lease=30, concurrency=4)
    producers = [scene.producer(count=4, batch=5), scene.producer(count=4, unique=2, first=100)]

    assert [producer.ended(180) for producer in producers] == [0, 0]
    scene.wait_drained(180)

    assert scene.history.events("refused", "rejected", "recovered") == []
    assert {task.attempt for task in scene.all_tasks()} == {1}
    server_stage.proxy.pass_on()
    check_that_the_load_was_carried(scene)


@mostly_long
def test_a_task_that_comes_after_the_waiting_worker_was_cut_off_is_found(
    scene: Scene, server_stage: ServerStage
) -> None:
    worker = scene.worker()
    first = scene.enqueue("coroutine")
    scene.wait_for(lambda: first.task().state is TaskState.SUCCEEDED, "the first task", worker)
    server_stage.proxy.drop()
    second = scene.enqueue("coroutine")
    scene.wait_for(lambda: second.task().state is TaskState.SUCCEEDED, "the second task", worker)
    scene.check(answers_were_lost=True)


@mostly_long
def test_a_result_that_is_waited_for_comes_although_every_connection_is_cut(
    scene: Scene, server_stage: ServerStage
) -> None:
    scene.worker(undisturbed=True)
    handle = scene.enqueue("hold_thread", str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(handle), "the task's start")
    with TaskQueue(server_stage.disturbed_url) as queue:
        waiting = queue.handle(handle.id)
        assert insist(waiting.task).state is TaskState.RUNNING
        with ThreadPoolExecutor(1) as pool:
            result = pool.submit(insist, waiting.result)
            server_stage.proxy.drop()
            scene.flag().touch()
            assert result.result(60) == handle.result(60)


@mostly_long
def test_a_producer_is_told_in_time_that_it_is_cut_off(scene: Scene, server_stage: ServerStage) -> None:
    with TaskQueue(server_stage.disturbed_url) as queue:
        assert insist(queue.stats) == []
        server_stage.proxy.blackhole()
        with pytest.raises(StorageUnavailable):
            queue.stats()
        server_stage.proxy.reset()
        with pytest.raises(StorageUnavailable):
            queue.stats()
        server_stage.proxy.pass_on()
        assert insist(queue.stats) == []
