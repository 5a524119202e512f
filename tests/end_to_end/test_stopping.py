"""A worker process is told to stop: what runs may end, what has not begun goes back, and no outcome is lost."""

from __future__ import annotations

import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniq import TaskState
from tests.faults.scene import Actor, Scene
from tests.faults.stages import SqliteStage


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path, SqliteStage(tmp_path)) as scene:
        yield scene


def told_to_stop(worker: Actor) -> bool:
    return "finishing" in worker.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_tasks_that_run_end_and_those_that_have_not_begun_go_back(scene: Scene, number: signal.Signals) -> None:
    # Tasks of two kinds, so that how many it can run is a guess, and some that it claims must wait for the thread.
    worker = scene.worker(concurrency=10, threads=1, grace=60)
    coroutine = scene.enqueue("hold_coroutine", str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(coroutine), "the task's start", worker)
    handles = [scene.enqueue("hold_thread", str(scene.flag())) for _ in range(6)]
    scene.wait_for(lambda: any(map(scene.is_running, handles)), "the task's start", worker)

    worker.send(number)
    scene.wait_for(lambda: told_to_stop(worker), "word of the signal", worker)
    scene.wait_for(
        lambda: Counter(handle.task().state for handle in handles)[TaskState.READY] == 5, "those not begun to go back"
    )
    assert worker.alive
    assert [handle.task().attempt for handle in handles] == [1, 0, 0, 0, 0, 0]
    scene.flag().touch()

    assert worker.ended() == 0
    assert worker.events("worker stopped")
    assert [handle.task().state for handle in (coroutine, *handles)] == ["succeeded"] * 2 + ["ready"] * 5
    scene.worker()
    scene.wait_drained()
    assert {handle.task().attempt for handle in handles} == {1}
    assert all(handle.result(0) for handle in handles)
    scene.check()
    scene.check_nothing_is_left()


@pytest.mark.parametrize("kind", ["hold_coroutine", "hold_thread", "stubborn"])
def test_what_does_not_end_within_the_grace_period_goes_back_and_the_process_ends(scene: Scene, kind: str) -> None:
    worker = scene.worker(grace=0.3)
    handle = scene.enqueue(kind, str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(handle), "the task's start", worker)

    worker.send(signal.SIGTERM)

    assert worker.ended() == 0
    assert "did not end in time" in worker.text()
    record = handle.task()
    assert (record.state, record.attempt) == (TaskState.READY, 0)
    scene.flag().touch()
    scene.worker()
    scene.wait_drained()
    assert (handle.task().attempt, handle.task().delivery) == (1, 2)
    scene.check()


@pytest.mark.parametrize("kind", ["hold_coroutine", "hold_thread"])
def test_a_second_signal_stops_at_once(scene: Scene, kind: str) -> None:
    worker = scene.worker(grace=3600)
    handle = scene.enqueue(kind, str(scene.flag()))
    scene.wait_for(lambda: scene.is_running(handle), "the task's start", worker)

    worker.send(signal.SIGTERM)
    scene.wait_for(lambda: told_to_stop(worker), "word of the signal", worker)
    worker.send(signal.SIGTERM)

    assert worker.ended() == 0
    record = handle.task()
    assert (record.state, record.attempt) == (TaskState.READY, 0)
    assert scene.queue.workers() == []


def test_an_idle_worker_ends_at_once_and_says_little(scene: Scene) -> None:
    worker = scene.worker(grace=3600)

    worker.send(signal.SIGTERM)

    assert worker.ended() == 0
    assert scene.queue.workers() == []
    assert "Traceback" not in worker.text()
    assert "WARNING" not in worker.text()


def catches(worker: Actor, number: signal.Signals) -> bool:
    """Say whether the process has a handler for a signal, which the system knows before the process says a word."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_worker_that_is_told_to_stop_while_it_starts_ends_without_having_begun(scene: Scene, tmp_path: Path) -> None:
    handle = scene.enqueue("coroutine")
    scene.queue.close()
    connection = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    # So that it has to wait for the store: nobody else can even read it.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN IMMEDIATE")
    worker = scene.start_worker()
    scene.wait_for(lambda: catches(worker, signal.SIGTERM), "its handler", worker)

    worker.send(signal.SIGTERM)
    scene.wait_for(lambda: told_to_stop(worker), "word of the signal", worker)
    connection.execute("ROLLBACK")
    connection.close()

    assert worker.ended() == 0
    assert handle.task().delivery == 0


def test_workers_that_are_stopped_around_completions_lose_no_outcome_and_repeat_no_work(scene: Scene) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    chance = random.Random(seed)
    producer = scene.producer(count=40, batch=10, seconds=0.004)
    workers = [scene.worker(concurrency=6, threads=3, grace=30) for _ in range(2)]

    for _ in range(5):
        ran = len(scene.history.events("ran")) + chance.randrange(10, 50)
        scene.wait_for(lambda ran=ran: len(scene.history.events("ran")) >= ran or scene.drained(), "some load")
        stopped = workers.pop(0)
        stopped.send(signal.SIGTERM)
        assert stopped.ended() == 0
        workers.append(scene.worker(concurrency=6, threads=3, grace=30))

    assert producer.ended() == 0
    scene.wait_drained()
    assert set(Counter(event.task for event in scene.history.events("ran")).values()) == {1}
    assert {task.attempt for task in scene.queue.tasks(limit=1000)} == {1}
    assert scene.history.events("recovered", "rejected") == []
    scene.check()
    scene.check_nothing_is_left()
