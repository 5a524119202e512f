"""Limits on Redis: what they cost, what is left of them, and that no slot is lost by a key that was damaged."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from omniq.limit import Debounce, Limit, Rate, Scope
from omniq.storage import TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Released, StoredTask, TaskState
from omniq.testing import await_until
from omniq.testing.contract.limits import most_in
from omniq_redis.limits import line_words
from omniq_redis.storage import RedisStorage
from tests.redis.redis_support import calls, done, finish_all, new_task, only, opened, python, take
from tests.redis.test_redis_cost import cost_of_a_round
from tests.servers.redis import RedisServer

CLAIMS = """
    import asyncio, sys, time
    from omniq.storage.urls import parse_url
    from omniq.task import Succeeded, TaskState
    from omniq_redis.storage import RedisStorage

    url, namespace, behind = sys.argv[1:]
    true_time = time.time
    time.time = lambda: true_time() - float(behind)

    async def main():
        store = RedisStorage(parse_url(url, namespace))
        await store.open()
        print("ready", flush=True)
        sys.stdin.readline()
        while any(stats.counts[TaskState.READY] for stats in await store.stats()):
            for task in await store.claim({"q": 9}, worker="w", lease=60):
                await store.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"1")])
            await store.wait_for_work(["q"], 0.2)
        await store.close()

    asyncio.run(main())
"""
"""Claims and finishes until no task is ready, by a clock that is behind."""

ONE_OF_EACH = Limit(queue="q", per_key=Limit(concurrency=1))


async def keys_of(store: RedisStorage, n: int = 9) -> list[str]:
    """Claim tasks and return their keys, in the order of the alphabet."""
    return sorted(task.key or "" for task in await take(store, n=n))


def test_a_claim_takes_as_many_commands_with_many_tasks_at_a_limit_as_with_few(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(ONE_OF_EACH)
            costs = []
            for number in (10, 3000):
                await store.enqueue([new_task(key="big") for _ in range(number)])
                await take(store, n=2)
                await store.enqueue([new_task(key=f"small {number}")])
                redis_server.ask("CONFIG", "RESETSTAT")
                assert await keys_of(store, 1) == [f"small {number}"]
                costs.append(sum(calls(redis_server).values()))
            assert costs[0] == costs[1]
            assert costs[0] < 50

    asyncio.run(scenario())


def test_a_claim_moves_a_bounded_number_of_lines_and_the_next_goes_on(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(ONE_OF_EACH)
            names = [f"k{n}" for n in range(1000)]
            for _ in range(2):
                await store.enqueue([new_task(key=name) for name in names])
            held: list[StoredTask] = []
            while len(held) < 1000:
                redis_server.ask("CONFIG", "RESETSTAT")
                some = await take(store, n=1000)
                assert some
                assert sum(calls(redis_server).values()) < 25_000
                held += some
            await store.enqueue([new_task(key="last")])
            found: list[str] = []
            for _ in range(20):
                redis_server.ask("CONFIG", "RESETSTAT")
                found += await keys_of(store, 1)
                assert sum(calls(redis_server).values()) < 8000
                if found:
                    break
                await store.wait_for_work(["q"], 0)
            assert found == ["last"]
            assert all(await store.finish(done(held)))
            again: list[str] = []
            while len(again) < 1000 and (some := await take(store, n=1000)):
                again += [task.key or "" for task in some]
            assert sorted(again) == sorted(names)

    asyncio.run(scenario())


def test_a_plain_queue_takes_no_more_commands_beside_one_with_limits(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await cost_of_a_round(redis_server, store)
            before = await cost_of_a_round(redis_server, store)
            await store.put_limit(ONE_OF_EACH)
            await store.enqueue([new_task(key="a") for _ in range(20)])
            after = await cost_of_a_round(redis_server, store)
            # The end looks whether its queue has a limit; the hundred may lie across one more block of the log.
            assert sum(after.values()) <= sum(before.values()) + 3 + 4, (before, after)

    asyncio.run(scenario())


def test_a_claim_reads_as_much_of_a_limit_with_thousands_of_weights_as_with_one(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            sizes = []
            for number in (1, 5000):
                await store.put_limit(Limit(queue="q", weights={f"k{n}": 2 for n in range(number)}))
                sizes.append(
                    redis_server.ask(
                        "EVAL", "return #redis.call('HGET', KEYS[1], 'queue:q')", 1, f"{{{namespace}}}:limits"
                    )
                )
                await store.enqueue([new_task(key="k0")])
                redis_server.ask("CONFIG", "RESETSTAT")
                assert await keys_of(store) == ["k0"]
                assert calls(redis_server).get("hgetall", 0) == 0
            assert sizes[0] == sizes[1]
            (limit,) = await store.get_limits()
            assert limit.weights == {f"k{n}": 2 for n in range(5000)}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "limit", [Limit(queue="q", concurrency=1, weights={"a": 2, "b": 3}), Limit(queue="q", weights={"a": 2})]
)
@pytest.mark.parametrize("damage", ["HSET", "DEL"])
def test_weights_that_were_damaged_are_named_and_hold_nothing_back(
    redis_server: RedisServer, namespace: str, limit: Limit, damage: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(limit)
            await store.enqueue([new_task(key="a")])
            words = ("a", "many") if damage == "HSET" else ()
            redis_server.ask(damage, f"{{{namespace}}}:weights:q", *words)
            (found,) = await store.check()
            assert "queue:q" in found.message
            assert "omniq limits set" in found.message
            (usage,) = await store.get_limit_usage([Scope("q")])
            assert not usage.is_full
            assert all(
                one.concurrency == limit.concurrency and "a" not in one.weights for one in await store.get_limits()
            )
            assert await keys_of(store) == ["a"]
            # As omniq limits set and declared limits do.
            revision = sum(one.revision for one in await store.get_limits())
            assert await store.put_limit(limit, expected_revision=revision)
            assert await store.put_limit(limit, expected_revision=0) is None
            assert await store.check() == []
            (stored,) = await store.get_limits()
            assert stored.weights == limit.weights

    asyncio.run(scenario())


def test_nothing_is_left_of_limits_and_lines_that_are_gone(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            rate = Rate(1000, per=0.001)
            await store.put_limit(Limit(queue="q", concurrency=5, per_key=Limit(concurrency=1, rate=rate)))
            await store.put_limit(Limit(name="api", concurrency=2, rate=rate))
            for n in range(30):
                await store.enqueue([new_task(key=f"k{n % 5}", limit="api" if n % 2 else None, result_ttl=0.001)])
            soon = Debounce("d", 0.001)
            await store.enqueue([new_task(key="k", unique="d", debounce=soon, result_ttl=0.001) for _ in range(3)])
            number = 0

            async def all_ended() -> bool:
                nonlocal number
                number += await finish_all(store)
                return number == 31

            await await_until(all_ended)
            await store.delete_limit("queue:q")
            await store.delete_limit("name:api")
            await take(store)

            async def only_the_store_is_left() -> bool:
                await store.prune(1000)
                await store.stats()
                keys = redis_server.ask("KEYS", f"{{{namespace}}}:*")
                assert isinstance(keys, list)
                return sorted(key.partition(":")[2] for key in keys) == ["meta", "seq"]

            await await_until(only_the_store_is_left)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "key",
    ["lanes", "slots", "counts", "rates", "running", "sharing:api"]
    + [f"{kind}:q" for kind in ("lines", "lined", "eligible", "parked", "asleep", "resting")],
)
def test_a_key_of_another_type_costs_no_task_and_no_slot(redis_server: RedisServer, namespace: str, key: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            rate = Rate(1000, per=0.001, burst=1000)
            await store.put_limit(Limit(queue="q", concurrency=4, per_key=Limit(concurrency=1, rate=rate)))
            await store.put_limit(Limit(name="api", concurrency=1))
            for name in ("a", "b", "c"):
                await store.enqueue([new_task(key=name) for _ in range(3)])
            await store.enqueue([new_task(limit="api") for _ in range(3)])
            await store.enqueue([new_task() for _ in range(2)])
            held = await take(store, n=4)
            assert await take(store) == []
            redis_server.ask("SET", f"{{{namespace}}}:{key}", "of another type")
            ended = await store.finish(done(held))
            number = sum(ended)

            async def all_ended() -> bool:
                nonlocal number
                await store.recover(100)
                number += await finish_all(store)
                await store.prune(100)
                return number >= 14

            await await_until(all_ended)
            assert number == 14
            usage = await store.get_limit_usage()
            assert [one.running for one in usage] == [0, 0]

    asyncio.run(scenario())


def test_a_slot_of_a_task_that_was_removed_by_hand_comes_back(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
            await store.enqueue([new_task(key="a") for _ in range(2)])
            (task,) = await take(store)
            for command, key in (("HDEL", "running"), ("ZREM", "leased")):
                redis_server.ask(command, f"{{{namespace}}}:{key}", task.id)
            assert await take(store) == []
            await store.prune(100)
            await store.recover(100)
            assert await keys_of(store) == ["a"]

    asyncio.run(scenario())


def test_a_debounced_task_that_runs_when_a_key_is_restored_is_left_alone(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            debounce = Debounce("d", 300)
            (first,) = await store.enqueue([new_task(unique="d", debounce=debounce)])
            assert await store.run_now([first.id]) == [True]
            held = await take(store)
            redis_server.ask("SET", f"{{{namespace}}}:ready:q", "of another type")
            await take(store)
            await store.recover(100)
            await store.enqueue([new_task(unique="d", debounce=debounce)])
            assert await store.wait_finished([first.id], 0) == set()
            assert (await store.stats())[0].counts[TaskState.CANCELLED] == 0
            assert await store.finish(done(held)) == [True]
            assert (await only(store, first.id)).state is TaskState.SUCCEEDED

    asyncio.run(scenario())


def test_a_purge_leaves_a_running_task_that_is_listed_with_those_in_lines(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.enqueue([new_task(key="a") for _ in range(2)])
            (task,) = held = await take(store, n=1)
            redis_server.ask("ZADD", f"{{{namespace}}}:lined:q", 0, task.id)
            assert await store.purge("q", TaskState.READY) == 1
            assert await store.finish(done(held)) == [True]
            assert (await only(store, task.id)).state is TaskState.SUCCEEDED

    asyncio.run(scenario())


def test_who_waits_at_the_limit_of_a_queue_is_not_called_for_more_tasks(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store, opened(redis_server.url, namespace) as other:
            await store.put_limit(Limit(queue="q", concurrency=1))
            await store.enqueue([new_task() for _ in range(2)])
            held = await take(store)
            waits = asyncio.create_task(store.wait_for_work(["q"], 600))

            async def is_stalled() -> bool:
                return redis_server.ask("EXISTS", f"{{{namespace}}}:stalled:q") == 1

            await await_until(is_stalled)
            for key in (None, "a"):
                await other.enqueue([new_task(key=key)])
            await other.enqueue([new_task(id=new_id(), run_at=timedelta(milliseconds=1))])
            await other.stats()  # a call would have come before this answer
            assert redis_server.ask("ZCARD", f"{{{namespace}}}:stalled:q") == 1
            assert redis_server.ask("ZCARD", f"{{{namespace}}}:idle:q") == 0
            assert not waits.done()
            await other.finish(done(held))
            async with asyncio.timeout(20):
                await waits
            assert len(await take(store)) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("key", [None, "a"], ids=["of a queue", "of a key"])
def test_a_rate_holds_in_every_span_for_four_processes_whatever_their_clocks_say(
    redis_server: RedisServer, namespace: str, key: str | None
) -> None:
    rate = Rate(20, per=0.5, burst=3)
    limit = Limit(queue="q", rate=rate) if key is None else Limit(queue="q", per_key=Limit(rate=rate))

    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(limit)
            await store.enqueue([new_task(key=key) for _ in range(60)])
            children = [python(CLAIMS, redis_server.url, namespace, str(behind)) for behind in (0, 0, 3600, -60)]
            for child in children:
                assert child.stdout is not None
                assert child.stdout.readline() == "ready\n"
            for child in children:
                assert child.stdin is not None
                child.stdin.write("go\n")
                child.stdin.flush()
            for child in children:
                child.communicate(timeout=60)
                assert child.returncode == 0
            tasks = await store.list_tasks(TaskQuery(limit=100))
            began = [task.started_at for task in tasks if task.started_at is not None]
            assert len(began) == 60
            assert most_in(began, 0.5) <= 22
            assert most_in(began, 0.025) <= 3

    asyncio.run(scenario())


def test_an_audit_finds_lost_lines_also_where_they_begin_with_tasks_that_are_not_there(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            tasks = await store.enqueue([new_task(key=key) for key in "abc"])
            lines = {key: line_words("q", key, None)[1] for key in "abc"}
            with redis_server.client() as client:
                assert client.hdel(f"{{{namespace}}}:lines:q", *lines.values()) == 3
                for key, ghost in (("b", b"\xff\xfe"), ("c", new_id().encode())):
                    client.zadd(f"{{{namespace}}}:line:".encode() + lines[key], {b"0" * 15 + ghost: -1})
            found = [finding.message for finding in await store.check() if finding.subject == "line"]
            assert len(found) == 3
            assert all(task.id in message for task, message in zip(tasks, sorted(found), strict=True))

    asyncio.run(scenario())


def test_a_start_that_is_given_back_after_a_prune_counts_no_more(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(Limit(name="api", rate=Rate(1, per=3600)))
            await store.enqueue([new_task(limit="api")])
            (task,) = await take(store)
            await store.prune(100)
            assert await store.finish([Released(id=task.id, delivery=task.delivery)]) == [True]
            assert [again.id for again in await take(store)] == [task.id]

    asyncio.run(scenario())


def test_an_entry_of_another_form_among_the_lines_holds_nothing_back(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(ONE_OF_EACH)
            await store.enqueue([new_task(key="a"), new_task(key="b")])
            redis_server.ask("ZADD", f"{{{namespace}}}:eligible:q", 0, "!")
            assert await keys_of(store) == ["a", "b"]

    asyncio.run(scenario())


def test_a_queue_with_limits_is_resumed_and_purged_on_a_server_that_is_full(
    redis_server: RedisServer, namespace: str
) -> None:
    async def scenario() -> None:
        async with opened(redis_server.url, namespace) as store:
            await store.put_limit(ONE_OF_EACH)
            await store.enqueue([new_task(key="a", run_at=timedelta(milliseconds=1)), new_task(key="b")])
            await store.pause("q")
            redis_server.ask("CONFIG", "SET", "maxmemory", 1)
            try:
                await store.resume("q")
                assert await store.purge("q") == 2
            finally:
                redis_server.ask("CONFIG", "SET", "maxmemory", 0)

    asyncio.run(scenario())
