"""``omniq worker --reload``: a worker that follows its code."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from omniq import TaskQueue, TaskState
from omniq.cli import main, reload
from omniq.cli.app import load_queue
from omniq.cli.reload import Changes, broken, loaded_files, source_files
from omniq.testing import wait_until
from tests.cli.program import Program

URL = "sqlite:///jobs.db"

APP = """
import os
import helper
from omniq import TaskQueue

queue = TaskQueue("sqlite:///jobs.db")
os.environ["IMPORTED"] = os.environ.get("IMPORTED", "") + "x"


@queue.task(name="word")
def word() -> str:
    return helper.WORD + os.environ["IMPORTED"]


@queue.task(name="wait")
def wait() -> None:
    import time

    while not os.path.exists("go"):
        time.sleep(0.01)  # no event crosses processes
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "SETTLING", 0.001)


def write(path: Path, text: str) -> None:
    """Write a file anew, later than it was written before, however coarse the file system's clock is."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    if path.stat().st_mtime_ns <= before:
        os.utime(path, ns=(before + 10_000_000, before + 10_000_000))


# Which files


def test_the_modules_of_the_project_are_watched_and_no_others(folder: Path) -> None:
    (folder / "package").mkdir()
    write(folder / "package" / "__init__.py", "from package import inner\n")
    write(folder / "package" / "inner.py", "")
    write(folder / "package" / "unused.py", "")
    for place, name in ((".venv/lib", "hidden"), ("env/lib/python3/site-packages", "installed")):
        (folder / place).mkdir(parents=True)
        write(folder / place / f"{name}.py", "")
        sys.path.insert(0, str(folder / place))
    sys.path.insert(0, str(folder))
    for name in ("shop", "package", "hidden", "installed"):
        importlib.import_module(name)

    assert loaded_files(str(folder)) == {
        str(folder / "shop.py"),
        str(folder / "package" / "__init__.py"),
        str(folder / "package" / "inner.py"),
    }


def test_what_may_mend_an_import_is_any_file_of_the_project(folder: Path) -> None:
    for place in ("package", ".venv", "venv", "node_modules"):
        (folder / place).mkdir()
        write(folder / place / "module.py", "")
    write(folder / "venv" / "pyvenv.cfg", "")
    write(folder / "notes.txt", "")

    assert set(source_files(str(folder))) == {str(folder / "shop.py"), str(folder / "package" / "module.py")}


# What changed


@pytest.fixture
def changes(folder: Path) -> Changes:
    write(folder / "helper.py", "WORD = 'one'\n")
    sys.path.insert(0, str(folder))
    importlib.import_module("shop")
    importlib.import_module("helper")
    return Changes(str(folder))


def test_a_change_is_found_once(changes: Changes, folder: Path) -> None:
    assert changes.look() == []
    write(folder / "helper.py", "WORD = 'two'\n")
    assert changes.look() == [str(folder / "helper.py")]
    assert changes.look() == []


def test_all_that_differs_from_what_was_imported_is_found_with_the_next_change(changes: Changes, folder: Path) -> None:
    write(folder / "helper.py", "WORD = \n")
    assert changes.look() == [str(folder / "helper.py")]
    write(folder / "shop.py", "\n")
    assert changes.look() == [str(folder / "helper.py"), str(folder / "shop.py")]


def test_a_file_that_an_editor_replaces_is_a_change_only_when_it_is_back(changes: Changes, folder: Path) -> None:
    (folder / "helper.py").unlink()
    assert changes.look() == []
    write(folder / "helper.py", "WORD = 'three'\n")
    assert changes.look() == [str(folder / "helper.py")]


def test_a_module_that_is_imported_later_is_watched_from_then_on(changes: Changes, folder: Path) -> None:
    write(folder / "late.py", "")
    importlib.invalidate_caches()
    importlib.import_module("late")
    assert changes.look() == []
    write(folder / "late.py", "\n\n")
    assert changes.look() == [str(folder / "late.py")]


def test_what_is_no_python_is_told(folder: Path) -> None:
    write(folder / "a.py", "def f():\n    return (\n")
    assert broken(str(folder / "a.py")) == "line 2: '(' was never closed"
    (folder / "b.py").write_bytes(b"a = '\xff'\n")
    assert "utf-8" in (broken(str(folder / "b.py")) or "")
    (folder / "c.py").write_bytes(b"a = 1\0\n")
    assert "null bytes" in (broken(str(folder / "c.py")) or "")
    assert broken(str(folder / "gone.py")) is not None
    assert broken(str(folder / "shop.py")) is None


# The whole


@pytest.fixture
def outside(folder: Path) -> Iterator[TaskQueue]:
    """The application's store, for a program that has not imported what changes."""
    write(folder / "app.py", APP)
    write(folder / "helper.py", "WORD = 'one'\n")
    with TaskQueue(URL) as queue:

        @queue.task(name="word")
        def word() -> str:
            raise NotImplementedError

        @queue.task(name="wait")
        def wait() -> None:
            raise NotImplementedError

        yield queue


def ask(queue: TaskQueue) -> str:
    answer: str = queue.functions["word"].enqueue().result(timeout=30)
    return answer


def test_a_worker_follows_its_code_through_mistakes(
    outside: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    worker = start("worker", "app:queue", "--reload", "--process-slots", "1", "--threads", "3")
    assert ask(outside) == "onex"

    write(folder / "helper.py", "WORD = 'two'\n")
    worker.says("helper.py: changed; the worker starts again when running tasks have ended")
    # In the surroundings that it began with: what the application did to the environment is undone.
    assert ask(outside) == "twox"

    write(folder / "helper.py", "WORD = \n")
    worker.says("helper.py: changed, but cannot be used (line 1: invalid syntax); the worker goes on as it is")
    assert ask(outside) == "twox"

    write(folder / "helper.py", "WORD = nowhere\n")
    worker.says("importing app failed: NameError: name 'nowhere' is not defined (")
    worker.says("; waiting for the next change in ")
    write(folder / "helper.py", "WORD = 'three'\n")
    assert ask(outside) == "threex"

    assert worker.stop() == 0
    assert "Traceback" not in worker.stderr


def test_a_task_that_runs_may_end_before_the_worker_starts_again(
    outside: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    worker = start("worker", "app:queue", "--reload")
    waiting = outside.functions["wait"].enqueue()
    wait_until(lambda: waiting.task().state is TaskState.RUNNING)
    write(folder / "helper.py", "WORD = 'two'\n")
    worker.says("the worker starts again when running tasks have ended")
    assert worker.stderr.count(" serves ") == 1
    write(folder / "go", "")

    waiting.result(timeout=60)
    assert waiting.task().attempt == 1
    wait_until(lambda: worker.stderr.count(" serves ") == 2, 60)
    assert worker.stop(signal.SIGINT) == 0


def test_a_signal_is_obeyed_also_while_the_worker_waits_to_start_again(
    outside: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    worker = start("worker", "app:queue", "--reload", "--grace", "600")
    waiting = outside.functions["wait"].enqueue()
    wait_until(lambda: waiting.task().state is TaskState.RUNNING)
    write(folder / "helper.py", "WORD = 'two'\n")
    worker.says("the worker starts again when running tasks have ended")
    worker.process.send_signal(signal.SIGTERM)
    worker.says("SIGTERM: finishing 1 tasks, for 600 s at most")

    assert worker.stop() == 0
    assert "SIGTERM again: stopping now; running tasks go back to their queues" in worker.stderr
    assert worker.stderr.count(" serves ") == 1
    assert waiting.task().state is TaskState.READY


def test_no_process_is_left_behind_by_one_that_started_again(
    outside: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    write(folder / "app.py", APP.replace('name="word"', 'name="word", executor="process"'))
    worker = start("worker", "app:queue", "--reload", "--process-slots", "1")
    assert ask(outside) == "onexx"  # a child imports the application, too
    before = children(worker)

    write(folder / "helper.py", "WORD = 'two'\n")
    wait_until(lambda: worker.stderr.count(" serves ") == 2, 60)

    assert before
    assert not before & children(worker)
    assert ask(outside) == "twoxx"
    assert worker.stop() == 0


def children(program: Program) -> set[str]:
    """The process ids of what a program has started, those included that have ended and were not taken note of."""
    tasks = Path(f"/proc/{program.process.pid}/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


@pytest.mark.usefixtures("folder")
def test_it_is_for_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker", "shop:queue", "--reload", "--processes", "2"]) == 2
    assert capsys.readouterr().err == (
        "omniq: error: --reload is for one worker process; leave --processes out (see omniq worker --help)\n"
    )


def test_an_application_that_cannot_be_imported_at_first_is_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "bad.py", "queue = nowhere\n")
    assert main(["worker", "bad:queue", "--reload"]) == 2
    assert "importing bad failed: NameError" in capsys.readouterr().err
    assert load_queue("shop:queue").url == URL
