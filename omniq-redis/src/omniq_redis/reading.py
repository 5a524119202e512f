"""Lists tasks, the latest enqueued first, in steps that each look at a bounded number of them."""

from __future__ import annotations

from typing import Any

from omniq.storage import TaskPage, TaskQuery
from omniq.task import StoredTask, TaskState
from omniq_redis import decoding
from omniq_redis.client import Client
from omniq_redis.encoding import name_prefix, tag_part

__all__ = ["list_tasks", "read_cursor"]

LETTERS = {
    TaskState.SCHEDULED: "d",
    TaskState.READY: "w",
    TaskState.RUNNING: "r",
    TaskState.SUCCEEDED: "s",
    TaskState.FAILED: "f",
    TaskState.CANCELLED: "c",
}
FEWEST, MOST = 50, 1000


def read_cursor(cursor: str | None, shown: str) -> int:
    """Return the sequence number before which to go on; 0: from the latest.

    :raises ValueError: if it is no cursor of ours.
    """
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdecimal() and 0 < int(cursor) < 2**53):
        raise ValueError(f"{cursor!r} is not a cursor of {shown}")
    return int(cursor)


async def list_tasks(client: Client, query: TaskQuery, before: int) -> TaskPage[StoredTask]:
    """Return a page.

    :param before: see :func:`read_cursor`.
    """
    filters: list[bytes | int | str] = [
        query.queue or "",
        LETTERS[query.state] if query.state is not None else "",
        name_prefix(query.name) if query.name is not None else b"",
        tag_part(query.tag) if query.tag is not None else b"",
    ]
    found: list[tuple[int, StoredTask]] = []
    budget = min(max(query.limit + 1, FEWEST), MOST)
    while len(found) <= query.limit:
        before, ids, stored = await client.run("list", [before, budget, *filters])
        found += _matching(query, ids, stored)
        if not before:
            break
        budget = min(2 * budget, MOST)
    tasks = tuple(task for _, task in found[: query.limit])
    cursor = str(found[query.limit - 1][0]) if len(found) > query.limit else None
    return TaskPage(tasks, cursor)


def _matching(query: TaskQuery, ids: list[bytes], stored: list[Any]) -> list[tuple[int, StoredTask]]:
    found: list[tuple[int, StoredTask]] = []
    now: int = stored[0]
    for place, task_id in enumerate(ids):
        record = stored[4 * place + 1 : 4 * place + 5]
        task = decoding.task_or_stand_in(decoding.id_of(task_id), record, now)
        if task is None:
            continue
        if query.tag is None or query.tag in task.tags:
            found.append((int.from_bytes(record[0][:8], "big"), task))
    return found
