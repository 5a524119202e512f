"""taskiq with a server: Redis streams with results in Redis; JetStream with a pull consumer, and no results there.

100 coroutines at once, 20 threads, no check of types; waiting callers poll every millisecond. On NATS results would be
kept in an object store, of which each takes several messages: only round trips are measured with it.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.bench.contenders.contender import AsyncContender, Setting
from tests.bench.contenders.running import on_loop
from tests.bench.resp import Connection

__all__ = ["TaskiqOnServer", "TaskiqWithResults"]


class TaskiqOnServer(AsyncContender):
    """taskiq-redis, taskiq-nats."""

    stops_by_itself = False
    keeps_results = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.receiver: Any = importlib.import_module("taskiq.api.receiver")
        self.broker = self._redis() if setting.store == "redis" else self._nats()
        began = self.marks.began

        async def on_loop(number: int) -> int:
            began(number)
            return number

        def on_thread(number: int) -> int:
            began(number)
            return number

        self.task = self.broker.task(task_name="bench")(on_thread if setting.kind == "plain" else on_loop)

    def _redis(self) -> Any:
        redis: Any = importlib.import_module("taskiq_redis")
        # From the first message on, also if the group of workers is made after it.
        broker = redis.RedisStreamBroker(self.setting.url, consumer_id="0")
        return broker.with_result_backend(redis.RedisAsyncResultBackend(self.setting.url, result_ex_time=3600))

    def _nats(self) -> Any:
        nats: Any = importlib.import_module("taskiq_nats")
        broker = nats.PullBasedJetStreamBroker(
            [self.setting.url],
            subject=self.setting.name,
            stream_name=self.setting.name,
            durable=self.setting.name,
            pull_consume_batch=100,
            # A shorter one ends its worker now and then, a longer one lets single tasks wait for a hundred.
            pull_consume_timeout=1,
        )
        if self.keeps_results:
            broker.with_result_backend(
                nats.NATSObjectStoreResultBackend([self.setting.url], bucket_name=self.setting.name)
            )
        return broker

    async def connect(self) -> None:
        await self.broker.startup()

    async def aenqueue(self, number: int) -> Any:
        await self.connected()
        return await self.task.kiq(number)

    async def stored(self) -> int:
        if self.setting.store == "redis":
            with Connection(self.setting.url) as connection:
                # All keys but the stream are results.
                return int(connection.ask("DBSIZE")) - 1
        info = await self.broker.js.consumer_info(self.setting.name, self.setting.name)
        return int(info.ack_floor.stream_seq)

    async def result(self, handed_over: Any) -> Any:
        result = await handed_over.wait_result(check_interval=0.001)
        return result.return_value

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        self.broker.is_worker_process = True
        await self.connected()
        work = self.receiver.run_receiver_task(
            self.broker, sync_workers=20, validate_params=False, max_async_tasks=100, max_prefetch=100
        )
        async with on_loop(work):
            yield


class TaskiqWithResults(TaskiqOnServer):
    """taskiq-nats with its results."""

    keeps_results = True
