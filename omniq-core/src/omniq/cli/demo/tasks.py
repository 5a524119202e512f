"""The demo's tasks, declared as in any application. Run by ``omniq worker omniq.cli.demo.tasks:queue``.

The store is the one that ``OMNIQ_URL`` names.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from omniq import Fixed, Task, TaskError, TaskQueue, current_task, hookimpl
from omniq.cli.demo.measuring import Measures, measure

__all__ = ["EVENTS_FILE", "Recorder", "measure_on_loop", "measure_on_thread", "queue"]

EVENTS_FILE = "OMNIQ_DEMO_EVENTS"
"""The environment variable that names the file to which workers write what the display tells."""

queue = TaskQueue(max_retries=5, retry=Fixed(0.5))


@queue.task(queue="demo")
def measure_on_thread(file: Path, stumble: bool = False) -> Measures:
    """Measure a module; a plain function, which a worker runs on a thread.

    :param file: the module's file.
    :param stumble: whether to fail in the first attempt.
    """
    _stumble_once(stumble)
    return measure(file.read_bytes())


@queue.task(queue="demo")
async def measure_on_loop(file: Path, stumble: bool = False) -> Measures:
    """Measure a module; a coroutine function, which a worker runs on its event loop.

    :param file: the module's file.
    :param stumble: whether to fail in the first attempt.
    """
    _stumble_once(stumble)
    return measure(await asyncio.to_thread(file.read_bytes))


def _stumble_once(stumble: bool) -> None:
    if stumble and current_task().attempt == 1:
        raise OSError("the demo lets it fail")


class Recorder:
    """A plugin that listens to events and appends those of interest to a file, one JSON object a line.

    :param path: the file.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @hookimpl
    def omniq_task_retrying(self, task: Task, error: TaskError) -> None:
        """Note that an attempt failed and another follows."""
        self._write({"event": "retrying", "id": task.id, "error": f"{error.type}: {error.message}"})

    @hookimpl
    def omniq_task_recovered(self, task: Task) -> None:
        """Note that a task of a lost worker was taken back."""
        self._write({"event": "recovered", "id": task.id})

    def _write(self, event: dict[str, str]) -> None:
        # One write to a file opened for appending: lines of several processes do not mix.
        with open(self._path, "ab", buffering=0) as file:
            file.write(json.dumps(event).encode() + b"\n")


if path := os.environ.get(EVENTS_FILE):
    queue.plugins.register(Recorder(path), name="demo", distribution="omniq-core")
