"""What it costs to enqueue, claim and finish a task, to count, and to work at all in a store that holds many others."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from attrs import evolve

from omniq.flow import NewFlow, NewGate
from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.storage.body import Header, dump_header, join_body, make_content
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import Feed, NewTask, Succeeded
from tests.bench.contenders.omniq_queue import url
from tests.bench.job import Job
from tests.bench.marks import Marks
from tests.bench.scenarios.draining import wait_until
from tests.bench.scenarios.resources import memory_of
from tests.bench.workers import WorkerProcess

__all__ = ["measure", "new_task"]

FILL = 1000
BATCH = 100
LOOKS = 10
SETTLE = 1.0
"""Seconds for a worker to come to rest."""
PROBES = 3_000
"""How many tasks are claimed and finished for the figure."""


async def measure(job: Job, marks: Marks) -> dict[str, float]:
    """Fill a store with ``size`` tasks of a kind, then take what it costs to work with some more."""
    state = job.scenario.removeprefix("growth-")
    storage = default_plugins().open_storage(parse_url(url(job)))
    await storage.open()
    await _fill(storage, state, job.size)
    probes = min(PROBES, job.size)
    enqueued = await _timed([partial(_enqueue, storage, count) for count in _batches(probes, BATCH)])
    looked = await _timed([storage.stats] * LOOKS)
    worked = await _timed([partial(_work, storage, count) for count in _batches(probes, BATCH)])
    await storage.close()
    measured = {job.scenario: worked / BATCH * 1e6}
    # With many ready tasks, claiming is what matters; a worker in front of them is measured by "waiting".
    if state != "ready":
        measured[f"{job.scenario} enqueue"] = enqueued / BATCH * 1e6
        measured[f"{job.scenario} stats"] = looked * 1e3
        measured[f"{job.scenario} rss"] = await _memory_of_a_worker(job, marks) / 1e6
    return measured


async def _fill(storage: Storage, state: str, size: int) -> None:
    if state == "blocked":
        await _block(storage, size)
        return
    run_at = timedelta(days=30) if state == "scheduled" else None
    for count in _batches(0 if state == "empty" else size, FILL):
        await _enqueue(storage, count, run_at)
        if state == "finished":
            await _work(storage, count)


async def _block(storage: Storage, size: int) -> None:
    """Have tasks wait, in the queue that is measured, for one of a queue that nobody serves."""
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank=""),))
    first = evolve(new_task(), queue="nobody", flow=flow.id, feeds=(Feed(0),))
    await storage.enqueue([first], flow)
    for count in _batches(size, min(FILL, storage.limits.atomic_tasks or FILL)):
        await storage.enqueue([evolve(new_task(), flow=flow.id, behind=0) for _ in range(count)])


async def _timed(steps: Sequence[Callable[[], Awaitable[object]]]) -> float:
    took: list[float] = []
    for step in steps:
        began = time.perf_counter()
        await step()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


async def _enqueue(storage: Storage, count: int, run_at: timedelta | None = None) -> None:
    await storage.enqueue([new_task(run_at) for _ in range(count)])


async def _memory_of_a_worker(job: Job, marks: Marks) -> int:
    contender = job.make(marks)
    await contender.enqueue_many([0])
    await contender.close()
    worker = WorkerProcess(replace(job, start_at_once=True))

    async def has_begun() -> bool:
        worker.check()
        return marks[0] != 0

    try:
        await wait_until(has_begun, "the task has begun")
        # It settles what it began with, and looks at its store once more.
        await asyncio.sleep(SETTLE)  # nothing tells that it is done
        return memory_of(worker.pid)
    finally:
        worker.stop()


BODY = join_body(make_content(dump_header(Header(is_async=True)), b"[[1],{}]"))


async def _work(storage: Storage, count: int) -> None:
    claimed = await storage.claim({"default": count}, worker="bench", lease=30)
    await storage.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in claimed])


def new_task(run_at: timedelta | None = None) -> NewTask:
    return NewTask(id=new_id(), queue="default", name="bench", body=BODY, run_at=run_at)


def _batches(total: int, most: int) -> Iterator[int]:
    while total > 0:
        yield min(total, most)
        total -= most
