"""One write transaction: what every verb does besides its own statements.

*Fresh tasks.* Each page of the file that a commit touches costs it about as much again as the first one. A single
enqueue therefore writes the task and its id and nothing else, see single.py: the task is *fresh*. Every other write
first *folds* the fresh ones, many at a time: it counts them, and turns them into ready ones, which enters them into
the index that claims read. A reader that does not write looks at what is folded and at the few tasks behind it.

*Waking.* What a transaction makes ready or ends is noted in it. Before the commit those who wait for it are taken from
the table of waiters, no more of them than there are tasks; after the commit they are sent their datagrams.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from attrs import frozen

from omniq_local.sqlite.connecting import escaped, lenient
from omniq_local.sqlite.encoding import CANCELLED, FAILED, FRESH, READY, SUCCEEDED
from omniq_local.sqlite.errors import is_undecodable
from omniq_local.sqlite.statements import Statements

__all__ = ["End", "News", "Row", "Transaction"]

T = TypeVar("T")

YEAR = 366 * 86400 * 1_000_000
"""Microseconds."""
SOON = 2_000_000
"""Microseconds. A waiter finds out by itself about what is due later than this, see waiting.py."""

Row = tuple[int, str, str, int, str | None]
"""Of a task: its seq, id, queue, state and flow."""
End = tuple[Row, int, bytes | None, str | None, str | None]
"""How a task ends: its row, its final state, its result, its error as JSON and its attempt log; the two last as they
are if they are None."""


@frozen
class News:
    """What those who wait are to be told once it is committed."""

    ready: dict[str, int]
    """How many of them, by topic."""
    ended: list[str]
    """The ids of tasks."""


class Transaction:
    """A write transaction that has begun.

    :param connection: on which it runs.
    :param sql: the namespace's statements.
    :param now: the store's now, in microseconds.
    :param execute: how to run a statement; None: as the connection does it.
    :param prospects: returns of those of some queues that have limits or lines whether a claim may return something
        now, or in a moment; None: no caller who waits is woken by this transaction.
    """

    __slots__ = (
        "_connection",
        "_counts",
        "_ended",
        "_has_lanes",
        "_has_waiters",
        "_ready",
        "_stamp",
        "execute",
        "now",
        "pokes",
        "prospects",
        "rows",
        "sql",
    )

    def __init__(
        self,
        connection: sqlite3.Connection,
        sql: Statements,
        now: int,
        execute: Callable[..., sqlite3.Cursor] | None = None,
        prospects: Callable[[Transaction, Sequence[str]], Mapping[str, bool]] | None = None,
    ) -> None:
        self._connection = connection
        self.execute = connection.execute if execute is None else execute
        self.sql = sql
        self.now = now
        self.pokes: list[tuple[int, int]] = []
        """Token and port of each waiter to wake after the commit."""
        self.rows = 0
        """About how many rows were written."""
        self._counts: dict[tuple[str, int], int] = {}
        self._ready: dict[str, int] = {}
        self._ended: list[str] = []
        self._stamp: int | None = None
        self._has_waiters = 0
        self._has_lanes: int | None = None
        self.prospects = prospects

    # The state of things

    def _glance(self) -> None:
        created_at, self._has_waiters = self.execute(self.sql["transaction.glance"]).fetchone()
        # A clock is put back by a year at most; else it is the record that is wrong.
        is_ahead = created_at is not None and self.now < created_at <= self.now + YEAR
        self._stamp = created_at if is_ahead else self.now

    @property
    def stamp(self) -> int:
        """What counts as now in the order of tasks: not before the latest task, though the clock be put back."""
        if self._stamp is None:
            self._glance()
        assert self._stamp is not None
        return self._stamp

    @property
    def has_waiters(self) -> bool:
        """Whether there are waiters."""
        if self._stamp is None:
            self._glance()
        return bool(self._has_waiters)

    @property
    def has_lanes(self) -> bool:
        """Whether any queue has limits or lines, see :class:`omniq.limit.Lane`."""
        if self._has_lanes is None:
            self._has_lanes = self.execute(self.sql["transaction.tail_ends"]).fetchone()[2]
        return bool(self._has_lanes)

    def lane_was_saved(self) -> None:
        """Note that a queue has limits or lines now."""
        self._has_lanes = 1

    def last_seq(self) -> int:
        """Return the number of the latest task."""
        last: int | None = self.execute(self.sql["transaction.tail_ends"]).fetchone()[1]
        return last or 0

    # Reading

    def value(self, statement: str, *parameters: Any) -> Any:
        """Return the JSON value that a statement returns in its one row; text that is none is made the best of."""
        return self._leniently(lenient, self.exact_value, statement, *parameters)

    def _leniently(self, texts: Callable[[bytes], str], read: Callable[..., T], *parameters: Any) -> T:
        try:
            return read(*parameters)
        except sqlite3.OperationalError as error:
            if not is_undecodable(error):
                raise
            self._connection.text_factory = texts
            try:
                return read(*parameters)
            finally:
                self._connection.text_factory = str

    def exact_value(self, statement: str, *parameters: Any) -> Any:
        """Return the JSON value that a statement returns in its one row."""
        return json.loads(self.execute(self.sql[statement], parameters).fetchone()[0])

    def one(self, statement: str, *parameters: Any) -> tuple[Any, ...] | None:
        """Return the first row of a statement; what is no UTF-8 in it is escaped."""

        def read() -> tuple[Any, ...] | None:
            row: tuple[Any, ...] | None = self.execute(self.sql[statement], parameters).fetchone()
            return row

        return self._leniently(escaped, read)

    def all(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement; what is no UTF-8 in them is escaped."""
        return self.rows_of(self.sql[statement], parameters)

    def rows_of(self, text: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return the rows of a query; what is no UTF-8 in them is escaped.

        :param text: in SQL.
        """

        def read() -> list[tuple[Any, ...]]:
            return self.execute(text, parameters).fetchall()

        return self._leniently(escaped, read)

    # Writing

    def run(self, statement: str, *parameters: Any) -> int:
        """Run a statement; return how many rows it changed."""
        return self.execute(self.sql[statement], parameters).rowcount

    def batch(self, statement: str, rows: Sequence[tuple[Any, ...]], *first: Any) -> int:
        """Run a statement for many rows of values; return how many rows it changed."""
        changed = 0
        for text, parameters in self.sql.in_groups(statement, rows, *first):
            changed += self.execute(text, parameters).rowcount
        self.rows += len(rows)
        return changed

    # Counting

    def count(self, queue: str, state: int, n: int) -> None:
        """Note that a queue has more, or fewer, tasks in a state."""
        self._counts[queue, state] = self._counts.get((queue, state), 0) + n

    def fold(self) -> None:
        """Count the tasks that were enqueued since the last fold, and make the fresh ones ready."""
        folded, last, lanes = self.execute(self.sql["transaction.tail_ends"]).fetchone()
        self._has_lanes = self._has_lanes or lanes
        folded += self._counts.get(("", -1), 0)  # by an earlier fold of this transaction
        if last is None or last <= folded:
            return
        has_fresh = False
        for queue, state, n in self.value("transaction.tail", folded):
            if state == FRESH:
                has_fresh = True
                self.made_ready(queue, n)
            self.count(queue, READY if state == FRESH else state, n)
        if has_fresh:
            self.rows += last - folded
            self.run("transaction.promote_tail", folded)
        self.count("", -1, last - folded)

    # Ends

    def conclude(self, rows: Iterable[End]) -> list[int]:
        """End tasks.

        :param rows: see :data:`End`.
        :return: the seqs of those that belong to flows, which have yet to count them, see flows.py.
        """
        values = []
        members = []
        counts, ended = self._counts, self._ended
        for (seq, task_id, queue, state, flow), final, result, error, attempt_log in rows:
            values.append((seq, final, result, error, attempt_log))
            counts[queue, state] = counts.get((queue, state), 0) - 1
            counts[queue, final] = counts.get((queue, final), 0) + 1
            ended.append(task_id)
            if flow is not None:
                members.append(seq)
        self.batch("transaction.conclude", values, self.now, self.now)
        return members

    def forget(self, rows: Sequence[Row]) -> None:
        """Remove tasks with all that belongs to them."""
        if not rows:
            return
        seqs = json.dumps([row[0] for row in rows])
        self.run("transaction.untag", seqs)
        self.run("transaction.drop_bodies", seqs)
        self.run("transaction.drop", seqs)
        # SQLite gives the numbers of the last rows again once they are gone.
        self.flush_counts()
        self.run("transaction.rewind")
        for _, task_id, queue, state, _ in rows:
            self.count(queue, state, -1)
            self._ended.append(task_id)
        self.rows += len(rows)

    # Waking

    def made_ready(self, queue: str, n: int = 1) -> None:
        """Note that tasks of a queue became ready."""
        self._topic("q:" + queue, n)

    def will_be_ready(self, queue: str, at: int) -> None:
        """Note that a task of a queue will be ready."""
        if at - self.now < SOON:
            self.made_ready(queue)

    def went(self, task_id: str, queue: str, before: int, after: int) -> None:
        """Note that a task went from one state to another."""
        if before != after:
            self.count(queue, before, -1)
            self.count(queue, after, 1)
        if after in (SUCCEEDED, FAILED, CANCELLED):
            self._ended.append(task_id)

    def agenda_is_left(self) -> None:
        """Note that flows have something to be done about them, for which any waiter will do."""
        self._topic("s:", 1)

    def schedule_due(self, at: int | None) -> None:
        """Note that a schedule fires at a time."""
        if at is not None and at - self.now < SOON:
            self._topic("s:", 1)

    def _topic(self, topic: str, n: int) -> None:
        self._ready[topic] = self._ready.get(topic, 0) + n

    # The end

    def flush_counts(self) -> None:
        """Write down what was counted."""
        counts = [(queue, state, n) for (queue, state), n in self._counts.items() if n]
        self._counts.clear()
        if counts:
            self.batch("transaction.count", counts)

    def complete(self) -> None:
        """Do what is left to do before the commit, or before a name is written into the table of waiters."""
        if self._counts:
            self.flush_counts()
        if self._ready or self._ended:
            if self.has_waiters:
                self._choose_whom_to_wake()
            self._ready.clear()
            self._ended.clear()

    def complete_for_others(self) -> News | None:
        """Do what is left to do before a commit that the caller makes.

        :return: what to :meth:`hear` after it; None if no caller waits. Until then no other process writes, not even
            its name on the table.
        """
        self.flush_counts()
        if (self._ready or self._ended) and self.has_waiters:
            return News(self._ready, self._ended)
        return None

    def hear(self, news: Iterable[News]) -> None:
        """Take note of what others have committed, to wake those who wait for it."""
        for entry in news:
            for topic, n in entry.ready.items():
                self._topic(topic, n)
            self._ended += entry.ended

    def _choose_whom_to_wake(self) -> None:
        held_back = self._held_back() if self._ready and self.has_lanes else ()
        for topic, n in self._ready.items():
            if topic not in held_back:
                self._dismiss(self.value("transaction.waiters_of", topic, self.now, n))
        if self._ended:
            self._dismiss(self.value("transaction.waiters_of_tasks", json.dumps(self._ended)))

    def _held_back(self) -> set[str]:
        """Return the topics of queues of which a limit holds back all that is ready."""
        if self.prospects is None:
            return set()
        queues = [topic[2:] for topic in self._ready if topic.startswith("q:")]
        return {f"q:{queue}" for queue, is_open in self.prospects(self, queues).items() if not is_open}

    def _dismiss(self, waiters: list[list[int]]) -> None:
        if waiters:
            self.run("transaction.dismiss", json.dumps([token for token, _ in waiters]))
            self.pokes += [(token, port) for token, port in waiters]
