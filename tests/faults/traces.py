"""What stores keep, read past OmniQ with nothing but the driver: rows, keys, messages and files that should be gone."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nats
import psycopg
from nats.js.errors import NotFoundError
from psycopg import sql
from redis import Redis

__all__ = ["OF_SERVERS", "is_unlocked", "of_files", "of_sqlite"]


def of_files(folder: Path) -> dict[str, int]:
    """Return how many files there are, by folder."""
    kept = {
        place: list((folder / place).rglob("*")) for place in ("tasks", "ids", "unique", "ready", "aside", "workers")
    }
    return _some({place: sum(path.is_file() for path in paths) for place, paths in kept.items()})


def of_sqlite(database: Path, namespace: str = "omniq") -> dict[str, int]:
    """Return how many rows there are, by table."""
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        left = {
            table: connection.execute(f'SELECT count(*) FROM "{namespace}.{table}"').fetchone()[0]
            for table in ("task", "body", "tag", "worker", "schedule", "paused")
        }
        # A process that was killed while it waited leaves word of it, which is removed once its wait would be over.
        left["waiter"] = connection.execute(
            f'SELECT count(*) FROM "{namespace}.waiter" WHERE until NOT BETWEEN :now AND :now + :longest',
            {"now": time.time_ns() // 1000, "longest": 60_000_000},
        ).fetchone()[0]
        left["counter"] = connection.execute(
            f"SELECT count(*) FROM \"{namespace}.counter\" WHERE n <> 0 AND queue <> ''"
        ).fetchone()[0]
    finally:
        connection.close()
    return _some(left)


def is_unlocked(path: Path) -> bool:
    """Say whether nobody holds the lock of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def of_redis(url: str, namespace: str) -> dict[str, int]:
    """Return the keys that there are, and how many bytes each takes."""
    with Redis.from_url(url, decode_responses=True) as client:
        keys = [str(key) for key in client.scan_iter(f"*{namespace}*", count=1000)]
        left = {key: int(client.memory_usage(key) or 0) for key in keys if not key.endswith(REDIS_KEEPS)}
        for key in left:
            # A process that was killed while it waited leaves word of it, which is removed once its wait would be over.
            if ":idle:" in key and client.zcount(key, (time.time() - 60) * 1e6, "+inf") == client.zcard(key):
                left[key] = 0
    return _some(left)


REDIS_KEEPS = (":meta", ":seq")
"""Ends of the keys that a namespace has from its first use on: its layout, and the number that enqueueing counts up."""


def of_postgres(url: str, namespace: str) -> dict[str, int]:
    """Return how many rows there are, by table."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE tablename LIKE %s OR schemaname LIKE %s",
            [f"{namespace}%", f"{namespace}%"],
        ).fetchall()
        assert tables, f"no tables of namespace {namespace}"
        return _some({table: _rows_in(connection, schema, table) for schema, table in tables})


def _rows_in(connection: psycopg.Connection[Any], schema: str, table: str) -> int:
    name = sql.Identifier(schema, table)
    if table.endswith(("migration", "revision")):
        return 0
    if table.endswith(("counter", "delta")):
        # Rows that sum up to nothing are how counting works.
        what = "abs(sum(scheduled)) + abs(sum(ready)) + abs(sum(running)) + abs(sum(succeeded + failed + cancelled))"
    else:
        what = "count(*)"
    (count,) = connection.execute(f"SELECT {what} FROM {name.as_string(connection)}".encode()).fetchone() or (0,)
    return int(count or 0)


def of_nats(url: str, namespace: str) -> dict[str, int]:
    """Return how many messages there are, by subject."""
    return asyncio.run(_messages(url, namespace))


async def _messages(url: str, namespace: str) -> dict[str, int]:
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        stream = f"OMNIQ_{namespace}"
        info = await jetstream.stream_info(stream, subjects_filter=">")
        left = {}
        for subject, count in (info.state.subjects or {}).items():
            if subject.startswith(tuple(f"omniq.{namespace}.{kept}" for kept in NATS_KEEPS)):
                continue
            try:
                last = await jetstream.get_last_msg(stream, subject)
            except NotFoundError:
                continue  # it has gone meanwhile
            if "Nats-TTL" not in (last.headers or {}):
                left[subject] = count
    finally:
        await client.close()
    return left


NATS_KEEPS = ("q.", "u.=", "w.=")
"""The queues' states, one message for each queue that there ever was; the reserve for removals; and the beacon."""


OF_SERVERS: Mapping[str, Callable[[str, str], dict[str, int]]] = {
    "redis": of_redis,
    "postgres": of_postgres,
    "nats": of_nats,
}
"""How to find what is left in a namespace, by kind of server."""


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {place: count for place, count in counts.items() if count}
