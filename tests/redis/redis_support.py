"""What the tests of the Redis storage share."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from redis import Redis

from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, StoredTask, Succeeded, TaskState
from omniq.testing.contract.spoiling import Value
from omniq_redis.storage import RedisStorage
from tests.fork_server import Popen
from tests.servers.redis import RedisServer

__all__ = [
    "SpoiledKeys",
    "calls",
    "done",
    "finish_all",
    "new_task",
    "only",
    "opened",
    "python",
    "storage",
    "take",
    "total",
]

TOLD = frozenset({"info", "config|resetstat"})
"""Commands of the tests' own."""


def new_task(**options: Any) -> NewTask:
    """Return a task to enqueue, of queue ``q`` unless another is named."""
    return NewTask(**{"id": new_id(), "queue": "q", "name": "n", "body": b"[]", **options})


def storage(url: str, namespace: str = "omniq", **options: Any) -> RedisStorage:
    """Return an unopened storage."""
    return RedisStorage(parse_url(url, namespace), **options)


@asynccontextmanager
async def opened(url: str, namespace: str = "omniq", **options: Any) -> AsyncIterator[RedisStorage]:
    """Yield an open storage, and close it afterwards."""
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
    """Return the outcomes of claimed tasks that all went well."""
    return [Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in tasks]


async def finish_all(store: RedisStorage, n: int = 1000) -> int:
    """Claim and finish tasks until none is ready; give how many there were."""
    number = 0
    while claimed := await take(store, n=n):
        assert all(await store.finish(done(claimed)))
        number += len(claimed)
    return number


async def only(store: RedisStorage, task_id: str) -> StoredTask:
    """Return the record of a task that is there."""
    (task,) = await store.get([task_id])
    assert task is not None
    return task


async def total(store: RedisStorage, state: TaskState, queue: str = "q") -> int:
    """Return how many tasks of a queue are in a state."""
    return sum(stats.counts[state] for stats in await store.stats() if stats.queue == queue)


def calls(server: RedisServer) -> dict[str, int]:
    """Return how often each command was run since the statistics were reset, those within scripts included."""
    found: dict[str, int] = {}
    for name, told in server.info("commandstats").items():
        command = name.removeprefix("cmdstat_")
        if command not in TOLD:
            assert isinstance(told, dict)
            found[command] = int(told["calls"])
    return found


def python(program: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start another Python that runs a program."""
    return Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        **options,
    )


def raw_client(server: RedisServer) -> Redis:
    """Return redis-py's own client, which reads and writes bytes; close it after use."""
    return Redis(host="127.0.0.1", port=server.port)


class SpoiledKeys:
    """Reads and writes records with redis-py's own client.

    :param server: where they are.
    :param namespace: of which namespace.
    """

    FIELDS: Mapping[str, Sequence[str]] = {
        "worker": ("workers", "about"),
        "schedule": ("schedules",),
        "queue": ("counts",),
        "unique": ("unique",),
        "task": ("running",),
        "limit": ("limits",),
    }
    """The hashes that have a field for a record."""
    KEYS: Mapping[str, Sequence[str]] = {"task": ("o", "h"), "result": ("h",)}
    """What the names of its own keys begin with."""

    def __init__(self, server: RedisServer, namespace: str) -> None:
        self._server = server
        self._prefix = f"{{{namespace}}}:"

    def read(self, kind: str, name: str) -> Mapping[str, Value]:
        with raw_client(self._server) as client:
            found = {hash_: client.hget(self._prefix + hash_, name) for hash_ in self.FIELDS.get(kind, ())}
            found |= {key: client.get(f"{self._prefix}{key}:{name}") for key in self.KEYS.get(kind, ())}
        return {place: cast("bytes", value) for place, value in found.items() if value is not None}

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        assert isinstance(value, bytes)
        with raw_client(self._server) as client:
            if place in self.KEYS.get(kind, ()):
                client.set(f"{self._prefix}{place}:{name}", value)
            else:
                client.hset(self._prefix + place, name, value)
        return True
