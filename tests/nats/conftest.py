"""One server for the tests of this folder, one cluster for those that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.nats import NatsCluster, NatsServer


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Yield a server with the settings that one has who sets none."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture(scope="session")
def nats_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsCluster]:
    """Yield three servers, of which one may be lost."""
    with NatsCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
