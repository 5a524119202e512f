"""How long a call of a store takes at most where thousands of tasks wait for one, and one for all of them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import evolve

from omniq import TaskGroup, TaskQueue
from omniq.storage import Storage
from omniq.task import Succeeded
from tests.bench.contenders.omniq_queue import url
from tests.bench.job import Job
from tests.bench.scenarios.growing import new_task

__all__ = ["measure"]

BATCH = 100
LEASE = 600.0


async def measure(job: Job) -> dict[str, float]:
    """Work off a flow of one task, ``size`` that take its result, and one that takes theirs, beside another queue.

    :return: milliseconds: the longest call, and the longest claim of a task of the other queue.
    """
    async with TaskQueue("memory://bench" if job.store == "memory" else url(job)) as queue:

        @queue.task
        async def step(value: object) -> int:
            return 1

        storage = (await queue.connections.current()).storage
        longest = _Longest(storage)
        first = step.call([])
        await queue.aenqueue_flow(TaskGroup([step.call([first.output]) for _ in range(job.size)]).then(step))
        beside: list[float] = []
        left = job.size + 2
        while left:
            await storage.enqueue([evolve(new_task(), queue="beside")])
            left -= await _work(storage, "default", BATCH)
            seen = longest.seconds
            longest.seconds = 0.0
            if await _work(storage, "beside", 1) != 1:
                raise RuntimeError("the task of the other queue is not ready")
            beside.append(longest.seconds)
            longest.seconds = max(seen, longest.seconds)
    return {job.scenario: 1e3 * longest.seconds, f"{job.scenario} beside": 1e3 * max(beside)}


async def _work(storage: Storage, queue: str, most: int) -> int:
    claimed = await storage.claim({queue: most}, worker="bench", lease=LEASE)
    return sum(await storage.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in claimed]))


class _Longest:
    """Times each call that writes to a store."""

    def __init__(self, storage: Storage) -> None:
        self.seconds = 0.0
        for name in ("enqueue", "release_hold", "claim", "finish"):
            setattr(storage, name, self._timed(getattr(storage, name)))

    def _timed(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return await call(*args, **options)
            finally:
                self.seconds = max(self.seconds, time.perf_counter() - began)

        return timed
