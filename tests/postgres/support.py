"""What the tests of the PostgreSQL storage share."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row

from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, StoredTask, Succeeded, TaskState
from omniq.testing.contract.spoiling import Value
from omniq_postgres.connecting import AsyncConnection, Connector, discard
from omniq_postgres.operations import Context, Job, News, Query, Rows
from omniq_postgres.settings import Settings, read_settings
from omniq_postgres.statements import Statements
from omniq_postgres.storage import PostgresStorage
from tests.django_support import connection_to
from tests.servers.postgres import PostgresServer

__all__ = [
    "Explained",
    "Namespaces",
    "SpoiledRows",
    "connection_of",
    "counts",
    "django_connection",
    "done",
    "engine_of",
    "explained",
    "never_look",
    "new_namespace",
    "new_task",
    "opened",
    "settings_of",
    "storage",
    "table_of",
    "take",
]


def new_namespace() -> str:
    """Return the name of a namespace that is not there yet."""
    return f"t{new_id().replace('-', '')[-20:]}"


class Namespaces:
    """Namespaces that are emptied after a test for the next one: to make their tables costs more than most tests do."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._free: list[str] = []
        self._connection = self._connect()

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._server.url, autocommit=True)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    @contextmanager
    def url(self) -> Iterator[str]:
        """Yield the URL of a store whose tables are empty, or not there yet."""
        name = self._free.pop() if self._free else new_namespace()
        yield f"{self._server.url}?namespace={name}"
        # What a process that was killed had sent is not to arrive in the next test.
        self._execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        tables = self._execute(
            "SELECT c.oid::regclass::text, relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = relnamespace "
            "WHERE nspname = 'omniq' AND relkind = 'r' AND starts_with(relname, %s) AND pg_relation_size(c.oid) > 0",
            name,
        )
        filled = [table for table, plain in tables if not plain.endswith(("_migration", "_revision"))]
        if filled:
            self._execute("TRUNCATE " + ", ".join(filled))
        for table, plain in tables:
            if plain.endswith("_revision"):
                self._execute(f"UPDATE {table} SET floor = 0 WHERE floor <> 0")
        self._free.append(name)

    def _execute(self, statement: str, *parameters: str) -> list[Any]:
        try:
            cursor = self._connection.execute(statement.encode(), parameters)
        except psycopg.OperationalError:  # a test has stopped the server
            self._connection = self._connect()
            cursor = self._connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def new_task(**options: Any) -> NewTask:
    """Return a task to enqueue, of queue ``q`` unless another is named."""
    return NewTask(**{"id": new_id(), "queue": "q", "name": "n", "body": b"[]", **options})


def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let those who wait for news look for themselves no more, as far as a test can tell."""
    for name in ("LOOK_AFTER", "LOOK_AFTER_UNHEARD"):
        monkeypatch.setattr(f"omniq_postgres.waiting.{name}", (600, 600))


def settings_of(url: str) -> Settings:
    """Return the settings that a URL stands for."""
    return read_settings(parse_url(url))


def storage(url: str, **options: object) -> PostgresStorage:
    """Return an unopened storage.

    :param options: more of the URL's query.
    """
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return PostgresStorage(parse_url(url + more))


@asynccontextmanager
async def opened(url: str, **options: object) -> AsyncIterator[PostgresStorage]:
    """Yield an open storage, and close it afterwards."""
    store = storage(url, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def take(
    store: Storage, number: int = 1, *, worker: str = "w", lease: float = 60, queue: str = "q"
) -> list[StoredTask]:
    """Claim tasks."""
    return await store.claim({queue: number}, worker=worker, lease=lease)


def done(task: StoredTask) -> Succeeded:
    """Return the outcome of a task that went well."""
    return Succeeded(id=task.id, delivery=task.delivery, result=b"1")


async def counts(store: Storage) -> dict[TaskState, int]:
    """Count tasks of all queues by state, those of which there are none left out."""
    total: dict[TaskState, int] = {}
    for stats in await store.stats():
        for state, number in stats.counts.items():
            if number:
                total[state] = total.get(state, 0) + number
    return total


def table_of(url: str, word: str) -> str:
    """Return the name of a store's table."""
    return settings_of(url).names.relation(word)


@asynccontextmanager
async def connection_of(url: str, *, plain: bool = False) -> AsyncIterator[AsyncConnection]:
    """Yield a connection such as the storage has.

    :param plain: without the settings that a proxy would refuse.
    """
    more = f"{'&' if '?' in url else '?'}pooler=transaction" if plain else ""
    connector = Connector(settings_of(url + more))
    connection = await connector.connect()
    try:
        yield connection
    finally:
        discard(connection)


class Explained:
    """How the server ran a statement."""

    def __init__(self, query: Query, statements: Statements, output: dict[str, Any]) -> None:
        self.name = next(name for name in statements if statements[name] is query.text)
        self.plan: dict[str, Any] = output["Plan"]

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Yield the parts of the plan."""

        def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
            yield node
            for child in node.get("Plans", ()):
                yield from walk(child)

        yield from walk(self.plan)

    @property
    def scanned(self) -> set[str]:
        """The tables that were read from end to end."""
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"] == "Seq Scan" and _ran(node)}

    @property
    def rows_read(self) -> int:
        """How many rows of tables were looked at."""
        return sum(
            int(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)))
            for node in self.nodes()
            if "Relation Name" in node and "Scan" in node["Node Type"]
        )

    @property
    def pages(self) -> int:
        """How many pages were looked at."""
        return int(self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"])

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self.rows_read} rows, {self.pages} pages"]

        def show(node: dict[str, Any], depth: int) -> None:
            words = [node[key] for key in ("Subplan Name", "Node Type", "Relation Name", "Index Name") if key in node]
            pages = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
            what = f"{node['Actual Rows']} × {node['Actual Loops']} rows, {pages} pages"
            lines.append(f"{'  ' * depth}{' '.join(words)}: {what} {node.get('Index Cond', '')}")
            for child in node.get("Plans", ()):
                show(child, depth + 1)

        show(self.plan, 1)
        return "\n".join(lines)


def _ran(node: dict[str, Any]) -> bool:
    return bool(node["Actual Loops"])


async def explained(connection: AsyncConnection, job: Job[Any], statements: Statements) -> list[Explained]:
    """Run a job, and give how the server ran each of its statements, and what they did is taken back."""
    found: list[Explained] = []
    steps = job(Context(statements, News()))
    async with connection.transaction(force_rollback=True):
        try:
            query = next(steps)
            while True:
                rows: Rows = []
                for one in (*query.lead, query):
                    if one.text.split()[0] in (b"BEGIN", b"SET", b"COMMIT"):
                        continue  # all are run in one transaction, which is taken back
                    found.append(Explained(one, statements, await _explain(connection, one)))
                    cursor = connection.cursor(binary=True)
                    await cursor.execute(one.text, one.parameters, prepare=False)
                    rows += await cursor.fetchall() if cursor.description else []
                query = steps.send(rows)
        except StopIteration:
            return found


async def _explain(connection: AsyncConnection, query: Query) -> dict[str, Any]:
    text = b"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + query.text
    async with connection.transaction(force_rollback=True):
        cursor = connection.cursor()
        await cursor.execute(text, query.parameters, prepare=False)
        row = await cursor.fetchone()
    assert row is not None
    output: dict[str, Any] = row[0][0]
    return output


def terminate_everyone(url: str) -> int:
    """End every connection to a server but this one, as an administrator does. Give how many."""
    with psycopg.connect(url, autocommit=True) as connection:
        rows: Sequence[Any] = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        ).fetchall()
    return len(rows)


# Libraries that have a connection


def engine_of(server: PostgresServer, **options: Any) -> sqlalchemy.Engine:
    """Return an engine of SQLAlchemy that keeps no connection."""
    url = server.url.replace("postgresql://", "postgresql+psycopg://")
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **options)


def django_connection(server: PostgresServer) -> AbstractContextManager[Any]:
    """Return a connection of Django's, outside of a transaction."""
    where = {"HOST": "127.0.0.1", "PORT": server.port, "USER": "postgres", "NAME": "postgres"}
    return connection_to(ENGINE="django.db.backends.postgresql", **where)


class SpoiledRows:
    """Reads and writes single columns, see :class:`omniq.testing.contract.Spoil`.

    :param connection: the superuser's, which commits each statement.
    :param storage_url: of the storage.
    """

    KINDS: Mapping[str, Mapping[str, str]] = {
        "task": {"task": "id", "live": "id", "ended": "id"},
        "result": {"ended": "id"},
        "schedule": {"schedule": "id"},
        "worker": {"worker": "id"},
        "queue": {"counter": "queue", "delta": "queue"},
        "unique": {"live": "key"},
        "limit": {"limits": "id"},
    }
    """The tables that hold a record, and the column that has its name. A pause is nothing but a name."""

    def __init__(self, connection: psycopg.Connection[Any], storage_url: str) -> None:
        self._connection = connection
        self._names = settings_of(storage_url).names

    def read(self, kind: str, name: str) -> dict[str, Value]:
        found: dict[str, Value] = {}
        if kind == "queue":
            self._count(name)
        cursor = self._connection.cursor(row_factory=dict_row)
        for table, key in self.KINDS.get(kind, {}).items():
            query = f"SELECT * FROM {self._names.relation(table)} WHERE {key}::text = %s"
            for column, value in (cursor.execute(query.encode(), [name]).fetchone() or {}).items():
                found[f"{table}.{column}"] = value
        only = {"result": ["ended.result"], "unique": ["live.key"]}.get(kind)
        structure = {f"{table}.{key}" for table, key in self.KINDS.get(kind, {}).items()} | {"task.seq", "live.seq"}
        places = only if only is not None else found.keys() - structure - {"ended.seq"}
        return {place: found[place] for place in sorted(places) if place in found}

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        table, _, column = place.partition(".")
        if isinstance(value, list):
            value = array_of(value)
        elif isinstance(value, float) and math.isinf(value) and column in TIMES:
            value = "infinity" if value > 0 else "-infinity"
        query = f"UPDATE {self._names.relation(table)} SET {column} = %s WHERE {self.KINDS[kind][table]}::text = %s"
        if kind == "queue":
            self._count(name)
        try:
            return self._connection.execute(query.encode(), [value, name]).rowcount > 0
        except (psycopg.Error, UnicodeError):
            if self._connection.broken:
                raise
            return False  # the types of the table do not take it, an index, or the driver

    def _count(self, queue: str) -> None:
        """Have the counter of a queue, which comes to be when counts are summed up."""
        query = f"INSERT INTO {self._names.relation('counter')} VALUES (%s, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING"
        self._connection.execute(query.encode(), [queue])


TIMES = {"created_at", "run_at", "lease_until", "started_at", "expires_at"}
TIMES |= {"finished_at", "delete_at", "next_run", "seen_at", "until"}


def array_of(values: Sequence[Any]) -> str:
    """Write an array of texts or of arrays as PostgreSQL reads it."""
    return "{" + ",".join(_element_of(value) for value in values) + "}"


def _element_of(value: Any) -> str:
    if isinstance(value, list):
        return array_of(value)
    return "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
