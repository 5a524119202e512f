"""Somebody who can write to the server, with nothing but redis-py: what he writes harms nothing but itself."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
import struct
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from redis import Redis

from omniq import TaskState
from omniq.limit import Limit, Rate, UnreadableLimit
from omniq.schedule import Schedule
from omniq.storage import Lease, TaskQuery
from omniq.storage.corrupt_records import is_corrupt
from omniq.task import Cancelled, Failed, Retry, StoredTask, Succeeded, TaskError
from omniq_redis.storage import RedisStorage
from tests.redis.redis_support import calls, finish_all, new_task, only, opened, raw_client, take, total
from tests.repeating import short_and_long
from tests.servers.redis import RedisServer, binary_of

Test = Callable[..., Coroutine[Any, Any, None]]
PREFIX = b"{shop}:"
FUTURE = b"\x00\x06\x80" + b"\x00" * 5


def on_a_loop(test: Test) -> Callable[..., None]:
    """Run a test that is a coroutine function on an event loop of its own."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), binary=binary_of("redis")) as server:
        yield server


@pytest.fixture
def attacker(server: RedisServer) -> Iterator[Redis]:
    with raw_client(server) as client:
        client.flushall()
        yield client


async def found_by(store: RedisStorage) -> str:
    return "\n".join(finding.message for finding in await store.check(1000))


async def answers(store: RedisStorage) -> None:
    """Do what each worker does at its start and again and again, and what people ask for."""
    await store.stats()
    await store.workers()
    await store.recover(100)
    await store.prune(100)
    await store.wait_for_work(["q"], 0.01)
    for states in (None, {TaskState.FAILED}, {TaskState.CANCELLED}):
        await store.list_tasks(TaskQuery(states=states, limit=100))
    await store.get_schedules()
    await store.due_schedules(10)
    await store.get_limit_usage()
    await store.diagnose()


@on_a_loop
async def test_a_task_whose_id_is_no_text_is_ended_and_the_others_of_its_claim_run(
    server: RedisServer, attacker: Redis
) -> None:
    async with opened(server.url, "shop") as store:
        ids = [task.id for task in [new_task() for _ in range(10)]]
        await store.enqueue([new_task(id=one, max_retries=0) for one in ids])
        order = attacker.get(PREFIX + b"o:" + ids[0].encode())
        assert isinstance(order, bytes)
        (member,) = cast("list[bytes]", attacker.zrange(PREFIX + b"ready:q", 0, 0))
        attacker.set(PREFIX + b"o:\xff\xfe", order)
        attacker.zadd(PREFIX + b"ready:q", {member[:15] + b"\xff\xfe": 0})

        claimed = await take(store)
        assert {task.id for task in claimed} == set(ids)
        assert attacker.hlen(PREFIX + b"running") == len(ids)
        await answers(store)


@pytest.mark.parametrize("past", [b"x", b"\xff" * 60, b"", b"w" * 30])
@on_a_loop
async def test_a_task_with_a_past_that_is_none_is_ended_and_the_others_of_its_claim_run(
    server: RedisServer, attacker: Redis, past: bytes
) -> None:
    async with opened(server.url, "shop") as store:
        tasks = [new_task(max_retries=0) for _ in range(10)]
        await store.enqueue(tasks)
        bad = tasks[3].id
        attacker.set(PREFIX + b"h:" + bad.encode(), past)
        await answers(store)

        assert {task.id for task in await take(store)} == {task.id for task in tasks} - {bad}
        ended = await only(store, bad)
        assert (ended.state, is_corrupt(ended), ended.body) == (TaskState.FAILED, True, tasks[3].body)
        assert past in bytes(attacker.get(PREFIX + b"h:" + bad.encode()) or b"")  # type: ignore[arg-type]  # redis-py's types are those of both its clients
        assert bad in await found_by(store)
        assert await store.retry([bad]) == [True]
        assert [task.id for task in await take(store)] == [bad]


@pytest.mark.parametrize("member", [b"", b"x", b"\xff" * 3, b"\xff" * 20, b"\x00" * 16 + b"nobody"], ids=repr)
@on_a_loop
async def test_what_is_no_place_of_a_task_among_the_ready_is_dropped(
    server: RedisServer, attacker: Redis, member: bytes
) -> None:
    async with opened(server.url, "shop") as store:
        await store.enqueue([new_task() for _ in range(3)])
        attacker.zadd(PREFIX + b"ready:q", {member: 0})
        await answers(store)

        assert await finish_all(store) == 3
        assert attacker.exists(PREFIX + b"ready:q") == 0


@pytest.mark.parametrize("number", short_and_long(20_000, 500_000))
@on_a_loop
async def test_any_number_of_them_is_dropped_in_steps_that_hold_up_neither_the_server_nor_another_queue(
    server: RedisServer, attacker: Redis, number: int
) -> None:
    async with opened(server.url, "shop") as store, opened(server.url, "shop") as other:
        for start in range(0, number, 10_000):
            attacker.zadd(PREFIX + b"ready:q", {b"\x00" * 15 + b"%d" % one: 0 for one in range(start, start + 10_000)})
        (task,) = await _enqueued(store)
        await store.enqueue([new_task(queue="other") for _ in range(number // 1000 + 20)])
        attacker.config_resetstat()

        looks = 0
        found: list[str] = []
        while not found:
            # Behind one that has any number of them, a queue has its turn in the same claim.
            claimed = await take(store, "q", "other", n=1)
            assert "other" in {one.queue for one in claimed}
            assert [one.queue for one in await take(other, "other", n=1)] == ["other"]
            found = [one.id for one in claimed if one.queue == "q"]
            looks += 1
        assert found == [task]
        # A claim looks at 2,000, and takes some dozens of commands for that.
        assert number // 2000 <= looks <= number // 2000 + 5
        assert total_of(calls(server), "zrange", "zremrangebyrank", "exists", "mget") < 50 * looks


def total_of(told: dict[str, int], *commands: str) -> int:
    return sum(told.get(command, 0) for command in commands)


async def _enqueued(store: RedisStorage) -> list[str]:
    task = new_task()
    await store.enqueue([task])
    return [task.id]


@pytest.mark.parametrize("key", ["queues", "lanes"])
@on_a_loop
async def test_a_name_of_a_queue_that_is_no_text_is_passed_over(server: RedisServer, attacker: Redis, key: str) -> None:
    async with opened(server.url, "shop") as store:
        await _enqueued(store)
        attacker.hset(PREFIX + b"lanes", b"\xff\xfe", b"p")
        if key == "queues":
            attacker.sadd(PREFIX + b"queues", b"\xff\xfe")
        await answers(store)

        assert [stats.queue for stats in await store.stats()] == ["q"]
        assert "queue" in await found_by(store)
        assert await finish_all(store) == 1


KEYS = [
    *(
        f"{what}:q"
        for what in (
            "ready",
            "scheduled",
            "succeeded",
            "failed",
            "cancelled",
            "order:failed",
            "order:cancelled",
            "idle",
            "lined",
            "eligible",
            "stalled",
        )
    ),
    *("limits", "lanes", "slots", "rates"),
    *("queues", "leased", "expiring", "log", "log:0", "schedules", "schedules:due", "workers", "about"),
    *("meta", "seq", "running", "counts", "unique", "waiting", "o:runs", "h:again", "aside", "restoring"),
]
"""Each kind of key that the scripts write, of a namespace in which is what :func:`fill` stores."""
LIVE = {"ready", "runs", "again", "expiring", "unique", "later"}
ENDED = {"done": TaskState.SUCCEEDED, "failed": TaskState.FAILED, "cancelled": TaskState.CANCELLED}
ERROR = TaskError(type="E", message="of attempt 1")


async def fill(store: RedisStorage) -> dict[str, StoredTask]:
    """Store something under each key; return the tasks that run."""
    soon, far = timedelta(seconds=0.2), timedelta(hours=1)
    await store.enqueue([new_task(id=name, max_retries=3) for name in (*ENDED, "runs", "again")])
    claimed = {task.id: task for task in await take(store)}
    outcomes = [
        Succeeded(id="done", delivery=1, result=b"1"),
        Failed(id="failed", delivery=1, error=ERROR),
        Cancelled(id="cancelled", delivery=1),
        Retry(id="again", delivery=1, error=ERROR, delay=0.0),
    ]
    assert all(await store.finish(outcomes))
    await store.enqueue([new_task(id="ready"), new_task(id="expiring", expires=far), new_task(id="unique", unique="k")])
    await store.enqueue([new_task(id="later", run_at=soon), new_task(id="of another", queue="other")])
    await store.enqueue([new_task(id="paused", queue="held up")])
    await store.pause("held up")
    await store.heartbeat("w", [Lease("runs", 1)], 60, "about it")
    await store.put_schedule(Schedule(id="s", task=new_task(), trigger="{}", next_run=datetime.now(UTC)))
    return claimed


def of_another_type(client: Redis, key: str) -> None:
    """Put a key of another type in the place of one."""
    name = PREFIX + key.encode()
    if client.type(name) == b"string":
        client.delete(name)
        client.rpush(name, "no string")
    else:
        client.set(name, "x")


@pytest.mark.parametrize("key", KEYS)
@on_a_loop
async def test_a_key_of_another_type_stops_nothing_and_no_change_is_made_in_part(
    server: RedisServer, attacker: Redis, key: str
) -> None:
    async with opened(server.url, "shop") as store:
        claimed = await fill(store)
        of_another_type(attacker, key)
        # What is of one task is named with that, or of no consequence.
        shown = key in ("o:runs", "h:again", "log:0", "idle:q", "aside", "restoring") or f"{key}'" in await found_by(
            store
        )
        assert shown, await found_by(store)

        new = new_task(id="new", unique="new key", run_at=timedelta(seconds=0.2))
        assert [one.created for one in await store.enqueue([new, new_task(id="newer")])] == [True, True]
        assert [one.created for one in await store.enqueue([new, new_task(id="newer")])] == [False, False]
        assert [task.id for task in await take(store, "q", "other") if task.queue == "other"] == ["of another"]
        await answers(store)
        if key == "schedules":
            assert await store.put_schedule(Schedule(id="s", task=new_task(), trigger="{}", next_run=datetime.now(UTC)))
        await store.due_schedules(1)

        # Nothing that was acknowledged is lost, and nothing runs that has ended.
        await store.recover(100)
        assert [one.id for one in await store.due_schedules(10)] == ["s"]
        left = {"new", "newer", *LIVE}
        if key == "o:runs":
            assert is_corrupt(await only(store, "runs"))
            assert "omniq tasks delete runs" in await found_by(store)
            assert await store.delete(["runs"]) == [True]
            left.remove("runs")
        for task_id in left:
            await eventually_runs(store, task_id)
        for task_id, state in ENDED.items():
            assert (await only(store, task_id)).state is state
            if not key.startswith("log"):
                assert task_id in {task.id for task in await store.list_tasks(TaskQuery(states={state}, limit=100))}
        late = Succeeded(id="runs", delivery=claimed["runs"].delivery, result=b"")
        running = [task for task in await store.get(sorted(left)) if task is not None]
        held = {task.id: task.delivery for task in running}
        assert await store.finish([late]) == [held.get("runs") == 1]
        ends = [Succeeded(id=name, delivery=delivery, result=b"") for name, delivery in held.items() if name != "runs"]
        assert await store.finish(ends) == [True] * len(ends)
        await answers(store)


async def eventually_runs(store: RedisStorage, task_id: str) -> None:
    """Claim until a task runs."""
    for _ in range(200):
        if (await only(store, task_id)).state is TaskState.RUNNING:
            return
        if not await take(store):
            await store.wait_for_work(["q"], 0.1)
    raise AssertionError(f"{await only(store, task_id)} was not claimed")


@pytest.mark.parametrize("number", [b"many", b"9223372036854775807", b""])
@on_a_loop
async def test_a_number_of_tasks_that_is_none_is_counted_from_the_log_again(
    server: RedisServer, attacker: Redis, number: bytes
) -> None:
    async with opened(server.url, "shop") as store:
        first = [new_task() for _ in range(5)]
        await store.enqueue(first)
        attacker.set(PREFIX + b"seq", number)
        later = [new_task() for _ in range(5)]
        await store.enqueue(later)

        assert [task.id for task in await take(store)] == [task.id for task in [*first, *later]]
        assert len((await store.list_tasks(TaskQuery(limit=100))).tasks) == 10


@on_a_loop
async def test_what_was_put_aside_is_kept_and_named_until_it_is_removed(server: RedisServer, attacker: Redis) -> None:
    async with opened(server.url, "shop") as store:
        await store.enqueue([new_task()])
        attacker.set(PREFIX + b"ready:q", b"of somebody else's")
        await store.enqueue([new_task()])

        assert attacker.get(PREFIX + b"aside:ready:q") == b"of somebody else's"
        assert "redis-cli UNLINK '{shop}:aside:ready:q'" in await found_by(store)
        attacker.unlink(PREFIX + b"aside:ready:q")
        assert await found_by(store) == ""
        await store.recover(1)
        assert await finish_all(store) == 2


@on_a_loop
async def test_the_tasks_of_a_queue_that_was_put_aside_are_found_again_in_steps(
    server: RedisServer, attacker: Redis
) -> None:
    async with opened(server.url, "shop") as store:
        await store.enqueue([new_task() for _ in range(20_000)])
        attacker.set(PREFIX + b"ready:q", b"x")
        await store.recover(1)  # nothing has come upon it yet
        assert await take(store) == []
        attacker.config_resetstat()
        await store.recover(1)

        assert calls(server)["evalsha"] > 4
        assert await total(store, TaskState.READY) == 20_000
        assert await finish_all(store) == 20_000


@pytest.mark.parametrize("record", [b"", b"x", b"\xff" * 60, b"\x00" * 35], ids=repr)
@on_a_loop
async def test_a_running_record_that_is_none_keeps_no_other_from_being_recovered(
    server: RedisServer, attacker: Redis, record: bytes
) -> None:
    async with opened(server.url, "shop") as store:
        tasks = [new_task(max_retries=3) for _ in range(5)]
        await store.enqueue(tasks)
        assert len(await take(store)) == 5
        bad = tasks[2].id
        attacker.hset(PREFIX + b"running", bad, record)
        await answers(store)
        attacker.zadd(PREFIX + b"leased", {task.id: 1 for task in tasks})

        recovered = {task.id for task in await store.recover(100)}
        assert recovered == {task.id for task in tasks}
        assert {task.id for task in await take(store)} == recovered - {bad}
        assert is_corrupt(await only(store, bad))
        assert attacker.hget(PREFIX + b"running", bad) is None


@on_a_loop
async def test_a_running_task_whose_lease_was_taken_away_is_recovered(server: RedisServer, attacker: Redis) -> None:
    async with opened(server.url, "shop") as store:
        (task,) = await _enqueued(store)
        await take(store)
        attacker.delete(PREFIX + b"leased")

        assert [one.id for one in await store.recover(10)] == [task]
        assert [one.id for one in await take(store)] == [task]


@on_a_loop
async def test_a_schedule_that_cannot_be_read_stands_before_no_other_and_can_be_deleted(
    server: RedisServer, attacker: Redis
) -> None:
    async with opened(server.url, "shop") as store:
        past = datetime.now(UTC) - timedelta(hours=1)
        for name in ("good", *(f"bad{number}" for number in range(5))):
            await store.put_schedule(Schedule(id=name, task=new_task(), trigger="{}", next_run=past))
        for number, text in enumerate([b"", b"x", b"\xff" * 30, b"\x00" * 8 + b"[]", b"\x00" * 7 + b"\x01{}"]):
            attacker.hset(PREFIX + b"schedules", f"bad{number}", text)
            attacker.zadd(PREFIX + b"schedules:due", {f"bad{number}": 1})
        await answers(store)

        assert [one.id for one in await store.due_schedules(1)] == ["good"]
        assert [one.id for one in await store.get_schedules()] == ["good"]
        found = await found_by(store)
        for number in range(5):
            assert f"omniq schedules delete bad{number}" in found
            assert await store.delete_schedule(f"bad{number}")
        assert re.search(r"\bbad\d", await found_by(store)) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"x",
        b"\x00" * 64,
        b"\x00" * 64 + b"x",
        *(b"\x00" * 64 + one for one in (b"[]", b"{}", b"7", b"[" * 100_000)),
    ],
    ids=lambda text: repr(text[:70]),
)
@on_a_loop
async def test_a_limit_that_is_none_but_has_a_fitting_check_stops_nothing_else_and_can_be_set_anew(
    server: RedisServer, attacker: Redis, text: bytes
) -> None:
    async with opened(server.url, "shop") as store:
        for name in "ab":
            assert await store.put_limit(Limit(queue=name, concurrency=1))
        revision = (1).to_bytes(8, "big")
        check = hashlib.sha1(revision + text).hexdigest()[:16].encode()
        attacker.hset(PREFIX + b"limits", "queue:a", revision + check + text)
        await answers(store)

        bad, good = await store.get_limits()
        assert (type(bad), bad.revision, good.concurrency) == (UnreadableLimit, 0, 1)
        assert "omniq limits set" in await found_by(store)
        assert await store.put_limit(Limit(queue="a", concurrency=2), expected_revision=0)
        assert [limit.concurrency for limit in await store.get_limits()] == [2, 1]
        assert await found_by(store) == ""


@on_a_loop
async def test_a_rate_whose_next_start_no_calendar_can_hold_is_told_of(server: RedisServer, attacker: Redis) -> None:
    async with opened(server.url, "shop") as store:
        await store.put_limit(Limit(queue="q", rate=Rate(1, per=60)))
        stored = cast("bytes", attacker.hget(PREFIX + b"limits", "queue:q"))
        text = struct.pack(">QQQ", 0, 2**64 - 1, 1) + stored[48:]
        check = hashlib.sha1(stored[:8] + text).hexdigest()[:16].encode()
        attacker.hset(PREFIX + b"limits", "queue:q", stored[:8] + check + text)
        attacker.zadd(PREFIX + b"rates", {"qq": 1e19})
        (usage,) = await store.get_limit_usage()
        assert usage.next_start is not None


@on_a_loop
async def test_tasks_that_are_enqueued_one_by_one_are_listed_after_the_log_was_put_aside(
    server: RedisServer, attacker: Redis
) -> None:
    async with opened(server.url, "shop") as store:
        tasks = [new_task() for _ in range(3)]
        await store.enqueue(tasks[:1])
        attacker.set(PREFIX + b"log", "x")
        for task in tasks[1:]:
            await store.enqueue([task])
        listed = await store.list_tasks(TaskQuery(limit=100))
        assert {task.id for task in listed} == {task.id for task in tasks}


@on_a_loop
async def test_a_record_put_in_the_place_of_another_is_of_the_task_that_was_asked_for_or_of_none(
    server: RedisServer, attacker: Redis
) -> None:
    async with opened(server.url, "shop") as store:
        one, other = new_task(queue="a"), new_task(queue="b")
        await store.enqueue([one, other])
        order = attacker.get(PREFIX + b"o:" + one.id.encode())
        attacker.set(PREFIX + b"o:" + other.id.encode(), order)  # type: ignore[arg-type]  # redis-py's types are those of both its clients

        found = await store.get([one.id, other.id])
        assert [None if task is None else task.id for task in found] == [one.id, other.id]
        assert await take(store, "b") == []
        assert is_corrupt(await only(store, other.id))
        assert [task.id for task in await take(store, "a")] == [one.id]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda client: client.hset(PREFIX + b"counts", "q", "many"), id="counts"),
        pytest.param(lambda client: client.hset(PREFIX + b"workers", "w", "x"), id="worker"),
        pytest.param(lambda client: client.hset(PREFIX + b"workers", b"\xff", FUTURE * 2), id="named \\xff"),
        pytest.param(lambda client: client.hset(PREFIX + b"about", "w", b"\xff"), id="about"),
        pytest.param(lambda client: client.hset(PREFIX + b"unique", "key", b"\xff"), id="unique"),
        pytest.param(lambda client: client.hset(PREFIX + b"log:0", "x", b"\xff"), id="log"),
        pytest.param(lambda client: client.hset(PREFIX + b"meta", "lost_at", b"9" * 5000), id="lost_at"),
    ],
)
@on_a_loop
async def test_other_records_that_cannot_be_read_keep_nothing_from_running(
    server: RedisServer, attacker: Redis, spoil: Callable[[Redis], object]
) -> None:
    async with opened(server.url, "shop") as store:
        await store.heartbeat("w", [], 30, "about it")
        spoil(attacker)
        await answers(store)
        (answer,) = await store.enqueue([new_task(unique="key")])

        assert answer.created
        assert await finish_all(store) == 1
        await answers(store)
        await found_by(store)
