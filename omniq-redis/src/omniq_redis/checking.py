"""Finds what cannot be read on the server besides tasks: schedules, workers, names of queues, keys of another type."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from omniq.errors import CorruptRecord
from omniq.storage import StoredWorker
from omniq.storage.validation import UNREADABLE, check_text, check_worker, corrupt
from omniq_redis.batches import pairs
from omniq_redis.client import Client
from omniq_redis.schedules import schedules_of
from omniq_redis.times import moment

__all__ = ["find_unreadable", "name_problem", "read_worker"]

OF_QUEUES = ("ready", "scheduled", "succeeded", "failed", "cancelled", "order:failed", "order:cancelled")
"""What the names of a queue's sorted sets begin with."""


def name_problem(word: bytes, kind: str, *, place: str = "") -> CorruptRecord | None:
    """Return what is wrong with a name that the server gave; None: nothing.

    :param kind: what it names, such as ``"queue"``.
    """
    try:
        check_text(word.decode(), "name")
    except UNREADABLE as error:
        return corrupt(kind, word, error, place=place)
    return None


def read_worker(name: bytes, seen: int, running: Iterable[str], about: bytes | None) -> StoredWorker | CorruptRecord:
    """Return a worker, or what is wrong with its record.

    :param seen: when it was seen last, in microseconds.
    """
    try:
        told = None if about is None else about.decode()
        return check_worker(StoredWorker(id=name.decode(), seen_at=moment(seen), running=tuple(running), about=told))
    except UNREADABLE as error:
        return corrupt("worker", name, error, place="key workers")


async def find_unreadable(client: Client) -> list[CorruptRecord]:
    """Return what is wrong with the records of the store that are none of tasks."""
    prefix = client.settings.prefix
    key = {name: f"{prefix}{name}".encode() for name in ("queues", "paused", "workers", "about", "counts")}
    problems = [one for one in schedules_of(await client.run("get_schedules")) if isinstance(one, CorruptRecord)]
    told = dict(pairs(await client.ask(b"HGETALL", key["about"])))
    for name, stored in pairs(await client.ask(b"HGETALL", key["workers"])):
        if len(stored) != 16:
            problems.append(corrupt("worker", name, "its record has a wrong length", place="key workers"))
        else:
            worker = read_worker(name, int.from_bytes(stored[:8], "big"), (), told.get(name))
            if isinstance(worker, CorruptRecord):
                problems.append(worker)
    for name, number in pairs(await client.ask(b"HGETALL", key["counts"])):
        if not number.lstrip(b"-").isdigit():
            problems.append(corrupt("queue", name, f"its number of running tasks is {number!r}", place="key counts"))
    names: set[bytes] = set()
    for where in ("queues", "paused"):
        for name in await client.ask(b"SMEMBERS", key[where]):
            names.add(name)
            problem = name_problem(name, "queue", place=f"key {where}")
            if problem is not None:
                problems.append(problem)
    for name in names:
        problems += [problem async for problem in _of_another_type(client, name)]
    return problems


async def _of_another_type(client: Client, queue: bytes) -> AsyncIterator[CorruptRecord]:
    for what in OF_QUEUES:
        kind = await client.ask(b"TYPE", f"{client.settings.prefix}{what}:".encode() + queue)
        kind = kind if isinstance(kind, str) else bytes(kind).decode()
        if kind not in ("zset", "none"):
            yield corrupt("queue", queue, f"its key is a {kind}", place=f"key {what}:{queue!r:.100}")
