"""The primitives of a transaction over ordered pairs of bytes: a store that gets, puts, deletes and scans is enough."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.flow import StoredFlow, StoredGate
from omniq.schedule import Schedule
from omniq.storage.base import StoredWorker, TaskQuery
from omniq.storage.paging import Pager
from omniq.storage.records import dump_schedule
from omniq.storage.rows import (
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
from omniq.storage.states import due_at, later, promoted_task
from omniq.storage.validation import LARGEST_REVISION, UNREADABLE, Salvaged, check_worker, corrupt, read_schedule
from omniq.task import StoredTask, TaskState

__all__ = ["Pairs", "PairsTx"]

_BODY = 3
"""The place of the body among the fixed values."""
_END = b"\xff" * 16
BODY_APART = 4096
"""Bytes; a longer body is a pair of its own, which is read only for those who ask for it."""
ENTRIES_AT_A_TIME = 200
LONGEST_PART = 100
"""Bytes of a text within a key: of a longer one the hash stands there."""


class Pairs(Protocol):
    """One transaction on pairs of bytes in the order of their keys, which have at most 400 bytes."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return what is stored under keys, without those that are not there.

        :param keys: in any order.
        """

    def put(self, pairs: Mapping[bytes, bytes]) -> None:
        """Store pairs, replacing those with the same keys.

        :param pairs: key → value.
        """

    def delete(self, keys: Sequence[bytes]) -> None:
        """Remove keys; those that are not there are no error.

        :param keys: in any order.
        """

    def scan(self, begin: bytes, end: bytes, limit: int | None, backwards: bool) -> Iterable[tuple[bytes, bytes]]:
        """Return the pairs with ``begin <= key < end`` in order, or from the end, at most so many of them.

        :param begin: the first key.
        :param end: the key before which to stop.
        :param limit: how many pairs at most.
        :param backwards: begin with the last pair before ``end``.
        """


def key(*parts: str | int) -> bytes:
    """Return a key whose parts sort as themselves: numbers of 64 bits by value, short texts by their bytes."""
    encoded = bytearray()
    for part in parts:
        if isinstance(part, int):
            encoded += (part + (1 << 63)).to_bytes(8, "big")
        else:
            text = part.encode()
            text = text if len(text) <= LONGEST_PART else b"\xff" + hashlib.sha256(text).digest()
            encoded += text.replace(b"\0", b"\0\xff") + b"\0\1"
    return bytes(encoded)


class PairsTx:
    """The primitives of one transaction.

    A task is stored under ``f`` (what never changes), ``y`` (a long body), ``c`` (what does change, and the size of the
    result) and ``x`` (its result); every other key, an
    *entry*, leads to its id: ``o`` the order of enqueueing, ``b`` its queue and state, ``r`` and ``a`` ready ones by
    place and by age, ``s`` scheduled, ``l`` leases, ``e`` expiry, ``d`` retention, ``u`` unique keys, ``m``
    and ``M`` the tasks of a flow and of a gate by state. A flow is stored under ``F``, its gates under ``G``; ``H`` and
    ``K`` lead to flows by when they are due and by unique keys. The caller commits after :meth:`flush`.

    :param pairs: the store's transaction.
    :param now: the store's clock.
    """

    def __init__(self, pairs: Pairs, now: datetime) -> None:
        self.now = now
        self.changed = False
        self.problems: list[CorruptRecord] = []
        self._pairs = pairs
        self._seqs: dict[str, int] = {}
        self._sizes: dict[str, tuple[int, int | None]] = {}
        """Of each task that was read: the sizes of its body and its result."""
        self._before: dict[str, StoredTask] = {}
        self._puts: dict[bytes, bytes] = {}
        self._deletes: set[bytes] = set()

    # Pairs: what is written is gathered until a scan needs it, or the transaction ends

    def flush(self) -> None:
        """Hand everything that was written to the store."""
        if self._deletes:
            self._pairs.delete(sorted(self._deletes))
        if self._puts:
            self._pairs.put(self._puts)
        self._puts, self._deletes = {}, set()

    def _write(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        self.changed = True
        for one in deletes:
            self._puts.pop(one, None)
            self._deletes.add(one)
        self._deletes.difference_update(puts)
        self._puts.update(puts)

    def _get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        wanted = set(keys)
        here = {one: self._puts[one] for one in wanted if one in self._puts}
        there = sorted(wanted - here.keys() - self._deletes)
        return {**here, **(self._pairs.get(there) if there else {})}

    def _one(self, where: bytes) -> bytes | None:
        return self._get([where]).get(where)

    def _entries_in(
        self, prefix: bytes, below: bytes = _END, limit: int | None = None, *, backwards: bool = False
    ) -> Iterable[tuple[bytes, bytes]]:
        """Return the pairs whose keys begin with a prefix and are below ``prefix + below``."""
        self.flush()
        return self._pairs.scan(prefix, prefix + below, limit, backwards)

    def _number(self, where: bytes) -> int:
        """Return the number under which something was stored; 0 if there is none that can be read."""
        try:
            return int(self._one(where) or b"0")
        except ValueError as error:
            self.problems.append(corrupt("number", where.decode(errors="replace"), error))
            return 0

    # Tasks

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

    def verify(self) -> None:
        for read in (self.schedules, self.workers, self.paused, self.counts):
            read()
        for _, value in self._entries_in(key("f")):
            # One whose place leads elsewhere is on no page.
            with contextlib.suppress(*UNREADABLE):
                self.load([json.loads(value.partition(b"\n")[0])[0]])

    def _entries(self, task: StoredTask) -> dict[bytes, bytes]:
        """Return the keys under which a task is found, besides its id."""
        seq, name, queue, state = self._seqs[task.id], task.id.encode(), task.queue, STATE_NUMBERS[task.state]
        found = {key("o", seq): name, key("b", queue, state, seq): name}
        if task.state is TaskState.READY:
            found[key("r", queue, -task.priority, to_micros(task.run_at), seq)] = name
            found[key("a", queue, to_micros(task.run_at), seq)] = name
        elif task.state is TaskState.SCHEDULED:
            found[key("s", queue, to_micros(task.run_at), seq)] = name
        elif task.lease_until is not None:
            found[key("l", to_micros(task.lease_until), seq)] = name
        if task.state in (TaskState.SCHEDULED, TaskState.READY) and task.expires_at is not None:
            found[key("e", to_micros(task.expires_at), seq)] = name
        if task.flow is not None:
            found[key("m", task.flow, state, seq)] = name
            if task.behind is not None:
                found[key("M", task.flow, task.behind, state, seq)] = name
        if task.state.is_final:
            if task.flow is None:  # else it is kept as long as the flow is
                found[key("d", drop_at(task) or 0, seq)] = name
        elif task.unique is not None:
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
        return _number_in(last[0][0], -8) if last else 0

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
        for kind in "obrasledumM" if ids else "":
            for where, value in list(self._entries_in(key(kind))):
                if value not in wanted:
                    continue
                self._write({}, [where])
                if kind == "o":
                    places[wanted[value]] = _number_in(where, -8)
                elif kind == "b":
                    self._uncount(where)
        return places

    def _uncount(self, entry: bytes) -> None:
        # The entry of a queue and state has the key of their number in it.
        stored = self._one(key("n") + entry[len(key("b")) : -8])
        try:
            _, state, queue = json.loads(stored or b"")
            self._count(queue, state, -1)
        except UNREADABLE:
            pass  # the number itself cannot be read, and is shown as that

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
        below = _END if until is None else key(until + 1)
        while True:
            entries = {where: _text(value) for where, value in self._entries_in(prefix, below, limit)}
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
        found = {wanted[where]: _text(value) for where, value in self._get(wanted).items()}
        tasks = self.load([task_id for task_id in found.values() if task_id is not None])
        holders = {}
        for one, task_id in found.items():
            task = None if task_id is None else tasks.get(task_id)
            if task is not None and task.unique == one and not task.state.is_final:
                holders[one] = task.id
        return holders

    def promote(self, queue: str, limit: int) -> None:
        due = self._found(key("s", queue), to_micros(self.now), limit, whole=False)
        self._end([task for task in due if isinstance(task, Salvaged)])
        self.save([promoted_task(task) for task in due if not isinstance(task, Salvaged)])

    def ready(self, queue: str, limit: int) -> list[StoredTask]:
        return self._found(key("r", queue), None, limit)

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
        return _time(_number_in(entries[0][0], len(prefix))) if entries else None

    def next_task(self, queues: Sequence[str]) -> datetime | None:
        found = [self._first_time(key("s", queue)) for queue in queues]
        return min([moment for moment in found if moment is not None], default=None)

    def oldest_ready(self, queue: str) -> datetime | None:
        return self._first_time(key("a", queue))

    def page(self, query: TaskQuery, before: int | None) -> tuple[list[StoredTask], int | None]:
        pager, seen = Pager(evolve(query, bare=False)), set()
        for where, value in self._latest(query, _END if before is None else key(before)):
            task_id = _text(value)
            task = None if task_id is None else self.load([task_id]).get(task_id)
            if task is None or task.id in seen:
                continue
            seen.add(task.id)
            if pager.is_done_with(_number_in(where, -8), task):
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

    def forget_workers(self) -> None:
        for where, value in list(self._entries_in(key("w"))):
            seen = self._worker(where, value)
            if seen is None or seen[2] <= to_micros(self.now):
                self._write({}, [where, key("W") + where[len(key("w")) :]])

    # Flows

    def _flow(self, flow_id: str, value: bytes | None) -> StoredFlow | None:
        try:
            return None if value is None else load_flow(value, flow_id)
        except CorruptRecord as problem:
            self.problems.append(problem)
            return None

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        found = {flow_id: self._flow(flow_id, self._one(key("F", flow_id))) for flow_id in ids}
        return {flow_id: flow for flow_id, flow in found.items() if flow is not None}

    def _flow_entries(self, flow: StoredFlow) -> dict[bytes, bytes]:
        """Return the keys under which a flow is found, besides its id."""
        found, name, due, ended = {}, flow.id.encode(), due_at(flow), flow.finished_at is not None
        if due is not None:
            found[key("H", int(ended), to_micros(due), flow.id)] = name
        if flow.unique is not None and not ended:
            found[key("K", flow.unique)] = name
        return found

    def save_flow(self, flow: StoredFlow) -> None:
        self._forget_flow(flow.id)
        self._write({key("F", flow.id): dump_flow(flow).encode(), **self._flow_entries(flow)})

    def _forget_flow(self, flow_id: str) -> None:
        old = self._flow(flow_id, self._one(key("F", flow_id)))
        self._write({}, [key("F", flow_id), *(() if old is None else self._flow_entries(old))])

    def remove_flow(self, flow_id: str) -> None:
        self._forget_flow(flow_id)
        self._write({}, [where for where, _ in list(self._entries_in(key("G", flow_id)))])

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        if numbers is None:
            values = dict(self._entries_in(key("G", flow_id)))
        else:
            values = self._get(key("G", flow_id, n) for n in numbers)
        found = {}
        for where, value in values.items():
            n = _number_in(where, -8)
            try:
                found[n] = load_gate(value, flow_id, n)
            except CorruptRecord as problem:
                self.problems.append(problem)
        return found

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        values = {key("G", flow_id, gate.n): dump_gate(gate).encode() for gate in gates}
        if values:
            self._write(values)

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

    def flow_of_key(self, unique: str) -> str | None:
        value = self._one(key("K", unique))
        flow_id = None if value is None else _text(value)
        flow = None if flow_id is None else self.flows([flow_id]).get(flow_id)
        return flow.id if flow is not None and flow.unique == unique and flow.finished_at is None else None

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        found: list[str] = []
        stray = []
        for where, value in self._entries_in(key("H", int(ended)), key(to_micros(self.now) + 1)):
            flow_id = _text(value)
            flow = None if flow_id is None else self.flows([flow_id]).get(flow_id)
            if flow is None or where not in self._flow_entries(flow):
                stray.append(where)
                continue
            found.append(flow.id)
            if len(found) == limit:
                break
        if stray:
            self._write({}, stray)
        return found

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

    # Queues and workers

    def paused(self) -> set[str]:
        paused = set()
        for where, value in self._entries_in(key("P")):
            queue = _text(value)
            if queue is not None and where == key("P", queue):
                paused.add(queue)
            else:
                self.problems.append(corrupt("queue", where.decode(errors="replace"), f"{value!r:.100} is paused"))
        return paused

    def pause(self, queue: str) -> bool:
        was = self._one(key("P", queue)) == queue.encode()
        self._write({key("P", queue): queue.encode()})
        return not was

    def resume(self, queue: str) -> bool:
        was = self._one(key("P", queue)) is not None
        self._write({}, [key("P", queue)])
        return was

    def seen(self, worker: str, lease: float, about: str | None) -> None:
        changed = self.changed
        alive, told = key("w", worker), key("W", worker)
        if lease > 0:
            seen = [worker, to_micros(self.now), to_micros(later(self.now, lease))]
            self._write({alive: json.dumps(seen).encode()} | ({} if about is None else {told: about.encode()}))
        else:
            self._write({}, [alive, told])
        self.changed = changed

    def _worker(self, where: bytes, value: bytes) -> tuple[str, int, int] | None:
        """Return a worker's name, and when it was seen and until when it counts as alive; None if it cannot be read."""
        try:
            name, seen, until = json.loads(value)
            if where != key("w", name) or type(until) is not int:
                raise ValueError(f"{value!r:.100} in place of a worker")
            from_micros(seen)
        except UNREADABLE as error:
            self.problems.append(corrupt("worker", where.decode(errors="replace"), error))
            return None
        return name, seen, until

    def workers(self) -> list[StoredWorker]:
        ids = [_text(value) for _, value in self._entries_in(key("l"))]
        running = self.load([one for one in ids if one is not None]).values()
        known = [self._worker(where, value) for where, value in self._entries_in(key("w"))]
        found = []
        for name, seen, until in filter(None, known):
            if until <= to_micros(self.now):
                continue
            tasks = tuple(task.id for task in running if task.worker == name)
            about = self._one(key("W", name))
            try:
                told = None if about is None else about.decode()
                found.append(check_worker(StoredWorker(id=name, seen_at=from_micros(seen), running=tasks, about=told)))
            except UNREADABLE as error:
                self.problems.append(corrupt("worker", name, error))
        return sorted(found, key=lambda worker: worker.id)

    # Schedules

    def _schedule(self, where: bytes, value: bytes) -> Schedule | None:
        try:
            name, revision, text = json.loads(value)
            if where != key("S", name):
                raise ValueError(f"its record is that of schedule {name!r}")
            return read_schedule(text, id=name, revision=revision)
        except UNREADABLE as error:
            self.problems.append(corrupt("schedule", _name_in(where), error))
        except CorruptRecord as problem:
            self.problems.append(problem)
        return None

    def schedules(self) -> list[Schedule]:
        found = [self._schedule(where, value) for where, value in self._entries_in(key("S"))]
        return [schedule for schedule in found if schedule is not None]

    def revision(self, schedule_id: str) -> int | None:
        value = self._one(key("S", schedule_id))
        if value is None:
            return None
        try:
            _, revision, _ = json.loads(value)
        except UNREADABLE:
            return 0
        return revision if type(revision) is int and 0 < revision < LARGEST_REVISION else 0

    def schedule(self, schedule_id: str) -> Schedule | None:
        where = key("S", schedule_id)
        value = self._one(where)
        return None if value is None else self._schedule(where, value)

    def store_schedule(self, schedule: Schedule) -> None:
        self.remove_schedule(schedule.id)
        value = json.dumps([schedule.id, schedule.revision, dump_schedule(schedule)]).encode()
        self._write({key("S", schedule.id): value, **dict.fromkeys(_due(schedule), schedule.id.encode())})

    def remove_schedule(self, schedule_id: str) -> None:
        old = self.schedule(schedule_id)
        due = [] if old is None else _due(old)
        if old is None or len(self._get(due)) < len(due):
            name = schedule_id.encode()
            due = [where for where, value in self._entries_in(key("D")) if value == name]
        self._write({}, [key("S", schedule_id), *due])

    def revision_floor(self) -> int:
        floor = self._number(key("R"))
        return floor if 0 <= floor < LARGEST_REVISION else 0

    def raise_revision_floor(self, revision: int) -> None:
        self._write({key("R"): b"%d" % revision})

    def due(self, limit: int) -> list[Schedule]:
        found: list[Schedule] = []
        for where, value in self._entries_in(key("D"), key(to_micros(self.now) + 1)):
            name = _text(value)
            schedule = None if name is None else self.schedule(name)
            if len(found) == limit:
                break
            if schedule is not None and where in _due(schedule):
                found.append(schedule)
        return found

    def next_schedule(self, after: datetime) -> datetime | None:
        self.flush()
        begin = key("D") + key(to_micros(after) + 1)
        found = [where for where, _ in self._pairs.scan(begin, key("D") + _END, 1, False)]
        return _time(_number_in(found[0], len(key("D")))) if found else None


def _due(schedule: Schedule) -> list[bytes]:
    if schedule.paused or schedule.next_run is None:
        return []
    return [key("D", to_micros(schedule.next_run), schedule.id)]


def _number_in(where: bytes, begin: int) -> int:
    """Return the number that begins at a place of a key."""
    return int.from_bytes(where[begin:][:8], "big") - (1 << 63)


def _time(number: int) -> datetime | None:
    return from_micros(number) if 0 <= number <= LATEST else None


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _name_in(where: bytes) -> str:
    """Return the text of a key that has one part behind its kind, as far as it stands there itself."""
    return where[len(key("S")) : -2].replace(b"\0\xff", b"\0").decode(errors="replace")
