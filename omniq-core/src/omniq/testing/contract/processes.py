"""What holds between real processes, and when they are killed in the middle of what they do."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from datetime import timedelta
from pathlib import Path

from omniq.storage import Capability, Storage
from omniq.task import TaskState
from omniq.testing.actor import History, drain
from omniq.testing.contract.actors import Actors, check_histories
from omniq.testing.contract.base import Contract, needs, patient
from omniq.testing.contract.scheduling import LONG_AGO, put
from omniq.testing.contract.steps import FAR, HELD, add, counts, new_task, outcome, passed, record, states, take
from omniq.testing.contract.stores import Stores
from omniq.testing.contract.waiting import arrival, ended, waiting
from omniq.testing.waiting import await_until

__all__ = ["ProcessContract"]

ROUNDS = 3
"""How often what must be prompt is tried."""
DOZENS_OF_PROCESSES_SECONDS = 180.0
"""How long tests may take that start processes to kill them, one after the other, on a busy machine."""
SHARED = Capability.SHARED_BETWEEN_PROCESSES

PRODUCER_DEATHS = ("enqueueing:9:0.0005", "enqueued:5", "enqueueing:12:0.002", "enqueueing:7", "enqueueing:8:0.001")
WORKER_DEATHS = (
    "claimed:3",
    "finishing:9:0.0003",
    "finished:6",
    "finishing:7",
    "claimed:11:0.001",
    "finished:8:0.0005",
    "finishing:5:0.001",
    "opened:1:0.05",
)
BATCH_DEATHS = (
    ("enqueued:6", "enqueueing:9:0.0003"),
    ("enqueueing:8:0.0008", "enqueueing:9:0.0015"),
    ("enqueueing:7:0.0025", "enqueueing:8:0.004"),
)
SCHEDULER_DEATHS = (("firing:4:0.0005", "fired:7"), ("firing:9:0.001", "firing:3"))


class ProcessContract(Contract):
    """Several processes on one store."""

    @needs(SHARED)
    async def test_processes_never_share_a_task(self, stores: Stores, tmp_path: Path) -> None:
        store = await stores.open()
        with Actors(stores.url, tmp_path) as actors:
            # A task far off keeps them from ending before the others come.
            (guard,) = await add(store, run_at=FAR)
            workers = [actors.start("work", lease=HELD) for _ in range(2)]
            for worker in workers:
                await worker.wrote("opened")
            ids = await add(store, *(new_task() for _ in range(200)))
            await store.cancel([guard])
            for worker in workers:
                await worker.ended()
            await check_histories(store, actors.events())
            shares = [
                [item for event in worker.events("finished") for item in event["items"] if item[2] == "Succeeded"]
                for worker in workers
            ]
            assert Counter(item[0] for share in shares for item in share) == Counter(ids)

    @needs(SHARED)
    async def test_processes_can_open_a_new_store_at_once(self, stores: Stores, tmp_path: Path) -> None:
        with Actors(stores.url, tmp_path) as actors:
            producers = [actors.start("produce", batches=3, size=1) for _ in range(4)]
            for producer in producers:
                await producer.ended()
        assert await counts(await stores.open()) == {TaskState.READY: 12}

    @needs(SHARED)
    async def test_a_waiting_worker_gets_a_task_from_another_process(self, stores: Stores, tmp_path: Path) -> None:
        store = await stores.open()
        notified = Capability.NOTIFICATIONS in store.capabilities
        worker = asyncio.create_task(arrival(store))
        await waiting(worker)
        with Actors(stores.url, tmp_path) as actors:
            producer = actors.start("produce", batches=1 + ROUNDS, size=1, on_request=1)
            producer.go_ahead()
            claimed = await worker
            await producer.wrote("enqueued")
            assert producer.events("enqueued")[0]["ids"] == [claimed.id]
            late = []
            for _ in range(ROUNDS):
                worker = asyncio.create_task(arrival(store))
                await waiting(worker)
                producer.go_ahead()
                claimed = await worker
                late.append((await store.now() - claimed.created_at).total_seconds())
                if late[-1] < (0.5 if notified else 2):
                    break
            else:
                promise = "it claims NOTIFICATIONS" if notified else "a change is noticed within 2 s"
                raise AssertionError(f"{promise}, and the waits ended {late} s after a task was ready")

    @needs(SHARED)
    async def test_a_waiting_caller_hears_of_an_end_in_another_process(self, stores: Stores, tmp_path: Path) -> None:
        store = await stores.open()
        (task_id,) = await add(store)
        waits = asyncio.create_task(ended(store, task_id))
        await waiting(waits)
        with Actors(stores.url, tmp_path) as actors:
            worker = actors.start("work")
            assert await waits == {task_id}
            await worker.ended()
        assert (await record(store, task_id)).state is TaskState.SUCCEEDED

    @patient(DOZENS_OF_PROCESSES_SECONDS)
    @needs(SHARED)
    async def test_what_was_acknowledged_survives_the_one_who_enqueued_it_and_batches_are_whole(
        self, stores: Stores, tmp_path: Path
    ) -> None:
        store = await stores.open()
        with Actors(stores.url, tmp_path) as actors:
            for deaths in BATCH_DEATHS:
                for producer in [actors.start("produce", size=90, die_at=death) for death in deaths]:
                    await producer.died()
            acknowledged = [task_id for event in actors.events("enqueued") for task_id in event["ids"]]
            found = Counter(await states(store, acknowledged))
            assert found[TaskState.READY] == len(acknowledged) > 100
            for event in actors.events("enqueueing"):
                assert len(set(await states(store, event["ids"]))) == 1, "half of a batch was stored"

    @needs(SHARED)
    async def test_a_worker_that_was_stopped_for_longer_than_its_lease_is_not_heard(
        self, stores: Stores, tmp_path: Path
    ) -> None:
        store = await stores.open()
        (task_id,) = await add(store)
        with Actors(stores.url, tmp_path) as actors:
            worker = actors.start("work", lease=0.2, on_request=1)
            await worker.wrote("claimed")
            worker.stop()
            await passed(store, (await record(store, task_id)).lease_until)
            assert [task.id for task in await store.recover(10)] == [task_id]
            (claimed,) = await take(store)
            worker.go_on()
            worker.go_ahead()
            await worker.wrote("finished")
            assert worker.events("finished")[0]["items"][0][3] is False
            assert await record(store, task_id) == claimed
            assert await store.finish([outcome("succeeded", claimed)]) == [True]
            await worker.ended()

    @patient(DOZENS_OF_PROCESSES_SECONDS)
    @needs(SHARED)
    async def test_a_tick_fires_once_though_its_schedulers_are_killed(self, stores: Stores, tmp_path: Path) -> None:
        store = await stores.open()
        for number in range(3):
            await put(store, f"schedule {number}", next_run=LONG_AGO, end=LONG_AGO + timedelta(seconds=39))
        with Actors(stores.url, tmp_path) as actors:
            for deaths in SCHEDULER_DEATHS:
                for scheduler in [actors.start("fire", die_at=death) for death in deaths]:
                    await scheduler.died()
            for scheduler in [actors.start("fire") for _ in range(2)]:
                await scheduler.ended()
            fired = {event["id"] for event in actors.events("fired") if event["fired"]}
        schedules = await store.get_schedules()
        assert [schedule.next_run for schedule in schedules] == [None] * 3
        claimed = await take(store, 999)
        ticks = [LONG_AGO + timedelta(seconds=second) for second in range(40)]
        assert Counter(task.body for task in claimed) == {tick.isoformat().encode(): 3 for tick in ticks}
        assert fired <= {task.id for task in claimed}

    @patient(DOZENS_OF_PROCESSES_SECONDS)
    @needs(SHARED)
    async def test_nothing_is_lost_or_done_twice_when_processes_are_killed(
        self, stores: Stores, tmp_path: Path
    ) -> None:
        store = await stores.open()
        (guard,) = await add(store, queue="work", run_at=FAR)
        with Actors(stores.url, tmp_path) as actors:
            working = asyncio.create_task(self._die_again_and_again(actors, "work", WORKER_DEATHS))
            for death in itertools.cycle(PRODUCER_DEATHS):
                await actors.start("produce", pause=0.003, die_at=death).died()
                if working.done():
                    break
            await working
            # While it was there, no worker could think that all was done.
            await store.cancel([guard])
            history = History(actors.history("the last worker"))
            await drain(store, history, queue="work")
            history.close()
            await check_histories(store, actors.events())
        await self._leave_nothing(store)

    async def _die_again_and_again(self, actors: Actors, role: str, deaths: tuple[str, ...]) -> None:
        for death in deaths:
            await actors.start(role, lease=0.3, die_at=death).died()

    async def _leave_nothing(self, store: Storage) -> None:
        await store.purge("work")
        assert await store.stats() == []

        async def no_worker_is_left() -> bool:
            return not await store.workers()

        await await_until(no_worker_is_left, what="the dead workers' leases to run out")
