"""What it costs a worker to count for ``omniq worker --http``: drains with it and without it, in turn."""

from __future__ import annotations

import gc
import statistics
import time
from uuid import uuid4

from omniq import TaskQueue
from omniq._worker.metrics import Metrics
from tests.bench.job import Job

__all__ = ["measure"]

ROUNDS = 100


async def measure(job: Job) -> dict[str, float]:
    """Take the processor time of draining ``size`` tasks with metrics over that without them.

    On SQLite, where a drain takes least of the stores that ``omniq worker --http`` can serve. The median of the rounds:
    a single drain's time varies by more than what is looked for, and by as much for the quickest of many.
    """
    ratios: list[float] = []
    for number in range(ROUNDS):
        # In turn: neither is always the first, on a machine that grows warm or busy.
        took = {counts: await _drain(job, counts) for counts in ((False, True) if number % 2 else (True, False))}
        ratios.append(took[True] / took[False])
    return {job.scenario: statistics.median(ratios)}


async def _drain(job: Job, counts: bool) -> float:
    metrics = Metrics() if counts else None
    queue = TaskQueue(f"sqlite:///{job.folder}/{uuid4().hex}.db")

    @queue.task
    async def give_back(number: int) -> int:
        return number

    worker = queue.worker()
    worker.metrics = metrics
    handles = await queue.aenqueue_many([give_back.call(number) for number in range(job.size)])
    # A collection takes as long as many tasks, and chance has it whether it comes in this round or before the next.
    gc.collect()
    gc.disable()
    began = time.process_time()
    async with worker:
        await handles[-1].aresult()
    took = time.process_time() - began
    gc.enable()
    await queue.aclose()
    if metrics is not None and [sum(row[:2]) for row in metrics.totals().values()] != [2 * job.size]:
        raise RuntimeError("not every task was counted")
    return took
