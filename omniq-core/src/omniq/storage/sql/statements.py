"""SQL statements on the tables of a namespace, and what a dialect of SQL is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

from omniq.errors import CorruptRecord, SchemaMismatch
from omniq.storage.times import from_micros

__all__ = ["SqlStatements", "hashed"]

VERSION = 1
"""Of the tables below. A program refuses those of another version."""

SCHEMA = {
    "task": "seq BIGINT PRIMARY KEY, place INT NOT NULL, live_key VARCHAR(64) UNIQUE, drop_at BIGINT, "
    "id {key} NOT NULL UNIQUE, queue {key} NOT NULL, name {text} NOT NULL, body {blob} NOT NULL, "
    "priority INT NOT NULL, max_retries BIGINT NOT NULL, created_at BIGINT NOT NULL, unique_key {text}, tags {text}, "
    "result_ttl {float} NOT NULL, flow {key}, behind BIGINT, feeds {text}, opening_delay {float}, "
    "line VARCHAR(64) NOT NULL, limit_key {text}, limit_name {text}, first_at BIGINT, "
    "state INT NOT NULL, attempt INT NOT NULL, delivery INT NOT NULL, "
    "run_at BIGINT NOT NULL, started_at BIGINT, finished_at BIGINT, expires_at BIGINT, lease_until BIGINT, "
    "worker {text}, error {text}, progress {text}, cancel_requested INT NOT NULL, attempt_log {text}, "
    "result_payload {blob}",
    "flow": "id {key} PRIMARY KEY, live_key VARCHAR(64) UNIQUE, ended INT NOT NULL, due BIGINT, body {text} NOT NULL",
    "gate": "flow {key} NOT NULL, n BIGINT NOT NULL, body {text} NOT NULL, PRIMARY KEY (flow, n)",
    "task_slot": "seq BIGINT PRIMARY KEY, key_scope VARCHAR(64), name_scope VARCHAR(64)",
    "task_limit": "id VARCHAR(64) PRIMARY KEY, name {text} NOT NULL, body {text} NOT NULL",
    "lane": "queue {key} PRIMARY KEY, body {text} NOT NULL",
    "line": "id VARCHAR(64) PRIMARY KEY, queue {key} NOT NULL, key_scope VARCHAR(64), place VARCHAR(64) NOT NULL, "
    "first_rank BIGINT NOT NULL, second_rank BIGINT NOT NULL, body {text} NOT NULL",
    "bucket": "id VARCHAR(64) PRIMARY KEY, at_rest BIGINT NOT NULL",
    "limit_lock": "id INT PRIMARY KEY",
    "task_count": "queue {key} NOT NULL, state INT NOT NULL, n BIGINT NOT NULL, PRIMARY KEY (queue, state)",
    "paused": "queue {key} PRIMARY KEY",
    "worker": "id {key} PRIMARY KEY, seen_at BIGINT NOT NULL, until BIGINT NOT NULL, about {text}",
    "schedule": "id {key} PRIMARY KEY, revision BIGINT NOT NULL, due BIGINT, body {text} NOT NULL",
    "meta": "version INT PRIMARY KEY, seq BIGINT NOT NULL, revision_floor BIGINT NOT NULL",
}
"""The tables; the last is made when all others are there."""
INDEXES = {
    "task_ready": ("task", "queue, state, line, place, run_at, seq"),
    "task_due": ("task", "queue, state, run_at"),
    "task_lease": ("task", "state, lease_until, seq"),
    "task_expiry": ("task", "state, expires_at"),
    "task_drop": ("task", "drop_at"),
    "task_member": ("task", "flow, behind, seq"),
    "task_slot_key": ("task_slot", "key_scope"),
    "task_slot_name": ("task_slot", "name_scope"),
    "line_place": ("line", "queue, place, first_rank, second_rank"),
    "line_parked": ("line", "place, queue"),
    "line_key": ("line", "key_scope"),
    "bucket_rest": ("bucket", "at_rest"),
    "flow_due": ("flow", "ended, due"),
    "schedule_due": ("schedule", "due"),
}


class SqlStatements:
    """Statements in one transaction, and the tables.

    :param cursor: a cursor of the driver's, in the transaction.
    :param namespace: the tables are named after it.
    :param now: the store's clock, unless :attr:`clock` has the database's.
    :param write: whether the transaction may write: one that only reads locks nothing.
    """

    mark: ClassVar[str] = "%s"
    """How a parameter is written."""
    quote: ClassVar[str] = '"'
    """What stands around a name."""
    types: Mapping[str, str] = {}
    """The database's types for ``key`` (a short text, compared as bytes), ``text``, ``blob`` and ``float`` (of 64
    bits); ``suffix`` follows each table."""
    contains: ClassVar[str] = "instr(tags, %s) > 0"
    """Whether the column ``tags`` holds a text."""
    lock: ClassVar[str] = ""
    """What follows a SELECT of rows that are going to be changed (``FOR UPDATE``), if a transaction locks rows rather
    than the store."""
    skip_locked: ClassVar[str] = ""
    """The same where rows that others have locked may be passed over (``FOR UPDATE SKIP LOCKED``)."""
    clock: ClassVar[str] = ""
    """The database's clock as an expression, in UTC; empty: the backend sets :attr:`now`."""
    exists: ClassVar[str] = ""
    """A query that finds a row if there is a table named ``%s``, where to make one that is there costs locks; empty:
    it costs nothing."""
    indexes_apart: ClassVar[bool] = True
    """Whether indexes are made by statements of their own (``CREATE INDEX IF NOT EXISTS``), or as parts of their
    tables."""

    now: datetime

    def __init__(self, cursor: Any, namespace: str, now: datetime | None = None, *, write: bool = True) -> None:
        self.cursor = cursor
        self.changed = False
        self.problems: list[CorruptRecord] = []
        self._lock = self.lock if write else ""
        if now is not None:
            self.now = now
        self._namespace = namespace
        self._names = {one: f"{self.quote}{namespace}_{one}{self.quote}" for one in (*SCHEMA, *INDEXES)}
        self._there: set[tuple[str, *tuple[str | int, ...]]] = set()
        """Which flows, gates and schedules were there when they were looked for: (table, key)."""

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query.

        :param sql: with ``%s`` for a value, also for one that is a list (``IN %s``), and names of tables in braces.
        """
        if any(isinstance(value, list) and not value for value in values):
            return []
        self.cursor.execute(*self._made(sql, values))
        return list(self.cursor.fetchall())

    def change(self, sql: str, *values: Any) -> int:
        """Run a statement that changes rows.

        :param sql: the statement.
        :param values: its parameters, in order.
        :return: how many rows it found, whether or not they were as it says already.
        """
        if any(isinstance(value, list) and not value for value in values):
            return 0
        self.cursor.execute(*self._made(sql, values))
        count: int = max(0, self.cursor.rowcount)
        self.changed = self.changed or count > 0
        return count

    def change_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run a statement once for each row of values.

        :param sql: the statement.
        :param rows: its parameters, in order, for each row.
        """
        if rows:
            self.cursor.executemany(self._made(sql, [None] * len(rows[0]))[0], rows)
            self.changed = True

    def _made(self, sql: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
        first, *parts = sql.split("%s")
        text, flat = [first], []
        for part, value in zip(parts, values, strict=True):
            if isinstance(value, list):
                flat += value
                text.append(f"({', '.join([self.mark] * len(value))}){part}")
            else:
                flat.append(value)
                text.append(self.mark + part)
        return "".join(text).format(**self._names), flat

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what was done in a block that raises.

        :return: a context manager.
        """
        self.cursor.execute("SAVEPOINT omniq")
        try:
            yield
        except BaseException:
            self.cursor.execute("ROLLBACK TO SAVEPOINT omniq")
            raise
        self.cursor.execute("RELEASE SAVEPOINT omniq")

    def create(self) -> None:
        """Make the tables that are not there. One process at a time: the backend holds a lock meanwhile."""
        if self.exists and self.rows(self.exists, f"{self._namespace}_meta") and self.rows("SELECT 1 FROM {meta}"):
            return
        types = {"key": "TEXT", "text": "TEXT", "blob": "BLOB", "float": "FLOAT", "suffix": "", **self.types}
        for table, columns in SCHEMA.items():
            indexes = {name: on for name, (of, on) in INDEXES.items() if of == table}
            inside = [] if self.indexes_apart else [f"INDEX {self._names[name]} ({on})" for name, on in indexes.items()]
            parts = ", ".join([columns.format(**types), *inside])
            self.cursor.execute(f"CREATE TABLE IF NOT EXISTS {self._names[table]} ({parts}){types['suffix']}")
            for name, on in indexes.items() if self.indexes_apart else ():
                self.cursor.execute(f"CREATE INDEX IF NOT EXISTS {self._names[name]} ON {self._names[table]} ({on})")
        if not self.rows("SELECT 1 FROM {meta}"):
            if not self.rows("SELECT 1 FROM {limit_lock}"):
                self.change("INSERT INTO {limit_lock} (id) VALUES (1)")
            self.change("INSERT INTO {meta} (version, seq, revision_floor) VALUES (%s, 0, 0)", VERSION)

    def check(self) -> None:
        """Refuse tables of another version, and look at the clock if it is the database's.

        :raises SchemaMismatch: says which they are of.
        """
        found = self.rows(f"SELECT version, {self.clock or '1'} FROM {{meta}}")
        if [version for version, _ in found] != [VERSION]:
            versions = ", ".join(str(version) for version, _ in found) or "none"
            raise SchemaMismatch(
                f"the tables named after {self._names['meta']} are of version {versions}, and this program knows "
                f"{VERSION}; run the version of the program that made them, or take another namespace"
            )
        if self.clock:
            self._set_clock(found[0][1])

    def _set_clock(self, now: datetime) -> None:
        self.now = now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC)

    def _first(self, select: str, *values: Any) -> datetime | None:
        found = self.rows(f"SELECT {select} LIMIT 1", *values)
        return from_micros(found[0][0]) if found else None


def hashed(key: str) -> str:
    """Return a key as it stands in an index, which cannot hold a text of any length."""
    return hashlib.sha256(key.encode()).hexdigest()
