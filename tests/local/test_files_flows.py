"""Flows in the files of a store: what is seen of them there, and what becomes of them as a machine goes down."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from omniq.flow import Flow, NewFlow, NewGate
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.task import Failed, Feed, NewTask, StoredTask, Succeeded, TaskError, TaskState
from omniq_local.files import FileStorage, state_folders
from tests.local.files_support import check_whole, opened, succeed, take
from tests.local.support import Clock, new_task
from tests.local.test_files_repair import TOOLS, start_machine_anew

SHUT, OPENED, BROKEN, HELD = range(4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


def flow_of(*, held: bool = False, unique: str | None = None) -> NewFlow:
    gates = tuple(NewGate(n=n, rank=f"{n}", hold=held and n == 0) for n in range(3))
    return NewFlow(id=new_id(), gates=gates, unique=unique)


def chain(flow: NewFlow, *, behind: int | None = None) -> list[NewTask]:
    """Return three tasks of which each needs the one before."""
    first = behind or 0
    return [
        new_task(flow=flow.id, behind=behind, feeds=(Feed(first + (behind is not None)),)),
        new_task(flow=flow.id, behind=first + (behind is not None), feeds=(Feed(2),)),
        new_task(flow=flow.id, behind=2),
    ]


async def fill(store: FileStorage) -> list[str]:
    """Have a flow that runs, one that has succeeded, one that failed, and one that is still being built."""
    flows = [flow_of(unique="k"), flow_of(), flow_of(), flow_of(held=True)]
    for flow in flows:
        await store.enqueue(chain(flow, behind=0 if flow is flows[HELD] else None), flow)
    running, opened_, broken = await take(store, 3)
    await store.finish(
        [
            Succeeded(id=opened_.id, delivery=1, result=b"1"),
            Failed(id=broken.id, delivery=1, error=TaskError(type="E", message="m")),
        ]
    )
    for _ in range(2):
        await succeed(store, await take(store))
    assert running.flow == flows[SHUT].id
    return [flow.id for flow in flows]


async def shown(store: Storage, ids: list[str]) -> list[Flow]:
    return [flow for flow in await store.get_flows(ids) if flow is not None]


async def to_the_end(store: FileStorage, running: StoredTask) -> None:
    await succeed(store, [running])
    while tasks := await take(store, 9):
        await succeed(store, tasks)


def test_a_listing_of_a_flow_s_folder_tells_how_far_it_has_come(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            flow = flow_of()
            await store.enqueue(chain(flow), flow)
            await succeed(store, await take(store))
            await take(store)

    asyncio.run(scenario())
    (folder,) = (root / "omniq/flows/members").glob("*/*")
    assert sorted(path.name.partition("-")[0] for path in folder.iterdir()) == ["0.running", "2.blocked", "_.succeeded"]


@pytest.mark.parametrize("copy", [None, *TOOLS], ids=lambda copy: getattr(copy, "__name__", "the same folder"))
def test_flows_are_what_they_were_after_a_repair(root: Path, tmp_path: Path, copy: object) -> None:
    async def scenario() -> None:
        async with opened(root, clock=Clock()) as store:
            ids = await fill(store)
            before, tasks = await shown(store, ids), await check_whole(store, root)
        start_machine_anew(root)
        used = root
        if callable(copy):
            used = tmp_path / "copy"
            copy(root, used)
        async with opened(used, clock=Clock()) as store:
            assert await shown(store, ids) == before
            assert await check_whole(store, used) == tasks
            other = flow_of(unique="k")
            assert (await store.enqueue(chain(other), other))[0].id == ids[SHUT]
            (running,) = [task for task in tasks.values() if task.state is TaskState.RUNNING]
            await to_the_end(store, running)
            await check_whole(store, used)

    asyncio.run(scenario())


@pytest.mark.parametrize("lost", ["flows", "flows/ids", "flows/gates", "flows/members", "flows/due", "flows/kept"])
def test_no_flow_hangs_of_which_something_is_lost(root: Path, lost: str) -> None:
    async def scenario() -> None:
        async with opened(root, clock=Clock()) as store:
            ids = await fill(store)
            before, tasks = await shown(store, ids), await check_whole(store, root)
        start_machine_anew(root)
        shutil.rmtree(root / "omniq" / lost)
        clock = Clock()
        async with opened(root, clock=clock) as store:
            found = await shown(store, ids)
            assert [flow.counts for flow in found] == [flow.counts for flow in before]
            await check_whole(store, root)
            (running,) = [task for task in tasks.values() if task.state is TaskState.RUNNING]
            await to_the_end(store, running)
            clock.advance(61)
            await store.recover(10)
            ends = await shown(store, ids)
            assert all(flow.finished_at is not None for flow in ends)
            assert [flow.counts[TaskState.SUCCEEDED] for flow in ends] == [3, 3, 0, 0], "nothing ran before its time"
            await check_whole(store, root)
            clock.advance(90_000)
            while await store.prune(100):
                pass
            assert await store.get_flows(ids) == [None] * 4
            assert await check_whole(store, root) == {}

    asyncio.run(scenario())


def test_what_is_kept_with_its_flow_is_in_nobody_s_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_folders, "LIMIT", 4)
    clock = Clock()

    async def scenario() -> None:
        async with opened(root, clock=clock) as store:
            flow = flow_of()
            first = new_task(flow=flow.id, feeds=(Feed(0),))
            await store.enqueue([first, new_task(flow=flow.id, behind=0)], flow)
            await succeed(store, await take(store))
            for _ in range(30):
                await store.enqueue([new_task(result_ttl=50.0), new_task(flow=flow.id)])
                await succeed(store, await take(store, 3))
                clock.advance(1)
            await check_whole(store, root)
            clock.advance(100)
            assert await store.prune(1000) == 30, "those without a flow"
            left = await check_whole(store, root)
            assert len(left) == 32
            folders = list((root / "omniq/succeeded/q").iterdir())
            assert max(len(list(folder.iterdir())) for folder in folders) <= 5
            clock.advance(90_000)
            assert await store.prune(1000) == 32
            await store.prune(1000)
            assert await check_whole(store, root) == {}
            assert not list((root / "omniq").glob("flows/*/*/*"))

    asyncio.run(scenario())
