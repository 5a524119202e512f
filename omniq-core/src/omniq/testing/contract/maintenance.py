"""What a store promises as a whole: its clock, its namespaces, what it forgets, and that it can be left and found."""

from __future__ import annotations

from datetime import timedelta

import pytest
from attrs import evolve

from omniq.errors import ConfigurationError, StorageUnavailable
from omniq.storage import Capability, Finding, Lease, Severity, Storage, StorageLimits, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Progress, TaskState
from omniq.testing.contract.base import Contract, needs
from omniq.testing.contract.controlling import one_of_each
from omniq.testing.contract.scheduling import LONG_AGO, put
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    SHORT,
    add,
    counts,
    later,
    new_task,
    outcome,
    passed,
    record,
    states,
    take,
    take_lapsed,
)
from omniq.testing.contract.stores import Stores
from omniq.testing.waiting import await_until

__all__ = ["MaintenanceContract"]


async def add_ended(store: Storage, number: int, **options: object) -> list[str]:
    """Enqueue tasks and bring them to an end, each in its way."""
    ids = await add(store, *(new_task(**options) for _ in range(number)))
    kinds = ("succeeded", "failed", "cancelled")
    claimed = await take(store, number)
    await store.finish([outcome(kinds[place % 3], task) for place, task in enumerate(claimed)])
    return ids


async def prune_until_gone(store: Storage, ids: list[str], limit: int) -> int:
    """Prune step by step until certain tasks are gone; give how many were removed."""
    removed = 0

    async def gone() -> bool:
        nonlocal removed
        removed += (step := await store.prune(limit))
        assert step <= limit
        return await states(store, ids) == [None] * len(ids)

    await await_until(gone, what="results to be pruned")
    return removed


class MaintenanceContract(Contract):
    """The store as a whole."""

    async def test_the_clock_is_aware_in_utc_and_goes_on(self, store: Storage) -> None:
        moment = await store.now()
        assert moment.utcoffset() == timedelta(0)
        await passed(store, moment)

    async def test_the_capabilities_are_of_those_that_exist(self, stores: Stores) -> None:
        store = await stores.open()
        assert set(store.capabilities) <= set(Capability)
        assert store.capabilities == stores.capabilities == store.sibling().capabilities

    async def test_the_limits_are_known_before_a_storage_is_opened(self, stores: Stores) -> None:
        store = await stores.open()
        for limits in (stores.make().limits, store.limits, store.sibling().limits):
            assert isinstance(limits, StorageLimits)
            for atomic in (limits.atomic_tasks, limits.atomic_unique_tasks):
                assert atomic is None or atomic >= 100, "what fires a schedule relies on it"
            assert limits.lost_wakeup >= 0
            assert limits.body is None or limits.body > 0
            assert limits.running_tasks is None or limits.running_tasks > 0
            assert limits.active_keys is None or limits.active_keys > 0

    async def test_the_diagnosis_is_a_list_of_findings_without_secrets(self, store: Storage) -> None:
        await one_of_each(store)
        findings = await store.diagnose()
        assert findings
        for finding in findings:
            assert isinstance(finding, Finding)
            assert finding.severity in Severity
            assert finding.subject
            assert finding.message
        assert Severity.ERROR not in {finding.severity for finding in findings}, findings

    # Open and close

    async def test_closing_twice_does_no_harm(self, stores: Stores) -> None:
        store = await stores.open()
        await store.close()
        await store.close()

    @pytest.mark.parametrize("when", ["before it was opened", "after it was closed"])
    async def test_a_storage_that_is_not_open_says_so(self, stores: Stores, when: str) -> None:
        store = stores.make()
        if when == "after it was closed":
            await store.open()
            await store.close()
        held = Lease(new_id(), 1)
        for call in (
            store.now(),
            store.enqueue([new_task()]),
            take(store),
            store.heartbeat("w", [held], HELD),
            store.wait_for_work(["work"], 0.1),
            store.wait_finished([held.id], 0.1),
            store.get([held.id]),
            store.stats(),
            store.due_schedules(1),
            store.prune(1),
            store.diagnose(),
        ):
            with pytest.raises(StorageUnavailable):
                await call

    async def test_a_limit_of_nothing_gives_nothing_and_changes_nothing(self, store: Storage) -> None:
        (task_id,) = await add(store)
        await put(store, next_run=LONG_AGO)
        assert await store.claim({"work": 1}, worker="w", lease=HELD, limit=0) == []
        assert await store.due_schedules(0) == []
        assert await states(store, [task_id]) == [TaskState.READY]
        lost = await take_lapsed(store)
        assert await store.recover(0) == []
        assert await record(store, task_id) == lost[0]
        await store.finish([outcome("succeeded", lost[0])])
        assert await store.prune(0) == 0
        with pytest.raises(ValueError, match="limit"):
            TaskQuery(limit=0)

    async def test_a_storage_joins_only_transactions_that_it_knows(self, store: Storage) -> None:
        joins = Capability.TRANSACTIONS in store.capabilities
        with pytest.raises(TypeError if joins else ConfigurationError):
            store.join(object())

    async def test_closing_one_leaves_the_others_open(self, stores: Stores) -> None:
        store, other = await stores.open(), await stores.open()
        sibling = await stores.open_sibling(store)
        await store.close()
        (first,) = await add(other)
        (second,) = await add(sibling)
        assert [task.id for task in await take(other, 9)] == [first, second]

    async def test_siblings_see_what_each_other_writes(self, stores: Stores) -> None:
        store = await stores.open()
        sibling, other = await stores.open_sibling(store), await stores.open()
        (task_id,) = await add(store)
        (claimed,) = await take(sibling)
        assert claimed.id == task_id
        assert await states(other, [task_id]) == [TaskState.RUNNING]
        assert await other.finish([outcome("succeeded", claimed)]) == [True]
        assert (await record(sibling, task_id)) == (await record(store, task_id))
        await sibling.pause("work")
        assert [stats.paused for stats in await store.stats()] == [True]
        await other.heartbeat("w", [], HELD)
        assert [worker.id for worker in await store.workers()] == ["w"]

    async def test_a_store_can_be_opened_by_many_at_once(self, stores: Stores) -> None:
        ids = await stores.in_threads(stores.make(), [add] * 6, at_once=False)
        store = await stores.open()
        assert await counts(store) == {TaskState.READY: len(ids)}

    @needs(Capability.DURABLE)
    async def test_a_store_that_is_opened_again_holds_what_it_held(self, stores: Stores) -> None:
        store = await stores.open()
        ids = await one_of_each(store)
        await add(store, unique="key", queue="paused", expires=FAR)
        await store.pause("paused")
        await put(store, next_run=LONG_AGO)
        await store.set_progress({Lease(ids[TaskState.RUNNING], 1): Progress(done=1, total=2, note="half")})
        await store.heartbeat("w", [], HELD)
        tasks, schedules = await store.get(list(ids.values())), await store.get_schedules()
        kept = [evolve(stats, oldest_ready=None) for stats in await store.stats()]
        await stores.close()
        again = await stores.open()
        assert await again.get(list(ids.values())) == tasks
        assert await again.get_schedules() == schedules
        assert [evolve(stats, oldest_ready=None) for stats in await again.stats()] == kept
        assert [worker.id for worker in await again.workers()] == ["w"]
        assert (await again.enqueue([new_task(unique="key")]))[0].created is False
        assert await take(again, 9, queue="paused") == []
        (running,) = [task for task in tasks if task is not None and task.state is TaskState.RUNNING]
        assert await again.finish([outcome("succeeded", running)]) == [True]
        (claimed,) = await take(again, 9)
        assert claimed.id == ids[TaskState.READY]

    # Namespaces

    async def test_namespaces_do_not_see_each_other(self, stores: Stores) -> None:
        store, other = await stores.open(), await stores.open(stores.new_namespace())
        task = new_task(unique="key")
        await add(store, task)
        await store.pause("paused")
        await store.heartbeat("w", [], HELD)
        await put(store, next_run=LONG_AGO)
        assert await other.get([task.id]) == [None]
        assert await take(other) == []
        assert await other.stats() == []
        assert await other.workers() == []
        assert await other.get_schedules() == await other.due_schedules(9) == []
        assert await other.cancel([task.id]) == await other.delete([task.id]) == [False]
        assert await other.purge("work") == 0
        assert await other.wait_finished([task.id], 0.1) == {task.id}
        assert await add(other, task) == [task.id], "the same id and key in another namespace are another's"
        await other.cancel([task.id])
        assert await states(store, [task.id]) == [TaskState.READY]

    # What is forgotten

    async def test_results_are_kept_until_their_time_is_over(self, store: Storage) -> None:
        kept = await add_ended(store, 3)
        before = await store.get(kept)
        await later(store, 0.01)
        assert await store.prune(100) == 0
        assert await store.get(kept) == before

    async def test_results_whose_time_is_over_are_pruned(self, store: Storage) -> None:
        kept = await add_ended(store, 3)
        doomed = await add_ended(store, 4, result_ttl=SHORT)
        await store.cancel(more := await add(store, new_task(result_ttl=SHORT, run_at=FAR)))
        await later(store, SHORT)
        removed = await prune_until_gone(store, [*doomed, *more], 100)
        assert removed <= 5
        assert None not in await states(store, kept)
        assert sum((await counts(store)).values()) == 3

    async def test_the_time_of_a_result_counts_from_the_end(self, store: Storage) -> None:
        (task_id,) = await add(store, result_ttl=0.8)
        (claimed,) = await take(store)
        await later(store, 0.8)
        before = await store.now()
        await store.finish([outcome("succeeded", claimed)])
        removed, found = await store.prune(100), await states(store, [task_id])
        # On a machine so busy that its time was over meanwhile, it may be gone.
        if await store.now() < before + timedelta(seconds=0.8):
            assert (removed, found) == (0, [TaskState.SUCCEEDED])

    async def test_a_step_of_pruning_removes_no_more_than_its_limit(self, store: Storage) -> None:
        doomed = await add_ended(store, 7, result_ttl=0.01)
        await later(store, 0.02)
        before = await states(store, doomed)
        removed = await store.prune(2)
        assert removed <= 2
        # A store whose server drops records by itself may have done so meanwhile.
        if Capability.SHARED_BETWEEN_MACHINES not in store.capabilities:
            gone = (await states(store, doomed)).count(None) - before.count(None)
            assert gone == removed == 2
        await prune_until_gone(store, doomed, 2)

    async def test_what_has_not_ended_is_not_pruned(self, store: Storage) -> None:
        tasks = [new_task(result_ttl=0), new_task(result_ttl=0), new_task(result_ttl=0, run_at=FAR)]
        ids = await add(store, *tasks)
        (running,) = await take(store)
        await later(store, 0.01)
        assert await store.prune(100) == 0
        assert await states(store, ids) == [TaskState.RUNNING, TaskState.READY, TaskState.SCHEDULED]
        await store.finish([outcome("retry later", running)])
        await later(store, 0.01)
        assert await store.prune(100) == 0
        assert await states(store, ids) == [TaskState.SCHEDULED, TaskState.READY, TaskState.SCHEDULED]

    async def test_a_task_made_ready_again_is_not_pruned(self, store: Storage) -> None:
        (task_id,) = await add(store, result_ttl=SHORT)
        await store.finish([outcome("failed", task) for task in await take(store)])
        assert await store.retry([task_id]) == [True]
        await later(store, SHORT)
        assert await store.prune(100) == 0
        assert await states(store, [task_id]) == [TaskState.READY]
