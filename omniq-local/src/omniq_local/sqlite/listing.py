"""Pages of tasks, the latest enqueued first, without reading those that do not match where that can be helped.

The tasks of a queue and a state stand together in an index: either in the order that a page needs (those that ended),
or in another, and then all of them are read to find the latest. Where they are so many that this is dear, they are so
many, too, that going through the whole table backwards soon comes upon a page of them; the counters tell which it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from attrs import frozen

from omniq.storage import TaskPage, TaskQuery
from omniq.task import StoredTask
from omniq_local.sqlite.encoding import NUMBER_OF, READY, RUNNING, SCHEDULED, SUCCEEDED
from omniq_local.sqlite.reading import counts, make_task
from omniq_local.sqlite.statements import Statements

__all__ = ["list_tasks", "read_cursor"]

LATEST = 2**63 - 1
MANY_PARTS = 60
"""So many queues and states are not looked through one by one."""

Row = tuple[Any, ...]


def read_cursor(cursor: str | None, shown: str) -> int:
    """Return the number of the last task that was shown.

    :raises ValueError: if the text is no cursor.
    """
    if cursor is None:
        return LATEST
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 20):
        raise ValueError(f"{cursor!r} is not a cursor of {shown}")
    return min(int(cursor), LATEST)


@frozen
class _Pages:
    connection: sqlite3.Connection
    sql: Statements
    query: TaskQuery
    before: int

    def rows(self, statement: str, **parameters: Any) -> list[Row]:
        """Run a statement with what it needs of the query."""
        state = None if self.query.state is None else NUMBER_OF[self.query.state]
        given = {
            "before": self.before,
            "queue": self.query.queue,
            "name": self.query.name,
            "tag": self.query.tag,
            # One more than is shown tells whether there is another page.
            "limit": self.query.limit + 1,
            "state": state,
            **parameters,
        }
        return self.connection.execute(self.sql[f"reading.{statement}"], given).fetchall()

    def parts(self) -> list[tuple[str, int]] | None:
        """Return the queues and states to look through one by one; None: going through the table is quicker."""
        query = self.query
        found = counts(self.connection, self.sql)
        total = sum(n for numbers in found.values() for n in numbers.values())
        parts = []
        for queue, numbers in found.items():
            if query.queue is not None and queue != query.queue:
                continue
            for number, n in numbers.items():
                if query.state is not None and number != NUMBER_OF[query.state]:
                    continue
                if number < SUCCEEDED and n * n > total * query.limit:
                    return None
                parts.append((queue, number))
        return parts if len(parts) <= MANY_PARTS else None

    def part(self, queue: str, number: int) -> Iterator[Row]:
        """Yield the latest tasks of a queue in a state."""
        if number == READY:
            yield from self.rows("list_fresh", queue=queue)
            yield from self.rows("list_ready", queue=queue)
        elif number == SCHEDULED:
            yield from self.rows("list_scheduled", queue=queue)
        elif number == RUNNING:
            yield from self.rows("list_running", queue=queue)
        else:
            yield from self.rows("list_ended", queue=queue, state=number)

    def found(self) -> list[Row]:
        """Return the page, and one more where there is."""
        if self.query.tag is not None:
            return self.rows("list_tagged")
        if self.query.queue is None and self.query.state is None:
            return self.rows("list_all")
        parts = self.parts()
        if parts is None:
            return self.rows("list")
        rows = [row for queue, number in parts for row in self.part(queue, number)]
        return sorted(rows, key=lambda row: -int(row[0]))


def list_tasks(query: TaskQuery, before: int, sql: Statements, connection: sqlite3.Connection) -> TaskPage[StoredTask]:
    """See :meth:`~omniq.storage.Storage.list_tasks`.

    :param before: the number of the last task of the page before.
    """
    rows = _Pages(connection, sql, query, before).found()
    shown = rows[: query.limit]
    more = len(rows) > query.limit and bool(shown)
    return TaskPage(tuple(make_task(row) for row in shown), str(shown[-1][0]) if more else None)
