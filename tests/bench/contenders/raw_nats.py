"""nats-py doing the least that a durable queue with results must write on JetStream, in files.

A task is a message of a work queue; a worker fetches a batch, publishes the results and acknowledges the tasks. A batch
of messages is one atomic batch; nothing is fenced.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import nats
from nats.js.api import RetentionPolicy, StreamConfig

from tests.bench.contenders.contender import AsyncContender, Setting

__all__ = ["RawNats"]


LOOPS = 4
"""How many work side by side, so that none waits for the server alone."""


class RawNats(AsyncContender):
    """nats-py, with ``setting.batch`` messages at a time."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._client: Any = None
        self._stream: Any = None
        self._tasks, self._results = f"{setting.name}-tasks", f"{setting.name}-results"

    async def connect(self) -> None:
        self._client = await nats.connect(self.setting.url)
        self._stream = self._client.jetstream()
        work = StreamConfig(name=self._tasks, retention=RetentionPolicy.WORK_QUEUE, allow_atomic=True)
        await self._stream.add_stream(work)
        await self._stream.add_stream(StreamConfig(name=self._results, allow_atomic=True))

    async def aenqueue(self, number: int) -> None:
        await self.connected()
        await self._stream.publish(self._tasks, json.dumps([[number], {}]).encode())

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self.connected()
        batch = max(self.setting.batch, 100)
        for start in range(0, len(numbers), batch):
            payloads = [json.dumps([[number], {}]) for number in numbers[start : start + batch]]
            await self._publish(self._tasks, payloads)

    async def _publish(self, subject: str, payloads: Sequence[str]) -> None:
        if len(payloads) == 1:
            await self._stream.publish(subject, payloads[0].encode())
            return
        batch = uuid4().hex
        for sequence, payload in enumerate(payloads, start=1):
            headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(sequence)}
            if sequence < len(payloads):
                await self._client.publish(subject, payload.encode(), headers=headers)
            else:
                await self._stream.publish(subject, payload.encode(), headers={**headers, "Nats-Batch-Commit": "1"})

    async def stored(self) -> int:
        await self.connected()
        info = await self._stream.stream_info(self._results)
        return int(info.state.messages)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        await self.connected()
        subscriptions = [await self._stream.pull_subscribe(self._tasks, durable="worker") for _ in range(LOOPS)]
        work = asyncio.gather(*[self._work(subscription) for subscription in subscriptions])
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _work(self, subscription: Any) -> None:
        while True:
            try:
                # It waits until the batch is full; the last ones are not.
                fetched = await subscription.fetch(self.setting.batch, timeout=0.1)
            except TimeoutError:
                continue
            results = []
            for message in fetched:
                (number,), _ = json.loads(message.data)
                self.marks.began(number)
                results.append(json.dumps(number))
            await self._publish(self._results, results)
            for message in fetched:
                await message.ack()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
