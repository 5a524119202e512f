"""The schema: made once by one of many, shown before, refused where it is newer, and kept apart from others."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import psycopg
import pytest

from omniq.cli import main
from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq.storage import TaskQuery
from omniq.storage.ids import new_id
from omniq.task import TaskState
from omniq_postgres import connecting, migrating
from omniq_postgres.statements import migration_files
from tests.fork_server import Popen
from tests.postgres.support import (
    connection_of,
    counts,
    done,
    new_task,
    opened,
    settings_of,
    storage,
    table_of,
    take,
)
from tests.servers.postgres import PostgresServer

PROCESSES = 6

OPEN = """
import asyncio, sys
from omniq.storage.urls import parse_url
from omniq_postgres.storage import PostgresStorage

async def main():
    store = PostgresStorage(parse_url(sys.argv[1]))
    await store.open()
    await store.close()

asyncio.run(main())
"""


@pytest.fixture
def role(server: PostgresServer) -> Iterator[str]:
    """Yield a role that may do nothing but log in."""
    name = f"role_{new_id()[-8:]}"
    server.execute(f'CREATE ROLE "{name}" LOGIN')
    yield name
    server.execute(f'DROP OWNED BY "{name}"')
    server.execute(f'DROP ROLE "{name}"')


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@")


def test_many_processes_make_the_schema_once(storage_url: str) -> None:
    url = f"{storage_url}&schema=s{new_id()[-8:]}"
    children = [Popen([sys.executable, "-c", OPEN, url]) for _ in range(PROCESSES)]
    assert [child.wait(60) for child in children] == [0] * PROCESSES
    with psycopg.connect(settings_of(url).dsn) as connection:
        statement = f"SELECT version FROM {table_of(url, 'migration')} ORDER BY version"
        rows = connection.execute(statement.encode()).fetchall()
    assert [row[0] for row in rows] == list(migration_files())


async def test_steps_are_counted_without_gaps_and_say_what_they_bring(storage_url: str) -> None:
    steps = await storage(storage_url).migrations()
    assert [step.version for step in steps] == list(range(1, len(steps) + 1))
    assert all(step.name and step.sql and not step.applied for step in steps)
    assert not any("{" in step.sql for step in steps)


async def test_migrating_applies_what_is_missing_and_then_nothing(storage_url: str) -> None:
    store = storage(storage_url)
    assert [step.version for step in await store.migrate()] == list(migration_files())
    assert await store.migrate() == []
    assert all(step.applied for step in await store.migrations())


async def test_a_store_that_may_not_migrate_asks_for_it(storage_url: str) -> None:
    store = storage(storage_url, migrate="off")
    with pytest.raises(SchemaMismatch, match="omniq migrate"):
        await store.open()
    await storage(storage_url).migrate()
    await store.open()
    await store.close()


async def test_a_newer_schema_is_refused(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.enqueue([new_task()])
    server.execute(f"INSERT INTO {table_of(storage_url, 'migration')} (version, name) VALUES (99, 'of the future')")
    for attempt in (storage(storage_url).open, storage(storage_url).migrate, storage(storage_url).migrations):
        with pytest.raises(SchemaMismatch, match="newer version"):
            await attempt()
    assert server.execute(f"SELECT count(*) FROM {table_of(storage_url, 'live')}") == [(1,)]


async def test_a_role_without_rights_on_the_schema_runs_workers(
    server: PostgresServer, storage_url: str, role: str
) -> None:
    await storage(storage_url).migrate()
    server.execute(f'GRANT USAGE ON SCHEMA omniq TO "{role}"')
    prefix = settings_of(storage_url).names.namespace
    for (name,) in server.execute("SELECT tablename FROM pg_tables WHERE tablename LIKE %s", f"{prefix}%"):
        server.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON omniq."{name}" TO "{role}"')
    server.execute(f'GRANT USAGE ON SEQUENCE omniq."{prefix}_order" TO "{role}"')
    async with opened(as_role(storage_url, role)) as store:
        await store.enqueue([new_task(unique="key"), new_task()])
        assert await store.finish([done(task) for task in await take(store, 9)]) == [True, True]
        await store.heartbeat("w", [], 60)
        await store.recover(10)
        await store.prune(10)
        await store.pause("q")
        assert await counts(store) == {TaskState.SUCCEEDED: 2}
        assert await store.diagnose()


async def test_a_role_that_may_not_make_the_schema_is_told_so(storage_url: str, role: str) -> None:
    url = as_role(storage_url, role) + f"&schema=s{new_id()[-8:]}"
    for attempt in (storage(url).open, storage(url).migrate):
        with pytest.raises(StorageUnavailable, match="omniq migrate"):
            await attempt()


async def test_a_schema_that_is_there_needs_no_right_to_make_one(
    server: PostgresServer, storage_url: str, role: str
) -> None:
    schema = f"s{new_id()[-8:]}"
    server.execute(f'CREATE SCHEMA {schema} AUTHORIZATION "{role}"')
    async with opened(as_role(storage_url, role), schema=schema) as store:
        assert (await store.enqueue([new_task()]))[0].created


async def test_schemas_and_namespaces_are_apart(storage_url: str) -> None:
    names = [f"s{new_id()[-8:]}" for _ in range(2)]
    task = new_task(unique="key")
    for schema in names:
        for namespace in ("a", "A-b", "select"):
            url = storage_url.partition("?")[0] + f"?namespace={namespace}"
            async with opened(url, schema=schema) as store:
                assert (await store.enqueue([task]))[0].created
                assert await counts(store) == {TaskState.READY: 1}


async def test_a_migration_that_fails_leaves_nothing_behind(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {**migration_files(), 2: ("breaks", "CREATE TABLE {schema}.more (n int); SELECT 1 / 0;")}
    monkeypatch.setattr(migrating, "migration_files", lambda: steps)
    with pytest.raises(ValueError, match="division by zero"):
        await storage(storage_url).migrate()
    monkeypatch.undo()
    assert not any(step.applied for step in await storage(storage_url).migrations())


async def test_a_process_that_stands_still_while_it_migrates_does_not_keep_the_others_waiting(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "IDLE_IN_TRANSACTION", 300)
    async with connection_of(storage_url) as connection:
        script = (await storage(storage_url).migrations())[0].sql
        await connection.execute("BEGIN")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", [settings_of(storage_url).names.lock])
        await connection.execute(script.encode(), prepare=False)
        async with asyncio.timeout(30), opened(storage_url) as store:
            assert (await store.enqueue([new_task()]))[0].created
        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            await connection.execute("COMMIT")


async def test_a_step_is_added_while_workers_work(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of before go on: what they have prepared is prepared anew."""
    async with opened(storage_url) as store:
        await store.enqueue([new_task() for _ in range(10)])
        claimed = await take(store, 5)
        added = "ALTER TABLE {task} ADD COLUMN note text; ALTER TABLE {live} ADD COLUMN note text;"
        steps = {**migration_files(), 2: ("a note", added)}
        monkeypatch.setattr(migrating, "migration_files", lambda: steps)
        assert [step.version for step in await storage(storage_url).migrate()] == [2]
        assert await store.finish([done(task) for task in claimed]) == [True] * 5
        await store.enqueue([new_task()])
        assert len(await take(store, 10)) == 6
        assert len((await store.list_tasks(TaskQuery())).tasks) == 11


def test_the_command_shows_and_applies(storage_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", storage_url, "--sql"]) == 0
    script = capsys.readouterr().out
    assert main(["migrate", storage_url, "--dry-run"]) == 0
    assert "1 step missing" in capsys.readouterr().out
    # What it prints does what it would do itself.
    with psycopg.connect(settings_of(storage_url).dsn, autocommit=True) as connection:
        connection.execute(script.encode())
    assert main(["migrate", storage_url]) == 0
    assert "no steps applied" in capsys.readouterr().out

    async def use() -> None:
        async with opened(storage_url, migrate="off") as store:
            assert (await store.enqueue([new_task()]))[0].created

    asyncio.run(use())
