"""Dramatiq in memory and on Redis: plain functions on eight threads (its default), messages and results as JSON."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contenders.contender import Contender, Setting
from tests.bench.resp import Connection

__all__ = ["Dramatiq"]


class Dramatiq(Contender):
    """Dramatiq: a worker of its in this process."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.dramatiq: Any = importlib.import_module("dramatiq")
        results: Any = importlib.import_module("dramatiq.results")
        backends: Any = importlib.import_module("dramatiq.results.backends")
        if setting.store == "redis":
            self.backend = backends.RedisBackend(url=setting.url)
            self.broker = importlib.import_module("dramatiq.brokers.redis").RedisBroker(url=setting.url)
        else:
            self.backend = backends.StubBackend()
            self.broker = importlib.import_module("dramatiq.brokers.stub").StubBroker()
        self.broker.add_middleware(results.Results(backend=self.backend))
        if setting.store == "redis":
            callbacks: Any = importlib.import_module("dramatiq.middleware.group_callbacks")
            barriers: Any = importlib.import_module("dramatiq.rate_limits.backends")
            self.broker.add_middleware(callbacks.GroupCallbacks(barriers.RedisBackend(url=setting.url)))
        self.dramatiq.set_broker(self.broker)
        began = self.marks.began

        def bench(number: int) -> int:
            began(number)
            return number

        self.actor = self.dramatiq.actor(bench, store_results=True)

    def enqueue(self, number: int) -> Any:
        return self.actor.send(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        self.dramatiq.group(self.actor.message(number) for number in numbers).run()

    async def group(self, numbers: Sequence[int], callback: int) -> None:
        members = self.dramatiq.group(self.actor.message(number) for number in numbers)
        members.add_completion_callback(self.actor.message(callback))
        members.run()

    async def stored(self) -> int:
        if self.setting.store == "redis":
            with Connection(self.setting.url) as connection:
                # All keys but its own are results.
                return int(connection.ask("DBSIZE")) - connection.count("dramatiq:*")
        return len(self.backend.results)

    async def result(self, handed_over: Any) -> Any:
        return handed_over.get_result(block=True)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        worker = self.dramatiq.Worker(self.broker, worker_threads=8)
        worker.start()
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)
