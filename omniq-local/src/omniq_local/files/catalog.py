"""What a process knows of a store without looking again: its queues and schedules, and the tasks that it claimed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE
from omniq.task import TaskState
from omniq_local.files.encoding import parse_record
from omniq_local.files.limit_log import LimitLog
from omniq_local.files.names import line_folder
from omniq_local.files.queues import FlowLine, Queue
from omniq_local.files.records import LINED, Record
from omniq_local.files.state_folders import StateFolder
from omniq_local.files.superblock import Superblock
from omniq_local.files.tree import Tree

__all__ = ["Catalog"]

_log = get_logger("omniq.files")


class Catalog:
    """What is known, as of a generation of the store. Used under the store's lock.

    :param tree: the namespace's files.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.base = tree.base
        self.forget()

    def forget(self) -> None:
        """Forget everything."""
        self.tree.forget()
        self._seen = -1
        self._foreign = -1
        self._foreign_flows = 0
        self.flow_line = FlowLine(self.tree, self._found_foreign)
        self.queues: dict[str, Queue] = {}
        self._queue_names: set[str] | None = None
        self.schedules: dict[str, Schedule] | None = None
        self.bad_schedules: list[CorruptRecord] = []
        self._limit_log: LimitLog | None = None
        self._foreign_limits = 0
        self._line_folders: dict[str, StateFolder] = {}
        self.held: dict[str, Record] = {}
        """Running tasks that this process claimed, as they are in the store."""

    def others_changed(self, before: Superblock, now: Superblock) -> None:
        """Forget what others may have changed."""
        self._foreign = now.generation
        self.held.clear()
        self._line_folders.clear()
        if now.layout != before.layout:
            self.tree.forget()
            for queue in (self.flow_line, *self.queues.values()):
                for state_folder in queue.state_folders.values():
                    state_folder.forget_folders()
        if now.queues != before.queues:
            self._queue_names = None
        if now.schedules != before.schedules:
            self.schedules = None
        if now.flows != before.flows:
            self._foreign_flows = now.generation
        if now.limits != before.limits:
            self._foreign_limits = now.generation

    def settle(
        self, records: Iterable[Record], queues: Iterable[Queue], *, flows_changed: bool, limits_changed: bool
    ) -> None:
        """Note that the store is as some records and queues say.

        :param flows_changed: whether it is as the line of flows says, too.
        :param limits_changed: whether it is as is known of limits, too.
        """
        if flows_changed:
            self.flow_line.raw = self.flow_line.written
        if limits_changed:
            self.limits().settle()
        held = self.held
        for record in records:
            if record.removed:
                held.pop(record.order.id, None)
                continue
            record.was = record.aim
            if record.state is TaskState.RUNNING:
                held[record.order.id] = record
            else:
                held.pop(record.order.id, None)
        for queue in queues:
            queue.raw = queue.written
            if self._queue_names is not None:
                self._queue_names.add(queue.name)

    def queue(self, name: str) -> Queue:
        """Return a queue as it is now."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(self.tree, name, self._found_foreign)
        if queue.read_at < self._foreign:
            queue.read(self._foreign)
        return queue

    def flows(self) -> FlowLine:
        """Return the line of all flows as it is now."""
        line = self.flow_line
        if line.read_at < self._foreign_flows:
            line.read(self._foreign_flows)
        return line

    def limits(self) -> LimitLog:
        """Return what is kept of limits as it is now."""
        limit_log = self._limit_log
        if limit_log is not None and limit_log.read_at < self._foreign_limits and not limit_log.read():
            limit_log = None
        if limit_log is None:
            limit_log = self._limit_log = LimitLog(self.tree)
            if self.has_limits:
                limit_log.read()
        if limit_log.is_damaged and limit_log.read_at < self._foreign_limits:
            limit_log.mend(self._limited_tasks())
        limit_log.read_at = self._foreign_limits
        return limit_log

    @property
    @abstractmethod
    def has_limits(self) -> bool:
        """Whether anything was ever kept of limits."""

    def _limited_tasks(self) -> Iterator[Record]:
        """Return the tasks that are ready or run and have a key or a named limit."""
        for queue in map(self.queue, self.queue_names()):
            for shelf in (LINED, TaskState.RUNNING.value):
                for path in queue.state_folders[shelf].all():
                    try:
                        record = parse_record(self.tree.read(path))
                    except (OSError, *UNREADABLE):
                        continue
                    if record.line:
                        yield record

    def line(self, line: str) -> StateFolder:
        """Return the folder of a line's tasks as it is now."""
        folder = self._line_folders.get(line)
        if folder is None:
            folder = StateFolder(self.tree, line_folder(line), self._found_foreign, ranked=True)
            folder.measure()
            self._line_folders[line] = folder
        return folder

    def queue_names(self) -> list[str]:
        """Return the names of all queues, in order."""
        if self._queue_names is None:
            names = (Queue.name_in(self.tree, path) for path in Queue.files(self.tree))
            self._queue_names = {name for name in names if name is not None}
        return sorted(self._queue_names)

    def _found_foreign(self, path: str) -> None:
        self.set_aside(path, "no task of this store has a file there")

    def set_aside(self, path: str, why: str) -> None:
        """Move a file that does not belong where it is, and say so."""
        try:
            target = self.tree.set_aside(path)
        except OSError as error:
            problem = f"{why}; and it cannot be moved aside: {error.strerror}"
            log_once(_log, corrupt("file", path, problem, place=self.base))
        else:
            _log.warning("%s/%s moved to %s: %s", self.base, path, target, why)

    def drop_queue(self, queue: Queue) -> None:
        """Note that what was kept of a queue is gone."""
        self.queues.pop(queue.name, None)
        self._queue_names = None
