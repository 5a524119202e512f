"""Flows whose workers, builders and servers are killed: each ends, and each callback runs exactly when it should."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict

import pytest

from omniq import StorageUnavailable, TaskGroup, TaskHandle, TaskState
from tests.faults.flows import RandomFlow
from tests.faults.history import Event
from tests.faults.scene import Actor, Scene
from tests.faults.stages import LOCAL, SERVERS, ServerStage, Stage, hold_flows, seed_of_this_run
from tests.servers.starting import MOSTLY_LONG

FLOWS = int(os.environ.get("OMNIQ_MANY_FLOWS", "60"))
"""Flows of a long run; 200 of them take some minutes on each store."""
FILE = pytest.param("file", marks=pytest.mark.long)
mostly_long = pytest.mark.parametrize("stage", hold_flows("sqlite", FILE, *MOSTLY_LONG), indirect=True)
everywhere = pytest.mark.parametrize("stage", hold_flows(*LOCAL, *SERVERS), indirect=True)
locally = pytest.mark.parametrize("stage", hold_flows("sqlite", FILE), indirect=True)


class Killing:
    """Workers that run flows, of which one is killed again and again, and the server at every third time.

    :param count: of workers.
    """

    def __init__(self, scene: Scene, chance: random.Random, count: int) -> None:
        self._scene = scene
        self._chance = chance
        self._workers = [self._start() for _ in range(count)]
        self._times = 0
        self.flows: list[tuple[RandomFlow, TaskHandle[str]]] = []
        """Those that the store has acknowledged."""

    def _start(self) -> Actor:
        return self._scene.start_worker(concurrency=16, threads=4)

    def enqueue(self, largest: int) -> None:
        """Enqueue a random flow; one that was refused may be there all the same, and has to end like any other."""
        flow = RandomFlow(self._scene, self._chance, largest)
        try:
            handle = self._scene.queue.enqueue_flow(flow.last)
        except StorageUnavailable:
            return
        self._scene.history.note("enqueued", handle.id)
        self.flows.append((flow, handle))

    def kill(self) -> None:
        """Kill a worker, and at every third time the server, and start them again."""
        self._times += 1
        victim = self._workers.pop(self._chance.randrange(len(self._workers)))
        victim.kill()
        stage: Stage = self._scene.stage
        if self._times % 3 == 0 and isinstance(stage, ServerStage):
            stage.server.kill()
            stage.start_server()
        self._workers.append(self._start())

    def check(self) -> None:
        """Check everything once all has drained."""
        scene = self._scene
        scene.check(answers_were_lost=isinstance(scene.stage, ServerStage))
        by_task: dict[str, list[Event]] = defaultdict(list)
        for event in scene.history.events("started", "ran"):
            by_task[event.task].append(event)
        for flow, handle in self.flows:
            shown = handle.flow.progress()
            assert shown.finished_at is not None
            assert sum(shown.counts.values()) == len(flow.nodes)
            flow.check(handle.flow.tasks(), by_task)


@mostly_long
def test_flows_whose_workers_are_killed_run_each_callback_when_it_should(scene: Scene) -> None:
    chance = random.Random(seed_of_this_run())
    killing = Killing(scene, chance, 2)
    for _ in range(4):
        for _ in range(4):
            killing.enqueue(25)
        scene.more_run(chance.randrange(5, 40))
        killing.kill()
    scene.wait_drained(120)
    assert len(killing.flows) >= 12
    killing.check()


@pytest.mark.long
@pytest.mark.timeout(900)  # it kills for some time, and then what is left may take ten minutes
@everywhere
def test_many_flows_of_which_a_worker_is_killed_every_second(scene: Scene) -> None:
    chance = random.Random(seed_of_this_run())
    killing = Killing(scene, chance, 3)
    begun = killed = time.monotonic()
    while len(killing.flows) < FLOWS or (not scene.drained() and time.monotonic() - begun < 0.6 * FLOWS):
        if len(killing.flows) < FLOWS:
            killing.enqueue(200)
        else:
            time.sleep(0.05)  # until the next kill
        if time.monotonic() - killed >= 1:
            killing.kill()
            killed = time.monotonic()
    scene.wait_drained(600)
    killing.check()


# At chosen moments


@pytest.mark.parametrize(
    ("failpoint", "hold", "end"),
    [
        pytest.param("producer.after-part:1", 5, TaskState.CANCELLED, marks=pytest.mark.long),
        ("producer.after-part:2", 5, TaskState.CANCELLED),
        ("producer.before-release", 5, TaskState.CANCELLED),
        ("producer.after-release", 600, TaskState.SUCCEEDED),
    ],
)
@locally
def test_a_flow_whose_builder_is_killed_runs_whole_or_not_at_all(
    scene: Scene, failpoint: str, hold: float, end: TaskState
) -> None:
    scene.worker()
    builder = scene.builder(failpoint, size=30, part=10, hold=hold)
    assert builder.ended() == -signal.SIGKILL
    scene.wait_for(lambda: scene.all_tasks() and scene.drained(), "the end of the flow")

    tasks = scene.all_tasks()
    assert {task.state for task in tasks} == {end}
    assert len(tasks) == 32 or end is TaskState.CANCELLED
    ran = [event.task for event in scene.history.events("started")]
    assert sorted(ran) == (sorted(task.id for task in tasks) if end is TaskState.SUCCEEDED else [])
    scene.check()


@pytest.mark.parametrize(
    ("failpoint", "size"),
    [
        ("worker.after-finish", 450),
        pytest.param("worker.before-finish", 450, marks=pytest.mark.long),
        pytest.param("worker.after-claim:2", 2500, marks=pytest.mark.long),
        pytest.param("worker.after-claim:3", 2500, marks=pytest.mark.long),
    ],
)
@locally
def test_what_follows_from_a_gate_goes_on_when_who_opened_it_is_killed(scene: Scene, failpoint: str, size: int) -> None:
    step = scene.function("step")
    first = step.call([])
    members = TaskGroup([step.call([first.output]) for _ in range(size)])
    doomed = scene.start_worker(failpoint=failpoint)
    handle = scene.queue.enqueue_flow(members.then(step))
    scene.history.note("enqueued", handle.id)
    assert doomed.ended() == -signal.SIGKILL

    scene.worker(concurrency=50)
    scene.wait_drained(120)

    assert handle.flow.progress().counts[TaskState.SUCCEEDED] == size + 2
    scene.check()
    (ran,) = {tuple(event.details["inputs"]) for event in scene.history.events("ran", task=handle.id)}
    assert sorted(ran) == sorted(task.result for task in handle.flow.tasks() if task.behind == 0)
