"""The schema's migrations: applied once each, by one of any number who try, and never by who is older than they are."""

from __future__ import annotations

from typing import NamedTuple

from psycopg import errors

from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq.storage.migrations import Migration
from omniq_postgres.connecting import AsyncConnection, cut_at
from omniq_postgres.errors import text_of
from omniq_postgres.settings import Settings
from omniq_postgres.statements import fill, migration_files

__all__ = ["ensure", "migrate", "migrations"]

LOCK_TIMEOUT = "5s"
"""A step that must wait longer for a table gives up rather than hold up those that come after it."""


class _State(NamedTuple):
    """What a store has."""

    has_schema: bool
    version: int
    """The last step; 0: none."""


async def _state(connection: AsyncConnection, settings: Settings) -> _State:
    """Find out what a store has.

    :raises SchemaMismatch: if that is more than this version knows.
    """
    names = settings.names
    # Not to_regclass, which within a transaction may remember that there was none.
    cursor = await connection.execute(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = $2) "
        "FROM pg_namespace AS n WHERE nspname = $1",
        [names.schema, names.plain("migration")],
        prepare=False,
    )
    row = await cursor.fetchone()
    if row is None or not row[0]:
        return _State(row is not None, 0)
    table = names.relation("migration")
    cursor = await connection.execute(f"SELECT coalesce(max(version), 0) FROM {table}".encode(), prepare=False)
    row = await cursor.fetchone()
    version = int(row[0]) if row else 0
    if version > _latest():
        raise SchemaMismatch(
            f"{settings.shown}: the database {connection.info.dbname!r} has schema {version}, written by a newer "
            f"version of OmniQ; this one knows schemas up to {_latest()}: upgrade omniq-postgres here"
        )
    return _State(True, version)


def _latest() -> int:
    return max(migration_files())


def _all(settings: Settings, state: _State) -> list[Migration]:
    names = settings.names
    table = names.relation("migration")
    steps = []
    for number, (title, sql) in migration_files().items():
        script = fill(sql, names)
        if number == 1:
            script = (
                f"CREATE TABLE IF NOT EXISTS {table} (version integer PRIMARY KEY, name text NOT NULL, "
                f"applied_at timestamptz NOT NULL DEFAULT now());\n\n{script}"
            )
            if not state.has_schema:
                script = f"CREATE SCHEMA IF NOT EXISTS {names.of_all()['schema']};\n\n{script}"
        quoted = title.replace("'", "''")
        script += f"\n\nINSERT INTO {table} (version, name) VALUES ({number}, '{quoted}');"
        steps.append(Migration(version=number, name=title, sql=script, applied=number <= state.version))
    return steps


async def migrations(connection: AsyncConnection, settings: Settings) -> list[Migration]:
    """Return all steps, and which of them the store has."""
    return _all(settings, await _state(connection, settings))


async def migrate(connection: AsyncConnection, settings: Settings) -> list[Migration]:
    """Apply what is missing, in one transaction.

    :return: what this call applied.
    :raises SchemaMismatch: if the store was migrated by a newer version.
    :raises StorageUnavailable: if the role may not, or another transaction holds what must be changed.
    :raises psycopg.Error: if it fails otherwise.
    """
    names = settings.names
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('statement_timeout', '0', true)", prepare=False)
            # One at a time in a schema: of two namespaces that are made at once, one makes the schema.
            await connection.execute("SELECT pg_advisory_xact_lock($1)", [names.lock], prepare=False)
            await connection.execute("SELECT set_config('lock_timeout', $1, true)", [LOCK_TIMEOUT], prepare=False)
            missing = [step for step in _all(settings, await _state(connection, settings)) if not step.applied]
            for step in missing:
                await connection.execute(step.sql.encode(), prepare=False)
    except errors.InsufficientPrivilege as error:
        raise StorageUnavailable(
            f"{settings.shown}: the role may not create or change the tables ({text_of(error)}); have an owner of the "
            "schema run: omniq migrate URL"
        ) from error
    except errors.LockNotAvailable as error:
        raise StorageUnavailable(
            f"{settings.shown} cannot be migrated now: a transaction holds a table for longer than {LOCK_TIMEOUT}"
        ) from error
    return missing


async def ensure(connection: AsyncConnection, settings: Settings, deadline: float) -> None:
    """See to it that the store has what this version needs.

    :param deadline: until when to find out what it has, by the loop's clock. Steps that are missing take their time.
    :raises psycopg.Error: if the server fails, or is silent until the deadline.
    :raises SchemaMismatch: if it has not and may not be changed, or is newer.
    :raises StorageUnavailable: if it should be changed but cannot.
    """
    with cut_at(deadline, connection):
        _, version = await _state(connection, settings)
    database = connection.info.dbname
    if version == _latest():
        return
    if settings.migrate:
        await migrate(connection, settings)
    elif version == 0:
        raise SchemaMismatch(
            f"{settings.shown}: the database {database!r} has no tables of OmniQ yet; run: omniq migrate URL"
        )
    else:
        raise SchemaMismatch(
            f"{settings.shown}: the database {database!r} has schema {version}, this version needs {_latest()}; "
            "run: omniq migrate URL"
        )
