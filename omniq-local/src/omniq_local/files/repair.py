"""Makes a store whole again when its numbers or its links cannot be trusted: after the machine went down, or in a copy.

A process that dies leaves nothing to repair, see ``journal``. When the machine dies, files that were not flushed may be
empty, or back at an earlier state; when a folder is copied, each name of a file may become a file of its own. A task's
file says all there is to know of it, so everything else is made anew from these files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq_local.files.control import Control, boot_id, is_original, read_control, write_control
from omniq_local.files.journal import Journal, redo
from omniq_local.files.names import home_path, parse_entry, unique_path
from omniq_local.files.preparation import sync_all
from omniq_local.files.queues import EXPIRING, SHELVES, Queue
from omniq_local.files.records import ENDED, Record, parse_record
from omniq_local.files.settings import Settings

__all__ = ["is_being_repaired", "repair"]

SIGN = "repairing"

_log = get_logger("omniq.files")


def repair(settings: Settings, control_fd: int, journal: Journal) -> None:
    """Look at a store for the first time, under its lock; repair it if there is a reason to."""
    control = read_control(control_fd)
    boot = boot_id()
    if control is None and not os.listdir(f"{settings.base}/tasks"):
        write_control(control_fd, Control(boot=boot))
        return
    reason = _reason_to(settings.base, control, boot)
    if reason is None:
        return
    generation = 0 if control is None else control.generation
    if control is None or control.durable:
        generation = max(generation, _repeat(settings.base, journal))
    elif (frame := journal.read(control.offset)) is not None and frame.generation == generation + 1:
        # A process died in the middle of it, and left some files half written.
        redo(settings.base, frame.actions)
        generation = frame.generation
    _log.warning("%s: checking all files, because %s", settings.base, reason)
    sign = f"{settings.base}/{SIGN}"
    with open(sign, "w", encoding="utf-8"):
        # Only its being there counts, for those who wait.
        pass
    sequence = _Repair(settings.base, generation + 1).run()
    if settings.durable or (control is not None and control.durable):
        # From here on the journal can no longer tell what the files were to hold.
        sync_all(control_fd)
    journal.empty()
    os.unlink(sign)
    write_control(
        control_fd,
        Control(
            generation=generation + 1,
            sequence=max(sequence, 0 if control is None else control.sequence),
            offset=0,
            durable=int(settings.durable),
            layout=generation + 1,
            queues=generation + 1,
            schedules=generation + 1,
            boot=boot,
        ),
    )


def _reason_to(base: str, control: Control | None, boot: str) -> str | None:
    if control is None:
        return "its numbers are lost"
    if control.boot != boot:
        return "the machine was started anew"
    if not is_original(base, control):
        return "it is a copy, or files were copied into it"
    return None


def is_being_repaired(settings: Settings) -> bool:
    """Tell whether another process is at it."""
    return os.path.exists(f"{settings.base}/{SIGN}")


def _repeat(base: str, journal: Journal) -> int:
    """Do everything again that is in the journal; give the generation that this leads to."""
    offset, generation = 0, 0
    while (frame := journal.read(offset)) is not None and (not offset or frame.generation == generation + 1):
        redo(base, frame.actions)
        offset, generation = offset + frame.size, frame.generation
    return generation


class _Repair:
    def __init__(self, base: str, generation: int) -> None:
        self._base = base
        self._generation = generation
        self._queues: dict[str, Queue] = {}
        self._places: set[str] = set()
        self._ids: set[str] = set()
        self._homes: set[str] = set()
        self._aside = 0

    def run(self) -> int:
        """Repair everything; give the largest sequence number."""
        for path in Queue.files(self._base):
            name = Queue.name_in(path)
            if name is None:
                self._set_aside(os.path.relpath(path, self._base))
            else:
                self._queue(name)
        sequence = 0
        for path in _files(self._base, "unique"):
            os.unlink(f"{self._base}/{path}")
        for path in list(_files(self._base, "tasks")):
            record = self._read(path)
            if record is not None:
                sequence = max(sequence, record.sequence)
                self._keep(record)
        for state in SHELVES:
            for path in list(_files(self._base, state)):
                if path not in self._places:
                    self._drop(path)
        for path in list(_files(self._base, "ids")):
            if path not in self._ids:
                self._drop(path)
        for queue in self._queues.values():
            with open(f"{self._base}/{queue.path}", "wb") as file:
                file.write(queue.dump())
        return sequence

    def _read(self, path: str) -> Record | None:
        try:
            with open(f"{self._base}/{path}", "rb") as file:
                record = parse_record(file.read(), path)
        except (CorruptRecord, OSError):
            self._set_aside(path)
            return None
        if record.home != path:
            self._set_aside(path)
            return None
        return record

    def _queue(self, name: str) -> Queue:
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = Queue(self._base, name, self._set_aside)
            queue.read(self._generation)
            queue.counts = dict.fromkeys(SHELVES, 0)
            for shelf in queue.shelves.values():
                shelf.epoch = self._generation
        return queue

    def _keep(self, record: Record) -> None:
        queue = self._queue(record.order.queue)
        self._ids.add(record.by_id)
        self._homes.add(record.home)
        self._link(record.home, record.by_id)
        for state, key in ((record.state.value, record.key), (EXPIRING, record.expiry_key)):
            if key:
                shelf = queue.shelves[state]
                path = shelf.file(key, record.id_token)
                self._link(record.home, path)
                self._places.add(path)
                queue.counts[state] += 1
                shelf.last = max(shelf.last, key)
        if record.order.unique is not None and record.state not in ENDED:
            self._link(record.home, unique_path(record.order.unique))

    def _link(self, home: str, path: str) -> None:
        source, target = f"{self._base}/{home}", f"{self._base}/{path}"
        try:
            os.link(source, target)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.link(source, target)
        except FileExistsError:
            if not os.path.samefile(source, target):
                os.unlink(target)
                os.link(source, target)

    def _drop(self, path: str) -> None:
        """Remove a name that a file no longer has; a file without any other name is moved aside.

        One that was copied has none either, but its task is there.
        """
        entry = parse_entry(path.rpartition("/")[2])
        is_copy = entry is not None and home_path(entry.sequence, entry.id_token) in self._homes
        if is_copy or os.stat(f"{self._base}/{path}").st_nlink > 1:
            os.unlink(f"{self._base}/{path}")
        else:
            self._set_aside(path)

    def _set_aside(self, path: str) -> None:
        target = f"aside/{path.replace('/', '_')}"
        os.makedirs(f"{self._base}/aside", exist_ok=True)
        os.rename(f"{self._base}/{path}", f"{self._base}/{target}")
        _log.warning("%s/%s moved to %s: it is torn, or no file of this store", self._base, path, target)


def _files(base: str, folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(f"{base}/{folder}"):
        for name in names:
            yield os.path.relpath(f"{parent}/{name}", base)
