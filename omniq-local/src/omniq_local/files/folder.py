"""Everything that is open on one namespace of a store, shared by a storage and its siblings.

All that is done is done under one lock, held for a fraction of a millisecond. What is small is done at once on the
calling thread if the way is free. Everything else goes to a thread that does the waiting.
"""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import evolve

from omniq.errors import StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq.storage.posix import at_fork
from omniq_local.files.catalog import Catalog
from omniq_local.files.errors import translated
from omniq_local.files.journal import LAP, Action, Journal, NotUndone, Numbers, Restored, apply, pass_by, redo
from omniq_local.files.names import LINES, parse_entry
from omniq_local.files.preparation import prepare, sync_all
from omniq_local.files.queues import Queue
from omniq_local.files.repair import is_being_repaired, repair
from omniq_local.files.settings import Settings
from omniq_local.files.state_folders import StateFolder
from omniq_local.files.store_lock import Replaced, StoreLock
from omniq_local.files.superblock import (
    Superblock,
    parse_control,
    read_control,
    read_control_text,
    renew_mark,
    write_control,
)
from omniq_local.files.transaction import Transaction
from omniq_local.files.tree import Tree
from omniq_local.files.waiter_table import WaiterTable
from omniq_local.io_threads import IoThread, Operation, deliver
from omniq_local.shared_storage import Shared

__all__ = ["MISSED", "Folder", "Job"]

T = TypeVar("T")
Job = Callable[[Transaction], T]
"""Does one thing within a change."""

_log = get_logger("omniq.files")

LOOKED_AT = 8
"""Of the folders that hold those of lines, so many are looked at for empty ones at a time."""


class Missed:
    """What an attempt returns that would have had to wait."""


MISSED = Missed()


class Folder(Catalog, Shared):
    """One namespace of a store.

    :param settings: which folder, and how.
    :param clock: returns the time in seconds since the epoch.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        Catalog.__init__(self, Tree(settings.root, os.path.basename(settings.base), settings.mode))
        Shared.__init__(self, clock)
        self.settings = settings
        self._set_up()
        _alive.add(self)

    def _set_up(self) -> None:
        self._without_users()
        self._store_lock = StoreLock(self.settings)
        self._store_lock.renew = self._renew
        self._is_checked = False
        """Whether what is open was looked at for the first time."""
        self._control_fd = -1
        self._journal: Journal | None = None
        self.control = Superblock()
        self._control_text = b""
        """What this process wrote last into the control file."""
        self.waiter_table = WaiterTable(self.tree)
        self._io_thread: IoThread[Job[Any]] = IoThread("omniq-files", self._work)
        self.forget()

    # Life

    def _open(self) -> None:
        try:
            self._attach(*prepare(self.settings, self.tree))
            self._enter(time.monotonic())
            try:
                self._begin()
            finally:
                self._store_lock.leave()
        except OSError as error:
            self._shut()
            raise translated(error, self.settings) from error
        except BaseException:
            self._shut()
            raise

    def _attach(self, lock: int, control: int) -> None:
        """Use the files that are there now, from now on."""
        try:
            journal = Journal(self.tree)
            self.waiter_table.open()
        except BaseException:
            os.close(lock)
            os.close(control)
            raise
        self._store_lock.open(lock)
        if self._control_fd >= 0:
            # Under the same number, as another thread may be about to read it.
            os.dup2(control, self._control_fd, inheritable=False)
            os.close(control)
        else:
            self._control_fd = control
        if self._journal is not None:
            self._journal.close()
        self._journal = journal
        if self.settings.durable:
            # The journal itself may be new.
            sync_all(self._control_fd)
        self._is_checked = False
        self.forget()

    def _renew(self) -> None:
        """Open the folder that is now where the one was that was open."""
        _log.warning("%s was replaced while in use; using the one that is there now", self.base)
        self._attach(*prepare(self.settings, self.tree, create=False))

    def _look_first(self) -> None:
        assert self._journal is not None
        repair(self.settings, self.tree, self._control_fd, self._journal)
        self._is_checked = True
        self._begin()
        self.control.mark = renew_mark(self.tree)
        self.commit(Transaction(self, 0), [], 0)

    def _enter(self, since: float) -> None:
        while True:
            try:
                self._store_lock.enter(since)
            except StorageUnavailable:
                # Repairing may take longer than a call should have to wait for anything else.
                if self._is_checked or not is_being_repaired(self.settings):
                    raise
                since = time.monotonic()
            else:
                return

    def _end(self) -> None:
        self._io_thread.stop()
        self._shut()

    def _shut(self) -> None:
        self._store_lock.close()
        self._close_files()
        self.waiter_table.close()
        self._is_checked = False
        self.forget()

    def _close_files(self) -> None:
        self.tree.close()
        if self._control_fd >= 0:
            os.close(self._control_fd)
            self._control_fd = -1
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def after_fork(self) -> None:
        """Start afresh in the child of a fork, leaving alone what is the parent's."""
        self.generation += 1
        self._store_lock.abandon()
        self._close_files()
        self._set_up()

    # Doing

    async def run(self, job: Job[T], *, small: bool = True) -> T:
        """Do a job.

        :param small: whether it is so little that it may be done on this thread.
        """
        if small and not self.settings.durable:
            result = self.attempt(job)
            if not isinstance(result, Missed):
                return result
        answer: T = await self._io_thread.ask(job)
        return answer

    def run_blocking(self, job: Job[T]) -> T:
        """Do a job, and wait for it on this thread."""
        if not self.settings.durable:
            result = self.attempt(job)
            if not isinstance(result, Missed):
                return result
        return self._patiently(job, time.monotonic())

    def post(self, job: Job[Any]) -> None:
        """Do a job if that can be at once; else leave it."""
        try:
            self.attempt(job)
        except StorageUnavailable:
            _log.debug("%s: something of no consequence was left undone", self.base, exc_info=True)

    def attempt(self, job: Job[T]) -> T | Missed:
        """Do a job now, on this thread, unless that would mean to wait."""
        try:
            if not self._is_checked or not self._store_lock.try_enter():
                return MISSED
        except Replaced:
            return MISSED
        except OSError as error:
            raise translated(error, self.settings) from error
        return self._do(job)

    def _patiently(self, job: Job[T], since: float) -> T:
        try:
            self._enter(since)
        except OSError as error:
            raise translated(error, self.settings) from error
        return self._do(job)

    def _work(self, operations: list[Operation[Job[Any]]]) -> None:
        for operation in operations:
            try:
                # From when it was handed over: those behind it do not wait for the time of each.
                result = self._patiently(operation.job, operation.since)
            except BaseException as error:
                deliver([(operation, None, error)])
            else:
                deliver([(operation, result, None)])

    def _do(self, job: Job[T]) -> T:
        """Do a job, having gone in through the store lock, and leave."""
        pokes: list[tuple[int, int]] = []
        try:
            result, transaction = self._transaction(job)
            if transaction.is_news:
                pokes = self.waiter_table.heard_by(transaction)
        except BaseException as error:
            # What was read may have been changed in memory alone.
            self.forget()
            if isinstance(error, OSError):
                raise translated(error, self.settings) from error
            raise
        finally:
            self._store_lock.leave()
        self.waiter_table.ring(pokes)
        return result

    def _transaction(self, job: Job[T]) -> tuple[T, Transaction]:
        restored: set[str] = set()
        while True:
            self._begin()
            transaction = Transaction(self, self.now())
            try:
                result = job(transaction)
                transaction.complete()
            except Restored as file:
                # Once: else another program takes it away again and again.
                if file.path in restored:
                    raise StorageUnavailable(f"{self.base}/{file.path} is taken away while it is in use") from None
                restored.add(file.path)
                self.forget()
            else:
                return result, transaction

    def within(self, outer: Transaction, job: Job[T]) -> T:
        """Do a job as a change of its own, within one that has changed nothing so far."""
        transaction = Transaction(self, outer.now)
        result = job(transaction)
        transaction.complete()
        outer.ready += transaction.ready
        outer.ended += transaction.ended
        outer.follows |= transaction.follows
        return result

    @property
    def has_limits(self) -> bool:
        return self.control.limits > 0

    # The store's numbers

    def peek_generation(self) -> int:
        """Return how often the store has changed, without its lock."""
        control = read_control(self._control_fd) if self._control_fd >= 0 else None
        return -1 if control is None else control.generation

    def _begin(self) -> None:
        assert self._journal is not None
        if not self._is_checked:
            self._look_first()
            return
        text = read_control_text(self._control_fd)
        # No other process has changed anything since we did: it need not be read again.
        control = self.control if text == self._control_text and self._seen >= 0 else parse_control(text)
        if control is None:
            raise StorageUnavailable(f"{self.base}/control is damaged; restart what uses the store, which repairs it")
        if self._journal.ahead(control.offset, control.generation):
            control = self._complete_of_the_dead(evolve(control))
        if control.generation == self._seen:
            return
        known = self.control
        self.control = control
        self._seen = control.generation
        self.others_changed(known, control)

    def _complete_of_the_dead(self, control: Superblock) -> Superblock:
        """Complete the change of a process that died in the middle of it."""
        assert self._journal is not None
        frame = self._journal.read(control.offset)
        if frame is None:
            return control
        _log.warning("%s: completing change %d, in which a process died", self.base, frame.numbers.generation)
        redo(self.tree, frame.actions)
        control.take(frame.numbers)
        control.offset += frame.size
        write_control(self._control_fd, control)
        return control

    def commit(self, transaction: Transaction, actions: list[Action], layout: int) -> None:
        """Write a change down and do it."""
        control, journal = self.control, self._journal
        assert journal is not None
        new_queues = any(
            (action[0] == "remove" or (action[0] == "write" and action[3] is None)) and action[1][:7] == "queues/"
            for action in actions
        )
        numbers = Numbers(
            control.generation + 1,
            transaction.sequence,
            control.layout + layout,
            control.queues + new_queues,
            control.schedules + transaction.schedules_changed,
            control.flows + transaction.flows_changed,
            control.limits + transaction.limits_changed,
        )
        offset = control.offset
        try:
            size = journal.write(offset, numbers, actions)
            if self.settings.durable:
                journal.flush()
            pass_by("written")
            apply(self.tree, actions)
        except NotUndone:
            raise
        except BaseException:
            journal.strike(offset)
            raise
        pass_by("done")
        control.take(numbers)
        control.offset = offset + size
        if control.offset > LAP:
            self._begin_lap(control)
        if self.settings.durable:
            control.durable = 1
        self._control_text = write_control(self._control_fd, control)
        self._seen = control.generation

    def _begin_lap(self, control: Superblock) -> None:
        assert self._journal is not None
        if control.durable or self.settings.durable:
            # From here on the journal can no longer tell what these files were to hold.
            sync_all(self._control_fd)
        control.offset = 0
        self._journal.trim()

    def divide(self, state_folder: StateFolder, crowded: str) -> None:
        """Divide a sub-folder in two."""
        actions: list[Action] = []
        for source, target in state_folder.divide(crowded):
            entry = parse_entry(source.rpartition("/")[2])
            assert entry is not None
            actions.append(("move", source, target, state_folder.home_of(entry)))
        self.commit(Transaction(self, 0), actions, 1)
        state_folder.forget_folders()

    def tidy(self, state_folder: StateFolder) -> None:
        """Remove the sub-folders that all files have been taken from, before anything else is changed."""
        self._remove(state_folder, state_folder.spent())

    def thin_out(self, state_folder: StateFolder) -> None:
        """Remove some of the sub-folders that all files have left, in any order, before anything else is changed."""
        self._remove(state_folder, state_folder.hollow())

    def _remove(self, state_folder: StateFolder, spent: list[str]) -> None:
        if not spent:
            return
        # Others learn of it first: were we to die in between, they would only look in vain.
        self.commit(Transaction(self, 0), [], 1)
        for folder in spent:
            self.tree.remove_folder(f"{state_folder.path}/{folder}")
        state_folder.forget_folders()

    def thin_out_lines(self) -> None:
        """Remove the folders of lines that all files have left, before anything else is changed."""
        spent = []
        buckets = self.tree.names(LINES)
        for bucket in random.sample(buckets, min(LOOKED_AT, len(buckets))):
            for line in self.tree.names(f"{LINES}/{bucket}"):
                place = f"{LINES}/{bucket}/{line}"
                folders = self.tree.names(place)
                hollow = [f"{place}/{folder}" for folder in folders if not self.tree.names(f"{place}/{folder}")]
                spent += hollow if len(hollow) < len(folders) else [*hollow, place]
        if not spent:
            return
        # As above.
        self.commit(Transaction(self, 0), [], 1)
        for place in spent:
            self.tree.remove_folder(place)
        self._line_folders.clear()

    def tidy_away(self, queue: Queue) -> None:
        """Remove what is kept of a queue that has nothing."""
        self.commit(Transaction(self, 0), [("remove", queue.path)], 1)
        for state_folder in queue.state_folders.values():
            for place in (*(f"{state_folder.path}/{folder}" for folder in state_folder.folders()), state_folder.path):
                self.tree.remove_folder(place)
        self.drop_queue(queue)


_alive: weakref.WeakSet[Folder] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for folder in list(_alive):
        folder.after_fork()


at_fork(after_in_child=_after_fork_in_child)
