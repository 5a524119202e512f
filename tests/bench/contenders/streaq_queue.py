"""streaQ on Redis streams: coroutines, 100 at once, as many fetched ahead, results awaited by notification."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.resp import Connection

__all__ = ["Streaq"]


class Streaq(AsyncContender):
    """streaQ."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        streaq: Any = importlib.import_module("streaq")
        began = self.marks.began

        async def bench(number: int) -> int:
            began(number)
            return number

        # One to hand over, one to work, as each has connections of its own.
        self.queue, self.work = (
            streaq.Worker(redis_url=setting.url, concurrency=100, handle_signals=False) for _ in range(2)
        )
        self.task = self.queue.task(name="bench")(bench)
        self.work.task(name="bench")(bench)
        self.connection = AsyncExitStack()

    async def connect(self) -> None:
        await self.connection.enter_async_context(self.queue)

    async def aenqueue(self, number: int) -> Any:
        await self.connected()
        return await self.task.enqueue(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self._send(numbers)

    async def _send(self, numbers: Sequence[int]) -> list[str]:
        await self.connected()
        tasks = [self.task.enqueue(number) for number in numbers]
        for start in range(0, len(tasks), 1000):
            await self.queue.enqueue_many(tasks[start : start + 1000])
        return [task.id for task in tasks]

    async def group(self, numbers: Sequence[int], callback: int) -> None:
        members = await self._send(numbers)
        await self.task.enqueue(callback).start(after=members)

    async def stored(self) -> int:
        with Connection(self.setting.url) as connection:
            return connection.count("streaq:default:task:results:*")

    async def result(self, handed_over: Any) -> Any:
        return (await handed_over.result(10)).result

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        async with on_loop(self.work.run_async()):
            yield

    async def close(self) -> None:
        await self.connection.aclose()
