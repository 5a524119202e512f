"""What a process knows of a store without looking again: its queues and schedules, and the tasks that it claimed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from omniq.escaping import get_logger
from omniq.schedule import Schedule
from omniq.task import TaskState
from omniq_local.files.control import Control
from omniq_local.files.queues import Queue
from omniq_local.files.records import Record

__all__ = ["Catalog"]

_log = get_logger("omniq.files")


class Catalog:
    """What is known, as of a generation of the store. Used under the store's lock.

    :param base: the namespace's folder.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.forget()

    def forget(self) -> None:
        """Forget everything."""
        self._seen = -1
        self._foreign = -1
        self.queues: dict[str, Queue] = {}
        self._queue_names: set[str] | None = None
        self.schedules: dict[str, Schedule] | None = None
        self.held: dict[str, Record] = {}
        """Running tasks that this process claimed, as they are in the store."""

    def others_changed(self, before: Control, now: Control) -> None:
        """Forget what others may have changed."""
        self._foreign = now.generation
        self.held.clear()
        if now.layout != before.layout:
            for queue in self.queues.values():
                for shelf in queue.shelves.values():
                    shelf.forget_folders()
        if now.queues != before.queues:
            self._queue_names = None
        if now.schedules != before.schedules:
            self.schedules = None

    def settle(self, records: Iterable[Record], queues: Iterable[Queue]) -> None:
        """Note that the store is as some records and queues say."""
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
        """Give a queue as it is now."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(self.base, name, self._found_foreign)
        if queue.read_at < self._foreign:
            queue.read(self._foreign)
        return queue

    def queue_names(self) -> list[str]:
        """Give the names of all queues, in order."""
        if self._queue_names is None:
            names = (Queue.name_in(path) for path in Queue.files(self.base))
            self._queue_names = {name for name in names if name is not None}
        return sorted(self._queue_names)

    def _found_foreign(self, path: str) -> None:
        self.set_aside(path, "no task of this store has a file there")

    def set_aside(self, path: str, why: str) -> None:
        """Move a file that does not belong where it is, and say so."""
        target = f"aside/{path.replace('/', '_')}"
        os.makedirs(f"{self.base}/aside", exist_ok=True)
        if os.path.lexists(f"{self.base}/{target}"):
            target = f"{target}.{time.time_ns()}"
        os.rename(f"{self.base}/{path}", f"{self.base}/{target}")
        _log.warning("%s/%s moved to %s: %s", self.base, path, target, why)

    def drop_queue(self, queue: Queue) -> None:
        """Note that what was kept of a queue is gone."""
        self.queues.pop(queue.name, None)
        self._queue_names = None
