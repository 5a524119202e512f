"""Everything that is open on one file: shared by a storage and its siblings, whichever loops and threads they are on.

Writing goes one of two ways. Small work, whose commit flushes nothing, is done at once on the calling thread if
neither another thread nor another process is in the way: that takes some tens of microseconds, a thread hop four
times as many. Everything else goes to a thread that commits whole groups and does the waiting. Heartbeats have a
connection of their own, so that they wait for no one in this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeVar

from omniq.errors import StorageError, StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq.storage.posix import at_fork
from omniq.task import NewTask
from omniq_local.io_threads import IoThread, Operation, deliver
from omniq_local.shared_storage import Shared
from omniq_local.sqlite.checkpoint import Checkpoints
from omniq_local.sqlite.connections import MISSED, Job, LockedConnection, Reader, Writer
from omniq_local.sqlite.lost_log import not_the_last
from omniq_local.sqlite.preparation import PREPARING, prepare
from omniq_local.sqlite.settings import Settings
from omniq_local.sqlite.single import Inserted, SingleWriter, is_simple
from omniq_local.sqlite.statements import Statements
from omniq_local.sqlite.transaction import News, Transaction
from omniq_local.wake import Bell

__all__ = ["Database"]

_log = get_logger("omniq.sqlite")

T = TypeVar("T")

CALLER_PATIENCE = 2.0
"""Seconds for which a caller's commit is waited for, to wake others after it; by then they have looked themselves."""
CALLER_PAUSE = 0.02
"""Seconds at most between two looks whether it has come."""
FORK_PATIENCE = 10.0
"""Seconds for which a fork waits for the end of a transaction that another thread is in the middle of."""

RENEWAL_PATIENCE = 10.0
"""Seconds for which the end of what another thread does is waited for, before its connection is closed."""


class Lock(Protocol):
    """What the locks of :mod:`threading` have in common."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


class Database(Shared):
    """The connections and threads of one namespace in one file.

    :param settings: which file, and how.
    :param clock: returns the time in seconds since the epoch.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.settings = settings
        self.sql = Statements(settings.prefix)
        self._set_up()
        _alive.add(self)

    def _set_up(self) -> None:
        self._without_users()
        self._held: list[Lock] = []
        self.bell = Bell()
        self._main = SingleWriter(self.settings, self.sql, self.now, self._committed)
        self._beat = Writer(self.settings, self.sql, self.now, self._committed)
        self.quick = Reader(self.settings)
        self._slow = Reader(self.settings)
        self._checkpoints = Checkpoints(self.settings, self._main.turn, self._log_is_lost)
        for channel in self._channels:
            channel.renew = self._renew
            channel.log_is_lost = self._log_is_lost
        self._committing: IoThread[Job[Any]] = IoThread("omniq-sqlite-commit", partial(_commit, self._main))
        self._beating: IoThread[Job[Any]] = IoThread("omniq-sqlite-beat", partial(_commit, self._beat))
        self._reading: IoThread[Callable[[sqlite3.Connection], Any]] = IoThread(
            "omniq-sqlite-read", partial(_read, self._slow)
        )
        self._checkpointing: IoThread[None] = IoThread("omniq-sqlite-checkpoint", self._checkpoints.work)
        self._spreading: IoThread[News] = IoThread("omniq-sqlite-spread", self._spread)
        self._is_ending = threading.Event()

    # Life

    def _open(self) -> None:
        self._renew()
        prepare(self.settings)

    def _end(self) -> None:
        self._is_ending.set()
        for io_thread in (self._spreading, self._committing, self._beating, self._reading, self._checkpointing):
            io_thread.stop()
        self._is_ending.clear()
        self._renew()
        for channel in reversed(self._channels):
            channel.close()
        self.bell.close()

    def _siblings(self) -> list[Database]:
        return [each for each in list(_alive) if each.settings.path == self.settings.path]

    def _log_is_lost(self) -> bool:
        return any(channel.has_lost_its_log() for each in self._siblings() for channel in each._channels)

    def _renew(self) -> None:
        """Drop all connections of the process to the file, if its log was replaced, having saved what that held.

        All, since SQLite lets those of one process share one index of the log.
        """
        databases = self._siblings()
        channels = [channel for each in databases for channel in each._channels]
        with contextlib.ExitStack() as stack:
            for lock in (*(each._checkpoints.lock for each in databases), *(each.lock for each in channels)):
                if lock.acquire(timeout=RENEWAL_PATIENCE):
                    stack.callback(lock.release)
            lost = [channel for channel in channels if channel.has_lost_its_log()]
            if not lost:
                return
            _log.warning(
                "%s: its log (-wal) or the index of that (-shm) was removed while in use; connecting anew",
                self.settings.path,
            )
            with not_the_last(self.settings):
                lost[0].save_log()
                for channel in channels:
                    channel.drop()

    @property
    def _channels(self) -> tuple[LockedConnection, ...]:
        return (self._main, self._beat, self.quick, self._slow)

    def before_fork(self) -> None:
        """Let what is under way end, and begin nothing more.

        SQLite notes which locks a process holds in that process's memory, and a child inherits the note but not the
        locks. Forked in the middle of a transaction, it could never write; so a fork waits for the end of each.
        """
        locks: list[Lock] = [self._guard, self._checkpoints.lock, *(channel.lock for channel in self._channels)]
        self._held = [lock for lock in locks if lock.acquire(timeout=FORK_PATIENCE)]

    def after_fork_in_parent(self) -> None:
        """Go on."""
        for lock in reversed(self._held):
            lock.release()
        self._held = []

    def after_fork(self) -> None:
        """Start afresh in the child of a fork, leaving alone what is the parent's.

        The inherited connections are closed, or else a new one would take their noted locks for its own and hold none:
        the parent, when it disconnects, would then delete the log that the child writes. Closing takes nothing from
        the parent: between transactions there is nothing to undo, and file locks belong to each process.
        """
        for channel in self._channels:
            if channel.connection is None:
                continue
            if channel.lock in self._held:
                channel.connection.close()
            else:
                # In the middle of a transaction, which to undo would disturb the parent's. So never, not even when the
                # interpreter ends.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel.connection))
        self.bell.after_fork()
        self.generation += 1
        self._set_up()

    # Writing

    def insert(self, task: NewTask) -> bool:
        """Store one task, if that can be done now, on this thread, with one statement.

        :return: whether it was; if not, nothing was done.
        """
        if not (self.settings.inline and is_simple(task)):
            return False
        inserted = self._main.insert(task)
        if inserted is Inserted.STORED_TO_FOLD:
            self.post(Transaction.fold)
        return inserted is Inserted.STORED or inserted is Inserted.STORED_TO_FOLD

    async def write(self, job: Job[T], *, small: bool = True) -> T:
        """Do a job in a write transaction.

        :param job: see :data:`Job`.
        :param small: whether it is so little that it may be done on this thread.
        """
        if small and self.settings.inline:
            result = self._main.attempt(job)
            if result is not MISSED:
                return result
        answer: T = await self._committing.ask(job)
        return answer

    def write_blocking(self, job: Job[T]) -> T:
        """Do a job in a write transaction, and wait for it on this thread."""
        if self.settings.inline:
            result = self._main.attempt(job)
            if result is not MISSED:
                return result
            results: list[T] = self._main.transact((job,))
            return results[0]
        answer: T = self._committing.call(job)
        return answer

    def post(self, job: Job[Any]) -> None:
        """Do a job in a write transaction, some time soon; a failure is not reported."""
        if self.settings.inline:
            with contextlib.suppress(StorageError):
                if self._main.attempt(job) is not MISSED:
                    return
        self._committing.put(Operation(job, Future()))

    async def beat(self, job: Job[T]) -> T:
        """Do a heartbeat's job, whatever else the process writes."""
        if self.settings.inline:
            result = self._beat.attempt(job)
            if result is not MISSED:
                return result
        answer: T = await self._beating.ask(job)
        return answer

    def _committed(self, pokes: list[tuple[int, int]], rows: int) -> None:
        if pokes:
            self.bell.ring(pokes)
        if self._checkpoints.due_after(rows):
            self._checkpointing.put(Operation(None, Future()))

    def spread(self, news: News) -> None:
        """Wake those who wait for what a caller writes in its own transaction, once that has ended; return at once.

        After a rollback they look in vain.
        """
        self._spreading.put(Operation(news, Future()))

    def _spread(self, operations: list[Operation[News]]) -> None:
        news = [operation.job for operation in operations]
        deadline = time.monotonic() + CALLER_PATIENCE
        pause = 0.001
        with contextlib.suppress(StorageError):
            # While that transaction is open, no other gets the lock.
            while self._main.attempt(lambda tx: tx.hear(news)) is MISSED:
                if time.monotonic() > deadline or self._is_ending.wait(pause):
                    return
                pause = min(pause * 1.5, CALLER_PAUSE)

    # Reading

    async def read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job that reads much, on a thread apart."""
        answer: T = await self._reading.ask(job)
        return answer


def _commit(writer: Writer, operations: list[Operation[Job[Any]]]) -> None:
    try:
        results = writer.transact([operation.job for operation in operations])
    except StorageUnavailable as error:
        deliver((operation, None, error) for operation in operations)
    except BaseException as error:
        if len(operations) == 1:
            deliver([(operations[0], None, error)])
            return
        # One that fails must not harm the others: nothing of the group is stored, so each may have a turn of its own.
        for operation in operations:
            _commit(writer, [operation])
    else:
        deliver((operation, result, None) for operation, result in zip(operations, results, strict=True))


def _read(reader: Reader, operations: list[Operation[Callable[[sqlite3.Connection], Any]]]) -> None:
    for operation in operations:
        try:
            result = reader.read(operation.job)
        except BaseException as error:
            deliver([(operation, None, error)])
        else:
            deliver([(operation, result, None)])


_alive: weakref.WeakSet[Database] = weakref.WeakSet()


_forking: list[Database] = []
_fork_turn = threading.Lock()
"""One thread forks at a time: what each holds meanwhile is noted in one place."""


def _before_fork() -> None:
    _fork_turn.acquire()
    _forking[:] = _alive
    for database in _forking:
        database.before_fork()
    PREPARING.acquire()


def _after_fork_in_parent() -> None:
    PREPARING.release()
    for database in _forking:
        database.after_fork_in_parent()
    _forking.clear()
    _fork_turn.release()


def _after_fork_in_child() -> None:
    PREPARING.release()
    for database in _forking:
        database.after_fork()
    _forking.clear()
    _fork_turn.release()


at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
