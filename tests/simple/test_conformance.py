"""The conformance kit, run against the stores of the documentation, which are made of the core's parts."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from omniq.storage import Storage
from omniq.testing import StorageContract, deviates
from omniq.testing.contract.outages import OutageContract
from omniq.testing.contract.steps import new_task
from tests.local.sqlite_support import Traffic, rows_in


class TestSqlTx(StorageContract):
    """The store of the page on storage plugins."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"mystore://{tmp_path}/jobs.db"

    @pytest.fixture
    def traffic(self, monkeypatch: pytest.MonkeyPatch) -> Traffic:
        return Traffic(monkeypatch)

    @pytest.fixture
    def count_requests(self, traffic: Traffic) -> Callable[[], int]:
        return lambda: traffic.requests

    @pytest.fixture
    def count_syncs(self, traffic: Traffic) -> Callable[[], int]:
        return lambda: traffic.syncs

    @pytest.fixture
    def count_records(self, tmp_path: Path) -> Callable[[], int]:
        return lambda: rows_in(tmp_path / "jobs.db")


class TestSqlTxThatIsLocked(OutageContract):
    """The same store, and another connection that holds its only lock."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0}))
        monkeypatch.setattr(importlib.import_module("omniq_mystore.storage").MyStorage, "timeout", 0.1)
        return f"mystore://{tmp_path}/jobs.db"

    @pytest.fixture
    def lock(self, tmp_path: Path) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(
            sqlite3.connect(tmp_path / "jobs.db", isolation_level=None, check_same_thread=False)
        ) as connection:
            yield connection

    @pytest.fixture
    def break_store(self, lock: sqlite3.Connection) -> Callable[[], None]:
        def take() -> None:
            lock.execute("BEGIN IMMEDIATE")

        return take

    @pytest.fixture
    def mend_store(self, lock: sqlite3.Connection) -> Callable[[], None]:
        return lock.rollback


class TestPairsTx(StorageContract):
    """The store in docs/examples/omniq-lmdb."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"lmdb://{tmp_path}/jobs"


class TestSqlTxWithRowLocks(StorageContract):
    """The same primitives where several write at once."""

    @pytest.fixture
    def storage_url(self, postgres_url: str) -> str:
        return postgres_url


class TestMySql(StorageContract):
    """The store in docs/examples/omniq-mysql."""

    @pytest.fixture
    def storage_url(self, mysql_url: str) -> str:
        return mysql_url

    @deviates("a queue's name has at most 250 characters here, as the database indexes no text of any length")
    @pytest.mark.parametrize("length", [300, 3000])
    async def test_long_texts_are_kept_in_every_place(self, store: Storage, length: int) -> None:
        with pytest.raises(ValueError, match="cannot hold this"):
            await store.enqueue([new_task(), new_task(queue="q" * length)])
        assert await store.stats() == []
