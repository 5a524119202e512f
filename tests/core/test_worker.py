"""A worker inside the program: what it claims, how many tasks it runs at once, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from omniq import Fixed, TaskFailed, TaskQueue, TaskState, current_task
from omniq.testing import await_until, wait_until
from tests.core.running import Gate, MakeQueue, working

# Claiming


async def test_of_several_queues_the_first_is_served_first(queue: TaskQueue) -> None:
    order: list[str] = []

    @queue.task
    async def note(name: str) -> None:
        order.append(name)

    for name in ("low", "high", "middle"):
        # The priority counts within a queue, not between queues.
        await note.using(queue=name, priority=5 if name == "low" else 0).aenqueue(name)
        await note.using(queue=name).aenqueue(name)

    async with queue.worker(queues=["high", "middle", "low"], concurrency=1):
        await await_until(lambda: len(order) == 6)
    assert order == ["high", "high", "middle", "middle", "low", "low"]


async def test_queues_with_weights_are_served_in_proportion(queue: TaskQueue) -> None:
    order: list[str] = []

    @queue.task
    async def note(name: str) -> None:
        order.append(name)

    await queue.aenqueue_many(note.using(queue=name).call(name) for name in ("a", "b") for _ in range(400))

    async with queue.worker(queues={"a": 4, "b": 1}, concurrency=1):
        await await_until(lambda: len(order) >= 300, timeout=30)
    share = Counter(order[:300])["a"] / 300
    # 0.8, within what chance allows in one of many millions of runs.
    assert 0.6 < share < 0.95


async def test_a_queue_that_is_not_named_is_not_served(queue: TaskQueue) -> None:
    @queue.task
    async def note() -> None: ...

    here, elsewhere = await note.aenqueue(), await note.using(queue="mail").aenqueue()
    async with queue.worker(queues=["default"]):
        await here
        assert (await elsewhere.atask()).state is TaskState.READY


async def test_without_names_a_worker_serves_queues_that_it_had_never_heard_of(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq.intake.DISCOVER_EVERY", 0.05)

    @queue.task
    async def note(name: str) -> str:
        return name

    async with queue.worker():
        assert await (await note.aenqueue("known")) == "known"
        later = await note.using(queue="made-later").aenqueue("new")
        assert await later.aresult(10) == "new"


async def test_a_worker_without_any_task_or_queue_waits_for_one(make_queue: MakeQueue) -> None:
    producer, consumer = make_queue(), make_queue()

    @producer.task(name="note")
    async def note() -> None: ...

    async with consumer.worker():
        consumer.task(name="note")(note)
        handle = await note.aenqueue()
        await handle.aresult(10)


async def test_an_idle_worker_starts_a_new_task_at_once(queue: TaskQueue) -> None:
    started = asyncio.Event()

    @queue.task
    async def note() -> None:
        started.set()

    async with queue.worker():
        for _ in range(3):
            started.clear()
            await note.aenqueue()
            # The next look without being told would be half a minute later.
            async with asyncio.timeout(5):
                await started.wait()


async def test_a_delayed_task_of_an_idle_worker_starts_when_it_is_due(queue: TaskQueue) -> None:
    @queue.task
    async def note() -> None: ...

    async with queue.worker():
        handle = await note.using(delay=0.3).aenqueue()
        await handle.aresult(10)
        record = await handle.atask()
    assert record.started_at is not None
    assert timedelta(0) <= record.started_at - record.run_at < timedelta(seconds=3)


# Unknown tasks


async def test_a_task_that_the_worker_does_not_know_goes_back_until_one_knows_it(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq.execute._unknown_backoff", Fixed(0.2))
    old, new = make_queue(), make_queue()

    @old.task
    async def known() -> str:
        return "known"

    @new.task(name="of.tomorrow", max_retries=0)
    async def of_tomorrow() -> int:
        return current_task().attempt

    handle = await of_tomorrow.aenqueue()
    async with old.worker():
        # It does not keep others waiting.
        assert await (await known.aenqueue()).aresult(10) == "known"
        await await_until(lambda: old.handle(handle.id).atask(), what="a look")
        await await_until(_delivered(old, handle.id, 2))
        async with new.worker():
            # Going back costs no attempt.
            assert await handle.aresult(10) == 1


def _delivered(queue: TaskQueue, task_id: str, times: int) -> Any:
    async def delivered() -> bool:
        return (await queue.handle(task_id).atask()).delivery >= times

    return delivered


def test_a_task_that_nobody_ever_knows_fails_and_says_so(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq.execute._unknown_backoff", Fixed(0))
    producer, consumer = make_queue(), make_queue()

    @producer.task(name="of.nowhere")
    def of_nowhere() -> None: ...

    handle = of_nowhere.enqueue()
    with working(consumer), pytest.raises(TaskFailed, match=r"UnknownTask.*'of\.nowhere'"):
        handle.result(20)
    assert handle.task().delivery == 21


# How many at once


async def test_with_one_slot_one_task_of_either_kind_runs_at_a_time(queue: TaskQueue) -> None:
    running = 0
    most = 0
    lock = threading.Lock()

    def enter() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def leave() -> None:
        nonlocal running
        with lock:
            running -= 1

    @queue.task
    async def coroutine() -> None:
        enter()
        await asyncio.sleep(0.001)
        leave()

    @queue.task
    def thread() -> None:
        enter()
        time.sleep(0.001)
        leave()

    handles = await queue.aenqueue_many((coroutine if n % 3 else thread).call() for n in range(60))
    async with queue.worker(concurrency=1):
        for handle in handles:
            await handle.aresult(20)
    assert most == 1


async def test_as_many_coroutines_run_at_once_as_is_allowed(queue: TaskQueue) -> None:
    arrived: list[int] = []
    release = asyncio.Event()

    @queue.task
    async def hold(n: int) -> None:
        arrived.append(n)
        await release.wait()

    handles = await queue.aenqueue_many(hold.call(n) for n in range(8))
    async with queue.worker(concurrency=5):
        await await_until(lambda: len(arrived) == 5)
        # Those that wait are left for other workers.
        states = [(await handle.atask()).state for handle in handles]
        release.set()
        for handle in handles:
            await handle.aresult(10)
    assert Counter(states) == {TaskState.RUNNING: 5, TaskState.READY: 3}


async def test_as_many_plain_functions_run_at_once_as_there_are_threads(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    handles = await queue.aenqueue_many(hold.call() for _ in range(6))
    async with queue.worker(concurrency=10, threads=4):
        await await_until(lambda: gate.arrived == 4)
        states = [(await handle.atask()).state for handle in handles]
        gate.open()
        for handle in handles:
            await handle.aresult(10)
    assert Counter(states) == {TaskState.RUNNING: 4, TaskState.READY: 2}


async def test_tasks_of_both_kinds_together_are_no_more_than_is_allowed(queue: TaskQueue, gate: Gate) -> None:
    release = asyncio.Event()
    arrived: list[int] = []

    @queue.task
    def in_thread() -> None:
        gate.wait()

    @queue.task
    async def in_coroutine() -> None:
        arrived.append(1)
        await release.wait()

    handles = await queue.aenqueue_many((in_thread if n % 2 else in_coroutine).call() for n in range(12))
    async with queue.worker(concurrency=5):
        await await_until(lambda: gate.arrived + len(arrived) == 5)
        states = [(await handle.atask()).state for handle in handles]
        release.set()
        gate.open()
        for handle in handles:
            await handle.aresult(10)
    assert Counter(states) == {TaskState.RUNNING: 5, TaskState.READY: 7}


async def test_what_was_claimed_but_finds_no_slot_goes_back_to_others(
    make_queue: MakeQueue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq.worker.STALE", 0.1)
    busy, free = make_queue(), make_queue()

    def hold() -> None:
        gate.wait()

    async def quick() -> None: ...

    for queue in (busy, free):
        queue.task(name="hold")(hold)
        queue.task(name="quick")(quick)
    # Tasks of two kinds: how many a worker can take it can only guess.
    handles = await busy.aenqueue_many(busy.functions["hold"].call() for _ in range(10))
    async with busy.worker(threads=1):
        await await_until(lambda: gate.arrived == 1)
        async with free.worker(threads=20):
            await await_until(lambda: gate.arrived == 10)
            gate.open()
            for handle in handles:
                await handle.aresult(10)
    assert {(await handle.atask()).attempt for handle in handles} == {1}


# What tasks do must not hurt the worker


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_ends_a_program_does_not_end_the_worker(queue: TaskQueue, kind: str, error: type[BaseException]) -> None:
    def fail() -> None:
        if error is SystemExit:
            sys.exit("enough")
        raise error("enough")

    async def fail_in_coroutine() -> None:
        fail()

    @queue.task
    def after() -> str:
        return "still here"

    function: Any = fail if kind == "thread" else fail_in_coroutine
    handle = queue.task(function).enqueue()
    with working(queue):
        with pytest.raises(TaskFailed, match=f"{error.__name__}: enough"):
            handle.result(10)
        assert after.enqueue().result(10) == "still here"


def test_an_error_that_cannot_be_shown_does_not_end_the_worker(queue: TaskQueue) -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise SystemExit

    @queue.task(max_retries=0)
    async def fail() -> None:
        raise Wordless

    @queue.task(max_retries=0)
    def surrogates() -> None:
        raise ValueError("caf\udce9 " + "x" * 1_000_000)

    with working(queue):
        with pytest.raises(TaskFailed, match="no text"):
            fail.enqueue().result(10)
        with pytest.raises(TaskFailed, match=r"caf\\udce9 x+\n… 990,010 characters left out") as caught:
            surrogates.enqueue().result(10)
    assert len(str(caught.value)) < 100_000


def test_a_coroutine_over_its_timeout_is_stopped_and_tried_again(queue: TaskQueue) -> None:
    @queue.task(timeout=0.05, max_retries=1, retry=Fixed(0))
    async def slow() -> int:
        if current_task().attempt == 1:
            await asyncio.Event().wait()
        return current_task().attempt

    handle = slow.enqueue()
    with working(queue):
        assert handle.result(10) == 2


def test_a_thread_over_its_timeout_fails_and_its_late_result_is_dropped(queue: TaskQueue, gate: Gate) -> None:
    @queue.task(timeout=0.05, max_retries=0)
    def slow() -> str:
        gate.wait()
        return "too late"

    @queue.task
    def after() -> str:
        return "in its place"

    handle = slow.enqueue()
    with working(queue, threads=1):
        with pytest.raises(TaskFailed, match=r"TaskTimeout: .*slow took longer than its timeout of 0\.05 s"):
            handle.result(10)
        assert after.enqueue().result(10) == "in its place"
        gate.open()
        wait_until(lambda: _lane_threads() == 1, what="the end of the thread that nobody waits for")
        assert after.enqueue().result(10) == "in its place"
    assert handle.task().state is TaskState.FAILED


def _lane_threads() -> int:
    return sum(thread.name == "omniq-thread" for thread in threading.enumerate())


def test_a_thread_over_its_timeout_runs_again_elsewhere_and_only_the_second_result_counts(
    queue: TaskQueue, gate: Gate
) -> None:
    @queue.task(timeout=0.1, max_retries=1, retry=Fixed(0))
    def slow() -> str:
        attempt = current_task().attempt
        if attempt == 1:
            gate.wait()
        return f"of attempt {attempt}"

    handle = slow.enqueue()
    with working(queue, threads=1):
        assert handle.result(10) == "of attempt 2"
        gate.open()
        wait_until(lambda: _lane_threads() == 1)
    assert handle.result(0) == "of attempt 2"


async def test_a_task_that_blocks_the_loop_keeps_its_lease(queue: TaskQueue) -> None:
    @queue.task(max_retries=0)
    async def block() -> int:
        time.sleep(0.9)  # three leases  # noqa: ASYNC251  # the mistake that is tested
        return current_task().attempt

    handle = await block.aenqueue()
    with working(queue, lease=0.3, recover_every=0.1), working(queue, lease=0.3, recover_every=0.1):
        assert await handle.aresult(10) == 1
    assert (await handle.atask()).delivery == 1


# Stopping


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
        await (await note.aenqueue()).aresult(10)
    assert [thread.name for thread in threading.enumerate() if thread.name in ("omniq-heartbeat", "omniq-thread")] == []
    assert await queue.aworkers() == []


@pytest.mark.parametrize("kind", ["coroutine", "thread", "stubborn coroutine"])
async def test_what_does_not_end_within_the_grace_period_goes_back_and_runs_elsewhere(
    make_queue: MakeQueue, gate: Gate, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq.worker.LAST_WORDS", 0.1)
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
        await await_until(_delivered(queue, handle.id, 1))
    record = await handle.atask()
    # It had begun, yet the attempt is given back: nothing of it was the task's fault.
    assert (record.state, record.attempt) == (TaskState.READY, 0)

    async with queue.worker():
        assert await handle.aresult(10) == 1
        # What still runs of the first attempt changes nothing when it ends.
        gate.open()
        release.set()
        await asyncio.sleep(0.05)
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
    await asyncio.sleep(0)
    assert not running.done()

    worker.stop(now=True)
    async with asyncio.timeout(10):
        await running
    assert (await handle.atask()).state is TaskState.READY


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
    assert [thread.name for thread in threading.enumerate() if thread.name == "omniq-heartbeat"] == []


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
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3), queue.worker(grace=3600):
            await started.wait()

    async with asyncio.timeout(10):
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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"concurrency": 0}, ValueError, "concurrency"),
        ({"concurrency": True}, ValueError, "concurrency"),
        ({"threads": 0}, ValueError, "threads"),
        ({"processes": 0}, ValueError, "processes"),
        ({"process_tasks": 0}, ValueError, "process_tasks"),
        ({"process_memory": -5}, ValueError, "process_memory"),
        ({"lease": 0}, ValueError, "lease must be more than zero"),
        ({"lease": "30s"}, TypeError, "lease must be seconds"),
        ({"grace": -1}, ValueError, "grace"),
        ({"recover_every": 0}, ValueError, "recover_every"),
        ({"queues": "mail"}, TypeError, r"write \['mail'\]"),
        ({"queues": []}, ValueError, "at least one queue"),
        ({"queues": ["a b"]}, ValueError, "'a b'"),
        ({"queues": {"mail": 0}}, ValueError, "the weight of queue 'mail'"),
        ({"queues": {"mail": 1.5}}, ValueError, "the weight of queue 'mail'"),
    ],
    ids=repr,
)
def test_an_option_that_cannot_be_used_is_refused_before_anything_starts(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with TaskQueue("memory://") as queue, pytest.raises(error, match=message):
        queue.worker(**options)
