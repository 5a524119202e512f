"""OmniQ as its users run it: default options, all guarantees on."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from omniq import Limit, TaskFunction, TaskHandle, TaskQueue, TaskState, Worker
from tests.bench.contenders.contender import Contender, Setting

__all__ = ["OmniQ", "url"]


class Located(Protocol):
    """What tells where a measurement's store is."""

    @property
    def store(self) -> str: ...
    @property
    def folder(self) -> Path | str: ...
    @property
    def url(self) -> str: ...
    @property
    def name(self) -> str: ...


def url(where: Located) -> str:
    """Return the URL of a measurement's store."""
    if where.url:
        return f"{where.url}?namespace={where.name}"
    urls = {
        "memory": "memory://",
        "sqlite": f"sqlite:///{where.folder}/bench.db",
        "file": f"file:///{where.folder}/bench",
    }
    return urls[where.store]


class OmniQ(Contender):
    """OmniQ on one of its stores."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        # What a worker imports when it begins, as the other products are imported here: a worker that is ready has it.
        importlib.import_module("omniq._worker.worker")
        self.queue = TaskQueue(url(setting))
        self.task = self._task()

    def _task(self) -> TaskFunction[[int], Any]:
        marks = self.marks

        async def on_loop(number: int) -> int:
            marks.began(number)
            return number

        def on_thread(number: int) -> int:
            marks.began(number)
            return number

        async def hold(number: int) -> int:
            marks.began(number)
            await asyncio.sleep(3600)  # until it is cancelled
            return number

        functions: dict[str, Any] = {"async": on_loop, "plain": on_thread, "hold": hold}
        task: TaskFunction[[int], Any] = self.queue.task(name="bench")(functions[self.setting.kind])
        return task

    def enqueue(self, number: int) -> TaskHandle[Any]:
        return self.task.enqueue(number)

    async def aenqueue(self, number: int) -> TaskHandle[Any]:
        return await self.task.aenqueue(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self.queue.aenqueue_many([self.task.call(number) for number in numbers])

    async def group(self, numbers: Sequence[int], callback: int) -> None:
        members = [self.task.call(number) for number in numbers]
        await self.queue.aenqueue_flow(self.task.call(callback).after(*members))

    async def enqueue_keyed(self, numbers: Sequence[int], keys: int) -> None:
        await self.queue.aput_limit(Limit(queue="default", per_key=Limit(concurrency=2)))
        await self.queue.aenqueue_many([self.task.using(key=f"k{n % keys}").call(n) for n in numbers])

    async def stored(self) -> int:
        return sum(stats.counts[TaskState.SUCCEEDED] for stats in await self.queue.astats())

    async def result(self, handed_over: TaskHandle[Any]) -> Any:
        return await handed_over

    def worker(self) -> AbstractAsyncContextManager[object]:
        worker = self.queue.worker(concurrency=100)
        return worker if self.setting.store == "memory" else _run(worker)

    async def close(self) -> None:
        await self.queue.aclose()


@asynccontextmanager
async def _run(worker: Worker) -> AsyncIterator[None]:
    """Run a worker as the command ``omniq worker`` does."""
    running = asyncio.create_task(worker.run(own_process=True))
    try:
        yield
    finally:
        worker.stop()
        await running
