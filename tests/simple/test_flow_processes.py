"""A task in a process that adds to its flow, on a store which parent and child share."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from omniq import TaskState
from tests.simple import flow_cpu_tasks


async def test_a_task_in_a_process_adds_to_its_flow_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(flow_cpu_tasks.STORE, f"mystore://{tmp_path}/jobs.db")
    tasks = importlib.reload(flow_cpu_tasks)
    async with tasks.queue.worker(processes=1):
        handle = await tasks.queue.aenqueue_flow(tasks.crawl.call().then(tasks.last))
        added = await handle.aresult(60)
        members = {task.id: task for task in await handle.flow.atasks()}
    await tasks.queue.aclose()
    assert len(members) == 4
    assert [members[one].name for one in added] == ["count", "count"]
    assert {task.state for task in members.values()} == {TaskState.SUCCEEDED}
