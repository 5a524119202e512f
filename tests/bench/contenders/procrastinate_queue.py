"""Procrastinate on PostgreSQL: coroutines, 100 at once, on up to 20 connections, woken by LISTEN. It has no results."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.contenders.sql import count, is_there

__all__ = ["Procrastinate"]


class Procrastinate(AsyncContender):
    """Procrastinate."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        procrastinate: Any = importlib.import_module("procrastinate")
        self.app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(conninfo=setting.url, min_size=4, max_size=20)
        )
        began = self.marks.began

        async def bench(number: int) -> int:
            began(number)
            return number

        self.task = self.app.task(name="bench")(bench)

    async def connect(self) -> None:
        await self.app.open_async()
        if not is_there(self.setting.url, "procrastinate_jobs"):
            await self.app.schema_manager.apply_schema_async()

    async def aenqueue(self, number: int) -> Any:
        await self.connected()
        return await self.task.defer_async(number=number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self.connected()
        for start in range(0, len(numbers), 1000):
            await self.task.batch_defer_async(*[{"number": number} for number in numbers[start : start + 1000]])

    async def stored(self) -> int:
        return count(self.setting.url, "procrastinate_jobs WHERE status = 'succeeded'")

    def worker(self) -> AbstractAsyncContextManager[object]:
        return on_loop(self._work())

    async def _work(self) -> None:
        await self.connected()
        await self.app.run_worker_async(concurrency=100, install_signal_handlers=False)
