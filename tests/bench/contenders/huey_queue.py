"""Huey: plain functions on threads, pickled messages and results, workers and waiting callers that poll.

Its consumer polls every millisecond at first and ten times a second when idle (its defaults are 0.1 s and 10 s), its
results are polled for every millisecond (default: up to 1 s). SQLite is in WAL mode with fsync off: less durable than
the others here, and the fastest that it has. Files it never flushes
to the disk, and every step on them takes one lock. One thread, as more of them are slower. With Redis nothing polls:
the consumer blocks there, and so does a caller that waits for a result (``notify_result``).
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contenders.contender import Contender, Setting

__all__ = ["Huey"]


class Huey(Contender):
    """Huey on its SQLite, file or memory storage."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        huey: Any = importlib.import_module("huey")
        if setting.store == "memory":
            self.huey = huey.MemoryHuey("bench")
        elif setting.store == "redis":
            self.huey = huey.RedisHuey("bench", url=setting.url, notify_result=True)
        elif setting.store == "file":
            self.huey = huey.FileHuey("bench", path=str(setting.folder / "huey"))
        else:
            self.huey = huey.SqliteHuey("bench", filename=str(setting.file), fsync=False)
        began = self.marks.began

        def bench(number: int) -> int:
            began(number)
            return number

        def hold(number: int) -> int:
            began(number)
            time.sleep(3600)  # until it is killed
            return number

        self.task = self.huey.task(name="bench")(hold if setting.kind == "hold" else bench)

    def enqueue(self, number: int) -> Any:
        return self.task(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        self.task.map(numbers)

    async def stored(self) -> int:
        return int(self.huey.storage.result_store_size())

    async def result(self, handed_over: Any) -> Any:
        return handed_over.get(blocking=True, max_delay=0.001)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        consumer = self.huey.create_consumer(workers=1, initial_delay=0.001, max_delay=0.1, periodic=False)
        consumer.start()
        try:
            yield
        finally:
            await asyncio.to_thread(consumer.stop, True)
