"""Makes a store whole again when its numbers or its links cannot be trusted: after the machine went down, or in a copy.

A process that dies leaves nothing to repair, see ``journal``. When the machine dies, files that were not flushed may be
empty, or back at an earlier state; when a folder is copied, each name of a file may become a file of its own. A task's
file says all there is to know of it, so everything else is made anew from these files.
"""

from __future__ import annotations

import os

from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE
from omniq.task import TaskState
from omniq_local.files.encoding import parse_record
from omniq_local.files.flow_repair import FlowRepair
from omniq_local.files.journal import Journal, redo
from omniq_local.files.limit_log import LimitLog
from omniq_local.files.names import LIMITS, LINES, home_path, line_folder, parse_entry, unique_path
from omniq_local.files.preparation import sync_all
from omniq_local.files.queues import EXPIRING, SHELVES, Queue
from omniq_local.files.records import Record
from omniq_local.files.settings import Settings
from omniq_local.files.state_folders import StateFolder
from omniq_local.files.superblock import Superblock, boot_id, is_original, read_control, write_control
from omniq_local.files.tree import Tree

__all__ = ["is_being_repaired", "repair"]

SIGN = "repairing"

_log = get_logger("omniq.files")


def repair(settings: Settings, tree: Tree, control_fd: int, journal: Journal) -> None:
    """Look at a store for the first time, under its lock; repair it if there is a reason to."""
    control = read_control(control_fd)
    boot = boot_id()
    if control is None and not tree.names("tasks"):
        write_control(control_fd, Superblock(boot=boot))
        return
    reason = _reason_to(tree, control, boot)
    if reason is None:
        return
    generation = 0 if control is None else control.generation
    if control is None or control.durable:
        generation = max(generation, _repeat(tree, journal))
    elif (frame := journal.read(control.offset)) is not None and frame.numbers.generation == generation + 1:
        # A process died in the middle of it, and left some files half written.
        redo(tree, frame.actions)
        generation = frame.numbers.generation
    _log.warning("%s: checking all files, because %s", settings.base, reason)
    # Only its being there counts, for those who wait.
    tree.create(SIGN, b"")
    found = _Repair(tree, generation + 1)
    sequence = found.run()
    if settings.durable or (control is not None and control.durable):
        # From here on the journal can no longer tell what the files were to hold.
        sync_all(control_fd)
    journal.empty()
    tree.remove(SIGN)
    write_control(
        control_fd,
        Superblock(
            generation=generation + 1,
            sequence=max(sequence, 0 if control is None else control.sequence),
            offset=0,
            durable=int(settings.durable),
            layout=generation + 1,
            queues=generation + 1,
            schedules=generation + 1,
            flows=generation + 1,
            limits=generation + 1 if found.has_limits else 0,
            boot=boot,
        ),
    )


def _reason_to(tree: Tree, control: Superblock | None, boot: str) -> str | None:
    if control is None:
        return "its numbers are lost"
    if control.boot != boot:
        return "the machine was started anew"
    if not is_original(tree, control):
        return "it is a copy, or files were copied into it"
    return None


def is_being_repaired(settings: Settings) -> bool:
    """Tell whether another process is at it."""
    return os.path.lexists(f"{settings.base}/{SIGN}")


def _repeat(tree: Tree, journal: Journal) -> int:
    """Do everything again that is in the journal; return the generation that this leads to."""
    offset, generation = 0, 0
    while (frame := journal.read(offset)) is not None and (not offset or frame.numbers.generation == generation + 1):
        redo(tree, frame.actions)
        offset, generation = offset + frame.size, frame.numbers.generation
    return generation


class _Repair:
    def __init__(self, tree: Tree, generation: int) -> None:
        self._tree = tree
        self._generation = generation
        self._queues: dict[str, Queue] = {}
        self._places: set[str] = set()
        self._ids: set[str] = set()
        self._homes: set[str] = set()
        self._lined: list[Record] = []
        self._lines: dict[str, StateFolder] = {}
        self.has_limits = False
        """Whether anything is kept of limits."""
        self._flows = FlowRepair(tree, generation, self._set_aside)

    def run(self) -> int:
        """Repair everything; return the largest sequence number."""
        for path in Queue.files(self._tree):
            name = Queue.name_in(self._tree, path)
            if name is None:
                self._set_aside(path)
            else:
                self._queue(name)
        sequence = 0
        for path in list(self._tree.walk("unique")):
            self._tree.remove(path)
        for path in list(self._tree.walk("tasks")):
            record = self._read(path)
            if record is not None:
                sequence = max(sequence, record.sequence)
                self._keep(record)
        sequence = self._flows.run(sequence)
        for state in (*SHELVES, LINES):
            for path in list(self._tree.walk(state)):
                if path not in self._places:
                    self._drop(path)
        for path in list(self._tree.walk("ids")):
            if path not in self._ids:
                self._drop(path)
        for queue in self._queues.values():
            self._tree.replace(queue.path, queue.dump(), cut=True)
        self._mend_limits()
        return sequence

    def _mend_limits(self) -> None:
        limit_log = LimitLog(self._tree)
        self.has_limits = bool(self._tree.names("limits") or self._lined)
        if not self.has_limits:
            return
        limit_log.read()
        if limit_log.is_damaged and self._tree.exists(LIMITS):
            self._set_aside(LIMITS)
        limit_log.mend(self._lined)
        self._tree.replace(LIMITS, limit_log.dump(self._generation), cut=True)

    def _read(self, path: str) -> Record | None:
        name = path.rpartition("/")[2]
        try:
            record = parse_record(self._tree.read(path), int(name[:12]), name[13:].removesuffix(".json"))
        except (OSError, *UNREADABLE):
            self._set_aside(path)
            return None
        if record.home != path:
            self._set_aside(path)
            return None
        return record

    def _queue(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(self._tree, name, self._set_aside)
            queue.read(self._generation)
            queue.counts = dict.fromkeys(SHELVES, 0)
            for state_folder in queue.state_folders.values():
                state_folder.epoch = self._generation
        return queue

    def _keep(self, record: Record) -> None:
        queue = self._queue(record.order.queue)
        self._ids.add(record.by_id)
        self._homes.add(record.home)
        self._link(record.home, record.by_id)
        for shelf, key in ((record.shelf_in(record.state), record.key), (EXPIRING, record.expiry_key)):
            if key:
                self._place(record, key, queue.state_folders[shelf])
                queue.counts[shelf] += 1
        if record.line and record.state in (TaskState.READY, TaskState.RUNNING):
            self._lined.append(record)
            if record.state is TaskState.READY:
                self._place(record, record.key, self._line(record.line))
        if record.order.flow is not None:
            self._link(record.home, self._flows.keep(record))
        if record.order.unique is not None and record.has_key:
            self._link(record.home, unique_path(record.order.unique))

    def _place(self, record: Record, key: str, state_folder: StateFolder) -> None:
        path = state_folder.file(key, record.id_token)
        self._link(record.home, path)
        self._places.add(path)
        state_folder.stretch(key)

    def _line(self, line: str) -> StateFolder:
        folder = self._lines.get(line)
        if folder is None:
            folder = self._lines[line] = StateFolder(self._tree, line_folder(line), self._set_aside, ranked=True)
        return folder

    def _link(self, home: str, path: str) -> None:
        if not self._tree.is_same(home, path):
            self._tree.link(home, path)

    def _drop(self, path: str) -> None:
        """Remove a name that a file no longer has; a file without any other name is moved aside.

        One that was copied has none either, but its task is there.
        """
        entry = parse_entry(path.rpartition("/")[2])
        is_copy = entry is not None and home_path(entry.sequence, entry.id_token) in self._homes
        if is_copy or self._tree.names_of(path) > 1:
            self._tree.remove(path)
        else:
            self._set_aside(path)

    def _set_aside(self, path: str) -> None:
        try:
            target = self._tree.set_aside(path)
        except OSError as error:
            _log.warning("%s/%s cannot be moved aside: %s", self._tree.base, path, error.strerror)
        else:
            _log.warning("%s/%s moved to %s: it is torn, or no file of this store", self._tree.base, path, target)
