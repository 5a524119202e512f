"""taskiq on its InMemoryBroker: a task runs as it is sent, on the loop of its sender."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contenders.contender import Contender, Setting

__all__ = ["Taskiq"]


class Taskiq(Contender):
    """taskiq in one process."""

    runs_as_sent = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        taskiq: Any = importlib.import_module("taskiq")
        self.broker = taskiq.InMemoryBroker(
            sync_tasks_pool_size=20, max_async_tasks=100, max_stored_results=-1, cast_types=False
        )
        began = self.marks.began

        async def on_loop(number: int) -> int:
            began(number)
            return number

        def on_thread(number: int) -> int:
            began(number)
            return number

        self.task = self.broker.task(task_name="bench")(on_thread if setting.kind == "plain" else on_loop)

    def enqueue(self, number: int) -> Any:
        raise NotImplementedError

    async def aenqueue(self, number: int) -> Any:
        return await self.task.kiq(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await asyncio.gather(*[self.task.kiq(number) for number in numbers])

    async def stored(self) -> int:
        return len(self.broker.result_backend.results)

    async def result(self, handed_over: Any) -> Any:
        result = await handed_over.wait_result(check_interval=0.001)
        return result.return_value

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        await self.broker.startup()
        try:
            yield
        finally:
            await self.broker.shutdown()
