"""The conformance kit, run against PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from omniq.storage import Storage
from omniq.testing import StorageContract
from omniq.testing.contract.base import Deafen
from omniq.testing.contract.outages import OutageContract
from omniq_postgres.storage import PostgresStorage
from tests.servers.postgres import PostgresServer


class TestPostgresStorage(StorageContract):
    """The fixture ``storage_url`` is the folder's."""

    @pytest.fixture
    def deafen(self) -> Deafen:
        return stop_listening

    @pytest.fixture
    def count_records(self, server: PostgresServer) -> Callable[[], int]:
        def count() -> int:
            tables = server.execute(
                "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'omniq'"
            )
            return sum(server.execute(f"SELECT count(*) FROM {name}")[0][0] for (name,) in tables)

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
    connection = store._session.waiting._listener._connection
    assert connection is not None
    asyncio.get_running_loop().remove_reader(connection.pgconn.socket)
