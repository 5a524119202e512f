"""Servers for the tests of the Redis storage: at most one of each kind in a test process, which is why each test has
a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from omniq.storage.ids import new_id
from tests.servers.redis import RedisCluster, RedisServer, binary_of


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), binary=binary_of("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("valkey"), binary=binary_of("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def namespace() -> str:
    return f"t-{new_id()}"
