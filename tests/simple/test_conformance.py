"""The conformance kit, run against the stores of the documentation, which are made of the core's parts."""

from __future__ import annotations

import contextlib
import importlib
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from omniq.limit import line_id
from omniq.storage import Storage
from omniq.storage.pairs.keys import key
from omniq.testing import StorageContract, deviates
from omniq.testing.contract import Spoil
from omniq.testing.contract.limits import LoseLine
from omniq.testing.contract.spoiling import Value
from omniq.testing.contract.steps import new_task
from tests.local.sqlite_support import LockedContract, SpoiledRows, Traffic, lose_line, rows_in


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

    @pytest.fixture
    def spoil(self, tmp_path: Path) -> Spoil:
        tables = {
            "task": ("omniq_task", "id", None),
            "result": ("omniq_task", "id", ("result_payload",)),
            "schedule": ("omniq_schedule", "id", None),
            "worker": ("omniq_worker", "id", None),
            "queue": ("omniq_task_count", "queue", None),
            "pause": ("omniq_paused", "queue", None),
            "unique": ("omniq_task", "unique_key", ("unique_key", "live_key")),
            "limit": ("omniq_task_limit", "name", ("body",)),
        }
        return SpoiledRows(tmp_path / "jobs.db", tables)

    @pytest.fixture
    def lose_line(self, tmp_path: Path) -> LoseLine:
        return partial(lose_line, tmp_path / "jobs.db", "omniq_line")


class TestSqlTxThatIsLocked(LockedContract):
    @pytest.fixture
    def storage_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda path, **options: connect(path, **{**options, "timeout": 0}))
        monkeypatch.setattr(importlib.import_module("omniq_mystore.storage").MyStorage, "timeout", 0.1)
        return f"mystore://{tmp_path}/jobs.db"


class TestPairsTx(StorageContract):
    """The store in docs/examples/omniq-lmdb."""

    @pytest.fixture
    def storage_url(self, tmp_path: Path) -> str:
        return f"lmdb://{tmp_path}/jobs"

    @pytest.fixture
    def spoil(self, tmp_path: Path) -> Spoil:
        return SpoiledPairs(f"{tmp_path}/jobs.omniq")

    @pytest.fixture
    def lose_line(self, tmp_path: Path) -> LoseLine:
        def lose(queue: str, key_: str) -> None:
            with SpoiledPairs(f"{tmp_path}/jobs.omniq").begin(write=True) as txn:
                assert txn.delete(key("I", line_id(queue, key_, None)))

        return lose


class SpoiledPairs:
    """Reads and writes the values of single keys, and the entries that lead to a task."""

    def __init__(self, path: str) -> None:
        self.path = path

    @contextlib.contextmanager
    def begin(self, *, write: bool) -> Iterator[Any]:
        storage = importlib.import_module("omniq_lmdb.storage")
        with storage._open[self.path][0].begin(write=write) as txn:
            yield txn

    def read(self, kind: str, name: str) -> dict[str, Value]:
        with self.begin(write=False) as txn:
            own = [key(one, name) for one in KEYS.get(kind, "")]
            entries = []
            if kind in ("task", "schedule"):
                entries = [where for where, value in txn.cursor() if value == name.encode()]
            elif kind == "queue":
                entries = [where for where, _ in txn.cursor() if where.startswith(key("n", name))]
            # By what the key begins with, as the rest is another one for each record.
            return {where[:1].decode(): txn.get(where) for where in [*own, *entries] if txn.get(where) is not None}

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        if not isinstance(value, bytes):
            return False
        with self.begin(write=True) as txn:
            where = key(place, name)
            if txn.get(where) is None:
                here = [
                    one
                    for one, stored in txn.cursor()
                    if one.startswith(key(place, name))
                    or (one[:2] == place.encode() + b"\0" and stored == name.encode())
                ]
                if not here:
                    return False
                where = here[0]
            return bool(txn.put(where, value))


KEYS = {"task": "fcxo", "result": "x", "schedule": "S", "worker": "wW", "pause": "P", "unique": "u", "limit": "L"}
"""The kinds of keys that hold what belongs to a record."""


class TestSqlTxWithRowLocks(StorageContract):
    """The same primitives where several write at once."""

    @pytest.fixture
    def storage_url(self, postgres_url: str) -> str:
        return postgres_url


class TestMySql(StorageContract):
    """The store in docs/examples/omniq-mysql."""

    @pytest.fixture
    def storage_url(self, shared_mysql_url: str) -> str:
        return shared_mysql_url

    @deviates("a queue's name has at most 250 characters here, as the database indexes no text of any length")
    @pytest.mark.parametrize("length", [300, 3000])
    async def test_long_texts_are_kept_in_every_place(self, store: Storage, length: int) -> None:
        with pytest.raises(ValueError, match="cannot hold this"):
            await store.enqueue([new_task(), new_task(queue="q" * length)])
        assert await store.stats() == []
