"""PgQueuer on PostgreSQL: coroutines, fetched in hundreds, on a pool of asyncpg, woken by LISTEN. It has no results."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.contenders.sql import count, is_there

__all__ = ["PgQueuer"]


class PgQueuer(AsyncContender):
    """PgQueuer."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.asyncpg: Any = importlib.import_module("asyncpg")
        self.pgqueuer: Any = importlib.import_module("pgqueuer")
        self.db: Any = importlib.import_module("pgqueuer.db")
        self.queries_of: Any = importlib.import_module("pgqueuer.queries").Queries
        self.queries: Any = None
        self.sent = 0

    async def connect(self) -> None:
        pool = await self.asyncpg.create_pool(self.setting.url, min_size=4, max_size=20)
        self.queries = self.queries_of(self.db.AsyncpgPoolDriver(pool))
        if not is_there(self.setting.url, "pgqueuer"):
            await self.queries.install()

    async def aenqueue(self, number: int) -> Any:
        await self.connected()
        self.sent += 1
        return await self.queries.enqueue("bench", str(number).encode())

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self.connected()
        self.sent += len(numbers)
        for start in range(0, len(numbers), 1000):
            payloads = [str(number).encode() for number in numbers[start : start + 1000]]
            await self.queries.enqueue(["bench"] * len(payloads), payloads, [0] * len(payloads))

    async def stored(self) -> int:
        # What has ended leaves the table.
        return self.sent - count(self.setting.url, "pgqueuer")

    def worker(self) -> AbstractAsyncContextManager[object]:
        return on_loop(self._work())

    async def _work(self) -> None:
        await self.connected()
        queue = self.pgqueuer.PgQueuer(self.queries.driver)
        began = self.marks.began

        async def bench(job: Any) -> None:
            began(int(job.payload))

        queue.entrypoint("bench")(bench)
        await queue.qm.run(batch_size=100)
