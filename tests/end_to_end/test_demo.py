"""``omniq demo``: what it shows holds."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attrs import evolve

from omniq import Task, TaskQueue, TaskState
from omniq.cli.demo.measuring import (
    Function,
    Measures,
    library_folder,
    longest_functions,
    measure,
    module_name,
    standard_library,
)
from omniq.cli.demo.report import Report, conclude
from omniq.cli.terminal import Screen
from tests.fork_server import Popen, run
from tests.servers.starting import MOSTLY_LONG, make_server


def demo(*arguments: str, temporary: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return run(
        [sys.executable, "-m", "omniq", "demo", *arguments],
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONUTF8": "1", **more},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def demo_with_a_kill(*arguments: str, temporary: Path) -> tuple[int, subprocess.CompletedProcess[str]]:
    """Run it with few tasks, and with more if all were done before it could kill a worker, as on a busy machine.

    :return: with how many tasks, and how it ended.
    """
    for limit in (60, 150):
        ended = demo("--limit", str(limit), *arguments, temporary=temporary)
        if "raise --limit to see it" not in ended.stdout:
            return limit, ended
    return 500, demo("--limit", "500", *arguments, temporary=temporary)


def figure(text: str, name: str) -> int:
    found = re.search(rf"^  {name} +([\d,]+)", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1].replace(",", ""))


def test_a_killed_worker_costs_no_task(tmp_path: Path) -> None:
    tasks, ended = demo_with_a_kill(temporary=tmp_path)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert figure(ended.stdout, "tasks") == tasks
    assert figure(ended.stdout, "lost") == 0
    assert figure(ended.stdout, "recovered") > 0
    assert figure(ended.stdout, "attempts") == tasks + sum(
        figure(ended.stdout, name) for name in ("retried", "recovered")
    )
    assert "killed (SIGKILL)" in ended.stdout
    assert "worker 3 started" in ended.stdout
    assert f"all {tasks} results are the same as those of a plain loop" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_store_and_the_logs_are_kept_on_request(tmp_path: Path) -> None:
    ended = demo("--limit", "12", "--workers", "1", "--keep", temporary=tmp_path)

    assert ended.returncode == 0, ended.stdout
    (folder,) = tmp_path.iterdir()
    assert "serves demo" in (folder / "worker-1.log").read_text()
    store = f"sqlite:///{folder / 'demo.db'}"
    assert f"omniq stats '{store}'" in ended.stdout
    with TaskQueue(store) as queue:
        assert queue.stats()[0].counts[TaskState.SUCCEEDED] == 12


def test_another_store_can_be_used_and_is_left_clean(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'other.db'}?namespace=mine"
    temporary = tmp_path / "temporary"
    temporary.mkdir()

    ended = demo("--limit", "12", "--url", url, temporary=temporary)

    assert ended.returncode == 0, ended.stdout
    with TaskQueue(url) as queue:
        assert queue.stats() == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("kind", MOSTLY_LONG)
def test_a_killed_worker_costs_no_task_on_a_server(tmp_path: Path, kind: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with make_server(kind, tmp_path) as server:
        tasks, ended = demo_with_a_kill("--url", server.url, temporary=temporary)

    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    assert [figure(ended.stdout, name) for name in ("tasks", "lost")] == [tasks, 0]
    assert figure(ended.stdout, "recovered") > 0
    assert f"all {tasks} results are the same as those of a plain loop" in ended.stdout


@pytest.mark.parametrize(
    ("url", "code", "text"),
    [
        ("nowhere://here", 2, "omniq: error: no storage opens nowhere://"),
        ("memory://", 2, "omniq: error: memory://?namespace=demo-"),
        ("sqlite:////dev/null/demo.db", 1, "omniq: error: "),
    ],
)
def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path, url: str, code: int, text: str) -> None:
    ended = demo("--url", url, temporary=tmp_path)

    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith(text)
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    process = Popen(
        [sys.executable, "-m", "omniq", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    shown = ""
    while "tasks enqueued" not in shown:
        shown += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (130, "")
    assert list(tmp_path.iterdir()) == []
    for pid in re.findall(r"started \(pid (\d+)\)", shown):
        assert not Path(f"/proc/{pid}").exists()


SOURCE = b"""
class Shop:
    def open(self):
        def knock():
            pass
        return knock

    async def close(self): ...

def count(): return 1
"""


def test_a_module_is_measured() -> None:
    assert measure(SOURCE) == Measures(
        lines=10,
        functions=4,
        classes=1,
        longest=(
            Function(name="Shop.open", lines=4),
            Function(name="Shop.open.knock", lines=2),
            Function(name="Shop.close", lines=1),
            Function(name="count", lines=1),
        ),
    )


def test_a_module_that_cannot_be_parsed_is_a_result_too() -> None:
    broken = measure(b"print 'hello'\n")
    assert broken.lines == 1
    assert broken.error is not None
    assert broken.error.startswith("SyntaxError: ")


def test_the_standard_library_is_what_is_measured() -> None:
    names = [module_name(file) for file in standard_library()]
    assert {"ast", "asyncio", "asyncio.tasks", "json.decoder", "__future__"} <= set(names)
    assert not any(name.startswith(("test.", "site-packages.")) for name in names)
    assert len(standard_library(7)) == 7


FILES = [library_folder() / name for name in ("a.py", "b.py", "c.py")]
OTHER = library_folder() / "d.py"
EXPECTED = {file: Measures(lines=10, functions=1, longest=(Function(name="f", lines=9),)) for file in FILES}


def finished(task_id: str, attempt: int = 1, state: TaskState = TaskState.SUCCEEDED, second: int = 0) -> Task:
    began = datetime(2025, 1, 1, tzinfo=UTC)
    return Task(
        id=task_id,
        queue="demo",
        name="measure",
        body=b"",
        created_at=began,
        run_at=began,
        attempt=attempt,
        state=state,
        finished_at=began + timedelta(seconds=second),
    )


RIGHT = Report(
    tasks=[finished("1"), finished("2", attempt=3, second=4), finished("3", attempt=2, second=2)],
    results=EXPECTED,
    caught=frozenset({"2"}),
    recovered=["2"],
)


def conclusion(report: Report) -> tuple[int, str]:
    stream = io.StringIO()
    return conclude(report, EXPECTED, 1.0, Screen(stream)), stream.getvalue()


def test_a_run_in_which_everything_is_right_ends_well() -> None:
    code, text = conclusion(RIGHT)
    assert code == 0
    assert [figure(text, name) for name in ("tasks", "attempts", "retried", "recovered", "lost")] == [3, 6, 2, 1, 0]
    assert "in 4.0 s: 1 tasks per second" in text
    assert "all 3 results are the same" in text


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (evolve(RIGHT, results={**EXPECTED, FILES[1]: Measures(lines=11)}), "b.py: Measures(lines=11, "),
        (evolve(RIGHT, results={**EXPECTED, FILES[1]: None}), "b.py: no result"),
        (evolve(RIGHT, results={file: EXPECTED[file] for file in FILES[1:]}), "a.py: no result"),
        (
            evolve(RIGHT, results={**EXPECTED, library_folder() / "d.py": Measures(lines=1)}),
            "d.py: a result of no task that was enqueued",
        ),
        (evolve(RIGHT, recovered=[]), "task 2 of the killed worker was not taken back"),
        (
            evolve(RIGHT, tasks=[*RIGHT.tasks[:2], finished("3", state=TaskState.FAILED)]),
            "task 3 ended as failed: no error was recorded",
        ),
    ],
)
def test_a_run_in_which_anything_is_wrong_fails(report: Report, text: str) -> None:
    code, shown = conclusion(report)
    assert code == 1
    assert "not as it must be (1):" in shown
    assert text in shown


def test_the_longest_functions_are_those_of_all_modules() -> None:
    results: dict[Path, Measures | None] = {
        Path("a.py"): Measures(lines=1, longest=tuple(Function(name=f"f{n}", lines=n) for n in range(20, 10, -1))),
        Path("b.py"): Measures(lines=1, longest=(Function(name="g", lines=15),)),
        Path("c.py"): None,
    }
    longest = longest_functions(results)
    assert [function.lines for _, function in longest] == [20, 19, 18, 17, 16, 15, 15, 14, 13, 12]
    assert longest[6] == (Path("b.py"), Function(name="g", lines=15))
