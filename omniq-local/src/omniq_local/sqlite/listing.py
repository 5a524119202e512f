"""Pages of tasks, the latest enqueued first, without reading those that do not match where that can be helped.

The tasks of a queue and a state stand together in an index: either in the order that a page needs (those that ended),
or in another, and then all of them are read to find the latest. Where they are so many that this is dear, they are so
many, too, that going through the whole table backwards soon comes upon a page of them; the counters tell which it is.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from attrs import evolve, frozen

from omniq.storage import TaskPage, TaskQuery
from omniq.task import StoredTask, TaskState
from omniq_local.sqlite.encoding import BLOCKED, FRESH, NUMBER_OF, READY, RUNNING, SCHEDULED, SUCCEEDED, microseconds
from omniq_local.sqlite.reading import counts, make_task
from omniq_local.sqlite.statements import Statements

__all__ = ["list_tasks"]

MANY_PARTS = 60
"""So many queues and states are not looked through one by one."""

Row = tuple[Any, ...]


@frozen
class _Pages:
    connection: sqlite3.Connection
    sql: Statements
    query: TaskQuery

    def seqs(self, statement: str, bounds: Bounds, limit: int, **parameters: Any) -> list[int]:
        """Return the numbers of tasks that a statement finds."""
        states = self.query.states
        given = {
            "before": bounds.before,
            "lowest": bounds.lowest,
            "queue": self.query.queue,
            "states": None
            if states is None
            else json.dumps(sorted(map(NUMBER_OF.__getitem__, states)) + _fresh(states)),
            "name": bounds.name,
            "tag": self.query.tag,
            "flow": self.query.flow,
            "limit": limit,
            **parameters,
        }
        return [seq for (seq,) in self.connection.execute(self.sql[f"reading.{statement}"], given)]

    def parts(self) -> list[tuple[str, int]] | None:
        """Return the queues and states to look through one by one; None: going through the table is quicker."""
        query = self.query
        found = counts(self.connection, self.sql)
        total = sum(n for numbers in found.values() for n in numbers.values())
        wanted = None if query.states is None else {NUMBER_OF[state] for state in query.states}
        parts = []
        for queue, numbers in found.items():
            if query.queue is not None and queue != query.queue:
                continue
            for number, n in numbers.items():
                if wanted is not None and number not in wanted:
                    continue
                if number < SUCCEEDED and n * n > total * query.limit:
                    return None
                parts.append((queue, number))
        return parts if len(parts) <= MANY_PARTS else None

    def part(self, queue: str, number: int, bounds: Bounds, limit: int) -> Iterator[int]:
        """Return the latest tasks of a queue in a state."""
        if number == READY:
            yield from self.seqs("list_fresh", bounds, limit, queue=queue)
            yield from self.seqs("list_ready", bounds, limit, queue=queue)
            yield from self.seqs("list_lined", bounds, limit, queue=queue)
        elif number == SCHEDULED:
            yield from self.seqs("list_scheduled", bounds, limit, queue=queue)
        elif number == RUNNING:
            yield from self.seqs("list_running", bounds, limit, queue=queue)
        elif number == BLOCKED:
            yield from self.seqs("list_blocked", bounds, limit, queue=queue)
        else:
            yield from self.seqs("list_ended", bounds, limit, queue=queue, state=number)

    def latest(self, parts: list[tuple[str, int]] | None, bounds: Bounds, limit: int) -> list[int]:
        """Return the numbers of the latest tasks that match."""
        if self.query.flow is not None:
            return self.seqs("list_members", bounds, limit)
        if self.query.tag is not None:
            return self.seqs("list_tagged", bounds, limit)
        if parts is None:
            return self.seqs("list_all", bounds, limit)
        found = [seq for queue, number in parts for seq in self.part(queue, number, bounds, limit)]
        return sorted(found, reverse=True)[:limit]

    def looked_at(self, parts: list[tuple[str, int]] | None, bounds: Bounds, limit: int) -> list[int]:
        """Return the numbers of the latest tasks that are looked at, whether they match or not."""
        everything = evolve(bounds, name=None)
        if parts is None and self.query.tag is None and self.query.flow is None:
            return self.seqs("list_all", everything, limit, queue=None, states=None)
        return self.latest(parts, everything, limit)

    def from_time(self, moment: datetime) -> int:
        """Return the number from which on tasks were enqueued at a time or later, in a few steps down the table."""
        wanted = microseconds(moment, 0)
        low, high = 0, int(self.connection.execute(self.sql["reading.last_seq"]).fetchone()[0]) + 1
        while low < high:
            middle = (low + high) // 2
            at = self.connection.execute(self.sql["reading.first_at"], (middle,)).fetchone()
            if at is not None and at[0] < wanted:
                low = middle + 1
            else:
                high = middle
        return low


@frozen
class Bounds:
    """Between which numbers to look, and for tasks of which name."""

    before: int
    lowest: int
    name: str | None


def _fresh(states: frozenset[TaskState]) -> list[int]:
    return [FRESH] if TaskState.READY in states else []


def list_tasks(query: TaskQuery, before: int, sql: Statements, connection: sqlite3.Connection) -> TaskPage[StoredTask]:
    """See :meth:`~omniq.storage.Storage.list_tasks`.

    :param before: the number of the last task of the page before.
    """
    pages = _Pages(connection, sql, query)
    if query.enqueued_before is not None:
        before = min(before, pages.from_time(query.enqueued_before))
    lowest = 0 if query.enqueued_after is None else pages.from_time(query.enqueued_after)
    bounds = Bounds(before, lowest, query.name)
    parts = None if query.queue is None and query.states is None else pages.parts()
    stopped: int | None = None
    if query.look_at is not None:
        looked = pages.looked_at(parts, bounds, query.look_at + 1)
        if len(looked) > query.look_at:
            stopped = looked[query.look_at - 1]
            bounds = evolve(bounds, lowest=stopped)
    # One more than is shown tells whether there is another page.
    found = pages.latest(parts, bounds, query.limit + 1)
    shown = found[: query.limit]
    rows = connection.execute(sql["reading.listed_bare" if query.bare else "reading.listed"], (json.dumps(shown),))
    tasks = tuple(map(_bare_task if query.bare else make_task, rows.fetchall()))
    following = shown[-1] if len(found) > len(shown) > 0 else stopped
    return TaskPage(tasks, None if following is None else str(following))


def _bare_task(row: Row) -> StoredTask:
    *values, body, result = row
    task = make_task([*values, None if body is None else b"", None])
    return task.bare(body or 0, result)
