"""How soon an idle worker begins with a task, how soon its result is back, and how soon a new worker begins at all."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import replace

from tests.bench.contenders.contender import Contender
from tests.bench.job import Job
from tests.bench.marks import Marks, clock
from tests.bench.scenarios.draining import wait_until
from tests.bench.workers import Crew, WorkerProcess

__all__ = ["latency", "round_trip", "start_up"]

GAP = 0.02
"""Seconds between two tasks."""
BUDGET = 4.0
"""Seconds after which no further round trips are made, for contenders of which each takes long."""
SETTLE = 0.2


def latency(job: Job, marks: Marks) -> dict[str, float]:
    """Take the time from just before a task is enqueued to its first line."""

    async def run() -> dict[str, float]:
        contender = job.make(marks)
        sent: list[int] = []
        async with Crew(job, contender):
            await _warm_up(job, contender, marks)
            for number in range(job.size):
                await asyncio.sleep(GAP)  # the gap between two requests
                sent.append(clock())
                await contender.aenqueue(number)
            await _begun(marks, range(job.size))
        await contender.close()
        return _percentiles(job.scenario, [marks[number] - sent[number] for number in range(job.size)])

    return asyncio.run(run())


def round_trip(job: Job, marks: Marks) -> dict[str, float]:
    """Take the time from just before a task is enqueued to its result."""

    async def run() -> dict[str, float]:
        contender = job.make(marks)
        took: list[int] = []
        async with Crew(job, contender):
            await _warm_up(job, contender, marks)
            give_up = time.monotonic() + BUDGET
            for number in range(job.size):
                began = clock()
                result = await contender.result(await contender.aenqueue(number))
                took.append(clock() - began)
                if result != number:
                    raise RuntimeError(f"the result of task {number} is {result!r}")
                if time.monotonic() > give_up:
                    break
        await contender.close()
        return _percentiles(job.scenario, took)

    return asyncio.run(run())


def start_up(job: Job, marks: Marks) -> dict[str, float]:
    """Take the time from the start of a worker's process to the first line of its first task, which waits for it."""

    async def run() -> dict[str, float]:
        in_memory = job.store == "memory"
        if not in_memory:
            contender = job.make(marks)
            await contender.enqueue_many(range(1))
            await contender.close()
        began = clock()
        worker = WorkerProcess(replace(job, start_at_once=True, enqueue_first=in_memory))
        try:
            await _begun(marks, range(1))
        finally:
            worker.stop()
        return {job.scenario: (marks[0] - began) / 1e6}

    return asyncio.run(run())


async def _warm_up(job: Job, contender: Contender, marks: Marks) -> None:
    extra = range(job.size, job.size + 5)
    for number in extra:
        await contender.aenqueue(number)
    await _begun(marks, extra)
    await asyncio.sleep(SETTLE)  # the worker is idle by then


async def _begun(marks: Marks, numbers: Sequence[int]) -> None:
    async def all_begun() -> bool:
        return all(marks[number] for number in numbers)

    await wait_until(all_begun, "all tasks have begun")


def _percentiles(scenario: str, nanoseconds: Sequence[int]) -> dict[str, float]:
    ordered = sorted(nanoseconds)
    return {
        f"{scenario} p{percent}": ordered[math.ceil(len(ordered) * percent / 100) - 1] / 1e6 for percent in (50, 99)
    }
