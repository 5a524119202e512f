"""The conformance kit, run against PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import psycopg
import pytest

from omniq.limit import line_id
from omniq.storage import Storage
from omniq.storage.urls import parse_url
from omniq.testing import StorageContract, await_until
from omniq.testing.contract.base import Deafen
from omniq.testing.contract.limits import LoseLine
from omniq.testing.contract.outages import OutageContract
from omniq.testing.contract.spoiling import Spoil
from omniq_postgres import libpq
from omniq_postgres.connecting import AsyncConnection
from omniq_postgres.operations import Query, Rows
from omniq_postgres.storage import PostgresStorage
from tests.postgres.support import Namespaces, SpoiledRows, new_namespace, settings_of
from tests.servers.postgres import PostgresServer


class TestPostgresStorage(StorageContract):
    @pytest.fixture
    def storage_url(
        self, request: pytest.FixtureRequest, server: PostgresServer, namespaces: Namespaces
    ) -> Iterator[str]:
        # A test that is given no open store may be about how one comes to be.
        if "store" not in request.fixturenames:
            yield f"{server.url}?namespace={new_namespace()}"
        else:
            with namespaces.url() as url:
                yield url

    @pytest.fixture
    def deafen(self) -> Deafen:
        return stop_listening

    @pytest.fixture
    def count_requests(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
        sent: list[Query] = []
        run = libpq.rows

        def counted(connection: AsyncConnection, query: Query) -> Awaitable[Rows]:
            sent.append(query)
            return run(connection, query)

        monkeypatch.setattr(libpq, "rows", counted)
        return lambda: len(sent)

    @pytest.fixture
    def spoil(self, server: PostgresServer, storage_url: str) -> Iterator[Spoil]:
        with psycopg.connect(server.url, autocommit=True) as connection:
            yield SpoiledRows(connection, storage_url)

    @pytest.fixture
    def lose_line(self, server: PostgresServer, storage_url: str) -> LoseLine:
        table = settings_of(storage_url).names.relation("line")

        def lose(queue: str, key: str) -> None:
            lost = server.execute(f"DELETE FROM {table} WHERE id = %s RETURNING id", line_id(queue, key, None))
            assert len(lost) == 1

        return lose

    @pytest.fixture
    def count_records(self, server: PostgresServer, storage_url: str) -> Callable[[], int]:
        namespace = parse_url(storage_url).namespace

        def count() -> int:
            tables = server.execute(
                "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables"
                " WHERE schemaname = 'omniq' AND starts_with(tablename, %s)",
                namespace,
            )
            assert tables
            counted = server.execute(" UNION ALL ".join(f"SELECT count(*) FROM {name}" for (name,) in tables))
            return sum(number for (number,) in counted)

        return count


class TestPostgresStorageWithoutItsServer(OutageContract):
    @pytest.fixture
    def storage_url(self, storage_url: str) -> str:
        return f"{storage_url}&timeout=0.5"

    @pytest.fixture
    def break_store(self, server: PostgresServer) -> Callable[[], None]:
        return server.stop  # in order, as this one is quick and may lose what was committed last

    @pytest.fixture
    def mend_store(self, server: PostgresServer) -> Callable[[], None]:
        return server.start


async def stop_listening(store: Storage) -> None:
    """Leave unread what comes through the connection that listens."""
    assert isinstance(store, PostgresStorage)
    assert store._session is not None
    listener = store._session.waiting._listener
    await await_until(lambda: listener._connection is not None, what="the connection that listens")
    connection = listener._connection
    assert connection is not None
    asyncio.get_running_loop().remove_reader(connection.pgconn.socket)
