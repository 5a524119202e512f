"""What the waits promise: they return when there is a reason to, by whichever client, and do not spin until then.

Nothing here says how quickly: a wait is given ten minutes, and has to return within seconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from omniq.storage import Capability, Storage
from omniq.storage.ids import new_id
from omniq.task import StoredTask, TaskState
from omniq.testing.contract.base import Contract, Deafen, needs
from omniq.testing.contract.scheduling import LONG_AGO
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    PROMPT,
    SHORT,
    add,
    later,
    new_schedule,
    new_task,
    outcome,
    passed,
    record,
    states,
    take,
    take_lapsed,
)
from omniq.testing.contract.stores import Stores

__all__ = ["WaitContract", "arrival"]

TEN_MINUTES = 600.0
ROUNDS = 5
"""How often what must be prompt is tried."""
MANY = 30
"""Returns of a wait without a reason that are too many, as each makes a worker ask the store in vain."""


async def arrival(store: Storage, *queues: str) -> StoredTask:
    """Do what an idle worker does until it has claimed a task."""
    queues = queues or ("work",)
    began = time.monotonic()
    looks = 0
    while not (claimed := await store.claim(dict.fromkeys(queues, 1), worker="w", lease=HELD)):
        looks += 1
        assert looks < MANY, f"the wait returned {looks} times in {time.monotonic() - began:.3f} s without a reason"
        async with asyncio.timeout(PROMPT):
            await store.wait_for_work(queues, TEN_MINUTES)
    return claimed[0]


async def returns(store: Storage, *queues: str) -> None:
    """Wait for work that is there."""
    async with asyncio.timeout(PROMPT):
        await store.wait_for_work(queues or ("work",), TEN_MINUTES)


async def ended(store: Storage, *ids: str) -> set[str]:
    """Wait for the end of tasks that end soon."""
    async with asyncio.timeout(PROMPT):
        return await store.wait_finished(ids, TEN_MINUTES)


async def waiting(waits: asyncio.Task[Any]) -> None:
    """Let a wait begin. Were the time too short for that, the test would be easier to pass, not harder."""
    await asyncio.sleep(0.1)
    assert not waits.done()


async def _in_time_for(store: Storage, schedule_id: str) -> None:
    """Wait as an idle worker does until a schedule is due."""
    while not any(due.id == schedule_id for due in await store.due_schedules(10)):
        await store.wait_for_work(["work"], TEN_MINUTES)


by_each = pytest.mark.parametrize("by", ["the same storage", "a sibling", "another storage"])


async def _two(stores: Stores, by: str) -> tuple[Storage, Storage]:
    """Return a storage, and the one by which something is done meanwhile."""
    store = await stores.open()
    if by == "a sibling":
        return store, await stores.open_sibling(store)
    return store, store if by == "the same storage" else await stores.open()


class WaitContract(Contract):
    """Waiting."""

    # For work

    async def test_the_wait_returns_at_once_while_a_task_is_ready(self, store: Storage) -> None:
        await add(store, queue="b")
        for queues in (["b"], ["a", "b"], ["b", "c"]):
            await returns(store, *queues)

    async def test_the_wait_returns_at_once_while_a_task_is_due(self, store: Storage) -> None:
        (task_id,) = await add(store, run_at=timedelta(seconds=0.02))
        await passed(store, (await record(store, task_id)).run_at)
        await returns(store)

    async def test_the_wait_returns_when_a_released_or_recovered_task_is_ready(self, store: Storage) -> None:
        await add(store)
        await store.finish([outcome("released", task) for task in await take(store)])
        await returns(store)
        await take_lapsed(store)
        await store.recover(1)
        await returns(store)

    async def test_the_wait_returns_after_its_timeout(self, store: Storage) -> None:
        async with asyncio.timeout(PROMPT):
            await store.wait_for_work(["work"], 0.1)
            await store.wait_for_work([], 0.1)
            await store.wait_for_work(["work"], 0)

    @pytest.mark.parametrize("idle", ["empty", "far", "paused", "elsewhere", "running", "overdue"])
    async def test_a_wait_without_work_does_not_spin(self, store: Storage, idle: str) -> None:
        await self._make_idle(store, idle)
        looks, end = 0, time.monotonic() + 0.6
        while (left := end - time.monotonic()) > 0:
            await store.wait_for_work(["work"], left)
            looks += 1
            assert looks < MANY, f"the wait returned {looks} times within 0.6 s without a reason"
        assert await take(store) == []

    async def _make_idle(self, store: Storage, idle: str) -> None:
        match idle:
            case "far":
                await add(store, *(new_task(run_at=FAR) for _ in range(20)))
                await store.put_schedule(new_schedule("far"))
            case "paused":
                await add(store, new_task(), new_task(run_at=timedelta(seconds=SHORT)))
                await store.pause("work")
            case "elsewhere":
                await add(store, queue="elsewhere")
            case "running":
                await add(store)
                await take(store)
            case "overdue":
                # A schedule that is not fired, as no worker of the application is a scheduler.
                await store.put_schedule(new_schedule("overdue", next_run=LONG_AGO))

    async def test_a_waiting_worker_gets_a_task_when_its_time_comes(self, store: Storage) -> None:
        (task_id,) = await add(store, run_at=timedelta(seconds=SHORT))
        await add(store, run_at=FAR)
        assert (await arrival(store)).id == task_id

    @by_each
    async def test_a_waiting_worker_gets_a_task_that_is_enqueued(self, stores: Stores, by: str) -> None:
        store, other = await _two(stores, by)
        worker = asyncio.create_task(arrival(store, "work", "more work"))
        await waiting(worker)
        (task_id,) = await add(other, queue="more work")
        assert (await worker).id == task_id

    async def test_a_waiting_worker_gets_a_task_that_is_enqueued_from_another_thread(self, stores: Stores) -> None:
        store = await stores.open()
        noticed = threading.Event()

        async def enqueue(sibling: Storage) -> None:
            await add(sibling)
            # An end of the thread would wake the waiting loop, too.
            assert await asyncio.to_thread(noticed.wait, PROMPT / 2), "the waiting worker did not notice"

        worker = asyncio.create_task(arrival(store))
        await waiting(worker)
        thread = asyncio.create_task(stores.in_threads(store, [enqueue]))
        await asyncio.wait([worker, thread], return_when=asyncio.FIRST_COMPLETED)
        noticed.set()
        await thread
        await worker

    async def test_a_waiting_worker_gets_a_task_that_is_enqueued_the_blocking_way(self, store: Storage) -> None:
        worker = asyncio.create_task(arrival(store))
        await waiting(worker)
        if await asyncio.to_thread(store.enqueue_blocking, [new_task()]) is None:
            await add(store)
        await worker

    @pytest.mark.parametrize("change", ["resumed", "retried", "run now", "sooner", "to retry", "recovered", "fired"])
    async def test_a_waiting_worker_gets_a_task_that_something_else_made_ready(
        self, stores: Stores, change: str
    ) -> None:
        store, other = await stores.open(), await stores.open()
        make_ready = await self._prepare(other, change)
        worker = asyncio.create_task(arrival(store))
        await waiting(worker)
        await make_ready()
        await worker

    async def _prepare(self, store: Storage, change: str) -> Callable[[], Awaitable[object]]:
        match change:
            case "resumed":
                await add(store)
                await store.pause("work")
                return lambda: store.resume("work")
            case "retried":
                ids = await add(store)
                await store.cancel(ids)
                return lambda: store.retry(ids)
            case "run now":
                ids = await add(store, run_at=FAR)
                return lambda: store.run_now(ids)
            case "sooner":
                await add(store, run_at=timedelta(seconds=300))
                return lambda: add(store, run_at=timedelta(seconds=SHORT))
            case "to retry":
                await add(store)
                claimed = await take(store)
                return lambda: store.finish([outcome("retry", task) for task in claimed])
            case "recovered":
                await add(store)
                await take_lapsed(store)
                return lambda: store.recover(1)
            case "fired":
                schedule = await store.put_schedule(new_schedule("s"))
                assert schedule is not None
                return lambda: store.fire(schedule, [new_task()])
        raise ValueError(change)

    async def test_a_task_that_does_not_become_ready_in_a_paused_queue_is_left_alone(self, store: Storage) -> None:
        await store.pause("paused")
        await add(store, queue="paused")
        (task_id,) = await add(store, run_at=timedelta(seconds=SHORT))
        assert (await arrival(store, "paused", "work")).id == task_id

    async def test_the_wait_returns_when_a_schedule_is_due(self, store: Storage) -> None:
        soon = await store.now() + timedelta(seconds=SHORT)
        await store.put_schedule(new_schedule("soon", next_run=soon))
        await self._returns_with_a_schedule_due(store)

    async def test_the_wait_returns_when_a_schedule_is_stored_that_is_due(self, stores: Stores) -> None:
        store, other = await stores.open(), await stores.open()
        waits = asyncio.create_task(self._returns_with_a_schedule_due(store))
        await asyncio.sleep(0.1)
        await other.put_schedule(new_schedule("soon", next_run=await store.now() + timedelta(seconds=0.05)))
        await waits

    async def _returns_with_a_schedule_due(self, store: Storage) -> None:
        looks = 0
        while not await store.due_schedules(1):
            looks += 1
            assert looks < MANY, f"the wait returned {looks} times without a reason"
            await returns(store)

    @pytest.mark.parametrize("beside", ["nothing", "an overdue schedule"])
    async def test_all_that_wait_are_there_in_time_for_a_schedule(self, stores: Stores, beside: str) -> None:
        # The overdue one is not fired, as it cannot be read here. One prompt round is enough, however slow the others.
        store, other = await stores.open(), await stores.open()
        if beside != "nothing":
            await store.put_schedule(new_schedule("overdue", next_run=LONG_AGO))
        late = []
        for number in range(ROUNDS):
            soon = await store.now() + timedelta(seconds=0.3)
            await store.put_schedule(new_schedule(f"soon {number}", next_run=soon))
            async with asyncio.timeout(PROMPT):
                await asyncio.gather(*(_in_time_for(each, f"soon {number}") for each in (store, other)))
            late.append((await store.now() - soon).total_seconds())
            await store.delete_schedule(f"soon {number}")
            if late[-1] < 0.5:
                return
        raise AssertionError(f"the waits ended {late} s after the schedule was due")

    @needs(Capability.NOTIFICATIONS)
    async def test_a_waiting_caller_is_woken_where_the_store_says_so(self, stores: Stores) -> None:
        store, other = await stores.open(), await stores.open()
        late = []
        for _ in range(ROUNDS):
            worker = asyncio.create_task(arrival(store))
            await waiting(worker)
            await add(other)
            late.append((await store.now() - (await worker).created_at).total_seconds())
            if late[-1] < 0.5:
                return
        raise AssertionError(f"it claims NOTIFICATIONS, and the waits ended {late} s after a task was ready")

    async def test_many_can_wait_on_one_storage(self, store: Storage) -> None:
        workers = [asyncio.create_task(arrival(store, f"queue {number % 5}")) for number in range(10)]
        await asyncio.sleep(0.1)
        ids = await add(store, *(new_task(queue=f"queue {number % 5}") for number in range(10)))
        assert sorted([(await worker).id for worker in workers]) == sorted(ids)

    async def test_a_wait_can_be_given_up(self, store: Storage) -> None:
        (task_id,) = await add(store, run_at=FAR)
        for wait in (store.wait_for_work(["work"], TEN_MINUTES), store.wait_finished([task_id], TEN_MINUTES)):
            waits = asyncio.ensure_future(wait)
            await asyncio.sleep(0.05)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
        await add(store)
        await returns(store)

    async def test_a_wait_whose_notification_was_lost_ends_in_time(self, stores: Stores, deafen: Deafen | None) -> None:
        if deafen is None:
            self.not_asked("no notification can be kept from this storage")
            return
        store, other = await stores.open(), await stores.open()
        # One prompt round is enough, however slow the others.
        late = []
        for _ in range(ROUNDS):
            worker = asyncio.create_task(arrival(store))
            await waiting(worker)
            await deafen(store)
            (task_id,) = await add(other)
            began = time.monotonic()
            assert (await worker).id == task_id
            late.append(time.monotonic() - began)
            if late[-1] < store.limits.lost_wakeup + 0.5:
                return
        raise AssertionError(f"the waits ended after {late} s; limits.lost_wakeup says {store.limits.lost_wakeup:g}")

    # For the end

    @pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled"])
    async def test_waiting_for_a_task_that_has_ended_returns_at_once(self, store: Storage, end: str) -> None:
        ids = await add(store, new_task(), new_task(run_at=FAR))
        await store.finish([outcome(end, task) for task in await take(store)])
        assert await ended(store, ids[0]) == {ids[0]}
        assert await ended(store, ids[1], ids[0]) == {ids[0]}

    async def test_a_task_that_is_not_in_the_store_counts_as_ended(self, store: Storage) -> None:
        (live,) = await add(store)
        unknown = new_id()
        assert await ended(store, live, unknown) == {unknown}

    async def test_waiting_for_the_end_of_nothing_gives_nothing(self, store: Storage) -> None:
        async with asyncio.timeout(PROMPT):
            assert await store.wait_finished([], SHORT) == set()

    async def test_waiting_for_an_end_that_does_not_come_gives_nothing(self, store: Storage) -> None:
        ids = await add(store, *(new_task(queue=f"queue {number}") for number in range(4)))
        (claimed,) = await take(store, queue="queue 1")
        (to_retry,) = await take(store, queue="queue 2")
        waits = asyncio.create_task(store.wait_finished(ids, 0.5))
        await waiting(waits)
        await store.finish([outcome("retry", to_retry)])
        await store.heartbeat("w", [], HELD)
        await store.cancel([claimed.id])
        assert await waits == set()

    @by_each
    async def test_a_waiting_caller_hears_of_the_end(self, stores: Stores, by: str) -> None:
        store, other = await _two(stores, by)
        ids = await add(other, *(new_task() for _ in range(3)))
        waits = asyncio.create_task(ended(store, *ids))
        await waiting(waits)
        claimed = await take(other, 3)
        await other.finish([outcome("succeeded", claimed[1])])
        assert await waits == {ids[1]}
        assert (await record(store, ids[1])).result_payload == b"result of delivery 1"

    async def test_a_waiting_caller_hears_of_an_end_in_another_thread(self, stores: Stores) -> None:
        store = await stores.open()
        (task_id,) = await add(store)

        noticed = threading.Event()

        async def work(sibling: Storage) -> None:
            await sibling.finish([outcome("succeeded", task) for task in await take(sibling)])
            assert await asyncio.to_thread(noticed.wait, PROMPT / 2), "the waiting caller did not notice"

        waits = asyncio.create_task(ended(store, task_id))
        await waiting(waits)
        thread = asyncio.create_task(stores.in_threads(store, [work]))
        await asyncio.wait([waits, thread], return_when=asyncio.FIRST_COMPLETED)
        noticed.set()
        await thread
        assert await waits == {task_id}

    @pytest.mark.parametrize(
        "end", ["failed", "cancelled", "while scheduled", "expired", "swept", "lost", "deleted", "purged"]
    )
    async def test_a_waiting_caller_hears_of_an_end_of_any_kind(self, stores: Stores, end: str) -> None:
        store, other = await stores.open(), await stores.open()
        expires = timedelta(seconds=SHORT) if end in ("expired", "swept") else None
        (task_id,) = await add(other, max_retries=0, run_at=FAR if end == "while scheduled" else None, expires=expires)
        claimed = await take(other, lease=SHORT) if end in ("failed", "cancelled", "lost") else []
        waits = asyncio.create_task(ended(store, task_id))
        await waiting(waits)
        match end:
            case "failed" | "cancelled":
                await other.finish([outcome(end, claimed[0])])
            case "while scheduled":
                await other.cancel([task_id])
            case "expired":
                await later(other, SHORT)
                assert await take(other) == []
            case "swept":
                await later(other, SHORT)
                await other.recover(1)
            case "lost":
                await later(other, SHORT)
                await other.recover(1)
            case "deleted":
                await other.delete([task_id])
            case "purged":
                await other.purge("work")
        assert await waits == {task_id}
        assert await states(store, [task_id]) != [TaskState.READY]

    async def test_many_can_wait_for_one_end(self, store: Storage) -> None:
        ids = await add(store, new_task(), new_task(queue="other"))
        waits = [asyncio.create_task(ended(store, *ids[: 1 + number % 2])) for number in range(10)]
        await asyncio.sleep(0.05)
        await store.finish([outcome("succeeded", task) for task in await take(store)])
        assert [await wait for wait in waits] == [{ids[0]}] * 10
