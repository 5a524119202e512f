"""The executors: how many attempts run at once, on what, and what becomes of those that wait or never end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve

from omniq import Fixed, TaskQueue, current_task
from omniq._worker.attempt import Attempt, Interruption
from omniq._worker.executors import LoopExecutor, TaskExecutor, ThreadExecutor
from omniq.storage.body import preview
from omniq.storage.ids import new_id
from omniq.task import Cancelled, Failed, Outcome, Retry, Succeeded
from omniq.testing import await_until
from tests.core.running import Gate

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


class Bench:
    """Attempts for an executor, and what came of them."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.started: list[str] = []
        self.done: list[tuple[str, Outcome]] = []
        self.executors: list[TaskExecutor] = []

    def on_start(self, attempt: Attempt) -> None:
        self.started.append(attempt.task.id)

    def on_done(self, attempt: Attempt, outcome: Outcome) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.done.append((attempt.task.id, outcome))

    def loop_lane(self, slots: int) -> LoopExecutor:
        executor = LoopExecutor(slots, self.on_start, self.on_done)
        self.executors.append(executor)
        return executor

    def thread_lane(self, slots: int) -> ThreadExecutor:
        executor = ThreadExecutor(slots, self.on_start, self.on_done)
        self.executors.append(executor)
        return executor

    def attempt(self, function: Callable[[], Any], *, timeout: float | None = None) -> Attempt:
        task = self.queue.task(name=new_id(), retry=Fixed(0))(function)
        moment = datetime(2030, 1, 1, tzinfo=UTC)
        order = self.queue.order(task.call())
        record = evolve(preview(order, moment), timeout=timeout, attempt=1, delivery=1)
        return Attempt(record, task, self.queue.codec)

    def submit(self, executor: TaskExecutor, function: Callable[[], Any], count: int = 1, **options: Any) -> list[str]:
        ids = []
        for _ in range(count):
            attempt = self.attempt(function, **options)
            executor.submit(attempt)
            ids.append(attempt.task.id)
        return ids

    async def all_done(self, count: int) -> None:
        await await_until(lambda: len(self.done) >= count, what=f"{count} outcomes")


@pytest.fixture
def bench() -> Iterator[Bench]:
    with TaskQueue("memory://") as queue:
        bench = Bench(queue)
        yield bench
    for executor in bench.executors:  # of a test that failed before it came to that
        with contextlib.suppress(RuntimeError):
            executor.close()
    for thread in lane_threads():
        thread.join(60)
    assert lane_threads() == []


@pytest.fixture
def gate(bench: Bench) -> Iterator[Gate]:
    """Yield a gate that opens before the executors are closed."""
    gate = Gate()
    yield gate
    gate.open()


def lane_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "omniq-thread" and thread.is_alive()]


async def closed(executor: ThreadExecutor) -> None:
    executor.close()
    await await_until(lambda: not lane_threads(), what="the end of the executor's threads")


# On the loop


async def test_as_many_coroutines_run_as_there_are_slots_and_the_others_wait_in_order(bench: Bench) -> None:
    executor = bench.loop_lane(2)
    release = asyncio.Event()
    ids = bench.submit(executor, release.wait, count=5)
    await asyncio.sleep(0)  # the executor starts what it has slots for

    assert bench.started == ids[:2]
    assert executor.load == 5

    release.set()
    await bench.all_done(5)
    assert bench.started == ids
    assert [task_id for task_id, _ in bench.done] == ids
    assert executor.load == 0


async def test_coroutines_that_wait_can_be_taken_back(bench: Bench) -> None:
    executor = bench.loop_lane(1)
    release = asyncio.Event()
    ids = bench.submit(executor, release.wait, count=3)
    await asyncio.sleep(0)  # the executor starts what it has slots for

    assert [attempt.task.id for attempt in executor.take_back()] == ids[1:]
    assert executor.load == 1
    release.set()
    await bench.all_done(1)
    assert bench.started == ids[:1]
    executor.close()


async def test_only_those_that_waited_long_enough_are_taken_back(bench: Bench) -> None:
    executor = bench.loop_lane(1)
    release = asyncio.Event()
    ids = bench.submit(executor, release.wait, count=3)
    await asyncio.sleep(0)  # the executor starts what it has slots for

    assert executor.take_back(waited=60) == []
    (old, _) = executor._waiting  # an attempt cannot be made to have waited otherwise than by waiting
    old.queued_at -= 120
    assert [attempt.task.id for attempt in executor.take_back(waited=60)] == [ids[1]]
    release.set()
    await bench.all_done(2)
    assert bench.started == [ids[0], ids[2]]


async def test_what_was_settled_while_it_ran_is_not_reported_when_it_ends(bench: Bench) -> None:
    executor = bench.loop_lane(1)
    release = asyncio.Event()
    attempt = bench.attempt(release.wait)
    executor.submit(attempt)
    await asyncio.sleep(0)  # the executor starts what it has slots for

    attempt.settled = True  # the worker gave it back
    release.set()
    await await_until(lambda: executor.load == 0)

    assert bench.done == []


async def test_an_interrupted_coroutine_frees_its_slot(bench: Bench) -> None:
    executor = bench.loop_lane(1)
    attempt = bench.attempt(asyncio.Event().wait)
    executor.submit(attempt)

    async def quick() -> None: ...

    bench.submit(executor, quick)
    await asyncio.sleep(0)  # the executor starts what it has slots for

    attempt.interrupt(Interruption.CANCEL)
    await bench.all_done(2)

    assert [type(outcome) for _, outcome in bench.done] == [Cancelled, Succeeded]


async def test_a_coroutine_that_is_interrupted_before_its_first_step_is_reported_and_never_runs(bench: Bench) -> None:
    ran: list[int] = []

    async def run() -> None:
        ran.append(1)

    first, second = bench.attempt(asyncio.Event().wait), bench.attempt(run)

    def on_done(attempt: Attempt, outcome: Outcome) -> None:
        bench.on_done(attempt, outcome)
        second.interrupt(Interruption.CANCEL)  # it has the slot by now, and has not run

    executor = LoopExecutor(1, bench.on_start, on_done)
    executor.submit(first)
    executor.submit(second)
    await asyncio.sleep(0)  # the executor starts what it has slots for
    first.interrupt(Interruption.CANCEL)
    await bench.all_done(2)

    assert [type(outcome) for _, outcome in bench.done] == [Cancelled, Cancelled]
    assert ran == []
    assert executor.load == 0


async def test_each_coroutine_is_a_task_of_its_own_with_a_context_of_its_own(bench: Bench) -> None:
    mine = asyncio.current_task()
    variable.set("the worker's")
    executor = bench.loop_lane(3)
    seen: list[tuple[object, object, str]] = []

    async def run() -> None:
        before, value = asyncio.current_task(), variable.get()
        variable.set("a task's")
        await asyncio.sleep(0)  # the others run
        seen.append((before, asyncio.current_task(), value))

    bench.submit(executor, run, count=3)
    assert asyncio.current_task() is mine
    await bench.all_done(3)

    assert all(before is after and before is not mine for before, after, _ in seen)
    assert len({id(before) for before, _, _ in seen}) == 3
    assert [value for *_, value in seen] == ["the worker's"] * 3
    assert variable.get() == "the worker's"


async def test_many_coroutines_in_line_that_end_at_once_are_no_recursion(bench: Bench) -> None:
    executor = bench.loop_lane(1)

    async def run() -> None: ...

    release = asyncio.Event()
    first, *others = [bench.attempt(release.wait), *[bench.attempt(run) for _ in range(2_000)]]
    for attempt in (first, *others):
        executor.submit(attempt)
    release.set()
    await bench.all_done(2_001)

    assert {type(outcome) for _, outcome in bench.done} == {Succeeded}


async def test_a_coroutine_that_nothing_else_refers_to_is_kept_alive(bench: Bench) -> None:
    executor = bench.loop_lane(1)

    def wake(future: weakref.ref[asyncio.Future[None]]) -> None:
        alive = future()
        if alive is not None:
            alive.set_result(None)

    async def run() -> None:
        # All that leads from here to the task is this future, which only the task refers to.
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, wake, weakref.ref(waiting))
        await waiting

    bench.submit(executor, run)
    await asyncio.sleep(0)  # the executor starts what it has slots for
    gc.collect()
    await bench.all_done(1)

    assert [type(outcome) for _, outcome in bench.done] == [Succeeded]


# On threads


async def test_functions_that_block_spread_over_all_threads_and_no_further(bench: Bench, gate: Gate) -> None:
    executor = bench.thread_lane(4)
    ids = bench.submit(executor, gate.wait, count=6)

    await await_until(lambda: gate.arrived == 4)
    assert sorted(bench.started) == sorted(ids[:4])
    assert executor.load == 6

    gate.open()
    await bench.all_done(6)
    assert sorted(task_id for task_id, _ in bench.done) == sorted(ids)
    assert executor.load == 0
    await closed(executor)


async def test_with_one_thread_one_function_runs_at_a_time_in_order(bench: Bench) -> None:
    executor = bench.thread_lane(1)
    running: list[int] = []
    most: list[int] = []

    def note() -> str:
        running.append(1)
        most.append(len(running))
        running.pop()
        return threading.current_thread().name

    ids = bench.submit(executor, note, count=200)
    await bench.all_done(200)

    assert bench.started == ids
    assert [task_id for task_id, _ in bench.done] == ids
    assert max(most) == 1
    assert len(lane_threads()) == 1
    await closed(executor)


async def test_a_thread_that_sleeps_is_woken_for_more(bench: Bench) -> None:
    executor = bench.thread_lane(3)
    for number in range(1, 30):
        bench.submit(executor, lambda: None)
        await bench.all_done(number)

    assert 1 <= len(lane_threads()) <= 3
    await closed(executor)


async def test_functions_that_wait_can_be_taken_back_and_never_run(bench: Bench, gate: Gate) -> None:
    executor = bench.thread_lane(2)
    running = bench.submit(executor, gate.wait, count=2)
    await await_until(lambda: gate.arrived == 2)
    waiting = bench.submit(executor, gate.wait, count=3, timeout=0.05)

    assert [attempt.task.id for attempt in executor.take_back()] == waiting
    assert executor.load == 2
    gate.open()
    await bench.all_done(2)
    await asyncio.sleep(0.1)  # longer than the timeouts of those that were taken back
    assert {task_id for task_id, _ in bench.done} == set(running)
    await closed(executor)


async def test_a_closed_lane_leaves_no_thread(bench: Bench, gate: Gate) -> None:
    executor = bench.thread_lane(4)
    bench.submit(executor, gate.wait, count=4)
    await await_until(lambda: gate.arrived == 4)

    executor.close()
    gate.open()

    await await_until(lambda: not lane_threads())
    idle = bench.thread_lane(4)
    bench.submit(idle, lambda: None, count=4)
    await bench.all_done(4)
    await closed(idle)


async def test_a_lane_that_was_never_used_has_no_thread(bench: Bench) -> None:
    executor = bench.thread_lane(4)
    assert lane_threads() == []
    executor.close()


async def test_a_thread_over_its_timeout_is_replaced_and_what_it_returns_is_dropped(bench: Bench, gate: Gate) -> None:
    executor = bench.thread_lane(1)
    contexts = []

    def hang() -> str:
        contexts.append(current_task())
        gate.wait()
        return "too late"

    (hanging,) = bench.submit(executor, hang, timeout=0.05)
    (after,) = bench.submit(executor, lambda: "in its place")

    await bench.all_done(2)
    (first, timed_out), (second, result) = bench.done
    assert (first, second) == (hanging, after)
    assert isinstance(timed_out, Retry)
    assert timed_out.error is not None
    assert timed_out.error.type == "TaskTimeout"
    assert isinstance(result, Succeeded)
    assert contexts[0].cancelled, "it is told to stop"
    assert executor.load == 0

    gate.open()
    await await_until(lambda: len(lane_threads()) == 1)
    assert len(bench.done) == 2
    await closed(executor)


async def test_the_timeout_counts_from_the_start_and_not_from_the_wait_in_line(bench: Bench, gate: Gate) -> None:
    executor = bench.thread_lane(1)
    bench.submit(executor, gate.wait)
    await await_until(lambda: gate.arrived == 1)
    bench.submit(executor, lambda: "in time", timeout=1)

    await asyncio.sleep(1.1)  # longer than the timeout of the one that waits
    gate.open()
    await bench.all_done(2)

    assert [type(outcome) for _, outcome in bench.done] == [Succeeded, Succeeded]
    await closed(executor)


async def test_many_timeouts_at_once_leave_as_many_threads_as_there_are_slots(bench: Bench) -> None:
    # Ends and timeouts fall together: each attempt has one outcome, and each thread one place.
    executor = bench.thread_lane(8)
    waits = threading.Event()
    running = 0
    most = 0
    lock = threading.Lock()

    def wait() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        waits.wait(0.02)
        with lock:
            running -= 1

    ids = bench.submit(executor, wait, count=200, timeout=0.02)
    await bench.all_done(200)

    assert len({task_id for task_id, _ in bench.done}) == len(bench.done) == len(ids)
    assert executor.load == 0
    await await_until(lambda: len(lane_threads()) <= 8)
    await closed(executor)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseException()], ids=repr)
async def test_what_would_end_a_thread_ends_the_attempt_alone(bench: Bench, error: BaseException) -> None:
    executor = bench.thread_lane(1)

    def fail() -> None:
        raise error

    bench.submit(executor, fail)
    bench.submit(executor, lambda: None)
    await bench.all_done(2)

    assert [type(outcome) for _, outcome in bench.done] == [Failed, Succeeded]
    assert len(lane_threads()) == 1
    await closed(executor)


@pytest.mark.parametrize("kind", ["coroutine", "thread"])
async def test_whoever_is_told_of_a_start_and_fails_ends_the_attempt_alone(bench: Bench, kind: str) -> None:
    def refuse(attempt: Attempt) -> None:
        if not bench.done:
            raise SystemExit("of a hook")

    executor = (LoopExecutor if kind == "coroutine" else ThreadExecutor)(1, refuse, bench.on_done)

    async def coroutine() -> None: ...

    def plain() -> None: ...

    for number in (1, 2):
        bench.submit(executor, coroutine if kind == "coroutine" else plain)
        await bench.all_done(number)

    assert [type(outcome) for _, outcome in bench.done] == [Failed, Succeeded]
    assert executor.load == 0
    executor.close()
    await await_until(lambda: not lane_threads())


async def test_an_interrupted_attempt_that_waits_in_line_never_runs(bench: Bench, gate: Gate) -> None:
    executor = bench.thread_lane(1)
    bench.submit(executor, gate.wait)
    await await_until(lambda: gate.arrived == 1)
    attempt = bench.attempt(gate.wait)
    executor.submit(attempt)

    attempt.interrupt(Interruption.CANCEL)
    gate.open()
    await bench.all_done(2)

    assert isinstance(bench.done[1][1], Cancelled)
    assert gate.arrived == 1
    await closed(executor)


async def test_a_lane_of_a_loop_that_has_ended_harms_nobody(gate: Gate) -> None:
    def on_another_loop() -> None:
        with TaskQueue("memory://") as queue:
            bench = Bench(queue)

            async def leave_it_running() -> None:
                bench.submit(bench.thread_lane(1), gate.wait)
                await await_until(lambda: gate.arrived == 1)

            asyncio.run(leave_it_running())

    await asyncio.to_thread(on_another_loop)
    gate.open()
    await await_until(lambda: not lane_threads())
