"""A task for a process that adds to its flow: at a module's top level, where a new process finds it."""

from __future__ import annotations

import os

from omniq import Fixed, TaskQueue, current_task

STORE = "FLOW_CPU_TASKS"
"""The environment variable with the URL of the store that parent and child share."""

queue = TaskQueue(os.environ.get(STORE, "memory://"), signing_key="the key of parent and child")


@queue.task(name="count")
def count(page: str) -> int:
    return len(page)


@queue.task(name="crawl", executor="process", max_retries=1, retry=Fixed(0))
def crawl() -> list[str]:
    added = [current_task().spawn(count.call(page)).id for page in ("a", "bb")]
    if current_task().attempt == 1:
        raise OSError("the first attempt fails once it has added")
    return added


@queue.task(name="last")
def last(added: list[str]) -> list[str]:
    return added
