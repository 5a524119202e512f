"""The life of a connection: how it is made and used, and what happens when it breaks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis import CredentialProvider

from omniq import TaskQueue
from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq.storage import Enqueued, Lease, LeaseState
from omniq.task import TaskState
from omniq.testing import await_until
from omniq_redis import scripts
from omniq_redis.client import LAYOUT
from omniq_redis.connection import Link
from tests.redis.redis_support import done, finish_all, new_task, only, opened, python, storage, take, total
from tests.servers.base import free_port
from tests.servers.redis import RedisServer


def clients(server: RedisServer, name: str) -> int:
    """Return how many connections there are of a name."""
    return str(server.ask("CLIENT", "LIST")).count(f" name={name} ")


# How it is reached


def test_a_unix_socket_leads_to_the_same_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "redis.sock"
        with RedisServer(tmp_path, config={"unixsocket": str(path)}) as server:
            async with opened(f"unix://{path}?db=3") as store, opened(f"redis://127.0.0.1:{server.port}/3") as other:
                (stored,) = await store.enqueue([new_task()])
                assert store.enqueue_blocking([new_task()]) is not None
                assert (await only(other, stored.id)).state is TaskState.READY
                assert await finish_all(other) == 2

    asyncio.run(scenario())


def test_databases_are_apart(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        base = f"redis://127.0.0.1:{redis_server.port}"
        async with opened(f"{base}/1", namespace) as one, opened(f"{base}?db=2", namespace) as other:
            await one.enqueue([new_task()])
            assert await take(other) == []
            assert len(await take(one)) == 1

    asyncio.run(scenario())


def test_connections_bear_the_name_that_was_given(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(f"{redis_server.url}?client_name={namespace}") as store:
            assert store.enqueue_blocking([]) == []
            assert store.enqueue_blocking([new_task()]) is not None
            await store.wait_for_work(["nothing"], 0.01)
            assert clients(redis_server, namespace) == 3, "for calls, for what the server tells, for threads"
        await await_until(lambda: clients(redis_server, namespace) == 0)

    asyncio.run(scenario())


def test_a_password_is_asked_for_and_not_shown(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path, config={"requirepass": "s3cret word"}) as server:
            place = f"127.0.0.1:{server.port}/0"
            async with (
                opened(f"redis://:s3cret%20word@{place}") as store,
                opened(f"redis://{place}?password=s3cret%20word") as other,
            ):
                await store.enqueue([new_task()])
                assert len(await take(other)) == 1
                assert "s3cret" not in repr(store) + repr(other)
            for url in (f"redis://:wr0ng@{place}", f"redis://{place}"):
                with pytest.raises(StorageUnavailable) as caught:
                    await storage(url).open()
                assert "wr0ng" not in str(caught.value)
                assert caught.value.__cause__ is not None

    asyncio.run(scenario())


def test_credentials_can_come_from_a_provider(tmp_path: Path) -> None:
    class Provider(CredentialProvider):
        def get_credentials(self) -> tuple[str]:
            return ("s3cret",)

        async def get_credentials_async(self) -> tuple[str]:
            return ("s3cret",)

    async def scenario() -> None:
        with RedisServer(tmp_path, config={"requirepass": "s3cret"}) as server:
            async with opened(server.url, connection={"credential_provider": Provider()}) as store:
                await store.enqueue([new_task()])
                assert store.enqueue_blocking([new_task()]) is not None
                assert await finish_all(store) == 2

    asyncio.run(scenario())


def test_a_server_that_is_not_there_is_told_of_in_bounded_time(namespace: str) -> None:
    async def scenario() -> None:
        port = free_port()
        with pytest.raises(StorageUnavailable, match=str(port)):
            await storage(f"redis://user:s3cret@127.0.0.1:{port}/0?retry_for=0.2", namespace).open()

    asyncio.run(scenario())


def test_an_operation_on_a_storage_that_is_not_open_says_so(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        store = storage(redis_server.url, namespace)
        with pytest.raises(StorageUnavailable, match=r"open\(\)"):
            await store.enqueue([new_task()])
        await store.open()
        await store.open()
        waits = asyncio.create_task(store.wait_for_work(["q"], 60))
        ends = asyncio.create_task(store.wait_finished([(await store.enqueue([new_task(queue="r")]))[0].id], 60))
        idle = f"{{{namespace}}}:idle:q"
        await await_until(lambda: redis_server.ask("ZCARD", idle) == 1, what="the wait to be known to the server")
        await store.now()  # answered in turn: so the wait has its answer, too
        await store.close()
        await asyncio.wait_for(waits, 30)
        with pytest.raises(StorageUnavailable):
            await asyncio.wait_for(ends, 30)
        with pytest.raises(StorageUnavailable, match=r"open\(\)"):
            await store.now()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("layout", "mend"),
    [
        (LAYOUT - 1, "let workers of the older version drain it"),
        (LAYOUT + 1, "upgrade"),
        ("x" * 5000, "another namespace"),
        ("9" * 5000, "upgrade"),
    ],
    ids=["older", "newer", "no number", "too long"],
)
def test_a_store_of_another_layout_is_refused_with_the_mend(
    redis_server: RedisServer, namespace: str, layout: int | str, mend: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace):
            pass
        redis_server.ask("HSET", f"{{{namespace}}}:meta", "layout", layout)
        with pytest.raises(SchemaMismatch, match=mend):
            await storage(redis_server.url, namespace).open()

    asyncio.run(scenario())


def test_a_server_that_knows_no_flags_of_scripts_gets_none(
    redis_server: RedisServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Redis 6.2, which takes the first line for a part of the program, this one cannot read it.
    monkeypatch.setattr(scripts, "FLAGS", "#lua flags=allow-oom\n")
    scripts.script.cache_clear()

    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.enqueue([new_task() for _ in range(3)])
            assert await store.heartbeat("w", [], 30) == []
            assert await finish_all(store) == 3

    try:
        asyncio.run(scenario())
    finally:
        scripts.script.cache_clear()


def test_a_batch_that_is_too_large_for_one_step_is_refused(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            with pytest.raises(ValueError, match="300,000"):
                await store.enqueue([new_task()] * 300_001)

    asyncio.run(scenario())


# When it breaks


def test_scripts_that_the_server_forgot_are_taught_again(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            for _ in range(2):
                redis_server.ask("SCRIPT", "FLUSH")
                await store.enqueue([new_task()])
                redis_server.ask("SCRIPT", "FLUSH")
                assert store.enqueue_blocking([new_task()]) is not None
                redis_server.ask("SCRIPT", "FLUSH")
                many = await asyncio.gather(*(store.enqueue([new_task()]) for _ in range(20)))
                assert all(stored.created for (stored,) in many)
                redis_server.ask("SCRIPT", "FLUSH")
                assert await finish_all(store) == 22

    asyncio.run(scenario())


def test_work_goes_on_while_every_connection_is_killed_again_and_again(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        stop = asyncio.Event()
        acknowledged: list[str] = []
        finished: list[str] = []
        turns = Counter[str]()

        async def produce() -> None:
            async with opened(redis_server.url, namespace) as store:
                while not stop.is_set():
                    turns["producer"] += 1
                    tasks = [new_task() for _ in range(20)]
                    acknowledged.extend(stored.id for stored in await store.enqueue(tasks))
                    batch = [new_task()]
                    answers = await asyncio.to_thread(store.enqueue_blocking, batch)
                    assert answers is not None
                    acknowledged.extend(stored.id for stored in answers)

        async def work(name: str) -> None:
            async with opened(redis_server.url, namespace) as store:
                while not stop.is_set():
                    turns[name] += 1
                    claimed = await take(store, n=30, lease=1, worker=name)
                    leases = [Lease(task.id, task.delivery) for task in claimed]
                    states = await store.heartbeat(name, leases, 1)
                    assert LeaseState.CANCEL_REQUESTED not in states
                    answers = await store.finish(done(claimed))
                    finished.extend(task.id for task, stored in zip(claimed, answers, strict=True) if stored)
                    if not claimed:
                        await store.wait_for_work(["q"], 0.1)
                    await store.recover(100)

        actors = [asyncio.create_task(actor) for actor in (produce(), work("w1"), work("w2"))]
        for _ in range(25):
            # Each has got on since the last time, on whatever machine: nobody is kept from it for good.
            enough = turns + Counter(["producer", "w1", "w2"])
            await await_until(lambda enough=enough: turns >= enough, what="a turn of each")  # type: ignore[misc]  # a default binds it now
            redis_server.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            redis_server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        stop.set()
        await asyncio.wait_for(asyncio.gather(*actors), 30)
        async with opened(redis_server.url, namespace) as store:

            async def all_done() -> bool:
                await store.recover(1000)
                await finish_all(store)
                return await total(store, TaskState.RUNNING) == 0

            await await_until(all_done)
            assert len(acknowledged) > 100
            assert len(set(acknowledged)) == len(acknowledged)
            assert await total(store, TaskState.SUCCEEDED) == len(acknowledged)
            assert len(set(finished)) == len(finished), "one task ended twice"
            stored = await store.get(acknowledged)
            assert all(task is not None and task.state is TaskState.SUCCEEDED for task in stored)

    asyncio.run(scenario())


def test_calls_wait_for_a_server_that_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path, appendonly=True, appendfsync="always") as server:
            async with opened(server.url) as store:
                await store.enqueue([new_task()])
                assert store.enqueue_blocking([new_task()]) is not None
                server.kill()
                waiting = [asyncio.create_task(store.enqueue([new_task()])) for _ in range(3)]
                thread = asyncio.create_task(asyncio.to_thread(store.enqueue_blocking, [new_task()]))
                await asyncio.sleep(0.2)  # by then it waits
                server.start()
                assert all(answer[0].created for answer in await asyncio.wait_for(asyncio.gather(*waiting), 30))
                answers = await asyncio.wait_for(thread, 30)
                assert answers is not None
                assert await finish_all(store) == 6

    asyncio.run(scenario())


def test_a_server_that_stays_away_is_unavailable_after_a_bounded_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server:
            async with opened(f"{server.url}?retry_for=0.3") as store:
                assert store.enqueue_blocking([new_task()]) is not None
                server.kill()
                with pytest.raises(StorageUnavailable) as caught:
                    await asyncio.wait_for(store.enqueue([new_task()]), 30)
                assert caught.value.__cause__ is not None
                with pytest.raises(StorageUnavailable):
                    await asyncio.wait_for(asyncio.to_thread(store.enqueue_blocking, [new_task()]), 30)
                with pytest.raises(StorageUnavailable):
                    await asyncio.wait_for(store.wait_for_work(["q"], 60), 30)

    asyncio.run(scenario())


def test_a_server_that_answers_nothing_is_given_up_and_found_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server:
            impatient = storage(f"{server.url}?timeout=0.3&connect_timeout=0.3&retry_for=0.5")

            async def is_stored() -> bool:
                # On a busy machine a third of a second can be too short for a server that answers, too.
                with suppress(StorageUnavailable):
                    await impatient.open()
                    await impatient.enqueue([new_task()])
                    return True
                return False

            await await_until(is_stored, what="a task to be stored")
            server.suspend()
            with pytest.raises(StorageUnavailable):
                await asyncio.wait_for(impatient.enqueue([new_task()]), 30)
            with pytest.raises(StorageUnavailable):
                await asyncio.wait_for(asyncio.to_thread(impatient.enqueue_blocking, [new_task()]), 30)
            server.resume()
            await await_until(is_stored, what="the server to be found again")
            await impatient.close()
            async with opened(server.url) as store:
                assert len(await take(store)) >= 2

    asyncio.run(scenario())


def test_a_call_that_is_given_up_does_not_spoil_the_answers_of_the_others(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            calls = [asyncio.create_task(store.enqueue([new_task(body=b"%d" % number)])) for number in range(20)]
            await asyncio.sleep(0)  # all of them begin
            for call in calls[::2]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for number, answer in enumerate(answers[1::2]):
                assert isinstance(answer, list)
                assert (await only(store, answer[0].id)).body == b"%d" % (2 * number + 1)

    asyncio.run(scenario())


def test_a_silent_connection_is_left_by_one_who_gives_up_his_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server:
            async with opened(server.url) as store:
                await store.now()
                before = store._client._link if store._client is not None else None
                assert isinstance(before, Link)
                server.suspend()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.heartbeat("w", [], 30), 0.8)
                server.resume()
                assert before.lost is not None
                assert await store.heartbeat("w", [], 30) == []

    asyncio.run(scenario())


def test_data_that_is_lost_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server:
            async with opened(server.url) as store:
                await store.enqueue([new_task()])
                server.kill()
                server.start()
                assert await take(store) == []
                (finding,) = [finding for finding in await store.diagnose() if finding.subject == "data"]
                assert "lost" in finding.message
        assert "lost its data" in caplog.text

    with caplog.at_level(logging.ERROR, "omniq.redis"):
        asyncio.run(scenario())


def test_a_full_server_refuses_new_tasks_and_lets_those_it_has_be_worked_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path, config={"maxmemory-policy": "noeviction"}) as server:
            async with opened(server.url) as store:
                await store.enqueue([new_task(unique="key"), *(new_task() for _ in range(9))])
                claimed = await take(store, n=5)
                server.ask("CONFIG", "SET", "maxmemory", 1000)
                rejected = [new_task(unique="other"), new_task()]
                with pytest.raises(StorageUnavailable, match="memory"):
                    await store.enqueue(rejected)
                with pytest.raises(StorageUnavailable, match="memory"):
                    store.enqueue_blocking([new_task()])
                assert await store.get([task.id for task in rejected]) == [None, None]
                leases = [Lease(task.id, task.delivery) for task in claimed]
                assert await store.heartbeat("w", leases, 60) == [LeaseState.HELD] * 5
                assert await store.finish(done(claimed)) == [True] * 5
                assert await finish_all(store) == 5
                server.ask("CONFIG", "SET", "maxmemory", 0)
                assert all(stored.created for stored in await store.enqueue(rejected))

    asyncio.run(scenario())


# Threads and processes


def test_many_threads_enqueue_at_once(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(f"{redis_server.url}?pool_size=3&client_name={namespace}", namespace) as store:

            def produce(_: int) -> list[Enqueued]:
                answers = [store.enqueue_blocking([new_task()]) for _ in range(20)]
                return [answer[0] for answer in answers if answer is not None]

            with ThreadPoolExecutor(12) as pool:
                shares = await asyncio.to_thread(lambda: list(pool.map(produce, range(12))))
            stored = [one for share in shares for one in share]
            assert len(stored) == 240
            assert all(one.created for one in stored)
            assert clients(redis_server, namespace) <= 1 + 3
            assert await finish_all(store) == 240

    asyncio.run(scenario())


def test_a_thread_that_finds_no_place_in_the_pool_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server:
            async with opened(f"{server.url}?pool_size=1&pool_timeout=0.1") as store:
                assert store.enqueue_blocking([new_task()]) is not None
                server.suspend()
                first = threading.Thread(target=store.enqueue_blocking, args=([new_task()],))
                first.start()

                async def refused() -> bool:
                    try:
                        await asyncio.to_thread(store.enqueue_blocking, [new_task()])
                    except StorageUnavailable as error:
                        return "pool_size" in str(error)
                    return False

                assert await asyncio.wait_for(refused(), 20)
                server.resume()
                await asyncio.to_thread(first.join)

    asyncio.run(scenario())


def test_a_child_that_was_forked_uses_no_connection_of_its_parent(redis_server: RedisServer, namespace: str) -> None:
    program = """
        import os, sys
        from omniq import TaskQueue

        queue = TaskQueue(sys.argv[1], namespace=sys.argv[2])

        @queue.task
        def task(n): ...

        parent = [task.enqueue(n).id for n in range(3)]
        pid = os.fork()
        mine = [task.enqueue(n).id for n in range(20)]
        queue.stats()
        found = {one.id for one in queue.tasks(limit=100)}
        assert set(parent + mine) <= found
        if pid == 0:
            queue.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert {stats.queue: stats.counts["ready"] for stats in queue.stats()} == {"default": 43}
        queue.close()
        print("well")
    """
    child = python(program, redis_server.url, namespace, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, output) == (0, "well\n")


def test_a_storage_of_a_loop_that_is_gone_can_be_closed_on_another(redis_server: RedisServer, namespace: str) -> None:
    name = f"{namespace}-gone"
    store = storage(f"{redis_server.url}?client_name={name}", namespace)

    async def use() -> None:
        await store.open()
        await store.wait_for_work(["q"], 0.01)
        assert clients(redis_server, name) == 2

    asyncio.run(use())
    asyncio.run(store.close())
    gc.collect()

    async def gone() -> Any:
        await await_until(lambda: clients(redis_server, name) == 0)

    asyncio.run(gone())


# What is told


def test_a_store_that_was_emptied_is_noticed_though_no_connection_broke(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path) as server:
            async with opened(server.url) as store, opened(server.url) as producer:
                await producer.enqueue([new_task()])
                await store.heartbeat("w", [], 60)
                assert not caplog.records
                server.ask("FLUSHALL")
                await producer.enqueue([new_task()])
                await store.heartbeat("w", [], 60)
                await store.heartbeat("w", [], 60)
                assert [record.levelname for record in caplog.records] == ["ERROR"]
                assert "has lost its data" in caplog.text
                assert store.losses == 1  # so that a worker stores its declared schedules anew
                assert len(await take(store)) == 1
                findings = {finding.subject: finding for finding in await store.diagnose()}
                assert "those tasks are lost" in findings["data"].message

    with caplog.at_level(logging.INFO, "omniq.redis"):
        asyncio.run(scenario())


@pytest.mark.parametrize(("policy", "told"), [("allkeys-lru", 1), ("volatile-lru", 0), ("noeviction", 0)])
def test_a_worker_is_told_at_its_start_of_a_policy_that_throws_tasks_away(
    redis_server: RedisServer, namespace: str, policy: str, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.enqueue([new_task()])
            assert not caplog.records, "a producer is told nothing"
            for _ in range(2):
                await store.heartbeat("w", [], 60)

    redis_server.ask("CONFIG", "SET", "maxmemory-policy", policy)
    try:
        with caplog.at_level(logging.INFO, "omniq.redis"):
            asyncio.run(scenario())
    finally:
        redis_server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * told
    assert caplog.text.count("throws tasks away; CONFIG SET maxmemory-policy noeviction") == told


def test_a_connection_that_is_lost_and_comes_back_is_told_once_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path, appendonly=True) as server:
            async with opened(f"{server.url}?retry_for=0.3") as store:
                await store.enqueue([new_task()])
                server.kill()
                for _ in range(2):
                    with pytest.raises(StorageUnavailable):
                        await store.enqueue([new_task()])
                server.start()
                await store.enqueue([new_task()])

    with caplog.at_level(logging.INFO, "omniq.redis"):
        asyncio.run(scenario())
    lost, restored = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lost[0] == "WARNING"
    assert "the connection is lost, trying again: the server closed the connection" in lost[1]
    assert restored[0] == "INFO"
    assert "connected again after" in restored[1]


def test_a_worker_waits_for_a_server_that_is_not_up_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = RedisServer(tmp_path)
        queue = TaskQueue(server.url)

        @queue.task
        async def add(left: int, right: int) -> int:
            return left + right

        worker = queue.worker()
        running = asyncio.create_task(worker.run())
        await await_until(lambda: "cannot start, trying again" in caplog.text, 60, "word of the missing server")
        assert not running.done()
        with server:
            assert await (await add.aenqueue(1, 2)).aresult(60) == 3
            worker.stop()
            await running
            await queue.aclose()

        waiting = queue.worker()
        running = asyncio.create_task(waiting.run())
        await await_until(
            lambda: caplog.text.count("cannot start, trying again") == 2, 60, "word of the missing server"
        )
        waiting.stop()
        await running
        await queue.aclose()

    with caplog.at_level(logging.WARNING, logger="omniq.worker"):
        asyncio.run(scenario())
