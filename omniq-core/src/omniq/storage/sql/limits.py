"""Limits in SQL: what is stored of them, their lines and their rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omniq.limit import Lane, Limit, Scope, StoredLine
from omniq.storage.corrupt_records import sound
from omniq.storage.limit_transitions import IDLE, rank_of
from omniq.storage.records import dump_limit, read_limit
from omniq.storage.rows import STATE_NUMBERS, dump_lane, dump_line, load_lane, load_line
from omniq.storage.sql.statements import SqlStatements, hashed
from omniq.storage.validation import is_text
from omniq.task import TaskState

__all__ = ["SqlLimits", "scope_key"]


class SqlLimits(SqlStatements):
    """Primitives for limits."""

    _has_limits_lock = False

    def lock_limits(self) -> None:
        if self._lock and not self._has_limits_lock:
            self._has_limits_lock = True
            self.rows(f"SELECT id FROM {{limit_lock}} WHERE id = 1{self._lock}")
            if self.clock:
                # Later than what the transaction before has stored: a task must not start before it freed the slot.
                self._set_clock(self.rows(f"SELECT {self.clock} FROM {{limit_lock}} WHERE id = 1")[0][0])

    def lanes(self, queues: Iterable[str] | None) -> dict[str, Lane]:
        if queues is None:
            rows = self.rows("SELECT queue, body FROM {lane}")
        else:
            rows = self.rows("SELECT queue, body FROM {lane} WHERE queue IN %s", list(queues))
        found = sound(rows, load_lane, self.problems)
        # The lines of one that cannot be read are as they were.
        return {queue: found.get(queue) or Lane(queue=queue) for queue, _ in rows}

    def save_lane(self, lane: Lane) -> None:
        if not self.change("UPDATE {lane} SET body = %s WHERE queue = %s", dump_lane(lane), lane.queue):
            self.change("INSERT INTO {lane} (body, queue) VALUES (%s, %s)", dump_lane(lane), lane.queue)

    def remove_lane(self, queue: str) -> None:
        self.change("DELETE FROM {lane} WHERE queue = %s", queue)

    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        if ids is None:
            rows = self.rows("SELECT name, body FROM {task_limit}")
        else:
            names = {hashed(one): one for one in ids}
            found = self.rows("SELECT id, body FROM {task_limit} WHERE id IN %s", list(names))
            rows = [(names[hashed_id], body) for hashed_id, body in found]
        limits = [read_limit(body, name, self.problems) for name, body in rows if is_text(name)]
        return {limit.id: limit for limit in limits if limit is not None}

    def store_limit(self, limit: Limit) -> None:
        values = dump_limit(limit), hashed(limit.id)
        if not self.change("UPDATE {task_limit} SET body = %s WHERE id = %s", *values):
            self.change("INSERT INTO {task_limit} (body, id, name) VALUES (%s, %s, %s)", *values, limit.id)

    def remove_limit(self, limit_id: str) -> None:
        self.change("DELETE FROM {task_limit} WHERE id = %s", hashed(limit_id))

    def _lines(self, where: str, *values: Any) -> list[StoredLine]:
        return self._loaded(self.rows(f"SELECT id, body FROM {{line}} WHERE {where}", *values))

    def _loaded(self, rows: Iterable[tuple[Any, Any]]) -> list[StoredLine]:
        return list(sound(rows, load_line, self.problems).values())

    def line(self, line_id: str) -> StoredLine | None:
        found = self._lines("id = %s", line_id)
        return found[0] if found else None

    def lines(self, queue: str, place: str, limit: int, until: int | None = None) -> list[StoredLine]:
        within = "" if until is None else "AND first_rank <= %s"
        given = [queue, hashed(place), *(() if until is None else (until,))]
        where = f"queue = %s AND place = %s {within} ORDER BY first_rank, second_rank LIMIT %s"
        most = limit
        while True:
            rows = self.rows(f"SELECT id, body FROM {{line}} WHERE {where}", *given, most)
            found = self._loaded(rows)
            if len(found) >= limit or len(rows) < most:
                return found[:limit]
            most *= 2  # those that cannot be read stand before none that can

    def lines_of_key(self, queue: str, key: str) -> list[StoredLine]:
        return self._lines("key_scope = %s ORDER BY id", scope_key(Scope(queue, key)))

    def queues_at(self, place: str) -> list[str]:
        rows = self.rows("SELECT DISTINCT queue FROM {line} WHERE place = %s ORDER BY queue", hashed(place))
        return [queue for (queue,) in rows]

    def has_lines(self, queue: str) -> bool:
        # One range of the index for those before the place, and one for those behind it.
        return any(
            self.rows(f"SELECT 1 FROM {{line}} WHERE queue = %s AND place {than} %s LIMIT 1", queue, hashed(IDLE))
            for than in ("<", ">")
        )

    def save_line(self, line: StoredLine) -> None:
        values = (hashed(line.place), *rank_of(line), dump_line(line), line.id)
        columns = "place = %s, first_rank = %s, second_rank = %s, body = %s"
        if not self.change(f"UPDATE {{line}} SET {columns} WHERE id = %s", *values):
            scope = None if line.key is None else scope_key(Scope(line.queue, line.key))
            names = "place, first_rank, second_rank, body, id, queue, key_scope"
            self.change(
                f"INSERT INTO {{line}} ({names}) VALUES (%s, %s, %s, %s, %s, %s, %s)", *values, line.queue, scope
            )

    def remove_line(self, line: StoredLine) -> None:
        self.change("DELETE FROM {line} WHERE id = %s", line.id)

    def running(self, scope: Scope) -> int:
        if scope.queue is not None and scope.key is None:
            where = "FROM {task_count} WHERE queue = %s AND state = %s"
            found = self.rows(f"SELECT n {where}", scope.queue, STATE_NUMBERS[TaskState.RUNNING])
            return int(found[0][0]) if found else 0
        column = "name_scope" if scope.key is None else "key_scope"
        return int(self.rows(f"SELECT COUNT(*) FROM {{task_slot}} WHERE {column} = %s", scope_key(scope))[0][0])

    def bucket(self, scope: Scope) -> int:
        found = self.rows("SELECT at_rest FROM {bucket} WHERE id = %s", scope_key(scope))
        return int(found[0][0]) if found else 0

    def save_bucket(self, scope: Scope, at_rest: int) -> None:
        if not self.change("UPDATE {bucket} SET at_rest = %s WHERE id = %s", at_rest, scope_key(scope)):
            self.change("INSERT INTO {bucket} (at_rest, id) VALUES (%s, %s)", at_rest, scope_key(scope))

    def drop_buckets(self, until: int, limit: int) -> None:
        found = self.rows("SELECT id FROM {bucket} WHERE at_rest <= %s ORDER BY at_rest LIMIT %s", until, limit)
        if found:
            self.lock_limits()
            at_rest = "DELETE FROM {bucket} WHERE at_rest <= %s AND id IN %s"
            self.change(at_rest, until, [one for (one,) in found])


def scope_key(scope: Scope) -> str:
    """Return a scope as it stands in an index."""
    return hashed(repr(tuple(scope)))
