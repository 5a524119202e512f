"""Servers that are killed, stopped, suspended and started again, under load and while tasks run."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import pytest

from omniq import StorageUnavailable, TaskQueue, TaskState
from tests.faults.scene import Scene
from tests.faults.stages import ServerStage, seed_of_this_run
from tests.servers.base import Server
from tests.servers.starting import MOSTLY_LONG

mostly_long = pytest.mark.parametrize("stage", MOSTLY_LONG, indirect=True)


def stop_immediately(server: Server) -> None:
    from tests.servers.postgres import PostgresServer

    assert isinstance(server, PostgresServer)
    server.stop(immediate=True)


ENDS: Mapping[str, Sequence[Callable[[Server], None]]] = {
    "redis": [lambda server: server.kill(), lambda server: server.stop(), lambda server: server.kill()],
    "postgres": [lambda server: server.kill(), stop_immediately, lambda server: server.stop()],
    "nats": [lambda server: server.kill(), lambda server: server.stop(), lambda server: server.kill()],
}


@mostly_long
def test_a_server_that_ends_under_load_and_comes_back_has_lost_nothing_that_it_acknowledged(
    scene: Scene, server_stage: ServerStage
) -> None:
    chance = random.Random(seed_of_this_run())
    scene.load()

    for end in ENDS[server_stage.kind]:
        scene.more_run(chance.randrange(20, 80))
        end(server_stage.server)
        server_stage.start_server()
    scene.more_run(20)
    scene.end_of_load()

    assert all(event.details["unavailable"] for event in scene.history.events("refused"))
    scene.check(answers_were_lost=True)
    assert {task.state for task in scene.all_tasks()} == {TaskState.SUCCEEDED}
    scene.check_nothing_is_left()


@mostly_long
def test_everyone_is_told_in_time_that_the_server_is_gone_and_goes_on_when_it_is_back(
    scene: Scene, server_stage: ServerStage
) -> None:
    worker = scene.worker()
    held = [scene.enqueue(kind, str(scene.flag())) for kind in ("hold_thread", "hold_coroutine")]
    scene.wait_for(lambda: all(scene.is_running(handle) for handle in held), "the start of the held tasks")

    server_stage.server.kill()
    with pytest.raises(StorageUnavailable):
        scene.queue.submit(scene.function("coroutine").call())
    with TaskQueue(server_stage.url) as late, pytest.raises(StorageUnavailable):
        late.stats()
    scene.wait_for(lambda: "giving up 2 tasks" in worker.text(), "the worker to give up", worker)
    server_stage.start_server()

    after = scene.wait_for(lambda: _accepted(scene), "the store to take a task", timeout=60)
    scene.flag().touch()
    scene.wait_drained(60)
    assert all(handle.result(0) for handle in [*held, after])
    assert worker.alive
    scene.check(answers_were_lost=True)
    scene.check_nothing_is_left()


def _accepted(scene: Scene) -> object:
    try:
        return scene.enqueue("coroutine")
    except StorageUnavailable:
        return None


@mostly_long
def test_a_server_that_stands_still_for_longer_than_a_lease_costs_nothing(
    scene: Scene, server_stage: ServerStage
) -> None:
    workers = [scene.worker() for _ in range(2)]
    held = [scene.enqueue(kind, str(scene.flag())) for kind in ("hold_thread", "hold_coroutine", "stubborn")]
    scene.wait_for(lambda: all(scene.is_running(handle) for handle in held), "the start of the held tasks")
    quick = [scene.enqueue(kind, 0.02) for kind in ("coroutine", "thread") * 10]

    server_stage.suspend_server()
    try:
        with pytest.raises(StorageUnavailable):
            scene.queue.submit(scene.function("coroutine").call())
        scene.wait_for(lambda: any("giving up" in worker.text() for worker in workers), "workers to give up")
    finally:
        server_stage.server.resume()

    scene.flag().touch()
    scene.wait_drained(60)
    # The task that was refused may have been on its way all the same.
    assert len(scene.all_tasks()) - len(held) - len(quick) in (0, 1)
    assert all(handle.result(0) for handle in [*held, *quick])
    assert all(worker.alive for worker in workers)
    scene.check(answers_were_lost=True)
    scene.check_nothing_is_left()
