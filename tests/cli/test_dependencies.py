"""The command line of an application whose worker has a lifespan, and whose tasks have dependencies."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from omniq.cli import main
from tests.cli.program import Program, run_omniq

APPLICATION = """
from __future__ import annotations

import os
from contextlib import asynccontextmanager

from omniq import Depends, TaskQueue, WorkerState


@asynccontextmanager
async def resources(queue):
    if "BROKEN" in os.environ:
        raise ConnectionError("no database there")
    print("opened", flush=True)
    yield "pool"
    print("closed", flush=True)


queue = TaskQueue("sqlite:///jobs.db", lifespan=resources)


async def connection(state: str = WorkerState()):
    yield f"connection of {state}"


@queue.task
async def send(user: int, db: NoSuchType = Depends(connection), width: int = 3) -> list[str]:
    return [str(user), db, str(width)]
"""


@pytest.fixture(autouse=True)
def application(folder: Path) -> None:
    (folder / "pooled.py").write_text(APPLICATION)


def test_a_worker_opens_what_its_tasks_need_and_closes_it_when_it_is_told_to_stop(
    folder: Path, start: Callable[..., Program]
) -> None:
    worker = start("worker", "pooled:queue")
    done = run_omniq("enqueue", "pooled:queue", "send", "7", "width=4", "--wait", "--wait-timeout", "30", cwd=folder)

    assert (done.returncode, done.stdout) == (0, '["7", "connection of pool", "4"]\n')
    assert worker.stdout == "opened\n"
    assert worker.stop(signal.SIGTERM) == 0
    assert worker.stdout == "opened\nclosed\n"


def test_a_lifespan_that_raises_ends_the_worker_with_exit_code_1_and_its_traceback(folder: Path) -> None:
    done = run_omniq("worker", "pooled:queue", cwd=folder, BROKEN="1")

    assert (done.returncode, done.stdout) == (1, "")
    assert "does not start: the lifespan failed" in done.stderr
    assert 'raise ConnectionError("no database there")' in done.stderr
    assert "omniq: error: ConnectionError: no database there" in done.stderr


def test_what_is_injected_is_neither_offered_nor_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["functions", "pooled:queue", "--json"]) == 0
    (function,) = json.loads(capsys.readouterr().out)
    assert function["signature"] == "(user: 'int', width: 'int' = 3) -> 'list[str]'"

    assert main(["enqueue", "pooled:queue", "send", "7", 'db="connection"']) == 2
    assert "'db' is injected where the task runs, and cannot be given" in capsys.readouterr().err
