"""What survives the death of the server, and a change of master."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from omniq.errors import StorageUnavailable
from omniq.task import TaskState
from omniq.testing import await_until
from omniq_redis import waiting
from tests.redis.redis_support import done, finish_all, new_task, opened, storage, take, total
from tests.servers.base import free_port
from tests.servers.redis import RedisCluster, RedisSentinel, RedisServer, binary_of


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_no_acknowledged_task_is_lost_when_the_server_is_killed_under_load(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path, binary=binary_of(kind), appendonly=True, appendfsync="always") as server:
            stop = asyncio.Event()
            acknowledged: list[str] = []
            finished: list[str] = []

            async def produce() -> None:
                async with opened(server.url) as store:
                    while not stop.is_set():
                        stored = await store.enqueue([new_task() for _ in range(5)])
                        acknowledged.extend(one.id for one in stored)

            async def work() -> None:
                async with opened(server.url) as store:
                    while not stop.is_set():
                        claimed = await take(store, n=3, lease=1)
                        answers = await store.finish(done(claimed))
                        finished.extend(task.id for task, stored in zip(claimed, answers, strict=True) if stored)
                        await store.recover(100)

            actors = [asyncio.create_task(actor) for actor in (produce(), produce(), work())]
            for _ in range(3):
                enough = len(acknowledged) + 50
                await await_until(lambda enough=enough: len(acknowledged) > enough)  # type: ignore[misc]  # a default binds it now
                server.kill()
                await asyncio.sleep(0.05)  # for a while there is no server
                server.start()
            stop.set()
            await asyncio.wait_for(asyncio.gather(*actors), 30)
            async with opened(server.url) as store:
                stored = await store.get(acknowledged)
                assert None not in stored
                ended = {task.id for task in stored if task is not None and task.state is TaskState.SUCCEEDED}
                assert set(finished) <= ended, "an accepted outcome is gone"

                async def all_done() -> bool:
                    await store.recover(1000)
                    await finish_all(store)
                    return await total(store, TaskState.RUNNING) == 0

                await await_until(all_done, 60)
                # What was not acknowledged may be there as well, but as a whole.
                assert await total(store, TaskState.SUCCEEDED) >= len(acknowledged)
                assert await total(store, TaskState.SUCCEEDED) % 5 == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_with_a_flush_every_second_a_killed_server_loses_at_most_the_last_two(tmp_path: Path, kind: str) -> None:
    window = 2.0
    """Seconds. While a flush takes long, the server holds back what it writes to the file for so long."""

    async def scenario() -> None:
        with RedisServer(tmp_path, binary=binary_of(kind), appendonly=True, appendfsync="everysec") as server:
            clock = asyncio.get_running_loop().time
            acknowledged: list[tuple[float, str]] = []

            async def produce() -> None:
                async with opened(f"{server.url}?retry_for=1") as store:
                    while True:
                        (stored,) = await store.enqueue([new_task()])
                        acknowledged.append((clock(), stored.id))

            producer = asyncio.create_task(produce())
            await await_until(lambda: bool(acknowledged) and clock() - acknowledged[0][0] > window + 0.5)
            killed_at = clock()
            server.kill()
            with pytest.raises(StorageUnavailable):
                await producer
            server.start()
            async with opened(server.url) as store:
                old = [task_id for at, task_id in acknowledged if at < killed_at - window]
                assert old
                assert None not in await store.get(old)
                assert await total(store, TaskState.READY) <= len(acknowledged) + 1

    asyncio.run(scenario())


@pytest.fixture(params=["redis", "valkey"])
def guarded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisSentinel]:
    kind: str = request.param
    with RedisSentinel(tmp_path, binary=binary_of(kind)) as servers:
        yield servers


def test_a_failover_loses_nothing_that_the_replica_had_and_work_goes_on(guarded: RedisSentinel) -> None:
    async def scenario() -> None:
        # The first sentinel is gone for good.
        url = guarded.url.replace("://", f"://127.0.0.1:{free_port()},")
        async with opened(f"{url}?retry_for=20") as store:
            stored = await store.enqueue([new_task() for _ in range(20)])
            assert store.enqueue_blocking([new_task()]) is not None
            claimed = await take(store, n=5)
            guarded.master.ask("WAIT", 1, 5000)
            waiter = asyncio.create_task(store.wait_finished([claimed[0].id], 30))
            guarded.master.kill()
            assert await asyncio.wait_for(store.finish(done(claimed)), 30) == [True] * 5
            assert await asyncio.wait_for(waiter, 30) == {claimed[0].id}
            assert None not in await store.get([one.id for one in stored])
            answers = await asyncio.to_thread(store.enqueue_blocking, [new_task()])
            assert answers is not None
            assert await finish_all(store) == 17
            worker = asyncio.create_task(store.wait_for_work(["q"], 60))
            await asyncio.sleep(0.1)  # by then it waits
            await store.enqueue([new_task()])
            await asyncio.wait_for(worker, 30)

    asyncio.run(scenario())


def test_a_worker_that_waits_is_called_by_the_new_master_after_the_old_one_froze(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LOOK_EVERY", 60.0)

    async def scenario() -> None:
        with RedisSentinel(tmp_path) as servers:
            url = f"{servers.url}?timeout=1&connect_timeout=1&retry_for=30"
            async with opened(url) as store, opened(url) as producer:
                worker = asyncio.create_task(store.wait_for_work(["q"], 60))
                await await_until(lambda: servers.master.ask("ZCARD", "{omniq}:idle:q") == 1)
                servers.master.suspend()
                await await_until(lambda: servers.replica.info("replication")["role"] == "master")
                # Called it can only be by the server that its name is with.
                await await_until(lambda: servers.replica.ask("PUBSUB", "NUMSUB", "{omniq}:due") == ["{omniq}:due", 1])
                await producer.enqueue([new_task()])
                await asyncio.wait_for(worker, 30)

    asyncio.run(scenario())


def test_a_server_that_cannot_be_written_to_is_tried_until_it_can(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server, RedisServer(tmp_path) as other:
            async with opened(server.url) as store:
                await store.enqueue([new_task()])
                assert store.enqueue_blocking([new_task()]) is not None
                server.ask("REPLICAOF", "127.0.0.1", other.port)
                waiting = asyncio.create_task(store.enqueue([new_task()]))
                thread = asyncio.create_task(asyncio.to_thread(store.enqueue_blocking, [new_task()]))
                await asyncio.sleep(0.2)  # what must not happen would have by now
                assert not waiting.done()
                assert not thread.done()
                server.ask("REPLICAOF", "NO", "ONE")
                assert (await asyncio.wait_for(waiting, 30))[0].created
                assert await asyncio.wait_for(thread, 30) is not None
                assert await finish_all(store) >= 2

    asyncio.run(scenario())


def test_a_replica_is_not_taken_for_a_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server, RedisServer(tmp_path) as other:
            server.ask("REPLICAOF", "127.0.0.1", other.port)
            with pytest.raises(StorageUnavailable, match="read only replica"):
                await storage(f"{server.url}?retry_for=0.2").open()

    asyncio.run(scenario())


def test_a_slot_of_the_cluster_that_moves_is_followed(redis_cluster: RedisCluster, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_cluster.url, namespace) as store:
            await store.enqueue([new_task()])
            await finish_all(store)
            await store.purge("q")
            slot = redis_cluster.nodes[0].ask("CLUSTER", "KEYSLOT", f"{{{namespace}}}:")
            assert isinstance(slot, int)
            source = _owner(redis_cluster, f"{{{namespace}}}:")
            target = next(node for node in redis_cluster.nodes if node is not source)
            _move(redis_cluster, slot, source, target)
            await store.enqueue([new_task()])
            assert store.enqueue_blocking([new_task()]) is not None
            assert await finish_all(store) == 2
            worker = asyncio.create_task(store.wait_for_work(["q"], 60))
            await asyncio.sleep(0.1)  # by then it waits
            async with opened(redis_cluster.url, namespace) as other:
                await other.enqueue([new_task()])
            await asyncio.wait_for(worker, 30)
            _move(redis_cluster, slot, target, source)

    asyncio.run(scenario())


def _owner(cluster: RedisCluster, key: str) -> RedisServer:
    for node in cluster.nodes:
        try:
            node.ask("EXISTS", key)
        except RedisError:  # MOVED
            continue
        return node
    raise AssertionError(f"nobody has {key}")


def _move(cluster: RedisCluster, slot: int, source: RedisServer, target: RedisServer) -> None:
    """Move a slot as the tools of Redis do."""
    names = {node: str(node.ask("CLUSTER", "MYID")) for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])
    keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1000)
    assert isinstance(keys, list)
    source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
    for node in (target, source, *cluster.nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", names[target])
