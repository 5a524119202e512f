"""One change of the store: what is read for it, what becomes of tasks by it, and the actions that make it so."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE, corrupt
from omniq.task import StoredTask, TaskError, TaskState
from omniq_local.files.encoding import ENDED, LARGE, Record, dump_head, id_in, parse_bare, parse_record, stand_in
from omniq_local.files.journal import Action, Displaced, Restored
from omniq_local.files.names import (
    HOME_SIZE,
    Entry,
    home_path,
    id_path,
    parse_entry,
    text_of,
    time_key,
    token,
    unique_path,
)
from omniq_local.files.queues import EXPIRING, Queue
from omniq_local.files.state_folders import StateFolder
from omniq_local.files.tree import ASIDE, NO_FILE

if TYPE_CHECKING:
    from omniq_local.files.folder import Folder

__all__ = ["Transaction"]

_log = get_logger("omniq.files")

STATUS = 128 * 1024
"""Bytes of a status that are read for a bare list: more than its error takes."""

_LIVE = frozenset(state.value for state in TaskState if state not in ENDED)


class Transaction:
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
        self._first: list[Action] = []
        self._removals: list[Action] = []
        """What is done before, and after, what becomes of tasks."""
        self._names: dict[str, list[tuple[str, Queue | None, str]]] | None = None
        self._layout = 0

    @property
    def is_news(self) -> bool:
        """Whether somebody may be waiting for what was changed."""
        return bool(+self.ready or self.ended or self.woken or self.schedules_changed)

    # Reading

    def queue(self, name: str) -> Queue:
        """Return a queue as it is now."""
        return self.folder.queue(name)

    def mark(self, queue: Queue) -> None:
        """Note that what is kept of a queue changes."""
        self._dirty[queue.name] = queue

    def fetch(self, task_id: str) -> Record | None:
        """Return a task by its id, as this change leaves it; None if there is none."""
        if task_id in self._records:
            return self._records[task_id]
        record = self.folder.held.get(task_id)
        if record is None:
            id_token = token(task_id)
            path = id_path(id_token)
            data = b""
            try:
                data = self._read(path)
                record = parse_record(data, None, id_token)
                if record.order.id != task_id:
                    raise ValueError(f"it is another task, {record.order.id!r}")
            except FileNotFoundError:
                record = None
            except UNREADABLE as error:
                record = self._by_home(path, id_token, data)
                if record is None:
                    record = stand_in(self._problem(task_id, path, error), data, task_id)
        self._records[task_id] = record
        return record

    def _by_home(self, path: str, id_token: str, data: bytes) -> Record | None:
        """Return the task whose name among the ids is of a file that is not its own, and give that name back to it."""
        tree = self.folder.tree
        if tree.names_of(path) > 1 and not _is_whole(data):
            # Its own file, which is torn. There is no need to look at all names for another.
            return None
        for home in tree.walk("tasks"):
            entry = parse_entry(f"{'0' * 18}-{home.rpartition('/')[2]}")
            if entry is not None and entry.id_token == id_token:
                with contextlib.suppress(FileNotFoundError, *UNREADABLE):
                    record = parse_record(self._read(home), entry.sequence, id_token)
                    _log.warning("%s/%s is not the file of its task; it is moved to %s", tree.base, path, ASIDE)
                    self._first += [("move", path, tree.place_aside(path), ""), ("link", home, path)]
                    return record
        return None

    def _read(self, path: str) -> bytes:
        """Return what is in a task's file.

        :raises ValueError: if it is no regular file.
        """
        try:
            return self.folder.tree.read(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            raise ValueError("it is no regular file") from error

    def _problem(self, task_id: str, path: str, error: Exception) -> CorruptRecord:
        return corrupt("task", task_id, error, place=f"{self.folder.base}/{path}")

    def fetch_named(self, queue: Queue, state: str, name: str) -> Record | None:
        """Return a task by its file's name in the folder of a state; None if it is no longer there.

        A task that this change has changed already is not there any more. One that cannot be read ends as failed if it
        has not ended, and is moved aside if it has.
        """
        entry = parse_entry(name)
        assert entry is not None
        path = queue.state_folders[state].file(entry.key, entry.id_token)
        data = b""
        try:
            data = self._read(path)
            record = parse_record(data, entry.sequence, entry.id_token)
            if not _stands(record, state, entry.key) or record.order.queue != queue.name:
                raise ValueError("it is not where it says that it is")
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            return self._heal(queue, state, path, entry, data, error)
        return self._once(record)

    def _once(self, record: Record) -> Record | None:
        known = self._records.setdefault(record.order.id, record)
        # A change takes a task from its place once: two claims in one would be two deliveries under one token.
        return None if known is None or known.sequence in self._touched else known

    def _heal(self, queue: Queue, state: str, path: str, entry: Entry, data: bytes, error: Exception) -> Record | None:
        """Do what can be done about a name in the folder of a state under which there is not what there should be."""
        tree, home = self.folder.tree, home_path(entry.sequence, entry.id_token)
        if not tree.is_same(path, home):
            # Another program put something else there, or put back a file under the name that it had once.
            self.folder.set_aside(path, str(error))
            path = ""
            try:
                record = parse_record(self._read(home), entry.sequence, entry.id_token)
            except (FileNotFoundError, *UNREADABLE):
                pass
            else:
                return self._once(record) if _stands(record, state, entry.key) else None
        task_id = text_of(entry.id_token) or id_in(data, entry.id_token)
        if state in _LIVE and task_id is not None:
            self._end_unreadable(
                queue, state, path, entry, stand_in(self._problem(task_id, home, error), data, task_id)
            )
            return None
        if path:
            self.folder.set_aside(path, str(error))
        if state != EXPIRING:
            self._removals += [("remove", home), ("remove", id_path(entry.id_token))]
        self._uncount(queue, state)
        return None

    def _end_unreadable(self, queue: Queue, state: str, path: str, entry: Entry, record: Record) -> None:
        """End a task that cannot be read: a new file takes the place of its own, which is moved aside."""
        tree = self.folder.tree
        problem = record.error
        assert problem is not None
        _log.error("%s; it is ended as failed", problem.message)
        if path:
            aside = tree.place_aside(path)
            _log.warning("%s/%s moved to %s", tree.base, path, aside)
            self._first.append(("move", path, aside, ""))
            if record.order.unique is not None and tree.is_same(path, unique_path(record.order.unique)):
                self._removals.append(("remove", unique_path(record.order.unique)))
            if record.expires_at is not None:
                state_folder = queue.state_folders[EXPIRING]
                expiring = state_folder.file(time_key(record.expires_at, entry.sequence), entry.id_token)
                if tree.is_same(path, expiring):
                    self._removals.append(("remove", expiring))
                    self._uncount(queue, EXPIRING)
        self._uncount(queue, state)
        record.order = evolve(record.order, queue=queue.name, unique=None)
        record.stand_in = None
        record.sequence = entry.sequence
        record.finished_at = self.now
        record.head = dump_head(record)
        self._records[record.order.id] = record
        self._touched[record.sequence] = record
        self.ended.append(record.order.id)

    def _uncount(self, queue: Queue, state: str) -> None:
        queue.counts[state] = max(0, queue.counts[state] - 1)
        self.mark(queue)

    def fetch_file(self, path: str, sequence: int, id_token: str, queue: str = "") -> Record | None:
        """Return the task in a file, to be shown; None if it is not there.

        :param sequence: and id, as the file's name says.
        :param queue: whose file it is.
        """
        data = b""
        try:
            data = self._read(path)
            record = parse_record(data, sequence, id_token)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            task_id = text_of(id_token) or id_in(data, id_token) or id_token
            shown = stand_in(self._problem(task_id, path, error), data, task_id, queue)
            shown.sequence = sequence
            return shown
        return self._records.setdefault(record.order.id, record)

    def fetch_bare(self, path: str, sequence: int, id_token: str) -> StoredTask | None:
        """Return the task in a file without what is large; None if it is not there, or has to be read whole.

        :param sequence: and id, as the file's name says.
        """
        tree = self.folder.tree
        try:
            data, size = tree.read_part(path, 0, LARGE)
            if size <= len(data):
                return parse_record(data, sequence, id_token).task().bare()
            return parse_bare(data, size, lambda offset: tree.read_part(path, offset, STATUS)[0], sequence, id_token)
        except (OSError, *UNREADABLE):
            return None

    def erase(self, task_id: str) -> None:
        """Remove a task that cannot be read, by all names that it has."""
        if self._names is None:
            self._names = self._all_names()
        id_token = token(task_id)
        self._removals.append(("remove", id_path(id_token)))
        for path, queue, state in self._names.get(id_token, ()):
            self._removals.append(("remove", path))
            if queue is not None:
                self._uncount(queue, state)
        self._records[task_id] = None
        self.ended.append(task_id)

    def _all_names(self) -> dict[str, list[tuple[str, Queue | None, str]]]:
        names: dict[str, list[tuple[str, Queue | None, str]]] = {}
        for path in self.folder.tree.walk("tasks"):
            _, dash, id_token = path.rpartition("/")[2].removesuffix(".json").partition("-")
            if dash:
                names.setdefault(id_token, []).append((path, None, ""))
        for queue in map(self.queue, self.folder.queue_names()):
            for state, state_folder in queue.state_folders.items():
                for path in state_folder.all():
                    entry = parse_entry(path.rpartition("/")[2])
                    assert entry is not None
                    names.setdefault(entry.id_token, []).append((path, queue, state))
        return names

    def content(self, path: str) -> bytes | None:
        """Return what is in a file that is no task's; None if there is none."""
        try:
            return self._read(path)
        except (FileNotFoundError, ValueError):
            return None

    def holder(self, key: str) -> str | None:
        """Return the id of the live task that has a unique key."""
        path = unique_path(key)
        if path in self._unique:
            return self._unique[path]
        holder = None
        try:
            record = parse_record(self._read(path))
        except (FileNotFoundError, *UNREADABLE):
            record = None
        if record is not None:
            # The name may be of another file than the task's own.
            known = self.fetch(record.order.id)
            if known is not None and known.state not in ENDED and not known.removed and known.order.unique == key:
                holder = known.order.id
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
        """Write everything to the store, in one step.

        :raises Restored: if a file was not there, but is now: then nothing was written, and it is to be done again.
        """
        for record in self._touched.values():
            record.aim = record.stand()
        if self._touched:
            self._make_room()
        made: list[Action] = []
        moves: list[Action] = []
        removals: list[Action] = list(self._removals)
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
        actions = [*self._first, *made, *writes, *moves, *removals]
        if actions:
            try:
                self.folder.commit(self, actions, self._layout)
            except Displaced as displaced:
                if not self._restore(displaced):
                    raise
                raise Restored(displaced.path) from None
            self.folder.settle(self._touched.values(), queues)

    def _restore(self, displaced: Displaced) -> bool:
        """Make a task's file anew where something else is in its place, or nothing; return False if it is none's.

        It is done outside of any change: until the file has all its names again, those that it has are of one that has
        the same content.
        """
        tree, home = self.folder.tree, displaced.path
        record = next((each for each in self._touched.values() if each.home == home), None)
        if record is None or record.was is None:
            return False
        _log.error("%s/%s is gone, or no file any more; it is made anew", tree.base, home)
        if tree.exists(home):
            tree.set_aside(home)
        tree.create(home, record.head + displaced.content)
        queue = self.queue(record.order.queue)
        state, key, expiry = record.was
        tree.link(home, record.by_id)
        tree.link(home, queue.state_folders[state.value].file(key, record.id_token))
        if expiry:
            tree.link(home, queue.state_folders[EXPIRING].file(expiry, record.id_token))
        return True

    def _make_room(self) -> None:
        """Divide sub-folders that files are to be put into the middle of, before any path is worked out."""
        for record in self._touched.values():
            if record.removed:
                continue
            state_folders = self.folder.queue(record.order.queue).state_folders
            state, key, expiry = record.aim
            old_state, old_key, old_expiry = record.was or (None, "", "")
            if key != old_key or state is not old_state:
                self._make_room_for(key, state_folders[state.value])
            if expiry and expiry != old_expiry:
                self._make_room_for(expiry, state_folders[EXPIRING])

    def _make_room_for(self, key: str, state_folder: StateFolder) -> None:
        crowded = state_folder.crowded(key)
        if crowded is not None:
            self.folder.divide(state_folder, crowded)

    def _put(self, state_folder: StateFolder, key: str, id_token: str) -> str:
        if state_folder.opens(key):
            self._layout += 1
        if state_folder.put(key, id_token):
            state_folder.epoch = self.folder.control.generation + 1
        return state_folder.file(key, id_token)

    def _announce(self, queue: Queue, state: TaskState, key: str) -> None:
        if state is TaskState.READY:
            self.ready[queue.name] += 1
        elif state is TaskState.SCHEDULED:
            first = queue.state_folders[state.value].peek() if queue.counts[state.value] else None
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
        made.append(("link", home, self._put(queue.state_folders[state.value], key, id_token)))
        queue.counts[state.value] += 1
        if expiry:
            made.append(("link", home, self._put(queue.state_folders[EXPIRING], expiry, id_token)))
            queue.counts[EXPIRING] += 1

    def _alter(
        self, queue: Queue, record: Record, made: list[Action], moves: list[Action], removals: list[Action]
    ) -> None:
        assert record.was is not None
        old_state, old_key, old_expiry = record.was
        state, key, expiry = record.aim
        state_folders, id_token, home = queue.state_folders, record.id_token, record.home
        status = record.dump_status()
        moves.append(("tail", home, len(record.head), status, record.status))
        record.status = status
        if key != old_key or state is not old_state:
            self._announce(queue, state, key)
            source = state_folders[old_state.value].file(old_key, id_token)
            moves.append(("move", source, self._put(state_folders[state.value], key, id_token), home))
            queue.counts[old_state.value] -= 1
            queue.counts[state.value] += 1
        if expiry != old_expiry:
            if old_expiry:
                removals.append(("remove", state_folders[EXPIRING].file(old_expiry, id_token)))
                queue.counts[EXPIRING] -= 1
            if expiry:
                made.append(("link", home, self._put(state_folders[EXPIRING], expiry, id_token)))
                queue.counts[EXPIRING] += 1

    def _unmake(self, queue: Queue, record: Record, removals: list[Action]) -> None:
        if record.was is None:
            return
        state, key, expiry = record.was
        home = record.home
        removals += [
            ("remove", queue.state_folders[state.value].file(key, record.id_token)),
            ("remove", record.by_id),
            ("remove", home),
        ]
        queue.counts[state.value] -= 1
        if expiry:
            removals.append(("remove", queue.state_folders[EXPIRING].file(expiry, record.id_token)))
            queue.counts[EXPIRING] -= 1
        if record.sequence // HOME_SIZE < self.sequence // HOME_SIZE:
            removals.append(("clear", home.rpartition("/")[0]))

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


def _is_whole(data: bytes) -> bool:
    """Return whether something is a task's file, whichever task's."""
    try:
        parse_record(data)
    except UNREADABLE:
        return False
    return True


def _stands(record: Record, state: str, key: str) -> bool:
    assert record.was is not None
    if state == EXPIRING:
        return record.was[2] == key
    return record.was[0] == state and record.was[1] == key
