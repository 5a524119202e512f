"""What a change reads of a store, and what it does about that which cannot be read."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt, salvaged
from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE
from omniq.task import StoredTask, TaskState
from omniq_local.files.encoding import LARGE, dump_head, id_in, parse_bare, parse_record, stand_in
from omniq_local.files.journal import Action
from omniq_local.files.names import (
    LINES,
    Entry,
    Member,
    flow_of_folder,
    home_path,
    id_path,
    parse_entry,
    parse_member,
    text_of,
    time_key,
    token,
    unique_path,
)
from omniq_local.files.queues import EXPIRING, Queue
from omniq_local.files.records import ENDED, LINED, Record
from omniq_local.files.tree import ASIDE, NO_FILE

if TYPE_CHECKING:
    from omniq_local.files.flows import Flows
    from omniq_local.files.folder import Folder

__all__ = ["Lookup"]

_log = get_logger("omniq.files")

STATUS = 128 * 1024
"""Bytes of a status that are read for a bare list: more than its error takes."""

_LIVE = frozenset({LINED, *(state.value for state in TaskState if state not in ENDED)})


class Lookup:
    """What one operation reads, under the store's lock.

    :param folder: the store.
    :param now: microseconds.
    """

    def __init__(self, folder: Folder, now: int) -> None:
        self.folder = folder
        self.now = now
        self.ended: list[str] = []
        self._records: dict[str, Record | None] = {}
        self._touched: dict[int, Record] = {}
        self._unique: dict[str, str | None] = {}
        self._dirty: dict[str, Queue] = {}
        self._first: list[Action] = []
        self._removals: list[Action] = []
        """What is done before, and after, what becomes of tasks."""
        self._names: dict[str, list[tuple[str, Queue | None, str]]] | None = None
        self._of_flows: dict[str, list[tuple[Member, str]]] | None = None
        self._lost: list[StoredTask] = []
        """Tasks of flows that cannot be read, and end."""
        self._gone: list[StoredTask] = []
        """Those that cannot be read, and are removed."""

    @property
    @abstractmethod
    def flows(self) -> Flows:
        """The flows of this change."""

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

    def known(self, sequence: int) -> Record | None:
        """Return a task that this change has changed so far."""
        return self._touched.get(sequence)

    def touched(self) -> Iterable[Record]:
        """Return all tasks that this change has changed so far."""
        return self._touched.values()

    def take_in(self, record: Record) -> Record | None:
        """Return a task that was read from its file as this change knows it; None if it is removed."""
        return self._records.setdefault(record.order.id, record)

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

    def end_unreadable(self, task_id: str, sequence: int, problem: CorruptRecord) -> None:
        """End a task of a flow that cannot be read, and whose end is counted already."""
        if self._names is None:
            self._names = self._all_names()
        for path, queue, state in self._names.get(token(task_id), ()):
            entry = parse_entry(path.rpartition("/")[2])
            if queue is not None and entry is not None and entry.sequence == sequence and state in _LIVE:
                record = stand_in(problem, self.content(path) or b"", task_id)
                self._end_unreadable(queue, state, path, entry, record, is_counted=True)
                return
        self.erase(task_id)

    def _end_unreadable(
        self, queue: Queue, state: str, path: str, entry: Entry, record: Record, *, is_counted: bool = False
    ) -> None:
        """End a task that cannot be read: a new file takes the place of its own, which is moved aside.

        :param is_counted: whether its flow counts this end already.
        """
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
        record.sequence = entry.sequence
        flow, behind = self._place_in_flow(record)
        feeds = record.order.feeds if flow is not None and flow == record.order.flow else ()
        shown = evolve(record.task(), flow=flow, behind=behind, feeds=feeds)
        record.order = evolve(record.order, queue=queue.name, unique=None, flow=flow, behind=behind, feeds=feeds)
        record.stand_in = None
        record.finished_at = self.now
        record.head = dump_head(record)
        self._records[record.order.id] = record
        self._touched[record.sequence] = record
        self.ended.append(record.order.id)
        if flow is not None:
            self.flows.moved(record)
            if not is_counted:
                self._lost.append(shown)

    def _place_in_flow(self, record: Record) -> tuple[str | None, int | None]:
        """Return the flow and the gate of a task that cannot be read, as a name tells them, which is taken away."""
        for member, path in self._member_names().get(record.id_token, ()):
            if member.sequence == record.sequence:
                self._removals.append(("remove", path))
                flow, flow_token = record.order.flow, flow_of_folder(path)
                return flow if flow is not None and token(flow) == flow_token else text_of(flow_token), member.behind
        return None, None

    def _member_names(self) -> dict[str, list[tuple[Member, str]]]:
        """Return the names that tasks have in their flows, with the paths, by their ids as they stand in them."""
        if self._of_flows is None:
            self._of_flows = {}
            for path in self.folder.tree.walk("flows/members"):
                member = parse_member(path.rpartition("/")[2])
                if member is not None:
                    self._of_flows.setdefault(member.id_token, []).append((member, path))
        return self._of_flows

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
        for member, path in self._member_names().get(id_token, ()):
            self._removals.append(("remove", path))
            flow = text_of(flow_of_folder(path))
            if flow is not None:
                self.flows.forget(flow, member)
                self._gone.append(salvaged(corrupt("task", task_id, "it was removed"), task_id, {"flow": flow}))
        self._records[task_id] = None
        self.ended.append(task_id)

    def link_anew(self, home: str, path: str) -> None:
        """Have a task's file have a name that another program took from it."""
        self._first.append(("link", home, path))

    def _all_names(self) -> dict[str, list[tuple[str, Queue | None, str]]]:
        names: dict[str, list[tuple[str, Queue | None, str]]] = {}
        for path in self.folder.tree.walk("tasks"):
            _, dash, id_token = path.rpartition("/")[2].removesuffix(".json").partition("-")
            if dash:
                names.setdefault(id_token, []).append((path, None, ""))
        for path in self.folder.tree.walk(LINES):
            entry = parse_entry(path.rpartition("/")[2])
            if entry is not None:
                names.setdefault(entry.id_token, []).append((path, None, ""))
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
            if known is not None and known.has_key and not known.removed and known.order.unique == key:
                holder = known.order.id
        self._unique[path] = holder
        return holder


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
    return record.shelf_in(record.was[0]) == state and record.was[1] == key
