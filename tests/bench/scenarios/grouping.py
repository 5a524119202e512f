"""How fast a group of tasks with a callback runs, and how soon after its last member the callback begins."""

from __future__ import annotations

import asyncio
import statistics
import time

from tests.bench.contenders.contender import Contender
from tests.bench.job import Job
from tests.bench.marks import Marks, clock
from tests.bench.scenarios.draining import wait_until
from tests.bench.workers import Crew

__all__ = ["measure", "slots"]

GROUPS = 5
"""Groups one after the other, and a small one before, which is not measured."""
BUDGET = 20.0
"""Seconds after which no further groups are measured, for contenders of which each takes long."""
PATIENCE = 800.0
WARM_UP = 10


def slots(size: int) -> int:
    """Return how many tasks there are in all."""
    return WARM_UP + 1 + GROUPS * (size + 1)


def measure(job: Job, marks: Marks) -> dict[str, float]:
    """Hand groups over to a worker that waits, each when the callback of the one before has begun."""

    async def run() -> dict[str, float]:
        contender = job.make(marks)
        rates: list[float] = []
        delays: list[float] = []
        async with Crew(job, contender) as crew:
            await _group(contender, crew, marks, range(WARM_UP))
            give_up = time.monotonic() + BUDGET
            for number in range(GROUPS):
                first = WARM_UP + 1 + number * (job.size + 1)
                members = range(first, first + job.size)
                began = clock()
                await _group(contender, crew, marks, members)
                ended = marks[members.stop]
                rates.append(1e9 * (job.size + 1) / (ended - began))
                delays.append((ended - max(marks[member] for member in members)) / 1e6)
                if time.monotonic() > give_up:
                    break
        await contender.close()
        return {job.scenario: statistics.median(rates), f"{job.scenario} callback p50": statistics.median(delays)}

    return asyncio.run(run())


async def _group(contender: Contender, crew: Crew, marks: Marks, members: range) -> None:
    """Run a group whose callback has the number after its last member's."""

    async def has_begun() -> bool:
        crew.check()
        return marks[members.stop] != 0

    await contender.group(members, members.stop)
    await wait_until(has_begun, "the callback has begun", PATIENCE)
    if missing := [member for member in members if not marks[member]]:
        raise RuntimeError(f"the callback began before {len(missing)} of {len(members)} members, {missing[0]} for one")
