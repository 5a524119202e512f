"""The primitives of a transaction over ordered pairs of bytes: a store that gets, puts, deletes and scans is enough."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from omniq.records import dump_schedule, load_schedule
from omniq.schedule import Schedule
from omniq.storage.base import StoredWorker, TaskQuery
from omniq.storage.rows import (
    STATE_NUMBERS,
    changing_values,
    drop_at,
    fixed_values,
    from_micros,
    task_of,
    to_micros,
)
from omniq.storage.transitions import later
from omniq.task import StoredTask, TaskState

__all__ = ["Pairs", "PairsTx"]

_BODY = 3
"""The place of the body among the fixed values."""
_END = b"\xff" * 16
LONGEST_PART = 100
"""Bytes of a text within a key: of a longer one the hash stands there."""


class Pairs(Protocol):
    """One transaction on pairs of bytes in the order of their keys, which have at most 400 bytes."""

    def get(self, keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Return what is stored under keys, without those that are not there."""

    def put(self, pairs: Mapping[bytes, bytes]) -> None:
        """Store pairs, replacing those with the same keys."""

    def delete(self, keys: Sequence[bytes]) -> None:
        """Remove keys; those that are not there are no error."""

    def scan(self, begin: bytes, end: bytes, limit: int | None, backwards: bool) -> Iterable[tuple[bytes, bytes]]:
        """Return the pairs with ``begin <= key < end`` in order, or from the end, at most so many of them."""


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

    A task is stored under ``f`` (what never changes), ``c`` (what does) and ``x`` (its result); every other key leads
    to its id: ``o`` the order of enqueueing, ``b`` its queue and state, ``r`` and ``a`` ready ones by place and by age,
    ``s`` scheduled, ``l`` leases, ``e`` expiry, ``d`` retention, ``u`` unique keys. The caller commits after
    :meth:`flush`.

    :param pairs: the store's transaction.
    :param now: the store's clock.
    """

    def __init__(self, pairs: Pairs, now: datetime) -> None:
        self.now = now
        self.changed = False
        self._pairs = pairs
        self._seqs: dict[str, int] = {}
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

    def _scan(
        self, prefix: bytes, below: bytes = _END, limit: int | None = None, *, backwards: bool = False
    ) -> Iterator[bytes]:
        """Return the values of the keys that begin with a prefix and are below ``prefix + below``."""
        self.flush()
        return (value for _, value in self._pairs.scan(prefix, prefix + below, limit, backwards))

    # Tasks

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        return self._load(ids, whole=False)

    def get(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        return self._load(ids, whole=True)

    def _load(self, ids: Iterable[str], whole: bool) -> dict[str, StoredTask]:
        wanted = list(dict.fromkeys(ids))
        kinds = "fcx" if whole else "fc"
        stored = self._get(key(kind, one) for one in wanted for kind in kinds)
        tasks = {}
        for one in wanted:
            fixed = stored.get(key("f", one))
            if fixed is None:
                continue
            head, _, body = fixed.partition(b"\n")
            values = json.loads(head)
            values.insert(_BODY, body)
            self._seqs[one], *changing = json.loads(stored[key("c", one)])
            task = tasks[one] = task_of(values, [*changing, stored.get(key("x", one))])
            self._before[one] = task
        return tasks

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
        if task.state.is_final:
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
                where = key("n", task.queue, STATE_NUMBERS[task.state])
                count, *_ = json.loads(self._one(where) or b"[0]")
                self._write({where: json.dumps([count + step, STATE_NUMBERS[task.state], task.queue]).encode()})

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        seq = int(self._one(key("q")) or b"0")
        for task in tasks:
            self._seqs[task.id] = seq = seq + 1
            values = list(fixed_values(task))
            body = values.pop(_BODY)
            self._write({key("f", task.id): json.dumps(values).encode() + b"\n" + body})
        if tasks:
            self._write({key("q"): b"%d" % seq})
        self.save(tasks)

    def save(self, tasks: Sequence[StoredTask]) -> None:
        for task in tasks:
            self._replace(self._before.get(task.id), task)
            self._before[task.id] = task
            *values, result = changing_values(task)
            self._write({key("c", task.id): json.dumps([self._seqs[task.id], *values]).encode()})
            if result is not None:
                self._write({key("x", task.id): result})

    def remove(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            self._replace(self._before[task_id], None)
            self._write({}, [key(kind, task_id) for kind in "fcx"])

    def _ids(self, prefix: bytes, until: int | None, limit: int | None) -> list[str]:
        """Return the ids under a prefix, up to and with a time."""
        below = _END if until is None else key(until + 1)
        return [value.decode() for value in self._scan(prefix, below, limit)]

    def _tasks(self, ids: Sequence[str]) -> list[StoredTask]:
        tasks = self.get(ids)
        return [tasks[one] for one in ids]

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        wanted = {key("u", one): one for one in keys}
        return {wanted[where]: value.decode() for where, value in self._get(wanted).items()}

    def promote(self, queue: str, limit: int) -> None:
        due = self.load(self._ids(key("s", queue), to_micros(self.now), limit))
        for task in due.values():
            ready = object.__new__(StoredTask)
            vars(ready).update(vars(task), state=TaskState.READY)
            self.save([ready])

    def ready(self, queue: str, limit: int) -> list[StoredTask]:
        return self._tasks(self._ids(key("r", queue), None, limit))

    def lapsed(self, limit: int) -> list[StoredTask]:
        return self._tasks(self._ids(key("l"), to_micros(self.now), limit))

    def expired(self, limit: int) -> list[StoredTask]:
        return self._tasks(self._ids(key("e"), to_micros(self.now), limit))

    def has_work(self, queues: Sequence[str]) -> bool:
        now = to_micros(self.now)
        return any(self._ids(key("r", queue), None, 1) or self._ids(key("s", queue), now, 1) for queue in queues)

    def next_task(self, queues: Sequence[str]) -> datetime | None:
        first = [task_id for queue in queues for task_id in self._ids(key("s", queue), None, 1)]
        return min([task.run_at for task in self.load(first).values()], default=None)

    def oldest_ready(self, queue: str) -> datetime | None:
        tasks = self.load(self._ids(key("a", queue), None, 1))
        return next((task.run_at for task in tasks.values()), None)

    def page(self, query: TaskQuery, before: int | None) -> tuple[list[StoredTask], int | None]:
        found: list[str] = []
        for value in self._scan(key("o"), _END if before is None else key(before), backwards=True):
            task_id = value.decode()
            task = self.load([task_id])[task_id]
            if (
                query.queue in (None, task.queue)
                and query.state in (None, task.state)
                and query.name in (None, task.name)
                and (query.tag is None or query.tag in task.tags)
            ):
                if len(found) == query.limit:
                    return self._tasks(found), self._seqs[found[-1]]
                found.append(task_id)
        return self._tasks(found), None

    def purge(self, queue: str, states: Sequence[TaskState], limit: int) -> int:
        ids: list[str] = []
        for state in states:
            ids += self._ids(key("b", queue, STATE_NUMBERS[state]), None, limit - len(ids))
        self.remove(list(self.load(ids)))
        return len(ids)

    def prune(self, limit: int) -> int:
        now = to_micros(self.now)
        ids = self._ids(key("d"), now, limit)
        self.remove(list(self.load(ids)))
        workers = [json.loads(value) for value in self._scan(key("w"))]
        self._write({}, [key(kind, name) for name, _, until in workers if until <= now for kind in "wW"])
        return len(ids)

    def counts(self) -> dict[str, dict[TaskState, int]]:
        states = list(TaskState)
        counts: dict[str, dict[TaskState, int]] = {}
        for value in self._scan(key("n")):
            count, state, queue = json.loads(value)
            counts.setdefault(queue, {})[states[state - 1]] = count
        return counts

    # Queues and workers

    def paused(self) -> set[str]:
        return {value.decode() for value in self._scan(key("P"))}

    def pause(self, queue: str) -> bool:
        was = self._one(key("P", queue)) is not None
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

    def workers(self) -> list[StoredWorker]:
        running = self.load(self._ids(key("l"), None, None)).values()
        known = sorted(json.loads(value) for value in self._scan(key("w")))
        told = self._get(key("W", name) for name, _, _ in known)
        return [
            StoredWorker(
                id=name,
                seen_at=from_micros(seen),
                running=tuple(task.id for task in running if task.worker == name),
                about=told[key("W", name)].decode() if key("W", name) in told else None,
            )
            for name, seen, until in known
            if until > to_micros(self.now)
        ]

    # Schedules

    def schedules(self) -> list[Schedule]:
        return [_schedule(value) for value in self._scan(key("S"))]

    def schedule(self, schedule_id: str) -> Schedule | None:
        value = self._one(key("S", schedule_id))
        return None if value is None else _schedule(value)

    def store_schedule(self, schedule: Schedule) -> None:
        self.remove_schedule(schedule.id)
        value = json.dumps([schedule.id, schedule.revision, dump_schedule(schedule)]).encode()
        self._write({key("S", schedule.id): value, **dict.fromkeys(_due(schedule), value)})

    def remove_schedule(self, schedule_id: str) -> None:
        old = self.schedule(schedule_id)
        if old is not None:
            self._write({}, [key("S", schedule_id), *_due(old)])

    def revision_floor(self) -> int:
        return int(self._one(key("R")) or b"0")

    def raise_revision_floor(self, revision: int) -> None:
        self._write({key("R"): b"%d" % revision})

    def due(self, limit: int) -> list[Schedule]:
        return [_schedule(value) for value in self._scan(key("D"), key(to_micros(self.now) + 1), limit)]

    def next_schedule(self, after: datetime) -> datetime | None:
        self.flush()
        begin = key("D") + key(to_micros(after) + 1)
        found = [value for _, value in self._pairs.scan(begin, key("D") + _END, 1, False)]
        return _schedule(found[0]).next_run if found else None


def _schedule(value: bytes) -> Schedule:
    name, revision, text = json.loads(value)
    return load_schedule(text, id=name, revision=revision)


def _due(schedule: Schedule) -> list[bytes]:
    if schedule.paused or schedule.next_run is None:
        return []
    return [key("D", to_micros(schedule.next_run), schedule.id)]
