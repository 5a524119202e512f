"""Tasks for processes whose queue has a hook around them, registered by hand, and a context variable that it sets."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextvars import ContextVar
from pathlib import Path

import omniq
from omniq import TaskQueue, current_task
from omniq.plugins import Plugins
from omniq.task import Ending, Task

request: ContextVar[str] = ContextVar("request", default="none")


class Journal:
    """Writes what it sees of a task to the file that one of its headers names."""

    @omniq.hookimpl
    def omniq_around_task(self, task: Task, worker: str) -> Generator[None, Ending, None]:
        file = Path(task.headers["file"])
        before = request.get()
        request.set(task.headers["request"])
        _write(file, f"entered {os.getpid()} {worker} {before}")
        ending = yield
        time.sleep(float(task.headers.get("linger", "0")))  # the time that the hook takes
        kind, error = type(ending.outcome).__name__, type(ending.error).__name__
        _write(file, f"left {os.getpid()} {kind} {error} {ending.taken} {ending.seconds > 0} {current_task().id}")


def _write(file: Path, line: str) -> None:
    with file.open("a") as journal:
        journal.write(f"{line}\n")


plugins = Plugins()
plugins.register(Journal(), name="journal")
queue = TaskQueue("memory://hooked", plugins=plugins)


@queue.task(executor="process", max_retries=0)
def cpu_request() -> tuple[str, int]:
    return request.get(), os.getpid()


@queue.task(executor="process", max_retries=0)
def cpu_break() -> None:
    raise ZeroDivisionError


@queue.task(executor="process", max_retries=0, timeout=2)
def cpu_in_time() -> str:
    return "in time"


@queue.task(executor="process", max_retries=0, timeout=0.2)
def cpu_overdue() -> None:
    time.sleep(60)  # longer than its timeout
