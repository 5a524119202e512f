"""Workers and producers that are killed at the worst moments. Nothing is lost, nothing is recorded twice."""

from __future__ import annotations

import random
import signal
from collections import Counter

import pytest

from omniq import TaskFailed, TaskState
from tests.faults.scene import Scene
from tests.faults.stages import LOCAL, SERVERS, seed_of_this_run
from tests.servers.starting import MOSTLY_LONG

mostly_long = pytest.mark.parametrize(
    "stage", [*(pytest.param(store, marks=pytest.mark.long) for store in LOCAL), *MOSTLY_LONG], indirect=True
)
locally = pytest.mark.parametrize("stage", LOCAL, indirect=True)
"""What the worker alone is responsible for is enough to see on the stores that take the least time."""


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("sqlite", "coroutine"),
        ("file", "coroutine"),
        *((stage, "thread") for stage in (*LOCAL, SERVERS[0])),
        *(pytest.param(stage, "thread", marks=pytest.mark.long) for stage in SERVERS[1:]),
    ],
    indirect=["stage"],
)
@pytest.mark.parametrize(
    ("failpoint", "started", "accepted"),
    [
        pytest.param("worker.after-claim", [2], [2], id="after the claim"),
        pytest.param("worker.before-finish", [1, 2], [2], id="before the outcome is recorded"),
        pytest.param("worker.after-finish", [1], [], id="after the outcome was recorded"),
    ],
)
def test_a_task_whose_worker_is_killed_runs_again_unless_its_outcome_was_recorded(
    scene: Scene, kind: str, failpoint: str, started: list[int], accepted: list[int]
) -> None:
    doomed = scene.worker(failpoint=failpoint)
    handle = scene.enqueue(kind)
    scene.wait_for(lambda: not doomed.alive, "the worker's death", doomed)
    assert doomed.ended() == -signal.SIGKILL

    scene.worker()
    scene.wait_drained()

    scene.check()
    assert handle.result(0)
    assert [event.token for event in scene.history.events("started", task=handle.id)] == started
    assert [event.token for event in scene.history.events("accepted", task=handle.id)] == accepted
    # A death costs an attempt: a task that kills its workers must not go on for ever.
    assert handle.task().attempt == max([*started, *accepted])
    scene.check_nothing_is_left()


@locally
def test_a_whole_batch_of_claimed_tasks_survives_the_death_of_its_worker(scene: Scene) -> None:
    # Half of them take a moment, so that their outcomes are not among the first that the store is told.
    handles = [scene.enqueue(kind, seconds) for kind in ("coroutine", "thread") for seconds in (0, 0.3) * 10]
    doomed = scene.start_worker(failpoint="worker.before-finish:2")
    assert doomed.ended() == -signal.SIGKILL

    scene.worker()
    scene.wait_drained()

    assert all(handle.result(0) for handle in handles)
    scene.check()
    scene.check_nothing_is_left()


@locally
def test_a_task_that_kills_its_process_runs_again_elsewhere(scene: Scene) -> None:
    doomed = scene.worker()
    handle = scene.enqueue("kill_own_process", 1)
    assert doomed.ended() == -signal.SIGKILL

    scene.worker()
    scene.wait_drained()

    assert [event.token for event in scene.history.events("started", task=handle.id)] == [1, 2]
    # The worker that recovers a task may run it to its end before it tells of the recovery.
    scene.wait_for(lambda: bool(scene.history.events("recovered")), "word of the recovery")
    assert [event.task for event in scene.history.events("recovered")] == [handle.id]
    scene.check()


@locally
def test_a_task_that_always_kills_its_process_fails_and_its_neighbours_end(scene: Scene) -> None:
    poison = scene.enqueue("exit_hard")
    neighbours = [scene.enqueue(kind, 0.01) for kind in ("coroutine", "thread") * 15]
    deaths: list[int] = []
    workers = [scene.worker(concurrency=4) for _ in range(2)]

    def kept_running() -> bool:
        for worker in [worker for worker in workers if not worker.alive]:
            workers.remove(worker)
            deaths.append(worker.ended())
            workers.append(scene.start_worker(concurrency=4))
        return scene.drained()

    scene.wait_for(kept_running, "the end of every task")

    with pytest.raises(TaskFailed, match=r"WorkerLost.*attempt 3, the last one"):
        poison.result(0)
    assert deaths == [7, 7, 7]
    assert poison.task().attempt == 3
    assert {neighbour.task().state for neighbour in neighbours} == {TaskState.SUCCEEDED}
    scene.check()


@mostly_long
def test_workers_that_are_killed_at_random_under_load_lose_nothing(scene: Scene) -> None:
    chance = random.Random(seed_of_this_run())
    producers = [scene.producer(count=40, batch=8), scene.producer(count=60, unique=4, first=1000)]
    workers = [scene.worker(concurrency=8, threads=4) for _ in range(3)]

    for _ in range(8):
        scene.more_run(chance.randrange(5, 40))
        victim = workers.pop(chance.randrange(len(workers)))
        victim.kill()
        workers.append(scene.start_worker(concurrency=8, threads=4))

    assert [producer.ended() for producer in producers] == [0, 0]
    scene.wait_drained()
    assert len(scene.history.events("enqueued")) >= 320
    assert scene.history.events("refused") == []
    scene.check()
    assert {task.state for task in scene.all_tasks()} == {TaskState.SUCCEEDED}
    scene.check_nothing_is_left()


@mostly_long
def test_a_producer_that_is_killed_leaves_whole_batches_and_all_that_was_acknowledged(scene: Scene) -> None:
    producer = scene.producer(count=10_000, batch=50)
    scene.wait_for(lambda: len(scene.history.events("enqueueing")) > 20, "some batches", producer)
    producer.kill()

    stored = Counter(tag for stats in [scene.queue.tasks(limit=1000)] for task in stats for tag in task.tags)
    begun = {f"batch-{event.details['batch']}" for event in producer.events("enqueueing")}
    acknowledged = {f"batch-{event.details['batch']}" for event in producer.events("enqueued")}
    # The page shows the latest thousand tasks; the oldest batch on it may be cut.
    whole = Counter(stored.values())
    assert set(whole) - {50} == set() or len(whole) <= 2
    assert set(stored) <= begun
    assert begun - acknowledged <= {f"batch-{producer.events('enqueueing')[-1].details['batch']}"}

    scene.worker(concurrency=50)
    scene.wait_drained(60)
    scene.check()
    scene.check_nothing_is_left()
