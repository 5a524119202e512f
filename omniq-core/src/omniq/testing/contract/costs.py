"""What the contract says of cost, where it can be counted: requests, records left over, threads and connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from omniq.limit import Limit
from omniq.storage import Lease, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Progress, StoredTask, TaskState
from omniq.testing.contract.base import Contract, needs_fixtures, with_limits
from omniq.testing.contract.scheduling import put
from omniq.testing.contract.steps import HELD, add, later, new_task, outcome, take, take_lapsed
from omniq.testing.contract.stores import Stores
from omniq.testing.waiting import await_until

__all__ = ["CostContract", "SyncContract"]

BATCH = 60
MANY_TASKS = 2000
ROUNDS = 3
"""How often what a busy machine can spoil is tried."""


def open_files() -> int:
    """Return how many files and sockets this process has open."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return 0


def threads() -> set[threading.Thread]:
    """Return the threads of this process, but for those of the event loops' own pools."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


async def a_life(store: Storage) -> None:
    """Do something of everything, and remove whatever can be removed."""
    ids = await add(store, *(new_task(body=bytes(5000), unique=f"key {number}", tags=("a",)) for number in range(6)))
    claimed = await store.claim({"work": 6}, worker=f"worker of {ids[0]}", lease=0.01)
    await store.set_progress({Lease(task.id, task.delivery): Progress(done=1) for task in claimed})
    kinds = ("succeeded", "failed", "cancelled", "retry later", "released", "released later")
    await store.finish([outcome(kind, task) for kind, task in zip(kinds, claimed, strict=True)])
    await store.heartbeat(f"worker of {ids[1]}", [], 0.01, "what it is")
    await store.delete(ids)
    await add(store, new_task(body=bytes(5000)), new_task(result_ttl=0.01))
    await store.finish([outcome(kind, task) for kind, task in zip(kinds[1::-1], await take(store, 2), strict=True)])
    await put(store, ids[0])
    await store.delete_schedule(ids[0])
    await later(store, 0.02)
    await store.prune(1000)
    await store.purge("work")


class CostContract(Contract):
    """Costs."""

    @pytest.fixture
    def count_requests(self) -> Callable[[], int] | None:
        """Return what tells how many requests (commands, transactions) the store has had; None: not asked."""
        return None

    @pytest.fixture
    def count_records(self) -> Callable[[], int] | None:
        """Return what tells how many records (rows, keys, files) the store holds in all; None: not asked."""
        return None

    # The fixtures come before the storage: they may have to see how it connects.

    @needs_fixtures("count_requests")
    async def test_an_idle_wait_asks_at_most_once_a_second(
        self, count_requests: Callable[[], int], store: Storage
    ) -> None:
        await store.wait_for_work(["work"], 0)
        ids = await add(store, queue="other")
        for wait in (lambda: store.wait_for_work(["work"], 1.2), lambda: store.wait_finished(ids, 1.2)):
            told = []
            # One round is enough: on a busy machine something may be asked again whose answer was late.
            for _ in range(ROUNDS):
                before, began = count_requests(), time.monotonic()
                await wait()
                seconds = time.monotonic() - began
                told.append(f"{count_requests() - before} in {seconds:.1f} s")
                # One to look, one to begin and one to end with, besides that of each second.
                if count_requests() - before <= 3 + seconds:
                    break
            else:
                raise AssertionError(f"requests of an idle wait: {told}")

    @needs_fixtures("count_requests")
    async def test_a_batch_costs_as_many_requests_as_one_task(
        self, count_requests: Callable[[], int], store: Storage
    ) -> None:
        few = await self._requests_of_batches(store, count_requests, 2)
        many = await self._requests_of_batches(store, count_requests, BATCH)
        assert {verb: number for verb, number in many.items() if number > few[verb] + 2} == {}

    @needs_fixtures("count_requests")
    async def test_failed_tasks_are_listed_with_as_few_requests_however_many_have_ended(
        self, count_requests: Callable[[], int], store: Storage
    ) -> None:

        async def end(kind: str, number: int) -> list[str]:
            ids = await add(store, *(new_task() for _ in range(number)))
            await store.finish([outcome(kind, task) for task in await take(store, number)])
            return ids

        async def cost() -> int:
            costs = []
            for _ in range(ROUNDS):
                before = count_requests()
                page = await store.list_tasks(TaskQuery(states=[TaskState.FAILED], bare=True))
                costs.append(count_requests() - before)
                assert [task.id for task in page] == failed[::-1]
                assert page.cursor is None
            return min(costs)

        failed = [task_id for _ in range(3) for task_id in await end("failed", 1)]
        few = await cost()
        for _ in range(MANY_TASKS // 200):
            await end("succeeded", 200)
        assert await cost() <= few + 2

    async def _requests_of_batches(
        self, store: Storage, count_requests: Callable[[], int], size: int
    ) -> dict[str, int]:
        costs: dict[str, int] = {}

        async def cost(verb: str, call: Awaitable[Any]) -> Any:
            before = count_requests()
            answer = await call
            costs[verb] = count_requests() - before
            return answer

        tasks = [new_task(max_retries=0) for _ in range(size)]
        ids = [task.id for task in tasks]
        await cost("enqueue", store.enqueue(tasks))
        claimed: list[StoredTask] = await cost("claim", take(store, size, lease=0.05))
        held = [Lease(task.id, task.delivery) for task in claimed]
        await cost("set_progress", store.set_progress({lease: Progress(done=1) for lease in held}))
        await cost("heartbeat", store.heartbeat("w", held, HELD))
        await cost("cancel", store.cancel(ids))
        await cost("finish", store.finish([outcome("failed", task) for task in claimed]))
        await cost("get", store.get(ids))
        await cost("retry", store.retry(ids))
        assert len(await take_lapsed(store, size)) == size
        await cost("recover", store.recover(size))
        await cost("delete", store.delete(ids))
        return costs

    @needs_fixtures("count_records")
    async def test_what_was_removed_leaves_nothing_behind(
        self, count_records: Callable[[], int], store: Storage
    ) -> None:
        # The first leaves what a store keeps for each queue.
        await a_life(store)
        before = count_records()
        for _ in range(2):
            await a_life(store)

        async def nothing_more() -> bool:
            await store.prune(1000)
            return count_records() <= before

        await await_until(nothing_more, what="what was removed to be gone")

    @with_limits
    @needs_fixtures("count_records")
    async def test_keys_that_are_used_once_leave_nothing_behind_while_another_waits(
        self, count_records: Callable[[], int], store: Storage
    ) -> None:
        async def visit(keys: int) -> None:
            ids = await add(store, *(new_task(key=new_id()) for _ in range(keys)))
            claimed = [task for _ in range(keys) for task in await take(store, keys)]
            assert {task.id for task in claimed} == set(ids)
            await store.finish([outcome("succeeded", task) for task in claimed])
            await store.delete(ids)

        async def nothing_more() -> bool:
            await store.prune(1000)
            return count_records() <= before

        await store.put_limit(Limit(queue="work", per_key=Limit(concurrency=1)))
        await add(store, new_task(key="slow"), new_task(key="slow"))
        assert len(await take(store, 2)) == 1
        await visit(1)
        await store.prune(1000)
        before = count_records()
        for _ in range(3):
            await visit(20)
        await await_until(nothing_more, what="the records of keys to be gone")

    async def test_closing_ends_threads_and_connections(self, stores: Stores) -> None:
        async def use() -> Storage:
            store = stores.make()
            await store.open()
            await store.claim({"work": 1}, worker="w", lease=HELD)
            await store.wait_for_work(["work"], 0.01)
            await store.stats()
            await store.close()
            return store

        await use()  # what a process has once, however many it opens
        gc.collect()  # what earlier tests forgot to close must not make room for what this one leaves open
        running, files = threads(), open_files()
        closed = [await use() for _ in range(4)]
        await await_until(lambda: threads() <= running, what="the threads of closed storages to end")
        await await_until(lambda: open_files() <= files, what="the connections of closed storages to end")
        assert len(closed) == 4, "kept, so that none is closed by being forgotten"

    async def test_the_counts_are_told_without_reading_every_task(self, store: Storage) -> None:
        async def quickest() -> float:
            times = []
            for _ in range(12):
                began = time.perf_counter()
                await store.stats()
                times.append(time.perf_counter() - began)
                await asyncio.sleep(0)
            return min(times)

        await add(store)
        few = await quickest()
        await add(store, *(new_task() for _ in range(MANY_TASKS)))
        # Of any number of looks the quickest tells the work that is done, however busy the machine is.
        assert await quickest() < 5 * few + 0.005


class SyncContract(Contract):
    """That what was acknowledged survives the machine, on a store (or with settings) that promises it."""

    @pytest.fixture
    def count_syncs(self) -> Callable[[], int] | None:
        """Return what tells how often the store has waited until what was written is on the disk; None: not asked."""
        return None

    @needs_fixtures("count_syncs")
    async def test_what_was_acknowledged_is_on_the_disk(self, count_syncs: Callable[[], int], store: Storage) -> None:
        unsynced = []

        async def synced(verb: str, call: Awaitable[Any]) -> Any:
            before = count_syncs()
            answer = await call
            if count_syncs() == before:
                unsynced.append(verb)
            return answer

        (first, *_) = await synced("enqueue", add(store, new_task(), new_task()))
        claimed = await take(store, 2)
        await synced("finish", store.finish([outcome("failed", task) for task in claimed]))
        await synced("retry", store.retry([first]))
        await synced("cancel", store.cancel([first]))
        await synced("put_schedule", put(store))
        await synced("delete", store.delete([first]))
        assert not unsynced
