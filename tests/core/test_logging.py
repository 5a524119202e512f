"""What a worker says of itself and of its tasks, for whoever reads its log."""

from __future__ import annotations

import asyncio
import logging

import pytest

from omniq import Fixed, TaskFailed, current_task
from omniq.testing import await_until
from tests.core.running import MakeQueue, working


def about(caplog: pytest.LogCaptureFixture, task_id: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if vars(record).get("task_id") == task_id]


def test_every_word_about_a_task_carries_its_id_name_and_queue(
    make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="omniq")
    queue = make_queue()

    @queue.task(name="shop.pay", queue="mail", max_retries=1, retry=Fixed(0))
    def pay(good: bool) -> None:
        if not good or current_task().attempt == 1:
            raise ValueError("no money")

    good, bad = pay.enqueue(True), pay.enqueue(False)
    with working(queue):
        good.result(30)
        with pytest.raises(TaskFailed):
            bad.result(30)

    for handle, last in ((good, logging.INFO), (bad, logging.ERROR)):
        records = about(caplog, handle.id)
        assert [record.levelno for record in records] == [logging.WARNING, last]
        assert all(handle.id in record.getMessage() and "shop.pay" in record.getMessage() for record in records)
        assert {vars(record)["task_name"] for record in records} == {"shop.pay"}
        assert {vars(record)["task_queue"] for record in records} == {"mail"}
        assert {record.name for record in records} == {"omniq.task"}
    retried, failed = about(caplog, bad.id)
    assert "attempt 1 of 2, runs again in 0.0 s: ValueError: no money" in retried.getMessage()
    assert "in pay" in logging.Formatter().format(failed), "with the traceback"


@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_the_record_of_a_failure_has_the_exception_itself(
    make_queue: MakeQueue, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    queue = make_queue()
    raised: list[BaseException] = []

    def pay() -> None:
        try:
            raise LookupError("no\033purse")
        except LookupError as error:
            raised.append(ValueError("no\033money"))
            raise raised[0] from error

    async def apay() -> None:
        pay()

    handle = queue.task(max_retries=0)(apay if kind == "coroutine" else pay).enqueue()
    with working(queue), pytest.raises(TaskFailed):
        handle.result(30)

    (failed,) = about(caplog, handle.id)
    assert failed.exc_info is not None
    assert failed.exc_info[1] is raised[0]
    assert failed.exc_info[2] is raised[0].__traceback__
    shown = logging.Formatter().format(failed)
    assert shown.count("Traceback (most recent call last)") == 2  # it, and its cause
    assert "\033" not in shown
    assert "run_sync" not in shown, "without frames of OmniQ's"
    assert "run_async" not in shown
    assert (failed.funcName, failed.filename) == ("_log_failure", "completer.py")


async def test_a_cancelled_task_is_told_of(make_queue: MakeQueue, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="omniq")
    queue = make_queue()
    started = asyncio.Event()

    @queue.task
    async def hold() -> None:
        started.set()
        await asyncio.Event().wait()

    handle = await hold.aenqueue()
    async with queue.worker(lease=1.5):
        await started.wait()
        await handle.acancel()
        await await_until(lambda: about(caplog, handle.id))
    assert [record.getMessage().endswith("was cancelled") for record in about(caplog, handle.id)] == [True]


async def test_a_worker_says_when_it_starts_and_stops_and_what_it_serves(
    make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="omniq")
    queue = make_queue()

    async with queue.worker(queues=["mail", "slow"]) as worker:
        pass

    first, last = [record.getMessage() for record in caplog.records]
    assert first == f"worker {worker.id} serves mail, slow on {queue.url}"
    assert last == f"worker {worker.id} has stopped"


def test_without_trouble_nothing_is_logged_at_the_usual_level(
    make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue()

    @queue.task
    def note() -> None: ...

    with working(queue):
        note.enqueue().result(30)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_library_brings_no_handlers_of_its_own() -> None:
    assert logging.getLogger("omniq").handlers == []
    assert logging.getLogger("omniq").level == logging.NOTSET
