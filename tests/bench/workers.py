"""Workers of a measurement: in processes of their own where the store can be shared, else in the measuring process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.contenders.contender import Contender
from tests.bench.job import Job
from tests.bench.marks import Marks

__all__ = ["Crew", "WorkerProcess", "serve"]

READY = "ready\n"
ROOT = Path(__file__).parents[2]


async def serve(job: Job) -> None:
    """Be a worker until the standard input ends; wait for a line on it first, unless told otherwise."""
    contender = job.make(Marks(job.marks_file))
    if not job.start_at_once:
        print(READY, end="", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    async with contender.worker():
        if job.enqueue_first:
            await contender.aenqueue(0)
        await asyncio.to_thread(sys.stdin.read)
        if not contender.stops_by_itself:
            os._exit(0)
    await contender.close()


class WorkerProcess:
    """A worker in a process of its own, in the environment of this one."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.child", "work", job.text],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        """Return when it has imported all that it needs."""
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            raise RuntimeError(f"a worker process ended early, with code {self._process.wait()}")

    def begin(self) -> None:
        """Let it connect and work."""
        assert self._process.stdin is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """Refuse to go on without it."""
        if self._process.poll() is not None:
            raise RuntimeError(f"a worker process died with code {self._process.returncode}")

    def stop(self) -> None:
        """Let it end as it should."""
        try:
            self._process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.communicate()


class Crew:
    """The workers of one measurement. They work while the context lasts.

    :param job: the measurement; its kind of tasks is theirs.
    :param contender: runs the worker itself where the store is in this process.
    :param processes: how many there are where it is not.
    """

    def __init__(self, job: Job, contender: Contender, processes: int = 1) -> None:
        self._contender = contender
        self._inside: AbstractAsyncContextManager[object] | None = None
        self.processes: list[WorkerProcess] = []
        if job.store == "memory":
            self._inside = contender.worker()
        else:
            self.processes = [WorkerProcess(replace(job)) for _ in range(processes)]
            for process in self.processes:
                process.wait_until_ready()

    def check(self) -> None:
        """Refuse to wait for workers that died."""
        for process in self.processes:
            process.check()

    async def __aenter__(self) -> Self:
        # First here: two that make the same tables at the same time would be in each other's way.
        await self._contender.connected()
        if self._inside is not None:
            await self._inside.__aenter__()
        for process in self.processes:
            process.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._inside is not None:
            await self._inside.__aexit__(kind, error, traceback)
        for process in self.processes:
            process.stop()
