"""A worker inside the program: what it claims, and how many tasks it runs at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from omniq import Fixed, Limit, Rate, TaskQueue, TaskState, current_task
from omniq.storage import QueueStats, Storage
from omniq.storage.body import make_task
from omniq.task import StoredTask, Task
from omniq.testing import await_until
from tests.core.running import Gate, MakeQueue, was_delivered


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


async def test_the_record_of_a_task_is_made_only_for_those_who_ask(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is the costliest of all that could be done for each task, and few look at it.
    made: list[str] = []

    def counting(stored: StoredTask, *parts: Any) -> Task:
        made.append(stored.id)
        return make_task(stored, *parts)

    monkeypatch.setattr("omniq._tasks.payloads.make_task", counting)
    queue = make_queue()

    @queue.task
    async def unnoticed() -> None:
        pass

    @queue.task
    def unnoticed_on_a_thread() -> None:
        pass

    @queue.task
    async def asking() -> str:
        return current_task().name

    ended = [await unnoticed.aenqueue(), await unnoticed_on_a_thread.aenqueue(), await asking.aenqueue()]
    async with queue.worker() as worker:
        await await_until(lambda: worker.completer.completed == 3 and not worker.completer)
    assert made == [ended[2].id]


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
    monkeypatch.setattr("omniq._worker.fetcher.DISCOVER_EVERY", 0.05)

    @queue.task
    async def note(name: str) -> str:
        return name

    async with queue.worker():
        assert await (await note.aenqueue("known")) == "known"
        later = await note.using(queue="made-later").aenqueue("new")
        assert await later.aresult(30) == "new"


async def test_the_store_is_asked_for_its_queues_once_before_the_first_task(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    store = type(queue.connections.sibling())
    stats = store.stats

    async def counted(self: Storage) -> list[QueueStats]:
        nonlocal asked
        asked += 1
        return await stats(self)

    monkeypatch.setattr(store, "stats", counted)

    @queue.task
    async def note() -> int:
        return asked

    waiting = await note.using(queue="made-before").aenqueue()
    running = asyncio.create_task(queue.arun_worker())
    assert await waiting.aresult(30) == 1
    running.cancel()
    await asyncio.wait([running])


async def test_a_worker_that_drains_works_off_queues_that_its_tasks_have_made(queue: TaskQueue) -> None:
    @queue.task
    async def note(depth: int) -> None:
        if depth:
            await note.using(queue=f"made-{depth}").aenqueue(depth - 1)

    await note.aenqueue(2)
    await queue.worker(drain=True).run()
    assert [task.state for task in await queue.atasks()] == [TaskState.SUCCEEDED] * 3


@pytest.mark.parametrize(("per", "ended"), [(0.2, 3), (3600.0, 1)], ids=["soon", "late"])
async def test_a_worker_that_drains_leaves_what_no_limit_lets_start_soon(
    queue: TaskQueue, per: float, ended: int
) -> None:
    @queue.task
    async def note() -> None: ...

    await queue.aput_limit(Limit(queue="default", rate=Rate(1, per=per)))
    for _ in range(3):
        await note.aenqueue()
    await queue.worker(drain=True).run()
    assert Counter(task.state for task in await queue.atasks())[TaskState.SUCCEEDED] == ended


async def test_a_worker_that_drains_stays_while_claims_only_move_lines(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq.storage.limit_transitions.LOOKED_AT", 2)

    @queue.task
    async def note() -> None: ...

    await queue.aput_limit(Limit(queue="default", per_key=Limit(rate=Rate(1, per=3600))))
    for number in range(20):
        await note.using(key=f"key {number % 10}").aenqueue()
    await queue.worker(drain=True).run()
    assert Counter(task.state for task in await queue.atasks())[TaskState.SUCCEEDED] == 10
    await queue.aput_limit(Limit(queue="default", per_key=Limit(rate=Rate(1, per=3600, burst=2))))
    await queue.worker(drain=True).run()
    assert Counter(task.state for task in await queue.atasks())[TaskState.SUCCEEDED] == 20


async def test_a_worker_without_any_task_or_queue_waits_for_one(make_queue: MakeQueue) -> None:
    producer, consumer = make_queue(), make_queue()

    @producer.task(name="note")
    async def note() -> None: ...

    async with consumer.worker():
        consumer.task(name="note")(note)
        handle = await note.aenqueue()
        await handle.aresult(30)


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
            async with asyncio.timeout(15):
                await started.wait()


async def test_a_delayed_task_of_an_idle_worker_starts_when_it_is_due(queue: TaskQueue) -> None:
    @queue.task
    async def note() -> None: ...

    async with queue.worker():
        handle = await note.using(delay=0.3).aenqueue()
        await handle.aresult(30)
        record = await handle.atask()
    assert record.started_at is not None
    # The next look without knowing of it would be half a minute later.
    assert timedelta(0) <= record.started_at - record.run_at < timedelta(seconds=15)


async def test_a_task_that_the_worker_does_not_know_goes_back_until_one_knows_it(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.releasing._BACKOFF", Fixed(0.2))
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
        assert await (await known.aenqueue()).aresult(30) == "known"
        await await_until(lambda: old.handle(handle.id).atask(), what="a look")
        await await_until(was_delivered(old, handle.id, 2))
        async with new.worker():
            # Going back costs no attempt.
            assert await handle.aresult(30) == 1


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
        await asyncio.sleep(0.001)  # others run meanwhile
        leave()

    @queue.task
    def thread() -> None:
        enter()
        time.sleep(0.001)  # others run meanwhile
        leave()

    handles = await queue.aenqueue_many((coroutine if n % 3 else thread).call() for n in range(60))
    async with queue.worker(concurrency=1):
        for handle in handles:
            await handle.aresult(30)
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
            await handle.aresult(30)
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
            await handle.aresult(30)
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
            await handle.aresult(30)
    assert Counter(states) == {TaskState.RUNNING: 5, TaskState.READY: 7}


async def test_what_was_claimed_but_finds_no_slot_goes_back_to_others(
    make_queue: MakeQueue, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.worker.STALE", 0.1)
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
                await handle.aresult(30)
    assert {(await handle.atask()).attempt for handle in handles} == {1}


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
