"""Oban for Python on PostgreSQL: coroutines, 100 at once, results recorded with their jobs; nobody can wait for one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.contenders.sql import count, is_there

__all__ = ["Oban"]


class Oban(AsyncContender):
    """Oban."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.oban: Any = importlib.import_module("oban")
        self.client: Any = None
        record = self.oban.Record
        began = self.marks.began

        class Bench:
            async def process(self, job: Any) -> Any:
                number = job.args["number"]
                began(number)
                return record(number)

        self.task = self.oban.worker(queue="default")(Bench)

    async def _pool(self) -> Any:
        pools: Any = importlib.import_module("psycopg_pool")
        pool = pools.AsyncConnectionPool(self.setting.url, min_size=4, max_size=20, open=False)
        await pool.open()
        if not is_there(self.setting.url, "oban_jobs"):
            await importlib.import_module("oban.schema").install(pool)
        return pool

    async def connect(self) -> None:
        self.client = self.oban.Oban(pool=await self._pool())

    async def aenqueue(self, number: int) -> Any:
        await self.connected()
        return await self.client.enqueue(self.task.new({"number": number}))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self.connected()
        for start in range(0, len(numbers), 1000):
            await self.client.enqueue_many([self.task.new({"number": n}) for n in numbers[start : start + 1000]])

    async def stored(self) -> int:
        return count(self.setting.url, "oban_jobs WHERE state = 'completed'")

    def worker(self) -> AbstractAsyncContextManager[object]:
        return on_loop(self._work())

    async def _work(self) -> None:
        await self.connected()
        worker = self.oban.Oban(pool=await self._pool(), name="worker", queues={"default": 100})
        await worker.start()
