"""The conformance kit, run against Redis, Valkey and a Cluster of three."""

from __future__ import annotations

import pytest

from omniq.testing import StorageContract
from omniq.testing.contract.modelling import ModelContract
from tests.servers.redis import RedisCluster, RedisServer


class TestRedisStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, redis_server: RedisServer, namespace: str) -> str:
        return f"{redis_server.url}?namespace={namespace}"


class TestValkeyStorageUnderAnySequenceOfOperations(ModelContract):
    @pytest.fixture
    def storage_url(self, valkey_server: RedisServer, namespace: str) -> str:
        return f"{valkey_server.url}?namespace={namespace}"


class TestRedisClusterStorageUnderAnySequenceOfOperations(ModelContract):
    @pytest.fixture
    def storage_url(self, redis_cluster: RedisCluster, namespace: str) -> str:
        return f"{redis_cluster.url}?namespace={namespace}"


@pytest.mark.long
class TestValkeyStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, valkey_server: RedisServer, namespace: str) -> str:
        return f"{valkey_server.url}?namespace={namespace}"


@pytest.mark.long
class TestRedisClusterStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, redis_cluster: RedisCluster, namespace: str) -> str:
        return f"{redis_cluster.url}?namespace={namespace}"
