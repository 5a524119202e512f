"""Tasks in processes of their own: how fast they are drained, and whether two of them really run at the same time."""

from __future__ import annotations

import asyncio
import statistics
import time

from omniq import TaskQueue
from tests.bench.job import Job

__all__ = ["drain", "pair"]

SLOTS = 2
ROUNDS = 5
WARM_UP = 200_000
"""Steps that take long enough for the second process to be started beside the first."""
STEPS = 1_000
"""How many steps a task makes for each unit of the scenario's size."""

# A child process finds a task by its module and name. In memory, so that the figures are the processes' alone.
queue = TaskQueue("memory://")


@queue.task(executor="process")
def give_back(number: int) -> int:
    """Do nothing."""
    return number


@queue.task(executor="process")
def count(steps: int) -> int:
    """Keep a core busy."""
    total = 0
    for step in range(steps):
        total += step
    return total


async def drain(job: Job) -> dict[str, float]:
    """Drain ``size`` tasks that do nothing, from when both processes are there to the last result."""
    async with queue.worker(processes=SLOTS):
        await _side_by_side(SLOTS, WARM_UP)
        began = time.perf_counter()
        handles = await queue.aenqueue_many([give_back.call(number) for number in range(job.size)])
        results = [await handle for handle in handles]
        took = time.perf_counter() - began
    await queue.aclose()
    if results != list(range(job.size)):
        raise RuntimeError("the results are not what the tasks were given")
    return {job.scenario: job.size / took}


async def pair(job: Job) -> dict[str, float]:
    """Take the time of two CPU-bound tasks at once over that of one alone, in turn."""
    steps = job.size * STEPS
    alone: list[float] = []
    together: list[float] = []
    async with queue.worker(processes=SLOTS):
        await _side_by_side(SLOTS, WARM_UP)
        for _ in range(ROUNDS):
            alone.append(await _side_by_side(1, steps))
            together.append(await _side_by_side(SLOTS, steps))
    await queue.aclose()
    return {job.scenario: statistics.median(together) / statistics.median(alone)}


async def _side_by_side(tasks: int, steps: int) -> float:
    began = time.perf_counter()
    handles = await queue.aenqueue_many([count.call(steps) for _ in range(tasks)])
    await asyncio.gather(*[handle.aresult() for handle in handles])
    return time.perf_counter() - began
