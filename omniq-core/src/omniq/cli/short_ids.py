"""Ids as people read and type them: their last twelve characters, which are random and therefore tell tasks apart."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omniq._client.queue import TaskQueue
from omniq.cli.app import ask
from omniq.cli.failures import OperationFailed
from omniq.storage import Storage, TaskQuery

__all__ = ["short_id", "whole_ids"]

_SHORT = re.compile(r"[0-9a-f]{12}")
LENGTH = 12
PAGE = 500
MOST_PAGES = 40
"""So many pages of the latest tasks are looked through for a short id, of which no store keeps an index."""


def short_id(task_id: str) -> str:
    """Return the end of an id, by which the command line shows and takes tasks."""
    return task_id[-LENGTH:]


def whole_ids(queue: TaskQueue, typed: Sequence[str]) -> list[str]:
    """Return the ids that were meant, in order; one that is no short id stays as it is.

    :raises OperationFailed: if a short id is that of no recent task.
    """
    wanted = {text for text in typed if _SHORT.fullmatch(text)}
    found = ask(queue, lambda storage: _found(storage, wanted)) if wanted else {}
    return [found.get(text, text) for text in typed]


async def _found(storage: Storage, wanted: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    # The store may hold a task under just this id: others than ours may have put it there.
    for task in await storage.get(sorted(wanted)):
        if task is not None:
            found[task.id] = task.id
    more = await _look_through(storage, wanted, found)
    left = wanted - found.keys()
    if left and more:
        raise OperationFailed(
            f"none of the latest {PAGE * MOST_PAGES:,} tasks has an id that ends in {', '.join(sorted(left))}; "
            "type the whole id"
        )
    return found


async def _look_through(storage: Storage, wanted: set[str], found: dict[str, str]) -> bool:
    """Note the ids that end as wanted; whether there are tasks that were not looked at."""
    cursor = None
    for _ in range(MOST_PAGES):
        if wanted <= found.keys():
            return False
        page = await storage.list_tasks(TaskQuery(limit=PAGE, bare=True), cursor)
        for task in page:
            if short_id(task.id) in wanted:
                found.setdefault(short_id(task.id), task.id)
        cursor = page.cursor
        if cursor is None:
            return False
    return True
