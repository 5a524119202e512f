"""Private parts of redis-py: that they are where they are used, and that all works where they are not."""

from __future__ import annotations

import asyncio
import logging
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from omniq.errors import StorageUnavailable
from omniq.testing import StorageContract, await_until
from omniq_redis import transports
from omniq_redis.transports import transport_of
from tests.redis.redis_support import finish_all, new_task, opened, storage
from tests.servers.redis import RedisServer

ROOT = Path(__file__).parents[2]


def test_the_transport_of_a_connection_of_redis_py_is_that_of_its_private_writer(redis_server: RedisServer) -> None:
    """If this fails with a new redis-py, omniq-redis still works with it, but slower: look where it keeps it now."""

    async def scenario() -> None:
        connection = await storage(redis_server.url)._connector.dial()
        assert transport_of(connection) is connection._writer.transport
        await connection.disconnect()

    asyncio.run(scenario())


def test_the_installed_redis_py_is_within_the_tested_range() -> None:
    project = tomllib.loads((ROOT / "omniq-redis/pyproject.toml").read_text())["project"]
    assert "redis[hiredis]>=6,<9" in project["dependencies"]
    assert 6 <= int(version("redis").split(".")[0]) < 9


@pytest.fixture
def driver_of_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the transport not be where it is today."""
    monkeypatch.setattr("omniq_redis.connection.transport_of", lambda connection: transport_of(object()))
    transports._say_once.cache_clear()


@pytest.mark.usefixtures("driver_of_tomorrow")
def test_all_goes_through_public_methods_where_the_transport_is_not_to_be_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path, appendonly=True) as server:
            async with opened(f"{server.url}?timeout=2&retry_for=4") as store, opened(server.url) as other:
                worker = asyncio.create_task(store.wait_for_work(["q"], 60))
                await await_until(lambda: server.ask("ZCARD", "{omniq}:idle:q") == 1)
                stored = await other.enqueue([new_task(body=bytes(1_000_000)) for _ in range(3)])
                await asyncio.wait_for(worker, 30)
                ends = asyncio.create_task(other.wait_finished([one.id for one in stored], 60))
                assert await finish_all(store) == 3
                assert await asyncio.wait_for(ends, 30) == {one.id for one in stored}
                server.ask("SCRIPT", "FLUSH")
                await asyncio.gather(*(store.enqueue([new_task()]) for _ in range(50)))
                server.kill()
                server.start()
                assert await finish_all(store) == 50
                server.suspend()
                with pytest.raises(StorageUnavailable):
                    await asyncio.wait_for(store.enqueue([new_task()]), 30)
                server.resume()
                assert (await store.enqueue([new_task()]))[0].created

    with caplog.at_level(logging.INFO, "omniq.redis"):
        asyncio.run(scenario())
    assert caplog.text.count("not one that omniq-redis was tested with; it works, but slower") == 1


@pytest.mark.long
@pytest.mark.usefixtures("driver_of_tomorrow")
class TestRedisStorageThroughPublicMethods(StorageContract):
    @pytest.fixture
    def storage_url(self, redis_server: RedisServer, namespace: str) -> str:
        return f"{redis_server.url}?namespace={namespace}"
