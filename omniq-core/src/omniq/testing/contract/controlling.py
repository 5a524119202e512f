"""What control promises: cancel, retry, delete, purge, pause and resume do what they say, and say what they did."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from omniq.storage import Lease, LeaseState, Storage
from omniq.storage.ids import new_id
from omniq.task import Progress, Retry, TaskError, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    add,
    counts,
    new_task,
    outcome,
    passed,
    record,
    states,
    take,
    take_lapsed,
)
from omniq.testing.contract.stores import Stores

__all__ = ["ControlContract"]

STATES = tuple(state for state in TaskState if state is not TaskState.BLOCKED)


async def one_of_each(store: Storage, queue: str = "work") -> dict[TaskState, str]:
    """Bring a task into each state."""
    ids: dict[TaskState, str] = {}
    for state in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED):
        (ids[state],) = await add(store, queue=queue)
        await store.finish([outcome(state, task) for task in await take(store, queue=queue)])
    (ids[TaskState.RUNNING],) = await add(store, queue=queue)
    await take(store, queue=queue)
    (ids[TaskState.READY],) = await add(store, queue=queue)
    (ids[TaskState.SCHEDULED],) = await add(store, queue=queue, run_at=FAR)
    assert await states(store, list(ids.values())) == list(ids)
    return ids


class ControlContract(Contract):
    """Control."""

    # cancel

    async def test_waiting_tasks_are_cancelled_at_once(self, store: Storage) -> None:
        ids = await add(store, new_task(), new_task(run_at=FAR), new_task())
        before = await store.now()
        assert await store.cancel(ids[:2]) == [True, True]
        after = await store.now()
        for task_id in ids[:2]:
            ended = await record(store, task_id)
            assert ended.state is TaskState.CANCELLED
            assert ended.finished_at is not None
            assert before <= ended.finished_at <= after
        assert [task.id for task in await take(store, 9)] == ids[2:]
        assert await counts(store) == {TaskState.CANCELLED: 2, TaskState.RUNNING: 1}

    async def test_a_running_task_is_asked_to_stop(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await take(store)
        assert (await record(store, task_id)).cancel_requested is False
        assert await store.cancel([task_id]) == [True]
        asked = await record(store, task_id)
        assert (asked.state, asked.cancel_requested, asked.finished_at) == (TaskState.RUNNING, True, None)
        assert await store.cancel([task_id]) == [True], "it is still running"
        assert await store.heartbeat("w", [Lease(task_id, 1)], HELD) == [LeaseState.CANCEL_REQUESTED]

    async def test_cancel_says_of_each_task_whether_it_was_live(self, store: Storage) -> None:
        ids = await one_of_each(store)
        unknown = new_id()
        order = STATES[::-1]
        answers = await store.cancel([unknown, *(ids[state] for state in order)])
        assert answers == [False, *(not state.is_final for state in order)]
        assert await store.get([unknown]) == [None]

    async def test_an_ended_task_is_not_changed_by_cancel(self, store: Storage) -> None:
        ids = await one_of_each(store)
        ended = [ids[state] for state in STATES if state.is_final]
        before = await store.get(ended)
        assert await store.cancel(ended) == [False] * 3
        assert await store.get(ended) == before

    # retry

    @pytest.mark.parametrize("end", ["failed", "cancelled", "cancelled while ready", "lost"])
    async def test_an_ended_task_runs_again_with_all_its_attempts(self, store: Storage, end: str) -> None:
        (task_id,) = await add(store, max_retries=1)
        if end == "cancelled while ready":
            await store.cancel([task_id])
        elif end == "lost":
            for _ in range(2):
                await take_lapsed(store)
                await store.recover(1)
        else:
            await store.finish([outcome("retry", task) for task in await take(store)])
            await store.finish([outcome(end, task) for task in await take(store)])
        ended = await record(store, task_id)
        before = await store.now()
        assert await store.retry([task_id]) == [True]
        after = await store.now()
        ready = await record(store, task_id)
        assert (ready.state, ready.attempt, ready.delivery) == (TaskState.READY, 0, ended.delivery)
        assert (ready.finished_at, ready.lease_until) == (None, None)
        assert before <= ready.run_at <= after
        for attempt in (1, 2):
            (claimed,) = await take_lapsed(store)
            assert (claimed.attempt, claimed.delivery) == (attempt, ended.delivery + attempt)
            await store.recover(1)
        assert await states(store, [task_id]) == [TaskState.FAILED]

    async def test_retry_says_of_each_task_whether_it_is_ready_now(self, store: Storage) -> None:
        ids = await one_of_each(store)
        order = STATES[::-1]
        kept = [state for state in STATES if state not in (TaskState.FAILED, TaskState.CANCELLED)]
        before = await store.get([ids[state] for state in kept])
        answers = await store.retry([*(ids[state] for state in order), new_id()])
        assert answers == [*(state not in kept for state in order), False]
        assert await store.get([ids[state] for state in kept]) == before

    async def test_a_task_made_ready_again_goes_to_the_end_of_its_queue(self, store: Storage) -> None:
        first, second = await add(store, new_task(), new_task())
        await store.cancel([first])
        await store.retry([first])
        assert [task.id for task in await take(store, 9)] == [second, first]

    async def test_a_task_made_ready_again_is_not_asked_to_stop_any_more(self, store: Storage) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take(store)
        await store.cancel([task_id])
        await store.finish([outcome("cancelled", claimed)])
        await store.retry([task_id])
        (again,) = await take(store)
        assert again.cancel_requested is False
        assert await store.heartbeat("w", [Lease(again.id, again.delivery)], HELD) == [LeaseState.HELD]
        await store.finish([outcome("retry", again)])
        assert await states(store, [task_id]) == [TaskState.READY]

    async def test_the_worker_of_the_earlier_life_stays_fenced(self, store: Storage) -> None:
        await add(store, max_retries=0)
        (lost,) = await take_lapsed(store)
        await store.recover(1)
        await store.retry([lost.id])
        (claimed,) = await take(store)
        assert claimed.delivery == 2
        assert await store.finish([outcome("succeeded", lost)]) == [False]
        assert await store.heartbeat("w", [Lease(lost.id, lost.delivery)], HELD) == [LeaseState.LOST]

    async def test_a_task_whose_key_is_taken_by_now_stays_ended(self, store: Storage) -> None:
        (old,) = await add(store, unique="key")
        await store.cancel([old])
        (holder,) = await add(store, unique="key")
        ended = await record(store, old)
        assert await store.retry([old]) == [False]
        assert await record(store, old) == ended
        await store.cancel([holder])
        assert await store.retry([old]) == [True]
        answers = await store.enqueue([new_task(unique="key")])
        assert (answers[0].id, answers[0].created) == (old, False)

    async def test_of_two_with_one_key_one_is_made_ready(self, store: Storage) -> None:
        ids = []
        for _ in range(2):
            ids += await add(store, unique="key")
            await store.cancel(ids)
        assert sorted(await store.retry(ids)) == [False, True]
        assert sorted(state or "" for state in await states(store, ids)) == [TaskState.CANCELLED, TaskState.READY]

    async def test_an_expiry_that_has_passed_does_not_end_the_task_again(self, store: Storage) -> None:
        expired, other = await add(store, new_task(expires=timedelta(seconds=0.01)), new_task(expires=FAR))
        await passed(store, (await record(store, expired)).expires_at)
        await store.recover(9)
        await store.cancel([other])
        assert await store.retry([expired, other]) == [True, True]
        assert [(await record(store, task_id)).expires_at for task_id in (expired, other)] == [None, FAR]
        await store.recover(9)
        assert [task.id for task in await take(store, 9)] == [expired, other]

    # run_now

    async def test_a_scheduled_task_is_made_ready_at_once_at_the_end_of_its_queue(self, store: Storage) -> None:
        later, ready = await add(store, new_task(run_at=FAR, expires=FAR, unique="key"), new_task())
        scheduled = await record(store, later)
        before = await store.now()
        assert await store.run_now([later]) == [True]
        after = await store.now()
        changed = await record(store, later)
        assert before <= changed.run_at <= after
        assert changed == evolve(scheduled, state=TaskState.READY, run_at=changed.run_at)
        assert await counts(store) == {TaskState.READY: 2}
        assert [task.id for task in await take(store, 9)] == [ready, later]
        answers = await store.enqueue([new_task(unique="key")])
        assert (answers[0].id, answers[0].created) == (later, False)

    async def test_a_task_that_waits_for_its_next_attempt_keeps_what_is_known_of_the_one_before(
        self, store: Storage
    ) -> None:
        error = TaskError(type="ValueError", message="hot", traceback="Traceback …")
        (task_id,) = await add(store)
        (claimed,) = await take(store)
        await store.finish([Retry(id=task_id, delivery=claimed.delivery, delay=600, error=error)])
        waiting = await record(store, task_id)
        assert await store.run_now([task_id]) == [True]
        changed = await record(store, task_id)
        assert changed == evolve(waiting, state=TaskState.READY, run_at=changed.run_at)
        (again,) = await take(store)
        assert (again.attempt, again.delivery, again.error) == (2, 2, error)

    async def test_run_now_says_of_each_task_whether_it_was_scheduled(self, store: Storage) -> None:
        ids = await one_of_each(store)
        kept = [state for state in STATES if state is not TaskState.SCHEDULED]
        before = await store.get([ids[state] for state in kept])
        twice = ids[TaskState.SCHEDULED]
        answers = await store.run_now([*(ids[state] for state in STATES), twice, new_id()])
        assert answers == [*(state is TaskState.SCHEDULED for state in STATES), False, False]
        assert await store.get([ids[state] for state in kept]) == before

    async def test_many_tasks_for_later_are_made_ready(self, store: Storage) -> None:
        ids = await add(store, *(new_task(run_at=FAR) for _ in range(300)))
        some = ids[50:250]
        assert await store.run_now(some) == [True] * 200
        assert await counts(store) == {TaskState.SCHEDULED: 100, TaskState.READY: 200}
        assert {task.id for task in await take(store, 999)} == set(some)
        assert await states(store, ids[:50]) == [TaskState.SCHEDULED] * 50

    # delete and purge

    async def test_everything_but_a_running_task_can_be_deleted(self, store: Storage) -> None:
        ids = await one_of_each(store)
        answers = await store.delete([new_id(), *(ids[state] for state in STATES)])
        assert answers == [False, *(state is not TaskState.RUNNING for state in STATES)]
        kept = [state if state is TaskState.RUNNING else None for state in STATES]
        assert await states(store, [ids[state] for state in STATES]) == kept
        assert await counts(store) == {TaskState.RUNNING: 1}
        assert await store.delete([ids[TaskState.READY]]) == [False]
        assert await take(store, 9) == []

    async def test_a_deleted_task_is_forgotten(self, store: Storage) -> None:
        task = new_task(unique="key")
        await add(store, task)
        (claimed,) = await take(store)
        await store.finish([outcome("failed", claimed)])
        await store.delete([task.id])
        assert await store.cancel([task.id]) == await store.retry([task.id]) == [False]
        assert await store.finish([outcome("succeeded", claimed)]) == [False]
        await add(store, task)
        fresh = await record(store, task.id)
        assert (fresh.state, fresh.attempt, fresh.error) == (TaskState.READY, 0, None)

    async def test_purging_a_queue_removes_all_but_what_runs(self, store: Storage) -> None:
        ids, others = await one_of_each(store), await one_of_each(store, "other")
        assert await store.purge("work") == 5
        assert await counts(store) == {TaskState.RUNNING: 1}
        assert await states(store, [ids[TaskState.RUNNING]]) == [TaskState.RUNNING]
        assert await states(store, list(others.values())) == list(others)
        assert await take(store, 9) == []
        assert await store.purge("work") == 0
        assert await store.purge("no such queue") == 0

    @pytest.mark.parametrize("state", STATES)
    async def test_purging_a_state_removes_what_is_in_it(self, store: Storage, state: TaskState) -> None:
        ids, others = await one_of_each(store), await one_of_each(store, "other")
        removed = 0 if state is TaskState.RUNNING else 1
        assert await store.purge("work", state) == removed
        expected = [None if removed and kept is state else kept for kept in ids]
        assert await states(store, list(ids.values())) == expected
        assert await states(store, list(others.values())) == list(others)

    # pause and resume

    async def test_pausing_says_whether_it_changed_anything(self, store: Storage) -> None:
        assert await store.resume("work") is False
        assert [await store.pause("work"), await store.pause("work")] == [True, False]
        assert [await store.resume("work"), await store.resume("work")] == [True, False]
        assert await store.pause("work") is True

    async def test_a_paused_queue_takes_tasks_in_and_lets_running_ones_go_on(self, stores: Stores) -> None:
        store, other = await stores.open(), await stores.open()
        await add(store)
        (running,) = await take(store)
        await store.pause("work")
        waiting = await add(other, new_task(), new_task(run_at=timedelta(seconds=0.01)))
        assert await take(other, 9) == []
        assert await other.heartbeat("w", [Lease(running.id, 1)], HELD) == [LeaseState.HELD]
        assert await other.finish([outcome("retry", running)]) == [True]
        await passed(store, (await record(store, waiting[1])).run_at)
        assert await take(store, 9) == []
        (stats,) = await other.stats()
        assert stats.paused is True
        await other.resume("work")
        assert {task.id for task in await take(store, 9)} == {*waiting, running.id}

    async def test_a_queue_stays_paused_when_it_is_emptied(self, store: Storage) -> None:
        await add(store)
        await store.pause("work")
        await store.purge("work")
        await add(store)
        assert await take(store) == []
        assert [stats.paused for stats in await store.stats()] == [True]

    # progress

    async def test_the_progress_of_a_running_task_is_noted(self, store: Storage) -> None:
        first, second = await add(store, new_task(), new_task())
        await take(store, 2)
        progress = Progress(done=1.5, total=3.0, note="half „way“ ☂")
        await store.set_progress({Lease(first, 1): progress, Lease(second, 1): Progress(done=7)})
        assert (await record(store, first)).progress == progress
        assert (await record(store, second)).progress == Progress(done=7, total=None, note="")
        await store.set_progress({Lease(first, 1): Progress(done=3.0)})
        assert (await record(store, first)).progress == Progress(done=3.0)

    async def test_progress_of_a_lost_lease_is_dropped(self, store: Storage) -> None:
        (task_id,) = await add(store)
        (lost,) = await take_lapsed(store)
        await store.recover(1)
        stale = {Lease(task_id, lost.delivery): Progress(done=9)}
        await store.set_progress(stale)
        assert (await record(store, task_id)).progress is None
        (claimed,) = await take(store)
        await store.set_progress({Lease(task_id, 2): Progress(done=1), Lease(new_id(), 1): Progress(done=1)} | stale)
        assert (await record(store, task_id)).progress == Progress(done=1)
        await store.finish([outcome("succeeded", claimed)])
        ended = await record(store, task_id)
        await store.set_progress({Lease(task_id, 2): Progress(done=2)} | stale)
        assert await record(store, task_id) == ended

    async def test_control_of_nothing_is_nothing_done(self, store: Storage) -> None:
        (task_id,) = await add(store)
        assert (
            await store.cancel([]) == await store.retry([]) == await store.delete([]) == await store.run_now([]) == []
        )
        await store.set_progress({})
        assert await states(store, [task_id]) == [TaskState.READY]
