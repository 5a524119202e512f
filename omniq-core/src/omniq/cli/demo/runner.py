"""The demo's plot: start workers, enqueue, kill one, wait for the end, check every result."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path

from omniq._tasks.functions import TaskCall
from omniq._tasks.handle import TaskHandle
from omniq.cli.app import require_shared
from omniq.cli.demo.display import Display
from omniq.cli.demo.measuring import Measures, measure, standard_library
from omniq.cli.demo.report import Report, conclude
from omniq.cli.demo.tasks import EVENTS_FILE, measure_on_loop, measure_on_thread, queue
from omniq.cli.demo.team import Team
from omniq.cli.demo.watching import Events, Snapshot, held_by, look, signed_on
from omniq.cli.failures import OperationFailed
from omniq.cli.terminal import Screen
from omniq.storage import Storage
from omniq.task import TaskState

__all__ = ["Demo"]

KILL_AT = 0.3
"""The share of tasks that have ended when a worker is killed."""
STUMBLE_EVERY = 40
"""Every so many tasks one fails in its first attempt."""
START_WITHIN = 30.0
STALL = 60.0
"""Seconds without any task ending after which the demo gives up."""


class Demo:
    """One run.

    :param folder: for logs and the like.
    :param workers: how many worker processes.
    :param limit: how many modules; None: all.
    :param keep: whether the store is to be left as it is.
    """

    def __init__(self, folder: Path, *, workers: int, limit: int | None, keep: bool) -> None:
        self._folder = folder
        self._workers = workers
        self._keep = keep
        self._files = standard_library(limit)
        self._screen = Screen()
        self._display = Display(self._screen, len(self._files))
        self._events = Events(folder / "events.jsonl")
        self._caught: set[str] = set()

    def run(self) -> int:
        """Run it.

        :return: the exit code.
        :raises OperationFailed: if it cannot be brought to its end.
        """
        require_shared(queue)
        with self._screen.redrawing():
            return asyncio.run(self._run())

    async def _run(self) -> int:
        async with queue:
            storage = (await queue.connections.current()).storage
            self._display.title(queue.url, self._workers)
            team = Team(
                self._folder, {EVENTS_FILE: str(self._folder / "events.jsonl"), "OMNIQ_URL": os.environ["OMNIQ_URL"]}
            )
            try:
                handles = await self._work(storage, team)
            except OperationFailed:
                self._show_logs(team)
                raise
            finally:
                team.stop()
            report = await self._report(handles)
            if not self._keep:
                await storage.purge("demo")
        began = time.perf_counter()
        expected = self._measure_here()
        code = conclude(report, expected, time.perf_counter() - began, self._screen)
        self._say_where()
        return code

    # Acts

    async def _work(self, storage: Storage, team: Team) -> list[TaskHandle[Measures]]:
        for _ in range(self._workers):
            self._start(team)
        await self._all_signed_on(storage, team)
        self._display.begin()
        handles = await queue.aenqueue_many(self._calls())
        self._display.event(f"{len(handles):,} tasks enqueued")
        await self._until_done(storage, team)
        return handles

    def _start(self, team: Team) -> None:
        member = team.start()
        self._display.event(f"worker {member.number} started (pid {member.pid})")

    async def _all_signed_on(self, storage: Storage, team: Team) -> None:
        deadline = time.monotonic() + START_WITHIN
        while not await signed_on(storage, team.alive):
            self._check(team)
            if time.monotonic() > deadline:
                raise OperationFailed(f"the workers have not started within {START_WITHIN:g} s")
            self._display.prepare(team.members)
            await asyncio.sleep(0.05)

    def _calls(self) -> list[TaskCall[Measures]]:
        functions = (measure_on_thread, measure_on_loop)
        return [
            functions[index % 2].call(file, stumble=index % STUMBLE_EVERY == 3)
            for index, file in enumerate(self._files)
        ]

    async def _until_done(self, storage: Storage, team: Team) -> None:
        ended, moved_at = 0, time.monotonic()
        told = (0, 0)
        while True:
            snapshot = await look(queue, storage, team.members, self._events)
            told = self._tell(snapshot, told)
            if snapshot.ended >= len(self._files):
                self._display.last(snapshot, team.members)
                if not self._caught:
                    self._display.event("all was done before a worker could be killed; raise --limit to see it")
                return
            self._display.show(snapshot, team.members)
            self._check(team)
            if snapshot.ended > ended:
                ended, moved_at = snapshot.ended, time.monotonic()
            elif time.monotonic() - moved_at > STALL:
                raise OperationFailed(f"no task has ended for {STALL:g} s")
            if not self._caught:
                await self._kill_in_the_middle(snapshot, storage, team)
            await asyncio.sleep(0.1 if self._caught else 0.02)

    async def _kill_in_the_middle(self, snapshot: Snapshot, storage: Storage, team: Team) -> None:
        victim = team.alive[-1]
        if snapshot.ended < KILL_AT * len(self._files) or not snapshot.holding.get(victim.pid):
            return
        # Frozen first: between a look and the kill it could end all that it holds.
        with team.frozen(victim):
            if await held_by(storage, victim):
                team.kill(victim)
        if not victim.killed:
            return
        # Read now that it is dead: exactly these were begun and not ended.
        caught = await held_by(storage, victim)
        victim.caught = len(caught)
        self._caught |= caught
        self._display.event(f"worker {victim.number} killed (SIGKILL) while it held {len(caught)} tasks", "red")
        self._start(team)

    def _check(self, team: Team) -> None:
        for member in team.alive:
            if (how := member.fell) is not None:
                raise OperationFailed(f"worker {member.number} (pid {member.pid}) {how}")

    def _tell(self, snapshot: Snapshot, told: tuple[int, int]) -> tuple[int, int]:
        retried, recovered = told
        if snapshot.retried and not retried:
            self._display.event(f"a first attempt failed and is retried ({self._events.last_error})", "yellow")
        if snapshot.recovered > recovered:
            new = snapshot.recovered - recovered
            self._display.event(f"{new} tasks of the killed worker were recovered and run again", "cyan")
        return snapshot.retried, snapshot.recovered

    # The end

    async def _report(self, handles: Sequence[TaskHandle[Measures]]) -> Report:
        tasks = [await handle.atask() for handle in handles]
        results: dict[Path, Measures | None] = {
            file: task.result if task.state is TaskState.SUCCEEDED else None
            for file, task in zip(self._files, tasks, strict=True)
        }
        self._events.read()
        return Report(tasks=tasks, results=results, caught=frozenset(self._caught), recovered=self._events.recovered)

    def _measure_here(self) -> dict[Path, Measures]:
        expected: dict[Path, Measures] = {}
        for done, file in enumerate(self._files):
            if done % 20 == 0:
                self._display.check(done)
            expected[file] = measure(file.read_bytes())
        self._display.erase()
        return expected

    def _say_where(self) -> None:
        if self._keep:
            self._screen.say()
            self._screen.say(f"  logs: {self._folder}    store: omniq stats '{os.environ['OMNIQ_URL']}'")

    def _show_logs(self, team: Team) -> None:
        for member in team.members:
            self._screen.say(f"the end of the log of worker {member.number}:")
            for line in member.log.read_text(errors="replace").splitlines()[-20:]:
                self._screen.say(f"  {line}")
