"""The primitives of a transaction in SQL, in one text for SQLite, PostgreSQL, MySQL and others.

A backend derives from :class:`SqlTx`, names its types and its parameter mark, and begins the transaction. Everything
goes through a cursor of the Python Database API (PEP 249).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

from omniq.errors import CorruptRecord, SchemaMismatch
from omniq.flow import StoredFlow, StoredGate
from omniq.schedule import Schedule
from omniq.storage.base import StoredWorker, TaskQuery
from omniq.storage.paging import CLOCK_SLACK, slackened
from omniq.storage.records import dump_schedule
from omniq.storage.rows import (
    CHANGING,
    FIXED,
    LATEST,
    STATE_NUMBERS,
    STATES,
    changing_values,
    drop_at,
    dump_flow,
    dump_gate,
    fixed_values,
    from_micros,
    load_flow,
    load_gate,
    salvaged_of,
    task_of,
    to_micros,
)
from omniq.storage.states import due_at, later
from omniq.storage.validation import (
    LARGEST_REVISION,
    UNREADABLE,
    Salvaged,
    check_worker,
    corrupt,
    is_text,
    read_schedule,
)
from omniq.task import StoredTask, TaskState

__all__ = ["SqlTx"]

VERSION = 1
"""Of the tables below. A program refuses those of another version."""

SCHEMA = {
    "task": "seq BIGINT PRIMARY KEY, place INT NOT NULL, live_key VARCHAR(64) UNIQUE, drop_at BIGINT, "
    "id {key} NOT NULL UNIQUE, queue {key} NOT NULL, name {text} NOT NULL, body {blob} NOT NULL, "
    "priority INT NOT NULL, max_retries BIGINT NOT NULL, created_at BIGINT NOT NULL, unique_key {text}, tags {text}, "
    "result_ttl {float} NOT NULL, flow {key}, behind BIGINT, feeds {text}, opening_delay {float}, "
    "state INT NOT NULL, attempt INT NOT NULL, delivery INT NOT NULL, "
    "run_at BIGINT NOT NULL, started_at BIGINT, finished_at BIGINT, expires_at BIGINT, lease_until BIGINT, "
    "worker {text}, error {text}, progress {text}, cancel_requested INT NOT NULL, attempt_log {text}, "
    "result_payload {blob}",
    "flow": "id {key} PRIMARY KEY, live_key VARCHAR(64) UNIQUE, ended INT NOT NULL, due BIGINT, body {text} NOT NULL",
    "gate": "flow {key} NOT NULL, n BIGINT NOT NULL, body {text} NOT NULL, PRIMARY KEY (flow, n)",
    "task_count": "queue {key} NOT NULL, state INT NOT NULL, n BIGINT NOT NULL, PRIMARY KEY (queue, state)",
    "paused": "queue {key} PRIMARY KEY",
    "worker": "id {key} PRIMARY KEY, seen_at BIGINT NOT NULL, until BIGINT NOT NULL, about {text}",
    "schedule": "id {key} PRIMARY KEY, revision BIGINT NOT NULL, due BIGINT, body {text} NOT NULL",
    "meta": "version INT PRIMARY KEY, seq BIGINT NOT NULL, revision_floor BIGINT NOT NULL",
}
"""The tables; the last is made when all others are there."""
INDEXES = {
    "task_ready": ("task", "queue, state, place, run_at, seq"),
    "task_due": ("task", "queue, state, run_at"),
    "task_lease": ("task", "state, lease_until, seq"),
    "task_expiry": ("task", "state, expires_at"),
    "task_drop": ("task", "drop_at"),
    "task_member": ("task", "flow, behind, seq"),
    "flow_due": ("flow", "ended, due"),
    "schedule_due": ("schedule", "due"),
}

_COLUMN = {"unique": "unique_key"}
"""Fields that stand in a column of another name."""
_LATEST = "ORDER BY seq DESC LIMIT %s"
_LATEST_WITHOUT_LEASE = "ORDER BY lease_until DESC, seq DESC LIMIT %s"
_PLACE = re.compile(r"row [0-9]{1,18}")
GATES_AT_ONCE = 500
"""Gates that one query asks for: a statement takes a bounded number of parameters."""
_LEFT_OUT = frozenset({"body", "result_payload"})
"""What is not read where it is not asked for: it may be large."""
_ENDED = tuple(STATE_NUMBERS[state] for state in TaskState if state.is_final)
_Before = tuple[int, int, dict[str, Any], str]
"""What is known of a task that was read: its place in the order, state, changing columns, and queue."""


class SqlTx:
    """The primitives of one transaction, on tables of a namespace.

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

    def __init__(self, cursor: Any, namespace: str, now: datetime | None = None, *, write: bool = True) -> None:
        self.cursor = cursor
        self.changed = False
        self.problems: list[CorruptRecord] = []
        self._lock = self.lock if write else ""
        if now is not None:
            self.now = now
        self._before: dict[str, _Before] = {}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._namespace = namespace
        self._names = {one: f"{self.quote}{namespace}_{one}{self.quote}" for one in (*SCHEMA, *INDEXES)}
        self._schedules_there: set[str] = set()
        self._flows_there: set[str] = set()
        self._gates_there: set[tuple[str, int]] = set()

    now: datetime

    # Statements

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

    # Tables

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
            now: datetime = found[0][1]
            self.now = now.replace(tzinfo=UTC) if now.tzinfo is None else now.astimezone(UTC)

    # Tasks

    def _tasks(self, where: str, *values: Any, whole: bool = True) -> list[StoredTask]:
        """Return tasks; without their bodies and results unless they are asked for."""
        fields = [name for name in (*FIXED, *CHANGING) if whole or name not in _LEFT_OUT]
        columns = ", ".join(_COLUMN.get(name, name) for name in fields)
        tasks = []
        for seq, *row in self.rows(f"SELECT seq, {columns} FROM {{task}} WHERE {where}", *values):
            if not whole:
                row.insert(FIXED.index("body"), None)
                row.append(None)
            fixed, changing = row[: len(FIXED)], row[len(FIXED) :]
            try:
                task = task_of(fixed, changing, f"row {seq}")
            except CorruptRecord as problem:
                self.problems.append(problem)
                task = salvaged_of(problem, fixed[0], fixed, changing)
            known = dict(zip(CHANGING, changing, strict=True))
            self._before[task.id] = seq, known["state"], known, fixed[FIXED.index("queue")]
            tasks.append(task)
        return tasks

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        wanted = list(dict.fromkeys(ids))
        found = {task.id: task for task in self._tasks(f"id IN %s ORDER BY seq{self._lock}", wanted, whole=False)}
        for place in wanted:
            # One whose id is no text is shown, and can be removed, by its place.
            if place not in found and _PLACE.fullmatch(place):
                there = self._tasks(f"seq = %s{self._lock}", int(place.split()[1]), whole=False)
                found.update({task.id: task for task in there if task.id == place})
        return found

    def get(self, ids: Sequence[str]) -> dict[str, StoredTask]:
        return {task.id: task for task in self._tasks("id IN %s", list(dict.fromkeys(ids)))}

    def verify(self) -> None:
        for read in (self.schedules, self.workers, self.paused, self.counts):
            read()

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        if not tasks:
            return
        self.change("UPDATE {meta} SET seq = seq + %s", len(tasks))
        ((last,),) = self.rows("SELECT seq FROM {meta}")
        fields = (*FIXED, *CHANGING)
        columns = ", ".join(["seq", "place", "live_key", "drop_at", *(_COLUMN.get(name, name) for name in fields)])
        marks = ", ".join(["%s"] * (4 + len(fields)))
        rows = []
        for seq, task in enumerate(tasks, last - len(tasks) + 1):
            changing = changing_values(task)
            rows.append((seq, -task.priority, _live_key(task), drop_at(task), *fixed_values(task), *changing))
            self._counts[task.queue, changing[0]] += 1
        self.change_many(f"INSERT INTO {{task}} ({columns}) VALUES ({marks})", rows)
        self._count()

    def save(self, tasks: Sequence[StoredTask]) -> None:
        # What changes alike, such as the tasks of one claim, is one statement.
        alike: dict[tuple[str, ...], dict[tuple[Any, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        for task in tasks:
            seq, state, before, queue = self._before[task.id]
            if isinstance(task, Salvaged):
                self._end(task)
                continue
            after = dict(zip(CHANGING, changing_values(task), strict=True))
            changes = {name: value for name, value in after.items() if value != before[name]}
            if "state" in changes:
                self._counts[queue, state] -= 1
                self._counts[queue, after["state"]] += 1
                changes["drop_at"] = drop_at(task)
                if task.unique is not None and task.state.is_final is not (state in _ENDED):
                    changes["live_key"] = _live_key(task)
            self._before[task.id] = seq, after["state"], after, queue
            if changes:
                alike[tuple(changes)][tuple(changes.values())].append(seq)
        for names, groups in alike.items():
            sets = ", ".join(f"{name} = %s" for name in names)
            singles = [(*values, seqs[0]) for values, seqs in groups.items() if len(seqs) == 1]
            self.change_many(f"UPDATE {{task}} SET {sets} WHERE seq = %s", singles)
            for values, seqs in groups.items():
                if len(seqs) > 1:
                    self.change(f"UPDATE {{task}} SET {sets} WHERE seq IN %s", *values, seqs)
        self._count()

    def _end(self, task: Salvaged) -> None:
        """End a task that cannot be read, and leave the rest of it as it is."""
        seq, state, before, queue = self._before[task.id]
        failed, changing = STATE_NUMBERS[TaskState.FAILED], dict(zip(CHANGING, changing_values(task), strict=True))
        ended = {name: changing[name] for name in ("state", "finished_at", "lease_until", "error")}
        columns = ", ".join(f"{name} = %s" for name in (*ended, "drop_at", "live_key"))
        self.change(f"UPDATE {{task}} SET {columns} WHERE seq = %s", *ended.values(), drop_at(task), None, seq)
        self._counts[queue, state] -= 1
        self._counts[queue, failed] += 1
        self._before[task.id] = seq, failed, before | ended, queue

    def _count(self) -> None:
        # What stood for the queue and the state of a task that cannot be read may be anything.
        counts = {one: n for one, n in self._counts.items() if n and is_text(one[0]) and one[1] in STATES}
        # In one order everywhere, so that two transactions do not wait for each other.
        for (queue, state), step in sorted(counts.items()):
            # A number that is not what it was must not overflow, which would undo the whole transaction.
            if not self.change(
                "UPDATE {task_count} SET n = CASE WHEN n BETWEEN -%s AND %s THEN n ELSE 0 END + %s "
                "WHERE queue = %s AND state = %s",
                *(LARGEST_REVISION, LARGEST_REVISION, step, queue, state),
            ):
                self.change("INSERT INTO {task_count} (queue, state, n) VALUES (%s, %s, %s)", queue, state, step)
        self._counts.clear()

    def remove(self, ids: Sequence[str]) -> None:
        self._remove([self._before[task_id] for task_id in ids])

    def _remove(self, known: Sequence[_Before]) -> int:
        for _, state, _, queue in known:
            self._counts[queue, state] -= 1
        removed = self.change("DELETE FROM {task} WHERE seq IN %s", [seq for seq, _, _, _ in known])
        self._count()
        return removed

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        wanted = {_hashed(key): key for key in keys}
        found = self.rows("SELECT live_key, id FROM {task} WHERE live_key IN %s", list(wanted))
        return {wanted[live_key]: task_id for live_key, task_id in found}

    def promote(self, queue: str, limit: int) -> None:
        due = self.rows(
            f"SELECT seq FROM {{task}} WHERE queue = %s AND state = 1 AND run_at <= %s ORDER BY run_at LIMIT %s"
            f"{self.skip_locked}",
            queue,
            to_micros(self.now),
            limit,
        )
        if due:
            self.change("UPDATE {task} SET state = 2 WHERE seq IN %s", [seq for (seq,) in due])
            self._counts[queue, 1] -= len(due)
            self._counts[queue, 2] += len(due)
            self._count()

    def ready(self, queue: str, limit: int) -> list[StoredTask]:
        order = f"ORDER BY place, run_at, seq LIMIT %s{self.skip_locked}"
        return self._tasks(f"queue = %s AND state = 2 {order}", queue, limit)

    def lapsed(self, limit: int) -> list[StoredTask]:
        order = f"ORDER BY lease_until LIMIT %s{self.skip_locked}"
        # What is no time of this calendar, or none at all, has run out.
        lapsed = "lease_until <= %s OR lease_until > %s OR lease_until IS NULL"
        return self._tasks(f"state = 3 AND ({lapsed}) {order}", to_micros(self.now), LATEST, limit)

    def expired(self, limit: int) -> list[StoredTask]:
        order = f"ORDER BY expires_at LIMIT %s{self.skip_locked}"
        return self._tasks(f"state IN (1, 2) AND expires_at <= %s {order}", to_micros(self.now), limit, whole=False)

    def has_work(self, queues: Sequence[str]) -> bool:
        ready = self.rows("SELECT 1 FROM {task} WHERE queue IN %s AND state = 2 LIMIT 1", list(queues))
        moment = None if ready else self.next_task(queues)
        return bool(ready) or (moment is not None and moment <= self.now)

    def next_task(self, queues: Sequence[str]) -> datetime | None:
        where = "queue IN %s AND state = 1 AND run_at BETWEEN %s AND %s"
        return self._first(f"run_at FROM {{task}} WHERE {where} ORDER BY run_at", list(queues), 0, LATEST)

    def oldest_ready(self, queue: str) -> datetime | None:
        where = "queue = %s AND state = 2 AND run_at BETWEEN %s AND %s"
        return self._first(f"run_at FROM {{task}} WHERE {where} ORDER BY run_at", queue, 0, LATEST)

    def next_schedule(self, after: datetime) -> datetime | None:
        return self._first("due FROM {schedule} WHERE due > %s AND due <= %s ORDER BY due", to_micros(after), LATEST)

    def _first(self, select: str, *values: Any) -> datetime | None:
        found = self.rows(f"SELECT {select} LIMIT 1", *values)
        return from_micros(found[0][0]) if found else None

    def page(self, query: TaskQuery, before: int | None) -> tuple[list[StoredTask], int | None]:
        after, until = query.enqueued_after, query.enqueued_before
        scope = {"queue = %s": query.queue, "flow = %s": query.flow, "seq < %s": before}
        if after is not None:
            scope["seq >= %s"] = self._seq_of(slackened(after, -CLOCK_SLACK))
        stopped: int | None = None
        if query.look_at is not None:
            looked = self._latest(query.states, scope, query.look_at + 1)
            if len(looked) > query.look_at:
                scope["%s <= seq"] = stopped = looked[query.look_at - 1]
        wanted = {
            "name = %s": query.name,
            self.contains: None if query.tag is None else json.dumps(query.tag),
            "created_at >= %s": None if after is None else to_micros(after),
            "created_at < %s": None if until is None else to_micros(until),
        }
        found = self._latest(query.states, scope | wanted, query.limit + 1)
        page = found[: query.limit]
        tasks = self._tasks("seq IN %s ORDER BY seq DESC", page, whole=not query.bare)
        if query.bare:
            columns = "seq, length(body), length(result_payload)"
            sizes = {seq: size for seq, *size in self.rows(f"SELECT {columns} FROM {{task}} WHERE seq IN %s", page)}
            tasks = [task.bare(*sizes[self._before[task.id][0]]) for task in tasks]
        return tasks, page[-1] if len(found) > len(page) > 0 else stopped

    def _latest(self, states: Iterable[TaskState] | None, wanted: Mapping[str, Any], limit: int) -> list[int]:
        """Return the places of the latest tasks that match, the latest first."""
        given = {clause: value for clause, value in wanted.items() if value is not None}
        where, values = " AND ".join(["1 = 1", *given]), given.values()
        if states is None:
            return [seq for (seq,) in self.rows(f"SELECT seq FROM {{task}} WHERE {where} {_LATEST}", *values, limit)]
        found: list[int] = []
        for state in states:
            # In the order of an index, but for those that run, which are few.
            order = _LATEST if state is TaskState.RUNNING else f"AND lease_until IS NULL {_LATEST_WITHOUT_LEASE}"
            sql = f"SELECT seq FROM {{task}} WHERE state = %s AND {where} {order}"
            found += [seq for (seq,) in self.rows(sql, STATE_NUMBERS[state], *values, limit)]
        return sorted(found, reverse=True)[:limit]

    def _seq_of(self, moment: datetime) -> int:
        """Return a place before which all tasks were enqueued before a time, as far as the clock was not put back."""
        low, high = 0, (self.rows("SELECT max(seq) FROM {task}")[0][0] or 0) + 1
        wanted = to_micros(moment)
        while low < high:
            middle = (low + high) // 2
            at = self.rows("SELECT created_at FROM {task} WHERE seq >= %s ORDER BY seq LIMIT 1", middle)
            if at and at[0][0] < wanted:
                low = middle + 1
            else:
                high = middle
        return low

    def in_states(self, queue: str, states: Sequence[TaskState], limit: int) -> list[StoredTask]:
        numbers = [STATE_NUMBERS[state] for state in states]
        where = f"queue = %s AND state IN %s LIMIT %s{self.skip_locked}"
        return self._tasks(where, queue, numbers, limit, whole=False)

    def dropped(self, limit: int) -> list[StoredTask]:
        where = f"drop_at <= %s ORDER BY drop_at LIMIT %s{self.skip_locked}"
        return self._tasks(where, to_micros(self.now), limit, whole=False)

    def forget_workers(self) -> None:
        self.change("DELETE FROM {worker} WHERE until <= %s", to_micros(self.now))

    # Flows

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        found = {}
        where = f"id IN %s ORDER BY id{self._lock}"
        for flow_id, body in self.rows(f"SELECT id, body FROM {{flow}} WHERE {where}", list(dict.fromkeys(ids))):
            try:
                found[flow_id] = load_flow(body, flow_id)
            except CorruptRecord as problem:
                self.problems.append(problem)
        self._flows_there.update(found)
        return found

    def save_flow(self, flow: StoredFlow) -> None:
        due = due_at(flow)
        values = (
            None if flow.unique is None or flow.finished_at is not None else _hashed(flow.unique),
            int(flow.finished_at is not None),
            None if due is None else to_micros(due),
            dump_flow(flow),
            flow.id,
        )
        # One that was not there when it was looked for may be by now: it must not be replaced unseen.
        if flow.id in self._flows_there:
            self.change("UPDATE {flow} SET live_key = %s, ended = %s, due = %s, body = %s WHERE id = %s", *values)
        else:
            self.change("INSERT INTO {flow} (live_key, ended, due, body, id) VALUES (%s, %s, %s, %s, %s)", *values)
        self._flows_there.add(flow.id)

    def remove_flow(self, flow_id: str) -> None:
        self.change("DELETE FROM {gate} WHERE flow = %s", flow_id)
        self.change("DELETE FROM {flow} WHERE id = %s", flow_id)

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        if numbers is None:
            rows = self.rows("SELECT n, body FROM {gate} WHERE flow = %s", flow_id)
        else:
            wanted = list(numbers)
            parts = [wanted[start : start + GATES_AT_ONCE] for start in range(0, len(wanted), GATES_AT_ONCE)]
            select = "SELECT n, body FROM {gate} WHERE flow = %s AND n IN %s"
            rows = [row for part in parts for row in self.rows(select, flow_id, part)]
        found = {}
        for n, body in rows:
            try:
                found[n] = load_gate(body, flow_id, n)
            except CorruptRecord as problem:
                self.problems.append(problem)
            self._gates_there.add((flow_id, n))
        return found

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        rows = [(dump_gate(gate), flow_id, gate.n) for gate in gates]
        there = [row for row in rows if row[1:] in self._gates_there]
        self.change_many("UPDATE {gate} SET body = %s WHERE flow = %s AND n = %s", there)
        new = [row for row in rows if row[1:] not in self._gates_there]
        self.change_many("INSERT INTO {gate} (body, flow, n) VALUES (%s, %s, %s)", new)
        self._gates_there.update(row[1:] for row in new)

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        given = {
            "flow = %s": flow_id,
            "behind = %s": behind,
            "state IN %s": [STATE_NUMBERS[state] for state in states],
        }
        chosen = {clause: value for clause, value in given.items() if value is not None}
        where = f"{' AND '.join(chosen)} ORDER BY seq{'' if limit is None else ' LIMIT %s'}{self._lock}"
        return self._tasks(where, *chosen.values(), *(() if limit is None else (limit,)), whole=False)

    def count_members(self, flow_id: str) -> dict[TaskState, int]:
        rows = self.rows("SELECT state, COUNT(*) FROM {task} WHERE flow = %s GROUP BY state", flow_id)
        return {STATES[state]: count for state, count in rows if state in STATES}

    def flow_of_key(self, key: str) -> str | None:
        found = self.rows("SELECT id FROM {flow} WHERE live_key = %s", _hashed(key))
        return found[0][0] if found else None

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        where = "ended = %s AND due <= %s ORDER BY due LIMIT %s"
        rows = self.rows(f"SELECT id, body FROM {{flow}} WHERE {where}", int(ended), to_micros(self.now), limit)
        found = []
        for flow_id, body in rows:
            try:
                found.append(load_flow(body, flow_id).id)
            except CorruptRecord as problem:
                # It must not stand before the others for ever.
                self.problems.append(problem)
                self.change("UPDATE {flow} SET due = NULL WHERE id = %s", flow_id)
        return found

    def counts(self) -> dict[str, dict[TaskState, int]]:
        found: dict[str, dict[TaskState, int]] = {}
        for queue, state, n in self.rows("SELECT queue, state, n FROM {task_count} WHERE n <> 0"):
            if is_text(queue) and state in STATES and isinstance(n, int) and n >= 0:
                found.setdefault(queue, {})[STATES[state]] = n
            else:
                self.problems.append(corrupt("queue", queue, f"{n!r} tasks in state {state!r}"))
        return found

    # Queues, workers, schedules

    def paused(self) -> set[str]:
        found = {queue for (queue,) in self.rows("SELECT queue FROM {paused}")}
        paused = set(filter(is_text, found))
        self.problems += [corrupt("queue", queue, "its name is no text") for queue in found - paused]
        return paused

    def pause(self, queue: str) -> bool:
        return queue not in self.paused() and bool(self.change("INSERT INTO {paused} (queue) VALUES (%s)", queue))

    def resume(self, queue: str) -> bool:
        return bool(self.change("DELETE FROM {paused} WHERE queue = %s", queue))

    def seen(self, worker: str, lease: float, about: str | None) -> None:
        changed = self.changed
        values = {"seen_at": to_micros(self.now), "until": to_micros(later(self.now, lease))}
        told = values if about is None else {**values, "about": about}
        columns = ", ".join(f"{name} = %s" for name in told)
        if lease <= 0:
            self.change("DELETE FROM {worker} WHERE id = %s", worker)
        elif not self.change(f"UPDATE {{worker}} SET {columns} WHERE id = %s", *told.values(), worker):
            insert = "INSERT INTO {worker} (seen_at, until, id, about) VALUES (%s, %s, %s, %s)"
            self.change(insert, *values.values(), worker, about)
        self.changed = changed

    def workers(self) -> list[StoredWorker]:
        alive = self.rows("SELECT id, seen_at, about FROM {worker} WHERE until > %s", to_micros(self.now))
        running: dict[str, list[str]] = defaultdict(list)
        for worker, task_id in self.rows("SELECT worker, id FROM {task} WHERE state = 3 ORDER BY seq"):
            if is_text(task_id):
                running[worker].append(task_id)
        found = []
        for worker, seen_at, about in alive:
            try:
                tasks = tuple(running[worker])
                shown = StoredWorker(id=worker, seen_at=from_micros(seen_at), running=tasks, about=about)
                found.append(check_worker(shown))
            except UNREADABLE as error:
                self.problems.append(corrupt("worker", worker, error))
        return sorted(found, key=lambda worker: worker.id)

    def _schedules(self, where: str, *values: Any) -> tuple[list[Schedule], int]:
        """Return schedules that can be read, and how many there are with those that cannot."""
        rows = self.rows(f"SELECT id, revision, body FROM {{schedule}} WHERE {where}", *values)
        found = []
        for name, revision, body in rows:
            try:
                found.append(read_schedule(body, id=name, revision=revision))
            except CorruptRecord as problem:
                self.problems.append(problem)
        return found, len(rows)

    def schedules(self) -> list[Schedule]:
        return self._schedules("1 = 1")[0]

    def revision(self, schedule_id: str) -> int | None:
        found = self.rows(f"SELECT revision FROM {{schedule}} WHERE id = %s{self._lock}", schedule_id)
        if not found:
            return None
        self._schedules_there.add(schedule_id)
        revision = found[0][0]
        return revision if isinstance(revision, int) and 0 < revision < LARGEST_REVISION else 0

    def schedule(self, schedule_id: str) -> Schedule | None:
        found, _ = self._schedules("id = %s", schedule_id)
        return found[0] if found else None

    def store_schedule(self, schedule: Schedule) -> None:
        due = None if schedule.paused or schedule.next_run is None else to_micros(schedule.next_run)
        # One that was not there when it was looked for may be by now: it must not be replaced unseen.
        if schedule.id in self._schedules_there:
            sql = "UPDATE {schedule} SET revision = %s, due = %s, body = %s WHERE id = %s"
        else:
            sql = "INSERT INTO {schedule} (revision, due, body, id) VALUES (%s, %s, %s, %s)"
        self.change(sql, schedule.revision, due, dump_schedule(schedule), schedule.id)
        self._schedules_there.add(schedule.id)

    def remove_schedule(self, schedule_id: str) -> None:
        self.change("DELETE FROM {schedule} WHERE id = %s", schedule_id)
        self._schedules_there.discard(schedule_id)

    def revision_floor(self) -> int:
        # Locked: else another schedule of that id could come and go with the same number before this one is stored.
        return int(self.rows(f"SELECT revision_floor FROM {{meta}}{self._lock}")[0][0])

    def raise_revision_floor(self, revision: int) -> None:
        # Others may have raised it since it was read.
        self.change("UPDATE {meta} SET revision_floor = %s WHERE revision_floor < %s", revision, revision)

    def due(self, limit: int) -> list[Schedule]:
        found: list[Schedule] = []
        read = 0
        while len(found) < limit:  # those that cannot be read take no place
            where = "due <= %s ORDER BY due, id LIMIT %s OFFSET %s"
            more, n = self._schedules(where, to_micros(self.now), limit, read)
            found += more
            read += n
            if n < limit:
                break
        return found[:limit]


def _hashed(key: str) -> str:
    # An index cannot hold a text of any length.
    return hashlib.sha256(key.encode()).hexdigest()


def _live_key(task: StoredTask) -> str | None:
    return None if task.unique is None or task.state.is_final else _hashed(task.unique)
