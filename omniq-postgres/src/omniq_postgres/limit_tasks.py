"""The primitives of a transaction about limits, over which :mod:`omniq.storage.limit_transitions` does the verbs.

As long as it has the lock no other transaction changes what is kept of limits: so that is read ahead, for all lines
that a claim may serve at once, and written together with the next question. Tasks and what they hold change meanwhile,
but only so that more may run: a call that ends a task wakes what waits for it afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

from attrs import define

from omniq.errors import CorruptRecord
from omniq.limit import PLAIN, Lane, Limit, Scope, StoredLine, limit_id, line_id
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.limit_transitions import ASLEEP, ELIGIBLE, IDLE, LimitStep, rank_of
from omniq.storage.records import dump_limit, read_limit
from omniq.storage.rows import dump_lane, dump_line, load_lane, load_line
from omniq.storage.times import to_micros
from omniq.task import NewTask, StoredTask, TaskState
from omniq_postgres import binary_params
from omniq_postgres.encoding import RUNNING
from omniq_postgres.enqueueing import FEW
from omniq_postgres.flow_tasks import FlowTasks
from omniq_postgres.known_lines import KnownLines
from omniq_postgres.operations import Context, Query, Rows

__all__ = ["PROMOTED", "SOON", "LimitTasks"]

R = TypeVar("R")

_log = get_logger("omniq.postgres")

PROMOTED = 1000
"""Tasks that one transaction puts into their lines at most, and ends that it follows."""
SOON = 1e-6
"""Seconds: of what may be ready, so that a waiting worker looks before it claims."""
AGAIN = 500_000
"""Microseconds after which a claim looks again at a line whose tasks other transactions have locked."""
LATEST_RANK = 2**62
PLAIN_AHEAD = 8
"""Tasks without key and named limit that are read at once, at least."""


@define
class _Heads:
    """The first tasks of a line."""

    tasks: dict[str, StoredTask]
    whole: bool
    """Whether there are no others that can be claimed now."""
    others: bool = False
    """Whether there are others, which some transaction has locked."""


class LimitTasks(FlowTasks):
    """A transaction that reads and writes limits and lines.

    Within one of the caller's, which may stay open for long, nothing of them is touched: its tasks go into their lines
    with the next claim.

    :param locks: whether it has the lock of what it reads.
    """

    def __init__(self, context: Context, *, locks: bool) -> None:
        super().__init__(context)
        self._locks = locks
        self._has_limits_lock = False
        self._stores_first = False
        self._unlined: set[str] = set()
        """The lines of tasks that were stored without the lock."""
        self.ahead = 0
        """Tasks that a claim will take, about: for so many it reads ahead."""
        self.paused: set[str] = set()
        """Of the queues that :meth:`catch_up` was given, those that are."""
        self._lines = KnownLines()
        self._roused: dict[str, str] = {}
        """The queues of lines that have become eligible here, by the lines' ids."""
        self._heads: dict[tuple[str, str], _Heads] = {}
        """By queue and line."""
        self._slots: dict[Scope, int] = {}
        self._lanes: dict[str, Lane | None] = {}
        self._limits: dict[str, Limit | None] = {}
        self._rests: dict[str, int] = {}
        self._spent: dict[str, None] = {}
        """Rates of which that has changed, and is not written yet."""

    # The lock

    def lock_limits(self) -> None:
        if self._has_limits_lock or self._stores_first:
            return
        lead = self._lock()
        if self._unlined:
            self._know(self._unlined, lead)
        else:
            self._lead(lead)

    def store_first(self, tasks: Sequence[NewTask]) -> None:
        """Begin a transaction that stores tasks, and has the lock only once they are stored.

        To store them may wait for one of the caller's that has one of their keys, and claims wait for the lock.
        """
        self._stores_first = True
        unique = sorted({task.unique or "" for task in tasks if task.debounce is not None})
        # Of several that take one key's place each sees the one before it.
        self._lead([self._context.query("limits.lock_keys", binary_params.texts(unique))] if unique else [])

    def revive_first(self, ids: Sequence[str]) -> None:
        """Begin a transaction that makes ended tasks ready, as :meth:`store_first`: they take their keys anew.

        :param ids: locked, so that two that retry one task do not both count it.
        """
        self._stores_first = True
        self._lead([self._context.query("limits.lock_ended", binary_params.uuids(ids))])

    def _lock(self) -> list[Query]:
        self._has_limits_lock = True
        return [self._context.query("limits.lock")] if self._locks and not self._context.joined else []

    def _lead(self, lead: Sequence[Query]) -> None:
        if lead or not hasattr(self, "now"):
            self._begin(self._rows("reading.now", lead=lead)[-1][0])

    def _begin(self, now: datetime) -> None:
        # Later than what the transaction before has stored, unless a flow was opened already.
        if not hasattr(self, "now"):
            self.now = now

    def catch_up(self, queues: Sequence[str]) -> None:
        """Lock what is kept of limits, follow the ends of tasks that held slots, and put what is due into its line.

        :param queues: of which tasks may be due.
        """
        query, names, most = self._context.query, binary_params.texts(queues), binary_params.integer(PROMOTED)
        ids = [limit_id(queue) for queue in queues]
        lead = [
            *self._lock(),
            query("reading.now"),
            query("limits.paused", names),
            query("limits.lanes", names),
            query("limits.limits", binary_params.texts(ids)),
            query("limits.wakes", most),
        ]
        found: dict[str, Rows] = {"paused": [], "lane": [], "limit": [], "wake": [], "due": []}
        for row in self._rows("limits.promote", names, most, lead=lead):
            if isinstance(row[0], datetime):
                self._begin(row[0])
            elif row[0] in found:
                found[row[0]].append(row[1:])
        self.paused = {queue for (queue,) in found["paused"]}
        self._learn_lanes(queues, found["lane"])
        self._learn_limits(ids, found["limit"])
        self._follow(found["wake"])
        self._know({line_id(*row[:3]) for row in found["due"]})
        step = LimitStep(self)
        for queue, key, name, priority in found["due"]:
            step.arrive(queue, key, name, priority)

    def _follow(self, rows: Rows) -> None:
        """Wake what waits for what has stopped running, and give back the starts of what was given back unstarted."""
        step = LimitStep(self)
        keys: dict[tuple[str, str], bool] = {}
        names: dict[str, None] = {}
        for queue, key, name, released in rows:
            if released:
                for scope, limit in step.limits_of(queue, key, name):
                    step.spend(scope, limit, -1)
            if key is not None:
                keys[queue, key] = keys.get((queue, key), False) or released
            if name is not None:
                names[name] = None
            self._news.ready(queue, SOON)
        self._know_keys(keys)
        for (queue, key), released in keys.items():
            step.wake_key(queue, key, asleep=released)
        for name in names:
            step.wake_name(name)

    def is_behind(self) -> bool:
        """Return whether there is something for :meth:`catch_up` to follow."""
        return bool(self._rows("limits.woken")[0][0])

    def paused_of(self, queues: Sequence[str]) -> set[str]:
        """Return those of some queues that are paused."""
        return {queue for _, queue in self._rows("limits.paused", binary_params.texts(queues))}

    def prospects(self, queue: str) -> tuple[bool, datetime | None]:
        """Return whether tasks of a queue are ready that stand in no line, or any due; and when the next will be."""
        ((is_there, moment),) = self._rows("limits.prospects", binary_params.text(queue))
        return bool(is_there), moment if isinstance(moment, datetime) else None

    def _save(self) -> None:
        super()._save()
        lines = self._lines.changes()
        if saved := [(line_id, line, *rank_of(line)) for line_id, line in lines if line is not None]:
            self._write(
                "limits.save_lines",
                binary_params.texts([line_id for line_id, _, _, _ in saved]),
                binary_params.texts([line.queue for _, line, _, _ in saved]),
                binary_params.texts([line.key for _, line, _, _ in saved]),
                binary_params.texts([line.place for _, line, _, _ in saved]),
                binary_params.bigints([min(first, LATEST_RANK) for _, _, first, _ in saved]),
                binary_params.bigints([min(second, LATEST_RANK) for _, _, _, second in saved]),
                binary_params.texts([dump_line(line) for _, line, _, _ in saved]),
                prepare=len(saved) <= FEW,
            )
        if removed := [line_id for line_id, line in lines if line is None]:
            self._write("limits.remove_lines", binary_params.texts(removed))
        if self._spent:
            rests = [min(self._rests[scope], LATEST_RANK) for scope in self._spent]
            self._write("limits.save_buckets", binary_params.texts(list(self._spent)), binary_params.bigints(rests))
            self._spent.clear()

    # Tasks

    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        """See :meth:`omniq.storage.primitives.Transaction.ready`; those that have expired are passed over.

        So are those that others have locked: a transaction of the caller's may have taken their place. As long as a
        line has such it is not taken for empty, see :meth:`save_line`.
        """
        heads = self._heads.get((queue, line))
        if heads is None or (len(heads.tasks) < limit and not heads.whole):
            now = binary_params.timestamp(self.now)
            if line == PLAIN:
                most = max(limit, min(self.ahead, PLAIN_AHEAD))
                rows = self._rows("limits.ready_plain", binary_params.text(queue), now, binary_params.bigint(most))
            else:
                most = limit
                rows = self._rows("limits.ready", binary_params.texts([line]), now, binary_params.bigint(most))
            heads = self._learn_heads(queue, line, rows, most)
        return list(islice(heads.tasks.values(), limit))

    def _learn_heads(self, queue: str, line: str, rows: Rows, most: int) -> _Heads:
        tasks = {task.id: task for task in self._tasks([row[:-2] for row in rows if row[0] is not None])}
        there = rows[0][-2] if rows else 0
        heads = self._heads[queue, line] = _Heads(tasks, whole=len(tasks) < most, others=there > len(tasks))
        return heads

    def running(self, scope: Scope) -> int:
        if scope not in self._slots:
            if scope.name is not None:
                rows = self._rows("limits.running_by_name", binary_params.text(scope.name))
            elif scope.key is None:
                rows = self._rows("limits.running_in_queue", binary_params.text(scope.queue or ""))
            else:
                given = binary_params.text(scope.queue or ""), binary_params.texts([scope.key])
                rows = self._rows("limits.running_of_keys", *given)
            self._slots[scope] = int(rows[0][-1])
        return self._slots[scope]

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        super().insert(tasks)
        lines = self._note_lines(tasks)
        if lines and self._has_limits_lock:
            self._heads.clear()
            self._know(lines)

    def _note_lines(self, tasks: Sequence[StoredTask]) -> set[str]:
        self._stores_first = False
        if self._context.joined:
            return set()
        lines = {line_id(task.queue, task.key, task.limit) for task in tasks if task.state is TaskState.READY} - {PLAIN}
        if not self._has_limits_lock:
            self._unlined |= lines
        return lines

    def save(self, tasks: Sequence[StoredTask]) -> None:
        if tasks:
            self._note_lines(tasks)
        if self._heads or self._slots:
            for task in tasks:
                self._note(task, self._stored[task.id][0] == RUNNING)
        super().save(tasks)

    def _note(self, task: StoredTask, was_running: bool) -> None:
        """Follow what becomes of a task in what is known."""
        line = task.queue, line_id(task.queue, task.key, task.limit)
        if task.state is TaskState.READY:
            self._heads.pop(line, None)
        else:
            # Of one that cannot be read it is not known in which line it stood.
            known = self._heads.values() if task.state is not TaskState.RUNNING else [self._heads.get(line)]
            for heads in known:
                if heads is not None:
                    heads.tasks.pop(task.id, None)
        if step := (task.state is TaskState.RUNNING) - was_running:
            for scope in {Scope(task.queue), Scope(task.queue, task.key), Scope(name=task.limit)}:
                if scope in self._slots:
                    self._slots[scope] += step

    # Lanes and limits

    def lanes(self, queues: Iterable[str] | None) -> dict[str, Lane]:
        if queues is None:
            queues = [row[1] for row in self._rows("limits.lanes", None)]
        wanted = list(queues)
        missing = [queue for queue in wanted if queue not in self._lanes]
        if missing:
            self._learn_lanes(missing, [row[1:] for row in self._rows("limits.lanes", binary_params.texts(missing))])
        return {queue: copy(lane) for queue in wanted if (lane := self._lanes[queue]) is not None}

    def _learn_lanes(self, queues: Iterable[str], rows: Rows) -> None:
        self._lanes.update(dict.fromkeys(queues))
        for queue, body in rows:
            # Of one that cannot be read the lines are as they were.
            self._lanes[queue] = _read(load_lane, body, queue) or Lane(queue=queue)

    def save_lane(self, lane: Lane) -> None:
        if self._context.joined:
            return
        self._lanes[lane.queue] = copy(lane)
        self._write("limits.save_lane", binary_params.text(lane.queue), binary_params.text(dump_lane(lane)))
        if lane.waking:
            self._news.ready(lane.queue, SOON)

    def remove_lane(self, queue: str) -> None:
        self._lanes[queue] = None
        self._write("limits.remove_lane", binary_params.text(queue))

    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        if ids is None:
            ids = [row[1] for row in self._rows("limits.limits", None)]
        wanted = list(ids)
        missing = [name for name in wanted if name not in self._limits]
        if missing:
            rows = self._rows("limits.limits", binary_params.texts(missing))
            self._learn_limits(missing, [row[1:] for row in rows])
        return {name: limit for name in wanted if (limit := self._limits[name]) is not None}

    def _learn_limits(self, ids: Iterable[str], rows: Rows) -> None:
        self._limits.update(dict.fromkeys(ids))
        problems: list[CorruptRecord] = []
        for name, body in rows:
            self._limits[name] = read_limit(body, name, problems)
        for problem in problems:
            log_once(_log, problem)

    def store_limit(self, limit: Limit) -> None:
        self._limits[limit.id] = limit
        self._write("limits.save_limit", binary_params.text(limit.id), binary_params.text(dump_limit(limit)))

    def remove_limit(self, limit_id: str) -> None:
        self._limits[limit_id] = None
        self._write("limits.remove_limit", binary_params.text(limit_id))

    def revision_floor(self) -> int:
        return int(self._rows("limits.floor")[0][0])

    def raise_revision_floor(self, revision: int) -> None:
        self._write("limits.raise_floor", binary_params.bigint(revision))

    # Lines

    def line(self, line_id: str) -> StoredLine | None:
        if self._context.joined:
            return StoredLine(queue="", key=None, limit=None, place=ELIGIBLE, priority=LATEST_RANK)
        self._know({line_id})
        return self._lines.get(line_id)

    def _know(self, ids: Iterable[str], lead: Sequence[Query] = ()) -> None:
        """Read lines by their ids, unless they are known."""
        missing = [line_id for line_id in ids if not self._lines.is_known(line_id)]
        if missing or lead:
            found = self._rows("limits.lines_by_id", binary_params.texts(missing), lead=lead)
            rows = [row for row in found if len(row) == 2]
            self._lines.learn([*((line_id, None) for line_id in missing), *_read_lines(rows)])

    def _know_keys(self, keys: Iterable[tuple[str, str]]) -> None:
        """Read all lines of some keys, unless they are known."""
        if missing := [key for key in keys if self._lines.of_key(*key) is None]:
            queues, tenants = ([key[n] for key in missing] for n in (0, 1))
            rows = self._rows("limits.lines_of_keys", binary_params.texts(queues), binary_params.texts(tenants))
            self._lines.learn_keys(missing, _read_lines(rows))

    def lines(self, queue: str, place: str, limit: int, until: int | None = None) -> list[StoredLine]:
        if place == ASLEEP:
            found, _ = self._read_at(queue, place, limit, until)
            self._lines.learn(found)
            return [copy(line) for _, line in found]
        found_there = self._lines.at(queue, place, limit)
        if found_there is None:
            self._read_ahead(queue, place, max(limit, self.ahead + 1))
            found_there = self._lines.at(queue, place, limit)
        return found_there or []

    def _read_at(
        self, queue: str, place: str, limit: int, until: int | None = None
    ) -> tuple[list[tuple[str, StoredLine]], bool]:
        """Read the first lines of a place; return also whether there are no others."""
        most = limit
        while True:
            rows = self._rows(
                "limits.lines",
                binary_params.text(queue),
                binary_params.text(place),
                binary_params.bigint(LATEST_RANK if until is None else until),
                binary_params.bigint(most),
            )
            found = _read_lines(rows)
            if len(found) >= limit or len(rows) < most:
                return found[:limit], len(found) <= limit and len(rows) < most
            most *= 2  # those that cannot be read stand before none that can

    def _read_ahead(self, queue: str, place: str, number: int) -> None:
        """Read the first lines of a place; of eligible ones also what a claim asks of each of them."""
        found, whole = self._read_at(queue, place, number)
        self._lines.learn_place(queue, place, found, whole=whole)
        wanted = [one for one, _ in found if (queue, one) not in self._heads]
        if not self.ahead or place != ELIGIBLE or not wanted:
            return
        keys = sorted({line.key for _, line in found if line.key is not None})
        scopes = {_id_of(Scope(queue, key)) for key in keys} - self._rests.keys()
        each = 1 + -(-self.ahead // len(found))
        lead = [
            self._context.query("limits.running_of_keys", binary_params.text(queue), binary_params.texts(keys)),
            self._context.query("limits.buckets", binary_params.texts(list(scopes))),
        ]
        now = binary_params.timestamp(self.now)
        heads: dict[str, Rows] = {one: [] for one in wanted}
        self._rests.update(dict.fromkeys(scopes, 0))
        for row in self._rows("limits.ready", binary_params.texts(wanted), now, binary_params.bigint(each), lead=lead):
            if row[0] == "slots":
                self._slots.setdefault(Scope(queue, row[1]), row[2])
            elif row[0] == "rest":
                self._rests[row[1]] = row[2]
            else:
                heads[row[-1]].append(row)
        for one, rows in heads.items():
            self._learn_heads(queue, one, rows, each)

    def lines_of_key(self, queue: str, key: str) -> list[StoredLine]:
        self._know_keys([(queue, key)])
        return self._lines.of_key(queue, key) or []

    def queues_at(self, place: str) -> list[str]:
        return [queue for (queue,) in self._rows("limits.queues_at", binary_params.text(place))]

    def has_lines(self, queue: str) -> bool:
        return bool(self._rows("limits.has_lines", binary_params.text(queue), binary_params.text(IDLE))[0][0])

    def save_line(self, line: StoredLine) -> None:
        if line.place == IDLE and self._has_others(line):
            line.place, line.until = ASLEEP, to_micros(self.now) + AGAIN
        if self._lines.put(line):
            self._roused[line.id] = line.queue
        elif line.place != ELIGIBLE:
            self._roused.pop(line.id, None)
        if line.place == ASLEEP:
            self._news.ready(line.queue, max(SOON, (line.until - to_micros(self.now)) / 1_000_000))

    def _tell(self) -> None:
        for queue in self._roused.values():
            self._news.ready(queue, SOON)

    def remove_line(self, line: StoredLine) -> None:
        if self._has_others(line):
            line.place = IDLE
            self.save_line(line)
        else:
            self._lines.remove(line)

    def _has_others(self, line: StoredLine) -> bool:
        heads = self._heads.get((line.queue, line.id))
        return heads is not None and heads.others and not heads.tasks

    # Rates

    def bucket(self, scope: Scope) -> int:
        name = _id_of(scope)
        if name not in self._rests:
            rows = self._rows("limits.buckets", binary_params.texts([name]))
            self._rests[name] = int(rows[0][-1]) if rows else 0
        return self._rests[name]

    def save_bucket(self, scope: Scope, at_rest: int) -> None:
        name = _id_of(scope)
        self._rests[name] = at_rest
        self._spent[name] = None

    def drop_buckets(self, until: int, limit: int) -> None:
        self.lock_limits()
        self._save()
        self._rests.clear()
        self._write("limits.drop_buckets", binary_params.bigint(until), binary_params.bigint(limit))


def _read_lines(rows: Rows) -> list[tuple[str, StoredLine]]:
    return [(line_id, line) for line_id, body in rows if (line := _read(load_line, body, line_id)) is not None]


def _read(load: Callable[[Any, str], R], body: str, name: str) -> R | None:
    try:
        return load(body, name)
    except CorruptRecord as problem:
        log_once(_log, problem)
        return None


def _id_of(scope: Scope) -> str:
    return hashlib.sha256(repr(tuple(scope)).encode()).hexdigest()
