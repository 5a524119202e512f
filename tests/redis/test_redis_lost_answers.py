"""Every script that writes, when it was run and its answer lost: the call is repeated, and changes nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from omniq.schedule import Schedule
from omniq.storage import Lease, TaskQuery
from omniq.task import Progress, Retry, TaskState
from omniq_redis.scripts import script
from omniq_redis.storage import RedisStorage
from tests.redis.redis_support import done, new_task, opened, take
from tests.servers.proxy import Cut, Proxy
from tests.servers.redis import RedisServer

Step = Callable[[], Awaitable[Any]]


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as proxy:
        yield proxy


def lose_answer(proxy: Proxy, name: str) -> Cut:
    """Lose the next answer of a script."""
    sha = script(name).sha
    return proxy.cut_reply(lambda request: sha in request)


async def prepared(store: RedisStorage, verb: str) -> tuple[str, Step]:
    """Bring the store to where an operation has something to do; give the script's name, and the operation."""
    ids = [stored.id for stored in await store.enqueue([new_task(unique=f"key {n}") for n in range(3)])]
    schedule = await store.put_schedule(Schedule(id="s", task=new_task(), trigger="[]", next_run=await store.now()))
    assert schedule is not None
    match verb:
        case "enqueue":
            tasks = [new_task(unique="key"), new_task(run_at=timedelta(days=1))]
            return "enqueue", lambda: store.enqueue(tasks)
        case "enqueue one":
            task = new_task()
            return "enqueue_one", lambda: store.enqueue([task])
        case "enqueue on a thread":
            task = new_task()
            return "enqueue_one", lambda: asyncio.to_thread(store.enqueue_blocking, [task])
        case "finish":
            claimed = await take(store)
            return "finish", lambda: store.finish(done(claimed))
        case "put back":
            claimed = await take(store)
            outcomes = [Retry(id=task.id, delivery=1, delay=0) for task in claimed]
            return "finish", lambda: store.finish(outcomes)
        case "heartbeat":
            leases = [Lease(task.id, 1) for task in await take(store)]
            return "heartbeat", lambda: store.heartbeat("w", leases, 300)
        case "recover":
            await take(store, lease=0.0)
            return "recover", lambda: store.recover(10)
        case "cancel" | "delete":
            return verb, lambda: getattr(store, verb)(ids)
        case "retry":
            await store.cancel(ids)
            return "retry", lambda: store.retry(ids)
        case "run now":
            later = [new_task(run_at=timedelta(hours=1)) for _ in range(3)]
            await store.enqueue(later)
            return "run_now", lambda: store.run_now([task.id for task in later])
        case "purge":
            return "purge", lambda: store.purge("q")
        case "prune":
            await store.enqueue([new_task(result_ttl=0) for _ in range(3)])
            await store.finish(done(await take(store)))
            return "prune", lambda: store.prune(100)
        case "pause" | "resume":
            if verb == "resume":
                await store.pause("q")
            return verb, lambda: getattr(store, verb)("q")
        case "progress":
            await take(store)
            return "progress", lambda: store.set_progress({Lease(ids[0], 1): Progress(done=1)})
        case "put_schedule":
            return "put_schedule", lambda: store.put_schedule(evolve(schedule, trigger="new"), 1)
        case "delete_schedule":
            return "delete_schedule", lambda: store.delete_schedule("s")
        case "fire":
            task = new_task()
            return "fire", lambda: store.fire(evolve(schedule, next_run=None, last_task=task.id), [task])
    raise ValueError(verb)


async def seen(store: RedisStorage) -> object:
    """Return what there is to see of a store, but for what differs from run to run."""
    tasks = await store.list_tasks(TaskQuery(limit=100))
    schedules = await store.get_schedules()
    return (
        [(task.state, task.attempt, task.delivery, task.worker, task.unique, task.progress) for task in tasks],
        [(schedule.revision, schedule.trigger, schedule.next_run is None) for schedule in schedules],
        [(stats.queue, stats.paused, dict(stats.counts)) for stats in await store.stats()],
    )


@pytest.mark.parametrize(
    "verb",
    [
        "enqueue", "enqueue one", "enqueue on a thread", "finish", "put back", "heartbeat", "recover", "cancel",
        "delete", "retry", "run now", "purge", "prune", "pause", "resume", "progress", "put_schedule",
        "delete_schedule", "fire",
    ],
)  # fmt: skip
def test_an_operation_whose_answer_is_lost_is_done_once(
    redis_server: RedisServer, proxy: Proxy, namespace: str, verb: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            _, act = await prepared(store, verb)
            await act()
            expected = await seen(store)
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with opened(url, f"{namespace}x") as store:
            name, act = await prepared(store, verb)
            # So that the script is known, and its first answer is the one that counts.
            redis_server.ask("SCRIPT", "LOAD", script(name).source.decode())
            cut = lose_answer(proxy, name)
            await asyncio.wait_for(act(), 30)
            assert cut.happened
            assert await seen(store) == expected

    asyncio.run(scenario())


def test_what_was_claimed_without_an_answer_comes_back_after_its_lease(
    redis_server: RedisServer, proxy: Proxy, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(f"redis://127.0.0.1:{proxy.port}/0", namespace) as store:
            await store.enqueue([new_task() for _ in range(3)])
            await take(store, "nothing")
            cut = lose_answer(proxy, "claim")
            assert await take(store, n=2, lease=0.01) != []
            assert cut.happened
            await asyncio.sleep(0.02)  # longer than the lease
            recovered = await store.recover(10)
            assert {task.state for task in recovered} == {TaskState.READY}
            assert len(await take(store)) == 3

    asyncio.run(scenario())


def test_a_network_that_resets_every_connection_is_waited_for(
    redis_server: RedisServer, proxy: Proxy, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(f"redis://127.0.0.1:{proxy.port}/0", namespace) as store:
            await store.enqueue([new_task()])
            assert store.enqueue_blocking([new_task()]) is not None
            proxy.reset()
            waiting = asyncio.create_task(store.enqueue([new_task()]))
            thread = asyncio.create_task(asyncio.to_thread(store.enqueue_blocking, [new_task()]))
            await asyncio.sleep(0.2)  # by then it waits
            proxy.pass_on()
            assert (await asyncio.wait_for(waiting, 30))[0].created
            assert await asyncio.wait_for(thread, 30) is not None
            assert len(await take(store)) == 4

    asyncio.run(scenario())


def test_a_slow_line_that_splits_every_message_changes_nothing(
    redis_server: RedisServer, proxy: Proxy, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(f"redis://127.0.0.1:{proxy.port}/0", namespace) as store:
            proxy.trickle(size=50, pause=0)
            tasks = [new_task(body=bytes([n]) * 300) for n in range(20)]
            await asyncio.gather(*(store.enqueue([task]) for task in tasks))
            claimed = await take(store)
            assert sorted(task.body for task in claimed) == [task.body for task in tasks]
            assert all(await store.finish(done(claimed)))

    asyncio.run(scenario())
