"""Limits in pairs of bytes: what is stored of them, their lines and their rates."""

from __future__ import annotations

import json
from collections.abc import Iterable

from omniq.limit import Lane, Limit, Scope, StoredLine
from omniq.storage.corrupt_records import sound
from omniq.storage.limit_transitions import IDLE, rank_of
from omniq.storage.pairs.buffer import PairsBuffer
from omniq.storage.pairs.keys import END, key, name_in, number_in, text_of
from omniq.storage.records import dump_limit, read_limit
from omniq.storage.rows import STATE_NUMBERS, dump_lane, dump_line, load_lane, load_line
from omniq.storage.validation import UNREADABLE
from omniq.task import TaskState

__all__ = ["PairsLimits", "slots_of"]


class PairsLimits(PairsBuffer):
    """Primitives for limits. A limit is stored under ``L``, a lane under ``A``, a line under ``I``, a rate under ``B``.

    Lines are found by place under ``i`` (``z``: the idle ones), by place and queue under ``p``, by key under ``j``;
    rates by when they are at rest under ``v``.
    """

    def lock_limits(self) -> None:
        pass  # one transaction writes at a time

    def _named(self, kind: str, names: Iterable[str | None] | None) -> dict[str, bytes]:
        """Return what is stored under texts, by them."""
        if names is None:
            begin = len(key(kind))
            # Of one that is too long to stand in a key only the value tells it.
            found = [(name_in(where, begin), value) for where, value in self._entries_in(key(kind))]
            names = [text_of(value.partition(b"\n")[0]) if name is None else name for name, value in found]
        where = {key(kind, name): name for name in names if name is not None}
        return {where[one]: value.partition(b"\n")[2] for one, value in self._get(where).items()} if where else {}

    def lanes(self, queues: Iterable[str] | None) -> dict[str, Lane]:
        stored = self._named("A", queues)
        found = sound(stored.items(), load_lane, self.problems)
        # The lines of one that cannot be read are as they were.
        return {queue: found.get(queue) or Lane(queue=queue) for queue in stored}

    def save_lane(self, lane: Lane) -> None:
        self._write({key("A", lane.queue): f"{lane.queue}\n{dump_lane(lane)}".encode()})

    def remove_lane(self, queue: str) -> None:
        self._write({}, [key("A", queue)])

    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        limits = [read_limit(body, name, self.problems) for name, body in self._named("L", ids).items()]
        return {limit.id: limit for limit in limits if limit is not None}

    def store_limit(self, limit: Limit) -> None:
        self._write({key("L", limit.id): f"{limit.id}\n{dump_limit(limit)}".encode()})

    def remove_limit(self, limit_id: str) -> None:
        self._write({}, [key("L", limit_id)])

    def line(self, line_id: str) -> StoredLine | None:
        return self._lines_named([line_id]).get(line_id)

    def _lines_named(self, names: Iterable[str]) -> dict[str, StoredLine]:
        where = {name: key("I", name) for name in names}
        stored = self._get(where.values())
        found = [(name, stored[at]) for name, at in where.items() if at in stored]
        return sound(found, load_line, self.problems)

    def _led_to(self, prefix: bytes, below: bytes = END, limit: int | None = None) -> list[StoredLine]:
        most = limit
        while True:
            names = [text_of(value) for _, value in self._entries_in(prefix, below, most)]
            lines = list(self._lines_named(name for name in names if name is not None).values())
            if limit is None or most is None or len(lines) >= limit or len(names) < most:
                return lines[:limit]
            most *= 2  # those that cannot be read stand before none that can

    def lines(self, queue: str, place: str, limit: int, until: int | None = None) -> list[StoredLine]:
        below = END if until is None else key(until + 1)
        return self._led_to(key("z", queue) if place == IDLE else key("i", queue, place), below, limit)

    def lines_of_key(self, queue: str, task_key: str) -> list[StoredLine]:
        return self._led_to(key("j", queue, task_key))

    def queues_at(self, place: str) -> list[str]:
        prefix, found = key("p", place), []
        entries = list(self._entries_in(prefix, limit=1))
        while entries:
            line = self._led_to(entries[0][0], b"\0", 1)
            # Behind all lines of that queue there.
            begin = entries[0][0][:-66] + END
            if line:
                found.append(line[0].queue)
            entries = list(self._pairs.scan(begin, prefix + END, 1, False))
        return found

    def has_lines(self, queue: str) -> bool:
        return bool(list(self._entries_in(key("i", queue), limit=1)))

    def _line_entries(self, line: StoredLine) -> list[bytes]:
        place = key("z", line.queue) if line.place == IDLE else key("i", line.queue, line.place)
        found = [place + key(*rank_of(line), line.id), key("p", line.place, line.queue, line.id)]
        return found if line.key is None else [*found, key("j", line.queue, line.key, line.id)]

    def save_line(self, line: StoredLine) -> None:
        self.remove_line(line)
        entries = dict.fromkeys(self._line_entries(line), line.id.encode())
        self._write({key("I", line.id): dump_line(line).encode(), **entries})

    def remove_line(self, line: StoredLine) -> None:
        old = self.line(line.id)
        self._write({}, [key("I", line.id), *([] if old is None else self._line_entries(old))])

    def running(self, scope: Scope) -> int:
        if scope.key is None and scope.queue is not None:
            return self._count_of(scope.queue, TaskState.RUNNING)
        return sum(1 for _ in self._entries_in(slots_of(scope)))

    def _count_of(self, queue: str, state: TaskState) -> int:
        """Return how many tasks of a queue are in a state, by the store's own count."""
        try:
            count, *_ = json.loads(self._one(key("n", queue, STATE_NUMBERS[state])) or b"[0]")
            return count if type(count) is int else 0
        except UNREADABLE:
            return 0

    def bucket(self, scope: Scope) -> int:
        return max(0, self._number(_bucket(scope)))

    def save_bucket(self, scope: Scope, at_rest: int) -> None:
        where = _bucket(scope)
        self._write({where: b"%d" % at_rest, key("v", at_rest) + where: where}, [key("v", self.bucket(scope)) + where])

    def drop_buckets(self, until: int, limit: int) -> None:
        for entry, where in list(self._entries_in(key("v"), key(until + 1), limit)):
            is_own = self._number(where) == number_in(entry, len(key("v")))
            self._write({}, [entry, where] if is_own else [entry])


def slots_of(scope: Scope) -> bytes:
    """Return the prefix of the entries that lead to the running tasks of a key or a named limit."""
    if scope.name is not None:
        return key("N", scope.name)
    return key("k", scope.queue or "", scope.key or "")


def _bucket(scope: Scope) -> bytes:
    return key("B", json.dumps(scope))
