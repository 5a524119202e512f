"""What the tests of the Redis storage share."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from omniq.ids import new_id
from omniq.task import NewTask, StoredTask, Succeeded, TaskState
from omniq.urls import parse_url
from omniq_redis.storage import RedisStorage
from tests.servers.redis import RedisServer

__all__ = ["calls", "done", "finish_all", "new_task", "only", "opened", "python", "storage", "take", "total"]

TOLD = frozenset({"info", "config|resetstat"})
"""Commands of the tests' own."""


def new_task(**options: Any) -> NewTask:
    """Give a task to enqueue, of queue ``q`` unless another is named."""
    return NewTask(**{"id": new_id(), "queue": "q", "name": "n", "body": b"[]", **options})


def storage(url: str, namespace: str = "omniq", **options: Any) -> RedisStorage:
    """Give an unopened storage."""
    return RedisStorage(parse_url(url, namespace), **options)


@asynccontextmanager
async def opened(url: str, namespace: str = "omniq", **options: Any) -> AsyncIterator[RedisStorage]:
    """Give an open storage, and close it afterwards."""
    store = storage(url, namespace, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def take(
    store: RedisStorage, *queues: str, n: int = 1000, lease: float = 300.0, worker: str = "w"
) -> list[StoredTask]:
    """Claim tasks."""
    return await store.claim(dict.fromkeys(queues or ("q",), n), worker=worker, lease=lease)


def done(tasks: list[StoredTask]) -> list[Succeeded]:
    """Give the outcomes of claimed tasks that all went well."""
    return [Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in tasks]


async def finish_all(store: RedisStorage, n: int = 1000) -> int:
    """Claim and finish tasks until none is ready; give how many there were."""
    number = 0
    while claimed := await take(store, n=n):
        assert all(await store.finish(done(claimed)))
        number += len(claimed)
    return number


async def only(store: RedisStorage, task_id: str) -> StoredTask:
    """Give the record of a task that is there."""
    (task,) = await store.get([task_id])
    assert task is not None
    return task


async def total(store: RedisStorage, state: TaskState, queue: str = "q") -> int:
    """Give how many tasks of a queue are in a state."""
    return sum(stats.counts[state] for stats in await store.stats() if stats.queue == queue)


def calls(server: RedisServer) -> dict[str, int]:
    """Give how often each command was run since the statistics were reset, those within scripts included."""
    found: dict[str, int] = {}
    for name, told in server.info("commandstats").items():
        command = name.removeprefix("cmdstat_")
        if command not in TOLD:
            assert isinstance(told, dict)
            found[command] = int(told["calls"])
    return found


def python(program: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start another Python that runs a program."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        **options,
    )
