"""Moving from store to store: what is exported is imported, once, however often that is tried."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import pytest
from attrs import evolve

from omniq._client.moving import NotMoved, import_into
from omniq.errors import ConfigurationError, PayloadTooLarge
from omniq.flow import GateState
from omniq.limit import Debounce, Limit, Rate
from omniq.storage import Storage, StorageConfig, StorageLimits
from omniq.storage.ids import new_id
from omniq.task import StoredTask, TaskState
from omniq.testing import ManualClock
from omniq.testing.contract.adopting import all_of
from omniq.testing.contract.flows import end_one, flow_of, member, new_flow
from omniq.testing.contract.steps import add, new_task, outcome, record, states, take
from omniq_local.memory.storage import MemoryStorage
from tests.moving_support import bring, export, fill, opened, without_first


async def test_an_import_of_an_export_is_the_same_store_again() -> None:
    async with opened() as (source, target):
        await fill(source)
        lines = await export(source)
        moved = await bring(target, lines)
        counts = json.loads(lines[-1])["end"]
        assert moved.stored == Counter(counts)
        assert counts == {"paused": 2, "limit": 0, "flow": 2, "task": 15, "schedule": 2}
        assert await all_of(target) == await all_of(source)
        assert without_first(await export(target)) == without_first(lines)
        schedules = [[evolve(one, revision=0) for one in await each.get_schedules()] for each in (source, target)]
        assert schedules[0] == schedules[1]
        stats = [[(one.queue, one.counts, one.paused) for one in await each.stats()] for each in (source, target)]
        assert stats[0] == stats[1]


async def test_wherever_an_import_was_killed_a_second_one_completes_it() -> None:
    async with opened() as (source, _):
        await fill(source)
        lines = await export(source)
    for number in range(len(lines)):
        async with opened() as (target, _):
            with pytest.raises(NotMoved, match="cut off"):
                await bring(target, lines[:number])
            moved = await bring(target, lines)
            assert moved.stored + moved.present == Counter(json.loads(lines[-1])["end"])
            assert without_first(await export(target)) == without_first(lines)


async def test_a_flow_waits_for_the_end_of_the_import() -> None:
    clock = ManualClock()
    config = StorageConfig(scheme="memory", location="memory://", redacted="memory://")
    target = MemoryStorage(config, clock=clock)
    await target.open()
    async with opened() as (source, _):
        flow = new_flow(1)
        tasks = [member(flow, behind=0), member(flow, feeds=[0])]
        await source.enqueue(tasks, flow)
        lines = await export(source)
    begun = [line for line in lines if tasks[1].id.encode() not in line]
    with pytest.raises(NotMoved):
        await bring(target, begun[:-1])
    clock.advance(3600)
    await target.recover(100)
    assert (await flow_of(target, flow)).gates[0].state is GateState.SHUT
    await bring(target, lines)
    assert [(await end_one(target)).id for _ in range(2)] == [tasks[1].id, tasks[0].id]
    assert (await flow_of(target, flow)).finished_at is not None


async def test_a_line_that_cannot_be_read_is_named_and_what_stands_before_it_is_stored() -> None:
    async with opened() as (source, _):
        ids = await add(source, *(new_task() for _ in range(3)))
        lines = await export(source)
    task = json.loads(lines[2])
    wrong = {
        b"{\n": "line 3: ",
        b"[1]\n": "line 3: ",
        b'{"what": 1}\n': "line 3: .*what",
        json.dumps({"task": {**task["task"], "priority": "high"}}).encode() + b"\n": "line 3: its priority is 'high'",
        json.dumps({"task": {**task["task"], "state": "lost"}}).encode() + b"\n": "line 3: .*lost",
        json.dumps({"task": {"id": ids[1]}}).encode() + b"\n": "line 3: ",
    }
    for line, message in wrong.items():
        async with opened() as (target, _):
            with pytest.raises(NotMoved, match=message):
                await bring(target, [*lines[:2], line, *lines[3:]])
            assert await states(target, ids) == [TaskState.READY, None, None]


async def test_what_is_no_whole_export_of_a_known_format_is_refused() -> None:
    async with opened() as (source, target):
        await add(source, *(new_task() for _ in range(2)))
        lines = await export(source)
        newer = lines[0].replace(b'"format":1', b'"format":2')
        for wrong, message in (
            ([b"id,name\n", *lines[1:]], "line 1"),
            ([b"{}\n", *lines[1:]], "line 1: this is no file that omniq export wrote"),
            ([newer, *lines[1:]], "line 1: its format is 2, .*newer"),
        ):
            with pytest.raises(NotMoved, match=message):
                await bring(target, wrong)
            assert await target.stats() == []
        with pytest.raises(NotMoved, match=r"line 3: .*lines are missing"):
            await bring(target, [lines[0], lines[1], lines[3]])
        with pytest.raises(NotMoved, match="line 5: there is more"):
            await bring(target, [*lines, *lines])
        assert (await import_into(target, lines[:2], pytest.fail, partial=True)).present["task"] == 1


async def test_running_tasks_are_named_unless_they_are_exported_as_ready() -> None:
    async with opened() as (source, target):
        (task_id,) = await add(source)
        (stopped,) = await add(source)
        held = (await take(source, 2))[0]
        await source.cancel([stopped])
        with pytest.raises(NotMoved, match=f"2 tasks are running: .*{task_id}.* on worker w.*--as-ready"):
            await export(source)
        await source.heartbeat("w", [], 60)
        with pytest.raises(NotMoved, match=r"without workers.*: w;"):
            await export(source, as_ready=True)
        await source.heartbeat("w", [], 0)
        await bring(target, await export(source, as_ready=True))
        task = await record(target, task_id)
        assert (task.state, task.attempt, task.delivery) == (TaskState.READY, 0, 1)
        assert await target.finish([outcome("succeeded", held)]) == [False]
        assert (await record(target, stopped)).state is TaskState.CANCELLED


async def test_what_cannot_be_stored_is_named_and_the_others_are_stored() -> None:
    async with opened() as (source, target):
        (taken,) = await add(source, unique="key")
        (other,) = await add(source)
        await add(target, unique="key")
        refused: list[str] = []
        moved = await bring(target, await export(source), refused.append)
        assert (moved.stored["task"], moved.refused["task"]) == (1, 1)
        assert taken in refused[0]
        assert "unique key" in refused[0]
        assert await states(target, [taken, other]) == [None, TaskState.READY]


@pytest.mark.parametrize("kind", [ValueError, PayloadTooLarge])
async def test_one_that_the_store_cannot_hold_is_named_alone(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as (source, target):
        ids = await add(source, *(new_task() for _ in range(7)))
        adopt = target.adopt

        async def picky(tasks: Sequence[StoredTask], flows: Sequence[object] = ()) -> object:
            if any(task.id == ids[3] for task in tasks):
                raise kind("it is too large")
            return await adopt(tasks)

        monkeypatch.setattr(target, "adopt", picky)
        refused: list[str] = []
        moved = await bring(target, await export(source), refused.append)
        assert (moved.stored["task"], moved.refused["task"]) == (6, 1)
        assert "too large" in refused[0]
        assert ids[3] in refused[0]


async def test_a_store_that_cannot_adopt_says_so_before_anything_is_stored() -> None:
    class Plain(MemoryStorage):
        adopt = Storage.adopt

    async with opened() as (source, _):
        await fill(source)
        target = Plain(StorageConfig(scheme="memory", location="memory://", redacted="memory://", namespace=new_id()))
        await target.open()
        with pytest.raises(ConfigurationError, match="Plain cannot adopt"):
            await bring(target, await export(source))
        assert await target.stats() == []
        await target.close()


async def test_the_order_of_claims_is_the_same_after_a_move() -> None:
    async with opened() as (source, target):
        for priority in (0, 3, 0, -1, 3, 0):
            await add(source, *(new_task(priority=priority) for _ in range(120)))
        given_back = await take(source, 5)
        await source.finish([outcome("released", task) for task in given_back])
        await bring(target, await export(source))
        claimed = [[task.id for task in await take(each, 1000)] for each in (source, target)]
        assert claimed[0] == claimed[1]
        assert len(claimed[0]) == 720


async def test_limits_are_moved_and_hold_for_the_tasks_that_are() -> None:
    async with opened() as (source, target):
        # A key may have any name, also one that means something within a record.
        rate = Rate(5, per=60, burst=2)
        per_key = Limit(concurrency=1, rate=rate)
        await source.put_limit(Limit(queue="work", per_key=per_key, weights={"in": 4, "ä": 0.5}, app="shop:queue"))
        await source.put_limit(Limit(name="api", concurrency=1))
        limit = await source.put_limit(Limit(name="api", concurrency=2, declared=True))
        ids = await add(source, new_task(key="a"), new_task(key="a"), new_task(limit="api", key="b"))
        (debounced,) = await add(source, new_task(unique="k", debounce=Debounce("k", wait=3600)))
        lines = await export(source)
        counts = json.loads(lines[-1])["end"]
        assert (counts["limit"], counts["task"]) == (2, 4)

        assert (await bring(target, lines)).stored == Counter(counts)
        assert (await bring(target, lines)).present["limit"] == 2

        assert limit is not None
        moved = await target.get_limits()
        assert [evolve(one, revision=0) for one in moved] == [
            evolve(one, revision=0) for one in await source.get_limits()
        ]
        assert without_first(await export(target)) == without_first(lines)
        assert [(await record(target, one)).limited for one in (*ids, debounced)] == [
            (await record(source, one)).limited for one in (*ids, debounced)
        ]
        assert sorted(task.key or "" for task in await take(target, 9)) == ["a", "b"]


@pytest.mark.parametrize("what", ["limit", "key", "debounce"])
async def test_a_store_without_limits_refuses_them_before_anything_is_stored(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as (source, target):
        ids = await add(source, new_task())
        if what == "limit":
            await source.put_limit(Limit(queue="work", concurrency=1))
        else:
            await add(source, new_task(key="a") if what == "key" else new_task(debounce=Debounce("k", 9), unique="k"))
        lines = await export(source)
        monkeypatch.setattr(MemoryStorage, "limits", StorageLimits(flows=True))
        with pytest.raises(ConfigurationError, match="MemoryStorage holds no limits"):
            await bring(target, lines)
        assert await states(target, ids) == [None]
