"""What the tests of the SQLite storage share."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from omniq.limit import line_id
from omniq.storage import QueueStats, TaskQuery
from omniq.storage.urls import parse_url
from omniq.task import StoredTask, TaskState
from omniq.testing.contract.outages import OutageContract
from omniq.testing.contract.spoiling import Value
from omniq_local.sqlite import SQLiteStorage
from tests.fork_server import Popen


def storage(path: Path, query: str = "", clock: Callable[[], float] = time.time) -> SQLiteStorage:
    """Return an unopened storage on a file."""
    return SQLiteStorage(parse_url(f"sqlite:///{path}{query}"), clock=clock)


@asynccontextmanager
async def opened(path: Path, query: str = "", clock: Callable[[], float] = time.time) -> AsyncIterator[SQLiteStorage]:
    """Yield an open storage on a file, and close it afterwards."""
    store = storage(path, query, clock)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


class Traffic:
    """Counts what the connections do that are opened from now on.

    :param monkeypatch: undoes it at the end of the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests = 0
        """Transactions, and statements outside of one."""
        self.syncs = 0
        """Commits that wait until what was written is on the disk."""
        self._unsynced: set[int] = set()
        connect = sqlite3.connect

        def traced(*place: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*place, **options)
            connection.set_trace_callback(partial(self._note, connection))
            return connection

        monkeypatch.setattr(sqlite3, "connect", traced)

    def _note(self, connection: sqlite3.Connection, statement: str) -> None:
        word, *rest = statement.replace("=", " ").replace(";", " ").lower().split()[:3]
        if word == "pragma":
            if rest[0] == "synchronous" and rest[1:] not in (["full"], ["2"]):
                self._unsynced.add(id(connection))
        elif word == "commit":
            self.syncs += id(connection) not in self._unsynced
        elif word != "rollback" and not connection.in_transaction:
            self.requests += 1


def rows_in(path: Path) -> int:
    """Return how many rows a file holds in all of its tables."""
    with raw(path) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in tables)


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """Yield a plain connection to a file, each of whose statements is a transaction."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        yield connection
    finally:
        connection.close()


async def take(
    store: SQLiteStorage, *queues: str, n: int = 1000, lease: float = 300.0, worker: str = "w"
) -> list[StoredTask]:
    """Claim tasks."""
    return await store.claim(dict.fromkeys(queues or ("q",), n), worker=worker, lease=lease)


async def only(store: SQLiteStorage, task_id: str) -> StoredTask:
    """Return the record of a task that is there."""
    (task,) = await store.get([task_id])
    assert task is not None
    return task


async def of_queue(store: SQLiteStorage, queue: str = "q") -> QueueStats:
    """Return the numbers of a queue that has some."""
    (found,) = [stats for stats in await store.stats() if stats.queue == queue]
    return found


async def count(store: SQLiteStorage, state: TaskState, queue: str = "q") -> int:
    """Return how many tasks of a queue are in a state, and make sure that the counters say the same as the tasks."""
    pages = await store.list_tasks(TaskQuery(queue=queue, states=[state], limit=100_000))
    stats = [found for found in await store.stats() if found.queue == queue]
    counted = stats[0].counts[state] if stats else 0
    assert counted == len(pages.tasks)
    return counted


@contextmanager
def python(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program beside the test; its input and output are pipes. What still runs in the end is killed."""
    with Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def output_of(process: subprocess.Popen[str], timeout: float = 60.0) -> str:
    """Return what a program printed; it must have ended well, and have complained of nothing."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    assert err == ""
    return out


def run_python(program: str, *arguments: object) -> str:
    """Run a Python program to its end, and give what it printed."""
    with python(program, *arguments) as process:
        return output_of(process)


def lose_line(path: Path, table: str, queue: str, key: str) -> None:
    """Remove the line of a queue and a key from an SQLite file."""
    with raw(path) as connection:
        deleted = connection.execute(f'DELETE FROM "{table}" WHERE id = ?', (line_id(queue, key, None),))
        assert deleted.rowcount == 1


class LockedContract(OutageContract):
    """Another connection holds the lock that a writer of an SQLite file needs."""

    @pytest.fixture
    def lock(self, tmp_path: Path) -> Iterator[sqlite3.Connection]:
        with raw(tmp_path / "jobs.db") as connection:
            yield connection

    @pytest.fixture
    def break_store(self, lock: sqlite3.Connection) -> Callable[[], None]:
        def take() -> None:
            lock.execute("BEGIN IMMEDIATE")

        return take

    @pytest.fixture
    def mend_store(self, lock: sqlite3.Connection) -> Callable[[], None]:
        return lock.rollback


class SpoiledRows:
    """Reads and writes the columns of single rows in an SQLite file, see :class:`omniq.testing.contract.Spoil`.

    :param path: the file.
    :param tables: for each kind the table, the column that has the name, and the columns that are read; None: all.
    """

    def __init__(self, path: Path, tables: Mapping[str, tuple[str, str, tuple[str, ...] | None]]) -> None:
        self.path = path
        self.tables = tables

    def read(self, kind: str, name: str) -> dict[str, Value]:
        if kind not in self.tables:
            return {}
        table, key, columns = self.tables[kind]
        with raw(self.path) as connection:
            connection.row_factory = sqlite3.Row
            row = connection.execute(f'SELECT * FROM "{table}" WHERE {key} = ?', (name,)).fetchone()
        there = [] if row is None else [one for one in row.keys() if one != "seq"]  # noqa: SIM118  # not of a dict
        return {one: row[one] for one in there if columns is None or one in columns}

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        table, key, _ = self.tables[kind]
        parameter = "?"
        if isinstance(value, str):  # also what is no UTF-8
            parameter, value = "CAST(? AS TEXT)", value.encode(errors="surrogateescape")
        try:
            with raw(self.path) as connection:
                sql = f'UPDATE "{table}" SET {place} = {parameter} WHERE {key} = ?'
                return connection.execute(sql, (value, name)).rowcount > 0
        except (sqlite3.IntegrityError, OverflowError):
            return False  # the types of the table do not take it
