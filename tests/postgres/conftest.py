"""One server for all tests of a process; each test has a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres.support import Namespaces, new_namespace
from tests.servers.postgres import QUICK, PostgresServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """Yield a server that is quick and lives as long as the tests do."""
    with PostgresServer(tmp_path_factory.mktemp("postgres"), QUICK) as running:
        yield running


@pytest.fixture
def storage_url(server: PostgresServer) -> str:
    """Return the URL of an empty store."""
    return f"{server.url}?namespace={new_namespace()}"


@pytest.fixture(scope="session")
def namespaces(server: PostgresServer) -> Iterator[Namespaces]:
    """Yield stores for tests that need none of their own."""
    made = Namespaces(server)
    yield made
    made.close()
