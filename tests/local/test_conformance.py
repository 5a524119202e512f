"""The conformance kit, run against the storages of this distribution."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import pytest

from omniq.ids import new_id
from omniq.storage import Storage
from omniq.testing import StorageContract
from omniq.testing.contract import Spoil
from omniq.testing.contract.base import Deafen
from omniq.testing.contract.outages import OutageContract
from omniq_local.wake import Bell
from tests.local.sqlite_support import SpoiledRows, raw


async def silence(monkeypatch: pytest.MonkeyPatch, store: Storage) -> None:
    """Have nobody told of anything."""
    monkeypatch.setattr(Bell, "ring", lambda self, pokes: None)


class TestMemoryStorage(StorageContract):
    @pytest.fixture
    def storage_url(self) -> str:
        return f"memory://{new_id()}"


class TestSQLiteStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db"

    @pytest.fixture
    def deafen(self, monkeypatch: pytest.MonkeyPatch) -> Deafen:
        return partial(silence, monkeypatch)

    @pytest.fixture
    def count_records(self, tmp_path: Path) -> Callable[[], int]:
        def count() -> int:
            with raw(tmp_path / "jobs.db") as connection:
                tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                return sum(connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in tables)

        return count

    @pytest.fixture
    def spoil(self, tmp_path: Path) -> Spoil:
        tables = {
            "task": ("omniq.task", "id", None),
            "result": ("omniq.task", "id", ("result",)),
            "schedule": ("omniq.schedule", "id", None),
            "worker": ("omniq.worker", "id", None),
            "queue": ("omniq.counter", "queue", None),
            "pause": ("omniq.paused", "queue", None),
            "unique": ("omniq.task", "unique_key", ("unique_key",)),
        }
        return SpoiledRows(tmp_path / "jobs.db", tables)


class TestSQLiteStorageThatIsLocked(OutageContract):
    """Another connection holds the lock that a writer needs."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db?busy_timeout=0.05"

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


class TestFileStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/jobs"

    @pytest.fixture
    def deafen(self, monkeypatch: pytest.MonkeyPatch) -> Deafen:
        return partial(silence, monkeypatch)


class TestFileStorageThatIsLocked(OutageContract):
    """Another process holds the folder's lock."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/jobs?lock_timeout=0.05"

    @pytest.fixture
    def lock(self, tmp_path: Path) -> Iterator[list[IO[bytes]]]:
        held: list[IO[bytes]] = []
        yield held
        for file in held:
            file.close()

    @pytest.fixture
    def break_store(self, lock: list[IO[bytes]], tmp_path: Path) -> Callable[[], None]:
        def take() -> None:
            lock.append((tmp_path / "jobs" / "omniq" / "lock").open("rb+"))
            fcntl.flock(lock[-1], fcntl.LOCK_EX)

        return take

    @pytest.fixture
    def mend_store(self, lock: list[IO[bytes]]) -> Callable[[], None]:
        return lambda: lock.pop().close()
