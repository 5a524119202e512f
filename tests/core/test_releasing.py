"""Tasks that a worker cannot run: put back for another one, a bounded number of times."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import attrs
import pytest

from omniq import Fixed, SerializationError, Task, TaskFailed, TaskHandle, TaskQueue
from omniq._worker.releasing import PUT_BACK_LIMIT, put_back
from omniq.errors import ArgumentsMismatch, UnknownTask
from omniq.storage.ids import new_id
from omniq.task import NewTask, Released, TaskError
from omniq.testing import wait_until
from tests.bodies import body_of
from tests.core.running import Gate, MakeQueue, working


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq._worker.releasing._BACKOFF", Fixed(0))


def put_back_often(queue: TaskQueue, function: Any, times: int) -> TaskHandle[Any]:
    """Enqueue a task that was claimed and put back, for no fault of its function's."""
    handle: TaskHandle[Any] = function.enqueue()

    async def claim_and_release() -> None:
        storage = (await queue.connections.current()).storage
        for _ in range(times):
            (task,) = await storage.claim({"default": 1}, worker="busy", lease=30)
            await storage.finish([Released(id=task.id, delivery=task.delivery)])

    queue.run(claim_and_release())
    return handle


def is_put_back(queue: TaskQueue, handle: TaskHandle[Any], times: int = 1) -> Callable[[], bool]:
    def put_back() -> bool:
        error = handle.task().error
        return error is not None and f"put back {times} of {PUT_BACK_LIMIT} times" in error.message

    return put_back


# How often


def task_of(error: TaskError | None = None) -> Task:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    return Task(id="1", queue="q", name="of.a.newer.version", body=b"", created_at=moment, run_at=moment, error=error)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (UnknownTask("no function is registered as 'new'"), "imports the module"),
        (ArgumentsMismatch("got an unexpected keyword argument 'b'"), "one version"),
    ],
)
def test_a_task_waits_longer_each_time_and_fails_after_half_an_hour(error: Any, advice: str) -> None:
    told, delays = None, []
    while isinstance(outcome := put_back(task_of(told), error), Released):
        told = outcome.error
        delays.append(outcome.delay)

    assert len(delays) == PUT_BACK_LIMIT
    assert 0.9 <= delays[0] <= 1
    assert delays[:8] == sorted(delays[:8])
    assert max(delays) <= 120
    assert 20 * 60 < sum(delays) < 40 * 60
    assert outcome.error.type == type(error).__name__
    assert str(error) in outcome.error.message
    assert advice in outcome.error.message


def test_a_text_of_any_length_leaves_the_count_readable() -> None:
    told = None
    for _ in range(2):
        told = put_back(task_of(told), ArgumentsMismatch("\udcff" * 1_000_000)).error

    assert told is not None
    assert told.message.endswith("; put back 2 of 20 times")
    told.message.encode()


# Unknown functions


def test_a_task_that_nobody_ever_knows_fails_and_says_so(make_queue: MakeQueue, at_once: None) -> None:
    producer, consumer = make_queue(), make_queue()

    @producer.task(name="of.nowhere")
    def of_nowhere() -> None: ...

    handle = of_nowhere.enqueue()
    with working(consumer), pytest.raises(TaskFailed, match=r"UnknownTask.*'of\.nowhere'"):
        handle.result(30)
    assert handle.task().delivery == PUT_BACK_LIMIT + 1


def test_only_the_times_that_a_worker_did_not_know_the_function_count(make_queue: MakeQueue) -> None:
    producer, consumer = make_queue(), make_queue()

    @producer.task
    def new() -> None: ...

    handle = put_back_often(producer, new, 3 * PUT_BACK_LIMIT)
    with working(consumer):
        wait_until(is_put_back(producer, handle), what="the task to be put back")
    assert handle.task().state == "scheduled"


def test_a_task_that_failed_as_unknown_starts_anew_when_it_is_retried(make_queue: MakeQueue, at_once: None) -> None:
    producer, consumer = make_queue(), make_queue()

    @producer.task
    def new() -> None: ...

    handle = new.enqueue()
    with working(consumer):
        wait_until(lambda: handle.task().state == "failed", what="the task to fail")
        assert producer.retry(handle.id)
        wait_until(lambda: handle.task().delivery == 2 * (PUT_BACK_LIMIT + 1), what="the task to fail again")


def test_a_task_that_was_put_back_runs_where_its_function_is_known(make_queue: MakeQueue) -> None:
    producer, consumer = make_queue(), make_queue()

    @producer.task(max_retries=0)
    def new() -> int:
        return 5

    handle = new.enqueue()
    with working(consumer):
        wait_until(is_put_back(producer, handle), what="the task to be put back")
    with working(producer):
        assert handle.result(30) == 5
    assert (handle.task().attempt, handle.task().error) == (1, None)


# Arguments


class OldColour(Enum):
    RED = "red"


class Colour(Enum):
    RED = "red"
    GREEN = "green"


@attrs.frozen
class OldOrder:
    number: int


@attrs.frozen
class Order:
    number: int
    express: bool = False


def takes_colour(colour: Colour) -> str:
    return colour.value


def took_colour(colour: OldColour) -> str:
    return colour.value


def takes_order(order: Order) -> str:
    return str(order.express)


def took_order(order: OldOrder) -> str:
    return str(order.number)


def takes_keyword(number: int, *, note: str = "") -> str:
    return note


def took_keyword(number: int) -> str:
    return str(number)


async def takes_keyword_too(number: int, *, note: str = "") -> str:
    return note


async def took_keyword_too(number: int) -> str:
    return str(number)


@pytest.mark.parametrize(
    ("new", "old", "args", "kwargs", "expected"),
    [
        (takes_colour, took_colour, (Colour.GREEN,), {}, "green"),
        (takes_order, took_order, (Order(5, True),), {}, "True"),
        (takes_keyword, took_keyword, (5,), {"note": "hello"}, "hello"),
        (takes_keyword_too, took_keyword_too, (5,), {"note": "hello"}, "hello"),
    ],
    ids=["enum member", "field", "keyword", "keyword of a coroutine"],
)
def test_arguments_of_a_newer_version_wait_for_a_worker_that_takes_them(
    make_queue: MakeQueue,
    caplog: pytest.LogCaptureFixture,
    new: Any,
    old: Any,
    args: Any,
    kwargs: Any,
    expected: str,
) -> None:
    newer, older = make_queue(), make_queue()
    handle = newer.task(name="task", max_retries=0)(new).enqueue(*args, **kwargs)
    older.task(name="task", max_retries=0)(old)

    with caplog.at_level(logging.WARNING, "omniq"), working(older):
        wait_until(is_put_back(newer, handle), what="the task to be put back")
    with working(newer):
        assert handle.result(30) == expected
    assert handle.task().attempt == 1
    assert "put back 1 of 20 times" in caplog.text


def test_arguments_that_no_worker_takes_fail_in_the_end(make_queue: MakeQueue, at_once: None) -> None:
    newer, older = make_queue(), make_queue()
    handle = newer.task(name="task", max_retries=5)(takes_keyword).enqueue(5, note="hello")
    older.task(name="task", max_retries=5)(took_keyword)

    with working(older), pytest.raises(TaskFailed, match=r"ArgumentsMismatch: task\(number.*'note'"):
        handle.result(30)
    assert handle.task().delivery == PUT_BACK_LIMIT + 1


@pytest.mark.parametrize("payload", [b"no json", b"{}", b'[[{"$": "datetime", "v": "x"}], {}]', b"[[" * 400])
def test_a_payload_that_is_broken_fails_at_once(make_queue: MakeQueue, payload: bytes) -> None:
    queue = make_queue()

    @queue.task(name="task")
    def task(value: Any) -> None: ...

    async def store() -> str:
        storage = (await queue.connections.current()).storage
        (stored,) = await storage.enqueue([NewTask(id=new_id(), queue="default", name="task", body=body_of(payload))])
        return stored.id

    handle = queue.handle(queue.run(store()))
    with working(queue), pytest.raises(TaskFailed, match=r"^SerializationError"):
        handle.result(30)
    assert handle.task().delivery == 1


def test_a_type_error_of_the_functions_own_is_no_mismatch(make_queue: MakeQueue) -> None:
    queue = make_queue()

    @queue.task(max_retries=0)
    def task() -> None:
        takes_keyword()  # type: ignore[call-arg]  # the mistake that the test is about

    with working(queue), pytest.raises(TaskFailed, match=r"^TypeError"):
        task.enqueue().result(30)


def test_a_mismatch_that_a_task_meets_in_its_own_work_is_its_error(make_queue: MakeQueue) -> None:
    queue = make_queue()

    @queue.task(max_retries=0)
    def task() -> None:
        raise ArgumentsMismatch("of another task's record")

    with working(queue), pytest.raises(TaskFailed, match=r"^ArgumentsMismatch: of another"):
        task.enqueue().result(30)
    assert issubclass(ArgumentsMismatch, SerializationError)


def test_what_a_worker_cannot_run_leaves_when_it_stops(make_queue: MakeQueue, gate: Gate) -> None:
    producer, consumer = make_queue(), make_queue()

    @producer.task
    def new() -> None: ...

    handles = [new.enqueue() for _ in range(20)]
    with working(consumer):
        wait_until(lambda: handles[0].task().delivery > 0, what="the first to be claimed")
    assert not [handle.task().state for handle in handles if handle.task().state == "running"]
