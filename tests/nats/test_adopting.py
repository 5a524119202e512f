"""Records of another store: what is told of them at each moment, and what is left where it ended in between."""

from __future__ import annotations

from datetime import timedelta

import nats
import pytest
from attrs import evolve

from omniq.errors import PayloadTooLarge, StorageUnavailable
from omniq.flow import Flow
from omniq.storage import Adoption, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Failed, StoredTask, TaskError, TaskState
from omniq.testing.contract.adopting import all_of, of_all_kinds
from omniq.testing.contract.flows import end_one, fan_in, member, new_flow
from omniq.testing.contract.steps import add, moved, outcome, record, states, take
from omniq_nats import claiming
from omniq_nats.adopting import Adopter
from omniq_nats.storage import NatsStorage
from tests.nats.support import fresh, opened
from tests.servers.nats import NatsServer

STORED, PRESENT = Adoption.STORED, Adoption.PRESENT
SUCCEEDED, FAILED, CANCELLED, READY = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.READY


async def killed(self: Adopter, queue: str) -> None:
    """Stand for a client that is killed once the records are stored, before they are sorted in."""
    raise StorageUnavailable("killed")


async def half_adopted(
    store: NatsStorage, tasks: list[StoredTask], flows: list[Flow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have a client that is killed on its way adopt records."""
    with monkeypatch.context() as patch:
        patch.setattr(Adopter, "_sort_in", killed)
        with pytest.raises(StorageUnavailable, match="killed"):
            await store.adopt(tasks, flows)


async def counted(store: Storage) -> dict[str, dict[TaskState, int]]:
    """Return the counts of all queues."""
    return {one.queue: dict(one.counts) for one in await store.stats()}


async def test_one_who_is_killed_on_the_way_leaves_records_that_are_right(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(fresh(nats_server.url)) as source, opened(fresh(nats_server.url)) as target:
        await of_all_kinds(source)
        whole = await all_of(source)
        await half_adopted(target, whole, [], monkeypatch)
        assert await all_of(target) == whole
        assert await target.get([task.id for task in whole]) == whole
        ended = {task.id for task in whole if task.state.is_final}
        assert await target.wait_finished([task.id for task in whole], 0) == ended
        # What is asked for before they are sorted in counts once.
        (failed,) = [task.id for task in whole if task.state is FAILED]
        (succeeded,) = [task.id for task in whole if task.state is SUCCEEDED]
        (waits,) = [task.id for task in whole if task.queue == "retry later"]
        assert await target.retry([failed, succeeded]) == [True, False]
        assert await target.delete([succeeded]) == [True]
        assert await target.cancel([waits]) == [True]
        assert await target.adopt([task for task in whole if task.id != succeeded]) == [PRESENT] * (len(whole) - 1)
        left = await record(target, waits)
        assert (left.state, left.error, left.attempt) == (CANCELLED, (await record(source, waits)).error, 1)
        assert await source.retry([failed]) == [True]
        assert await source.delete([succeeded]) == [True]
        assert await source.cancel([waits]) == [True]
        assert await counted(target) == await counted(source)
        assert await target.retry([waits]) == [True]
        for task_id, queue in ((failed, "failed"), (waits, "retry later")):
            (again,) = await take(target, queue=queue)
            assert (again.id, again.attempt, again.delivery) == (task_id, 1, 2)


async def test_a_flow_goes_on_though_its_tasks_are_not_sorted_in(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(fresh(nats_server.url)) as source, opened(fresh(nats_server.url)) as target:
        flow = new_flow(1)
        tasks = [member(flow, feeds=[0]), member(flow, feeds=[0]), member(flow, 0)]
        await source.enqueue(tasks, flow)
        await end_one(source)
        (theirs,) = await source.get_flows([flow.id])
        assert theirs is not None
        await half_adopted(target, await all_of(source), [theirs], monkeypatch)
        assert await target.get_flows([flow.id]) == [theirs]
        for task in tasks[1:]:
            assert (await end_one(target)).id == task.id
        (over,) = await target.get_flows([flow.id])
        assert over is not None
        assert over.finished_at is not None
        assert over.counts[SUCCEEDED] == 3


async def test_what_ended_as_its_gate_broke_is_blocked_again_by_a_retry(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as source, opened(fresh(nats_server.url)) as target:
        flow, first, last = await fan_in(source)
        await end_one(source, "failed")
        await source.settle(100)
        await moved(source, target)
        assert await target.retry([first]) == [True]
        await target.settle(100)
        assert await states(target, [first, last]) == [READY, TaskState.BLOCKED]
        page = await target.list_tasks(TaskQuery(state=TaskState.BLOCKED))
        assert [task.id for task in page.tasks] == [last]
        assert [(await end_one(target)).id for _ in range(2)] == [first, last]
        (over,) = await target.get_flows([flow.id])
        assert over is not None
        assert over.finished_at is not None


async def test_what_comes_once_its_gate_is_whole_again_is_blocked_again(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as source, opened(fresh(nats_server.url)) as target:
        flow, first, last = await fan_in(source)
        await end_one(source, "failed")
        await source.settle(100)
        (theirs,) = await source.get_flows([flow.id])
        assert theirs is not None
        await target.adopt([await record(source, first)], [theirs])
        assert await target.retry([first]) == [True]
        assert await target.adopt([await record(source, last)]) == [STORED]
        await target.settle(100)
        assert await states(target, [first, last]) == [READY, TaskState.BLOCKED]
        assert [(await end_one(target)).id for _ in range(2)] == [first, last]


async def test_what_is_large_is_kept_apart_and_moved_whole(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as source, opened(fresh(nats_server.url)) as target:
        await add(source, queue="a", body=b"b" * 100_000)
        (task,) = await take(source, queue="a")
        await source.finish([evolve(outcome("succeeded", task), result=b"\xff" * 50_000)])  # type: ignore[call-arg]  # a Succeeded
        await add(source, queue="b")
        (task,) = await take(source, queue="b")
        error = TaskError(type="E", message="m", traceback="t" * 9000)
        await source.finish([Failed(id=task.id, delivery=task.delivery, error=error, attempt_log="l" * 5000)])
        await add(source, queue="c")
        (task,) = await take(source, queue="c")
        retried = evolve(outcome("retry later", task), error=error, attempt_log="l" * 5000)  # type: ignore[call-arg]  # a Retry
        await source.finish([retried])
        whole = await all_of(source)
        for _ in range(2):
            await moved(source, target)
            assert await all_of(target) == whole
        bare = [(await each.list_tasks(TaskQuery(bare=True))).tasks for each in (source, target)]
        assert bare[0] == bare[1]


async def test_more_than_a_state_takes_at_a_time_is_sorted_in_before_the_answer(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "FOLDED", 3)
    async with opened(fresh(nats_server.url)) as store:
        at = await store.now()
        tasks = []
        for number in range(600):
            since = at - timedelta(seconds=number)
            waits = StoredTask(id=new_id(), queue="work", name="test.task", body=b"[]", created_at=since, run_at=since)
            ended = evolve(waits, state=SUCCEEDED, finished_at=at, result_payload=b"r" * 500)
            tasks.append(waits if number % 2 else ended)
        assert await store.adopt(tasks) == [STORED] * 600
        (stats,) = await store.stats()
        assert (stats.counts[READY], stats.counts[SUCCEEDED]) == (300, 300)
        claimed = [task.id for _ in range(3) for task in await take(store, 100)]
        assert claimed == [task.id for task in reversed(tasks) if task.state is READY]


async def test_more_than_an_atomic_batch_takes_is_stored_and_ended_in_parts(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as source, opened(fresh(nats_server.url)) as target:
        flow = new_flow(0)
        await source.enqueue([member(flow)], flow)
        (theirs,), (task,) = await source.get_flows([flow.id]), await all_of(source)
        assert theirs is not None
        flows = [evolve(theirs, id=new_id()) for _ in range(510)]
        tasks = [evolve(task, id=new_id(), flow=one.id) for one in flows]
        assert await target.adopt(tasks, flows) == [STORED] * 1020
        claimed = await take(target, 600)
        assert [one.id for one in claimed] == [one.id for one in tasks]
        assert await target.finish([outcome("succeeded", one) for one in claimed]) == [True] * 510
        ended = await target.get_flows([one.id for one in flows])
        assert all(one is not None and one.finished_at is not None for one in ended)


async def test_a_task_that_is_too_large_is_refused_before_any_is_stored(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as store:
        at = await store.now()
        small = StoredTask(id=new_id(), queue="work", name="test.task", body=b"[]", created_at=at, run_at=at)
        with pytest.raises(PayloadTooLarge, match="max_payload"):
            await store.adopt([small, evolve(small, id=new_id(), body=b"x" * 2_000_000)])
        assert await store.stats() == []


@pytest.mark.parametrize("is_killed", [False, True])
async def test_where_the_state_of_a_queue_is_lost_what_was_adopted_is_what_it_was(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, *, is_killed: bool
) -> None:
    url = fresh(nats_server.url)
    async with opened(fresh(nats_server.url)) as source, opened(url) as target:
        await of_all_kinds(source)
        whole, counts = await all_of(source), await counted(source)
        if is_killed:
            await half_adopted(target, whole, [], monkeypatch)
        else:
            await target.adopt(whole)
        assert target._opened is not None
        names = target._opened.state_store.names
        client = await nats.connect(nats_server.url)
        for queue in counts:
            await client.jetstream().purge_stream(names.stream, subject=names.queue_state(queue))
        await client.close()
    async with opened(url) as other:
        for queue in counts:
            assert await other.pause(queue)
        assert await all_of(other) == whole
        assert await counted(other) == counts
        failed = await other.list_tasks(TaskQuery(state=FAILED))
        assert [task.id for task in failed.tasks] == [task.id for task in whole if task.state is FAILED]
        for queue in counts:
            assert await other.purge(queue) == sum(counts[queue].values())
