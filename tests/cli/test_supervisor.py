"""``omniq worker --processes N``: worker processes that are kept running, and that end with their supervisor."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from omniq import TaskQueue, TaskState
from omniq.cli.app import load_queue
from omniq.cli.supervisor import how_it_ended
from omniq.testing import wait_until
from tests.cli.program import Program


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not fetched by its parent does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def pids(program: Program) -> list[int]:
    return [int(pid) for pid in re.findall(r"worker process \d+ started \(pid (\d+)\)", program.stderr)]


def serving(program: Program, count: int) -> list[int]:
    """Wait until so many workers have begun to work; give the process ids of all that were started."""

    def ready() -> bool:
        assert program.process.poll() is None, program.stderr
        return len(re.findall(r"omniq\.worker: worker .* serves ", program.stderr)) >= count

    wait_until(ready, 30, "workers that serve")
    return pids(program)


@pytest.fixture
def shop(folder: Path) -> TaskQueue:
    return load_queue("shop:queue")


def test_several_processes_work_and_end_together(shop: TaskQueue, start: Callable[..., Program]) -> None:
    supervisor = start("worker", "shop:queue", "--processes", "2", "-c", "1")
    children = serving(supervisor, 2)
    with shop:
        sleeping = [shop.functions["shop.sleep"].enqueue(0.5) for _ in range(2)]
        wait_until(lambda: all(handle.task().state is TaskState.RUNNING for handle in sleeping))

        assert supervisor.stop() == 0
        assert [handle.task().state for handle in sleeping] == [TaskState.SUCCEEDED] * 2
    assert not any(is_alive(pid) for pid in children)
    for pid in children:
        assert f"[{pid}] omniq.worker: " in supervisor.stderr
    assert "Traceback" not in supervisor.stderr


def test_ctrl_c_counts_once(shop: TaskQueue, start: Callable[..., Program]) -> None:
    supervisor = start("worker", "shop:queue", "--processes", "2")
    serving(supervisor, 2)

    assert supervisor.press_ctrl_c() == 0
    assert supervisor.stderr.count("SIGINT: finishing 0 tasks") == 2
    assert "again" not in supervisor.stderr


def test_a_second_signal_is_passed_on(shop: TaskQueue, start: Callable[..., Program]) -> None:
    supervisor = start("worker", "shop:queue", "--processes", "2")
    serving(supervisor, 2)
    with shop:
        running = shop.functions["shop.sleep"].enqueue(60)
        wait_until(lambda: running.task().state is TaskState.RUNNING)
        supervisor.process.send_signal(signal.SIGTERM)
        supervisor.says("finishing 1 tasks")

        assert supervisor.stop() == 0
        assert running.task().state is TaskState.READY


@pytest.mark.usefixtures("folder")
def test_a_process_that_dies_is_started_again(start: Callable[..., Program]) -> None:
    supervisor = start("worker", "shop:queue", "--processes", "2")
    victim, other = serving(supervisor, 2)

    os.kill(victim, signal.SIGKILL)

    supervisor.says("was killed by SIGKILL; another one starts in 0.5 s")
    replacement = serving(supervisor, 3)[-1]
    assert is_alive(other)
    assert is_alive(replacement)
    assert supervisor.stop() == 0
    assert not is_alive(replacement)


@pytest.mark.usefixtures("folder")
def test_no_process_outlives_a_supervisor_that_was_killed(start: Callable[..., Program]) -> None:
    supervisor = start("worker", "shop:queue", "--processes", "2")
    children = serving(supervisor, 2)

    assert supervisor.stop(signal.SIGKILL) == -signal.SIGKILL

    wait_until(lambda: not any(is_alive(pid) for pid in children), 60, "the end of the children")
    assert supervisor.stderr.count("the process that started this one has ended; stopping") == 2
    assert supervisor.stderr.count("has stopped") == 2


def test_a_process_that_cannot_work_is_tried_again_ever_later(folder: Path, start: Callable[..., Program]) -> None:
    (folder / "jobs.db").write_text("no database at all, but long enough to look at\n" * 100)
    supervisor = start("worker", "shop:queue", "--processes", "2")

    supervisor.says("worker process 1 ended with exit code 1; another one starts in 0.5 s")
    supervisor.says("worker process 1 ended with exit code 1; another one starts in 1.0 s")

    # 1 if one of them was failing at that very moment.
    assert supervisor.stop() in (0, 1)


@pytest.mark.usefixtures("folder")
def test_a_wrong_application_is_told_once_and_nothing_is_started(start: Callable[..., Program]) -> None:
    supervisor = start("worker", "shop:queu", "--processes", "3")

    assert supervisor.process.wait(60) == 2
    assert supervisor.stderr == "omniq: error: module shop has no attribute 'queu'; did you mean queue?\n"


@pytest.mark.parametrize(
    ("code", "text"),
    [(3, "ended with exit code 3"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_how_a_process_ended_is_said_in_words(code: int, text: str) -> None:
    assert how_it_ended(code) == text
