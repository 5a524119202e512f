"""Records that cannot be read, or are not there: they are set aside, and hinder nobody."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from omniq.schedule import Schedule
from omniq.storage import TaskQuery
from omniq.task import Failed, TaskError, TaskState
from tests.redis.redis_support import new_task, only, opened, take, total
from tests.servers.redis import RedisServer


def test_a_task_that_cannot_be_read_fails_and_the_others_are_claimed(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks = [new_task() for _ in range(3)]
            await store.enqueue(tasks)
            key = f"{{{namespace}}}:o:{tasks[1].id}"
            # The first letter of the body, behind the head of 49 bytes and the queue's name.
            redis_server.ask("SETRANGE", key, 50, "?")
            assert [task.id for task in await take(store)] == [tasks[0].id, tasks[2].id]
            broken = await only(store, tasks[1].id)
            assert broken.state is TaskState.FAILED
            assert broken.error is not None
            assert broken.error.type == "CorruptRecord"
            assert await total(store, TaskState.FAILED) == 1
            assert [task.id for task in await store.list_tasks(TaskQuery())] == [task.id for task in tasks[::-1]]
            assert await store.delete([tasks[1].id]) == [True]

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", [("DEL",), ("SET", "short")])
def test_a_task_whose_order_is_gone_hinders_nobody(
    redis_server: RedisServer, namespace: str, damage: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks = [new_task() for _ in range(3)]
            await store.enqueue(tasks)
            command, *rest = damage
            redis_server.ask(command, f"{{{namespace}}}:o:{tasks[0].id}", *rest)
            assert [task.id for task in await take(store)] == [tasks[1].id, tasks[2].id]
            assert await take(store) == []
            assert await total(store, TaskState.READY) == 0

    asyncio.run(scenario())


def test_a_schedule_that_cannot_be_read_keeps_no_other_from_firing(
    redis_server: RedisServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            for name in ("a", "b"):
                await store.put_schedule(Schedule(id=name, task=new_task(), trigger="[]", next_run=await store.now()))
            redis_server.ask("HSET", f"{{{namespace}}}:schedules", "a", "revision" + "[" * 100_000)
            assert [schedule.id for schedule in await store.due_schedules(10)] == ["b"]
            assert "a schedule cannot be read" in caplog.text

    asyncio.run(scenario())


def test_times_are_exact_to_the_microsecond_as_far_as_there_are_any(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
            exact = datetime(2199, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
            task = new_task(run_at=exact, expires=last)
            endless = new_task(run_at=timedelta.max, expires=timedelta.max, result_ttl=1e300)
            await store.enqueue([task, endless])
            stored = await only(store, task.id)
            assert (stored.run_at, stored.expires_at) == (exact, last)
            assert (await only(store, endless.id)).run_at.year == 9999
            assert await store.cancel([task.id, endless.id]) == [True, True]
            assert (await only(store, endless.id)).result_ttl == 1e300
            await store.prune(10)
            assert await total(store, TaskState.CANCELLED) == 2

    asyncio.run(scenario())


def test_an_error_of_any_text_is_kept(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            (stored,) = await store.enqueue([new_task()])
            await take(store)
            error = TaskError(type="E", message="\ud800 lone, \0 and \N{SNOWMAN}", traceback="x" * 100_000)
            assert await store.finish([Failed(id=stored.id, delivery=1, error=error)]) == [True]
            assert (await only(store, stored.id)).error == error

    asyncio.run(scenario())


def test_a_lost_worker_of_any_name_is_named_in_the_error(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            (stored,) = await store.enqueue([new_task(max_retries=0)])
            await take(store, lease=0.0, worker='w "quoted" ☂ \\ /')
            (lost,) = await store.recover(1)
            assert lost.id == stored.id
            assert lost.error is not None
            assert 'w "quoted" ☂ \\ /' in lost.error.message

    asyncio.run(scenario())
