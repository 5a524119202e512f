"""What ``omniq doctor`` finds on a server that is not as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import psycopg
import pytest

from omniq.storage import Finding, Severity
from omniq.storage.ids import new_id
from omniq.testing import await_until
from omniq_postgres import doctor
from tests.postgres.support import opened, table_of
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Yield a server whose settings are those that PostgreSQL comes with."""
    with PostgresServer(tmp_path_factory.mktemp("durable"), {"max_connections": "30"}) as running:
        yield running


@pytest.fixture
def url(durable: PostgresServer) -> str:
    return f"{durable.url}?namespace=t{new_id()[-8:]}"


async def findings(url: str) -> dict[str, Finding]:
    async with opened(url) as store:
        return {finding.subject: finding for finding in await store.diagnose()}


async def test_a_sound_store_is_told_to_be_sound(url: str) -> None:
    found = await findings(url)
    assert {finding.severity for finding in found.values()} == {Severity.OK}, found
    assert "PostgreSQL" in found["version"].message
    assert set(found) == {
        "version",
        "durability",
        "schema",
        "indexes",
        "autovacuum",
        "dead rows",
        "oldest transaction",
        "notifications",
        "connections",
        "clock",
    }


@asynccontextmanager
async def setting(server: PostgresServer, name: str, value: str) -> AsyncIterator[None]:
    server.execute(f"ALTER SYSTEM SET {name} = {value}")
    server.execute("SELECT pg_reload_conf()")
    try:
        await asyncio.sleep(0.2)  # nothing tells when it has read them
        yield
    finally:
        server.execute(f"ALTER SYSTEM RESET {name}")
        server.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("name", "subject", "severity", "words"),
    [
        ("synchronous_commit", "durability", Severity.WARNING, "synchronous_commit is off"),
        ("fsync", "durability", Severity.WARNING, "fsync is off"),
        ("autovacuum", "autovacuum", Severity.ERROR, "autovacuum is off"),
    ],
)
async def test_a_setting_that_costs_tasks_or_speed_is_named(
    durable: PostgresServer, url: str, name: str, subject: str, severity: Severity, words: str
) -> None:
    async with setting(durable, name, "off"):
        found = await findings(url)
    assert found[subject].severity is severity
    assert words in found[subject].message


async def test_an_index_that_is_missing_is_named(durable: PostgresServer, url: str) -> None:
    await findings(url)
    durable.execute(f"DROP INDEX {table_of(url, 'ready')}")
    found = (await findings(url))["indexes"]
    assert found.severity is Severity.ERROR
    assert "_ready" in found.message


async def test_autovacuum_switched_off_for_a_table_is_named(durable: PostgresServer, url: str) -> None:
    await findings(url)
    durable.execute(f"ALTER TABLE {table_of(url, 'live')} SET (autovacuum_enabled = false)")
    found = (await findings(url))["autovacuum"]
    assert found.severity is Severity.ERROR
    assert "_live" in found.message


async def test_who_holds_back_vacuum_is_named(
    durable: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LONG", 0.0)
    with psycopg.connect(durable.url, application_name="report") as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM pg_class")
        found = (await findings(url))["oldest transaction"]
        assert found.severity is Severity.WARNING
        assert str(connection.info.backend_pid) in found.message
        assert "report" in found.message


async def test_dead_rows_are_named(durable: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEAD", 100)
    await findings(url)
    paused = table_of(url, "paused")
    durable.execute(f"ALTER TABLE {paused} SET (autovacuum_vacuum_threshold = 1000000)")
    durable.execute(f"INSERT INTO {paused} SELECT n::text FROM generate_series(1, 500) AS n")
    durable.execute(f"DELETE FROM {paused}")

    async def named() -> bool:
        return "_paused holds 500 dead rows" in (await findings(url))["dead rows"].message

    # The server counts them after a moment.
    await await_until(named, 60, "the dead rows to be counted")
    assert (await findings(url))["dead rows"].severity is Severity.WARNING


async def test_few_free_connections_are_named(durable: PostgresServer, url: str) -> None:
    others = [psycopg.connect(durable.url) for _ in range(22)]
    try:
        found = (await findings(url))["connections"]
    finally:
        for other in others:
            other.close()
    assert found.severity is Severity.WARNING
    assert "of 27 are in use" in found.message


async def test_a_clock_that_is_off_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # only ever called with UTC
            return datetime.now(tz) - timedelta(hours=1)  # type: ignore[arg-type]  # the same

    monkeypatch.setattr(doctor, "datetime", Late)
    found = (await findings(url))["clock"]
    assert found.severity is Severity.WARNING
    assert "60 minutes" in found.message


async def test_a_standby_is_an_error(durable: PostgresServer, url: str) -> None:
    await findings(url)
    async with setting(durable, "default_transaction_read_only", "on"), opened(f"{url}&migrate=off") as store:
        found = {finding.subject: finding for finding in await store.diagnose()}
    assert found["writable"].severity is Severity.ERROR
