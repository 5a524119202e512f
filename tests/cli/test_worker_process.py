"""A worker shares its process with its tasks: whatever they do to it, it works on, and it ends when it is told to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from omniq import TaskFailed, TaskQueue, TaskState
from omniq.cli.app import load_queue
from omniq.testing import wait_until
from tests.cli.program import Program

MODULES = 10_000
"""Objects of which the modules of a worker consist at least. Python 3.12 itself begins with hundreds of frozen ones."""


@pytest.fixture
def hazards(folder: Path) -> Iterator[TaskQueue]:
    """The application, imported here as well, to enqueue."""
    shutil.copy(Path(__file__).with_name("hazards.py"), folder)
    with load_queue("hazards:queue") as queue:
        yield queue


def task(queue: TaskQueue, name: str) -> Any:
    return queue.functions[f"hazards.{name}"]


def test_a_signal_to_a_child_of_a_task_ends_that_child_alone(hazards: TaskQueue, start: Callable[..., Program]) -> None:
    worker = start("worker", "hazards:queue", "--process-slots", "1")
    for kind in ("thread", "coroutine", "process"):
        # Terminated at its start, and later; then a pool, which terminates its processes, too;
        # and two that were forked by hand.
        assert task(hazards, f"children_of_a_{kind}").enqueue().result(60) == [
            -signal.SIGTERM,
            -signal.SIGTERM,
            3,
            -signal.SIGINT,
            1,
        ]

    assert task(hazards, "add").enqueue(1, 2).result(30) == 3
    assert task(hazards, "count_frozen").enqueue().result(30) > MODULES, "a full collection would look at all modules"
    assert worker.stop() == 0
    assert worker.stderr.count("SIGTERM") == 1
    assert "SIGINT" not in worker.stderr


def test_threads_and_children_that_tasks_leave_behind_do_not_keep_the_process(
    hazards: TaskQueue, start: Callable[..., Program]
) -> None:
    worker = start("worker", "hazards:queue", "--grace", "0.5")
    task(hazards, "leave_everything").enqueue().result(30)
    task(hazards, "leave_a_stubborn_coroutine").enqueue().result(30)
    handles = [task(hazards, "leave_a_thread").enqueue() for _ in range(40)]
    wait_until(lambda: all(handle.task().state is TaskState.RUNNING for handle in handles), 60)

    assert worker.stop() == 0
    assert "has stopped" in worker.stderr
    assert {handle.task().state for handle in handles} == {TaskState.READY}


def test_a_task_that_blocks_the_loop_does_not_keep_the_process_beyond_a_second_signal(
    hazards: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    worker = start("worker", "hazards:queue", "--lease", "1")
    task(hazards, "block").enqueue(folder / "blocked")
    wait_until((folder / "blocked").exists, 60)
    worker.says("the event loop has been blocked for")

    worker.process.send_signal(signal.SIGTERM)
    worker.says("SIGTERM: the event loop is blocked, so the worker cannot stop now. A second signal ends the process")
    assert worker.stop() == 1
    assert "the event loop is blocked and the worker cannot stop" in worker.stderr
    assert "in block\n" in worker.stderr


def test_sigterm_to_the_whole_group_leaves_tasks_their_grace_period(
    hazards: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    flag = folder / "flag"
    worker = start("worker", "hazards:queue", "--process-slots", "2")
    handles = [task(hazards, "hold_in_process").enqueue(folder / f"here-{n}", flag) for n in range(2)]
    wait_until(lambda: all((folder / f"here-{n}").exists() for n in range(2)), 60)
    children = _children_of(worker.process.pid)
    assert len(children) >= 2

    for pid in (worker.process.pid, *children):  # as systemd does, whatever their groups
        os.kill(pid, signal.SIGTERM)
    worker.says("finishing 2 tasks")
    flag.touch()

    assert worker.process.wait(30) == 0
    assert [handle.result(0) for handle in handles] == ["ended", "ended"]


def test_sigterm_to_every_process_of_several_workers_leaves_tasks_their_grace_period(
    hazards: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    flag = folder / "flag"
    supervisor = start("worker", "hazards:queue", "--processes", "2", "-c", "1")
    handles = [task(hazards, "hold").enqueue(folder / f"here-{n}", flag) for n in range(2)]
    wait_until(lambda: all((folder / f"here-{n}").exists() for n in range(2)), 60)

    for pid in (supervisor.process.pid, *_children_of(supervisor.process.pid)):
        os.kill(pid, signal.SIGTERM)
    supervisor.says("passed on to 2 worker processes")
    wait_until(lambda: supervisor.stderr.count("finishing 1 tasks") == 2)
    flag.touch()

    assert supervisor.process.wait(30) == 0
    assert [handle.result(0) for handle in handles] == ["ended", "ended"]
    assert "again" not in supervisor.stderr


def _children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text() if os.path.isdir("/proc") else ""
    found = [int(child) for thread in Path(f"/proc/{pid}/task").iterdir() for child in _listed(thread)]
    return found or [int(child) for child in listed.split()]


def _listed(thread: Path) -> list[str]:
    return (thread / "children").read_text().split()


def test_what_ends_a_program_ends_in_a_coroutine_of_a_task_that_task_alone(
    hazards: TaskQueue, folder: Path, start: Callable[..., Program]
) -> None:
    worker = start("worker", "hazards:queue")
    neighbour = task(hazards, "hold").enqueue(folder / "here", folder / "flag")
    wait_until((folder / "here").exists, 60)
    for how, error in (("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")):
        with pytest.raises(TaskFailed, match=error):
            task(hazards, "exit_in_a_child").enqueue(how).result(30)
        worker.says(f"{error} in a coroutine or callback of a task would have ended the worker, which goes on")
    assert task(hazards, "exit_in_a_child").enqueue("stop").result(30) is None
    (folder / "flag").touch()

    assert neighbour.result(30) == "ended"
    assert worker.stop() == 0


def test_a_worker_that_ends_against_its_will_says_so_and_its_exit_code_does(
    hazards: TaskQueue, start: Callable[..., Program]
) -> None:
    worker = start("worker", "hazards:queue")
    task(hazards, "cancel_all").enqueue()

    assert worker.process.wait(30) == 1
    assert re.search(r"ERROR +omniq\.worker: the worker ends against its will: CancelledError", worker.stderr)


def test_what_was_garbage_when_a_worker_started_is_removed_all_the_same(
    hazards: TaskQueue, start: Callable[..., Program]
) -> None:
    start("worker", "hazards:queue")
    wait_until(lambda: task(hazards, "garbage_is_gone").enqueue().result(30), 60)


def test_a_program_that_runs_a_worker_itself_is_not_kept_by_threads_of_coroutines_either(
    hazards: TaskQueue, folder: Path
) -> None:
    program = "import gc, hazards; hazards.queue.run_worker(grace=0.2); print('went on with', gc.get_freeze_count())"
    frozen = task(hazards, "count_frozen").enqueue()
    handles = [task(hazards, "leave_a_thread").enqueue() for _ in range(40)]
    with subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: all(handle.task().state is TaskState.RUNNING for handle in handles), 60)
            assert frozen.result(30) > MODULES
            process.terminate()
            assert process.communicate(timeout=30)[0] == "went on with 0\n"
            assert process.returncode == 0
        finally:
            process.kill()


def test_a_signal_that_comes_before_the_worker_handles_signals_stops_it() -> None:
    program = """\
import signal
from omniq import TaskQueue

class Signalled(TaskQueue):
    async def __aenter__(self):
        signal.raise_signal(signal.SIGTERM)
        return await super().__aenter__()

Signalled("memory://").run_worker()
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == "went on\n"
