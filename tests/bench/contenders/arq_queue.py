"""arq on Redis: coroutines, 100 at once. Workers poll every 5 ms, waiting callers every 1 ms (0.5 s by default)."""

from __future__ import annotations

import importlib
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.resp import Connection

__all__ = ["Arq"]


class Arq(AsyncContender):
    """arq."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.arq: Any = importlib.import_module("arq")
        self.settings = self.arq.connections.RedisSettings.from_dsn(setting.url)
        self.pool: Any = None

    async def connect(self) -> None:
        self.pool = await self.arq.create_pool(self.settings)

    async def aenqueue(self, number: int) -> Any:
        await self.connected()
        return await self.pool.enqueue_job("bench", number)

    async def stored(self) -> int:
        with Connection(self.setting.url) as connection:
            return connection.count("arq:result:*")

    async def result(self, handed_over: Any) -> Any:
        return await handed_over.result(poll_delay=0.001)

    def worker(self) -> AbstractAsyncContextManager[object]:
        began = self.marks.began

        async def bench(context: Any, number: int) -> int:
            began(number)
            return number

        worker = self.arq.Worker(
            [self.arq.func(bench, name="bench")],
            redis_settings=self.settings,
            max_jobs=100,
            poll_delay=0.005,
            handle_signals=False,
            log_results=False,
        )
        return on_loop(worker.main())
