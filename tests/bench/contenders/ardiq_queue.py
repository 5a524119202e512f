"""ArdiQ on Redis streams: coroutines, 100 at once."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.resp import Connection

__all__ = ["Ardiq"]


class Ardiq(AsyncContender):
    """ArdiQ."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        ardiq: Any = importlib.import_module("ardiq")
        self.app = ardiq.Ardiq(redis_url=setting.url, queue_name="bench", concurrency=100)
        began = self.marks.began

        async def on_loop(number: int) -> int:
            began(number)
            return number

        def on_thread(number: int) -> int:
            began(number)
            return number

        self.task = self.app.task(name="bench")(on_thread if setting.kind == "plain" else on_loop)

    async def aenqueue(self, number: int) -> Any:
        return await self.task.enqueue(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 1000):
            await self.app.enqueue_many([self.task.prepare(number) for number in numbers[start : start + 1000]])

    async def stored(self) -> int:
        with Connection(self.setting.url) as connection:
            return connection.count("ardiq:bench:task:results:*")

    async def result(self, handed_over: Any) -> Any:
        return (await handed_over.result(timeout=10)).value

    def worker(self) -> AbstractAsyncContextManager[object]:
        return on_loop(self.app.run())
