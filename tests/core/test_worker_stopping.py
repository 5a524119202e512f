"""A worker inside the program stops: what runs may end, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import Any

import pytest

from omniq import TaskQueue, TaskState, current_task
from omniq.testing import await_until
from tests.core.running import Gate, MakeQueue, was_delivered


async def test_leaving_a_worker_lets_what_runs_end_and_claims_nothing_more(queue: TaskQueue) -> None:
    started = asyncio.Event()
    release = asyncio.Event()

    @queue.task
    async def hold() -> str:
        started.set()
        await release.wait()
        return "ended"

    running = await hold.aenqueue()
    async with queue.worker(concurrency=1):
        await started.wait()
        waiting = await hold.aenqueue()
        asyncio.get_running_loop().call_later(0.05, release.set)

    assert (await running.atask()).state is TaskState.SUCCEEDED
    assert await running.aresult(0) == "ended"
    record = await waiting.atask()
    assert (record.state, record.attempt) == (TaskState.READY, 0)


async def test_a_worker_that_was_left_has_no_thread_and_is_signed_off(queue: TaskQueue) -> None:
    @queue.task
    def note() -> None: ...

    async with queue.worker():
        await (await note.aenqueue()).aresult(30)
    names = ("omniq-heartbeat", "omniq-thread")
    await await_until(lambda: not [thread for thread in threading.enumerate() if thread.name in names])
    assert await queue.aworkers() == []


@pytest.mark.parametrize(
    ("kind", "private"),
    [
        ("coroutine", True),
        ("coroutine", False),
        ("thread", True),
        ("stubborn coroutine", True),
        ("stubborn coroutine", False),
    ],
)
async def test_what_does_not_end_within_the_grace_period_goes_back_and_runs_elsewhere(
    make_queue: MakeQueue, gate: Gate, kind: str, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.worker.LAST_WORDS", 0.1)
    if not private:
        monkeypatch.delattr("asyncio.tasks._unregister_task")
    queue = make_queue()
    cleaned: list[str] = []
    release = asyncio.Event()

    def in_thread() -> int:
        if current_task().attempt + len(cleaned) == 1:
            cleaned.append("started")
            gate.wait()
        return current_task().attempt

    async def in_coroutine() -> int:
        if not cleaned:
            try:
                await asyncio.Event().wait()
            finally:
                cleaned.append("cleaned up")
        return current_task().attempt

    async def stubborn() -> int:
        if not cleaned:
            cleaned.append("started")
            while not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
        return current_task().attempt

    function: Any = {"coroutine": in_coroutine, "thread": in_thread, "stubborn coroutine": stubborn}[kind]
    handle = await queue.task(max_retries=0)(function).aenqueue()
    async with queue.worker(grace=0.05):
        await await_until(was_delivered(queue, handle.id, 1))
    record = await handle.atask()
    # It had begun, yet the attempt is given back: nothing of it was the task's fault.
    assert (record.state, record.attempt) == (TaskState.READY, 0)

    async with queue.worker():
        assert await handle.aresult(30) == 1
        # What still runs of the first attempt changes nothing when it ends.
        gate.open()
        release.set()
        await asyncio.sleep(0.05)  # what must not happen would have by now
    record = await handle.atask()
    assert (record.state, record.delivery) == (TaskState.SUCCEEDED, 2)


async def test_stopping_at_once_does_not_wait_for_the_grace_period(queue: TaskQueue) -> None:
    started = asyncio.Event()

    @queue.task
    async def hold() -> None:
        started.set()
        await asyncio.Event().wait()

    handle = await hold.aenqueue()
    worker = queue.worker(grace=3600)
    running = asyncio.create_task(worker.run())
    await started.wait()
    worker.stop()
    await asyncio.sleep(0)  # the worker sees that it is to stop
    assert not running.done()

    worker.stop(now=True)
    async with asyncio.timeout(30):
        await running
    assert (await handle.atask()).state is TaskState.READY


async def test_a_worker_inside_a_program_leaves_its_garbage_collector_as_it_is(queue: TaskQueue) -> None:
    @queue.task
    async def count() -> int:
        return gc.get_freeze_count()

    gc.unfreeze()  # what the tests themselves have frozen
    try:
        running = asyncio.create_task(queue.arun_worker())
        frozen = await (await count.aenqueue()).aresult(30)
        running.cancel()
        await asyncio.wait([running])
    finally:
        gc.freeze()
    assert frozen == 0


async def test_a_worker_whose_run_is_cancelled_puts_back_what_it_held(queue: TaskQueue) -> None:
    started = asyncio.Event()

    @queue.task(max_retries=0)
    async def hold() -> None:
        started.set()
        await asyncio.Event().wait()

    handle = await hold.aenqueue()
    running = asyncio.create_task(queue.worker(grace=3600).run())
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    record = await handle.atask()
    assert (record.state, record.attempt) == (TaskState.READY, 0)
    await await_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "omniq-heartbeat"])


async def test_whoever_gives_up_waiting_for_the_drain_leaves_nothing_running(queue: TaskQueue) -> None:
    started = asyncio.Event()
    ended = asyncio.Event()

    @queue.task(max_retries=0)
    async def hold() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    handle = await hold.aenqueue()

    async def give_up() -> None:
        async with asyncio.timeout(None) as patience, queue.worker(grace=3600):
            await started.wait()
            patience.reschedule(asyncio.get_running_loop().time() + 0.1)

    with pytest.raises(TimeoutError):
        await give_up()

    async with asyncio.timeout(30):
        await ended.wait()
    await await_until(lambda: not [t for t in threading.enumerate() if t.name == "omniq-heartbeat"])

    async def is_back() -> bool:
        return (await handle.atask()).state is TaskState.READY

    await await_until(is_back)
    assert (await handle.atask()).attempt == 0


def test_a_task_that_dies_with_its_event_loop_has_not_failed(queue: TaskQueue) -> None:
    started = threading.Event()

    @queue.task(max_retries=0)
    async def hold() -> None:
        started.set()
        await asyncio.Event().wait()

    handle = hold.enqueue()

    async def die() -> None:
        async with queue.worker(lease=0.5, grace=3600):
            await asyncio.to_thread(started.wait)
            asyncio.get_running_loop().call_soon(_raise_interrupt)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(die())

    # It is back at once, or when its lease has run out; but it never fails.
    assert handle.task().state in (TaskState.READY, TaskState.RUNNING)


def _raise_interrupt() -> None:
    raise KeyboardInterrupt


async def test_a_worker_works_once(queue: TaskQueue) -> None:
    worker = queue.worker()
    async with worker:
        with pytest.raises(RuntimeError, match=r"works once.*queue\.worker\(\)"):
            await worker.start()
    with pytest.raises(RuntimeError, match="works once"):
        await worker.start()


async def test_draining_twice_or_before_the_start_changes_nothing(queue: TaskQueue) -> None:
    await queue.worker().drain()
    async with queue.worker() as worker:
        await worker.drain()
        await worker.drain()


async def test_a_worker_that_was_stopped_before_its_start_ends_at_once(queue: TaskQueue) -> None:
    @queue.task
    async def note() -> None: ...

    handle = await note.aenqueue()
    worker = queue.worker()
    worker.stop()
    await worker.run()
    assert (await handle.atask()).state is TaskState.READY


async def test_two_workers_of_one_queue_can_run_on_one_loop(queue: TaskQueue) -> None:
    workers: list[str | None] = []
    release = asyncio.Event()

    @queue.task
    async def hold() -> None:
        workers.append(current_task().id)
        await release.wait()

    handles = await queue.aenqueue_many(hold.call() for _ in range(2))
    async with queue.worker(concurrency=1) as one, queue.worker(concurrency=1) as two:
        await await_until(lambda: len(workers) == 2)
        seen = {(await handle.atask()).worker for handle in handles}
        release.set()
    assert seen == {one.id, two.id}
