"""What limits promise: never over one, no slot that leaks or stands idle beside permitted work, and fair shares."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import pytest
from attrs import evolve

from omniq.errors import ConfigurationError
from omniq.flow import NewFlow, NewGate
from omniq.limit import Debounce, Limit, Rate, Scope
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.task import Feed, NewTask, StoredTask, TaskState
from omniq.testing.contract.base import Contract, needs_fixtures, patient, with_limits
from omniq.testing.contract.limit_driver import Crowd, LimitDriver
from omniq.testing.contract.steps import (
    HELD,
    OUTCOMES,
    PROMPT,
    add,
    lapsed,
    later,
    new_task,
    outcome,
    record,
    states,
    take,
)
from omniq.testing.contract.stores import Stores
from omniq.testing.contract.waiting import TEN_MINUTES, arrival, waiting

__all__ = ["LimitContract", "LoseLine"]

READY, RUNNING, CANCELLED = TaskState.READY, TaskState.RUNNING, TaskState.CANCELLED
EPISODES = 3
"""Random runs under random limits."""
AGES = 3600.0
"""Seconds: a period within which a test ends for certain."""
MANY = 600
MORE_THAN_A_STEP = 1001
"""More lines than one claim moves, in any store."""
CLAIMS = 10
"""Claims in which so many lines are looked at, each of them several times."""


async def keys(store: Storage, limit: int = 1, *, queue: str = "work") -> list[str | None]:
    """Claim tasks and return their keys."""
    return [task.key for task in await take(store, limit, queue=queue)]


async def add_keyed(store: Storage, *names: str, **options: Any) -> list[str]:
    """Enqueue a task for each key."""
    return await add(store, *[new_task(key=name, **options) for name in names])


def most_in(moments: Sequence[datetime], per: float) -> int:
    """Return how many of some moments lie within any span of a time, its end excluded."""
    ordered = sorted(moments)
    span = timedelta(seconds=per)
    return max(sum(1 for one in ordered[n:] if one < first + span) for n, first in enumerate(ordered))


def debounced(key: str, wait: float = AGES, max_wait: float | None = None, **options: Any) -> NewTask:
    """Return a debounced task."""
    return new_task(unique=key, debounce=Debounce(key, wait, max_wait), **options)


LoseLine: TypeAlias = Callable[[str, str], None]
"""Removes what a store keeps of the line of a queue and a key, behind the storage's back."""


class LimitContract(Contract):
    """Storages that hold limits keep these."""

    @pytest.fixture
    def lose_line(self) -> LoseLine | None:
        """Return what removes a line; None: the test of it is not asked."""
        return None

    async def test_a_store_without_limits_says_so(self, store: Storage) -> None:
        if store.limits.task_limits:
            assert await store.get_limits() == []
            return
        with pytest.raises(ConfigurationError, match=type(store).__name__):
            await store.put_limit(Limit(queue="work", concurrency=1))

    # Concurrency

    @with_limits
    @pytest.mark.parametrize("kind", OUTCOMES)
    async def test_a_queue_runs_no_more_than_its_limit_and_gets_slots_back(self, store: Storage, kind: str) -> None:
        await store.put_limit(Limit(queue="work", concurrency=2))
        await add(store, *[new_task() for _ in range(5)])
        first = await take(store, 5)
        assert len(first) == 2
        assert await take(store, 5) == []
        assert await store.finish([outcome(kind, first[0])]) == [True]
        assert await store.finish([outcome(kind, first[0])]) == [False]
        assert len(await take(store, 5)) == 1

    @with_limits
    @pytest.mark.parametrize("kind", OUTCOMES)
    async def test_a_key_runs_no_more_than_its_limit_and_gets_slots_back(self, store: Storage, kind: str) -> None:
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        await add_keyed(store, "a", "a", "a", "b")
        first = await take(store, 5)
        assert sorted(task.key or "" for task in first) == ["a", "b"]
        assert await take(store, 5) == []
        (held,) = [task for task in first if task.key == "a"]
        assert await store.finish([outcome(kind, held)]) == [True]
        assert await keys(store, 5) == ["a"]

    @with_limits
    async def test_a_task_tells_its_key_and_its_limit(self, store: Storage) -> None:
        (task_id,) = await add(store, new_task(key="ä-1", limit="stripe"))
        assert ((task := await record(store, task_id)).key, task.limit) == ("ä-1", "stripe")
        (task,) = await take(store)
        assert (task.key, task.limit) == ("ä-1", "stripe")

    @with_limits
    async def test_keys_are_apart_in_each_queue_and_tasks_without_one_have_no_such_limit(self, store: Storage) -> None:
        for queue in ("work", "other"):
            await store.put_limit(Limit(queue=queue, per_key=Limit(concurrency=1)))
            await add_keyed(store, "a", "a", queue=queue)
        await add(store, *[new_task() for _ in range(3)])
        assert Counter(await keys(store, 9)) == {"a": 1, None: 3}
        assert await keys(store, 9, queue="other") == ["a"]

    @with_limits
    @pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "x"}, {"key": "a", "limit": "x"}], ids=str)
    async def test_a_slot_comes_back_when_the_lost_task_is_recovered(
        self, store: Storage, place: dict[str, str]
    ) -> None:
        await store.put_limit(Limit(queue="work", concurrency=None if place else 1, per_key=Limit(concurrency=1)))
        await store.put_limit(Limit(name="x", concurrency=1))
        await add(store, *[new_task(**place, max_retries=0) for _ in range(2)])
        claimed = await take(store, 2, lease=0.05)
        assert len(claimed) == 1
        await lapsed(store, claimed)
        assert await take(store, 2) == []  # it may still run: the lease was not taken back
        assert [task.id for task in await store.recover(10)] == [claimed[0].id]
        assert len(await take(store, 2)) == 1

    @with_limits
    async def test_a_named_limit_is_shared_by_queues_and_no_slot_stands_idle(self, store: Storage) -> None:
        await store.put_limit(Limit(name="api", concurrency=2))
        await add(store, *[new_task(queue=queue, limit="api") for queue in ("idle", "work") for _ in range(4)])
        held = [*await take(store, 1, queue="idle"), *await take(store, 9)]
        assert len(held) == 2
        assert await take(store, 9, queue="idle") == []
        assert await take(store, 9) == []
        for _ in range(3):  # no worker serves the other queue, and its tasks wait first
            assert await store.finish([outcome("succeeded", held.pop())]) == [True]
            more = await take(store, 9)
            assert len(more) == 1
            held += more

    @with_limits
    async def test_each_key_under_a_named_limit_goes_on(self, store: Storage) -> None:
        await store.put_limit(Limit(name="api", concurrency=1))
        await add_keyed(store, *[f"k{n}" for n in range(5)], limit="api")
        seen = []
        for _ in range(5):
            (task,) = await take(store, 9)
            seen.append(task.key)
            assert await store.finish([outcome("succeeded", task)]) == [True]
        assert sorted(filter(None, seen)) == [f"k{n}" for n in range(5)]

    @with_limits
    async def test_the_first_of_a_line_may_go_in_any_way(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        ids = await add_keyed(store, *["a"] * 6, priority=1)
        (last,) = await add_keyed(store, "a")
        await add_keyed(store, "b")
        soon = timedelta(milliseconds=1)
        (expired,) = await add_keyed(store, "a", priority=9, expires=soon)
        await later(store, 0.02)
        await store.cancel(ids[:2])
        await store.delete(ids[2:4])
        await store.cancel(ids[4:])
        found = await take(store, 9)
        assert sorted(task.key or "" for task in found) == ["a", "b"]
        assert last in [task.id for task in found]
        assert await states(store, [expired]) == [CANCELLED]

    @with_limits
    async def test_whatever_makes_a_task_ready_puts_it_into_its_line(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        soon, far = timedelta(milliseconds=20), timedelta(hours=1)
        (due,) = await add_keyed(store, "due", run_at=soon)
        await later(store, 0.05)
        assert [task.id for task in await take(store, 9)] == [due]
        (now,) = await add_keyed(store, "now", run_at=far)
        assert await store.run_now([now]) == [True]
        assert [task.id for task in await take(store, 9)] == [now]
        (again,) = await add_keyed(store, "again")
        await store.cancel([again])
        assert await take(store, 9) == []
        assert await store.retry([again]) == [True]
        assert [task.id for task in await take(store, 9)] == [again]
        if store.limits.flows:
            flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
            first = new_task(flow=flow.id, feeds=(Feed(0),))
            await store.enqueue([first, new_task(flow=flow.id, behind=0, key="flow")], flow)
            (task,) = await take(store, 9)
            assert await store.finish([outcome("succeeded", task)]) == [True]
            assert await keys(store, 9) == ["flow"]

    @with_limits
    async def test_queues_with_and_without_limits_are_named_in_the_order_of_the_demand(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="b", concurrency=2))
        await add(store, *[new_task(queue=queue) for queue in ("a", "b", "c")], new_task(queue="d", key="k"))
        found = await store.claim(dict.fromkeys("dcba", 9), worker="w", lease=HELD)
        assert [task.queue for task in found] == ["d", "c", "b", "a"]

    @with_limits
    async def test_claims_of_many_at_once_stay_within_the_limits(self, stores: Stores) -> None:
        several = [await stores.open() for _ in range(3)]
        store = several[0]
        await store.put_limit(Limit(queue="work", concurrency=6, per_key=Limit(concurrency=2)))
        await add_keyed(store, *[f"k{n % 5}" for n in range(60)])
        done: list[str] = []

        peak = 0
        held: list[StoredTask] = []
        while len(done) < 60:
            found = await asyncio.gather(*[one.claim({"work": 3}, worker="w", lease=HELD) for one in several])
            held += [task for tasks in found for task in tasks]
            assert len(held) <= 6
            assert all(number <= 2 for number in Counter(task.key for task in held).values())
            peak = max(peak, len(held))
            assert held, "nothing runs, and nothing can be claimed"
            ended, held = held[:4], held[4:]
            assert await store.finish([outcome("succeeded", task) for task in ended]) == [True] * len(ended)
            done += [task.id for task in ended]
        assert peak == 6
        assert len(set(done)) == 60

    # What stands against limits

    @with_limits
    async def test_usage_says_what_runs_and_of_how_many_keys_tasks_are_held_back(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="work", concurrency=9, per_key=Limit(concurrency=1)))
        await store.put_limit(Limit(name="api", concurrency=2))
        await add_keyed(store, "a", "a", "a", "b", "b", "c")
        await add(store, *[new_task(queue="other", limit="api") for _ in range(4)])
        assert len(await take(store, 9)) == 3
        assert len(await take(store, 9, queue="other")) == 2
        assert await take(store, 9) == []
        assert await take(store, 9, queue="other") == []
        assert [(one.scope, one.running, one.held_keys, one.is_full) for one in await store.get_limit_usage()] == [
            (Scope(name="api"), 2, 1, True),
            (Scope("work"), 3, 2, False),
        ]
        scopes = [Scope("work", "c"), Scope("work", "a"), Scope("other"), Scope(name="none"), Scope("work", "d")]
        found = await store.get_limit_usage(scopes)
        assert [one.scope for one in found] == scopes
        assert [(one.running, one.held_keys, one.is_full) for one in found] == [
            (1, 0, True),
            (1, 1, True),
            (2, 0, False),
            (0, 0, False),
            (0, 0, False),
        ]
        assert [one.limit and one.limit.concurrency for one in found] == [1, 1, None, None, 1]

    @with_limits
    @pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "x"}], ids=["queue", "key", "name"])
    async def test_usage_says_when_a_rate_lets_the_next_task_start(self, store: Storage, place: dict[str, str]) -> None:
        await store.put_limit(_rated(Rate(1, per=AGES), place))
        scope = Scope(name="x") if "limit" in place else Scope("work", place.get("key"))
        await add(store, *[new_task(**place) for _ in range(2)])
        (before,) = await store.get_limit_usage([scope])
        assert before.next_start is None
        (task,) = await take(store, 9)
        assert await take(store, 9) == []
        (after,) = await store.get_limit_usage([scope])
        assert task.started_at is not None
        assert after.next_start == task.started_at + timedelta(seconds=AGES)
        assert (after.is_full, after.held_keys) == (False, 1 if place else 0)

    # Rates

    @with_limits
    @pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "x"}], ids=["of a queue", "of a key", "of a name"])
    async def test_a_rate_holds_in_every_span(self, stores: Stores, place: dict[str, str]) -> None:
        several = [await stores.open() for _ in range(2)]
        rate = Rate(5, per=0.5, burst=3)
        await several[0].put_limit(_rated(rate, place))
        await add(several[0], *[new_task(**place) for _ in range(20)])
        began: list[datetime] = []

        async def work(store: Storage) -> None:
            while len(began) < 20:
                for task in await take(store, 9):
                    assert task.started_at is not None
                    began.append(task.started_at)
                    await store.finish([outcome("succeeded", task)])
                async with asyncio.timeout(PROMPT):
                    await store.wait_for_work(["work"], 0.2)

        await asyncio.gather(*map(work, several))
        assert most_in(began, 0.5) <= 7
        assert most_in(began, 0.1) <= 3

    @with_limits
    @pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "x"}], ids=["of a queue", "of a key", "of a name"])
    async def test_a_start_that_was_released_does_not_count(self, store: Storage, place: dict[str, str]) -> None:
        await store.put_limit(_rated(Rate(1, per=AGES), place))
        await add(store, *[new_task(**place) for _ in range(2)])
        (task,) = await take(store, 2)
        assert await take(store) == []
        assert await store.finish([outcome("released", task)]) == [True]
        (task,) = await take(store, 2)
        assert await store.finish([outcome("retry", task)]) == [True]
        assert await take(store) == []

    @with_limits
    async def test_a_task_that_a_rate_holds_back_holds_no_slot(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="work", concurrency=3, per_key=Limit(rate=Rate(1, per=AGES))))
        await add_keyed(store, "a", "a", "a", "a", "b", "c")
        assert sorted(filter(None, await keys(store, 9))) == ["a", "b", "c"]

    @with_limits
    async def test_a_rate_of_a_name_lets_one_of_many_lines_go_at_a_time(self, store: Storage) -> None:
        await store.put_limit(Limit(name="api", rate=Rate(1, per=0.1)))
        await add_keyed(store, *[f"k{n}" for n in range(6)], limit="api")
        seen = [(await arrival(store)).key for _ in range(6)]
        assert sorted(filter(None, seen)) == [f"k{n}" for n in range(6)]

    # Fairness and order

    @with_limits
    async def test_keys_get_shares_by_their_weights(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="work", weights={"big": 4}))
        for name in ("a", "b", "big"):
            await add_keyed(store, *[name] * 60)
        claimed: Counter[str | None] = Counter()
        while sum(claimed.values()) < 60:
            claimed.update(await keys(store, 5))
        for name, share in {"a": 10, "b": 10, "big": 40}.items():
            assert abs(claimed[name] - share) <= 2, claimed

    @with_limits
    async def test_a_newcomer_is_served_within_a_round_and_no_sooner_again(self, store: Storage) -> None:
        await add_keyed(store, *["a", "b"] * 20)
        await keys(store, 20)
        await add_keyed(store, "new")
        assert "new" in await keys(store, 3)
        served: Counter[str | None] = Counter()
        for _ in range(9):  # one who comes again and again gets a share, not all
            await add_keyed(store, "new")
            served.update(await keys(store, 1))
        assert max(served.values()) <= 4, served

    @with_limits
    async def test_tasks_without_a_key_are_served_beside_those_with_one(self, store: Storage) -> None:
        await add_keyed(store, *["a"] * 20)
        await add(store, *[new_task() for _ in range(20)])
        found = Counter(await keys(store, 10))
        assert found == {"a": 5, None: 5}

    @with_limits
    async def test_larger_priority_goes_first_across_keys(self, store: Storage) -> None:
        await add_keyed(store, *["a"] * 5)
        await add_keyed(store, "b", priority=5)
        await add(store, new_task(priority=9))
        assert await keys(store, 3) == [None, "b", "a"]
        await add_keyed(store, "a", priority=7)
        assert (await take(store))[0].priority == 7

    @with_limits
    async def test_within_a_key_the_order_is_that_of_enqueueing(self, store: Storage) -> None:
        ids = await add_keyed(store, *["a"] * 6)
        assert [task.id for task in await take(store, 6)] == ids

    @with_limits
    async def test_a_tenant_at_its_limit_starves_no_other(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        await add_keyed(store, *["big"] * MANY)
        assert await keys(store, 5) == ["big"]
        (other,) = await add_keyed(store, "small")
        assert [task.id for task in await take(store, 5)] == [other]

    @with_limits
    @needs_fixtures("count_requests")
    async def test_a_claim_costs_the_same_whatever_waits_at_a_limit(
        self, store: Storage, count_requests: Callable[[], int] | None
    ) -> None:
        assert count_requests is not None
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        costs = []
        for number in (10, MANY):
            await add_keyed(store, *["big"] * number)
            await keys(store, 2)
            await add_keyed(store, f"small {number}")
            # What is answered last has come after whatever was sent without an answer, such as the word to workers.
            await store.get_limits(["queue:work"])
            before = count_requests()
            assert await keys(store, 1) == [f"small {number}"]
            costs.append(count_requests() - before)
        assert costs[0] == costs[1]

    # Changes

    @with_limits
    async def test_a_limit_is_changed_by_compare_and_set(self, store: Storage) -> None:
        limit = Limit(
            queue="work",
            concurrency=3,
            rate=Rate(10, per=2.5, burst=4),
            per_key=Limit(concurrency=1, rate=Rate(1)),
            weights={"ä": 2.5},
            declared=True,
            app="app:queue",
        )
        first = await store.put_limit(limit, 0)
        assert first is not None
        assert await store.get_limits() == [first] == [evolve(limit, revision=first.revision)]
        assert await store.put_limit(limit, 0) is None
        second = await store.put_limit(evolve(limit, concurrency=5), first.revision)
        assert second is not None
        assert second.revision == first.revision + 1
        assert await store.put_limit(limit, first.revision) is None
        assert await store.get_limits(["name:x", "queue:work"]) == [second]
        assert await store.delete_limit("queue:work") is True
        assert await store.delete_limit("queue:work") is False
        third = await store.put_limit(limit, 0)
        assert third is not None
        assert third.revision > second.revision

    @with_limits
    @pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "x"}], ids=["queue", "key", "name"])
    async def test_a_limit_that_is_raised_wakes_and_one_that_is_lowered_stops_nothing(
        self, store: Storage, place: dict[str, str]
    ) -> None:
        await store.put_limit(_limited(2, place))
        await add(store, *[new_task(**place) for _ in range(9)])
        held = await take(store, 9)
        assert len(held) == 2
        waits = asyncio.create_task(store.wait_for_work(["work"], TEN_MINUTES))
        await waiting(waits)
        await store.put_limit(_limited(4, place))
        async with asyncio.timeout(PROMPT):
            await waits
        held += await take(store, 9)
        assert len(held) == 4
        await store.put_limit(_limited(1, place))
        assert set(await states(store, [task.id for task in held])) == {RUNNING}
        for task in held[:3]:
            assert await take(store, 9) == []
            assert await store.finish([outcome("succeeded", task)]) == [True]
        assert await take(store, 9) == []
        await store.delete_limit(_limited(1, place).id)
        assert len(await take(store, 9)) == 5

    @with_limits
    async def test_a_limit_may_come_when_tasks_run_already(self, store: Storage) -> None:
        await add_keyed(store, *["a"] * 4)
        held = await take(store, 3)
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=2)))
        assert await take(store, 9) == []
        assert await store.finish([outcome("succeeded", task) for task in held[:2]]) == [True, True]
        assert len(await take(store, 9)) == 1

    @with_limits
    @patient(300)
    @pytest.mark.parametrize("by", ["key", pytest.param("limit", marks=pytest.mark.long)])
    async def test_a_change_rouses_all_whom_a_rate_holds_back_and_comes_to_an_end(
        self, store: Storage, by: str
    ) -> None:
        names = [f"{by} {number}" for number in range(MORE_THAN_A_STEP)]

        async def let_each_start(burst: int) -> None:
            limit = Limit(rate=Rate(1, per=AGES, burst=burst))
            if by == "key":
                await store.put_limit(Limit(queue="work", per_key=limit, weights={"other": weight}))
            else:
                for name in names:
                    await store.put_limit(evolve(limit, name=name))

        async def taken() -> int:
            return sum([len(await take(store, MORE_THAN_A_STEP)) for _ in range(CLAIMS)])

        weight = 2.0
        await let_each_start(1)
        await add(store, *[new_task(**{by: name}) for name in names * 2])
        assert await taken() == len(names)
        weight = 3.0
        if by == "key":
            await let_each_start(1)
        else:
            await store.put_limit(Limit(queue="work", weights={"other": weight}))
        assert await taken() == 0
        waits = asyncio.create_task(store.wait_for_work(["work"], TEN_MINUTES))
        await waiting(waits)
        await let_each_start(2)
        async with asyncio.timeout(PROMPT):
            await waits
        assert await taken() == len(names)

    # Waiting

    @with_limits
    @pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "x"}], ids=["queue", "key", "name"])
    async def test_what_a_limit_holds_back_wakes_no_worker_until_there_is_room(
        self, stores: Stores, place: dict[str, str]
    ) -> None:
        store, other = await stores.open(), await stores.open()
        await store.put_limit(_limited(1, place))
        await add(store, *[new_task(**place) for _ in range(3)])
        (task,) = await take(store, 3)
        assert await take(store, 3) == []
        waits = asyncio.create_task(store.wait_for_work(["work"], TEN_MINUTES))
        await waiting(waits)
        assert await other.finish([outcome("succeeded", task)]) == [True]
        async with asyncio.timeout(PROMPT):
            await waits
        assert len(await take(store, 3)) == 1

    @with_limits
    @pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "x"}], ids=["queue", "key", "name"])
    async def test_who_waits_is_woken_when_a_rate_lets_the_next_start(
        self, store: Storage, place: dict[str, str]
    ) -> None:
        await store.put_limit(_rated(Rate(1, per=0.3), place))
        await add(store, *[new_task(**place) for _ in range(3)])
        for _ in range(3):
            await arrival(store)

    # Debounce

    @with_limits
    async def test_of_many_debounced_tasks_the_last_one_runs(self, store: Storage) -> None:
        tasks = [debounced("k", 0.3, body=b"[%d]" % n) for n in range(20)]
        for task in tasks[:10]:
            await add(store, task)
        await add(store, *tasks[10:])
        ended = [await record(store, task.id) for task in tasks[:-1]]
        assert {task.state for task in ended} == {CANCELLED}
        assert [task.error and task.error.type for task in ended] == ["Superseded"] * 19
        assert all(
            after.id in (task.error.message if task.error else "") for task, after in zip(ended, tasks[1:], strict=True)
        )
        assert (await arrival(store)).body == b"[19]"
        assert await take(store, 9) == []

    @with_limits
    async def test_a_debounced_task_waits_no_longer_than_it_may(self, store: Storage) -> None:
        (first,) = await add(store, debounced("k", AGES, 2 * AGES))
        began = await record(store, first)
        assert began.run_at == began.created_at + timedelta(seconds=AGES)
        (second,) = await add(store, debounced("k", 1.75 * AGES, 1.5 * AGES))
        found = await record(store, second)
        assert found.run_at == began.created_at + timedelta(seconds=1.5 * AGES)
        assert found.first_at == began.created_at
        (third,) = await add(store, debounced("k", AGES, 0.001))
        await later(store, 0.02)
        assert [task.id for task in await take(store, 9)] == [third]

    @with_limits
    async def test_a_debounced_enqueue_repeated_after_a_lost_answer_changes_nothing(self, store: Storage) -> None:
        first, second = debounced("k"), debounced("k")
        await add(store, first)
        await add(store, second)
        for task in (second, first):
            (answer,) = await store.enqueue([task])
            assert (answer.id, answer.created) == (task.id, False)
        assert await states(store, [first.id, second.id]) == [CANCELLED, TaskState.SCHEDULED]

    @with_limits
    @pytest.mark.parametrize("kind", ["succeeded", "retry", "retry later"])
    async def test_a_debounced_task_that_was_started_is_left_alone(self, store: Storage, kind: str) -> None:
        await add(store, debounced("k", 0.01))
        task = await arrival(store)
        (other,) = await add(store, debounced("k", AGES))
        assert await store.finish([outcome(kind, task)]) == [True]
        (last,) = await add(store, debounced("k", AGES))
        assert (await record(store, task.id)).state is not CANCELLED
        assert await states(store, [other, last]) == [CANCELLED, TaskState.SCHEDULED]

    @with_limits
    async def test_a_unique_task_is_not_debounced(self, store: Storage) -> None:
        (holder,) = await add(store, new_task(unique="k"))
        (answer,) = await store.enqueue([debounced("k")])
        assert (answer.id, answer.created) == (holder, False)

    @with_limits
    @patient(300)
    @pytest.mark.parametrize("number", [30, pytest.param(1000, marks=pytest.mark.long)], ids=["some", "many"])
    async def test_of_debounced_tasks_that_race_one_runs(self, stores: Stores, number: int) -> None:
        several = [await stores.open() for _ in range(3)]
        tasks = [debounced("k", AGES, 2 * AGES, body=b"[%d]" % n) for n in range(number)]

        async def enqueue(first: int) -> None:  # a store may let so many calls wait for each other, and no more
            for n in range(first, number, 30):
                await several[n % 3].enqueue([tasks[n]])

        await asyncio.gather(*map(enqueue, range(30)))
        records = [task for task in await several[0].get([task.id for task in tasks]) if task is not None]
        assert Counter(task.state for task in records) == {CANCELLED: number - 1, TaskState.SCHEDULED: 1}
        (last,) = [task for task in records if task.state is not CANCELLED]
        # Each took the place of the one before it: a chain from the first to the one that is left.
        after = {str(task.error and task.error.message).split()[1]: task for task in records if task is not last}
        chain = [last]
        while (before := after.get(chain[-1].id)) is not None:
            chain.append(before)
        assert len(chain) == number
        assert last.first_at == chain[-1].created_at
        assert await several[0].run_now([last.id]) == [True]
        assert [(task.id, task.body) for task in await take(several[1], 9)] == [(last.id, last.body)]

    # Whatever happens

    @with_limits
    @patient(300)
    async def test_random_runs_stay_within_random_limits_and_end(self, store: Storage) -> None:
        for seed in range(EPISODES):
            try:
                await LimitDriver(store, random.Random(seed), f"-{seed}").run()
            except AssertionError as error:
                raise AssertionError(f"with seed {seed}: {error}") from error

    @with_limits
    @patient(300)
    @pytest.mark.parametrize(
        ("claimers", "number"), [(3, 30), pytest.param(8, 1000, marks=pytest.mark.long)], ids=["some", "many"]
    )
    async def test_claimers_that_are_lost_take_no_slot_with_them(
        self, stores: Stores, claimers: int, number: int
    ) -> None:
        several = [await stores.open() for _ in range(claimers)]
        crowd = Crowd(several, random.Random(number))
        await crowd.fill(number)
        await asyncio.gather(*map(crowd.work, several))
        assert {one.running for one in await several[0].get_limit_usage()} == {0}
        assert {one.held_keys for one in await several[0].get_limit_usage()} == {0}

    @with_limits
    @needs_fixtures("lose_line")
    async def test_an_audit_finds_tasks_whose_line_is_lost_and_names_the_mend(
        self, stores: Stores, store: Storage, lose_line: LoseLine | None
    ) -> None:
        assert lose_line is not None
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        ids = await add_keyed(store, "a", "a", "b", "b")
        assert await store.check() == []
        await asyncio.to_thread(lose_line, "work", "a")
        other = await stores.open()
        assert await keys(other, 9) == ["b"]
        (finding,) = await other.check()
        assert finding.subject == "line"
        assert f"omniq tasks retry {ids[0]}" in finding.message
        await other.cancel([ids[0]])
        assert await other.retry([ids[0]]) == [True]
        assert [task.id for task in await take(other, 9)] == [ids[1]]
        assert await other.check() == []

    @with_limits
    async def test_nothing_is_left_of_lines_whose_tasks_have_ended(self, store: Storage) -> None:
        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1, rate=Rate(1000, per=0.001))))
        for _ in range(2):
            await add_keyed(store, *[f"k{n}" for n in range(20)])
            found = await take(store, 20)
            assert await store.finish([outcome("succeeded", task) for task in found]) == [True] * 20
        await store.prune(1000)
        await add_keyed(store, "k1")
        assert await keys(store, 9) == ["k1"]


def _limited(concurrency: int, place: dict[str, str]) -> Limit:
    return _of(Limit(concurrency=concurrency), place)


def _rated(rate: Rate, place: dict[str, str]) -> Limit:
    return _of(Limit(rate=rate), place)


def _of(limit: Limit, place: dict[str, str]) -> Limit:
    if "key" in place:
        return Limit(queue="work", per_key=limit)
    return evolve(limit, name=place["limit"]) if "limit" in place else evolve(limit, queue="work")
