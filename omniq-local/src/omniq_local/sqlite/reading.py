"""Records, counts and workers: everything that is read and nothing that is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.storage import QueueStats, StoredWorker
from omniq.task import StoredTask, TaskState
from omniq_local.sqlite.rows import FRESH, READY, STATE_OF, moment, salvaged, task_of
from omniq_local.sqlite.settings import namespace_of
from omniq_local.sqlite.statements import Statements

__all__ = ["counts", "get", "make_task", "namespaces", "stats", "workers"]

_log = get_logger("omniq.sqlite")


def make_task(row: Sequence[Any]) -> StoredTask:
    """Make a task of its row, or the most of it if it cannot be read."""
    try:
        return task_of(row)
    except CorruptRecord as error:
        _log.warning("%s", error)
        return salvaged(row, error)


def get(ids: Sequence[str], sql: Statements, connection: sqlite3.Connection) -> list[StoredTask | None]:
    """See :meth:`~omniq.storage.Storage.get`."""
    rows = (connection.execute(sql["reading.by_id"], (task_id,)).fetchone() for task_id in ids)
    return [None if row is None else make_task(row) for row in rows]


def _value(connection: sqlite3.Connection, statement: str, *parameters: Any) -> Any:
    return json.loads(connection.execute(statement, parameters).fetchone()[0])


def counts(connection: sqlite3.Connection, sql: Statements) -> dict[str, dict[int, int]]:
    """Give for each queue how many tasks it has in each state, those that are none left out."""
    found: dict[str, dict[int, int]] = {}
    for queue, state, n in _value(connection, sql["reading.counts"]):
        found.setdefault(queue, {})[state] = n
    folded = connection.execute(sql["transaction.tail_ends"]).fetchone()[0]
    for queue, state, n in _value(connection, sql["transaction.tail"], folded):
        number = READY if state == FRESH else state
        of_queue = found.setdefault(queue, {})
        of_queue[number] = of_queue.get(number, 0) + n
    return found


def stats(sql: Statements, now: int, connection: sqlite3.Connection) -> list[QueueStats]:
    """See :meth:`~omniq.storage.Storage.stats`."""
    found = counts(connection, sql)
    paused = set(_value(connection, sql["reading.paused"]))
    result = []
    for queue in sorted({*found, *paused}):
        numbers = found.get(queue, {})
        by_state = dict.fromkeys(TaskState, 0)
        for number, n in numbers.items():
            by_state[STATE_OF[number]] += n
        oldest: int | None = None
        if numbers.get(READY):
            oldest = connection.execute(sql["reading.oldest"], {"queue": queue}).fetchone()[0]
        result.append(
            QueueStats(
                queue=queue,
                counts=by_state,
                paused=queue in paused,
                oldest_ready=None if oldest is None else max(0.0, (now - oldest) / 1e6),
            )
        )
    return result


def namespaces(connection: sqlite3.Connection) -> list[str]:
    """See :meth:`~omniq.storage.Storage.namespaces`."""
    found = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE '%.meta'")
    return [namespace_of(name.removesuffix(".meta")) for (name,) in found]


def workers(sql: Statements, now: int, connection: sqlite3.Connection) -> list[StoredWorker]:
    """See :meth:`~omniq.storage.Storage.workers`."""
    running: dict[str, list[str]] = {}
    for worker, task_id in _value(connection, sql["reading.running"]):
        running.setdefault(worker, []).append(task_id)
    return [
        StoredWorker(id=worker, seen_at=moment(seen_at), running=tuple(running.get(worker, ())), about=about)
        for worker, seen_at, about in sorted(_value(connection, sql["reading.workers"], now), key=lambda row: row[0])
    ]
