"""What it means to adopt the records of another store: they are the same here, and go on as they would have there."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest
from attrs import evolve

from omniq.flow import GateState, NewGate
from omniq.storage import Adoption, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Failed, Progress, Retry, StoredTask, TaskState
from omniq.testing.contract.base import Contract, with_adoption, with_flows
from omniq.testing.contract.flow_driver import FlowDriver, settled
from omniq.testing.contract.flows import end_one, fan_in, flow_of, member, new_flow
from omniq.testing.contract.steps import (
    BOOM,
    FAR,
    PROMPT,
    add,
    counts,
    moved,
    new_task,
    outcome,
    passed,
    record,
    states,
    take,
)
from omniq.testing.contract.stores import Stores

__all__ = ["AdoptContract"]

BLOCKED, READY, SCHEDULED, RUNNING = TaskState.BLOCKED, TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING
SUCCEEDED, FAILED, CANCELLED = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED
STORED, PRESENT = Adoption.STORED, Adoption.PRESENT
EPISODES = 4
"""Random flows that move from store to store on their way."""


async def all_of(store: Storage) -> list[StoredTask]:
    """Return all tasks in the order of enqueueing, without what a store may forget."""
    page = await store.list_tasks(TaskQuery(limit=1000))
    assert page.cursor is None
    return [evolve(task, progress=None) for task in reversed(page.tasks)]


async def of_all_kinds(store: Storage) -> None:
    """Fill a store with a task of each kind that can be moved."""
    for kind in ("succeeded", "failed", "cancelled", "retry later", "retry", "released"):
        await add(store, queue=kind, tags=("a", "ü"), body=b"[1]" * 7, name=f"task {kind}", unique=f"key of {kind}")
        (task,) = await take(store, queue=kind)
        if kind in ("failed", "retry later"):
            told = outcome(kind, task)
            assert isinstance(told, Failed | Retry)
            await store.finish([evolve(told, attempt_log="a line about an attempt")])
        else:
            await store.finish([outcome(kind, task)])
    await add(store, run_at=FAR, expires=FAR + timedelta(seconds=1), priority=-7, result_ttl=12.5, max_retries=9)
    await add(store, body=b"x" * 20_000, priority=99, expires=FAR)
    await add(store, queue="plain")


class AdoptContract(Contract):
    """Adopting the records of another store."""

    @with_adoption
    async def test_adopted_tasks_are_as_they_were(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        await of_all_kinds(source)
        assert set(await moved(source, store, size=4)) == {STORED}
        whole = await all_of(source)
        assert await all_of(store) == whole
        assert [replace_progress(await record(store, task.id)) for task in whole] == whole
        before, after = [{one.queue: one.counts for one in await each.stats()} for each in (source, store)]
        assert before == after
        for query in (
            TaskQuery(state=FAILED),
            TaskQuery(tag="ü"),
            TaskQuery(queue="retry"),
            TaskQuery(name="kit.task"),
        ):
            found = [[task.id for task in await each.list_tasks(query)] for each in (source, store)]
            assert found[0] == found[1] != []
        ended = [task.id for task in whole if task.state.is_final]
        assert await store.wait_finished([task.id for task in whole], PROMPT) == set(ended)

    @with_adoption
    async def test_adopting_again_changes_nothing(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        await of_all_kinds(source)
        there = await all_of(source)
        assert await store.adopt(there[:5]) == [STORED] * 5
        assert await store.adopt(there) == [PRESENT] * 5 + [STORED] * (len(there) - 5)
        (task,) = await take(store, queue="plain")
        await store.finish([outcome("succeeded", task)])
        (held,) = await take(store, queue="retry")
        assert await store.adopt(there) == [PRESENT] * len(there)
        assert await states(store, [task.id, held.id]) == [SUCCEEDED, RUNNING]
        assert await store.adopt([there[0], there[0]]) == [PRESENT] * 2
        assert await store.adopt([]) == []

    @with_adoption
    async def test_the_order_of_claims_stays(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        for priority in (0, 5, 0, -3, 5):
            await add(source, priority=priority)
        await add(source, *(new_task(priority=priority) for priority in (0, 0, 5, 0)))
        first, second = await take(source, 2)
        retried = Retry(id=first.id, delivery=first.delivery, delay=0, error=BOOM)
        await source.finish([retried, outcome("released", second)])
        await add(source)
        assert len(await moved(source, store, size=3)) == 10
        mine = [task.id for task in await take(store, 100)]
        theirs = [task.id for task in await take(source, 100)]
        assert mine == theirs
        assert len(mine) == 10

    @with_adoption
    async def test_those_that_are_due_come_in_the_order_of_their_times(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        soon = [await add(source, run_at=timedelta(milliseconds=delay)) for delay in (90, 30, 60)]
        await moved(source, store)
        assert counts_of_waiting(await counts(store)) == 3
        due = {task_id: (await record(source, task_id)).run_at for (task_id,) in soon}
        await passed(store, max(due.values()))
        assert [task.id for task in await take(store, 3)] == sorted(due, key=lambda task_id: due[task_id])

    @with_adoption
    async def test_a_task_that_was_held_before_stays_fenced(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        (task_id,) = await add(source)
        (held,) = await take(source)
        await source.set_progress({})
        given_back = evolve(held, state=READY, lease_until=None, attempt=0, progress=Progress(done=1))
        assert await store.adopt([given_back]) == [STORED]
        assert await store.finish([outcome("succeeded", held)]) == [False]
        (task,) = await take(store)
        assert (task.id, task.attempt, task.delivery) == (task_id, 1, 2)
        assert await store.finish([outcome("failed", held)]) == [False]
        assert await store.finish([outcome("succeeded", task)]) == [True]

    @with_adoption
    async def test_what_cannot_be_adopted_is_refused_whole(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        await add(source, *(new_task() for _ in range(2)))
        (running,) = await take(source)
        (other,) = (task for task in await all_of(source) if task.id != running.id)
        for bad in (running, evolve(other, id=new_id()).bare(), evolve(other, id=new_id(), attempt=-1)):
            with pytest.raises(ValueError, match=bad.id):
                await store.adopt([other, bad])
        assert await store.stats() == []

    @with_adoption
    async def test_an_adopted_task_has_its_key_while_it_lives(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        await add(source, unique="ended")
        await source.finish([outcome("succeeded", task) for task in await take(source)])
        await add(source, unique="taken")
        (free,) = await add(source, unique="free")
        (holder,) = await add(store, unique="taken")
        (other,) = await add(store, unique="ended")
        assert await store.adopt(await all_of(source)) == [STORED, Adoption.KEY_TAKEN, STORED]
        for key, has in (("free", free), ("taken", holder), ("ended", other)):
            assert [(one.id, one.created) for one in await store.enqueue([new_task(unique=key)])] == [(has, False)]
        twin = evolve(await record(store, free), id=new_id())
        assert await store.adopt([twin]) == [Adoption.KEY_TAKEN]
        await store.cancel([free])
        assert await store.adopt([twin]) == [STORED]

    @with_adoption
    async def test_those_that_wait_for_work_are_woken(self, store: Storage, stores: Stores) -> None:
        task = StoredTask(
            id=new_id(), queue="work", name="kit.task", body=b"[]", created_at=(at := await store.now()), run_at=at
        )
        other = await stores.open()
        waiting = asyncio.create_task(store.wait_for_work(["work"], 60))
        await asyncio.sleep(0)
        assert await other.adopt([task]) == [STORED]
        async with asyncio.timeout(PROMPT):
            await waiting
        assert [one.id for one in await take(store)] == [task.id]

    @with_adoption
    async def test_times_go_on(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        (short,) = await add(source, queue="other", result_ttl=0.05)
        (long,) = await add(source, queue="other")
        await source.finish([outcome("succeeded", task) for task in await take(source, 2, queue="other")])
        (brief,) = await add(source, expires=timedelta(milliseconds=50))
        await moved(source, store)
        await passed(store, (await record(store, brief)).expires_at)
        kept = await record(store, short)
        assert kept.finished_at is not None
        await passed(store, kept.finished_at + timedelta(seconds=0.06))
        await store.prune(100)
        await store.recover(100)
        assert await states(store, [short, long, brief]) == [None, SUCCEEDED, CANCELLED]

    @with_adoption
    async def test_failed_ones_can_be_retried_and_all_can_be_deleted(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        await of_all_kinds(source)
        await moved(source, store)
        whole = await all_of(store)
        failed = [task.id for task in whole if task.state in (FAILED, CANCELLED)]
        assert await store.retry(failed) == [True] * len(failed)
        again = [(await take(store, queue=kind))[0] for kind in ("failed", "cancelled")]
        assert [(task.id, task.attempt, task.delivery) for task in again] == [(one, 1, 2) for one in failed]
        await store.finish([outcome("succeeded", task) for task in again])
        assert await store.delete([task.id for task in whole]) == [True] * len(whole)
        assert await store.stats() == []

    # Flows

    @with_flows
    @with_adoption
    async def test_a_flow_goes_on_where_it_stood(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow = new_flow(2, unique="nightly", result_ttl=77.0)
        tasks = [member(flow, feeds=[0]), member(flow, feeds=[0]), member(flow, 0, [1]), member(flow, 1)]
        await source.enqueue(tasks, flow)
        await end_one(source)
        assert await moved(source, store, size=1) == [STORED] * 5
        assert await flow_of(store, flow) == await flow_of(source, flow)
        assert await all_of(store) == await all_of(source)
        assert await moved(source, store) == [PRESENT] * 5
        for task in tasks[1:]:
            assert (await end_one(store)).id == task.id
        ended = await flow_of(store, flow)
        assert ended.finished_at is not None
        assert ended.result_ttl == 77.0

    @with_flows
    @with_adoption
    async def test_what_ends_before_the_others_have_come_is_counted(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow, first, last = await fan_in(source)
        (theirs,) = await source.get_flows([flow.id])
        assert theirs is not None
        assert await store.adopt([await record(source, first)], [theirs]) == [STORED] * 2
        assert (await end_one(store)).id == first
        assert (await flow_of(store, flow)).finished_at is None
        assert await store.adopt([await record(source, last)], [theirs]) == [PRESENT, STORED]
        assert (await record(store, last)).state is READY
        assert (await end_one(store)).id == last
        assert (await flow_of(store, flow)).finished_at is not None

    @with_flows
    @with_adoption
    async def test_what_comes_behind_a_broken_gate_ends(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow, first, last = await fan_in(source)
        (theirs,) = await source.get_flows([flow.id])
        assert theirs is not None
        await store.adopt([await record(source, first)], [theirs])
        await end_one(store, "failed")
        await store.adopt([await record(source, last)])
        await settled(store)
        ended = await record(store, last)
        assert (ended.state, ended.error and ended.error.type) == (CANCELLED, "UpstreamFailed")
        assert (await flow_of(store, flow)).finished_at is not None

    @with_flows
    @with_adoption
    async def test_a_flow_that_has_failed_can_be_retried(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow, first, last = await fan_in(source)
        await end_one(source, "failed")
        await settled(source)
        await moved(source, store)
        assert await flow_of(store, flow) == await flow_of(source, flow)
        assert await store.retry_flow(flow.id) == 1
        for task_id in (first, last):
            assert (await end_one(store)).id == task_id
        assert (await flow_of(store, flow)).counts[SUCCEEDED] == 2

    @with_flows
    @with_adoption
    async def test_a_cancelled_flow_stays_cancelled(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow, first, last = await fan_in(source)
        theirs = evolve(await flow_of(source, flow), cancelled=True)
        await store.adopt([await record(source, first), await record(source, last)], [theirs])
        await settled(store)
        assert await states(store, [first, last]) == [CANCELLED, CANCELLED]
        assert (await flow_of(store, flow)).finished_at is not None

    @with_flows
    @with_adoption
    async def test_a_hold_stays(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow = evolve(new_flow(hold_ttl=3600.0), gates=(NewGate(n=0, rank="0", hold=True),))
        task = member(flow, 0)
        await source.enqueue([task], flow)
        await moved(source, store)
        mine = await flow_of(store, flow)
        assert (mine.gates[0].holds, mine.hold_until) == (1, (await flow_of(source, flow)).hold_until)
        assert await take(store) == []
        assert await store.release_hold(flow.id, 0)
        assert (await flow_of(store, flow)).gates[0].state is GateState.OPEN
        assert (await end_one(store)).id == task.id

    @with_flows
    @with_adoption
    async def test_a_flow_whose_key_is_taken_is_left_out_with_its_tasks(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow, other = new_flow(0, unique="nightly"), new_flow(0, unique="nightly")
        await source.enqueue([member(flow)], flow)
        (plain,) = await add(source)
        await store.enqueue([member(other)], other)
        assert await moved(source, store) == [Adoption.KEY_TAKEN, Adoption.NO_FLOW, STORED]
        assert await states(store, [task.id for task in await all_of(source)]) == [None, READY]
        assert (await record(store, plain)).state is READY

    @with_flows
    @with_adoption
    async def test_a_flow_that_is_over_is_pruned_with_its_tasks(self, store: Storage, stores: Stores) -> None:
        source = await stores.open(stores.new_namespace())
        flow = new_flow(0, result_ttl=0.05)
        task = member(flow)
        await source.enqueue([task], flow)
        await end_one(source)
        await moved(source, store)
        mine = await flow_of(store, flow)
        assert mine.finished_at is not None
        await passed(store, mine.finished_at + timedelta(seconds=0.06))
        await store.prune(100)
        assert await store.get_flows([flow.id]) == [None]
        assert await states(store, [task.id]) == [None]

    @with_flows
    @with_adoption
    async def test_random_flows_end_wherever_they_began(self, stores: Stores) -> None:
        source, target = await stores.open(), await stores.open(stores.new_namespace())
        for seed in range(EPISODES):
            await FlowDriver(source, random.Random(seed)).run(target)


def replace_progress(task: StoredTask) -> StoredTask:
    """Return a record without what a store may forget."""
    return evolve(task, progress=None)


def counts_of_waiting(found: dict[TaskState, int]) -> int:
    """Return how many tasks wait for a claim; one that is due may count as scheduled or as ready."""
    return found.get(READY, 0) + found.get(SCHEDULED, 0)
