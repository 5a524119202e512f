"""The conformance kit, run against Redis, Valkey and a Cluster of three."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import Redis

from omniq.storage import Storage
from omniq.testing import StorageContract
from omniq.testing.contract.base import Deafen
from omniq.testing.contract.limits import LoseLine
from omniq.testing.contract.modelling import ModelContract
from omniq.testing.contract.outages import OutageContract
from omniq.testing.contract.spoiling import Spoil
from omniq_redis.limits import line_words
from tests.redis.redis_support import SpoiledKeys
from tests.servers.redis import RedisCluster, RedisServer


class TestRedisStorage(StorageContract):
    @pytest.fixture
    def storage_url(self, redis_server: RedisServer, namespace: str) -> str:
        return f"{redis_server.url}?namespace={namespace}"

    @pytest.fixture
    def deafen(self, redis_server: RedisServer, namespace: str) -> Deafen:
        async def forget_who_waits(store: Storage) -> None:
            redis_server.ask("DEL", f"{{{namespace}}}:idle:work")

        return forget_who_waits

    @pytest.fixture
    def count_requests(self, redis_server: RedisServer) -> Callable[[], int]:
        def count() -> int:
            told = redis_server.info("commandstats")
            return sum(told[name]["calls"] for name in told if name in ("cmdstat_evalsha", "cmdstat_eval"))  # type: ignore[index]  # as Redis tells it

        return count

    @pytest.fixture
    def count_records(self, redis_server: RedisServer, namespace: str) -> Callable[[], int]:
        sizes = {"string": "strlen", "hash": "hlen", "set": "scard", "zset": "zcard", "list": "llen", "stream": "xlen"}

        def count() -> int:
            # Not a client that decodes: some names hold what is no text.
            with Redis.from_url(redis_server.url) as client:
                kinds = {key: client.type(key).decode() for key in client.scan_iter(f"*{namespace}*")}
                return sum(1 if kind == "string" else getattr(client, sizes[kind])(key) for key, kind in kinds.items())

        return count

    @pytest.fixture
    def spoil(self, redis_server: RedisServer, namespace: str) -> Spoil:
        return SpoiledKeys(redis_server, namespace)

    @pytest.fixture
    def lose_line(self, redis_server: RedisServer, namespace: str) -> LoseLine:
        def lose(queue: str, key: str) -> None:
            _, line = line_words(queue, key, None)
            with redis_server.client() as client:
                assert client.hdel(f"{{{namespace}}}:lines:{queue}", line) == 1

        return lose


class TestRedisStorageWithoutItsServer(OutageContract):
    @pytest.fixture
    def storage_url(self, redis_server: RedisServer, namespace: str) -> str:
        return f"{redis_server.url}?namespace={namespace}&retry_for=0.2"

    @pytest.fixture
    def break_store(self, redis_server: RedisServer) -> Callable[[], None]:
        return redis_server.kill

    @pytest.fixture
    def mend_store(self, redis_server: RedisServer) -> Callable[[], None]:
        return redis_server.start


@pytest.mark.short  # below with all of the kit, in the long run
class TestValkeyStorageUnderAnySequenceOfOperations(ModelContract):
    @pytest.fixture
    def storage_url(self, valkey_server: RedisServer, namespace: str) -> str:
        return f"{valkey_server.url}?namespace={namespace}"


@pytest.mark.short  # below with all of the kit, in the long run
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
