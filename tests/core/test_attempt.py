"""From one claimed task to one outcome, whatever the task does. No store takes part."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve

from omniq import Exponential, Fixed, RetryPolicy, TaskFunction, TaskQueue, current_task
from omniq._worker.attempt import (
    LONGEST_MESSAGE,
    LONGEST_TRACEBACK,
    Attempt,
    Interruption,
    describe_error,
    run_async,
    run_sync,
    timed_out,
)
from omniq.storage.body import preview
from omniq.task import Cancelled, Failed, Outcome, Released, Retry, Succeeded
from omniq.testing import wait_until

Run = Callable[..., Outcome]


@pytest.fixture
def queue() -> Iterator[TaskQueue]:
    with TaskQueue("memory://") as queue:
        yield queue


def claimed(queue: TaskQueue, function: TaskFunction[Any, Any], *args: Any, **changes: Any) -> Attempt:
    order = queue.order(function.call(*args))
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    task = evolve(preview(order, moment), attempt=1, delivery=7)
    return Attempt(evolve(task, **changes), function, queue.codec)


@pytest.fixture(params=["coroutine", "thread"])
def run(request: pytest.FixtureRequest, queue: TaskQueue) -> Run:
    """Run a plain function as a task of either kind, to its outcome."""

    def run(function: Callable[[], Any], *, changes: dict[str, Any] | None = None, **options: Any) -> Outcome:
        async def as_coroutine() -> Any:
            return function()

        if request.param == "thread":
            return run_sync(claimed(queue, queue.task(**options)(function), **changes or {}))
        attempt = claimed(queue, queue.task(**options)(as_coroutine), **changes or {})
        return asyncio.run(run_async(attempt))

    return run


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_what_is_returned_is_the_result_under_the_token_of_the_claim(run: Run) -> None:
    outcome = run(lambda: 42)

    assert isinstance(outcome, Succeeded)
    assert outcome.delivery == 7
    assert b"42" in outcome.result


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("no"), "ValueError"),
        (KeyError("no"), "KeyError"),
        (TimeoutError("no"), "TimeoutError"),
        (RecursionError("no"), "RecursionError"),
        (StopIteration("no"), "StopIteration|RuntimeError"),
        (ExceptionGroup("no", [ValueError("inner")]), "ExceptionGroup"),
    ],
    ids=repr,
)
def test_an_error_is_a_retry_while_attempts_are_left_and_then_a_failure(run: Run, error: Exception, name: str) -> None:
    again = run(raising(error), name="a", retry=Fixed(5), changes={"attempt": 3})
    last = run(raising(error), name="b", retry=Fixed(5), changes={"attempt": 4})

    assert isinstance(again, Retry)
    assert again.delay == 5
    assert again.error is not None
    assert again.error.type in name.split("|")
    assert isinstance(last, Failed)
    assert last.error.type in name.split("|")
    assert "in fail" in last.error.traceback


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError(), BaseException("odd")],
    ids=repr,
)
def test_what_would_end_a_program_fails_the_task_alone(run: Run, error: BaseException) -> None:
    outcome = run(raising(error), retry=Fixed(0))

    assert isinstance(outcome, Failed)
    assert outcome.error.type.endswith(type(error).__name__)


def test_what_would_end_a_program_is_retried_where_the_task_says_so(run: Run) -> None:
    assert isinstance(run(raising(SystemExit(3)), retry=Fixed(0), retry_on=(SystemExit,)), Retry)


# Policies


class Chosen(RetryPolicy):
    """Gives, or raises, what a test wants."""

    kind = "chosen"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]  # also what a policy must not give


def test_a_policy_can_fail_the_task_early(run: Run) -> None:
    assert isinstance(run(raising(ValueError()), retry=Chosen(None), max_retries=9), Failed)


@pytest.mark.parametrize(
    "answer", [ZeroDivisionError("in the policy"), SystemExit(), -1, float("nan"), float("inf"), "soon", True], ids=repr
)
def test_a_policy_that_is_broken_does_not_lose_the_task(
    run: Run, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = run(raising(ValueError("of the task")), name="shop.pay", retry=Chosen(answer))

    assert isinstance(outcome, Retry)
    assert 0.9 <= outcome.delay <= 1.0
    assert outcome.error is not None
    assert outcome.error.message == "of the task"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "shop.pay" in record.getMessage()
    assert vars(record)["task_name"] == "shop.pay"


def test_a_policy_in_the_store_that_is_not_installed_here_does_not_lose_the_task(run: Run) -> None:
    outcome = run(raising(ValueError()), changes={"retry_spec": '{"kind": "of-another-plugin"}'})

    assert isinstance(outcome, Retry)


def test_the_policy_of_the_task_is_asked_with_the_attempt_and_the_error(run: Run) -> None:
    class Asked(Chosen):
        def next_delay(self, attempt: int, error: BaseException) -> float | None:
            return attempt * 100.0 + len(str(error))

    outcome = run(raising(ValueError("four")), retry=Asked(None), changes={"attempt": 2})

    assert isinstance(outcome, Retry)
    assert outcome.delay == 204


# Interruption


@pytest.mark.parametrize(
    ("why", "kind"),
    [(Interruption.CANCEL, Cancelled), (Interruption.SHUTDOWN, Released), (Interruption.LEASE_LOST, Released)],
)
def test_an_attempt_that_was_interrupted_before_its_start_does_not_start(
    queue: TaskQueue, why: Interruption, kind: type[Outcome]
) -> None:
    def plain() -> None:
        raise AssertionError("it was started")

    async def coroutine() -> None:
        raise AssertionError("it was started")

    for function, run in ((plain, run_sync), (coroutine, lambda attempt: asyncio.run(run_async(attempt)))):
        attempt = claimed(queue, queue.task(function))
        attempt.interrupt(why)
        assert type(run(attempt)) is kind


async def interrupted_while(function: Callable[[], Any], why: Interruption, queue: TaskQueue) -> Outcome:
    attempt = claimed(queue, queue.task(retry=Fixed(0))(function))
    running = asyncio.create_task(run_async(attempt))
    await asyncio.sleep(0)  # the attempt begins
    attempt.interrupt(why)
    return await running


@pytest.mark.parametrize(("why", "kind"), [(Interruption.CANCEL, Cancelled), (Interruption.SHUTDOWN, Released)])
def test_a_coroutine_is_stopped_by_a_cancellation(queue: TaskQueue, why: Interruption, kind: type[Outcome]) -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    assert type(asyncio.run(interrupted_while(forever, why, queue))) is kind
    assert ended == ["cleaned up"]


def test_a_coroutine_that_swallows_its_cancellation_and_returns_has_a_result(queue: TaskQueue) -> None:
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return "done all the same"

    outcome = asyncio.run(interrupted_while(stubborn, Interruption.CANCEL, queue))

    assert isinstance(outcome, Succeeded)


def test_a_coroutine_that_fails_while_it_is_stopped_has_failed(queue: TaskQueue) -> None:
    async def clumsy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in the clean-up")

    outcome = asyncio.run(interrupted_while(clumsy, Interruption.SHUTDOWN, queue))

    assert isinstance(outcome, Retry)
    assert outcome.error is not None
    assert outcome.error.message == "in the clean-up"


def test_a_coroutine_that_is_cancelled_with_its_event_loop_has_not_failed(queue: TaskQueue) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def end() -> tuple[Outcome, Interruption | None]:
        attempt = claimed(queue, queue.task(max_retries=0)(forever))
        running = asyncio.create_task(run_async(attempt, loop_ends=lambda: True))
        await asyncio.sleep(0)  # the attempt begins
        running.cancel()  # as asyncio.run() does to all tasks when the program is interrupted
        return await running, attempt.interruption

    outcome, interruption = asyncio.run(end())

    assert interruption is Interruption.LEASE_LOST
    assert isinstance(outcome, Released)


def test_a_later_interruption_does_not_replace_the_first(queue: TaskQueue) -> None:
    attempt = claimed(queue, queue.task(lambda: None))

    attempt.interrupt(Interruption.CANCEL)
    attempt.interrupt(Interruption.SHUTDOWN)

    assert type(run_sync(attempt)) is Cancelled


@pytest.mark.parametrize(("why", "kind"), [(Interruption.CANCEL, Cancelled), (Interruption.SHUTDOWN, Released)])
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_thread_that_saw_that_it_shall_stop_has_no_result(
    queue: TaskQueue, why: Interruption, kind: type[Outcome], how: str
) -> None:
    def polite() -> str:
        attempt.interrupt(why)
        if current_task().cancelled and how == "raises":
            raise ValueError
        return "half a result"

    attempt = claimed(queue, queue.task(polite))

    assert type(run_sync(attempt)) is kind


def test_a_thread_that_never_looked_keeps_its_result(queue: TaskQueue) -> None:
    def busy() -> str:
        attempt.interrupt(Interruption.CANCEL)
        return "done"

    attempt = claimed(queue, queue.task(busy))

    assert isinstance(run_sync(attempt), Succeeded)


# Timeouts


def test_a_coroutine_over_its_timeout_is_stopped_and_tried_again(queue: TaskQueue) -> None:
    @queue.task(name="slow", timeout=0.01, retry=Fixed(3), retry_on=())
    async def slow() -> None:
        await asyncio.Event().wait()

    outcome = asyncio.run(run_async(claimed(queue, slow)))

    assert isinstance(outcome, Retry)
    assert outcome.delay == 3
    assert outcome.error is not None
    assert outcome.error.type == "TaskTimeout"
    assert outcome.error.message == "slow took longer than its timeout of 0.01 s"


def test_a_timeout_error_of_the_tasks_own_is_not_taken_for_ours(queue: TaskQueue) -> None:
    @queue.task(timeout=60)
    async def slow() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    outcome = asyncio.run(run_async(claimed(queue, slow, attempt=9)))

    assert isinstance(outcome, Failed)
    assert outcome.error.type == "TimeoutError"


def test_a_coroutine_that_was_cancelled_is_not_taken_for_one_that_took_too_long(queue: TaskQueue) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def interrupt() -> Outcome:
        attempt = claimed(queue, queue.task(timeout=60)(forever))
        running = asyncio.create_task(run_async(attempt))
        await asyncio.sleep(0)  # the attempt begins
        attempt.interrupt(Interruption.CANCEL)
        return await running

    assert type(asyncio.run(interrupt())) is Cancelled


def test_a_thread_that_took_too_long_is_tried_again(queue: TaskQueue) -> None:
    @queue.task(name="slow", timeout=2, retry=Fixed(3))
    def slow() -> None: ...

    again, last = timed_out(claimed(queue, slow)), timed_out(claimed(queue, slow, attempt=4))

    assert isinstance(again, Retry)
    assert isinstance(last, Failed)
    assert last.error.message == "slow took longer than its timeout of 2 s"


# How long


@pytest.mark.parametrize("error", [None, ValueError()])
@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_the_clock_of_an_attempt_stops_when_its_function_ends(
    queue: TaskQueue, kind: str, error: Exception | None
) -> None:
    def end() -> None:
        if error is not None:
            raise error

    async def end_as_coroutine() -> None:
        end()

    attempt = claimed(queue, queue.task(end if kind == "thread" else end_as_coroutine))
    assert attempt.seconds == 0
    if kind == "thread":
        run_sync(attempt)
    else:
        asyncio.run(run_async(attempt))
    seconds, ended = attempt.seconds, time.perf_counter()
    wait_until(lambda: time.perf_counter() > ended, what="the clock to go on")

    assert 0 < attempt.seconds == seconds


# Groups of errors


async def in_a_task_group(*children: Callable[[], Any]) -> None:
    """Run functions as the children of a task group; each begins before the first of them ends."""
    barrier = asyncio.Barrier(len(children))

    async def child(function: Callable[[], Any]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await barrier.wait()
        function()

    async with asyncio.TaskGroup() as group:
        for function in children:
            group.create_task(child(function))


def grouped(queue: TaskQueue, *children: Callable[[], Any], **options: Any) -> Outcome:
    @queue.task(**options)
    async def parent() -> None:
        await in_a_task_group(*children)

    return asyncio.run(run_async(claimed(queue, parent)))


def test_a_child_of_a_task_group_can_have_the_task_run_again(queue: TaskQueue) -> None:
    outcome = grouped(queue, lambda: current_task().retry(delay=7, message="later, please"))

    assert isinstance(outcome, Retry)
    assert outcome.delay == 7
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("RetrySignal", "later, please")
    assert "in_a_task_group" in outcome.error.traceback


def test_a_child_of_a_task_group_can_fail_the_task_for_good(queue: TaskQueue) -> None:
    outcome = grouped(
        queue,
        lambda: current_task().retry(delay=7),
        lambda: current_task().fail("no such customer"),
        raising(OSError("gone")),
    )

    assert isinstance(outcome, Failed)
    assert (outcome.error.type, outcome.error.message) == ("FailSignal", "no such customer")
    assert "OSError: gone" in outcome.error.traceback


@pytest.mark.parametrize(
    ("errors", "retried"),
    [
        ([OSError("a")], True),
        ([OSError("a"), ConnectionError("b")], True),
        ([ExceptionGroup("inner", [OSError("a")])], True),
        ([OSError("a"), ValueError("not to be retried")], False),
        ([ValueError("not to be retried")], False),
    ],
)
def test_a_group_is_retried_if_each_error_in_it_would_be(
    queue: TaskQueue, errors: list[Exception], retried: bool
) -> None:
    outcome = grouped(queue, *map(raising, errors), retry_on=OSError)

    assert isinstance(outcome, Retry if retried else Failed)


def test_a_group_is_retried_where_the_task_names_groups(queue: TaskQueue) -> None:
    assert isinstance(grouped(queue, raising(ValueError()), retry_on=ExceptionGroup), Retry)


# Errors as text


class Wordless(Exception):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def __str__(self) -> str:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]  # also what __str__ must not give


@pytest.mark.parametrize("answer", [ValueError(), SystemExit(), RecursionError(), 5, None], ids=repr)
def test_an_error_that_cannot_say_what_it_is_still_fails_the_task(run: Run, answer: Any) -> None:
    outcome = run(raising(Wordless(answer)), max_retries=0)

    assert isinstance(outcome, Failed)
    assert outcome.error.type == f"{__name__}.Wordless"
    assert "no text" in outcome.error.message
    assert "Wordless" in outcome.error.traceback


def test_long_texts_are_shortened_in_the_middle() -> None:
    def fail() -> None:
        raise ValueError("start" + "x" * 1_000_000 + "end")

    with pytest.raises(ValueError, match="start") as caught:
        fail()
    described = describe_error(caught.value)

    assert described.message.startswith("startxxx")
    assert described.message.endswith("xxxend")
    assert "characters left out" in described.message
    assert len(described.message) < LONGEST_MESSAGE + 100
    assert described.traceback.startswith("Traceback (most recent call last)")
    assert described.traceback.rstrip().endswith("xxxend")
    assert len(described.traceback) < LONGEST_TRACEBACK + 100


def test_a_short_text_is_left_as_it_is() -> None:
    assert describe_error(ValueError("käse " * 100)).message == "käse " * 100


def test_lone_surrogates_become_text_that_a_store_can_hold() -> None:
    described = describe_error(ValueError("no file caf\udce9.txt"))

    assert described.message == "no file caf\\udce9.txt"
    described.message.encode()


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError("x"), "ValueError"),
        (Wordless("x"), f"{__name__}.Wordless"),
        (asyncio.QueueFull(), "asyncio.queues.QueueFull"),
    ],
)
def test_an_error_is_named_with_its_module_unless_it_is_pythons_own(error: Exception, name: str) -> None:
    assert describe_error(error).type == name


def test_an_error_that_was_raised_nowhere_has_no_traceback() -> None:
    assert describe_error(ValueError("x")).traceback == ""


@pytest.mark.parametrize("module", [None, 5])
def test_an_error_whose_class_names_no_module_is_told_like_any_other(run: Run, module: Any) -> None:
    homeless = type("Homeless", (Exception,), {"__module__": module})

    outcome = run(raising(homeless("no home")), max_retries=0)

    assert isinstance(outcome, Failed)
    assert (outcome.error.type, outcome.error.message) == ("Homeless", "no home")


def test_the_cause_of_an_error_is_told(run: Run) -> None:
    def fail() -> None:
        try:
            _ = dict[str, int]()["missing"]
        except KeyError as error:
            raise ValueError("outer") from error

    outcome = run(fail, max_retries=0)

    assert isinstance(outcome, Failed)
    assert "KeyError: 'missing'" in outcome.error.traceback
    assert "direct cause" in outcome.error.traceback
    assert outcome.error.message == "outer"


def test_only_the_first_to_decide_how_an_attempt_ended_does(queue: TaskQueue) -> None:
    attempt = claimed(queue, queue.task(lambda: None))
    attempt.contest()

    assert [attempt.decide(), attempt.decide(), attempt.decide()] == [True, False, False]


def test_the_default_policy_grows_exponentially(run: Run) -> None:
    outcome = run(raising(ValueError()), changes={"attempt": 3})

    assert isinstance(outcome, Retry)
    assert Exponential().delay * 4 * 0.9 <= outcome.delay <= Exponential().delay * 4
