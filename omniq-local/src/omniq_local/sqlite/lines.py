"""What limits ask of a transaction: :class:`~omniq.storage.sql.limits.SqlLimits` over one on this file."""

from __future__ import annotations

from collections import Counter
from typing import Any

from omniq.limit import Lane, Scope, StoredLine
from omniq.storage.limit_transitions import ELIGIBLE
from omniq.storage.sql.limits import SqlLimits
from omniq.storage.times import from_micros
from omniq_local.sqlite.transaction import Transaction

__all__ = ["ALL_WAITERS", "Lines"]

ALL_WAITERS = 1_000_000
"""More than ever wait for one queue."""


class Lines(SqlLimits):
    """Limits, lines and rates within one transaction.

    :param tx: the transaction.
    """

    mark = "?"

    def __init__(self, tx: Transaction) -> None:
        super().__init__(None, tx.sql.prefix, from_micros(tx.now))
        self._tx = tx
        self._running: Counter[Scope] | None = None
        """How many tasks run; None: they are yet to be counted."""
        self._names = {name: tx.sql.table(name) for name in ("task_limit", "lane", "line", "bucket")}

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        if any(isinstance(value, list) and not value for value in values):
            return []
        return self._tx.rows_of(*self._made(sql, values))

    def change(self, sql: str, *values: Any) -> int:
        if any(isinstance(value, list) and not value for value in values):
            return 0
        self._tx.rows += 1
        return max(0, self._tx.execute(*self._made(sql, values)).rowcount)

    def save_lane(self, lane: Lane) -> None:
        super().save_lane(lane)
        self._tx.lane_was_saved()
        self._tx.made_ready(lane.queue, ALL_WAITERS if lane.waking else 1)

    def save_line(self, line: StoredLine) -> None:
        super().save_line(line)
        if line.place == ELIGIBLE:
            self._tx.made_ready(line.queue)

    def running(self, scope: Scope) -> int:
        if self._running is None:
            self._running = Counter()
            for queue, key, name in self._tx.all("limits.running"):
                self.starts(queue, key, name)
        return self._running[scope]

    def starts(self, queue: str, key: str | None, name: str | None) -> None:
        """Count a running task, if those that run are counted already."""
        if self._running is not None:
            self._running[Scope(queue)] += 1
            if key is not None:
                self._running[Scope(queue, key)] += 1
            if name is not None:
                self._running[Scope(name=name)] += 1
