"""What claiming and finishing a task costs in a store that holds many others: the storage alone, without a worker."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from omniq.ids import new_id
from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.task import NewTask, Succeeded
from omniq.urls import parse_url
from tests.bench.job import Job

__all__ = ["measure"]

FILL = 1000
BATCH = 100
PROBES = 3_000
"""How many tasks are claimed and finished for the figure."""


async def measure(job: Job, file: Path) -> dict[str, float]:
    """Fill a store with ``size`` tasks of a kind, then take the time of claiming and finishing some."""
    storage = default_plugins().open_storage(parse_url(f"sqlite:///{file}"))
    await storage.open()
    state = job.scenario.removeprefix("growth-")
    size = 0 if state == "empty" else job.size
    for count in _batches(size, FILL):
        run_at = timedelta(days=30) if state == "scheduled" else None
        await storage.enqueue([_task(run_at) for _ in range(count)])
        if state == "finished":
            await _work(storage, FILL)
    probes = min(PROBES, job.size)
    for count in _batches(probes, FILL):
        await storage.enqueue([_task(None) for _ in range(count)])
    blocks: list[float] = []
    for _ in _batches(probes, BATCH):
        began = time.perf_counter()
        done = await _work(storage, BATCH)
        blocks.append((time.perf_counter() - began) / done)
    await storage.close()
    return {job.scenario: statistics.median(blocks) * 1e6}


async def _work(storage: Storage, count: int) -> int:
    claimed = await storage.claim({"default": count}, worker="bench", lease=30)
    await storage.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in claimed])
    return len(claimed)


def _task(run_at: timedelta | None) -> NewTask:
    return NewTask(id=new_id(), queue="default", name="bench", payload=b"[[1], {}]", is_async=True, run_at=run_at)


def _batches(total: int, most: int) -> Iterator[int]:
    while total > 0:
        yield min(total, most)
        total -= most
