"""What is kept of limits: each in a file of its own, and all else in a log, of which a process reads what is new.

Each line of the log is ``[kind, name, value]``, and takes the place of an earlier one of the same kind and name; a
value of null removes that. Kinds are *lane* and *line* (as :mod:`omniq.storage.rows` has them), *rate* (when it is at
rest), *slot* (a running task, by its id), and *limit*: its file was changed. The first line says which log it is. A log
that has grown to several times what still counts is written anew. All in it but rates follows from the files of tasks
and limits, and is made from these where the log cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from omniq.errors import CorruptRecord
from omniq.limit import Lane, Limit, Scope, StoredLine, limit_id
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.limit_transitions import ELIGIBLE
from omniq.storage.records import corrupt_limit, load_limit, unreadable_limit
from omniq.storage.rows import dump_lane, dump_line, load_lane, load_line
from omniq.storage.validation import UNREADABLE
from omniq.task import TaskState
from omniq_local.files.journal import Action
from omniq_local.files.names import LIMITS, limit_path, text_of
from omniq_local.files.records import Record
from omniq_local.files.tree import NO_FILE, Tree
from omniq_local.limit_state import LimitState

__all__ = ["LANE", "LIMIT", "LINE", "NOTHING", "RATE", "SLOT", "LimitLog", "entry"]

_log = get_logger("omniq.files")

T = TypeVar("T")

LIMIT, LANE, LINE, RATE, SLOT = "limit", "lane", "line", "rate", "slot"
_HEAD = len('["log", 00000000000000000000]\n')
LEAST = 256
"""Lines that a log may have before it is written anew."""
OUTWORN = 4
"""How many times as many lines as still count a log may have otherwise."""
NOTHING = "null"


class LimitLog(LimitState):
    """The limits of a store, as far as this process knows them. Used under the store's lock.

    :param tree: the namespace's files.
    """

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.read_at = -1
        """The generation of the store that this was read in."""
        self.is_damaged = False
        """Whether a part of the log could not be read, so that it is to be made anew."""
        self.problems: list[CorruptRecord] = []
        self._unreadable: dict[str, CorruptRecord] | None = None
        """What is wrong with limits that cannot be read, by their files; None: none of them was read."""
        self.slots: dict[str, tuple[str, str | None, str | None]] = {}
        """The running tasks that have a key or a named limit, by their ids: queue, key and limit."""
        self._tree = tree
        self._head = b""
        self._size = 0
        self._written = (b"", 0, 0)
        self._lines_read = 0

    # The limits

    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        found = super().task_limits(ids)
        if self._unreadable:
            names = map(_id_in_path, self._unreadable) if ids is None else ids
            for name in filter(None, names):
                if problem := self._unreadable.get(limit_path(name)):
                    limit = unreadable_limit(name, problem)
                    found |= {} if limit is None else {name: limit}
        return found

    def store_limit(self, limit: Limit) -> None:
        self.remove_limit(limit.id)
        super().store_limit(limit)

    def remove_limit(self, limit_id: str) -> None:
        super().remove_limit(limit_id)
        if self._unreadable:
            self._unreadable.pop(limit_path(limit_id), None)

    def check(self) -> list[CorruptRecord]:
        """Return what is wrong with the log, and with the limits as they stand in their files now."""
        for name in super().task_limits(None):
            super().remove_limit(name)
        return [*self.problems, *self._read_limits().values()]

    def _read_limits(self) -> dict[str, CorruptRecord]:
        self._unreadable = {}
        for name in self._tree.names("limits"):
            path = f"limits/{name}"
            if path != LIMITS:
                self._read_limit(path)
        return self._unreadable

    def _read_limit(self, path: str) -> None:
        name = _id_in_path(path)
        try:
            data = self._tree.read(path)
            if name is None:
                fields = json.loads(data)
                name = limit_id(fields["queue"], fields["name"])
                if limit_path(name) != path:
                    raise ValueError(f"it is another limit, {name!r}")
            self.store_limit(load_limit(data, name))
            return
        except FileNotFoundError:
            return
        except CorruptRecord as error:
            problem = error
        except OSError as error:
            if error.errno not in NO_FILE:
                raise  # it may well be readable the next time
            problem = corrupt_limit(name or path, error)
        except UNREADABLE as error:
            problem = corrupt_limit(name or path, error)
        log_once(_log, problem)
        assert self._unreadable is not None
        self._unreadable[path] = problem

    # The log

    def read(self) -> bool:
        """Read what is new in the log; return False if all of it is to be read, into another object."""
        if self._unreadable is None:
            self._read_limits()
        if self.is_damaged:
            return False
        try:
            head, size = self._tree.read_part(LIMITS, 0, _HEAD)
            if self._head and (head != self._head or size < self._size):
                return False
            data = self._tree.read_part(LIMITS, self._size, size - self._size)[0]
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            if self._head:
                return False
            self.is_damaged = True
            return True
        self._head, self._size = head, size
        lines = data.splitlines()
        self._lines_read += len(lines)
        for line in lines:
            try:
                self._take(line)
            except (CorruptRecord, *UNREADABLE) as error:
                self._found_damage(error)
        return True

    def _found_damage(self, error: Exception) -> None:
        self.is_damaged = True
        if not isinstance(error, CorruptRecord):
            error = corrupt("limit", LIMITS, error, place=f"{self._tree.base}/{LIMITS}")
        log_once(_log, error)
        self.problems.append(error)

    def _take(self, line: bytes) -> None:
        kind, name, value = json.loads(line) if line[:7] != b'["log",' else ("log", "", None)
        text = None if value is None else json.dumps(value)
        if kind == LIMIT:
            self.remove_limit(name)
            self._read_limit(limit_path(name))
        elif kind == LANE:
            _put_or_remove(text, name, load_lane, self.save_lane, self.remove_lane)
        elif kind == LINE:
            _put_or_remove(text, name, load_line, self.save_line, self.drop_line)
        elif kind == RATE:
            scope = Scope(*name)
            if value is None:
                self.remove_bucket(scope)
            else:
                self.save_bucket(scope, int(value))
        elif kind == SLOT:
            self.set_slot(str(name), None if value is None else (value[0], value[1], value[2]))
        elif kind != "log":
            raise ValueError(f"{line!r:.100} in place of a change of limits")

    def set_slot(self, task_id: str, place: tuple[str, str | None, str | None] | None) -> None:
        """Note that a task runs, or does not any more.

        :param task_id: its id.
        :param place: its queue, its key and its named limit; None: it does not run.
        """
        former = self.slots.pop(task_id, None)
        if former is not None:
            self.leave(*former)
        if place is not None:
            self.slots[task_id] = place
            self.enter(*place)

    # Writing

    def actions(self, changes: Iterable[str], generation: int) -> list[Action]:
        """Return what writes changes down.

        :param changes: lines of the log.
        :param generation: of the store after them.
        """
        lines = list(changes)
        lasting = LEAST + OUTWORN * (len(self.slots) + self.count())
        if self._head and not self.is_damaged and self._lines_read + len(lines) < lasting:
            content = "".join(lines).encode(errors="surrogatepass")
            self._written = self._head, self._size + len(content), self._lines_read + len(lines)
            return [("tail", LIMITS, self._size, content, b"")]
        content = self.dump(generation)
        self._written = content[:_HEAD], len(content), content.count(b"\n")
        if not self._tree.exists(LIMITS):
            return [("create", LIMITS, content)]
        if self.is_damaged:
            aside = self._tree.place_aside(LIMITS)
            _log.warning("%s/%s moved to %s: parts of it cannot be read", self._tree.base, LIMITS, aside)
            return [("move", LIMITS, aside, ""), ("create", LIMITS, content)]
        return [("write", LIMITS, content, self._tree.read(LIMITS))]

    def settle(self) -> None:
        """Note that what :meth:`action` returned was done."""
        if self._written[0]:
            self._head, self._size, self._lines_read = self._written
            self.is_damaged = False
            self.problems.clear()
            self._written = (b"", 0, 0)

    def dump(self, generation: int) -> bytes:
        """Return a log of what there is.

        :param generation: of the store.
        """
        return "".join([f'["log", {generation:020d}]\n', *self._dumped()]).encode(errors="surrogatepass")

    def _dumped(self) -> Iterator[str]:
        for lane in self.lanes(None).values():
            yield entry(LANE, lane.queue, dump_lane(lane))
        for line in self.all_lines():
            yield entry(LINE, line.id, dump_line(line))
        for scope, at_rest in self.buckets():
            yield entry(RATE, scope, str(at_rest))
        for task_id, place in self.slots.items():
            yield entry(SLOT, task_id, json.dumps(place))

    # Making it anew

    def mend(self, records: Iterable[Record]) -> None:
        """Have lanes, lines and slots be those of limits and tasks; of the lines only the virtual times are kept.

        :param records: all tasks that are ready or run and have a key or a named limit, at least.
        """
        for limit in self.task_limits(None).values():
            if limit.queue is not None and not self.has_lane(limit.queue):
                self.save_lane(Lane(queue=limit.queue))
        known = {line.id: line for line in self.all_lines()}
        for line_id in known:
            self.drop_line(line_id)
        for task_id in list(self.slots):
            self.set_slot(task_id, None)
        for record in records:
            order = record.order
            if record.state is TaskState.RUNNING:
                self.set_slot(order.id, (order.queue, order.key, order.limit))
            elif record.state is TaskState.READY:
                line = self.line(record.line)
                if line is None:
                    vtime = known[record.line].vtime if record.line in known else 0
                    line = StoredLine(queue=order.queue, key=order.key, limit=order.limit, place=ELIGIBLE, vtime=vtime)
                    line.priority = order.priority
                line.priority = max(line.priority, order.priority)
                self.save_line(line)
                if not self.has_lane(order.queue):
                    self.save_lane(Lane(queue=order.queue))


def _id_in_path(path: str) -> str | None:
    """Return the id of a limit as the name of its file tells it; None if it is too long to be legible there."""
    return text_of(path.rpartition("/")[2].removesuffix(".json"))


def entry(kind: str, name: object, value: str) -> str:
    """Return a line of the log.

    :param value: as JSON.
    """
    return f'["{kind}", {json.dumps(name)}, {value}]\n'


def _put_or_remove(
    text: str | None,
    name: str,
    load: Callable[[str, str], T],
    put: Callable[[T], None],
    remove: Callable[[str], None],
) -> None:
    if text is None:
        remove(name)
    else:
        put(load(text, name))
