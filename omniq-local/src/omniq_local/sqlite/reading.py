"""Records, counts and workers: everything that is read and nothing that is written."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from omniq.errors import CorruptRecord
from omniq.storage import QueueStats, StoredWorker
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.times import from_micros
from omniq.storage.validation import UNREADABLE, check_text, check_worker, is_text
from omniq.task import StoredTask, TaskState
from omniq_local.sqlite.encoding import FRESH, READY, STATE_OF, salvaged, task_of
from omniq_local.sqlite.settings import namespace_of
from omniq_local.sqlite.statements import Statements

__all__ = ["check", "counts", "get", "make_task", "namespaces", "stats", "workers"]

_log = get_logger("omniq.sqlite")

T = TypeVar("T")


def make_task(row: Sequence[Any]) -> StoredTask:
    """Make a task of its row, or the most of it if it cannot be read."""
    try:
        return task_of(row)
    except CorruptRecord as error:
        log_once(_log, error)
        return salvaged(row, error)


def get(ids: Sequence[str], sql: Statements, connection: sqlite3.Connection) -> list[StoredTask | None]:
    """See :meth:`~omniq.storage.Storage.get`."""
    rows = (connection.execute(sql["reading.by_id"], (task_id,)).fetchone() for task_id in ids)
    return [None if row is None else make_task(row) for row in rows]


def _value(connection: sqlite3.Connection, statement: str, *parameters: Any) -> Any:
    return json.loads(connection.execute(statement, parameters).fetchone()[0])


def counts(connection: sqlite3.Connection, sql: Statements) -> dict[str, dict[int, int]]:
    """Return for each queue how many tasks it has in each state, those that are none left out."""
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
    for queue in sorted(_readable(_names({*found, *paused}))):
        numbers = found.get(queue, {})
        by_state = dict.fromkeys(TaskState, 0)
        for number, n in numbers.items():
            if number in STATE_OF:
                by_state[STATE_OF[number]] += max(0, n)
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
    return sorted(_readable(_workers(sql, now, connection)), key=lambda worker: worker.id)


def _workers(sql: Statements, now: int, connection: sqlite3.Connection) -> Iterator[StoredWorker | CorruptRecord]:
    running: dict[str, list[str]] = {}
    for worker, task_id in _value(connection, sql["reading.running"]):
        if is_text(task_id):
            running.setdefault(worker, []).append(task_id)
    for name, seen_at, about in _value(connection, sql["reading.workers"], now):
        try:
            tasks = tuple(running.get(name, ()))
            yield check_worker(StoredWorker(id=name, seen_at=from_micros(seen_at), running=tasks, about=about))
        except UNREADABLE as error:
            yield corrupt("worker", name, error)


def _names(queues: Iterable[str]) -> Iterator[str | CorruptRecord]:
    for queue in queues:
        try:
            yield check_text(queue, "name")
        except ValueError as error:
            yield corrupt("queue", queue, error)


def _readable(found: Iterable[T | CorruptRecord]) -> list[T]:
    """Return what can be read, and log what cannot."""
    readable = []
    for one in found:
        if isinstance(one, CorruptRecord):
            log_once(_log, one)
        else:
            readable.append(one)
    return readable


def check(sql: Statements, now: int, connection: sqlite3.Connection) -> list[CorruptRecord]:
    """Return what is wrong with workers and the names of queues, see :meth:`~omniq.storage.Storage.check`."""
    found = counts(connection, sql)
    numbers = [
        corrupt("queue", queue, f"{n} tasks in state {number}")
        for queue, of_queue in found.items()
        for number, n in of_queue.items()
        if number not in STATE_OF or n < 0
    ]
    queues = {*found, *_value(connection, sql["reading.paused"])}
    others = [*_workers(sql, now, connection), *_names(queues)]
    return [*numbers, *(one for one in others if isinstance(one, CorruptRecord))]
