"""Enqueueing one task: worth every microsecond, since a caller with one task at a time waits for each.

A task that needs nothing else is stored by a single statement that is its own transaction, and touches as few pages
as can be: the task's and that of its id. It is *fresh* then; counting it and entering it into the index of ready
tasks is left to the next write, or to the fold that follows here if a worker waits for it, and now and then in any
case.
"""

from __future__ import annotations

import enum
import sqlite3
from collections.abc import Callable

from omniq.task import NewTask
from omniq_local.sqlite.connections import MISSED, Missed, Writer
from omniq_local.sqlite.encoding import BODY_APART, FRESH, columns_of
from omniq_local.sqlite.errors import is_busy
from omniq_local.sqlite.lost_log import LogReplaced
from omniq_local.sqlite.settings import Settings
from omniq_local.sqlite.statements import Statements

__all__ = ["Inserted", "SingleWriter", "is_simple"]

UNFOLDED = 256
"""About so many fresh tasks at most are left to other writes."""


class Inserted(enum.Enum):
    """What became of a task."""

    STORED = enum.auto()
    STORED_TO_FOLD = enum.auto()
    """It was stored, and the fresh tasks shall be folded."""
    REFUSED = enum.auto()
    """There is a task with its id, or a live one with its unique key; nothing was done."""


def is_simple(task: NewTask) -> bool:
    """Tell whether one statement is all that a task takes."""
    return (
        task.run_at is None
        and task.flow is None
        and not task.tags
        and task.key is None
        and task.limit is None
        and task.debounce is None
        and len(task.body) <= BODY_APART
    )


class SingleWriter(Writer):
    """A writer that can also insert one simple task."""

    def __init__(
        self,
        settings: Settings,
        sql: Statements,
        now: Callable[[], int],
        committed: Callable[[list[tuple[int, int]], int], None],
    ) -> None:
        super().__init__(settings, sql, now, committed)
        self._insert = sql.sized("enqueue.insert", 1)
        self._noticed = False

    def _on_connected(self, connection: sqlite3.Connection) -> None:
        connection.create_function("omniq_notice", 0, self._notice)
        connection.execute(self._sql["single.trigger"])

    def _notice(self) -> None:
        self._noticed = True

    def insert(self, task: NewTask) -> Inserted | Missed:
        """Store a simple task now, on this thread, unless that would mean to wait."""
        now = self._now()
        row = columns_of(task, now, now, FRESH)
        if self._waiting or not self.lock.acquire(blocking=False):
            return MISSED
        try:
            cursor = self._connected().execute(self._insert, row)
            stored, seq, noticed = cursor.rowcount == 1, cursor.lastrowid, self._noticed
            self._noticed = False
        except LogReplaced:
            return MISSED
        except sqlite3.Error as error:
            if is_busy(error):
                return MISSED
            raise self._failed(error) from error
        finally:
            self.lock.release()
        if not stored:
            return Inserted.REFUSED
        self._committed([], 1)
        return Inserted.STORED_TO_FOLD if noticed or not seq or seq % UNFOLDED == 0 else Inserted.STORED
