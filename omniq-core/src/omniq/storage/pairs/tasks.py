"""Tasks in pairs of bytes."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.limit import PLAIN, Scope, line_id
from omniq.storage.corrupt_records import corrupt
from omniq.storage.limit_transitions import is_lined
from omniq.storage.paging import Pager
from omniq.storage.pairs.buffer import Pairs, PairsBuffer
from omniq.storage.pairs.keys import END, key, number_in, text_of, time_of
from omniq.storage.pairs.limits import slots_of
from omniq.storage.rows import STATE_NUMBERS, STATES, changing_values, drop_at, fixed_values, salvaged_of, task_of
from omniq.storage.states import holds_key, promoted_task
from omniq.storage.times import to_micros
from omniq.storage.validation import LARGEST_REVISION, UNREADABLE
from omniq.storage.values import Salvaged, TaskQuery
from omniq.task import StoredTask, TaskState

__all__ = ["PairsTasks"]

_BODY = 3
"""The place of the body among the fixed values."""
BODY_APART = 4096
"""Bytes; a longer body is a pair of its own, which is read only for those who ask for it."""
ENTRIES_AT_A_TIME = 200


class PairsTasks(PairsBuffer):
    """Primitives for tasks."""

    def __init__(self, pairs: Pairs, now: datetime) -> None:
        super().__init__(pairs, now)
        self._seqs: dict[str, int] = {}
        self._sizes: dict[str, tuple[int, int | None]] = {}
        """Of each task that was read: the sizes of its body and its result."""
        self._before: dict[str, StoredTask] = {}

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        return self._load(ids, whole=False)

    def get(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        return self._load(ids, whole=True)

    def _load(self, ids: Iterable[str], whole: bool) -> dict[str, StoredTask]:
        wanted = list(dict.fromkeys(ids))
        kinds = "fycx" if whole else "fc"
        stored = self._get(key(kind, one) for one in wanted for kind in kinds)
        tasks = {}
        for one in wanted:
            if key("f", one) in stored:
                tasks[one] = self._task(one, stored, whole)
        # That its place is its own shows that its entries can be told.
        places = self._get(key("o", self._seqs[one]) for one, task in tasks.items() if not isinstance(task, Salvaged))
        for one, task in tasks.items():
            if not isinstance(task, Salvaged) and places.get(key("o", self._seqs[one])) != one.encode():
                problem = corrupt("task", one, "its place in the order is not its own")
                self.problems.append(problem)
                tasks[one] = salvaged_of(problem, one, fixed_values(task), changing_values(task))
        self._before.update(tasks)
        return tasks

    def _task(self, task_id: str, stored: Mapping[bytes, bytes], whole: bool) -> StoredTask:
        values: list[Any] = []
        changing: list[Any] = []
        try:
            head, _, body = stored[key("f", task_id)].partition(b"\n")
            *values, size = json.loads(head)
            values.insert(_BODY, (stored[key("y", task_id)] if whole else b"") if size > BODY_APART else body)
            seq, *changing, result_size = json.loads(stored[key("c", task_id)])
            self._sizes[task_id] = int(size), None if result_size is None else int(result_size)
            if values[0] != task_id:
                raise ValueError(f"its record is that of task {values[0]!r}")
            if type(seq) is not int or not 0 <= seq < LARGEST_REVISION:
                raise ValueError(f"its place in the order is {seq!r}")
            self._seqs[task_id] = seq
            return task_of(values, [*changing, stored.get(key("x", task_id))])
        except UNREADABLE as error:
            problem = corrupt("task", task_id, error)
        except CorruptRecord as error:
            problem = error
        self.problems.append(problem)
        return salvaged_of(problem, task_id, values, changing)

    def _entries(self, task: StoredTask) -> dict[bytes, bytes]:
        """Return the keys under which a task is found, besides its id."""
        seq, name, queue, state = self._seqs[task.id], task.id.encode(), task.queue, STATE_NUMBERS[task.state]
        found = {key("o", seq): name, key("b", queue, state, seq): name}
        if task.state is TaskState.READY:
            line = line_id(queue, task.key, task.limit) if is_lined(task) else PLAIN
            place = key("r", queue) if line == PLAIN else key("t", line)
            found[place + key(-task.priority, to_micros(task.run_at), seq)] = name
            found[key("a", queue, to_micros(task.run_at), seq)] = name
        elif task.state is TaskState.SCHEDULED:
            found[key("s", queue, to_micros(task.run_at), seq)] = name
        elif task.lease_until is not None:
            found[key("l", to_micros(task.lease_until), seq)] = name
            if task.key is not None:
                found[slots_of(Scope(queue, task.key)) + key(seq)] = name
            if task.limit is not None:
                found[slots_of(Scope(name=task.limit)) + key(seq)] = name
        if task.state in (TaskState.SCHEDULED, TaskState.READY) and task.expires_at is not None:
            found[key("e", to_micros(task.expires_at), seq)] = name
        if task.flow is not None:
            found[key("m", task.flow, state, seq)] = name
            if task.behind is not None:
                found[key("M", task.flow, task.behind, state, seq)] = name
        if task.state.is_final:
            if task.flow is None:  # else it is kept as long as the flow is
                found[key("d", drop_at(task) or 0, seq)] = name
        elif task.unique is not None and holds_key(task):
            found[key("u", task.unique)] = name
        return found

    def _replace(self, old: StoredTask | None, new: StoredTask | None) -> None:
        was = {} if old is None else self._entries(old)
        becomes = {} if new is None else self._entries(new)
        self._write(
            {where: value for where, value in becomes.items() if where not in was},
            [where for where in was if where not in becomes],
        )
        if old is not None and new is not None and old.state is new.state:
            return
        for task, step in ((old, -1), (new, 1)):
            if task is not None:
                self._count(task.queue, STATE_NUMBERS[task.state], step)

    def _count(self, queue: str, state: int, step: int) -> None:
        where = key("n", queue, state)
        try:
            count, *_ = json.loads(self._one(where) or b"[0]")
            count = count if type(count) is int and 0 <= count < LARGEST_REVISION else 0
        except UNREADABLE:
            count = 0
        self._write({where: json.dumps([max(0, count + step), state, queue]).encode()})

    def _uncount(self, entry: bytes) -> None:
        # The entry of a queue and state has the key of their number in it.
        stored = self._one(key("n") + entry[len(key("b")) : -8])
        try:
            _, state, queue = json.loads(stored or b"")
            self._count(queue, state, -1)
        except UNREADABLE:
            pass  # the number itself cannot be read, and is shown as that

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        seq = self._number(key("q")) or self._last_seq()
        for task in tasks:
            self._seqs[task.id] = seq = seq + 1
            values = list(fixed_values(task))
            body = values.pop(_BODY)
            head = json.dumps([*values, len(body)]).encode() + b"\n"
            if len(body) > BODY_APART:
                self._write({key("f", task.id): head, key("y", task.id): body})
            else:
                self._write({key("f", task.id): head + body})
        if tasks:
            self._write({key("q"): b"%d" % seq})
        self.save(tasks)

    def _last_seq(self) -> int:
        last = list(self._entries_in(key("o"), limit=1, backwards=True))
        return number_in(last[0][0], -8) if last else 0

    def save(self, tasks: Sequence[StoredTask]) -> None:
        self._end([task for task in tasks if isinstance(task, Salvaged)])
        for task in tasks:
            if isinstance(task, Salvaged):
                continue
            self._replace(self._before.get(task.id), task)
            self._before[task.id] = task
            *values, result = changing_values(task)
            size = None if result is None else len(result)
            self._write({key("c", task.id): json.dumps([self._seqs[task.id], *values, size]).encode()})
            if result is not None:
                self._write({key("x", task.id): result})

    def remove(self, ids: Sequence[str]) -> None:
        unreadable = [task_id for task_id in ids if isinstance(self._before[task_id], Salvaged)]
        self._withdraw(unreadable)
        for task_id in ids:
            if task_id not in unreadable:
                self._replace(self._before[task_id], None)
            self._write({}, [key(kind, task_id) for kind in "fycx"])

    def _withdraw(self, ids: Sequence[str]) -> dict[str, int]:
        """Remove all entries that lead to tasks that cannot be read; return their places, as far as they have one."""
        wanted = {task_id.encode(): task_id for task_id in ids}
        places: dict[str, int] = {}
        for kind in "obrtasledumMkN" if ids else "":
            for where, value in list(self._entries_in(key(kind))):
                if value not in wanted:
                    continue
                self._write({}, [where])
                if kind == "o":
                    places[wanted[value]] = number_in(where, -8)
                elif kind == "b":
                    self._uncount(where)
        return places

    def _end(self, tasks: Sequence[Salvaged]) -> None:
        """End tasks that cannot be read, and leave what is stored of them as it is."""
        places = self._withdraw([task.id for task in tasks])
        failed = STATE_NUMBERS[TaskState.FAILED]
        for task in tasks:
            name, seq = task.id.encode(), places.get(task.id)
            if seq is not None:
                kept = key("d", drop_at(task) or 0, seq) if task.flow is None else key("m", task.flow, failed, seq)
                entries = key("o", seq), key("b", task.queue, failed, seq), kept
                self._write(dict.fromkeys(entries, name))
                self._count(task.queue, failed, 1)

    def _found(self, prefix: bytes, until: int | None, limit: int | None, *, whole: bool = True) -> list[StoredTask]:
        """Return the tasks to which the entries under a prefix lead, up to and with a time.

        Entries that lead to no task, or to one that is elsewhere, are removed: else they would stand before others.
        """
        below = END if until is None else key(until + 1)
        while True:
            entries = {where: text_of(value) for where, value in self._entries_in(prefix, below, limit)}
            tasks = self._load([one for one in entries.values() if one is not None], whole)
            leads = {
                where: tasks[one] for where, one in entries.items() if one in tasks and self._is_at(where, tasks[one])
            }
            stray = [where for where in entries if where not in leads]
            if not stray:
                return list({task.id: task for task in leads.values()}.values())
            self._write({}, stray)

    def _is_at(self, where: bytes, task: StoredTask) -> bool:
        return isinstance(task, Salvaged) or where in self._entries(task)

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        wanted = {key("u", one): one for one in keys}
        found = {wanted[where]: text_of(value) for where, value in self._get(wanted).items()}
        tasks = self.load([task_id for task_id in found.values() if task_id is not None])
        holders = {}
        for one, task_id in found.items():
            task = None if task_id is None else tasks.get(task_id)
            if task is not None and task.unique == one and holds_key(task):
                holders[one] = task.id
        return holders

    def promote(self, queue: str, limit: int) -> list[StoredTask]:
        due = self._found(key("s", queue), to_micros(self.now), limit, whole=False)
        self._end([task for task in due if isinstance(task, Salvaged)])
        tasks = [promoted_task(task) for task in due if not isinstance(task, Salvaged)]
        self.save(tasks)
        return [task for task in tasks if is_lined(task)]

    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        return self._found(key("r", queue) if line == PLAIN else key("t", line), None, limit)

    def lapsed(self, limit: int) -> list[StoredTask]:
        return self._found(key("l"), to_micros(self.now), limit)

    def expired(self, limit: int) -> list[StoredTask]:
        return self._found(key("e"), to_micros(self.now), limit)

    def has_work(self, queues: Sequence[str]) -> bool:
        due = key(to_micros(self.now) + 1)
        return any(
            list(self._entries_in(key("r", queue), limit=1)) or list(self._entries_in(key("s", queue), due, 1))
            for queue in queues
        )

    def _first_time(self, prefix: bytes) -> datetime | None:
        entries = list(self._entries_in(prefix, limit=1))
        return time_of(number_in(entries[0][0], len(prefix))) if entries else None

    def next_task(self, queues: Sequence[str]) -> datetime | None:
        found = [self._first_time(key("s", queue)) for queue in queues]
        return min([moment for moment in found if moment is not None], default=None)

    def oldest_ready(self, queue: str) -> datetime | None:
        return self._first_time(key("a", queue))

    def page(self, query: TaskQuery, before: int | None) -> tuple[list[StoredTask], int | None]:
        pager, seen = Pager(evolve(query, bare=False)), set()
        for where, value in self._latest(query, END if before is None else key(before)):
            task_id = text_of(value)
            task = None if task_id is None else self.load([task_id]).get(task_id)
            if task is None or task.id in seen:
                continue
            seen.add(task.id)
            if pager.is_done_with(number_in(where, -8), task):
                break
        if query.bare:
            return [task.bare(*self._sizes.get(task.id, (0, None))) for task in pager.tasks], pager.cursor
        return list(self.get([task.id for task in pager.tasks]).values()), pager.cursor

    def _latest(self, query: TaskQuery, below: bytes) -> Iterable[tuple[bytes, bytes]]:
        """Return the entries that lead to the tasks of the queue and the states asked for, the latest first."""
        if query.queue is None and query.states is None:
            return self._backwards(key("o"), below)
        parts = [
            self._backwards(key("b", queue, STATE_NUMBERS[state]), below)
            for queue, counts in self.counts().items()
            if query.queue in (None, queue)
            for state in counts
            if query.states is None or state in query.states
        ]
        return heapq.merge(*parts, key=lambda entry: entry[0][-8:], reverse=True)

    def _backwards(self, prefix: bytes, below: bytes) -> Iterator[tuple[bytes, bytes]]:
        # Some at a time: a transaction need not go through several scans by turns, nor read all for the first few.
        entries = list(self._entries_in(prefix, below, ENTRIES_AT_A_TIME, backwards=True))
        while entries:
            yield from entries
            below = entries[-1][0].removeprefix(prefix)
            entries = list(self._entries_in(prefix, below, ENTRIES_AT_A_TIME, backwards=True))

    def in_states(self, queue: str, states: Sequence[TaskState], limit: int) -> list[StoredTask]:
        tasks: list[StoredTask] = []
        for state in states:
            if len(tasks) < limit:
                tasks += self._found(key("b", queue, STATE_NUMBERS[state]), None, limit - len(tasks), whole=False)
        return tasks

    def dropped(self, limit: int) -> list[StoredTask]:
        return self._found(key("d"), to_micros(self.now), limit, whole=False)

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        found: list[StoredTask] = []
        for state in states:
            place = ("m", flow_id) if behind is None else ("M", flow_id, behind)
            found += self._found(key(*place, STATE_NUMBERS[state]), None, limit, whole=False)
        return sorted(found, key=lambda task: self._seqs.get(task.id, 0))[:limit]

    def count_members(self, flow_id: str) -> dict[TaskState, int]:
        return {
            state: count
            for state, number in STATE_NUMBERS.items()
            if (count := sum(1 for _ in self._entries_in(key("m", flow_id, number))))
        }

    def counts(self) -> dict[str, dict[TaskState, int]]:
        counts: dict[str, dict[TaskState, int]] = {}
        for where, value in self._entries_in(key("n")):
            try:
                count, state, queue = json.loads(value)
                if where != key("n", queue, state) or type(count) is not int or count < 0:
                    raise ValueError(f"{value!r:.100} in place of a number")
                counts.setdefault(queue, {})[STATES[state]] = count
            except UNREADABLE as error:
                self.problems.append(corrupt("queue", where.decode(errors="replace"), error))
        return counts
