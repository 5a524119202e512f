"""Handles in the order in which their tasks end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from omniq import ResultTimeout, TaskFailed, TaskQueue, as_completed
from omniq._tasks.handle import LONGEST_WAIT
from tests.core.running import MakeQueue, working


def test_handles_come_in_the_order_in_which_their_tasks_end(queue: TaskQueue) -> None:
    gates = [threading.Event() for _ in range(3)]

    @queue.task(max_retries=0)
    def wait(number: int) -> int:
        gates[number].wait()
        return 6 // number

    handles = [wait.enqueue(number) for number in range(3)]
    with working(queue):
        ended = iter(as_completed([*handles, handles[0]]))
        for number in (2, 0, 1):
            gates[number].set()
            handle = next(ended)
            assert handle is handles[number]
            if number:
                assert handle.result(0) == 6 // number
            else:
                with pytest.raises(TaskFailed, match="ZeroDivisionError"):
                    handle.result(0)
        assert list(ended) == []


async def test_they_come_in_a_coroutine_too_and_other_work_goes_on(queue: TaskQueue) -> None:
    release = asyncio.Event()

    @queue.task
    async def wait(number: int) -> int:
        if number:
            await release.wait()
        return number

    handles = [await wait.aenqueue(number) for number in range(2)]
    results = []
    async with queue.worker():
        async for handle in as_completed(handles, timeout=60):
            results.append(await handle)
            release.set()
    assert results == [0, 1]


def test_what_has_not_ended_in_time_is_told_and_goes_on(queue: TaskQueue) -> None:
    @queue.task
    def work() -> int:
        return 1

    ready = [work.enqueue() for _ in range(2)]
    with pytest.raises(ResultTimeout, match=r"^2 tasks have not ended within 0\.1 s; they go on$"):
        list(as_completed(ready, timeout=0.1))
    with working(queue):
        assert {handle.result() for handle in as_completed(ready)} == {1}
    assert list(as_completed([])) == []


def test_more_tasks_than_are_waited_for_at_a_time_hold_up_none(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._tasks.handle.WAITED_FOR", 2)

    @queue.task
    def work() -> int:
        return 1

    later = [work.using(delay=3600).enqueue() for _ in range(5)]
    now = work.enqueue()
    with working(queue):
        assert next(iter(as_completed([*later, now], timeout=LONGEST_WAIT))) == now
    with pytest.raises(ResultTimeout, match="5 tasks"):
        list(as_completed(later, timeout=0.1))


def test_handles_of_two_queues_are_refused(make_queue: MakeQueue) -> None:
    with pytest.raises(ValueError, match="handles of one queue"):
        as_completed([make_queue().handle("a"), make_queue().handle("b")])
