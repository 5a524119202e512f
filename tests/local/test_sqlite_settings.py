"""What the URL of an SQLite storage can say, and what is refused before anything is opened."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from omniq.errors import ConfigurationError
from omniq.plugins import default_plugins
from omniq.storage import Capability
from omniq.storage.urls import parse_url
from omniq.task import TaskState
from omniq_local.sqlite import SQLiteStorage
from omniq_local.sqlite.settings import read_settings, table_prefix
from tests.local.sqlite_support import count, opened, raw
from tests.local.support import new_task


def test_a_path_after_three_slashes_is_relative_to_the_folder_of_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings(parse_url("sqlite:///data/jobs.db"))
    monkeypatch.chdir("/")
    assert settings.path == str(tmp_path / "data" / "jobs.db")


def test_a_path_after_four_slashes_is_absolute() -> None:
    assert read_settings(parse_url("sqlite:////var/lib/jobs.db")).path == "/var/lib/jobs.db"


@pytest.mark.parametrize("name", ["with space.db", "50%.db", "ünï ☂.db", "a?b#c&d.db", '\'; drop "table".db'])
def test_any_file_name_can_be_written_with_percent_signs(tmp_path: Path, name: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in name.encode())

    async def scenario() -> None:
        store = default_plugins().open_storage(parse_url(f"sqlite:///{tmp_path}/{quoted}"))
        await store.open()
        await store.close()

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("url", ["sqlite:///", "sqlite://", "sqlite:////", "sqlite:///folder/"])
def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="names no file"):
        SQLiteStorage(parse_url(url))


def test_a_file_after_two_slashes_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigurationError, match=r"three slashes: sqlite:///data/jobs\.db"):
        SQLiteStorage(parse_url("sqlite://data/jobs.db"))


def test_a_database_in_memory_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigurationError, match="take memory://"):
        SQLiteStorage(parse_url("sqlite:///:memory:"))


@pytest.mark.parametrize(
    "query",
    ["synchronous=off", "synchronous=", "busy_timeout=soon", "busy_timeout=-1", "busy_timeout=nan", "foreign=yes"],
)
def test_an_option_with_a_value_that_cannot_be_used_is_refused(query: str) -> None:
    with pytest.raises(ConfigurationError, match=query.split("=", maxsplit=1)[0]):
        SQLiteStorage(parse_url(f"sqlite:///jobs.db?{query}"))


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown option 'timeout'.*busy_timeout, foreign, mode, synchronous"):
        SQLiteStorage(parse_url("sqlite:///jobs.db?timeout=3"))


def test_making_a_storage_touches_no_file(tmp_path: Path) -> None:
    SQLiteStorage(parse_url(f"sqlite:///{tmp_path}/jobs.db")).sibling()
    assert list(tmp_path.iterdir()) == []


def test_it_says_what_it_can_do() -> None:
    assert SQLiteStorage(parse_url("sqlite:///jobs.db")).capabilities == {
        Capability.DURABLE,
        Capability.NOTIFICATIONS,
        Capability.SHARED_BETWEEN_PROCESSES,
        Capability.TRANSACTIONS,
    }


def test_full_durability_flushes_each_commit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db", "?synchronous=full") as store:
            await store.enqueue([new_task()])
            assert store.enqueue_blocking([new_task()]) is not None
            assert await count(store, TaskState.READY) == 2
            connection = store._database._main.connection
            assert connection is not None
            assert connection.execute("PRAGMA synchronous").fetchone() == (2,)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "b"), ("shop", "Shop"), ("a", "a-b"), ("a_b", "a-b"), ("sqlite_x", "x"), ("sqlite_x", "Sqlite_x")],
)
def test_no_two_namespaces_share_a_table(one: str, other: str) -> None:
    assert table_prefix(one).lower() != table_prefix(other).lower()


def test_a_namespace_cannot_hold_what_would_end_a_name() -> None:
    with pytest.raises(ConfigurationError, match="letters, digits"):
        table_prefix('shop"; DROP TABLE users; --')


@pytest.mark.parametrize("namespace", ["sqlite_stat1", "Shop", "SHOP", "a-b", "select"])
def test_namespaces_in_one_file_are_apart(tmp_path: Path, namespace: str) -> None:
    async def scenario() -> None:
        async with (
            opened(tmp_path / "jobs.db", f"?namespace={namespace}") as store,
            opened(tmp_path / "jobs.db", "?namespace=shop") as other,
        ):
            await store.enqueue([new_task()])
            assert await other.stats() == []
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_every_table_and_index_bears_its_namespaces_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db", "?namespace=shop"):
            pass

    asyncio.run(scenario())
    with raw(tmp_path / "jobs.db") as connection:
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")
        ]
    assert names
    assert all(name.startswith("shop.") for name in names)


@pytest.mark.parametrize(("query", "mode"), [("", 0o600), ("?mode=0660", 0o660)])
def test_a_database_that_is_made_is_its_owner_s_unless_the_url_says_otherwise(
    tmp_path: Path, query: str, mode: int
) -> None:
    async def scenario() -> None:
        store = SQLiteStorage(parse_url(f"sqlite:///{tmp_path}/jobs.db{query}"))
        await store.open()
        await store.enqueue([new_task()])
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}  # noqa: ASYNC240  # nothing else runs on this loop
        await store.close()
        assert found == {"jobs.db": mode, "jobs.db-wal": mode, "jobs.db-shm": mode}

    previous = os.umask(0o027)
    try:
        asyncio.run(scenario())
    finally:
        os.umask(previous)


def test_a_database_that_is_there_keeps_its_permissions(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "jobs.db").touch(0o644)
        store = SQLiteStorage(parse_url(f"sqlite:///{tmp_path}/jobs.db"))
        await store.open()
        await store.close()

    asyncio.run(scenario())
    assert stat.S_IMODE((tmp_path / "jobs.db").stat().st_mode) == 0o644
