"""The conformance kit, run against the storages of this distribution."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import pytest

from omniq.limit import line_id
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.testing import StorageContract
from omniq.testing.contract import Spoil
from omniq.testing.contract.base import Deafen
from omniq.testing.contract.costs import SyncContract
from omniq.testing.contract.limits import LoseLine
from omniq.testing.contract.outages import OutageContract
from omniq_local.wake import Bell
from tests.local.files_support import SpoiledFiles
from tests.local.sqlite_support import LockedContract, SpoiledRows, Traffic, lose_line, rows_in


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
    def count_requests(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        traffic = Traffic(monkeypatch)
        return lambda: traffic.requests

    @pytest.fixture
    def count_records(self, tmp_path: Path) -> Callable[[], int]:
        return lambda: rows_in(tmp_path / "jobs.db")

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
            "limit": ("omniq.task_limit", "name", ("body",)),
        }
        return SpoiledRows(tmp_path / "jobs.db", tables)

    @pytest.fixture
    def lose_line(self, tmp_path: Path) -> LoseLine:
        return partial(lose_line, tmp_path / "jobs.db", "omniq.line")


class TestSQLiteStorageThatSyncs(SyncContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db?synchronous=full"

    @pytest.fixture
    def count_syncs(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        traffic = Traffic(monkeypatch)
        return lambda: traffic.syncs


class TestSQLiteStorageThatIsLocked(LockedContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db?busy_timeout=0.05"


class TestFileStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/jobs"

    @pytest.fixture
    def deafen(self, monkeypatch: pytest.MonkeyPatch) -> Deafen:
        return partial(silence, monkeypatch)

    @pytest.fixture
    def spoil(self, tmp_path: Path) -> Spoil:
        return SpoiledFiles(tmp_path / "jobs")

    @pytest.fixture
    def lose_line(self, tmp_path: Path) -> LoseLine:
        def lose(queue: str, key: str) -> None:
            log = tmp_path / "jobs" / "omniq" / "limits" / "log.jsonl"
            lines = log.read_bytes().splitlines(keepends=True)
            lost = f'["line", "{line_id(queue, key, None)}"'.encode()
            log.write_bytes(b"".join(line for line in lines if not line.startswith(lost)))

        return lose


class TestFileStorageThatSyncs(SyncContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"file://{tmp_path}/jobs?fsync=always"

    @pytest.fixture
    def count_syncs(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        synced: list[int] = []
        sync = os.fdatasync

        def counted(fd: int) -> None:
            sync(fd)
            synced.append(fd)

        monkeypatch.setattr(os, "fdatasync", counted)
        return lambda: len(synced)


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
