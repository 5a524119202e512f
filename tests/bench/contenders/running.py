"""Workers of all kinds, run while a context lasts: coroutines, blocking calls, commands."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.bench.contenders.contender import Contender
from tests.bench.contenders.tasks import MARKS, URL

__all__ = ["Spawned", "on_loop", "on_thread"]

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


@asynccontextmanager
async def on_loop(work: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """Run a worker that is a coroutine."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        if task.done():
            await task
        task.cancel()


@asynccontextmanager
async def on_thread(work: Callable[[], object]) -> AsyncIterator[None]:
    """Run a worker that is a blocking call, on a thread that is left behind."""
    threading.Thread(target=work, daemon=True).start()
    yield


class Spawned(Contender):
    """A product whose worker is a command."""

    starts_late = True

    _processes: tuple[int, ...] = ()

    @asynccontextmanager
    async def spawn(self, command: str, *arguments: str) -> AsyncIterator[None]:
        """Run a command of the product's environment."""
        settings = {MARKS: str(self.setting.folder / "marks"), URL: self.setting.url}
        with (self.setting.folder / "worker.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                BIN / command,
                *arguments,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes = (process.pid,)
        try:
            yield
        finally:
            for pid in self.pids():
                _kill(pid)
            await process.wait()

    def pids(self) -> Sequence[int]:
        found = list(self._processes)
        for pid in found:
            found += _children(pid)
        return found

    def seconds_of_cpu(self) -> float:
        return sum(_seconds(pid) for pid in self.pids())


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        return
