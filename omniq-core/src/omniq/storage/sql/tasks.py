"""Tasks in SQL."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from omniq.errors import CorruptRecord
from omniq.limit import PLAIN, Scope, line_id
from omniq.storage.corrupt_records import corrupt
from omniq.storage.limit_transitions import is_lined
from omniq.storage.paging import CLOCK_SLACK, slackened
from omniq.storage.rows import (
    CHANGING,
    FIXED,
    STATE_NUMBERS,
    STATES,
    changing_values,
    drop_at,
    fixed_values,
    salvaged_of,
    task_of,
)
from omniq.storage.sql.limits import scope_key
from omniq.storage.sql.statements import SqlStatements, hashed
from omniq.storage.states import holds_key
from omniq.storage.times import LATEST, optional_micros, to_micros
from omniq.storage.validation import LARGEST_REVISION, is_text
from omniq.storage.values import Salvaged, TaskQuery
from omniq.task import StoredTask, TaskState

__all__ = ["SqlTasks"]

_COLUMN = {"unique": "unique_key", "key": "limit_key", "limit": "limit_name"}
"""Fields that stand in a column of another name."""
_LATEST = "ORDER BY seq DESC LIMIT %s"
_LATEST_WITHOUT_LEASE = "ORDER BY lease_until DESC, seq DESC LIMIT %s"
_PLACE = re.compile(r"row [0-9]{1,18}")
_LEFT_OUT = frozenset({"body", "result_payload"})
"""What is not read where it is not asked for: it may be large."""
_ENDED = tuple(STATE_NUMBERS[state] for state in TaskState if state.is_final)
_Before = tuple[int, int, dict[str, Any], str]
"""What is known of a task that was read: its place in the order, state, changing columns, and queue."""


class SqlTasks(SqlStatements):
    """Primitives for tasks."""

    def __init__(self, cursor: Any, namespace: str, now: datetime | None = None, *, write: bool = True) -> None:
        super().__init__(cursor, namespace, now, write=write)
        self._before: dict[str, _Before] = {}
        self._counts: Counter[tuple[str, int]] = Counter()

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

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        if not tasks:
            return
        self.change("UPDATE {meta} SET seq = seq + %s", len(tasks))
        ((last,),) = self.rows("SELECT seq FROM {meta}")
        fields = (*FIXED, *CHANGING)
        columns = ", ".join(
            ["seq", "place", "line", "live_key", "drop_at", *(_COLUMN.get(name, name) for name in fields)]
        )
        marks = ", ".join(["%s"] * (5 + len(fields)))
        rows = []
        for seq, task in enumerate(tasks, last - len(tasks) + 1):
            changing = changing_values(task)
            line = PLAIN if task.limited is None else line_id(task.queue, task.key, task.limit)
            rows.append((seq, -task.priority, line, _live_key(task), drop_at(task), *fixed_values(task), *changing))
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
                if task.unique is not None and (task.first_at or task.state.is_final is not (state in _ENDED)):
                    changes["live_key"] = _live_key(task)
                if is_lined(task):
                    self._hold(task, seq, state)
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

    def _hold(self, task: StoredTask, seq: int, before: int) -> None:
        """Note whether a task holds slots of its key and its named limit: as long as it runs."""
        if task.state is TaskState.RUNNING:
            of_key = None if task.key is None else scope_key(Scope(task.queue, task.key))
            of_name = None if task.limit is None else scope_key(Scope(name=task.limit))
            insert = "INSERT INTO {task_slot} (seq, key_scope, name_scope) VALUES (%s, %s, %s)"
            self.change(insert, seq, of_key, of_name)
        elif before == STATE_NUMBERS[TaskState.RUNNING]:
            self.change("DELETE FROM {task_slot} WHERE seq = %s", seq)

    def _end(self, task: Salvaged) -> None:
        """End a task that cannot be read, and leave the rest of it as it is."""
        seq, state, before, queue = self._before[task.id]
        failed, changing = STATE_NUMBERS[TaskState.FAILED], dict(zip(CHANGING, changing_values(task), strict=True))
        ended = {name: changing[name] for name in ("state", "finished_at", "lease_until", "error")}
        columns = ", ".join(f"{name} = %s" for name in (*ended, "drop_at", "live_key"))
        self.change(f"UPDATE {{task}} SET {columns} WHERE seq = %s", *ended.values(), drop_at(task), None, seq)
        self.change("DELETE FROM {task_slot} WHERE seq = %s", seq)
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
        if any(known_as["state"] not in STATES for _, _, known_as, _ in known):
            self.change("DELETE FROM {task_slot} WHERE seq IN %s", [seq for seq, _, _, _ in known])
        self._count()
        return removed

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        wanted = {hashed(key): key for key in keys}
        found = self.rows("SELECT live_key, id FROM {task} WHERE live_key IN %s", list(wanted))
        return {wanted[live_key]: task_id for live_key, task_id in found}

    def promote(self, queue: str, limit: int) -> list[StoredTask]:
        due = self.rows(
            f"SELECT seq, line FROM {{task}} WHERE queue = %s AND state = 1 AND run_at <= %s ORDER BY run_at LIMIT %s"
            f"{self.skip_locked}",
            queue,
            to_micros(self.now),
            limit,
        )
        if due:
            self.change("UPDATE {task} SET state = 2 WHERE seq IN %s", [seq for seq, _ in due])
            self._counts[queue, 1] -= len(due)
            self._counts[queue, 2] += len(due)
            self._count()
        lined = [seq for seq, line in due if line != PLAIN]
        return self._tasks("seq IN %s ORDER BY seq", lined, whole=False) if lined else []

    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        # A line from which a task is missing that another has locked would pass for one that is empty.
        order = f"ORDER BY place, run_at, seq LIMIT %s{self.skip_locked if line == PLAIN else self._lock}"
        return self._tasks(f"queue = %s AND state = 2 AND line = %s {order}", queue, line, limit)

    def lapsed(self, limit: int) -> list[StoredTask]:
        order = f"ORDER BY lease_until LIMIT %s{self.skip_locked}"
        # What is no time of this calendar, or none at all, has run out.
        lapsed = "lease_until <= %s OR lease_until > %s OR lease_until IS NULL"
        return self._tasks(f"state = 3 AND ({lapsed}) {order}", to_micros(self.now), LATEST, limit)

    def expired(self, limit: int) -> list[StoredTask]:
        order = f"ORDER BY expires_at LIMIT %s{self.skip_locked}"
        return self._tasks(f"state IN (1, 2) AND expires_at <= %s {order}", to_micros(self.now), limit, whole=False)

    def has_work(self, queues: Sequence[str]) -> bool:
        plain = "queue IN %s AND state = 2 AND line = %s"
        ready = self.rows(f"SELECT 1 FROM {{task}} WHERE {plain} LIMIT 1", list(queues), PLAIN)
        moment = None if ready else self.next_task(queues)
        return bool(ready) or (moment is not None and moment <= self.now)

    def next_task(self, queues: Sequence[str]) -> datetime | None:
        where = "queue IN %s AND state = 1 AND run_at BETWEEN %s AND %s"
        return self._first(f"run_at FROM {{task}} WHERE {where} ORDER BY run_at", list(queues), 0, LATEST)

    def oldest_ready(self, queue: str) -> datetime | None:
        where = "queue = %s AND state = 2 AND run_at BETWEEN %s AND %s"
        return self._first(f"run_at FROM {{task}} WHERE {where} ORDER BY run_at", queue, 0, LATEST)

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
            "created_at >= %s": optional_micros(after),
            "created_at < %s": optional_micros(until),
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

    def counts(self) -> dict[str, dict[TaskState, int]]:
        found: dict[str, dict[TaskState, int]] = {}
        for queue, state, n in self.rows("SELECT queue, state, n FROM {task_count} WHERE n <> 0"):
            if is_text(queue) and state in STATES and isinstance(n, int) and n >= 0:
                found.setdefault(queue, {})[STATES[state]] = n
            else:
                self.problems.append(corrupt("queue", queue, f"{n!r} tasks in state {state!r}"))
        return found


def _live_key(task: StoredTask) -> str | None:
    return hashed(task.unique) if task.unique is not None and holds_key(task) else None
