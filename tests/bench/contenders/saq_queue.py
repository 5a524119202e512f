"""SAQ on Redis and on PostgreSQL: coroutines, 100 at once, results awaited by notification."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.resp import Connection

__all__ = ["Saq"]


class Saq(AsyncContender):
    """SAQ."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.saq: Any = importlib.import_module("saq")
        self.queue: Any = None

    async def connect(self) -> None:
        # By default twenty at once talk to Redis: too few for a hundred slots.
        options = {"max_concurrent_ops": 100} if self.setting.store == "redis" else {}
        self.queue = self.saq.Queue.from_url(self.setting.url, **options)
        await self.queue.connect()

    async def aenqueue(self, number: int) -> Any:
        await self.connected()
        return await self.queue.enqueue("bench", number=number)

    async def stored(self) -> int:
        if self.setting.store == "redis":
            # Ended tasks are neither in the list of all that is to be done nor in that of what runs.
            with Connection(self.setting.url) as connection:
                kept = connection.count("saq:job:default:*")
                return kept - int(connection.ask("ZCARD", "saq:default:incomplete"))
        async with self.queue.pool.connection() as connection:
            rows = await connection.execute("SELECT count(*) FROM saq_jobs WHERE status = 'complete'")
            return int((await rows.fetchone())[0])

    async def result(self, handed_over: Any) -> Any:
        await handed_over.refresh(until_complete=0)
        return handed_over.result

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        began = self.marks.began

        async def bench(context: Any, *, number: int) -> int:
            began(number)
            return number

        await self.connected()
        worker = self.saq.Worker(self.queue, [("bench", bench)], concurrency=100)
        worker.SIGNALS = []
        async with on_loop(worker.start()):
            yield
