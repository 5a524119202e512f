"""flexiq on PostgreSQL: coroutines, 100 at once, claimed in hundreds; worker and callers look every millisecond."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import Contender, Setting
from tests.bench.contenders.running import on_thread

__all__ = ["Flexiq"]


class Flexiq(Contender):
    """flexiq."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        flexiq: Any = importlib.import_module("flexiq")
        self.queue = flexiq.Queue(
            backend="postgres",
            db_url=setting.url,
            pool_size=20,
            async_concurrency=100,
            scheduler_poll_interval_ms=1,
            scheduler_batch_size=100,
        )
        began = self.marks.began

        async def on_loop(number: int) -> int:
            began(number)
            return number

        def on_thread(number: int) -> int:
            began(number)
            return number

        self.task = self.queue.task(name="bench")(on_thread if setting.kind == "plain" else on_loop)

    def enqueue(self, number: int) -> Any:
        return self.task.delay(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 1000):
            self.queue.enqueue_many("bench", [(number,) for number in numbers[start : start + 1000]])

    async def stored(self) -> int:
        return int(self.queue.stats()["completed"])

    async def result(self, handed_over: Any) -> Any:
        return handed_over.result(timeout=10, poll_interval=0.001, max_poll_interval=0.001)

    def worker(self) -> AbstractAsyncContextManager[object]:
        return on_thread(self.queue.run_worker)
