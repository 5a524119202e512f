"""How fast workers get through tasks that do nothing: claimed, run, and their results stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tests.bench.contenders.contender import Contender
from tests.bench.job import Job
from tests.bench.marks import Marks, clock
from tests.bench.workers import Crew

__all__ = ["coroutines", "keyed", "one_by_one", "plain_functions", "two_processes"]

KEYS = 1000
"""Tenants whose tasks are drained side by side."""

LOOK = 0.002
"""Seconds between two looks; the store is only asked when the last task has begun."""
PATIENCE = 100.0


def coroutines(job: Job, marks: Marks) -> dict[str, float]:
    """Drain a queue of coroutine functions."""
    return asyncio.run(_drain(job, marks, processes=1))


def one_by_one(job: Job, marks: Marks) -> dict[str, float]:
    """Drain a queue of coroutine functions whose tasks were enqueued one by one, as by the requests of a website."""
    return asyncio.run(_drain(job, marks, processes=1, one_by_one=True))


def keyed(job: Job, marks: Marks) -> dict[str, float]:
    """Drain a queue of coroutine functions whose tasks are of many tenants, each with a limit of its own."""
    return asyncio.run(_drain(job, marks, processes=1, keys=KEYS))


def plain_functions(job: Job, marks: Marks) -> dict[str, float]:
    """Drain a queue of plain functions."""
    return asyncio.run(_drain(replace(job, kind="plain"), marks, processes=1))


def two_processes(job: Job, marks: Marks) -> dict[str, float]:
    """Drain a queue of coroutine functions (plain ones where there are no others) with two worker processes."""
    return asyncio.run(_drain(job, marks, processes=2))


async def _drain(
    job: Job, marks: Marks, processes: int, *, one_by_one: bool = False, keys: int = 0
) -> dict[str, float]:
    contender = job.make(marks)
    if keys:
        await contender.enqueue_keyed(range(job.size), keys)
    elif one_by_one:
        for number in range(job.size):
            await contender.aenqueue(number)
    elif not contender.runs_as_sent:
        await contender.enqueue_many(range(job.size))
    crew = Crew(job, contender, processes)
    began = clock()
    async with crew:
        if contender.runs_as_sent and not one_by_one:
            await contender.enqueue_many(range(job.size))
        ended = await _until_stored(job, contender, marks, crew)
    await contender.close()
    missing = [number for number in range(job.size) if not marks[number]]
    if missing:
        raise RuntimeError(f"{len(missing)} of {job.size} tasks have not run, {missing[0]} for one")
    if contender.starts_late:
        began = min(marks[number] for number in range(job.size))
    return {job.scenario: 1e9 * job.size / (ended - began)}


async def _until_stored(job: Job, contender: Contender, marks: Marks, crew: Crew) -> int:
    async def last_has_begun() -> bool:
        crew.check()
        return marks[job.size - 1] != 0

    async def all_stored() -> bool:
        return await contender.stored() >= job.size

    await wait_until(last_has_begun, "the last task has begun")
    await wait_until(all_stored, "all results are stored")
    return clock()


async def wait_until(condition: Callable[[], Awaitable[bool]], what: str, patience: float = PATIENCE) -> None:
    """Look every few milliseconds whether something holds.

    :param patience: seconds after which not to look any more.
    """
    give_up = time.monotonic() + patience
    while not await condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"it never came to it that {what}")
        await asyncio.sleep(LOOK)  # no event crosses processes
