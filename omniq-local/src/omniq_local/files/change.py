"""One change of the store: what is read for it, what becomes of tasks by it, and the actions that make it so."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.task import TaskError, TaskState
from omniq_local.files.journal import Action
from omniq_local.files.names import HOME_SIZE, home_path, id_path, parse_entry, token, unique_path
from omniq_local.files.queues import EXPIRING, Queue
from omniq_local.files.records import ENDED, Record, dump_head, parse_record
from omniq_local.files.shelves import Shelf

if TYPE_CHECKING:
    from omniq_local.files.folder import Folder

__all__ = ["Change"]

_log = get_logger("omniq.files")


class Change:
    """What one operation reads and changes, all under the store's lock. Nothing is written before :meth:`complete`.

    :param folder: the store.
    :param now: microseconds.
    """

    def __init__(self, folder: Folder, now: int) -> None:
        self.folder = folder
        self.now = now
        self.sequence = folder.control.sequence
        self.ready: Counter[str] = Counter()
        """How many tasks became ready, by queue."""
        self.woken: set[str] = set()
        """Queues of which everybody is to look again."""
        self.ended: list[str] = []
        self.schedules_changed = False
        self.writes: list[Action] = []
        """Actions on other files than tasks."""
        self._records: dict[str, Record | None] = {}
        self._touched: dict[int, Record] = {}
        self._unique: dict[str, str | None] = {}
        self._unique_changed: set[str] = set()
        self._dirty: dict[str, Queue] = {}
        self._aside: list[Action] = []
        self._layout = 0

    @property
    def is_news(self) -> bool:
        """Whether somebody may be waiting for what was changed."""
        return bool(+self.ready or self.ended or self.woken or self.schedules_changed)

    # Reading

    def queue(self, name: str) -> Queue:
        """Give a queue as it is now."""
        return self.folder.queue(name)

    def mark(self, queue: Queue) -> None:
        """Note that what is kept of a queue changes."""
        self._dirty[queue.name] = queue

    def fetch(self, task_id: str) -> Record | None:
        """Give a task by its id, as this change leaves it; None if there is none."""
        if task_id in self._records:
            return self._records[task_id]
        record = self.folder.held.get(task_id)
        if record is None:
            record = self._read(id_path(token(task_id)))
        self._records[task_id] = record
        return record

    def _read(self, path: str) -> Record | None:
        try:
            data = self.folder.tree.read(path)
        except FileNotFoundError:
            return None
        try:
            return parse_record(data, f"{self.folder.base}/{path}")
        except CorruptRecord as error:
            self.folder.set_aside(path, str(error))
            return None

    def fetch_named(self, queue: Queue, state: str, name: str) -> Record | None:
        """Give a task by its file's name in the folder of a state; None if it is no longer there.

        A task that this change has changed already is not there any more. A file that cannot be read is moved aside,
        with all its names.
        """
        entry = parse_entry(name)
        assert entry is not None
        shelf = queue.shelves[state]
        path = shelf.file(entry.key, entry.id_token)
        try:
            data = self.folder.tree.read(path)
        except FileNotFoundError:
            return None
        try:
            record = parse_record(data, f"{self.folder.base}/{path}")
            if record.id_token != entry.id_token or record.sequence != entry.sequence:
                raise CorruptRecord(f"{self.folder.base}/{path} holds another task, {record.order.id}")
        except CorruptRecord as error:
            self._lose(queue, state, path, name, error)
            return None
        if not _stands(record, state, entry.key):
            # Somebody copied, or put back by hand, a file under the name that it had once.
            self.folder.set_aside(path, "it is not where its task is now")
            return None
        known = self._records.setdefault(record.order.id, record)
        # A change takes a task from its place once: two claims in one would be two deliveries under one token.
        return None if known is None or known.sequence in self._touched else known

    def _lose(self, queue: Queue, state: str, path: str, name: str, error: CorruptRecord) -> None:
        entry = parse_entry(name)
        assert entry is not None
        home, by_id = home_path(entry.sequence, entry.id_token), id_path(entry.id_token)
        ours = self.folder.tree.is_same(path, home)
        self.folder.set_aside(path, str(error))
        if ours:
            self._aside += [("remove", home), ("remove", by_id)]
            if state != EXPIRING:
                queue.counts[state] = max(0, queue.counts[state] - 1)
                self.mark(queue)

    def fetch_file(self, path: str) -> Record | None:
        """Give the task in a file; None if it is not there, or cannot be read."""
        record = self._read(path)
        if record is None:
            return None
        return self._records.setdefault(record.order.id, record)

    def content(self, path: str) -> bytes | None:
        """Give what is in a file that is no task's; None if there is none."""
        try:
            return self.folder.tree.read(path)
        except FileNotFoundError:
            return None

    def holder(self, key: str) -> str | None:
        """Give the id of the live task that has a unique key."""
        path = unique_path(key)
        if path in self._unique:
            return self._unique[path]
        record = self._read(path)
        if record is not None:
            record = self._records.setdefault(record.order.id, record)
        holder = None
        if record is not None and record.state not in ENDED and not record.removed and record.order.unique == key:
            holder = record.order.id
        self._unique[path] = holder
        return holder

    # Changing

    def add(self, record: Record) -> None:
        """Take a new task in."""
        self.sequence += 1
        record.sequence = self.sequence
        record.head = dump_head(record)
        self._records[record.order.id] = record
        self._touched[record.sequence] = record
        if record.order.unique is not None:
            self._set_key(record.order.unique, record.order.id)

    def touch(self, record: Record) -> None:
        """Note that a task changes."""
        self._touched[record.sequence] = record

    def end(self, record: Record, state: TaskState, error: TaskError | None = None) -> None:
        """End a task."""
        self._free_key(record)
        record.state = state
        record.finished_at = self.now
        record.lease_until = None
        if error is not None:
            record.error = error
        self.ended.append(record.order.id)
        self._touched[record.sequence] = record

    def give_back(self, record: Record, run_at: int) -> None:
        """Make a running task wait again."""
        record.run_at = run_at
        record.state = TaskState.SCHEDULED if run_at > self.now else TaskState.READY
        record.lease_until = None
        self._touched[record.sequence] = record

    def take_key(self, record: Record) -> bool:
        """Have a task that is made live anew take its unique key; tell whether it was free."""
        key = record.order.unique
        if key is None:
            return True
        if self.holder(key) is not None:
            return False
        self._set_key(key, record.order.id)
        return True

    def remove(self, record: Record) -> None:
        """Remove a task."""
        if record.state not in ENDED:
            self._free_key(record)
        record.removed = True
        self._records[record.order.id] = None
        self._touched[record.sequence] = record
        self.ended.append(record.order.id)

    def _free_key(self, record: Record) -> None:
        key = record.order.unique
        if key is not None and self.holder(key) == record.order.id:
            self._set_key(key, None)

    def _set_key(self, key: str, holder: str | None) -> None:
        path = unique_path(key)
        self._unique[path] = holder
        self._unique_changed.add(path)

    # Completing

    def complete(self) -> None:
        """Write everything to the store, in one step."""
        for record in self._touched.values():
            record.aim = record.stand()
        if self._touched:
            self._make_room()
        made: list[Action] = []
        moves: list[Action] = []
        removals: list[Action] = list(self._aside)
        for record in self._touched.values():
            queue = self.folder.queue(record.order.queue)
            self.mark(queue)
            if record.removed:
                self._unmake(queue, record, removals)
            elif record.was is None:
                self._make(queue, record, made)
            else:
                self._alter(queue, record, made, moves, removals)
        self._keys(made, removals)
        writes = list(self.writes)
        queues = [queue for queue in self._dirty.values() if self._write_queue(queue, writes)]
        actions = [*made, *writes, *moves, *removals]
        if actions:
            self.folder.commit(self, actions, self._layout)
            self.folder.settle(self._touched.values(), queues)

    def _make_room(self) -> None:
        """Divide sub-folders that files are to be put into the middle of, before any path is worked out."""
        for record in self._touched.values():
            if record.removed:
                continue
            shelves = self.folder.queue(record.order.queue).shelves
            state, key, expiry = record.aim
            old_state, old_key, old_expiry = record.was or (None, "", "")
            if key != old_key or state is not old_state:
                self._make_room_for(key, shelves[state.value])
            if expiry and expiry != old_expiry:
                self._make_room_for(expiry, shelves[EXPIRING])

    def _make_room_for(self, key: str, shelf: Shelf) -> None:
        crowded = shelf.crowded(key)
        if crowded is not None:
            self.folder.divide(shelf, crowded)

    def _put(self, shelf: Shelf, key: str, id_token: str) -> str:
        if shelf.opens(key):
            self._layout += 1
        if shelf.put(key, id_token):
            shelf.epoch = self.folder.control.generation + 1
        return shelf.file(key, id_token)

    def _announce(self, queue: Queue, state: TaskState, key: str) -> None:
        if state is TaskState.READY:
            self.ready[queue.name] += 1
        elif state is TaskState.SCHEDULED:
            first = queue.shelves[state.value].peek() if queue.counts[state.value] else None
            if first is None or key < first:
                # Everybody is to know when there will be something, not one who may be busy by then.
                self.woken.add(queue.name)

    def _make(self, queue: Queue, record: Record, made: list[Action]) -> None:
        record.status = record.dump_status()
        home, id_token = record.home, record.id_token
        state, key, expiry = record.aim
        made.append(("create", home, record.head + record.status))
        made.append(("link", home, record.by_id))
        self._announce(queue, state, key)
        made.append(("link", home, self._put(queue.shelves[state.value], key, id_token)))
        queue.counts[state.value] += 1
        if expiry:
            made.append(("link", home, self._put(queue.shelves[EXPIRING], expiry, id_token)))
            queue.counts[EXPIRING] += 1

    def _alter(
        self, queue: Queue, record: Record, made: list[Action], moves: list[Action], removals: list[Action]
    ) -> None:
        assert record.was is not None
        old_state, old_key, old_expiry = record.was
        state, key, expiry = record.aim
        shelves, id_token, home = queue.shelves, record.id_token, record.home
        status = record.dump_status()
        moves.append(("tail", home, len(record.head), status, record.status))
        record.status = status
        if key != old_key or state is not old_state:
            self._announce(queue, state, key)
            source = shelves[old_state.value].file(old_key, id_token)
            moves.append(("move", source, self._put(shelves[state.value], key, id_token), home))
            queue.counts[old_state.value] -= 1
            queue.counts[state.value] += 1
        if expiry != old_expiry:
            if old_expiry:
                removals.append(("remove", shelves[EXPIRING].file(old_expiry, id_token)))
                queue.counts[EXPIRING] -= 1
            if expiry:
                made.append(("link", home, self._put(shelves[EXPIRING], expiry, id_token)))
                queue.counts[EXPIRING] += 1

    def _unmake(self, queue: Queue, record: Record, removals: list[Action]) -> None:
        if record.was is None:
            return
        state, key, expiry = record.was
        home = record.home
        removals += [
            ("remove", queue.shelves[state.value].file(key, record.id_token)),
            ("remove", record.by_id),
            ("remove", home),
        ]
        queue.counts[state.value] -= 1
        if expiry:
            removals.append(("remove", queue.shelves[EXPIRING].file(expiry, record.id_token)))
            queue.counts[EXPIRING] -= 1
        if record.sequence // HOME_SIZE < self.sequence // HOME_SIZE:
            removals.append(("clear", os.path.dirname(home)))

    def _keys(self, made: list[Action], removals: list[Action]) -> None:
        for path in self._unique_changed:
            holder = self._unique[path]
            record = None if holder is None else self._records[holder]
            if record is None:
                removals.append(("remove", path))
            else:
                made.append(("link", record.home, path))

    def _write_queue(self, queue: Queue, actions: list[Action]) -> bool:
        content = queue.dump()
        if content == queue.raw:
            return False
        actions.append(("write", queue.path, content, queue.raw))
        queue.written = content
        return True


def _stands(record: Record, state: str, key: str) -> bool:
    assert record.was is not None
    if state == EXPIRING:
        return record.was[2] == key
    return record.was[0] == state and record.was[1] == key
