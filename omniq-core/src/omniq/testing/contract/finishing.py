"""What ``finish`` promises: each outcome means what it says, and only the holder of the lease is heard."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from omniq.storage import Lease, Storage
from omniq.storage.ids import new_id
from omniq.task import Cancelled, Failed, Progress, Released, Retry, Succeeded, TaskError, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    BOOM,
    OUTCOMES,
    SHORT,
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

__all__ = ["FinishContract"]

HOUR = timedelta(hours=1)


class FinishContract(Contract):
    """Finishing."""

    async def test_a_task_that_succeeded_has_ended_with_its_result(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take(store)
        before = await store.now()
        assert await store.finish([Succeeded(id=claimed.id, delivery=1, result=b"\x00\xffresult")]) == [True]
        after = await store.now()
        ended = await record(store, claimed.id)
        assert (ended.state, ended.result_payload) == (TaskState.SUCCEEDED, b"\x00\xffresult")
        assert ended.finished_at is not None
        assert before <= ended.finished_at <= after
        assert (ended.lease_until, ended.error) == (None, None)
        assert (ended.attempt, ended.delivery, ended.worker) == (1, 1, "w")
        assert ended.started_at == claimed.started_at
        assert await counts(store) == {TaskState.SUCCEEDED: 1}

    @pytest.mark.parametrize("result", [b"", b"x" * 1_000_000], ids=["empty", "a megabyte"])
    async def test_results_of_any_size_are_kept(self, store: Storage, result: bytes) -> None:
        await add(store)
        (claimed,) = await take(store)
        await store.finish([Succeeded(id=claimed.id, delivery=1, result=result)])
        assert (await record(store, claimed.id)).result_payload == result

    async def test_a_task_that_failed_has_ended_with_its_error(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take(store)
        assert await store.finish([Failed(id=claimed.id, delivery=1, error=BOOM)]) == [True]
        ended = await record(store, claimed.id)
        assert (ended.state, ended.error, ended.result_payload) == (TaskState.FAILED, BOOM, None)
        assert ended.finished_at is not None
        assert ended.lease_until is None
        assert await take(store) == []

    async def test_a_task_that_stopped_has_ended_as_cancelled(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take(store)
        assert await store.finish([Cancelled(id=claimed.id, delivery=1)]) == [True]
        ended = await record(store, claimed.id)
        assert ended.state is TaskState.CANCELLED
        assert ended.finished_at is not None
        assert ended.lease_until is None

    # Again

    async def test_a_task_to_retry_later_is_scheduled_and_keeps_its_attempt_and_error(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take(store)
        before = await store.now()
        assert await store.finish([Retry(id=claimed.id, delivery=1, delay=3600, error=BOOM)]) == [True]
        after = await store.now()
        waiting = await record(store, claimed.id)
        assert (waiting.state, waiting.attempt, waiting.delivery) == (TaskState.SCHEDULED, 1, 1)
        assert before + HOUR <= waiting.run_at <= after + HOUR
        assert waiting.error == BOOM
        assert (waiting.finished_at, waiting.lease_until) == (None, None)
        assert await take(store) == []

    async def test_a_task_to_retry_runs_again_when_its_time_has_come(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take(store)
        await store.finish([Retry(id=claimed.id, delivery=1, delay=SHORT)])
        await passed(store, (await record(store, claimed.id)).run_at)
        (again,) = await take(store)
        assert (again.id, again.attempt, again.delivery) == (claimed.id, 2, 2)

    async def test_a_task_to_retry_at_once_goes_to_the_end_of_its_queue(self, store: Storage) -> None:
        first, second = await add(store, new_task(), new_task())
        await store.finish([outcome("retry", task) for task in await take(store)])
        stored = await record(store, first)
        assert (stored.state, stored.error) == (TaskState.READY, BOOM)
        assert [task.id for task in await take(store, 9)] == [second, first]

    async def test_a_task_released_at_once_is_back_at_its_old_place_with_its_attempt(self, store: Storage) -> None:
        ids = await add(store, new_task(), new_task(), new_task())
        claimed = await take(store, 2)
        assert await store.finish([outcome("released", task) for task in reversed(claimed)]) == [True, True]
        stored = await record(store, ids[0])
        assert (stored.state, stored.attempt, stored.delivery) == (TaskState.READY, 0, 1)
        assert (stored.lease_until, stored.finished_at) == (None, None)
        again = await take(store, 9)
        assert [task.id for task in again] == ids
        assert [(task.attempt, task.delivery) for task in again] == [(1, 2), (1, 2), (1, 1)]

    async def test_a_task_released_for_later_is_scheduled_with_its_attempt_back(self, store: Storage) -> None:
        first, second = await add(store, new_task(), new_task())
        assert len(await take(store)) == 1
        before = await store.now()
        await store.finish([Released(id=first, delivery=1, delay=SHORT)])
        waiting = await record(store, first)
        assert waiting.attempt == 0
        assert waiting.run_at >= before + timedelta(seconds=SHORT)
        await passed(store, waiting.run_at)
        again = await take(store, 9)
        assert [task.id for task in again] == [second, first], "it became ready after the other"
        assert (again[1].attempt, again[1].delivery) == (1, 2)

    @pytest.mark.parametrize("delay", [0, SHORT])
    async def test_why_a_task_was_put_back_is_kept_until_it_is_put_back_again(
        self, store: Storage, delay: float
    ) -> None:
        (task_id,) = await add(store)
        reasons = [TaskError(type="UnknownTask", message=message) for message in ("once", "twice")]
        for delivery, why in enumerate(reasons, 1):
            (claimed,) = await take(store)
            assert (claimed.delivery, claimed.error) == (delivery, None if delivery == 1 else reasons[0])
            await store.finish([Released(id=task_id, delivery=delivery, delay=delay, error=why)])
            waiting = await record(store, task_id)
            assert (waiting.error, waiting.attempt) == (why, 0)
            await passed(store, waiting.run_at)
        (claimed,) = await take(store)
        for running in (claimed, await record(store, task_id)):
            assert (running.error, running.attempt) == (reasons[-1], 1)

    @pytest.mark.parametrize("kind", ["failed", "retry", "succeeded"])
    async def test_why_a_task_was_put_back_is_forgotten_once_it_was_run(self, store: Storage, kind: str) -> None:
        (task_id,) = await add(store)
        await take(store)
        why = TaskError(type="UnknownTask", message="no such function")
        await store.finish([Released(id=task_id, delivery=1, error=why)])
        (claimed,) = await take(store)
        await store.finish([outcome(kind, claimed)])
        assert (await record(store, task_id)).error == (None if kind == "succeeded" else BOOM)

    async def test_the_error_of_an_earlier_attempt_is_gone_once_the_task_has_succeeded(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await store.finish([outcome("retry", task) for task in await take(store)])
        await store.finish([outcome("succeeded", task) for task in await take(store)])
        assert (await record(store, task_id)).error is None

    async def test_the_latest_error_is_the_one_kept(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await store.finish([outcome("retry", task) for task in await take(store)])
        other = TaskError(type="KeyError", message="'other'")
        await store.finish([Failed(id=task_id, delivery=task.delivery, error=other) for task in await take(store)])
        assert (await record(store, task_id)).error == other

    async def test_a_retry_without_an_error_drops_the_one_before(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await store.finish([outcome("retry", task) for task in await take(store)])
        assert (await record(store, task_id)).error == BOOM
        await store.finish([Retry(id=task_id, delivery=task.delivery, delay=0) for task in await take(store)])
        assert (await record(store, task_id)).error is None

    async def test_a_claim_clears_the_progress_of_the_attempt_before(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await take(store)
        await store.set_progress({Lease(task_id, 1): Progress(done=1)})
        await store.finish([Retry(id=task_id, delivery=1, delay=0)])
        (claimed,) = await take(store)
        assert claimed.progress is None
        assert (await record(store, task_id)).progress is None

    @pytest.mark.parametrize("kind", ["retry", "retry later", "released", "released later", "recovered", "made ready"])
    async def test_who_ran_a_task_last_and_when_is_known_until_the_next_claim(self, store: Storage, kind: str) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take_lapsed(store)
        if kind == "recovered":
            await store.recover(1)
        elif kind == "made ready":
            await store.finish([outcome("failed", claimed)])
            await store.retry([task_id])
        else:
            await store.finish([outcome(kind, claimed)])
        waiting = await record(store, task_id)
        assert (waiting.worker, waiting.started_at) == ("w", claimed.started_at)

    # A cancellation that was asked for

    @pytest.mark.parametrize("kind", OUTCOMES)
    async def test_a_task_that_was_asked_to_stop_does_not_run_again(self, store: Storage, kind: str) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take(store)
        await store.cancel([task_id])
        assert await store.finish([outcome(kind, claimed)]) == [True]
        ended = await record(store, task_id)
        expected = {"succeeded": TaskState.SUCCEEDED, "failed": TaskState.FAILED}.get(kind, TaskState.CANCELLED)
        assert ended.state is expected
        assert ended.finished_at is not None
        assert ended.lease_until is None
        assert ended.attempt == (0 if kind.startswith("released") else 1), "a release takes the attempt back"
        assert await take(store) == []

    @pytest.mark.parametrize("told", [None, TaskError(type="UnknownTask", message="put back")])
    @pytest.mark.parametrize("kind", [Retry, Released])
    @pytest.mark.parametrize("asked", [False, True])
    async def test_the_error_of_a_task_is_the_last_that_an_outcome_told(
        self, store: Storage, asked: bool, kind: type[Retry | Released], told: TaskError | None
    ) -> None:
        (task_id,) = await add(store)
        await store.finish([outcome("retry", task) for task in await take(store)])
        (claimed,) = await take(store)
        if asked:
            await store.cancel([task_id])
        await store.finish([kind(id=task_id, delivery=claimed.delivery, delay=0, error=told)])
        kept = told if kind is Retry else told or BOOM
        assert (await record(store, task_id)).error == kept
        await store.cancel([task_id])
        assert await store.retry([task_id]) == [True]
        assert (await record(store, task_id)).error == kept
        (lapsed,) = await take_lapsed(store)
        assert (await store.recover(1))[0].error == kept
        (claimed,) = await take(store)
        assert (lapsed.error, claimed.error) == (kept, kept)
        await store.finish([outcome("cancelled", claimed)])
        assert (await record(store, task_id)).error == kept

    # All or none

    async def test_a_batch_of_outcomes_of_which_the_store_cannot_hold_one_is_recorded_as_a_whole_or_not_at_all(
        self, store: Storage
    ) -> None:
        ids = await add(store, *(new_task() for _ in range(3)))
        claimed = await take(store, 3)
        outcomes = [outcome("succeeded", task) for task in claimed]
        outcomes[1] = Failed(id=ids[1], delivery=1, error=TaskError(type="a\0\ud800", message="\udc80"))
        try:
            answers = await store.finish(outcomes)
        except ValueError:
            assert await store.get(ids) == claimed
            answers = await store.finish([outcome("failed", task) for task in claimed])
        assert answers == [True] * 3

    # The fence

    @pytest.mark.parametrize("kind", OUTCOMES)
    async def test_a_worker_that_lost_its_lease_changes_nothing(self, store: Storage, kind: str) -> None:
        (task_id,) = await add(store)
        (lost,) = await take_lapsed(store)
        await store.recover(10)
        ready = await record(store, task_id)
        assert await store.finish([outcome(kind, lost)]) == [False]
        assert await record(store, task_id) == ready
        (claimed,) = await take(store)
        assert await store.finish([outcome(kind, lost)]) == [False]
        assert await record(store, task_id) == claimed
        assert await store.finish([outcome("succeeded", claimed)]) == [True]
        ended = await record(store, task_id)
        assert await store.finish([outcome(kind, lost)]) == [False]
        assert await record(store, task_id) == ended
        assert ended.result_payload == b"result of delivery 2"

    @pytest.mark.parametrize("kind", OUTCOMES)
    async def test_an_outcome_repeated_after_a_lost_answer_changes_nothing(self, store: Storage, kind: str) -> None:
        (task_id,) = await add(store, new_task(max_retries=9))
        (claimed,) = await take(store)
        assert await store.finish([outcome(kind, claimed)]) == [True]
        stored = await record(store, task_id)
        for repeated in OUTCOMES:
            assert await store.finish([outcome(repeated, claimed)]) == [False]
        assert await record(store, task_id) == stored

    async def test_an_outcome_counts_after_the_lease_ran_out_until_the_task_is_recovered(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take_lapsed(store)
        assert await store.finish([outcome("succeeded", claimed)]) == [True]
        assert await states(store, [claimed.id]) == [TaskState.SUCCEEDED]
        assert await store.recover(10) == []

    async def test_outcomes_of_tasks_that_do_not_run_are_rejected(self, store: Storage) -> None:
        (ready,) = await add(store)
        answers = await store.finish(
            [Cancelled(id=ready, delivery=0), Cancelled(id=ready, delivery=1), Cancelled(id=new_id(), delivery=1)]
        )
        assert answers == [False, False, False]
        assert await states(store, [ready]) == [TaskState.READY]
        (claimed,) = await take(store)
        assert await store.finish([outcome("succeeded", evolve(claimed, delivery=2))]) == [False]
        assert await record(store, ready) == claimed

    async def test_each_outcome_of_a_batch_is_judged_by_itself(self, store: Storage) -> None:
        await add(store, *(new_task() for _ in range(9)))
        claimed = await take(store, 8)
        outcomes = [outcome(kind, task) for kind, task in zip(OUTCOMES, claimed, strict=False)]
        stale = evolve(outcomes[0], delivery=7)
        unknown = evolve(outcomes[0], id=new_id())
        answers = await store.finish([stale, *outcomes[:4], unknown, *outcomes[4:], stale])
        assert answers == [False, True, True, True, True, False, True, True, True, False]
        assert await states(store, [task.id for task in claimed]) == [
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.CANCELLED,
            TaskState.READY,
            TaskState.SCHEDULED,
            TaskState.READY,
            TaskState.SCHEDULED,
            TaskState.RUNNING,
        ]

    async def test_of_two_outcomes_for_one_delivery_in_a_batch_the_earlier_is_recorded(self, store: Storage) -> None:
        await add(store)
        (claimed,) = await take(store)
        assert await store.finish([outcome("succeeded", claimed), outcome("failed", claimed)]) == [True, False]
        ended = await record(store, claimed.id)
        assert (ended.state, ended.result_payload, ended.error) == (TaskState.SUCCEEDED, b"result of delivery 1", None)

    async def test_nothing_to_finish_is_nothing_done(self, store: Storage) -> None:
        assert await store.finish([]) == []
