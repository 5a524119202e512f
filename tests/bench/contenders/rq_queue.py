"""RQ on Redis: plain functions one after the other, in the worker's own process (``SimpleWorker``) instead of forks."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders import tasks
from tests.bench.contenders.contender import Contender, Setting
from tests.bench.contenders.running import on_thread

__all__ = ["Rq"]

FUNCTION = "tests.bench.contenders.tasks.bench"


class Rq(Contender):
    """RQ."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.rq: Any = importlib.import_module("rq")
        timeouts: Any = importlib.import_module("rq.timeouts")
        redis: Any = importlib.import_module("redis")
        tasks.use(setting.marks)
        self.redis = redis.Redis.from_url(setting.url)
        self.queue = self.rq.Queue("bench", connection=self.redis)

        class Worker(self.rq.SimpleWorker):  # type: ignore[misc, name-defined]  # the product is not there for mypy
            # Beside a loop it is on a thread, where no signals arrive.
            death_penalty_class = timeouts.TimerDeathPenalty

            def _install_signal_handlers(self) -> None:
                return

        self.worker_class = Worker

    def enqueue(self, number: int) -> Any:
        return self.queue.enqueue(FUNCTION, number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 1000):
            self.queue.enqueue_many(
                [self.queue.prepare_data(FUNCTION, [number]) for number in numbers[start : start + 1000]]
            )

    async def stored(self) -> int:
        return int(self.redis.zcard("rq:finished:bench"))

    async def result(self, handed_over: Any) -> Any:
        return handed_over.latest_result(timeout=10).return_value

    def worker(self) -> AbstractAsyncContextManager[object]:
        worker = self.worker_class([self.queue], connection=self.redis, log_job_description=False)
        return on_thread(lambda: worker.work(logging_level="WARNING"))
