"""Tasks of flows for processes and threads: at a module's top level, where a new process finds them."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process

from omniq import Ended, TaskQueue

KEY = "the key of the flows in processes"

# In the child, which imports this, without the key: it reads what the worker has checked.
queue = TaskQueue("memory://flow-cpu-tasks", signing_key=None if parent_process() else KEY)


@queue.task(name="square", executor="process")
def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


@queue.task(name="on a thread", executor="thread")
def on_a_thread(made: tuple[int, int]) -> tuple[int, int, bool]:
    return *made, threading.current_thread() is not threading.main_thread() and os.getpid() != made[1]


@queue.task(name="total", executor="process")
def total(parts: list[tuple[int, int, bool]]) -> tuple[int, int, bool]:
    return sum(part[0] for part in parts), os.getpid(), all(part[2] for part in parts)


@queue.task(name="broken", executor="process", max_retries=0)
def broken() -> int:
    raise LookupError("not there")


@queue.task(name="judge", executor="process")
def judge(end: Ended[int]) -> str:
    return f"{end.state}: {None if end.error is None else end.error.message}"
