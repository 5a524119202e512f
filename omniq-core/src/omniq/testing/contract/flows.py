"""What flows promise: each end counts once, what follows from it follows, and nothing is left hanging."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from omniq.errors import FlowClosed
from omniq.flow import Flow, GateState, NewFlow, NewGate
from omniq.storage import Enqueued, Lease, LeaseState, Storage
from omniq.storage.ids import new_id
from omniq.task import Failed, Feed, NewTask, StoredTask, TaskError, TaskState
from omniq.testing.contract.base import Contract, with_flows
from omniq.testing.contract.flow_driver import FlowDriver, settled
from omniq.testing.contract.steps import (
    FAR,
    HELD,
    counts,
    lapsed,
    later,
    new_task,
    outcome,
    record,
    states,
    take,
    take_lapsed,
)
from omniq.testing.contract.waiting import arrival, ended, waiting

__all__ = ["FlowContract"]

BLOCKED, READY, SCHEDULED = TaskState.BLOCKED, TaskState.READY, TaskState.SCHEDULED
SUCCEEDED, FAILED, CANCELLED = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED
EPISODES = 8
"""Random flows that are driven to their ends."""
MANY = 450
"""Tasks behind one gate: more than move in the step that opens it."""
LINKS = int(os.environ.get("OMNIQ_LONG_CHAIN", "1250"))
"""Tasks of a long chain; 10,000 of them take up to minutes."""


def member(flow: NewFlow, behind: int | None = None, feeds: Sequence[int | Feed] = (), **options: Any) -> NewTask:
    """Return a new task of a flow.

    :param feeds: gates; of a bare number success is needed.
    """
    fed = tuple(Feed(one) if isinstance(one, int) else one for one in feeds)
    return new_task(flow=flow.id, behind=behind, feeds=fed, **options)


def new_flow(gates: int = 1, **options: Any) -> NewFlow:
    """Return a new flow with gates that rank in the order of their numbers."""
    made = tuple(NewGate(n=n, rank=f"{n:06d}") for n in range(gates))
    return NewFlow(**{"id": new_id(), "gates": made, **options})


async def flow_of(store: Storage, flow: NewFlow) -> Flow:
    (found,) = await store.get_flows([flow.id])
    assert found is not None, "the flow is gone"
    return found


async def end_one(store: Storage, kind: str = "succeeded", *, queue: str = "work") -> StoredTask:
    """Claim one task and finish it."""
    (task,) = await take(store, queue=queue)
    assert await store.finish([outcome(kind, task)]) == [True]
    return task


async def fan_in(
    store: Storage, *, needs_success: bool = True, last_queue: str = "work", **options: Any
) -> tuple[NewFlow, str, str]:
    """Store a task and another that waits for it."""
    flow = new_flow()
    tasks = [member(flow, feeds=[Feed(0, needs_success)], **options), member(flow, behind=0, queue=last_queue)]
    answers = await store.enqueue(tasks, flow)
    assert answers == [Enqueued(task.id, True) for task in tasks]
    return flow, tasks[0].id, tasks[1].id


async def _fail(store: Storage, task_id: str) -> None:
    await end_one(store, "failed")


async def _lose(store: Storage, task_id: str) -> None:
    await take_lapsed(store)
    await store.recover(10)


async def _expire_in_claim(store: Storage, task_id: str) -> None:
    await later(store, 0.02)
    assert await take(store, 5) == []


async def _expire_in_recover(store: Storage, task_id: str) -> None:
    await later(store, 0.02)
    await store.recover(10)


async def _cancel(store: Storage, task_id: str) -> None:
    assert await store.cancel([task_id]) == [True]


async def _cancel_running(store: Storage, task_id: str) -> None:
    (task,) = await take(store)
    await store.cancel([task_id])
    await store.finish([outcome("retry", task)])


async def _delete(store: Storage, task_id: str) -> None:
    assert await store.delete([task_id]) == [True]


async def _purge(store: Storage, task_id: str) -> None:
    state = (await record(store, task_id)).state
    assert await store.purge("work", state) == 1


SOON = timedelta(milliseconds=10)
WAYS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "failed": (_fail, {}),
    "lost": (_lose, {"max_retries": 0}),
    "expired in claim": (_expire_in_claim, {"expires": SOON}),
    "expired in recover": (_expire_in_recover, {"expires": SOON}),
    "cancelled": (_cancel, {}),
    "cancelled while it ran": (_cancel_running, {}),
    "deleted": (_delete, {}),
    "purged": (_purge, {}),
    "purged before its time": (_purge, {"run_at": FAR}),
}
"""How a task can end without success: what brings it about, and the options that this takes."""


class FlowContract(Contract):
    """Flows."""

    # Ends, and what follows from them

    @with_flows
    async def test_a_task_waits_until_those_that_it_needs_have_succeeded(self, store: Storage) -> None:
        flow = new_flow()
        tasks = [*(member(flow, feeds=[0]) for _ in range(3)), member(flow, behind=0)]
        await store.enqueue(tasks, flow)
        last = tasks[3].id
        for done in range(3):
            assert (await record(store, last)).state is BLOCKED
            assert (await flow_of(store, flow)).gates[0].unmet == 3 - done
            await end_one(store)
        assert (await record(store, last)).state is READY
        assert (await end_one(store)).id == last
        ended = await flow_of(store, flow)
        assert (ended.finished_at is not None, ended.counts[SUCCEEDED], ended.gates[0].state) == (
            True,
            4,
            GateState.OPEN,
        )

    @with_flows
    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("needs_success", [True, False])
    async def test_each_way_to_end_counts_once_and_at_once(self, store: Storage, way: str, needs_success: bool) -> None:
        bring_about, options = WAYS[way]
        flow, first, second = await fan_in(store, needs_success=needs_success, last_queue="last", **options)
        await bring_about(store, first)
        (gate,) = (await flow_of(store, flow)).gates
        task = await record(store, second)
        if needs_success:
            assert (gate.state, gate.unmet, gate.failed) == (GateState.BROKEN, 0, 1)
            assert task.state is CANCELLED
            assert task.error is not None
            assert task.error.type == "UpstreamFailed"
            assert first in task.error.message
            assert (await flow_of(store, flow)).finished_at is not None
        else:
            assert (gate.state, gate.unmet, gate.failed) == (GateState.OPEN, 0, 0)
            assert task.state is READY

    @with_flows
    async def test_the_error_names_the_task_that_failed_however_far_it_was(self, store: Storage) -> None:
        flow = new_flow(2)
        tasks = [member(flow, feeds=[0], name="shop.fetch"), member(flow, 0, [1]), member(flow, 1)]
        await store.enqueue(tasks, flow)
        (task,) = await take(store)
        await store.finish([Failed(id=task.id, delivery=task.delivery, error=TaskError(type="OSError", message="no"))])
        last = await record(store, tasks[2].id)
        assert last.error is not None
        assert last.error.message == f"task {tasks[0].id} (shop.fetch) failed: OSError: no"

    @with_flows
    async def test_the_opening_of_a_gate_wakes_a_worker_that_waits(self, store: Storage) -> None:
        for kind in ("succeeded", "released"):
            _, _, last = await fan_in(store, last_queue="last")
            worker = asyncio.create_task(arrival(store, "last"))
            await waiting(worker)
            if kind == "released":
                await end_one(store, kind)
            await end_one(store)
            claimed = await worker
            assert claimed.id == last
            await store.finish([outcome("succeeded", claimed)])

    @with_flows
    async def test_a_wait_for_a_blocked_task_returns_when_it_has_ended(self, store: Storage) -> None:
        flow, first, last = await fan_in(store)
        assert await store.wait_finished([last], 0.1) == set()
        waits = asyncio.create_task(ended(store, last))
        await waiting(waits)
        await end_one(store, "failed")
        assert await waits == {last}
        await store.retry([first])
        assert (await record(store, last)).state is BLOCKED
        waits = asyncio.create_task(ended(store, last))
        await waiting(waits)
        await store.cancel_flow(flow.id)
        assert await waits == {last}

    @with_flows
    async def test_a_retry_is_no_end(self, store: Storage) -> None:
        flow, _, second = await fan_in(store)
        await end_one(store, "retry")
        await take_lapsed(store)
        await store.recover(10)
        assert (await flow_of(store, flow)).gates[0].unmet == 1
        await end_one(store)
        assert (await record(store, second)).state is READY

    @with_flows
    async def test_stale_and_repeated_outcomes_count_nothing(self, store: Storage) -> None:
        flow = new_flow()
        tasks = [member(flow, feeds=[0]), member(flow, feeds=[0]), member(flow, 0)]
        await store.enqueue(tasks, flow)
        (stale,) = await take(store, lease=0.02)
        await lapsed(store, [stale])
        await store.recover(10)
        (task,) = await take(store)
        assert task.id == stale.id
        assert await store.finish([outcome("failed", stale)]) == [False]
        told = outcome("succeeded", task)
        assert await store.finish([told, told]) == [True, False]
        assert await store.finish([told]) == [False]
        (gate,) = (await flow_of(store, flow)).gates
        assert (gate.state, gate.unmet, gate.failed) == (GateState.SHUT, 1, 0)

    @with_flows
    async def test_many_behind_one_gate_are_all_released_and_each_is_claimed_once(self, store: Storage) -> None:
        flow = new_flow(2)
        tasks = [member(flow, feeds=[0]), *(member(flow, 0, [1]) for _ in range(MANY)), member(flow, 1)]
        await store.enqueue(tasks, flow)
        await end_one(store)
        seen: list[str] = []
        while len(seen) < MANY:
            claimed = await take(store, 100)
            assert claimed, "some are never released"
            seen += [task.id for task in claimed]
            assert (await record(store, tasks[-1].id)).state is BLOCKED
            await store.finish([outcome("succeeded", task) for task in claimed])
        assert seen == [task.id for task in tasks[1:-1]], "each once, in the order of enqueueing"
        assert (await end_one(store)).id == tasks[-1].id
        assert (await flow_of(store, flow)).finished_at is not None

    @with_flows
    async def test_a_long_chain_whose_first_is_cancelled_ends(self, store: Storage) -> None:
        length = LINKS
        flow = new_flow(length)
        links = [member(flow, n - 1 if n else None, [n]) for n in range(length)]
        step = min(store.limits.atomic_tasks or length, (store.limits.flow_step or 6 * length) // 6)
        for start in range(0, length, step):
            await store.enqueue(links[start : start + step], evolve(flow, gates=flow.gates[start : start + step]))
        await store.cancel([links[0].id])
        steps = 0
        while await store.settle(1000):
            steps += 1
            assert steps < 20 * max(1, length // 1250)
        ended = await flow_of(store, flow)
        assert (ended.counts[CANCELLED], ended.finished_at is not None) == (length, True)
        last = await record(store, links[-1].id)
        assert last.error is not None
        assert last.error.message.startswith(f"task {links[0].id}")

    @with_flows
    async def test_what_is_left_is_worked_off_by_claims(self, store: Storage) -> None:
        flow = new_flow()
        await store.enqueue([member(flow, feeds=[0]), *(member(flow, 0) for _ in range(MANY))], flow)
        await end_one(store, "failed")
        assert (await flow_of(store, flow)).counts[BLOCKED]
        await store.wait_for_work(["other"], 20)  # an idle worker, whatever it serves, goes on with it
        await take(store, queue="other")
        assert (await flow_of(store, flow)).counts[BLOCKED] == 0

    # Places, times, queues

    @with_flows
    async def test_a_released_task_stands_where_it_was_enqueued(self, store: Storage) -> None:
        _, _, second = await fan_in(store)
        younger = new_task()
        await end_one(store)
        await store.enqueue([younger])
        assert [task.id for task in await take(store, 2)] == [second, younger.id]

    @with_flows
    async def test_times_of_those_that_wait(self, store: Storage) -> None:
        flow = new_flow()
        tasks = [
            member(flow, feeds=[0]),
            member(flow, 0, run_at=timedelta(hours=1)),
            member(flow, 0, run_at=FAR),
            member(flow, 0, expires=timedelta(milliseconds=1)),
            member(flow, 0, run_at=timedelta(0)),
        ]
        ids = [task.id for task in tasks]
        await store.enqueue(tasks, flow)
        await later(store, 0.02)
        assert await states(store, ids[1:]) == [BLOCKED] * 4, "expiry is acted on when the gate opens"
        opened = await store.now()
        await end_one(store)
        assert await states(store, ids[1:]) == [SCHEDULED, SCHEDULED, CANCELLED, READY]
        assert (await record(store, ids[1])).run_at >= opened + timedelta(hours=1), "it counts from the opening"
        assert (await record(store, ids[2])).run_at == FAR

    @with_flows
    async def test_a_flow_over_several_queues_of_which_one_is_paused(self, store: Storage) -> None:
        flow = new_flow()
        first, second = member(flow, feeds=[0], queue="a"), member(flow, 0, queue="b")
        await store.enqueue([first, second], flow)
        await store.pause("b")
        await end_one(store, queue="a")
        assert await take(store, queue="b") == []
        assert await counts(store, "b") == {READY: 1}
        await store.resume("b")
        assert [task.id for task in await take(store, queue="b")] == [second.id]

    # Enqueueing

    @with_flows
    async def test_a_gate_without_inputs_is_open(self, store: Storage) -> None:
        flow = new_flow()
        callback = member(flow, 0)
        await store.enqueue([callback], flow)
        assert (await end_one(store)).id == callback.id
        assert (await flow_of(store, flow)).finished_at is not None

    @with_flows
    async def test_the_same_call_twice_counts_nothing_twice(self, store: Storage) -> None:
        flow = new_flow()
        tasks = [member(flow, feeds=[0]), member(flow, 0)]
        assert await store.enqueue(tasks, flow) == [Enqueued(task.id, True) for task in tasks]
        for left in (1, 0):
            assert await store.enqueue(tasks, flow) == [Enqueued(task.id, False) for task in tasks]
            assert (await flow_of(store, flow)).gates[0].unmet == left
            await end_one(store)
        ended = await flow_of(store, flow)
        assert (ended.finished_at is not None, ended.counts[SUCCEEDED]) == (True, 2)

    @with_flows
    async def test_a_key_that_a_live_flow_holds_refuses_the_whole(self, store: Storage) -> None:
        holder, other = new_flow(0, unique="nightly"), new_flow(0, unique="nightly")
        (first,) = (member(holder),)
        await store.enqueue([first], holder)
        refused = [member(other), member(other)]
        assert await store.enqueue(refused, other) == [Enqueued(holder.id, False)] * 2
        assert await store.get_flows([other.id]) == [None]
        assert await states(store, [task.id for task in refused]) == [None, None]
        await end_one(store)
        assert [one.created for one in await store.enqueue(refused, other)] == [True, True]

    @with_flows
    async def test_what_cannot_be_is_refused_whole(self, store: Storage) -> None:
        flow, other = new_flow(2), new_flow(1)
        good = member(flow)
        for bad in (
            member(flow, 0, [0]),
            member(flow, 1, [0]),
            member(flow, 7),
            member(flow, feeds=[7]),
            member(flow, unique="key"),
            member(other),
        ):
            with pytest.raises(ValueError, match=r".+"):
                await store.enqueue([good, bad], flow)
        with pytest.raises(ValueError, match=flow.id):
            await store.enqueue([good])
        assert await store.get_flows([flow.id]) == [None]
        assert await store.stats() == []

    @with_flows
    async def test_one_id_in_and_beside_a_flow_is_one_task(self, store: Storage) -> None:
        await store.enqueue([], flow := new_flow())
        task = member(flow)
        assert await store.enqueue([task, new_task(id=task.id)]) == [Enqueued(task.id, True), Enqueued(task.id, False)]
        assert [taken.id for taken in await take(store, 5)] == [task.id]
        assert (await record(store, task.id)).flow == flow.id

    @with_flows
    async def test_a_running_input_adds_a_sibling_and_a_closed_gate_takes_none(self, store: Storage) -> None:
        flow, _, last = await fan_in(store)
        (running,) = await take(store)
        sibling = member(flow, feeds=[0])
        assert await store.enqueue([sibling]) == [Enqueued(sibling.id, True)]
        await store.finish([outcome("succeeded", running)])
        assert (await record(store, last)).state is BLOCKED
        await end_one(store)
        assert (await record(store, last)).state is READY
        late, beside = member(flow, feeds=[0]), member(flow, 0)
        with pytest.raises(FlowClosed, match="open"):
            await store.enqueue([apart := new_task(), late, beside])
        assert await states(store, [apart.id, late.id, beside.id]) == [None, None, None]
        assert await store.enqueue([sibling]) == [Enqueued(sibling.id, False)], "a repeated call is none"
        await store.enqueue([beside])
        assert (await record(store, beside.id)).state is READY

    @with_flows
    async def test_what_is_added_behind_a_broken_gate_ends(self, store: Storage) -> None:
        flow, first, _ = await fan_in(store)
        await store.cancel([first])
        late = member(flow, 0)
        await store.enqueue([late])
        await settled(store)
        assert (await record(store, late.id)).state is CANCELLED
        with pytest.raises(FlowClosed, match="broken"):
            await store.enqueue([member(flow, feeds=[0])])

    # Building in parts

    @with_flows
    async def test_nothing_runs_before_the_hold_is_released(self, store: Storage) -> None:
        gates = (NewGate(n=0, rank="0", hold=True), NewGate(n=1, rank="1"))
        flow = NewFlow(id=new_id(), gates=gates, hold_ttl=HELD)
        first, second = member(flow, 0, [1]), member(flow, 1)
        await store.enqueue([first], flow)
        assert await take(store, 5) == []
        await store.enqueue([second], flow)
        assert (await flow_of(store, flow)).finished_at is None
        assert [await store.release_hold(flow.id, 0) for _ in range(2)] == [True, False]
        assert (await flow_of(store, flow)).hold_until is None
        assert [(await end_one(store)).id for _ in range(2)] == [first.id, second.id]

    @with_flows
    async def test_what_a_builder_abandons_ends_and_nothing_of_it_runs(self, store: Storage) -> None:
        flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0", hold=True), NewGate(n=1, rank="1")), hold_ttl=0.02)
        tasks = [member(flow, 0, [1]), member(flow, 1, feeds=[])]
        await store.enqueue(tasks, flow)
        await later(store, 0.05)
        await store.recover(10)
        await settled(store)
        assert await take(store, 5) == []
        ended = await flow_of(store, flow)
        assert (ended.finished_at is not None, ended.counts[CANCELLED]) == (True, 2)
        task = await record(store, tasks[1].id)
        assert task.error is not None
        assert "not built" in task.error.message
        with pytest.raises(FlowClosed):
            await store.enqueue([member(flow, feeds=[0])], flow)
        assert await store.release_hold(flow.id, 0) is False

    # Control

    @with_flows
    async def test_a_member_that_is_retried_counts_again(self, store: Storage) -> None:
        flow, first, second = await fan_in(store)
        await end_one(store, "failed")
        assert await store.retry([second]) == [False], "it did not run: it is revived with the one that failed"
        assert await store.retry([first]) == [True]
        await settled(store)
        assert await states(store, [first, second]) == [READY, BLOCKED]
        revived = await flow_of(store, flow)
        assert (revived.gates[0].state, revived.gates[0].unmet, revived.finished_at) == (GateState.SHUT, 1, None)
        assert [(await end_one(store)).id for _ in range(2)] == [first, second]
        assert (await record(store, second)).error is None

    @with_flows
    async def test_a_flow_whose_key_another_has_by_now_is_not_retried(self, store: Storage) -> None:
        first, second, third = (new_flow(unique="key") for _ in range(3))
        await store.enqueue([member(first, feeds=[0])], first)
        failed = await end_one(store, "failed")
        await store.enqueue([other := member(second, feeds=[0])], second)
        assert await store.retry([failed.id]) == [False]
        assert await store.retry_flow(first.id) == 0
        with pytest.raises(FlowClosed):
            await store.enqueue([member(first)])
        assert (await record(store, failed.id)).state is FAILED
        assert (await end_one(store)).id == other.id
        assert await store.retry([failed.id]) == [True]
        assert await store.enqueue([member(third, feeds=[0])], third) == [Enqueued(first.id, False)]
        assert (await end_one(store)).id == failed.id
        assert (await flow_of(store, first)).finished_at is not None

    @with_flows
    async def test_behind_an_open_gate_nothing_runs_again(self, store: Storage) -> None:
        _, first, second = await fan_in(store, needs_success=False)
        await end_one(store, "failed")
        await end_one(store)
        assert await store.retry([first]) == [True]
        assert (await end_one(store)).id == first
        assert await take(store, 5) == []
        assert (await record(store, second)).attempt == 1

    @with_flows
    async def test_a_retry_that_succeeds_before_all_are_revived_loses_none(self, store: Storage) -> None:
        flow = new_flow()
        first, behind = member(flow, feeds=[0]), [member(flow, 0) for _ in range(MANY)]
        await store.enqueue([first, *behind], flow)
        await end_one(store, "failed")
        await settled(store)
        await store.retry([first.id])
        assert (await flow_of(store, flow)).counts[CANCELLED], "the store revived all at once; take more"
        (task,) = await take(store)
        await store.finish([outcome("succeeded", task)])
        await settled(store)
        assert (await flow_of(store, flow)).counts == {**dict.fromkeys(TaskState, 0), SUCCEEDED: 1, READY: MANY}

    @with_flows
    async def test_a_cancelled_flow_ends_and_takes_nothing(self, store: Storage) -> None:
        flow = new_flow()
        tasks = [*(member(flow, feeds=[0]) for _ in range(3)), member(flow, feeds=[0], run_at=FAR), member(flow, 0)]
        await store.enqueue(tasks, flow)
        (running,) = await take(store)
        assert [await store.cancel_flow(flow.id) for _ in range(2)] == [True, False]
        await settled(store)
        assert await states(store, [task.id for task in tasks]) == [TaskState.RUNNING, *[CANCELLED] * 4]
        assert await store.heartbeat("w", [Lease(running.id, running.delivery)], HELD) == [LeaseState.CANCEL_REQUESTED]
        with pytest.raises(FlowClosed, match="cancelled"):
            await store.enqueue([member(flow)])
        assert await store.retry([tasks[1].id]) == [False]
        assert (await flow_of(store, flow)).finished_at is None
        await store.finish([outcome("cancelled", running)])
        ended = await flow_of(store, flow)
        assert (ended.cancelled, ended.finished_at is not None) == (True, True)
        assert await store.cancel_flow(new_id()) is False

    @with_flows
    async def test_retrying_a_flow_retries_what_failed_and_takes_its_cancellation_back(self, store: Storage) -> None:
        flow = new_flow(2)
        tasks = [member(flow, feeds=[0]), member(flow, feeds=[0]), member(flow, 0, [1]), member(flow, 1)]
        await store.enqueue(tasks, flow)
        await end_one(store)
        await end_one(store, "failed")
        await settled(store)
        assert await store.retry_flow(flow.id) == 1
        await settled(store)
        assert await states(store, [task.id for task in tasks]) == [SUCCEEDED, READY, BLOCKED, BLOCKED]
        await store.cancel_flow(flow.id)
        await settled(store)
        assert await store.retry_flow(flow.id) == 3
        await settled(store)
        for task in tasks[1:]:
            assert (await end_one(store)).id == task.id
        ended = await flow_of(store, flow)
        assert (ended.cancelled, ended.counts[SUCCEEDED]) == (False, 4)
        assert await store.retry_flow(new_id()) == 0

    @with_flows
    async def test_what_runs_whatever_became_of_others_waits_for_them_again_when_a_cancellation_is_taken_back(
        self, store: Storage
    ) -> None:
        flow = new_flow()
        tasks = [*(member(flow, feeds=[Feed(0, needs_success=False)]) for _ in range(3)), member(flow, 0)]
        await store.enqueue(tasks, flow)
        (running,) = await take(store)
        await store.cancel_flow(flow.id)
        await store.finish([outcome("succeeded", running)])
        await settled(store)
        assert await states(store, [task.id for task in tasks]) == [SUCCEEDED, *[CANCELLED] * 3]
        assert await store.retry_flow(flow.id) == 3
        await settled(store)
        assert await states(store, [task.id for task in tasks]) == [SUCCEEDED, READY, READY, BLOCKED]
        assert [(await end_one(store)).id for _ in range(3)] == [task.id for task in tasks[1:]]
        assert (await flow_of(store, flow)).counts[SUCCEEDED] == 4

    @with_flows
    @pytest.mark.parametrize("needs_success", [True, False])
    async def test_a_cancellation_is_taken_back_while_it_is_worked_off(
        self, store: Storage, needs_success: bool
    ) -> None:
        flow = new_flow(2)
        fed = [member(flow, feeds=[Feed(0, needs_success)]) for _ in range(MANY)]
        behind = [member(flow, 0, [Feed(1, needs_success)]), member(flow, 1)]
        await store.enqueue([behind[1], *fed, behind[0]], flow)
        ids = [task.id for task in fed]
        for steps in range(3):
            await store.cancel_flow(flow.id)
            for _ in range(steps):
                await store.settle(100)
            cancelled = (await flow_of(store, flow)).counts[CANCELLED]
            assert cancelled, "nothing was cancelled yet"
            assert await store.retry_flow(flow.id) == cancelled
            await settled(store)
            assert await states(store, [task.id for task in behind]) == [BLOCKED] * 2
            assert (await flow_of(store, flow)).counts[READY] == MANY
        while (await flow_of(store, flow)).counts[BLOCKED] == 2:
            claimed = await take(store, 100)
            assert claimed, "some are never claimed"
            assert {task.id for task in claimed} <= set(ids)
            await store.finish([outcome("succeeded", task) for task in claimed])
        assert [(await end_one(store)).id for _ in range(2)] == [task.id for task in behind]
        ended = await flow_of(store, flow)
        assert (ended.counts[SUCCEEDED], ended.finished_at is not None) == (MANY + 2, True)

    @with_flows
    async def test_what_runs_is_no_longer_asked_to_stop_when_a_cancellation_is_taken_back(self, store: Storage) -> None:
        flow, first, second = await fan_in(store)
        (running,) = await take(store)
        lease = [Lease(running.id, running.delivery)]
        await store.cancel_flow(flow.id)
        assert await store.heartbeat("w", lease, HELD) == [LeaseState.CANCEL_REQUESTED]
        assert await store.retry_flow(flow.id) == 1
        assert await store.heartbeat("w", lease, HELD) == [LeaseState.HELD]
        await store.cancel([first])
        await store.retry_flow(flow.id)
        assert await store.heartbeat("w", lease, HELD) == [LeaseState.CANCEL_REQUESTED], "that was asked for by itself"
        await store.finish([outcome("succeeded", running)])
        assert (await end_one(store)).id == second

    # Retention

    @with_flows
    async def test_members_are_kept_as_long_as_their_flow(self, store: Storage) -> None:
        flow = new_flow(2, result_ttl=0.0)
        tasks = [member(flow, n - 1 if n else None, [n] if n < 2 else [], result_ttl=0.0) for n in range(3)]
        ids = [task.id for task in tasks]
        await store.enqueue(tasks, flow)
        for _ in range(3):
            assert await store.prune(100) == 0
            assert None not in await states(store, ids)
            await end_one(store)
        await later(store, 0.01)
        assert await store.prune(2) == 2
        assert await store.prune(100) == 1
        await store.prune(100)
        assert await states(store, ids) == [None] * 3
        assert await store.get_flows([flow.id]) == [None]

    # All of it, in any order

    @with_flows
    async def test_random_flows_come_to_their_ends(self, store: Storage) -> None:
        for seed in range(EPISODES):
            await FlowDriver(store, random.Random(seed)).run()
