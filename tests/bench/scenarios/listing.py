"""How soon one sees the few tasks that failed in a store that holds many that have ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx

from omniq import TaskQueue, TaskState
from omniq.dashboard import Dashboard, Visitor
from omniq.errors import StorageUnavailable
from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.storage.urls import parse_url
from omniq.task import Failed, Outcome, StoredTask, Succeeded, TaskError
from tests.bench.contenders.omniq_queue import url
from tests.bench.job import Job
from tests.bench.scenarios.growing import new_task

__all__ = ["measure"]

FILL = 1000
FAILED = 3
LOOKS = 10
PAUSE = 0.5
"""Seconds before the next try, where a server did not answer in time."""
ERROR = TaskError(type="RuntimeError", message="the bench fails")


async def measure(job: Job) -> dict[str, float]:
    """List the failed tasks of a store in which ``size`` others have ended, some before them and some after.

    The slowest of several looks counts, of which the first is that of a program that has just opened the store.

    :return: milliseconds.
    """
    # A store in memory has a name here: it is opened by two.
    where = "memory://bench" if job.store == "memory" else url(job)
    storage = default_plugins().open_storage(parse_url(where))
    await storage.open()
    await _end(storage, job.size // 2, _succeeded)
    await _end(storage, FAILED, _failed)
    await _end(storage, job.size - job.size // 2, _succeeded)
    async with TaskQueue(where) as queue:
        await queue.connections.current()
        listed = [await _list(queue) for _ in range(LOOKS)]
    async with TaskQueue(where) as queue:
        await queue.connections.current()
        page = await _show(queue)
    await storage.close()
    return {job.scenario: 1e3 * max(listed), f"{job.scenario} page": 1e3 * page}


async def _list(queue: TaskQueue) -> float:
    began = time.perf_counter()
    page = await queue.atasks(state=TaskState.FAILED, bare=True)
    took = time.perf_counter() - began
    _check(len(page.tasks))
    return took


async def _show(queue: TaskQueue) -> float:
    dashboard = Dashboard(queue, access=lambda request: Visitor(name="bench"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(dashboard), base_url="http://localhost") as client:
        began = time.perf_counter()
        answer = await client.get("/tasks?state=failed")
        took = time.perf_counter() - began
    answer.raise_for_status()
    _check(answer.text.count("the bench fails"))
    return took


def _check(found: int) -> None:
    if found != FAILED:
        raise RuntimeError(f"{found} failed tasks were seen of {FAILED}")


async def _end(storage: Storage, size: int, outcome: Callable[[StoredTask], Outcome]) -> None:
    """Enqueue, claim and finish tasks until so many have ended, however often a server that is filled has to pause."""
    while size > 0:
        count = min(size, FILL)
        try:
            await storage.enqueue([new_task() for _ in range(count)])
            claimed = await storage.claim({"default": count}, worker="bench", lease=3600)
            size -= sum(await storage.finish([outcome(task) for task in claimed]))
        except StorageUnavailable:
            await asyncio.sleep(PAUSE)  # a busy store needs a pause


def _succeeded(task: StoredTask) -> Outcome:
    return Succeeded(id=task.id, delivery=task.delivery, result=b"1")


def _failed(task: StoredTask) -> Outcome:
    return Failed(id=task.id, delivery=task.delivery, error=ERROR)
