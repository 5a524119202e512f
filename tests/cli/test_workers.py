"""``omniq workers`` and ``omniq functions``: who is there, and what there is to run."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve

from omniq import TaskQueue
from omniq._worker.worker_info import WorkerAbout, dump_about
from omniq.cli import main
from omniq.cli.app import store_of

URL = "sqlite:///jobs.db"


def be_alive(store: TaskQueue, worker: str, about: str | None = None) -> None:
    async def beat() -> None:
        await (await store_of(store)).heartbeat(worker, [], 600, about)

    store.run(beat())


def test_workers_are_shown_and_a_probe_learns_whether_there_are_enough(
    store: TaskQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    be_alive(store, "web-1-4711-1a2b3c4d")
    be_alive(store, "web-2-17-5e6f7a8b")
    be_alive(store, "foreign\x1b[31m")

    assert main(["workers", URL]) == 0
    header, *rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert header == ["host", "pid", "queues", "version", "slots", "tasks", "seen", "id"]
    assert [row[:6] for row in rows] == [
        ["-", "-", "-", "-", "-", "0"],
        ["web-1", "4711", "-", "-", "-", "0"],
        ["web-2", "17", "-", "-", "-", "0"],
    ]
    assert "\x1b" not in rows[0][-1]

    for more, code in (
        ([], 0),
        (["--at-least", "3"], 0),
        (["--at-least", "4"], 1),
        (["--host", "web-1"], 0),
        (["--host", "web"], 1),
    ):
        assert main(["workers", URL, *more]) == code, more
    said = capsys.readouterr().err
    assert "omniq: error: 3 workers alive, 4 asked for" in said
    assert "omniq: error: no workers on web alive, 1 asked for" in said

    assert main(["workers", URL, "--json", "--host", "web-1"]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["id"], one["host"], one["pid"], one["running"]) == ("web-1-4711-1a2b3c4d", "web-1", 4711, [])


def test_what_a_worker_tells_about_itself_is_shown(store: TaskQueue, capsys: pytest.CaptureFixture[str]) -> None:
    about = WorkerAbout(
        hostname="blue\x1b[31m",
        pid=7,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        versions={"omniq-core": "9.8.7", "python": "3.13.0"},
        queues=None,
        concurrency=1200,
        slots={"loop": 1200, "thread": 20, "process": 2},
        lease=30.0,
        recover_every=15.0,
        serializers=("json",),
        function_count=0,
        labels={"zone": "a", "rack": "7\x1b[31m"},
    )
    be_alive(store, "a", dump_about(about))
    be_alive(store, "b", dump_about(evolve(about, queues=("urgent", "default"))))
    be_alive(store, "c", dump_about(evolve(about, queues={"urgent": 3, "default": 1})))
    be_alive(store, "d", '{"hostname": 5}')

    assert main(["workers", URL]) == 0
    _, *rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert [row[1:6] for row in rows] == [
        ["7", "all", "9.8.7", "1,200", "0"],
        ["7", "urgent, default", "9.8.7", "1,200", "0"],
        ["7", "urgent=3, default=1", "9.8.7", "1,200", "0"],
        ["-", "-", "-", "-", "0"],
    ]
    assert "\x1b" not in "".join(map("".join, rows))
    assert [row[7] for row in rows] == [*["zone=a rack=7\\x1b[31m"] * 3, "-"]

    assert main(["workers", URL, "--host", "blue\x1b[31m", "--at-least", "3", "--json"]) == 0
    one, *_ = json.loads(capsys.readouterr().out)
    assert (one["host"], one["pid"], one["about"]["queues"]) == ("blue\x1b[31m", 7, None)
    assert one["about"]["labels"] == {"zone": "a", "rack": "7\x1b[31m"}
    assert one["about"]["slots"] == {"loop": 1200, "thread": 20, "process": 2}
    assert one["about"]["started_at"] == "2026-01-01T00:00:00+00:00"


@pytest.mark.usefixtures("folder")
def test_where_no_worker_is_alive_it_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["workers", URL]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "omniq: error: no workers alive, 1 asked for\nomniq: note: looked in namespace omniq of sqlite:///jobs.db\n"
    )


def test_functions_are_shown_without_a_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["functions", "shop:queue"]) == 0
    header, *rows = [re.split("  +", line) for line in capsys.readouterr().out.splitlines()]
    assert header == ["name", "arguments", "queue", "runs on", "retries", "timeout"]
    assert {"shop.add", "shop.sleep", "shop.talk"} <= {row[0] for row in rows}
    by_name = {row[0]: row for row in rows}
    assert by_name["shop.add"][1:] == ["(left: 'int', right: 'int') -> 'int'", "default", "loop", "0", "-"]
    assert by_name["shop.sleep"][2] == "slow"
    assert not (folder / "jobs.db").exists()

    assert main(["functions", "shop:queue", "--json"]) == 0
    functions = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert functions["shop.whoami"]["executor"] == "thread"

    (folder / "empty.py").write_text("from omniq import TaskQueue\nqueue = TaskQueue('sqlite:///jobs.db')\n")
    assert main(["functions", "empty:queue"]) == 1
    assert "empty:queue has no tasks" in capsys.readouterr().err
