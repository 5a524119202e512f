"""What ``claim`` promises: the right tasks, in the right order, each to one worker."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from attrs import evolve

from omniq.storage import Storage
from omniq.task import TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    SHORT,
    add,
    counts,
    new_task,
    outcome,
    passed,
    record,
    states,
    take,
    take_expiring,
    take_lapsed,
)

__all__ = ["ClaimContract"]


class ClaimContract(Contract):
    """Claiming."""

    async def test_a_claimed_task_is_running_in_the_hands_of_the_worker(self, store: Storage) -> None:
        (task_id,) = await add(store, body=b"payload", tags=("a",), unique="key", expires=FAR)
        waiting = await record(store, task_id)
        before = await store.now()
        (claimed,) = await store.claim({"work": 1}, worker="worker 1", lease=30)
        after = await store.now()
        assert (claimed.id, claimed.state) == (task_id, TaskState.RUNNING)
        assert (claimed.attempt, claimed.delivery, claimed.worker) == (1, 1, "worker 1")
        assert claimed.started_at is not None
        assert before <= claimed.started_at <= after
        assert claimed.lease_until is not None
        half_minute = timedelta(seconds=30)
        assert before + half_minute <= claimed.lease_until <= after + half_minute
        assert claimed.finished_at is None
        changed = ("state", "attempt", "delivery", "worker", "started_at", "lease_until")
        assert claimed == evolve(waiting, **{name: getattr(claimed, name) for name in changed})

    async def test_the_record_says_what_the_worker_was_given(self, store: Storage) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take(store)
        assert await record(store, task_id) == claimed

    async def test_each_claim_is_a_new_delivery_and_a_new_attempt(self, store: Storage) -> None:
        await add(store, max_retries=9)
        for number in (1, 2, 3):
            (claimed,) = await store.claim({"work": 1}, worker=f"worker {number}", lease=HELD)
            assert (claimed.attempt, claimed.delivery, claimed.worker) == (number, number, f"worker {number}")
            await store.finish([outcome("retry", claimed)])
        await take_lapsed(store)
        await store.recover(1)
        (claimed,) = await take(store)
        assert (claimed.attempt, claimed.delivery) == (5, 5)

    async def test_a_task_is_claimed_once(self, store: Storage) -> None:
        await add(store)
        assert len(await take(store)) == 1
        assert await take(store) == []

    async def test_no_more_than_demanded_are_taken_and_the_rest_stay(self, store: Storage) -> None:
        ids = await add(store, *(new_task() for _ in range(5)))
        assert [task.id for task in await take(store, 2)] == ids[:2]
        assert await counts(store) == {TaskState.RUNNING: 2, TaskState.READY: 3}
        assert [task.id for task in await take(store, 99)] == ids[2:]

    @pytest.mark.parametrize("demand", [{}, {"work": 0}, {"elsewhere": 5}, {"elsewhere": 1, "work": 0}])
    async def test_a_demand_for_nothing_gives_nothing(self, store: Storage, demand: dict[str, int]) -> None:
        (task_id,) = await add(store)
        assert await store.claim(demand, worker="w", lease=HELD) == []
        assert await states(store, [task_id]) == [TaskState.READY]

    # Order

    async def test_first_in_is_first_out(self, store: Storage) -> None:
        ids = await add(store, *(new_task() for _ in range(3)))
        ids += await add(store)
        ids += await add(store, *(new_task() for _ in range(3)))
        claimed = [(await take(store))[0].id for _ in range(3)]
        claimed += [task.id for task in await take(store, 9)]
        assert claimed == ids

    async def test_the_order_is_that_of_enqueueing_not_that_of_the_ids(self, store: Storage) -> None:
        tasks = [new_task() for _ in range(6)][::-1]
        await add(store, *tasks[:4])
        await add(store, *tasks[4:])
        assert [task.id for task in await take(store, 9)] == [task.id for task in tasks]

    async def test_larger_priority_goes_first_and_within_one_the_earlier(self, store: Storage) -> None:
        priorities = [0, -100, 100, 5, 0, -1, 100, 10, 9, 5]
        ids = await add(store, *(new_task(priority=priority) for priority in priorities))
        ids += await add(store, priority=5)
        priorities.append(5)
        claimed = await take(store, 4) + await take(store, 99)
        expected = sorted(zip(ids, priorities, strict=True), key=lambda pair: -pair[1])
        assert [(task.id, task.priority) for task in claimed] == expected

    async def test_of_calls_that_are_under_way_together_the_first_one_comes_first(self, store: Storage) -> None:
        calls = [[new_task() for _ in range(size)] for size in (300, 2, 300, 40)]
        await asyncio.gather(*(store.enqueue(tasks) for tasks in calls))
        claimed = await store.claim({"work": 1000}, worker="worker", lease=HELD)
        assert [task.id for task in claimed] == [task.id for tasks in calls for task in tasks]

    async def test_the_result_names_the_queues_in_the_order_of_the_demand(self, store: Storage) -> None:
        ids = {queue: await add(store, *(new_task(queue=queue) for _ in range(3))) for queue in ("a", "b", "c")}
        claimed = await store.claim({"c": 2, "empty": 4, "a": 1, "b": 9}, worker="w", lease=HELD)
        assert [task.id for task in claimed] == [*ids["c"][:2], ids["a"][0], *ids["b"]]

    async def test_a_limit_holds_for_all_queues_together_and_earlier_ones_are_served_first(
        self, store: Storage
    ) -> None:
        ids = {queue: await add(store, *(new_task(queue=queue) for _ in range(3))) for queue in ("a", "b", "c")}

        async def claim(limit: int | None) -> list[str]:
            tasks = await store.claim({"b": 2, "a": 2, "c": 2}, worker="w", lease=HELD, limit=limit)
            return [task.id for task in tasks]

        assert await claim(0) == []
        assert await claim(1) == ids["b"][:1]
        assert await claim(3) == [*ids["b"][1:], ids["a"][0]]
        assert await claim(99) == [*ids["a"][1:], *ids["c"][:2]]
        assert await claim(None) == ids["c"][2:]

    async def test_a_larger_priority_in_a_later_queue_takes_no_place_of_an_earlier_queue(self, store: Storage) -> None:
        await add(store, queue="later", priority=100)
        (first,) = await add(store, queue="earlier", priority=-100)
        claimed = await store.claim({"earlier": 1, "later": 1}, worker="w", lease=HELD, limit=1)
        assert [task.id for task in claimed] == [first]

    # Scheduled tasks

    async def test_a_task_is_not_claimed_before_its_time(self, store: Storage) -> None:
        (task_id,) = await add(store, run_at=timedelta(seconds=SHORT))
        early = await take(store)
        if early:
            assert early[0].started_at is not None
            assert early[0].started_at >= early[0].run_at, "claimed too early"
            return
        await passed(store, (await record(store, task_id)).run_at)
        assert [task.id for task in await take(store)] == [task_id]

    async def test_due_tasks_take_the_place_of_the_time_at_which_they_became_ready(self, store: Storage) -> None:
        now = await store.now()
        second, first = new_task(run_at=now + timedelta(seconds=0.2)), new_task(run_at=now + timedelta(seconds=0.1))
        await add(store, second, first)
        (earlier,) = await add(store)
        await passed(store, now + timedelta(seconds=0.2))
        (last,) = await add(store)
        ready_at = {}
        for task in await store.get([second.id, first.id, earlier, last]):
            assert task is not None
            ready_at[task.id] = task.run_at
        assert ready_at[first.id] < ready_at[second.id] < ready_at[last]
        # On a busy machine the one enqueued second may come after those that were scheduled.
        assert [task.id for task in await take(store, 9)] == sorted(ready_at, key=lambda task_id: ready_at[task_id])

    async def test_a_time_long_past_gives_no_place_ahead_of_others(self, store: Storage) -> None:
        ids = await add(store)
        ids += await add(store, run_at=await store.now() - timedelta(days=1))
        ids += await add(store)
        assert [task.id for task in await take(store, 9)] == ids

    async def test_the_priority_of_a_due_task_counts(self, store: Storage) -> None:
        ids = await add(store, new_task(), new_task(priority=1, run_at=timedelta(seconds=0.05)))
        await passed(store, (await record(store, ids[1])).run_at)
        assert [task.id for task in await take(store, 9)] == ids[::-1]

    # Pausing and expiry

    async def test_a_paused_queue_gives_nothing_and_hinders_no_other(self, store: Storage) -> None:
        await add(store, new_task(), new_task(run_at=timedelta(seconds=0.01)))
        (other,) = await add(store, queue="other")
        await store.pause("work")
        claimed = await store.claim({"work": 5, "other": 5}, worker="w", lease=HELD, limit=1)
        assert [task.id for task in claimed] == [other]
        await store.resume("work")
        assert len(await take(store)) == 1

    async def test_a_scheduled_task_of_a_paused_queue_keeps_the_place_of_its_time(self, store: Storage) -> None:
        scheduled = await add(store, run_at=timedelta(seconds=0.05))
        await store.pause("work")
        await passed(store, (await record(store, scheduled[0])).run_at)
        assert await take(store) == []
        late = await add(store)
        await store.resume("work")
        assert [task.id for task in await take(store, 9)] == [*scheduled, *late]

    async def test_an_expired_task_ends_as_cancelled_and_takes_no_place(self, store: Storage) -> None:
        expired, good = new_task(expires=timedelta(seconds=0.02)), new_task(expires=FAR)
        await add(store, expired, good)
        await passed(store, (await record(store, expired.id)).expires_at)
        assert [task.id for task in await take(store, 1)] == [good.id]
        ended = await record(store, expired.id)
        assert ended.state is TaskState.CANCELLED
        assert ended.finished_at is not None
        assert (ended.attempt, ended.delivery, ended.lease_until) == (0, 0, None)
        assert await counts(store) == {TaskState.RUNNING: 1, TaskState.CANCELLED: 1}

    async def test_a_task_that_is_due_and_expired_at_once_is_not_claimed(self, store: Storage) -> None:
        soon = timedelta(seconds=0.05)
        (task_id,) = await add(store, run_at=soon, expires=soon)
        await passed(store, (await record(store, task_id)).expires_at)
        assert await take(store) == []
        assert await states(store, [task_id]) == [TaskState.CANCELLED]

    async def test_a_task_that_runs_when_its_expiry_comes_goes_on(self, store: Storage) -> None:
        claimed = await take_expiring(store)
        await passed(store, claimed.expires_at)
        assert await store.recover(9) == []
        assert await store.finish([outcome("succeeded", claimed)]) == [True]

    async def test_a_task_that_expired_while_it_ran_is_not_run_again(self, store: Storage) -> None:
        claimed = await take_expiring(store)
        await passed(store, claimed.expires_at)
        await store.finish([outcome("released", claimed)])
        assert await take(store) == []
        assert await states(store, [claimed.id]) == [TaskState.CANCELLED]
