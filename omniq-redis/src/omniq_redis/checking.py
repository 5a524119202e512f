"""Finds what cannot be read on the server besides tasks: schedules, workers, names of queues, keys of another type."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Any

from omniq.errors import CorruptRecord
from omniq.storage import StoredWorker
from omniq.storage.corrupt_records import corrupt
from omniq.storage.times import from_micros
from omniq.storage.validation import UNREADABLE, check_text, check_worker
from omniq_redis.batches import pairs
from omniq_redis.client import Client
from omniq_redis.decoding import id_of
from omniq_redis.flows import stored_flow
from omniq_redis.limits import limits_of
from omniq_redis.schedules import schedules_of

__all__ = ["find_unreadable", "name_problem", "read_worker"]

OF_QUEUES = (
    "ready",
    "scheduled",
    "succeeded",
    "failed",
    "cancelled",
    "order:failed",
    "order:cancelled",
    "idle",
    "blocked",
    "lined",
    "eligible",
    "parked",
    "asleep",
    "resting",
    "stalled",
)
"""What the names of a queue's sorted sets begin with."""
TYPES = {
    "queues": "set",
    **dict.fromkeys(("leased", "expiring", "log", "schedules:due", "flows:due", "flows:ended", "rates"), "zset"),
    **dict.fromkeys(("meta", "running", "unique", "flows:unique", "counts", "waiting", "schedules"), "hash"),
    **dict.fromkeys(("workers", "about", "limits", "lanes", "slots"), "hash"),
    "seq": "string",
}
"""The types of the keys of which a namespace has one."""
FLOWS_AT_A_TIME = 100


def name_problem(word: bytes, kind: str, *, place: str = "") -> CorruptRecord | None:
    """Return what is wrong with a name that the server returned; None: nothing.

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
        return check_worker(
            StoredWorker(id=name.decode(), seen_at=from_micros(seen), running=tuple(running), about=told)
        )
    except UNREADABLE as error:
        return corrupt("worker", name, error, place="key workers")


async def find_unreadable(client: Client) -> list[CorruptRecord]:
    """Return what is wrong with the records of the store that are none of tasks."""
    wrong = {name: problem for name, kind in TYPES.items() if (problem := await _of_another_type(client, name, kind))}
    keys = _Keys(client, wrong.keys())
    looks = (
        _put_aside(client),
        _of_schedules_and_limits(keys),
        _of_workers(keys),
        _of_counts(keys),
        _of_queues(keys),
        _of_flows(keys),
    )
    return [*wrong.values(), *[problem for look in looks async for problem in look]]


class _Keys:
    """The keys that are of the type that they must be.

    :param wrong: the names of the others.
    """

    def __init__(self, client: Client, wrong: Collection[str]) -> None:
        self.client = client
        self._wrong = wrong

    def __contains__(self, name: str) -> bool:
        return name not in self._wrong

    async def ask(self, command: bytes, name: str, *rest: bytes) -> Any:
        """Return what is stored under a key; nothing if it is of another type."""
        if name not in self:
            return ()
        return await self.client.ask(command, f"{self.client.settings.prefix}{name}".encode(), *rest)


async def _of_schedules_and_limits(keys: _Keys) -> AsyncIterator[CorruptRecord]:
    if "schedules" in keys:
        for one in schedules_of(await keys.client.run("get_schedules")):
            if isinstance(one, CorruptRecord):
                yield one
    if "limits" in keys:
        problems: list[CorruptRecord] = []
        limits_of(await keys.client.run("get_limits"), problems)
        for problem in problems:
            yield problem


async def _of_workers(keys: _Keys) -> AsyncIterator[CorruptRecord]:
    told = dict(pairs(await keys.ask(b"HGETALL", "about")))
    for name, stored in pairs(await keys.ask(b"HGETALL", "workers")):
        if len(stored) != 16:
            yield corrupt("worker", name, "its record has a wrong length", place="key workers")
            continue
        worker = read_worker(name, int.from_bytes(stored[:8], "big"), (), told.get(name))
        if isinstance(worker, CorruptRecord):
            yield worker


async def _of_counts(keys: _Keys) -> AsyncIterator[CorruptRecord]:
    for name, number in pairs(await keys.ask(b"HGETALL", "counts")):
        if not number.lstrip(b"-").isdigit():
            yield corrupt("queue", name, f"its number of running tasks is {number!r}", place="key counts")


async def _of_queues(keys: _Keys) -> AsyncIterator[CorruptRecord]:
    names: dict[bytes, None] = {}
    for command, where in ((b"SMEMBERS", "queues"), (b"HKEYS", "lanes")):
        for name in await keys.ask(command, where):
            names[name] = None
            problem = name_problem(name, "queue", place=f"key {where}")
            if problem is not None:
                yield problem
    for name in names:
        for what in OF_QUEUES:
            problem = await _of_another_type(keys.client, f"{what}:".encode() + name, "zset")
            if problem is not None:
                yield problem


async def _of_flows(keys: _Keys) -> AsyncIterator[CorruptRecord]:
    for key in ("flows:due", "flows:ended"):
        ids = [id_of(word) for word in await keys.ask(b"ZRANGE", key, b"0", b"-1")]
        for at in range(0, len(ids), FLOWS_AT_A_TIME):
            some = ids[at : at + FLOWS_AT_A_TIME]
            for flow_id, found in zip(some, await keys.client.run("get_flows", some), strict=True):
                try:
                    stored_flow(flow_id, found)
                except CorruptRecord as problem:
                    yield problem


async def _of_another_type(client: Client, name: str | bytes, wanted: str) -> CorruptRecord | None:
    """Return what is wrong with a key if it is not of the type that it must be."""
    key = client.settings.prefix.encode() + (name if isinstance(name, bytes) else name.encode())
    kind = _text(await client.ask(b"TYPE", key))
    if kind in (wanted, "none"):
        return None
    why = f"it is of type {kind}, not {wanted}; what needs it next puts it aside, and goes on without it"
    return corrupt("key", key.decode(errors="replace"), why)


async def _put_aside(client: Client) -> AsyncIterator[CorruptRecord]:
    aside = f"{client.settings.prefix}aside".encode()
    if _text(await client.ask(b"TYPE", aside)) == "set":
        for key in sorted(await client.ask(b"SMEMBERS", aside)):
            if await client.ask(b"EXISTS", key):
                shown = key.decode(errors="replace")
                why = "it stood, of another type, where a key of OmniQ's belongs, and was put aside"
                mend = f"look at it, then remove it with: redis-cli UNLINK {shlex.quote(shown)}"
                yield corrupt("key", shown, f"{why}; {mend}")


def _text(told: str | bytes) -> str:
    return told if isinstance(told, str) else bytes(told).decode()
