"""Lists tasks, the latest enqueued first, in steps that each look at a bounded number of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from omniq.storage import TaskPage, TaskQuery
from omniq.storage.paging import CLOCK_SLACK
from omniq.task import StoredTask, TaskState
from omniq_redis import decoding
from omniq_redis.client import Client
from omniq_redis.encoding import name_prefix, tag_part
from omniq_redis.times import microseconds

__all__ = ["list_tasks", "read_cursor"]

LETTERS = {
    TaskState.BLOCKED: "b",
    TaskState.SCHEDULED: "d",
    TaskState.READY: "w",
    TaskState.RUNNING: "r",
    TaskState.SUCCEEDED: "s",
    TaskState.FAILED: "f",
    TaskState.CANCELLED: "c",
}
NO_STATE = "-"
"""Stands where no state at all is asked for."""
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
    since, until = query.enqueued_after, query.enqueued_before
    filters: list[bytes | int | str] = [
        query.queue or "",
        "" if query.states is None else "".join(LETTERS[state] for state in query.states) or NO_STATE,
        name_prefix(query.name) if query.name is not None else b"",
        tag_part(query.tag) if query.tag is not None else b"",
        0 if since is None else microseconds(since),
        0 if until is None else max(1, microseconds(until)),
        CLOCK_SLACK // timedelta(microseconds=1),
        int(query.bare),
        query.flow or "",
    ]
    found: list[tuple[int, StoredTask]] = []
    budget = min(max(query.limit + 1, FEWEST), MOST)
    left = query.look_at
    while len(found) <= query.limit and left != 0:
        step = budget if left is None else min(budget, left)
        before, looked, *answer = await client.run("list", [before, step, query.limit + 1 - len(found), *filters])
        found += _matching(query, *answer)
        if not before:
            break
        if left is not None:
            left -= min(looked, left)
        budget = min(2 * budget, MOST)
    tasks = tuple(task for _, task in found[: query.limit])
    if len(found) > query.limit:
        return TaskPage(tasks, str(found[query.limit - 1][0]))
    return TaskPage(tasks, str(before) if before else None)


def _matching(
    query: TaskQuery, ids: list[bytes], stored: list[Any], sizes: list[list[int]]
) -> list[tuple[int, StoredTask]]:
    found: list[tuple[int, StoredTask]] = []
    now: int = stored[0]
    for place, task_id in enumerate(ids):
        record = stored[4 * place + 1 : 4 * place + 5]
        task = decoding.task_or_stand_in(decoding.id_of(task_id), record, now)
        if task is None:
            continue
        if query.bare:
            body, result, traceback = sizes[place]
            known = None if traceback < 0 else traceback
            task = task.bare(body, None if result < 0 else result, known)
        if query.tag is None or query.tag in task.tags:
            found.append((int.from_bytes(record[0][:8], "big"), task))
    return found
