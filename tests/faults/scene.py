"""The stage of a fault test: a store on disk, a history, and processes that can be stopped and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from omniq import StorageUnavailable, Task, TaskFunction, TaskHandle, TaskQueue, TaskState
from omniq.testing import wait_until
from tests.faults import apps
from tests.faults.history import Event, History, all_tasks, check, check_unique
from tests.faults.stages import Stage
from tests.fork_server import Popen

__all__ = ["ROOT", "Actor", "Scene"]

ROOT = Path(__file__).parents[2]
LEASE: Mapping[str, Any] = {"lease": 2.0, "recover_every": 0.1}
"""Options of workers whose death is noticed soon, and whose leases a stall of a busy machine does not run out."""


class Actor:
    """A process of the application.

    :param scene: where it acts.
    :param arguments: of the module ``tests.faults.apps``.
    :param environment: besides that of the scene.
    """

    def __init__(self, scene: Scene, arguments: list[str], environment: Mapping[str, str]) -> None:
        self._scene = scene
        scene.processes += 1
        self.log = scene.folder / f"{scene.processes}-{arguments[0]}.log"
        with self.log.open("wb") as log:
            self.process = Popen(
                [sys.executable, "-m", "tests.faults.apps", *arguments],
                cwd=ROOT,
                env={**os.environ, **scene.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive:
            self.process.send_signal(number)

    def suspend(self) -> None:
        """Stop the process in the middle of whatever it does, and return once it stands still.

        But not where it holds a lock that keeps everybody else from writing: that is another fault.
        """
        wait_until(self._stopped_without_a_lock)

    def _stopped_without_a_lock(self) -> bool:
        self.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        if self._scene.stage.can_be_written():
            return True
        self.resume()
        return False

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def stop(self) -> None:
        """Stop the process in order, and return once it has ended."""
        self.send(signal.SIGTERM)
        assert self.ended() == 0

    def kill(self) -> None:
        """Kill the process, and return once it has ended."""
        self.send(signal.SIGKILL)
        self.process.wait(60)

    def ended(self, timeout: float = 60) -> int:
        """Return the exit code, once it has ended by itself."""
        return self.process.wait(timeout)

    def events(self, *what: str) -> list[Event]:
        return self._scene.history.events(*what, pid=self.pid)

    def text(self) -> str:
        """Return what it has logged so far."""
        return self.log.read_text()


class Scene:
    """The stage of one test, and who acts on it. Its own queue goes by the way that nothing disturbs.

    :param folder: empty, for everything that is kept.
    :param stage: where the store is.
    """

    def __init__(self, folder: Path, stage: Stage) -> None:
        self.folder = folder
        self.stage = stage
        self.processes = 0
        histories = folder / "history"
        histories.mkdir()
        self.history = History(histories)
        self.environment = {"OMNIQ_URL": stage.disturbed_url, "HISTORY": str(histories)}
        self.queue = TaskQueue(stage.url)
        self._actors: list[Actor] = []
        self._producers: list[Actor] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for actor in self._actors:
            actor.kill()
        self.queue.close()

    # Processes

    def worker(self, *, failpoint: str | None = None, undisturbed: bool = False, **options: Any) -> Actor:
        """Start a worker, and return once it works.

        :param failpoint: where it shall kill itself.
        :param undisturbed: whether it goes by the way to the store that nothing disturbs.
        :param options: of the worker, besides short leases.
        """
        actor = self.start_worker(failpoint=failpoint, undisturbed=undisturbed, **options)
        self.wait_for(lambda: actor.events("worker started") or not actor.alive, "the worker's start", actor)
        return actor

    def start_worker(self, *, failpoint: str | None = None, undisturbed: bool = False, **options: Any) -> Actor:
        """Start a worker, and return at once."""
        environment = {} if failpoint is None else {"OMNIQ_FAILPOINT": failpoint}
        if undisturbed:
            environment["OMNIQ_URL"] = self.stage.url
        return self._act(["worker", json.dumps({**LEASE, **options})], environment)

    def producer(self, **options: Any) -> Actor:
        """Start a producer."""
        return self._act(["produce", json.dumps(options)], {})

    def builder(self, failpoint: str, **options: Any) -> Actor:
        """Start a process that builds a flow, see :func:`tests.faults.apps.build`, and kills itself on the way."""
        return self._act(["build", json.dumps(options)], {"OMNIQ_FAILPOINT": failpoint})

    def load(self) -> None:
        """Start workers, and producers that go on until the flag is there."""
        for _ in range(2):
            self.worker(concurrency=8, threads=4)
        steady = {"until": str(self.flag()), "pause": 0.02, "count": 100_000}
        self._producers = [self.producer(batch=4, **steady), self.producer(unique=4, first=200_000, **steady)]
        for producer in self._producers:
            self.wait_for(lambda producer=producer: producer.events("enqueued"), "the first tasks", producer)

    def end_of_load(self) -> None:
        """Let the producers end, and return when all that they enqueued has ended."""
        self.flag().touch()
        assert [producer.ended(60) for producer in self._producers] == [0, 0]
        self.wait_drained(60)

    def _act(self, arguments: list[str], environment: Mapping[str, str]) -> Actor:
        actor = Actor(self, arguments, environment)
        self._actors.append(actor)
        return actor

    # Tasks

    def function(self, name: str) -> TaskFunction[..., Any]:
        """Return a task function of the application, on the queue of this process."""
        of_workers = apps.queue.functions[f"{apps.__name__}.{name}"]
        if of_workers.name not in self.queue.functions:
            options = of_workers.options
            self.queue.task(name=of_workers.name, max_retries=options.max_retries, retry=options.retry)(of_workers)
        return self.queue.functions[of_workers.name]

    def enqueue_keyed(self, name: str, keys: Sequence[str], *args: Any) -> list[TaskHandle[Any]]:
        """Enqueue a task of the application for each of some keys, all at once, and note them."""
        function = self.function(name)
        handles: list[TaskHandle[Any]] = list(
            self.queue.enqueue_many([function.using(key=key).call(*args) for key in keys])
        )
        for handle in handles:
            self.history.note("enqueued", handle.id)
        return handles

    def enqueue(self, name: str, *args: Any, **options: Any) -> TaskHandle[Any]:
        """Enqueue a task of the application as its producers do, and note it."""
        handle: TaskHandle[Any] = self.function(name).using(**options).enqueue(*args)
        self.history.note("enqueued", handle.id)
        return handle

    def all_tasks(self) -> list[Task]:
        """Return every task in the store."""
        return list(all_tasks(self.queue).values())

    def more_run(self, count: int) -> None:
        """Return when so many more tasks have run, or all have ended."""
        enough = len(self.history.events("ran")) + count
        self.wait_for(lambda: len(self.history.events("ran")) >= enough or self.drained(), "some load", timeout=60)

    def is_running(self, handle: TaskHandle[Any]) -> bool:
        """Say whether some worker has begun to run a task."""
        return bool(self.history.events("started", task=handle.id)) and handle.task().state is TaskState.RUNNING

    def flag(self) -> Path:
        """Return the name of a file that is not there yet, and that tasks can wait for."""
        return self.folder / "go"

    # Waiting and judging

    def wait_for(self, predicate: Any, what: str, *actors: Actor, timeout: float = 60) -> Any:
        """Do ``wait_until``, and show what the processes logged if it was in vain."""
        try:
            return wait_until(predicate, timeout=timeout, what=what)
        except AssertionError as error:
            logs = "\n\n".join(f"{actor.log.name}:\n{actor.text()[-5000:]}" for actor in actors or self._actors)
            raise AssertionError(f"{error}\n\n{logs}") from None

    def drained(self) -> bool:
        """Say whether every task has ended."""
        try:
            found = self.queue.stats()
        except StorageUnavailable:
            return False
        return not any(count for stats in found for state, count in stats.counts.items() if not state.is_final)

    def wait_drained(self, timeout: float = 60) -> None:
        self.wait_for(self.drained, "the end of every task", timeout=timeout)

    def stop(self) -> None:
        """Stop the workers in order, so that each has noted all that it did."""
        for actor in self._actors:
            actor.resume()
            actor.send(signal.SIGTERM)
        for actor in self._actors:
            actor.ended()

    def check(self, *, answers_were_lost: bool = False) -> None:
        """Stop the workers, and check what must hold of every run, once all has drained."""
        self.stop()
        check(self.history, self.queue, answers_were_lost=answers_were_lost)
        check_unique(self.all_tasks())

    def check_nothing_is_left(self) -> None:
        """Stop the workers, remove every task, and check that the store is as empty as a new one."""
        self.stop()
        for stats in self.queue.stats():
            self.queue.purge(stats.queue)
        wait_until(lambda: not self.queue.workers(), what="the leases of dead workers to run out")
        assert self.queue.stats() == []
        try:
            wait_until(lambda: not self._leftovers(), timeout=60)
        except AssertionError:
            raise AssertionError(f"I8: what is left: {self._leftovers()}") from None
        self.queue.close()

    def _leftovers(self) -> dict[str, int]:
        # What killed processes left undone is done by others, after a while.
        self.queue.run(self._prune())
        return self.stage.leftovers()

    async def _prune(self) -> None:
        # What workers do now and then; it also removes what killed ones left.
        await (await self.queue.connections.current()).storage.prune(1000)
