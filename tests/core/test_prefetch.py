"""How many tasks a worker claims while one of its executors is full and another has room."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from omniq import TaskQueue
from omniq._worker.executors import LoopExecutor
from omniq._worker.fetcher import TURNS, Fetcher
from omniq._worker.prefetch import AHEAD, LONGEST_PAUSE, ROUND, Lookahead, Prefetch
from omniq.task import StoredTask, TaskState
from omniq.testing import await_until
from tests.core.running import Gate


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq._worker.worker.STALE", 0.1)
    monkeypatch.setattr("omniq._worker.prefetch.ROUND", 0.1)


@pytest.mark.usefixtures("hasty")
async def test_coroutines_behind_plain_functions_run_while_all_threads_are_busy(queue: TaskQueue, gate: Gate) -> None:
    ran: list[int] = []

    @queue.task
    def slow() -> None:
        gate.wait()

    @queue.task
    async def quick(number: int) -> None:
        ran.append(number)

    async with queue.worker(concurrency=100, threads=1):
        await slow.aenqueue()
        await await_until(lambda: gate.arrived == 1)
        # More than a first round looks past.
        blocked = await queue.aenqueue_many(slow.call() for _ in range(3 * AHEAD))
        handles = await queue.aenqueue_many(quick.call(number) for number in range(300))
        await await_until(lambda: len(ran) == 300, timeout=30)
        assert gate.arrived == 1
        records = [await handle.atask() for handle in blocked]
        gate.open()
        for handle in [*blocked, *handles]:
            await handle.aresult(30)

    assert sorted(ran) == list(range(300))
    # They were looked past in a few rounds, each at most a delivery, and none counted as an attempt.
    assert max(record.delivery for record in records) < 20
    assert {(await handle.atask()).attempt for handle in blocked} == {1}


async def test_a_coroutine_that_comes_later_runs_while_all_threads_are_busy(queue: TaskQueue, gate: Gate) -> None:
    @queue.task
    def slow() -> None:
        gate.wait()

    @queue.task
    async def quick() -> str:
        return "done"

    blocked = await queue.aenqueue_many(slow.call() for _ in range(3))
    async with queue.worker(threads=1):
        await await_until(lambda: gate.arrived == 1)
        for _ in range(3):
            assert await (await quick.aenqueue()).aresult(30) == "done"
        assert gate.arrived == 1
        gate.open()
        for handle in blocked:
            await handle.aresult(30)


def test_no_more_tasks_wait_than_are_looked_past() -> None:
    lookahead = Lookahead(100, Clock())

    assert lookahead.room(waiting=0) == AHEAD
    lookahead.learn(0, looked_past=AHEAD - 3, useful=True)

    assert lookahead.room(waiting=AHEAD - 3) == 3
    assert lookahead.room(waiting=AHEAD) == 0
    assert lookahead.room(waiting=AHEAD + 5) == 0


def test_a_round_that_brought_something_is_followed_by_another_of_the_same_reach() -> None:
    clock = Clock()
    lookahead = Lookahead(100, clock)
    for _ in range(20):
        lookahead.learn(0, looked_past=AHEAD, useful=True)
        assert lookahead.room(waiting=0) == 0
        clock.now += ROUND
        assert lookahead.room(waiting=0) == AHEAD


def test_rounds_in_vain_reach_farther_and_come_more_rarely() -> None:
    clock = Clock()
    lookahead = Lookahead(100, clock)
    reaches, pauses = [], []
    for _ in range(8):
        reaches.append(lookahead.room(waiting=0))
        began = clock.now
        lookahead.learn(0, looked_past=reaches[-1], useful=False)
        while lookahead.room(waiting=0) == 0:
            clock.now += ROUND / 4
        pauses.append(clock.now - began)

    assert reaches == [AHEAD, AHEAD, 2 * AHEAD, 4 * AHEAD, 8 * AHEAD, 100, 100, 100]
    assert pauses == [ROUND, 2 * ROUND, 4 * ROUND, 8 * ROUND, *[LONGEST_PAUSE] * 4]


def test_rounds_come_each_second_again_as_soon_as_one_brought_something() -> None:
    clock = Clock()
    lookahead = Lookahead(100, clock)
    for _ in range(5):
        lookahead.learn(0, looked_past=1, useful=False)
        clock.now += LONGEST_PAUSE
    lookahead.learn(0, looked_past=1, useful=True)
    clock.now += LONGEST_PAUSE

    lookahead.learn(0, looked_past=1, useful=True)
    clock.now += ROUND

    assert lookahead.room(waiting=0) > 0


def test_claims_that_look_past_nothing_need_no_pause() -> None:
    lookahead = Lookahead(100, Clock())
    for _ in range(50):
        lookahead.learn(0, looked_past=0, useful=True)

        assert lookahead.room(waiting=0) == AHEAD


async def test_short_tasks_are_claimed_in_few_round_trips(queue: TaskQueue) -> None:
    @queue.task
    async def quick() -> None: ...

    executor, clock = LoopExecutor(100, lambda attempt: None, lambda attempt, outcome: None), Clock()
    prefetch = Prefetch({"loop": executor}, 100, queue.runnable, clock)
    assert (prefetch.wanted, prefetch.enough, prefetch.beyond(100)) == (100, True, 0)

    clock.now += 0.25
    prefetch.learn([], ended=1000, took=0.008)  # 40 end within a round trip
    executor.load = 130
    assert (prefetch.wanted, prefetch.enough) == (50, False)  # a claim of the little that is left would cost as much
    executor.load = 80
    assert (prefetch.wanted, prefetch.enough) == (100, True)


async def test_of_tasks_that_end_at_once_the_next_half_is_claimed_while_one_half_runs(queue: TaskQueue) -> None:
    @queue.task
    async def quick() -> None: ...

    executor, clock = LoopExecutor(100, lambda attempt: None, lambda attempt, outcome: None), Clock()
    prefetch = Prefetch({"loop": executor}, 100, queue.runnable, clock)

    clock.now += 0.25
    prefetch.learn([], ended=1000, took=0.05)  # more than there are slots end within a round trip
    assert prefetch.wanted == 200
    assert prefetch.beyond(200) == 200
    executor.load = 200
    assert prefetch.beyond(200) == 0


async def test_short_tasks_run_while_the_next_are_being_claimed(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    @queue.task
    async def quick(number: int) -> None:
        ran.append(number)

    await queue.aenqueue_many(quick.call(number) for number in range(1000))
    storage = (await queue.connections.current()).storage
    claim = storage.claim
    given = 0
    meanwhile: list[int] = []

    async def claim_slowly(*arguments: Any, **options: Any) -> list[StoredTask]:
        """Claim once a task has run, unless all that were claimed have before this one has left."""
        nonlocal given
        for _ in range(TURNS):
            await asyncio.sleep(0)
        before = len(ran)
        await await_until(lambda: len(ran) > before or len(ran) == given)
        meanwhile.append(len(ran) - before)
        claimed = await claim(*arguments, **options)
        given += len(claimed)
        return claimed

    monkeypatch.setattr(storage, "claim", claim_slowly)
    async with queue.worker(concurrency=10):
        await await_until(lambda: len(ran) == 1000)

    assert sorted(ran) == list(range(1000))
    assert sum(map(bool, meanwhile)) > len(meanwhile) / 2


async def room_awaited(queue: TaskQueue) -> tuple[LoopExecutor, Prefetch, asyncio.Future[None]]:
    """Return a full executor, and what waits for room in it."""

    @queue.task
    async def quick() -> None: ...

    executor = LoopExecutor(100, lambda attempt: None, lambda attempt, outcome: None)
    prefetch = Prefetch({"loop": executor}, 100, queue.runnable)
    executor.load = 100
    room = asyncio.ensure_future(prefetch.room())
    await asyncio.sleep(0)  # it waits
    return executor, prefetch, room


async def test_a_claim_goes_out_in_the_turn_of_the_loop_after_enough_tasks_have_ended(queue: TaskQueue) -> None:
    executor, prefetch, room = await room_awaited(queue)

    executor.load = 50
    prefetch.freed()
    await asyncio.sleep(0)  # in each turn more, tasks that have been claimed run, and none may be left when others come

    assert room.done()


async def test_a_worker_that_stops_does_not_wait_for_room(queue: TaskQueue) -> None:
    _, prefetch, room = await room_awaited(queue)

    prefetch.wake()
    await room

    assert prefetch.wanted == 0


async def test_coroutines_are_looked_for_again_when_all_were_full_and_no_attempt_ends_any_more(
    queue: TaskQueue,
) -> None:
    @queue.task
    def slow() -> None: ...

    @queue.task
    async def quick() -> None: ...

    loop = LoopExecutor(10, lambda attempt: None, lambda attempt, outcome: None)
    thread = LoopExecutor(2, lambda attempt: None, lambda attempt, outcome: None)
    prefetch = Prefetch({"loop": loop, "thread": thread}, 12, queue.runnable)
    thread.load, loop.load = 2 + AHEAD, 10
    room = asyncio.ensure_future(prefetch.room())
    await asyncio.sleep(0)  # it waits

    for load in reversed(range(10)):
        loop.load = load
        prefetch.freed()
    thread.load = 2  # those that waited for a thread are given back, without having begun

    await asyncio.wait_for(room, 30)
    assert prefetch.wanted > 0


async def test_what_was_claimed_goes_back_when_a_worker_is_stopped_while_it_sends_the_next_claim(
    queue: TaskQueue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    async def be_stopped(fetcher: Fetcher, count: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    monkeypatch.setattr(Fetcher, "_claim_ahead", be_stopped)
    handles = await queue.aenqueue_many(hold.call() for _ in range(8))
    worker = queue.worker(concurrency=4, threads=1, grace=0)
    running = asyncio.ensure_future(worker.run())
    await await_until(lambda: gate.arrived == 1)
    worker.stop()
    gate.open()
    await running

    states = Counter([(await handle.atask()).state for handle in handles])
    assert states[TaskState.RUNNING] == 0
