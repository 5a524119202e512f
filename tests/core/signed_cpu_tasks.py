"""A signed task for a process: at a module's top level, where a new process finds it."""

from __future__ import annotations

import os
from multiprocessing import parent_process

from omniq import TaskQueue

KEY = "the key of the tasks in processes"

# Made anew in the child, which imports this, and there without the key: what signs there came through the pipe.
queue = TaskQueue("memory://signed-cpu-tasks", signing_key=None if parent_process() else KEY)


@queue.task(name="environment", executor="process")
def environment() -> tuple[int, dict[str, str]]:
    with open("/proc/self/cmdline", encoding="utf-8") as file:
        return os.getpid(), {**os.environ, "cmdline": file.read()}
