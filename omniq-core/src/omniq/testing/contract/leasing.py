"""What leases promise: a worker that is heard of keeps its tasks, and those of a dead one come back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from omniq.storage import Lease, LeaseState, Storage
from omniq.storage.body import Header, as_task, dump_header, join_body, make_content
from omniq.storage.ids import new_id
from omniq.task import StoredTask, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    SHORT,
    add,
    counts,
    lapsed,
    later,
    new_task,
    outcome,
    passed,
    record,
    states,
    take,
    take_lapsed,
)
from omniq.testing.contract.stores import Stores
from omniq.testing.waiting import await_until

__all__ = ["LeaseContract"]

LOST, HOLDS, STOP = LeaseState.LOST, LeaseState.HELD, LeaseState.CANCEL_REQUESTED


def lease_of(task: StoredTask) -> Lease:
    return Lease(task.id, task.delivery)


class LeaseContract(Contract):
    """Heartbeats, workers and recovery."""

    async def test_a_heartbeat_extends_the_leases_that_are_held(self, store: Storage) -> None:
        await add(store, new_task(), new_task())
        claimed = await take(store, 2, lease=SHORT)
        before = await store.now()
        assert await store.heartbeat("w", [lease_of(task) for task in claimed], HELD) == [HOLDS, HOLDS]
        after = await store.now()
        for task in claimed:
            extended = await record(store, task.id)
            assert extended.lease_until is not None
            assert before <= extended.lease_until - timedelta(seconds=HELD) <= after
            assert extended == evolve(task, lease_until=extended.lease_until)
        await lapsed(store, claimed)
        assert await store.recover(10) == []

    async def test_a_lease_that_ran_out_is_held_until_the_task_is_recovered(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take_lapsed(store)
        assert await store.heartbeat("w", [lease_of(claimed)], HELD) == [HOLDS]
        assert await store.recover(10) == []
        assert await store.finish([outcome("succeeded", claimed)]) == [True]

    async def test_a_lost_lease_is_not_taken_back(self, store: Storage) -> None:
        (task_id,) = await add(store)
        (lost,) = await take_lapsed(store)
        await store.recover(10)
        ready = await record(store, task_id)
        assert await store.heartbeat("w", [lease_of(lost)], HELD) == [LOST]
        assert await record(store, task_id) == ready
        (claimed,) = await store.claim({"work": 1}, worker="successor", lease=60)
        assert await store.heartbeat("w", [lease_of(lost)], HELD) == [LOST]
        assert await record(store, task_id) == claimed, "the late heartbeat changed the successor's lease"

    @pytest.mark.parametrize("kind", ["succeeded", "failed", "cancelled", "retry", "released later", "deleted"])
    async def test_the_lease_of_a_task_that_does_not_run_is_lost(self, store: Storage, kind: str) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take(store)
        await store.finish([outcome("cancelled" if kind == "deleted" else kind, claimed)])
        if kind == "deleted":
            await store.delete([task_id])
        stored = await store.get([task_id])
        assert await store.heartbeat("w", [lease_of(claimed)], HELD) == [LOST]
        assert await store.get([task_id]) == stored

    async def test_a_heartbeat_says_of_each_lease_in_order_what_became_of_it(self, store: Storage) -> None:
        await add(store, *(new_task() for _ in range(4)))
        claimed = await take(store, 3)
        await store.cancel([claimed[0].id])
        await store.finish([outcome("succeeded", claimed[1])])
        leases = [Lease(new_id(), 1), *map(lease_of, claimed), Lease(claimed[2].id, 2), lease_of(claimed[0])]
        assert await store.heartbeat("w", leases, HELD) == [LOST, STOP, LOST, HOLDS, LOST, STOP]

    async def test_a_task_asked_to_stop_keeps_its_lease_until_it_has(self, store: Storage) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take(store, lease=SHORT)
        await store.cancel([task_id])
        assert (await record(store, task_id)).cancel_requested is True
        assert await store.heartbeat("w", [lease_of(claimed)], HELD) == [STOP]
        await lapsed(store, [claimed])
        assert await store.recover(10) == []
        assert await store.finish([outcome("cancelled", claimed)]) == [True]

    # Workers

    async def test_a_worker_is_seen_once_it_was_heard_of_with_what_it_runs(self, store: Storage) -> None:
        ids = await add(store, new_task(), new_task(queue="other"), new_task())
        assert await store.workers() == []
        mine = await store.claim({"work": 1, "other": 1}, worker="w2", lease=HELD)
        theirs = await store.claim({"work": 1}, worker="w1", lease=HELD)
        before = await store.now()
        await store.heartbeat("w2", [lease_of(task) for task in mine], HELD)
        await store.heartbeat("w1", [lease_of(task) for task in theirs], HELD)
        await store.heartbeat("w3", [], HELD)
        after = await store.now()
        workers = await store.workers()
        assert [worker.id for worker in workers] == ["w1", "w2", "w3"]
        assert [set(worker.running) for worker in workers] == [{ids[2]}, set(ids[:2]), set()]
        assert all(before <= worker.seen_at <= after for worker in workers)
        await store.finish([outcome("succeeded", mine[0])])
        assert [set(worker.running) for worker in await store.workers()] == [{ids[2]}, {ids[1]}, set()]

    async def test_a_worker_that_is_not_heard_of_within_its_lease_is_gone(self, store: Storage) -> None:
        await store.heartbeat("quiet", [], 0.05)
        await store.heartbeat("lively", [], HELD)

        async def only_the_lively() -> bool:
            return [worker.id for worker in await store.workers()] == ["lively"]

        await await_until(only_the_lively, what="the quiet worker to be gone")

    async def test_a_worker_that_signs_off_is_gone(self, store: Storage) -> None:
        await store.heartbeat("w", [], HELD)
        await store.heartbeat("other", [], HELD)
        assert await store.heartbeat("w", [], 0) == []
        assert [worker.id for worker in await store.workers()] == ["other"]
        assert await store.heartbeat("never heard of", [], 0) == []

    async def test_what_a_worker_tells_about_itself_is_kept_until_it_tells_something_else(self, store: Storage) -> None:
        async def about() -> dict[str, str | None]:
            return {worker.id: worker.about for worker in await store.workers()}

        (task_id,) = await add(store)
        (claimed,) = await take(store)
        assert await store.heartbeat("w", [lease_of(claimed)], HELD, "first") == [HOLDS]
        assert await store.heartbeat("silent", [], HELD) == []
        assert await store.heartbeat("w", [lease_of(claimed)], HELD) == [HOLDS]
        assert await about() == {"silent": None, "w": "first"}
        assert (await store.workers())[1].running == (task_id,)
        await store.heartbeat("silent", [], HELD, "late")
        assert await store.heartbeat("w", [lease_of(claimed)], HELD, "second") == [HOLDS]
        assert await store.heartbeat("w", [], HELD, None) == []
        assert await about() == {"silent": "late", "w": "second"}

    async def test_what_a_worker_tells_about_itself_goes_with_it(self, store: Storage) -> None:
        await store.heartbeat("w", [], HELD, "first")
        await store.heartbeat("other", [], HELD, "other's")
        await store.heartbeat("w", [], 0)
        assert [worker.about for worker in await store.workers()] == ["other's"]
        await store.heartbeat("w", [], HELD)
        assert [worker.about for worker in await store.workers()] == ["other's", None]
        await store.heartbeat("w", [], 0.05, "of one that dies")

        async def only_the_other() -> bool:
            return [worker.about for worker in await store.workers()] == ["other's"]

        await await_until(only_the_other, what="the worker that died to be gone")

    async def test_a_worker_can_tell_any_text(self, store: Storage) -> None:
        texts = ["", " ", "{}", "null", "'\"\\%s {ns}\n\u2028\U0001f600", "\x01\x7f", "ü" * 32_000]
        for text in texts:
            await store.heartbeat("w", [], HELD, text)
            assert [worker.about for worker in await store.workers()] == [text]

    # Recovery

    async def test_what_was_enqueued_stays_as_it_was_over_every_attempt(self, store: Storage) -> None:
        header = Header(headers={"request-id": "größe ☂", "z.y_x-1": ""}, timeout=7.5, is_async=True)
        body = join_body(make_content(dump_header(header), b"[[1],{}]"), b"signature")
        (task_id,) = await add(store, body=body, tags=("a",), max_retries=9, result_ttl=77.0)
        for ended in ("retry", "released", "lost", "failed", "succeeded"):
            if ended == "lost":
                await take_lapsed(store)
                (stored,) = await store.recover(10)
            else:
                (claimed,) = await take(store)
                assert claimed.body == body
                assert await store.finish([outcome(ended, claimed)]) == [True]
                stored = await record(store, task_id)
            assert as_task(stored).headers == header.headers
            assert (stored.body, stored.tags, stored.max_retries, stored.result_ttl) == (body, ("a",), 9, 77.0)
            if ended == "failed":
                assert await store.retry([task_id]) == [True]
                assert (await record(store, task_id)).body == body

    async def test_nothing_is_recovered_while_its_lease_holds(self, store: Storage) -> None:
        await add(store, new_task(), new_task())
        claimed = await take(store)
        assert await store.recover(10) == []
        assert await store.get([claimed[0].id]) == claimed

    async def test_a_task_with_attempts_left_is_ready_again_at_its_old_place(self, store: Storage) -> None:
        ids = await add(store, new_task(max_retries=1), new_task(max_retries=1), new_task())
        await take_lapsed(store, 2)
        recovered = await store.recover(10)
        assert sorted(task.id for task in recovered) == sorted(ids[:2])
        for task in recovered:
            assert (task.state, task.attempt, task.delivery) == (TaskState.READY, 1, 1)
            assert (task.lease_until, task.finished_at, task.error) == (None, None, None)
            assert await record(store, task.id) == task
        assert [task.id for task in await take(store, 9)] == ids
        assert await counts(store) == {TaskState.RUNNING: 3}

    async def test_what_another_process_lost_is_claimed_once(self, stores: Stores, store: Storage) -> None:
        # This one has seen the tasks as ready, has not seen the other take them, and is the one that recovers them.
        other = await stores.open()
        ids = await add(store, *(new_task() for _ in range(5)))
        first = await take(store)
        await take_lapsed(other, 3)
        await store.recover(10)
        claimed = await take(store, 9)
        assert [task.id for task in first + claimed] == ids
        assert [(task.delivery, task.attempt) for task in claimed] == [(2, 2)] * 3 + [(1, 1)]

    async def test_a_task_without_attempts_left_fails_with_its_worker_lost(self, store: Storage) -> None:
        await add(store, max_retries=0)
        await take_lapsed(store)
        before = await store.now()
        (recovered,) = await store.recover(10)
        assert recovered.state is TaskState.FAILED
        assert recovered.error is not None
        assert recovered.error.type == "WorkerLost"
        assert recovered.error.message
        assert recovered.finished_at is not None
        assert recovered.finished_at >= before
        assert recovered.lease_until is None
        assert await record(store, recovered.id) == recovered
        assert await take(store) == []

    async def test_a_task_that_kills_its_workers_ends(self, store: Storage) -> None:
        (task_id,) = await add(store, max_retries=2)
        fates = []
        for _ in range(3):
            await take_lapsed(store)
            (recovered,) = await store.recover(10)
            fates.append((recovered.state, recovered.attempt))
        assert fates == [(TaskState.READY, 1), (TaskState.READY, 2), (TaskState.FAILED, 3)]
        assert await take(store) == []
        assert await states(store, [task_id]) == [TaskState.FAILED]

    @pytest.mark.parametrize("max_retries", [0, 3])
    async def test_a_lost_task_that_was_asked_to_stop_ends_as_cancelled(self, store: Storage, max_retries: int) -> None:
        (task_id,) = await add(store, max_retries=max_retries)
        await take_lapsed(store)
        await store.cancel([task_id])
        (recovered,) = await store.recover(10)
        assert (recovered.id, recovered.state) == (task_id, TaskState.CANCELLED)
        assert recovered.finished_at is not None
        assert await record(store, task_id) == recovered

    async def test_what_was_recovered_is_not_recovered_again(self, store: Storage) -> None:
        await add(store)
        await take_lapsed(store)
        assert len(await store.recover(10)) == 1
        assert await store.recover(10) == []

    async def test_a_step_of_recovery_takes_no_more_than_its_limit(self, store: Storage) -> None:
        ids = await add(store, *(new_task() for _ in range(5)))
        await take_lapsed(store, 5)
        steps = [[task.id for task in await store.recover(2)] for _ in range(4)]
        assert [len(step) for step in steps] == [2, 2, 1, 0]
        assert sorted(task_id for step in steps for task_id in step) == sorted(ids)

    async def test_recovery_takes_tasks_of_every_queue_and_worker(self, store: Storage) -> None:
        ids = await add(store, *(new_task(queue=queue) for queue in ("a", "b", "paused")))
        claimed: list[StoredTask] = []
        for queue in ("a", "b", "paused"):
            claimed += await store.claim({queue: 1}, worker=f"of {queue}", lease=0.05)
        await store.pause("paused")
        await lapsed(store, claimed)
        assert {task.id for task in await store.recover(10)} == set(ids)

    async def test_recovery_ends_waiting_tasks_that_have_expired(self, store: Storage) -> None:
        soon = timedelta(seconds=0.02)
        ids = await add(
            store,
            new_task(expires=soon),
            new_task(expires=soon, run_at=FAR),
            new_task(expires=FAR),
            new_task(expires=FAR, run_at=FAR),
        )
        await passed(store, (await record(store, ids[1])).expires_at)
        assert await store.recover(10) == [], "only tasks whose lease ran out are returned"
        cancelled = TaskState.CANCELLED
        assert await states(store, ids) == [cancelled, cancelled, TaskState.READY, TaskState.SCHEDULED]
        assert (await record(store, ids[1])).finished_at is not None
        assert await counts(store) == {cancelled: 2, TaskState.READY: 1, TaskState.SCHEDULED: 1}

    async def test_expired_tasks_end_within_the_same_limit(self, store: Storage) -> None:
        await add(store, *(new_task(queue="lost") for _ in range(2)))
        await take_lapsed(store, 2, queue="lost")
        ids = await add(store, *(new_task(expires=timedelta(seconds=0.01)) for _ in range(5)))
        await passed(store, (await record(store, ids[-1])).expires_at)
        done = 0
        for _ in range(9):
            recovered = await store.recover(3)
            ended = (await counts(store)).get(TaskState.CANCELLED, 0) - done
            done += ended
            assert len(recovered) + ended <= 3
        assert done == 5
        assert await counts(store, "lost") == {TaskState.READY: 2}

    async def test_a_recovered_task_can_be_claimed_and_finished_by_another(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await take_lapsed(store)
        await store.recover(10)
        (claimed,) = await store.claim({"work": 1}, worker="another", lease=HELD)
        assert (claimed.id, claimed.worker, claimed.attempt, claimed.delivery) == (task_id, "another", 2, 2)
        await later(store, 0.05)
        assert await store.recover(10) == []
        assert await store.finish([outcome("succeeded", claimed)]) == [True]
