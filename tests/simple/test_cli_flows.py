"""``omniq flows``: what is shown of flows, and what is done to the whole of them, on a store in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omniq import TaskQueue, TaskState
from omniq.cli import main
from omniq.storage import StorageLimits
from omniq_local.files.storage import FileStorage


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"mystore://{tmp_path}/jobs.db"


def enqueue(url: str) -> str:
    with TaskQueue(url) as queue:

        @queue.task(name="one")
        def one() -> int:
            return 1

        @queue.task(name="two")
        def two(number: int) -> int:
            return number

        return queue.enqueue_flow(one.call().then(two)).id


def test_flows_are_listed_shown_cancelled_and_retried(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flows", "list", url]) == 0
    assert capsys.readouterr().out == "there are no flows\n"
    flow_id = enqueue(url)

    assert main(["flows", "list", url]) == 0
    assert flow_id[-12:] in capsys.readouterr().out
    assert main(["flows", "show", url, flow_id[-12:]]) == 0
    out = capsys.readouterr().out
    assert f"flow {flow_id}: running" in out
    assert "1 blocked, 1 ready" in out
    assert "gate 0 is shut and waits for 1 task" in out

    assert [main(["flows", "cancel", url, flow_id]) for _ in range(2)] == [0, 1]
    capsys.readouterr()
    assert main(["flows", "list", url, "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["state"], shown["counts"]["cancelled"]) == (flow_id, "cancelled", 2)

    assert [main(["flows", "retry", url, flow_id]) for _ in range(2)] == [0, 1]
    with TaskQueue(url) as queue:
        assert queue.handle(flow_id).flow.progress().counts[TaskState.READY] == 1


def test_a_task_is_shown_with_its_flow_and_what_it_waits_for(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    flow_id = enqueue(url)
    with TaskQueue(url) as queue:
        first, waiting = sorted(queue.handle(flow_id).flow.tasks(), key=lambda task: task.name)
    assert waiting.state is TaskState.BLOCKED

    assert main(["tasks", "show", url, waiting.id]) == 0
    shown = {line.partition(" ")[0]: line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if line}
    assert shown["flow"] == flow_id
    assert shown["state"].startswith("blocked for ")
    assert "waits for 1 unfinished task of its flow" in shown["why"]
    assert first.id in shown["why"]
    assert shown["arguments"] == f'"<output of task {first.id}>"  (as stored)'

    assert main(["tasks", "show", url, waiting.id, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["flow"] == flow_id
    assert record["references"] == [{"path": ["args", 0], "kind": "output", "runs": [[first.id, 1]]}]
    (reason, *_) = record["why"]
    assert (reason["kind"], reason["fields"]["tasks"]) == ("blocked", [first.id])


def test_a_flow_that_is_not_there_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    enqueue(url)
    missing = "0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e"
    for action in ("show", "cancel", "retry"):
        assert main(["flows", action, url, missing]) == 1
        assert missing in capsys.readouterr().err


def test_a_store_without_flows_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStorage, "limits", StorageLimits(flows=False))
    assert main(["flows", "list", f"file://{tmp_path}/jobs"]) != 0
    assert "FileStorage holds no flows" in capsys.readouterr().err
