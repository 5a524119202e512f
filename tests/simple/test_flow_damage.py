"""Flows of which a task cannot be read: they come to their ends by themselves, on stores in files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from omniq.flow import Flow, NewFlow, NewGate
from omniq.plugins import default_plugins
from omniq.storage import Storage, flow_transitions
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import Feed, TaskState
from omniq.testing.contract import Spoil
from omniq.testing.contract.flow_driver import settled
from omniq.testing.contract.spoiling import Value
from omniq.testing.contract.steps import later, new_task, outcome, take
from tests.local.files_support import SpoiledFiles
from tests.local.sqlite_support import SpoiledRows
from tests.simple.test_conformance import SpoiledPairs


class SpoiledLines(SpoiledFiles):
    """Writes single fields of the files of tasks, too; None takes one away."""

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        if place == "file":
            return super().write(kind, name, place, value)
        data = super().read(kind, name)["file"]
        assert isinstance(data, bytes)
        head, status, _ = data.split(b"\n")
        changed = {**json.loads(head), place: value}
        lines = json.dumps({name: each for name, each in changed.items() if each is not None}).encode(), status, b""
        return super().write(kind, name, "file", b"\n".join(lines))


@contextlib.asynccontextmanager
async def opened(kind: str, path: Path) -> AsyncIterator[tuple[Storage, Spoil]]:
    """Return a store, and what damages its records."""
    name, root = "jobs.db" if kind in ("sqlite", "mystore") else "jobs", "/" if kind == "sqlite" else ""
    store = default_plugins().open_storage(parse_url(f"{kind}://{root}{path}/{name}"))
    table = "omniq.task" if kind == "sqlite" else "omniq_task"
    tables = {"task": (table, "id", None)}
    spoil: Spoil = SpoiledRows(path / name, tables)
    if kind == "lmdb":
        spoil = SpoiledPairs(f"{path}/jobs.omniq")
    elif kind == "file":
        spoil = SpoiledLines(path / name)
    await store.open()
    try:
        yield store, spoil
    finally:
        await store.close()


async def flow_of(store: Storage, flow_id: str) -> Flow:
    (flow,) = await store.get_flows([flow_id])
    assert flow is not None
    return flow


@pytest.mark.parametrize(
    ("kind", "place", "value", "at_once"),
    [
        ("mystore", "feeds", "[[", True),
        ("mystore", "tags", "[", True),
        ("mystore", "flow", "another", False),
        ("mystore", "feeds", None, False),
        ("mystore", "state", 99, False),
        ("sqlite", "feeds", "[[", True),
        ("sqlite", "options", "[", True),
        ("sqlite", "flow", "another", False),
        ("sqlite", "feeds", None, False),
        ("sqlite", "state", 99, False),
        ("lmdb", "c", b"[", True),
        ("lmdb", "f", b"\xff", False),
        ("lmdb", "f", b"", False),
        ("file", "feeds", "[[", True),
        ("file", "tags", 7, True),
        ("file", "file", b"\xff", True),
        ("file", "file", b"", True),
        ("file", "flow", "another", False),
        ("file", "feeds", None, False),
    ],
)
async def test_what_waits_for_a_task_that_cannot_be_read_ends_as_cancelled(
    kind: str, place: str, value: Value, at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not at_once:
        monkeypatch.setattr(flow_transitions, "AUDIT_SECONDS", 0.05)
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"), NewGate(n=1, rank="1")))
    bad = new_task(flow=flow.id, feeds=(Feed(0, needs_success=True),))
    good = new_task(flow=flow.id, feeds=(Feed(0, needs_success=True),))
    waiting = new_task(flow=flow.id, behind=0, feeds=(Feed(1, needs_success=True),))
    last = new_task(flow=flow.id, behind=1)
    async with opened(kind, tmp_path) as (store, spoil):
        await store.enqueue([bad, good, waiting, last], flow)
        assert spoil.write("task", bad.id, place, value)
        await store.finish([outcome("succeeded", task) for task in await take(store, 2)])
        await store.finish([outcome("succeeded", task) for task in await take(store, 2)])
        if not at_once:
            await later(store, 0.06)
            await store.recover(10)
        await settled(store)
        ends = await store.get([waiting.id, last.id])
        assert [task.state for task in ends if task is not None] == [TaskState.CANCELLED] * 2
        assert {task.error.type for task in ends if task is not None and task.error is not None} == {"UpstreamFailed"}
        assert (await flow_of(store, flow.id)).finished_at is not None


@pytest.mark.parametrize(
    ("kind", "place"), [("mystore", "feeds"), ("lmdb", "f"), ("sqlite", "feeds"), ("file", "feeds")]
)
async def test_a_task_that_cannot_be_read_is_missed_when_it_is_deleted(
    kind: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_transitions, "AUDIT_SECONDS", 0.05)
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
    bad, waiting = new_task(flow=flow.id, feeds=(Feed(0, needs_success=True),)), new_task(flow=flow.id, behind=0)
    async with opened(kind, tmp_path) as (store, spoil):
        await store.enqueue([bad, waiting], flow)
        assert spoil.write("task", bad.id, place, b"[[" if kind == "lmdb" else "[[")
        assert await store.delete([bad.id]) == [True]
        await later(store, 0.06)
        await settled(store)
        assert (await flow_of(store, flow.id)).counts[TaskState.CANCELLED] == 1
        assert (await flow_of(store, flow.id)).finished_at is not None


async def test_a_flow_that_is_slow_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_transitions, "AUDIT_SECONDS", 0.01)
    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
    first, waiting = new_task(flow=flow.id, feeds=(Feed(0, needs_success=True),)), new_task(flow=flow.id, behind=0)
    async with opened("mystore", tmp_path) as (store, _):
        await store.enqueue([first, waiting], flow)
        (task,) = await take(store)
        await later(store, 0.02)
        await store.recover(10)
        assert (await flow_of(store, flow.id)).counts[TaskState.BLOCKED] == 1
        await store.finish([outcome("succeeded", task)])
        assert [one.id for one in await take(store)] == [waiting.id]
