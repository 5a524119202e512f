"""What of attempts that are over is kept, and nothing else: the attempt log."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from omniq.storage import Storage, TaskQuery
from omniq.storage.attempts import LONGEST_LOG, history_of
from omniq.task import AttemptOutcome, Cancelled, Failed, Released, Retry, StoredTask, Succeeded, TaskError, TaskState
from omniq.testing.contract.base import Contract
from omniq.testing.contract.steps import (
    BOOM,
    add,
    lapsed,
    outcome,
    passed,
    record,
    take,
    take_expiring,
    take_lapsed,
)

__all__ = ["HistoryContract"]


def _retry(task: StoredTask, log: str) -> Retry:
    return Retry(id=task.id, delivery=task.delivery, delay=0, error=BOOM, attempt_log=log)


class HistoryContract(Contract):
    """The attempt log."""

    async def test_an_outcome_replaces_the_attempt_log_and_success_keeps_it(self, store: Storage) -> None:
        (task_id,) = await add(store)
        for log in ("one", "one\ntwo", "two\nthree"):
            (claimed,) = await take(store)
            await store.finish([_retry(claimed, log)])
            assert (await record(store, task_id)).attempt_log == log
        (claimed,) = await take(store)
        assert (claimed.attempt_log, claimed.error) == ("two\nthree", BOOM)
        assert await record(store, task_id) == claimed
        await store.finish([Succeeded(id=task_id, delivery=4, result=b"done")])
        ended = await record(store, task_id)
        assert (ended.attempt_log, ended.error, ended.result_payload) == ("two\nthree", None, b"done")
        (listed,) = await store.list_tasks(TaskQuery())
        assert listed == ended
        (bare,) = await store.list_tasks(TaskQuery(bare=True))
        assert bare == ended.bare()
        assert bare.attempt_log == ""

    @pytest.mark.parametrize("kind", ["failed", "cancelled"])
    async def test_the_log_of_a_task_that_ended_is_kept_when_it_is_made_ready_again(
        self, store: Storage, kind: str
    ) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take(store)
        told = outcome(kind, claimed)
        assert isinstance(told, Failed | Cancelled)
        await store.finish([evolve(told, attempt_log="one")])
        ended = await record(store, task_id)
        assert (ended.attempt_log, ended.error) == ("one", BOOM if kind == "failed" else None)
        assert await store.retry([task_id]) == [True]
        assert (await record(store, task_id)).attempt_log == "one"
        (again,) = await take(store)
        assert (again.attempt, again.attempt_log) == (1, "one")

    async def test_a_task_that_stopped_keeps_the_error_of_before_beside_its_log(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await store.finish([_retry(task, "one") for task in await take(store)])
        await take(store)
        await store.finish([Cancelled(id=task_id, delivery=2, attempt_log="one\ntwo")])
        ended = await record(store, task_id)
        assert (ended.state, ended.error, ended.attempt_log) == (TaskState.CANCELLED, BOOM, "one\ntwo")

    @pytest.mark.parametrize("error", [None, TaskError(type="UnknownTask", message="not here")])
    async def test_a_task_that_was_put_back_keeps_its_log(self, store: Storage, error: TaskError | None) -> None:
        (task_id,) = await add(store)
        await store.finish([_retry(task, "one") for task in await take(store)])
        await take(store)
        await store.finish([Released(id=task_id, delivery=2, error=error)])
        waiting = await record(store, task_id)
        assert (waiting.attempt, waiting.attempt_log, waiting.error) == (1, "one", error or BOOM)
        (again,) = await take(store)
        assert (again.attempt_log, again.error) == ("one", error or BOOM)

    async def test_a_log_without_an_error_is_kept_too(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await take(store)
        await store.finish([Retry(id=task_id, delivery=1, delay=0, attempt_log="one")])
        waiting = await record(store, task_id)
        assert (waiting.error, waiting.attempt_log) == (None, "one")
        (claimed,) = await take(store)
        assert (claimed.error, claimed.attempt_log) == (None, "one")

    @pytest.mark.parametrize("kind", ["retry", "released"])
    async def test_one_that_was_asked_to_stop_ends_with_the_log_of_its_outcome(self, store: Storage, kind: str) -> None:
        (task_id,) = await add(store)
        await store.finish([_retry(task, "one") for task in await take(store)])
        (claimed,) = await take(store)
        await store.cancel([task_id])
        told = _retry(claimed, "one\ntwo") if kind == "retry" else outcome(kind, claimed)
        assert await store.finish([told]) == [True]
        ended = await record(store, task_id)
        expected = "one\ntwo" if kind == "retry" else "one"
        assert (ended.state, ended.error, ended.attempt_log) == (TaskState.CANCELLED, BOOM, expected)

    async def test_a_task_that_ends_while_it_waits_keeps_its_log(self, store: Storage) -> None:
        expires = await take_expiring(store)
        (cancelled,) = await add(store)
        await store.finish([_retry(task, "one") for task in (expires, *await take(store))])
        await store.cancel([cancelled])
        await passed(store, expires.expires_at)
        await store.recover(10)
        for task_id in (cancelled, expires.id):
            ended = await record(store, task_id)
            assert (ended.state, ended.error, ended.attempt_log) == (TaskState.CANCELLED, BOOM, "one")

    async def test_a_refused_outcome_adds_nothing(self, store: Storage) -> None:
        (task_id,) = await add(store)
        (claimed,) = await take(store)
        assert await store.finish([_retry(claimed, "one")]) == [True]
        assert await store.finish([_retry(claimed, "other")]) == [False]
        (lost,) = await take_lapsed(store)
        await store.recover(10)
        log = (await record(store, task_id)).attempt_log
        assert await store.finish([_retry(lost, "other")]) == [False]
        assert (await record(store, task_id)).attempt_log == log

    # Attempts that were lost

    @pytest.mark.parametrize("how", ["again", "no attempts left", "asked to stop"])
    async def test_an_attempt_that_was_lost_gets_a_line(self, store: Storage, how: str) -> None:
        (task_id,) = await add(store, max_retries=1)
        first = '[1, "retry", "w", null, null]'
        if how != "again":
            await store.finish([_retry(task, first) for task in await take(store)])
        (claimed,) = await take_lapsed(store)
        if how == "asked to stop":
            await store.cancel([task_id])
        before = await store.now()
        (recovered,) = await store.recover(10)
        after = await store.now()
        stored = await record(store, task_id)
        assert stored.attempt_log == recovered.attempt_log
        *earlier, lost = history_of(stored)
        assert [(one.attempt, one.outcome) for one in earlier] == (
            [] if how == "again" else [(1, AttemptOutcome.RETRY)]
        )
        assert (lost.attempt, lost.worker, lost.outcome) == (claimed.attempt, "w", AttemptOutcome.LOST)
        assert lost.started_at == claimed.started_at
        assert lost.ended_at is not None
        assert before - timedelta(milliseconds=1) <= lost.ended_at <= after
        if how == "asked to stop":
            assert stored.error == BOOM
        elif how == "again":
            (again,) = await take(store)
            assert again.attempt_log == stored.attempt_log

    async def test_each_attempt_that_was_lost_gets_its_line(self, store: Storage) -> None:
        (task_id,) = await add(store)
        for worker in ('"quoted"', "größer", "c"):
            await lapsed(store, await store.claim({"work": 1}, worker=worker, lease=0.01))
            await store.recover(10)
        found = history_of(await record(store, task_id))
        assert [(one.attempt, one.worker) for one in found] == [(1, '"quoted"'), (2, "größer"), (3, "c")]

    async def test_a_log_of_any_size_is_kept_and_loses_its_beginning_when_it_is_full(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await take(store)
        error = TaskError(type="ValueError", message="m" * 10_000, traceback="t" * 50_000)
        full = "\n".join(["x" * 13_106] * 10)
        full += "y" * (LONGEST_LOG - len(full))
        told = Retry(id=task_id, delivery=1, delay=0, error=error, attempt_log=full)
        assert await store.finish([told]) == [True]
        (claimed,) = await take_lapsed(store)
        assert (claimed.attempt_log, claimed.error) == (full, error)
        await store.recover(10)
        stored = await record(store, task_id)
        (bare,) = await store.list_tasks(TaskQuery(bare=True))
        assert bare == stored.bare()
        assert (stored.error, len(stored.attempt_log)) == (error, LONGEST_LOG)
        kept, lost = stored.attempt_log[:-1].rsplit("\n", 1)
        assert full.endswith(kept)
        assert lost.startswith("[")
        await take(store)
        await store.finish([Succeeded(id=task_id, delivery=3, result=b"r" * 300_000)])
        ended = await record(store, task_id)
        assert (ended.attempt_log, ended.result_payload) == (stored.attempt_log, b"r" * 300_000)
