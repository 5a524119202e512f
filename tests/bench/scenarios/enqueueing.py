"""How fast a producer hands tasks over; no worker runs."""

from __future__ import annotations

import asyncio
import time

from tests.bench.job import Job
from tests.bench.marks import Marks

__all__ = ["at_once", "awaited", "in_bulk", "one_by_one"]

WARM_UP = 20
COROUTINES = 100


def one_by_one(job: Job, marks: Marks) -> dict[str, float]:
    """Enqueue from synchronous code, each task after the other."""
    contender = job.make(marks)
    for _ in range(WARM_UP):
        contender.enqueue(0)
    began = time.perf_counter()
    for number in range(job.size):
        contender.enqueue(number)
    took = time.perf_counter() - began
    asyncio.run(contender.close())
    return {job.scenario: job.size / took}


def awaited(job: Job, marks: Marks) -> dict[str, float]:
    """Enqueue from one coroutine, each task awaited before the next."""

    async def run() -> float:
        contender = job.make(marks)
        for _ in range(WARM_UP):
            await contender.aenqueue(0)
        began = time.perf_counter()
        for number in range(job.size):
            await contender.aenqueue(number)
        took = time.perf_counter() - began
        await contender.close()
        return took

    return {job.scenario: job.size / asyncio.run(run())}


def at_once(job: Job, marks: Marks) -> dict[str, float]:
    """Enqueue from a hundred coroutines at once, each of which awaits each of its tasks."""
    each = job.size // COROUTINES

    async def run() -> float:
        contender = job.make(marks)

        async def produce(first: int) -> None:
            for number in range(first, first + each):
                await contender.aenqueue(number)

        for _ in range(WARM_UP):
            await contender.aenqueue(0)
        began = time.perf_counter()
        await asyncio.gather(*[produce(index * each) for index in range(COROUTINES)])
        took = time.perf_counter() - began
        await contender.close()
        return took

    return {job.scenario: each * COROUTINES / asyncio.run(run())}


def in_bulk(job: Job, marks: Marks) -> dict[str, float]:
    """Enqueue all tasks by the bulk call."""

    async def run() -> float:
        contender = job.make(marks)
        await contender.enqueue_many(range(WARM_UP))
        began = time.perf_counter()
        await contender.enqueue_many(range(job.size))
        took = time.perf_counter() - began
        await contender.close()
        return took

    return {job.scenario: job.size / asyncio.run(run())}
