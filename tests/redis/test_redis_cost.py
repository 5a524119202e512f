"""What an operation costs, counted in commands and bytes, not in seconds: the same however much is in the store."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from importlib.resources import files

import pytest

from omniq.storage import Lease, TaskQuery
from omniq.task import Failed, TaskError, TaskState
from omniq_redis.storage import RedisStorage
from tests.redis.redis_support import calls, done, finish_all, new_task, opened, take, total
from tests.servers.redis import RedisServer

HOT = ("claim", "enqueue", "enqueue_one", "finish", "heartbeat", "look", "await", "pass_on")
"""Scripts that run all the time."""
WHOLE = re.compile(r"'(KEYS|SCAN|[HSZ]SCAN|HGETALL|HKEYS|HVALS|SMEMBERS|SUNION|SORT|LREM|LRANGE|LINDEX|LPOS)'")
"""Commands that read the whole of something."""


def parts_of(name: str) -> str:
    folder = files("omniq_redis") / "lua"
    text = (folder / f"{name}.lua").read_text("utf-8")
    first, _, body = text.partition("\n")
    return body + "".join(
        (folder / "parts" / f"{part}.lua").read_text("utf-8") for part in first.removeprefix("--! ").split()
    )


@pytest.mark.parametrize("name", HOT)
def test_a_script_that_runs_all_the_time_reads_nothing_whole(name: str) -> None:
    text = parts_of(name)
    assert WHOLE.findall(text) == []
    assert "'LIMIT'" in text or "ZRANGEBYSCORE" not in text
    assert not re.search(r"'ZRANGE', [^\n]*, 0, -1", text)


@pytest.mark.parametrize("name", HOT)
def test_a_script_that_runs_all_the_time_makes_what_is_for_flows_and_limits_at_its_first_use(name: str) -> None:
    first = (files("omniq_redis") / "lua" / f"{name}.lua").read_text("utf-8").partition("\n")[0]
    at_once = re.sub(r"rare_from.*rare_to", "", first).split()
    assert {"task", "endings", "corrupt", "flows", "limits", "build"}.isdisjoint(at_once)
    # To make a function costs the more, the more it uses of what is around it: here, of what every script has.
    assert "rare_from" not in first or first.startswith("--! base rare_from ")


async def cost_of_a_round(server: RedisServer, store: RedisStorage) -> dict[str, int]:
    """Return how many commands it takes to have a hundred tasks enqueued, claimed, extended and finished."""
    server.ask("CONFIG", "RESETSTAT")
    await store.enqueue([new_task(queue="round") for _ in range(100)])
    claimed = await take(store, "round", n=100)
    await store.heartbeat("w", [Lease(task.id, task.delivery) for task in claimed], 30)
    assert await store.finish(done(claimed)) == [True] * 100
    await store.wait_for_work(["round"], 0)
    found = calls(server)
    # Takes its name from the queue: the next round calls nobody, who would pass that on at any time.
    assert await take(store, "round") == []
    return found


def test_a_round_takes_as_many_commands_with_much_in_the_store_as_with_little(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await cost_of_a_round(redis_server, store)
            empty = await cost_of_a_round(redis_server, store)
            for _ in range(10):
                await store.enqueue([new_task(queue="round", run_at=timedelta(days=1)) for _ in range(500)])
                await store.enqueue([new_task() for _ in range(500)])
            await finish_all(store)
            for _ in range(4):
                await store.enqueue([new_task() for _ in range(500)])
            full = await cost_of_a_round(redis_server, store)
            # The hundred may lie across one more block of the log, which is two commands.
            assert sum(full.values()) <= sum(empty.values()) + 4, (empty, full)
            assert sum(empty.values()) <= 100 + 60, "more than one command a task, and a few for the whole"

    asyncio.run(scenario())


def test_counting_takes_as_many_commands_with_many_tasks_as_with_few(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:

            async def cost() -> int:
                redis_server.ask("CONFIG", "RESETSTAT")
                await store.stats()
                return sum(calls(redis_server).values())

            await store.enqueue([new_task(), new_task(run_at=timedelta(days=1))])
            await cost()
            few = await cost()
            await store.enqueue([new_task() for _ in range(2000)])
            await store.enqueue([new_task(run_at=timedelta(days=1)) for _ in range(2000)])
            assert await cost() == few

    asyncio.run(scenario())


def test_the_first_page_takes_as_many_commands_with_many_tasks_as_with_few(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:

            async def cost() -> int:
                redis_server.ask("CONFIG", "RESETSTAT")
                assert len(await store.list_tasks(TaskQuery(limit=20))) == 20
                return sum(calls(redis_server).values())

            await store.enqueue([new_task() for _ in range(300)])
            await cost()
            few = await cost()
            await store.enqueue([new_task() for _ in range(3000)])
            assert await cost() <= few + 1

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["redis_server", "valkey_server"])
def test_a_waiting_task_takes_half_a_kilobyte(kind: str, namespace: str, request: pytest.FixtureRequest) -> None:
    server: RedisServer = request.getfixturevalue(kind)

    async def scenario() -> None:
        async with opened(server.url, namespace) as store:

            def used() -> int:
                size = server.info("memory")["used_memory_dataset"]
                assert isinstance(size, int)
                return size

            await store.enqueue([new_task()])
            before = used()
            for _ in range(10):
                await store.enqueue(
                    [new_task(name="shop.tasks.fetch", body=b'[["https://a.b/c"], {}]') for _ in range(1000)]
                )
            assert (used() - before) / 10_000 < 560
            await finish_all(store)
            assert (used() - before) / 10_000 < 800
            await store.purge("q")

    asyncio.run(scenario())


def test_nothing_is_left_of_tasks_that_are_gone(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            soon = timedelta(seconds=0.01)
            await store.enqueue([new_task(unique=f"key {number}", result_ttl=0.01) for number in range(150)])
            await store.enqueue([new_task(expires=soon, unique="another", result_ttl=0.01)])
            await store.enqueue([new_task(run_at=timedelta(days=1), expires=timedelta(days=2)) for _ in range(150)])
            await store.heartbeat("w", [], 0.01)
            await store.heartbeat("v", [], 30)
            await store.heartbeat("v", [], 0)
            await finish_all(store)
            await store.recover(100)
            while await store.prune(100) or await total(store, TaskState.SUCCEEDED):
                pass
            while await total(store, TaskState.CANCELLED):
                await store.prune(100)
            ids = [task.id for task in await store.list_tasks(TaskQuery(limit=1000))]
            assert len(ids) == 150
            await store.cancel(ids[:50])
            await store.delete(ids[:100])
            assert await store.purge("q") == 50
            await store.prune(100)
            assert await store.stats() == []
        keys = redis_server.ask("KEYS", f"{{{namespace}}}:*")
        assert isinstance(keys, list)
        assert sorted(key.partition(":")[2] for key in keys) == ["meta", "seq"]

    asyncio.run(scenario())


def test_a_list_of_what_is_rare_goes_on_in_steps_that_are_bounded(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            rare = [new_task(name="rare", tags=("t",)) for _ in range(3)]
            for task in rare:
                await store.enqueue([task])
                await store.enqueue([new_task(queue="other", tags=("u",)) for _ in range(3000)])
            redis_server.ask("CONFIG", "RESETSTAT")
            expected = [task.id for task in rare[::-1]]
            for query in (TaskQuery(name="rare"), TaskQuery(tag="t"), TaskQuery(queue="q", states=[TaskState.READY])):
                assert [task.id for task in await store.list_tasks(query)] == expected
            assert calls(redis_server)["evalsha"] >= 3 * 9, "9,000 tasks, and no more than 1,000 in one step"

    asyncio.run(scenario())


def test_failed_tasks_are_listed_with_as_many_commands_with_many_tasks_as_with_few(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            ids = []
            for _ in range(3):
                await store.enqueue([new_task()])
                (task,) = await take(store)
                error = TaskError(type="ValueError", message="it broke")
                await store.finish([Failed(id=task.id, delivery=task.delivery, error=error)])
                ids.append(task.id)

            async def cost() -> int:
                redis_server.ask("CONFIG", "RESETSTAT")
                page = await store.list_tasks(TaskQuery(states=[TaskState.FAILED]))
                assert [task.id for task in page] == ids[::-1]
                assert page.cursor is None
                return sum(calls(redis_server).values())

            few = await cost()
            for _ in range(4):
                await store.enqueue([new_task() for _ in range(500)])
                await finish_all(store)
            assert await cost() <= few + 2

    asyncio.run(scenario())


@pytest.mark.parametrize("states", [None, [TaskState.READY]])
def test_a_bare_page_of_large_tasks_is_small(
    redis_server: RedisServer, namespace: str, states: list[TaskState] | None
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            for _ in range(20):
                await store.enqueue([new_task(body=b"x" * 900_000)])
            redis_server.ask("CONFIG", "RESETSTAT")
            page = await store.list_tasks(TaskQuery(bare=True, states=states))
            sent = redis_server.info("stats")["total_net_output_bytes"]
            assert [task.omitted and task.omitted.body for task in page] == [900_000] * 20
            assert int(str(sent)) < 100_000

    asyncio.run(scenario())
