"""Which attempts a task remembers: the latest ten that are over, with their errors."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from omniq import Attempt, Fixed, TaskError, TaskFailed, TaskQueue, TaskState, current_task
from omniq.storage.attempts import LONGEST_LOG, history_of, log_with
from omniq.task import AttemptOutcome, StoredTask
from omniq.testing import await_until

NOW = datetime(2026, 7, 1, 12, 0, 0, 123456, UTC)


def attempt(number: int, **changes: Any) -> Attempt:
    fields: dict[str, Any] = {
        "attempt": number,
        "worker": "größer",
        "started_at": NOW,
        "ended_at": NOW + timedelta(seconds=number),
        "outcome": AttemptOutcome.RETRY,
        "error": TaskError(type="ValueError", message=f"no. {number}", traceback="a\nb\n"),
    }
    return Attempt(**{**fields, **changes})


def stored(log: str, **changes: Any) -> StoredTask:
    return StoredTask(id="1", queue="q", name="n", body=b"", created_at=NOW, run_at=NOW, attempt_log=log, **changes)


def logged(*attempts: Attempt) -> str:
    log = ""
    for one in attempts:
        log = log_with(log, one)
    return log


# The log


def test_attempts_come_back_as_they_were_logged() -> None:
    attempts = (
        attempt(1),
        attempt(2, error=None, outcome=AttemptOutcome.CANCELLED, worker=None, started_at=None, ended_at=None),
        attempt(3, error=TaskError(type="E", message='"\n\u2028\ud800\0', traceback=""), outcome=AttemptOutcome.FAILED),
    )
    assert history_of(stored(logged(*attempts))) == attempts


def test_of_many_attempts_the_latest_ten_are_kept() -> None:
    log = logged(*(attempt(number) for number in range(1, 25)))
    assert [one.attempt for one in history_of(stored(log))] == list(range(15, 25))
    assert log.count("\n") == 9


def test_a_success_counts_among_the_ten() -> None:
    log = logged(*(attempt(number) for number in range(1, 11)))
    task = stored(log, state=TaskState.SUCCEEDED, attempt=11, worker="w", started_at=NOW, finished_at=NOW)
    *earlier, last = history_of(task)
    assert [one.attempt for one in earlier] == list(range(2, 11))
    assert last == Attempt(
        attempt=11, worker="w", started_at=NOW, ended_at=NOW, outcome=AttemptOutcome.SUCCEEDED, error=None
    )


def test_a_failure_that_only_the_record_tells_of_is_an_attempt_and_one_that_is_logged_is_not_counted_twice() -> None:
    error = TaskError(type="PayloadTooLarge", message="the result takes 2,000,000 bytes")
    task = stored("", state=TaskState.FAILED, attempt=1, worker="w", started_at=NOW, finished_at=NOW, error=error)
    last = Attempt(attempt=1, worker="w", started_at=NOW, ended_at=NOW, outcome=AttemptOutcome.FAILED, error=error)
    assert history_of(task) == (last,)
    assert history_of(evolve(task, attempt_log=logged(last))) == (last,)
    earlier = attempt(1, started_at=NOW - timedelta(seconds=1))
    assert history_of(evolve(task, attempt_log=logged(earlier))) == (earlier, last)
    assert history_of(evolve(task, error=TaskError(type="CorruptRecord", message="torn"))) == ()


@pytest.mark.parametrize("character", ["x", "\n", "é", "\U0001f600"])
def test_the_beginning_of_a_message_and_the_end_of_a_traceback_are_kept(character: str) -> None:
    error = TaskError(type="E", message="first" + character * 20_000, traceback=character * 60_000 + "last")
    log = logged(*(attempt(number, error=error) for number in range(10)))
    assert log.isascii()
    assert len(log) <= LONGEST_LOG
    found = history_of(stored(log))
    assert len(found) == 10
    for one in found:
        assert one.error is not None
        assert one.error.message.startswith("first")
        assert one.error.traceback.endswith("last")
        if character == "x":
            assert (len(one.error.message), len(one.error.traceback)) == (1_000, 10_000)


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "[]",
        "{}",
        "null",
        "[" * 100_000,
        '[1, "lost", "w", 1e400, 0]',
        '[1, "lost", "w", 1e30, 0]',
        '[1, "lost", "w", "soon", 0]',
        '[1, "lost", 7, 0, 0]',
        '["1", "lost", "w", 0, 0]',
        '[1, "eaten", "w", 0, 0]',
        '[1, "retry", "w", 0, 0, "E"]',
        '[1, "retry", "w", 0, 0, 1, 2, 3]',
        '[1, "retry", "w", 0, 0, "E", "m", "t", "more"]',
        "\udcff",
    ],
)
def test_a_line_that_cannot_be_read_hides_no_other(line: str) -> None:
    log = f"{logged(attempt(1))}\n{line}\n{logged(attempt(2))}"
    assert history_of(stored(log)) == (attempt(1), attempt(2))


# What a worker writes


async def test_each_attempt_is_remembered_with_its_error_until_the_task_succeeds(queue: TaskQueue) -> None:
    seen: list[tuple[Attempt, ...]] = []

    @queue.task(max_retries=5, retry=Fixed(0))
    async def fetch() -> str:
        seen.append(current_task().history)
        if len(seen) < 3:
            raise ValueError(f"no. {len(seen)}")
        return "done"

    handle = await fetch.aenqueue()
    async with queue.worker() as worker:
        assert await handle.aresult(30) == "done"
    task = await handle.atask()
    first, second, last = task.history
    for number, past in ((1, first), (2, second)):
        assert (past.attempt, past.outcome, past.worker) == (number, "retry", worker.id)
        assert past.error is not None
        assert (past.error.type, past.error.message) == ("ValueError", f"no. {number}")
        assert "raise ValueError" in past.error.traceback
        assert past.started_at is not None
        assert past.ended_at is not None
        assert past.started_at <= past.ended_at
    assert last == Attempt(
        attempt=3,
        worker=worker.id,
        started_at=task.started_at,
        ended_at=task.finished_at,
        outcome=AttemptOutcome.SUCCEEDED,
    )
    assert seen == [(), (first,), (first, second)]


async def test_history_goes_on_when_a_task_is_retried_by_hand(queue: TaskQueue) -> None:
    @queue.task(max_retries=1, retry=Fixed(0))
    async def burn() -> None:
        raise RuntimeError("the cake")

    handle = await burn.aenqueue()
    async with queue.worker():
        for _ in range(2):
            with pytest.raises(TaskFailed):
                await handle.aresult(30)
            assert await queue.aretry(handle.id)
        with pytest.raises(TaskFailed):
            await handle.aresult(30)
    history = (await handle.atask()).history
    assert [(past.attempt, past.outcome) for past in history] == [(1, "retry"), (2, "failed")] * 3
    assert all(past.error is not None and past.error.message == "the cake" for past in history)


async def test_an_attempt_that_was_cancelled_is_one_and_one_that_was_put_back_is_none(queue: TaskQueue) -> None:
    started = 0

    @queue.task
    async def sleep() -> None:  # a task's name
        nonlocal started
        started += 1
        await asyncio.sleep(600)  # until it is cancelled

    handle = await sleep.aenqueue()
    async with queue.worker(grace=0):
        await await_until(lambda: started == 1, 30)
    assert (await handle.atask()).history == ()
    async with queue.worker(lease=1):
        await await_until(lambda: started == 2, 30)
        assert await handle.acancel()

        async def is_over() -> bool:
            return (await handle.atask()).state is TaskState.CANCELLED

        await await_until(is_over, 30)
    ((past),) = (await handle.atask()).history
    assert (past.attempt, past.outcome, past.error) == (1, "cancelled", None)


async def test_an_attempt_whose_worker_died_is_remembered_as_lost(queue: TaskQueue) -> None:
    @queue.task(retry=Fixed(0))
    async def fetch() -> int:
        return len(current_task().history)

    handle = await fetch.aenqueue()
    storage = (await queue.connections.current()).storage
    (task,) = await storage.claim({"default": 1}, worker="the dead one", lease=0.01)
    async with queue.worker(recover_every=0.05):
        assert await handle.aresult(30) == 1
    lost, last = (await handle.atask()).history
    assert (lost.attempt, lost.worker, lost.outcome, lost.started_at) == (1, "the dead one", "lost", task.started_at)
    assert lost.error is not None
    assert lost.error.type == "WorkerLost"
    assert (last.attempt, last.outcome) == (2, "succeeded")


async def test_an_attempt_on_a_thread_that_ran_into_its_timeout_is_remembered(queue: TaskQueue) -> None:
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    @queue.task(max_retries=0, timeout=0.05)
    def wait() -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    handle = await wait.aenqueue()
    async with queue.worker():
        with pytest.raises(TaskFailed):
            await handle.aresult(30)
        release.set()
    (past,) = (await handle.atask()).history
    assert past.outcome == "failed"
    assert past.error is not None
    assert past.error.type == "TaskTimeout"
