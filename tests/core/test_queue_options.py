"""What the options of a task do, on every store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from omniq import (
    Fixed,
    TaskCancelled,
    TaskHandle,
    TaskNotFound,
    TaskQueue,
    TaskState,
)
from omniq.testing import wait_until
from tests.core.running import MakeQueue, working


class Broken(Exception):
    pass


def test_of_two_ready_tasks_the_larger_priority_comes_first_and_then_the_older(queue: TaskQueue) -> None:
    order: list[str] = []

    @queue.task
    async def note(name: str) -> None:
        order.append(name)

    for name, priority in (("a", -5), ("b", 0), ("c", 10), ("d", 0), ("e", 10)):
        note.using(priority=priority).enqueue(name)
    with working(queue, concurrency=1):
        wait_until(lambda: len(order) == 5)
    assert order == ["c", "e", "b", "d", "a"]


@pytest.mark.parametrize("form", ["delay", "delay as timedelta", "run_at"])
def test_a_delayed_task_waits_as_scheduled_until_its_time(queue: TaskQueue, form: str) -> None:
    @queue.task
    async def answer() -> int:
        return 42

    def after(seconds: float) -> TaskHandle[int]:
        in_time = timedelta(seconds=seconds)
        return {
            "delay": answer.using(delay=seconds),
            "delay as timedelta": answer.using(delay=in_time),
            "run_at": answer.using(run_at=datetime.now(UTC) + in_time),
        }[form].enqueue()

    # However slow the machine is, the first has its time still to come.
    late, soon = after(3600), after(0.3)

    record = late.task()
    assert record.state is TaskState.SCHEDULED
    assert record.run_at - record.created_at > timedelta(minutes=30)
    with working(queue):
        assert soon.result(30) == 42
    record = soon.task()
    assert record.started_at is not None
    assert record.started_at >= record.run_at
    assert late.task().state is TaskState.SCHEDULED


def test_a_task_that_expired_is_not_started(queue: TaskQueue) -> None:
    @queue.task
    async def note() -> None:
        raise AssertionError("it was started")

    handle = note.using(expires=0.01).enqueue()
    in_time = note.using(expires=datetime.now(UTC) + timedelta(hours=1), delay=3600).enqueue()
    wait_until(lambda: handle.task().expires_at < datetime.now(UTC))  # type: ignore[operator]  # it has one

    with working(queue), pytest.raises(TaskCancelled, match=handle.id):
        handle.result(30)
    assert in_time.task().state is TaskState.SCHEDULED


def test_at_most_one_live_task_has_a_unique_key(queue: TaskQueue) -> None:
    @queue.task
    async def note(n: int) -> int:
        return n

    first = note.using(unique="a").enqueue(1)
    second = note.using(unique="a").enqueue(2)
    other = note.using(unique="b").enqueue(3)

    assert (first.created, second.created, other.created) == (True, False, True)
    assert second.id == first.id
    assert first.task().unique == "a"
    with working(queue):
        assert second.result(30) == 1
        third = note.using(unique="a").enqueue(4)  # the first has ended
        assert third.created
        assert third.result(30) == 4


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_a_unique_key_is_free_after_any_end(queue: TaskQueue, end: str) -> None:
    @queue.task(max_retries=0, unique="only")
    def fail() -> None:
        raise Broken

    first = fail.enqueue()
    if end == "cancelled":
        first.cancel()
    else:
        with working(queue):
            wait_until(lambda: first.task().state is TaskState.FAILED)

    assert fail.enqueue().created


def test_unique_true_means_one_for_each_function_and_arguments(queue: TaskQueue) -> None:
    @queue.task(unique=True)
    def one(n: int, *, flag: bool = False) -> None: ...

    @queue.task(unique=True)
    def other(n: int) -> None: ...

    calls = [one.call(1), one.call(1), one.call(2), other.call(1), one.call(1, flag=True)]

    assert [handle.created for handle in queue.enqueue_many(calls)] == [True, False, True, True, True]
    assert one.using(unique=False).enqueue(1).created


def test_tags_find_a_task(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    tagged = note.using(tags=["red", "käse"]).enqueue()
    note.enqueue()

    assert [task.id for task in queue.tasks(tag="käse")] == [tagged.id]
    assert tagged.task().tags == ("red", "käse")


def test_a_record_and_its_result_are_dropped_after_their_time(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.maintenance.PRUNE_EVERY", 0.05)

    @queue.task(result_ttl=0.05)
    def short() -> int:
        return 1

    @queue.task
    def long() -> int:
        return 2

    first, second = short.enqueue(), long.enqueue()
    with working(queue, recover_every=0.05):
        wait_until(lambda: queue.get(first.id) is None)
        with pytest.raises(TaskNotFound):
            first.result(30)
        assert second.result(30) == 2


def test_using_gives_a_copy_and_leaves_the_original_as_it_is(queue: TaskQueue) -> None:
    @queue.task(priority=1, max_retries=7, timeout=5, queue="mail")
    def send() -> None: ...

    copy = send.using(queue="slow", priority=9, max_retries=1, timeout=timedelta(minutes=1), tags=["x"]).using(delay=60)
    of_copy, of_original = copy.enqueue().task(), send.enqueue().task()

    assert (of_copy.queue, of_copy.priority, of_copy.max_retries, of_copy.timeout) == ("slow", 9, 1, 60)
    assert (of_copy.tags, of_copy.state) == (("x",), TaskState.SCHEDULED)
    assert (of_original.queue, of_original.priority, of_original.max_retries, of_original.timeout) == ("mail", 1, 7, 5)
    assert (of_original.tags, of_original.state) == ((), TaskState.READY)
    assert of_copy.name == of_original.name


def test_the_queues_own_options_are_the_defaults_of_its_tasks(make_queue: MakeQueue) -> None:
    queue = make_queue(max_retries=9, retry=Fixed(7), timeout=timedelta(minutes=2), result_ttl=60)

    @queue.task
    async def plain() -> None: ...

    @queue.task(max_retries=0, result_ttl=timedelta(hours=1))
    def own() -> None: ...

    record = plain.enqueue().task()
    assert (record.max_retries, record.retry, record.timeout, record.result_ttl) == (9, Fixed(7), 120, 60)
    assert record.is_async
    record = own.enqueue().task()
    assert (record.max_retries, record.retry, record.timeout, record.result_ttl) == (0, Fixed(7), 120, 3600)
    assert not record.is_async
