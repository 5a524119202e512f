"""What a producer sees, on every store: handing over, results, and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from omniq import (
    Fixed,
    ResultTimeout,
    SerializationError,
    TaskCall,
    TaskFailed,
    TaskNotFound,
    TaskQueue,
    TaskState,
    current_task,
)
from omniq.storage import Enqueued, StorageLimits
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.testing import wait_until
from omniq_local.memory.storage import MemoryStorage
from tests.core.running import MakeQueue, working

LATE = 120  # the end of waiting in vain: thousands of tasks on files take long on a loaded machine


class Broken(Exception):
    pass


def declare(queue: TaskQueue) -> None:
    """Declare what two queues on one store have in common, as two processes that import one module do."""

    @queue.task(name="add")
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @queue.task(name="join")
    def join(parts: list[str], separator: str = "") -> str:
        return separator.join(parts)


def test_a_call_of_either_kind_of_function_gives_what_the_function_returned(queue: TaskQueue) -> None:
    @queue.task
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @queue.task
    def pair(a: int, /, *rest: str, flag: bool = False, **named: float) -> tuple[int, int, bool, dict[str, float]]:
        return a, len(rest), flag, named

    with working(queue):
        assert add.enqueue(2).result(30) == 3
        assert add.enqueue(2, b=5).result(30) == 7
        assert pair.enqueue(1, "x", "y", flag=True, z=0.5).result(30) == (1, 2, True, {"z": 0.5})


async def test_a_coroutine_can_enqueue_and_await_the_result(queue: TaskQueue) -> None:
    @queue.task
    async def add(a: int, b: int = 1) -> int:
        return a + b

    @queue.task
    def twice(a: int) -> int:
        return 2 * a

    async with queue.worker():
        assert await (await add.aenqueue(2)) == 3
        assert await (await queue.aenqueue(twice, 4)).aresult(30) == 8


def test_a_function_can_be_enqueued_through_the_queue(queue: TaskQueue) -> None:
    @queue.task
    def twice(a: int) -> int:
        return 2 * a

    handle = queue.enqueue(twice, a=4)
    with working(queue):
        assert handle.result(30) == 8


def test_a_thousand_and_more_calls_of_several_functions_give_their_handles_in_order(queue: TaskQueue) -> None:
    @queue.task
    async def same(n: int) -> int:
        return n

    @queue.task
    def negative(n: int) -> int:
        return -n

    handles = queue.enqueue_many((same if n % 2 else negative).call(n) for n in range(2500))

    assert len({handle.id for handle in handles}) == 2500
    with working(queue):
        assert [handle.result(LATE) for handle in handles[-7:]] == [2493, -2494, 2495, -2496, 2497, -2498, 2499]
        assert handles[0].result(LATE) == 0
        assert handles[1201].result(LATE) == 1201


def test_calls_can_come_from_a_generator_that_uses_the_queue(queue: TaskQueue) -> None:
    @queue.task
    def same(n: int) -> int:
        return n

    first = queue.enqueue_many(same.using(tags=[queue.enqueue(same, n).id]).call(n) for n in range(3))

    assert [handle.task().args for handle in first] == [(0,), (1,), (2,)]


def test_calls_can_come_from_a_generator_that_uses_one_list_for_all(queue: TaskQueue) -> None:
    @queue.task
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    def growing() -> Iterator[TaskCall[int]]:
        numbers: list[int] = []
        for n in range(3):
            numbers.append(n)
            yield total.call(numbers)

    assert [handle.task().args for handle in queue.enqueue_many(growing())] == [([0],), ([0, 1],), ([0, 1, 2],)]


async def test_no_calls_give_no_handles(queue: TaskQueue) -> None:
    assert await queue.aenqueue_many([]) == []


def test_one_call_that_cannot_be_encoded_keeps_all_from_being_stored(queue: TaskQueue) -> None:
    @queue.task
    def take(value: object) -> None: ...

    with pytest.raises(SerializationError, match=r"args\[0\]"):
        queue.enqueue_many([take.call(1), take.call(object())])

    assert list(queue.tasks()) == []


@pytest.mark.parametrize(
    ("limits", "unique", "sent"),
    [
        (StorageLimits(), False, [1000, 1000, 400]),
        (StorageLimits(atomic_tasks=5000), False, [1000, 1000, 400]),
        (StorageLimits(atomic_tasks=800, atomic_unique_tasks=500), False, [800, 800, 800]),
        (StorageLimits(atomic_tasks=800, atomic_unique_tasks=500), True, [500, 500, 500, 500, 400]),
    ],
)
def test_many_are_sent_as_the_store_keeps_them_together(
    monkeypatch: pytest.MonkeyPatch, limits: StorageLimits, unique: bool, sent: list[int]
) -> None:
    sizes: list[int] = []
    enqueue = MemoryStorage.enqueue

    async def counted(store: MemoryStorage, tasks: Sequence[NewTask]) -> list[Enqueued]:
        sizes.append(len(tasks))
        return await enqueue(store, tasks)

    monkeypatch.setattr(MemoryStorage, "enqueue", counted)
    monkeypatch.setattr(MemoryStorage, "limits", limits)
    with TaskQueue(f"memory://{new_id()}") as queue:

        @queue.task
        def take(n: int) -> None: ...

        calls = [take.call(n) for n in range(2400)]
        if unique:
            calls[-1] = take.using(unique="the last").call(0)
        handles = queue.enqueue_many(calls)

        assert sizes == sent
        assert len({handle.id for handle in handles}) == 2400


def test_a_result_can_be_read_many_times_and_by_whoever_knows_the_id(make_queue: MakeQueue) -> None:
    producer, elsewhere = make_queue(), make_queue()
    declare(producer)
    declare(elsewhere)
    handle = producer.functions["join"].enqueue(["a", "b"], separator="-")

    with working(elsewhere):
        assert handle.result(30) == "a-b"
        assert handle.result(30) == "a-b"

    assert elsewhere.handle(handle.id).result(0) == "a-b"
    assert make_queue().handle(handle.id).result(0) == "a-b"
    assert elsewhere.handle(handle.id) == handle
    assert len({elsewhere.handle(handle.id), handle}) == 1


async def test_several_can_wait_for_one_result(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    handle = await answer.aenqueue()
    waiting = [asyncio.create_task(handle.aresult(30)) for _ in range(5)]
    async with queue.worker():
        assert await asyncio.gather(*waiting) == [42] * 5


def test_a_result_comes_back_as_the_type_that_the_function_names(queue: TaskQueue) -> None:
    @queue.task
    def parent(path: Path, at: datetime) -> tuple[Path, datetime]:
        return path.parent, at + timedelta(days=1)

    at = datetime(2030, 1, 1, tzinfo=UTC)
    handle = parent.enqueue(Path("/srv/a.png"), at)
    with working(queue):
        assert handle.result(30) == (Path("/srv"), at + timedelta(days=1))
    assert handle.task().args == (Path("/srv/a.png"), at)
    assert handle.task().result == (Path("/srv"), at + timedelta(days=1))


def test_a_function_that_returns_nothing_gives_none(queue: TaskQueue) -> None:
    @queue.task
    def nothing() -> None: ...

    handle = nothing.enqueue()
    with working(queue):
        handle.result(30)
    assert handle.task().state == "succeeded"


@pytest.mark.parametrize("timeout", [0, 0.05, timedelta(milliseconds=50)])
def test_a_task_that_has_not_ended_in_time_goes_on(queue: TaskQueue, timeout: float | timedelta) -> None:
    @queue.task
    def answer() -> int:
        return 42

    handle = answer.enqueue()

    with pytest.raises(ResultTimeout, match=handle.id) as caught:
        handle.result(timeout)

    assert isinstance(caught.value, TimeoutError)
    with working(queue):
        assert handle.result(30) == 42


async def test_a_coroutine_that_waits_for_a_result_can_be_cancelled(queue: TaskQueue) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    handle = await answer.aenqueue()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await handle

    async with queue.worker():
        assert await handle.aresult(30) == 42


def test_an_id_that_is_not_in_the_store_is_a_lookup_error(queue: TaskQueue) -> None:
    handle = queue.handle(new_id())

    with pytest.raises(TaskNotFound, match=handle.id) as caught:
        handle.result(30)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(TaskNotFound):
        handle.task()
    assert queue.get(handle.id) is None
    assert handle.cancel() is False


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
def test_a_failed_task_gives_the_error_with_the_workers_traceback(queue: TaskQueue, kind: str) -> None:
    async def raise_in_coroutine() -> None:
        raise Broken("no such shop")

    def raise_in_thread() -> None:
        raise Broken("no such shop")

    function = raise_in_coroutine if kind == "coroutine" else raise_in_thread
    task = queue.task(max_retries=0)(function)
    handle = task.enqueue()

    with working(queue), pytest.raises(TaskFailed) as caught:
        handle.result(30)

    text = str(caught.value)
    assert "test_queue.Broken: no such shop" in text
    assert f"in {function.__name__}" in text
    assert 'raise Broken("no such shop")' in text
    # From the task's own code on: what is ours above it says nothing to whoever wrote it.
    assert "omniq-core" not in text
    assert "asyncio" not in text
    assert caught.value.task_id == handle.id
    assert caught.value.error.message == "no such shop"
    record = handle.task()
    assert record.state is TaskState.FAILED
    assert record.error == caught.value.error
    assert record.attempt == 1


def test_a_task_runs_again_until_it_succeeds_and_keeps_the_last_error_meanwhile(queue: TaskQueue) -> None:
    @queue.task(max_retries=3, retry=Fixed(0))
    def third_time() -> int:
        if current_task().attempt < 3:
            raise Broken(f"attempt {current_task().attempt}")
        return current_task().attempt

    handle = third_time.enqueue()
    with working(queue):
        assert handle.result(30) == 3
    assert handle.task().attempt == 3


def test_a_task_fails_when_no_retries_are_left(queue: TaskQueue) -> None:
    attempts: list[int] = []

    @queue.task(max_retries=2, retry=Fixed(0))
    async def never() -> None:
        attempts.append(current_task().attempt)
        raise Broken(f"attempt {current_task().attempt}")

    handle = never.enqueue()
    with working(queue), pytest.raises(TaskFailed, match="attempt 3"):
        handle.result(30)
    assert attempts == [1, 2, 3]


def test_a_waiting_retry_is_kept_in_the_store_with_its_error(queue: TaskQueue) -> None:
    @queue.task(max_retries=1, retry=Fixed(3600))
    def fail() -> None:
        raise Broken("down")

    before = datetime.now(UTC)
    handle = fail.enqueue()
    with working(queue):
        wait_until(lambda: handle.task().state is TaskState.SCHEDULED)

    record = handle.task()
    assert record.error is not None
    assert record.error.message == "down"
    hour = timedelta(seconds=3600)
    assert before + hour - timedelta(seconds=1) <= record.run_at <= datetime.now(UTC) + hour + timedelta(seconds=1)
    assert record.attempt == 1


def test_another_queue_goes_on_with_a_retry_by_the_policy_that_travels_with_the_task(make_queue: MakeQueue) -> None:
    policy = Fixed(0)

    def flaky() -> str:
        if current_task().attempt == 1:
            raise Broken
        return "done"

    first, second = make_queue(), make_queue()
    # What the second declares is another policy: that of the task decides.
    task = first.task(name="flaky", retry=policy, max_retries=2)(flaky)
    second.task(name="flaky", retry=Fixed(3600), max_retries=0)(flaky)
    handle = task.enqueue()

    with working(second):
        assert handle.result(30) == "done"


def test_errors_that_are_not_to_be_retried_fail_at_once(queue: TaskQueue) -> None:
    @queue.task(max_retries=5, retry=Fixed(0), retry_on=(LookupError, Broken))
    def fail(how: str) -> None:
        attempt = f"attempt {current_task().attempt}"
        raise {"key": KeyError, "broken": Broken, "value": ValueError}[how](attempt)

    with working(queue):
        for how, last in (("key", 6), ("broken", 6), ("value", 1)):
            with pytest.raises(TaskFailed, match=f"attempt {last}"):
                fail.enqueue(how).result(30)


def test_a_task_can_enqueue_and_wait_for_others(queue: TaskQueue) -> None:
    @queue.task
    def leaf(n: int) -> int:
        return n

    @queue.task
    async def branch(n: int) -> int:
        return sum([await handle for handle in await queue.aenqueue_many(leaf.call(i) for i in range(n))])

    @queue.task
    def root() -> int:
        return leaf.enqueue(1).result(30) + branch.enqueue(4).result(30)

    with working(queue):
        assert root.enqueue().result(30) == 7
