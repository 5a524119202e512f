"""One queue used from anywhere: threads, event loops that come and go, children of a fork."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from omniq import StorageUnavailable, TaskQueue, TaskState
from omniq._runtime.portal import Portal
from omniq.testing import wait_until
from tests.core.running import Gate, MakeQueue, working


def echo_task(queue: TaskQueue) -> Any:
    @queue.task(name="echo")
    async def echo(n: int) -> int:
        return n

    return echo


def test_many_threads_can_enqueue_and_wait_at_once(queue: TaskQueue) -> None:
    echo = echo_task(queue)

    def ask(n: int) -> int:
        result: int = echo.enqueue(n).result(30)
        return result

    with working(queue), ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == list(range(200))


def test_several_loops_can_use_it_at_once(queue: TaskQueue) -> None:
    echo = echo_task(queue)

    async def ask(start: int) -> list[int]:
        handles = [await echo.aenqueue(n) for n in range(start, start + 20)]
        return [await handle for handle in handles]

    with working(queue), ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda start: asyncio.run(ask(start)), range(0, 80, 20)))

    assert [n for answer in answers for n in answer] == list(range(80))


def test_it_can_be_used_from_one_loop_after_the_other(queue: TaskQueue) -> None:
    echo = echo_task(queue)
    ids = [asyncio.run(echo.aenqueue(n)).id for n in range(5)]

    assert [asyncio.run(queue.handle(task_id).atask()).args for task_id in ids] == [(n,) for n in range(5)]
    assert len(queue.connections._by_loop) == 1, "the storages of loops that have ended are closed"


def test_it_can_be_used_without_a_loop_between_and_after_loops(queue: TaskQueue) -> None:
    echo = echo_task(queue)
    first = echo.enqueue(1)
    second = asyncio.run(echo.aenqueue(2))

    async def work() -> int:
        async with queue.worker():
            result: int = await first
            return result

    assert asyncio.run(work()) == 1
    with working(queue):
        assert second.result(30) == 2
    assert first.result(0) == 1


async def test_synchronous_calls_that_wait_are_refused_on_a_running_loop(queue: TaskQueue) -> None:
    echo = echo_task(queue)
    handle = await echo.aenqueue(1)

    # The worker is on this very loop: to wait here would be to wait for ever.
    async with queue.worker():
        calls: dict[str, Callable[[], object]] = {
            "aresult": lambda: handle.result(30),
            "atask": handle.task,
            "acancel": handle.cancel,
            "astats": queue.stats,
            "atasks": queue.tasks,
            "aget": lambda: queue.get(handle.id),
            "aschedules": queue.schedules,
            "atrigger_schedule": lambda: queue.trigger_schedule("nightly"),
            "arun_worker": queue.run_worker,
        }
        for asynchronous, call in calls.items():
            with pytest.raises(RuntimeError, match=rf"`await ….{asynchronous}\(…\)`"):
                call()
        assert await handle == 1
    await queue.aclose()


async def test_a_worker_runs_within_a_coroutine_until_it_is_cancelled(queue: TaskQueue) -> None:
    echo = echo_task(queue)
    running = asyncio.create_task(queue.arun_worker(concurrency=2))
    assert await (await echo.aenqueue(1)) == 1

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await queue.aworkers() == []


async def test_a_forgotten_a_is_an_error_and_the_task_is_stored_once(queue: TaskQueue) -> None:
    echo = echo_task(queue)

    with (
        pytest.warns(RuntimeWarning, match="await ….aenqueue") as warned,
        pytest.raises(TypeError, match=r"write `await ….aenqueue\(…\)`; task \S+ is stored") as refused,
    ):
        await echo.enqueue(1)

    assert [warning.filename for warning in warned] == [__file__], "the place is the caller's"
    (stored,) = (await queue.atasks()).tasks
    assert stored.id in str(refused.value)
    with pytest.warns(RuntimeWarning, match="await ….aenqueue"):
        handle = queue.enqueue(echo, 2)
    async with queue.worker():
        assert await handle.aresult(30) == 2
    await queue.aclose()


async def test_a_synchronous_enqueue_on_a_running_loop_warns_once_a_place(queue: TaskQueue) -> None:
    echo = echo_task(queue)

    def one_place() -> None:
        echo.enqueue(1)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")  # as in a program that says nothing of warnings
        for _ in range(3):
            one_place()
        queue.enqueue_many([echo.call(2)])
    await queue.aclose()

    assert [str(warning.message).rpartition("write ")[2] for warning in warned] == [
        "`await ….aenqueue(…)`",
        "`await queue.aenqueue_many(…)`",
    ]


async def test_closing_it_synchronously_on_its_own_loop_says_what_to_write_instead(queue: TaskQueue) -> None:
    await echo_task(queue).aenqueue(1)

    with pytest.raises(RuntimeError, match=r"await queue\.aclose\(\)"):
        queue.close()

    await queue.aclose()
    queue.close()


async def test_closing_it_synchronously_inside_a_coroutine_is_fine_where_only_threads_use_it(queue: TaskQueue) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(echo_task(queue).enqueue, 1).result()
    queue.close()


def test_a_synchronous_call_from_the_background_loop_itself_is_an_error_and_no_deadlock(queue: TaskQueue) -> None:
    async def call() -> None:
        queue.stats()

    with pytest.raises(RuntimeError, match="its own background loop"):
        queue.run(call())


def test_whoever_waits_while_the_queue_is_closed_is_told(queue: TaskQueue) -> None:
    handle = echo_task(queue).enqueue(1)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            handle.result(60)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    portal = queue.connections._portal
    wait_until(
        lambda: portal.loop is not None and len(asyncio.all_tasks(portal.loop)) > 0, what="the call to be waiting"
    )
    queue.close()
    thread.join(60)

    assert not thread.is_alive()
    assert [type(failure) for failure in failures] == [StorageUnavailable]
    assert handle.task().state is TaskState.READY


def test_whatever_is_under_way_on_the_background_loop_ends_with_it() -> None:
    portal = Portal()
    started = threading.Event()

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(portal.run, wait())
        started.wait()
        portal.stop()
        with pytest.raises(StorageUnavailable, match="closed while this call was under way"):
            waiting.result(30)

    async def answer() -> int:
        return 42

    assert portal.run(answer()) == 42, "it can be used again"
    portal.stop()
    portal.stop()


def test_opening_again_is_tried_after_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    with TaskQueue(f"sqlite:///{folder}/jobs.db") as queue:
        echo = echo_task(queue)
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match="no folder"):
                echo.enqueue(1)
        folder.mkdir()
        assert echo.enqueue(1).created


def test_a_queue_that_nobody_holds_any_more_leaves_no_thread(url: str) -> None:
    def use_and_drop() -> None:
        echo_task(TaskQueue(url)).enqueue(1)

    before = set(threading.enumerate())
    use_and_drop()
    gc.collect()

    wait_until(lambda: set(threading.enumerate()) <= before, what="the end of its threads")


# After a fork


def in_a_child(work: Callable[[], object]) -> None:
    """Run some work in a forked child, and fail as it fails."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # a child that hangs ends by itself
        try:
            work()
        except BaseException:
            os.write(writing, traceback.format_exc().encode()[-60_000:])
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as said:
        problem = said.read()
    assert (os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), problem) == (0, "")


def test_a_forked_child_can_enqueue_on_a_queue_that_its_parent_has_used(queue: TaskQueue, url: str) -> None:
    echo = echo_task(queue)
    echo.enqueue(1)
    asyncio.run(echo.aenqueue(2))

    def work() -> None:
        assert echo.enqueue(3).created
        assert asyncio.run(echo.aenqueue(4)).created
        assert len(queue.tasks()) == 4
        queue.close()

    in_a_child(work)
    if not url.startswith("memory"):
        assert sorted(task.args[0] for task in queue.tasks()) == [1, 2, 3, 4]
    assert echo.enqueue(5).created, "the parent is not disturbed"


def test_what_a_forked_child_enqueues_outlives_the_parents_close(queue: TaskQueue, url: str) -> None:
    (child_waits, tell_parent), (parent_closed, tell_child) = os.pipe(), os.pipe()
    with ThreadPoolExecutor(1) as pool:
        echo = echo_task(queue)
        echo.enqueue(1)

        def work() -> None:
            echo.enqueue(2)
            os.write(tell_parent, b"!")
            os.read(parent_closed, 1)
            echo.enqueue(3)

        child = pool.submit(in_a_child, work)
        os.read(child_waits, 1)
        queue.close()
        os.write(tell_child, b"!")
        child.result()

        expected = [1] if url.startswith("memory") else [1, 2, 3]  # a child's memory is its own
        assert sorted(task.args[0] for task in queue.tasks()) == expected
    for end in (child_waits, tell_parent, parent_closed, tell_child):
        os.close(end)


def test_a_child_that_is_forked_while_other_threads_use_the_queue_can_use_it(make_queue: MakeQueue, gate: Gate) -> None:
    queue = make_queue()
    echo = echo_task(queue)
    stop = threading.Event()

    def enqueue() -> None:
        while not stop.is_set():
            echo.enqueue(1)

    threads = [threading.Thread(target=enqueue) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            in_a_child(lambda: echo.enqueue(2).task())
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(queue.tasks(limit=1)) == 1


def test_a_worker_in_a_child_runs_what_its_parent_enqueued(queue: TaskQueue, url: str) -> None:
    echo = echo_task(queue)
    handle = echo.enqueue(7)

    def work() -> None:
        with working(queue):
            assert handle.result(30) == 7
        queue.close()

    in_a_child(work)
    if not url.startswith("memory"):
        assert handle.result(30) == 7
