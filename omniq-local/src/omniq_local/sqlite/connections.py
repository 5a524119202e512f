"""Connections to the file, each under a lock of its own: for writing one transaction at a time, and for reading."""

from __future__ import annotations

import enum
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias, TypeVar

from omniq.errors import StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq_local.sqlite.connecting import Identity, connect, escaped, identity_of, log_identity_of
from omniq_local.sqlite.errors import is_broken, is_busy, translated
from omniq_local.sqlite.limits import prospects
from omniq_local.sqlite.lost_log import LogReplaced, save_log
from omniq_local.sqlite.preparation import prepare
from omniq_local.sqlite.settings import Settings
from omniq_local.sqlite.statements import Statements
from omniq_local.sqlite.transaction import Transaction

__all__ = ["MISSED", "Job", "LockedConnection", "Missed", "Reader", "Writer"]

_log = get_logger("omniq.sqlite")

T = TypeVar("T")
Job: TypeAlias = Callable[[Transaction], T]
"""Does one thing within a transaction. May be run again after a transaction that failed, so it changes nothing else."""

LOOK_EVERY = 0.2
"""Seconds between two looks whether the files are still those that were opened, if the folder is as it was."""
GLANCE_EVERY = 0.001
"""Seconds between two looks whether the folder is as it was: what they cost does not matter at one in so long."""


class _Missed(enum.Enum):
    MISSED = enum.auto()


MISSED: Final = _Missed.MISSED
"""What an attempt returns that would have had to wait."""
Missed: TypeAlias = Literal[_Missed.MISSED]


class LockedConnection:
    """A connection that is opened when it is first needed, and anew if it may be broken or the file is another one.

    :param settings: which file, and how.
    :param busy_timeout: seconds for which SQLite itself waits for a lock.
    """

    def __init__(self, settings: Settings, busy_timeout: float) -> None:
        self.settings = settings
        self.lock = threading.Lock()
        self.connection: sqlite3.Connection | None = None
        self._busy_timeout = busy_timeout
        self.renew: Callable[[], None] = lambda: None
        """Makes all connections of the process anew, if the log was replaced."""
        self.log_is_lost: Callable[[], bool] = self.has_lost_its_log
        """Tells whether one of the process's connections has a log open that was replaced."""
        self._identity: Identity = None
        self._log_identity: tuple[Identity, Identity] = (None, None)
        self._folder_changed_at = 0
        self._look_at = 0.0
        self._glance_at = 0.0

    def has_lost_its_log(self) -> bool:
        """Tell whether the log, or its index, is no longer the one that the connection has open; under the lock."""
        return (
            self.connection is not None
            and identity_of(self.settings) == self._identity
            and log_identity_of(self.settings) != self._log_identity
        )

    def save_log(self) -> None:
        """Save what the log held that the connection has open; under the lock."""
        if self.connection is not None and log_identity_of(self.settings)[0] != self._log_identity[0]:
            save_log(self.connection, self.settings)

    def _is_unchanged(self) -> bool:
        """Tell, at little cost, whether the folder has the files that it had at the last look."""
        now = time.monotonic()
        if now < self._glance_at:
            return True
        try:
            changed_at = os.stat(self.settings.folder).st_mtime_ns
        except OSError:
            return False
        self._glance_at = now + GLANCE_EVERY
        if changed_at == self._folder_changed_at and now < self._look_at:
            return True
        self._folder_changed_at = changed_at
        self._look_at = now + LOOK_EVERY
        return False

    def _connected(self) -> sqlite3.Connection:
        connection = self.connection
        if connection is not None:
            if connection.in_transaction:  # an interrupt (Ctrl-C) fell between two instructions
                connection.execute("ROLLBACK")
            if self._is_unchanged():
                return connection
            if identity_of(self.settings) == self._identity:
                if log_identity_of(self.settings) != self._log_identity:
                    self._look_at = self._glance_at = 0.0
                    raise LogReplaced
                return connection
            # What is written into a file that was deleted is lost, and SQLite would not say so.
            _log.warning("%s was moved, deleted or replaced while in use; connecting anew", self.settings.path)
            self.drop()
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        if self._identity is not None:
            prepare(self.settings, create=False)
        if self.log_is_lost():
            # It would share the index of the log with those connections, and use it for another log.
            raise LogReplaced
        connection = connect(self.settings, busy_timeout=self._busy_timeout)
        try:
            # Opens the log.
            connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
            self._on_connected(connection)
        except sqlite3.Error:
            connection.close()
            raise
        self._look_at = self._glance_at = 0.0
        self._is_unchanged()
        self.connection = connection
        self._identity = identity_of(self.settings)
        self._log_identity = log_identity_of(self.settings)
        return connection

    def _with_its_log(self, work: Callable[[], T]) -> T:
        """Do something that needs the connection, if need be once more after all were made anew."""
        try:
            return work()
        except LogReplaced:
            self.renew()
        try:
            return work()
        except LogReplaced:
            raise StorageUnavailable(
                f"{self.settings.path}-wal or -shm is removed again and again while in use; see what does that"
            ) from None

    def _on_connected(self, connection: sqlite3.Connection) -> None:
        """Do what is to be done once on each connection."""

    def _undo(self, error: BaseException) -> None:
        connection = self.connection
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self.drop()
        if isinstance(error, sqlite3.Error) and is_broken(error):
            self.drop()

    def drop(self) -> None:
        """Close the connection, under the lock; the next use opens another."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close the connection, after what is under way."""
        with self.lock:
            self.drop()


class Reader(LockedConnection):
    """Reads, on the calling thread."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.busy_timeout)

    def _on_connected(self, connection: sqlite3.Connection) -> None:
        # What cannot be read shall at least be seen.
        connection.text_factory = escaped

    def read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Run a job that reads, all of it as of one moment.

        :raises StorageUnavailable: if that is not possible.
        """
        return self._with_its_log(lambda: self._read(job))

    def _read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        with self.lock:
            try:
                connection = self._connected()
                connection.execute("BEGIN")
                result = job(connection)
                connection.execute("COMMIT")
            except BaseException as error:
                self._undo(error)
                if isinstance(error, sqlite3.Error):
                    raise translated(error, self.settings) from error
                raise
            return result


class Writer(LockedConnection):
    """Runs write transactions, one at a time.

    :param settings: which file, and how.
    :param sql: the namespace's statements.
    :param now: returns the store's now in microseconds.
    :param committed: told after each commit, with the lock released: whom to wake, and about how many rows were
        written.
    """

    def __init__(
        self,
        settings: Settings,
        sql: Statements,
        now: Callable[[], int],
        committed: Callable[[list[tuple[int, int]], int], None],
    ) -> None:
        super().__init__(settings, 0.0)
        self._sql = sql
        self._now = now
        self._committed = committed
        self._waiting = 0
        self._door = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn and hold the lock; those that only attempt stand back meanwhile.

        A thread that writes without a pause takes the lock again before a waiter has woken up, which would wait
        for ever.

        :raises StorageUnavailable: if there was none within the busy timeout.
        """
        patience = self.settings.busy_timeout
        with self._door:
            self._waiting += 1
        try:
            its_turn = self.lock.acquire(timeout=patience)
        finally:
            with self._door:
                self._waiting -= 1
        if not its_turn:
            raise StorageUnavailable(
                f"{self.settings.path} has been in use by another thread for more than {patience:g} s"
            )
        try:
            yield
        finally:
            self.lock.release()

    def attempt(self, job: Job[T]) -> T | Missed:
        """Run a job now, on this thread, unless that would mean to wait."""
        try:
            return self._attempt(job)
        except LogReplaced:
            return MISSED

    def _attempt(self, job: Job[T]) -> T | Missed:
        if self._waiting or not self.lock.acquire(blocking=False):
            return MISSED
        try:
            connection = self._begun()
            if connection is None:
                return MISSED
            try:
                transaction = Transaction(connection, self._sql, self._now(), prospects=prospects)
                result = job(transaction)
                transaction.complete()
                connection.execute("COMMIT")
            except BaseException as error:
                raise self._failed(error) from error
        finally:
            self.lock.release()
        self._committed(transaction.pokes, transaction.rows)
        return result

    def transact(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        """Run jobs in one transaction, on this thread.

        :return: their results, in order.
        :raises StorageUnavailable: if that is not possible within the busy timeout; then nothing was done.
        """
        return self._with_its_log(lambda: self._transact(jobs))

    def _transact(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        deadline = time.monotonic() + self.settings.busy_timeout
        results = []
        pokes: list[tuple[int, int]] = []
        rows = 0
        with self.turn():
            connection = self._begun_by(deadline)
            try:
                for job in jobs:
                    transaction = Transaction(connection, self._sql, self._now(), prospects=prospects)
                    results.append(job(transaction))
                    transaction.complete()
                    pokes += transaction.pokes
                    rows += transaction.rows
                connection.execute("COMMIT")
            except BaseException as error:
                raise self._failed(error) from error
        self._committed(pokes, rows)
        return results

    def _begun(self, last_try: bool = False) -> sqlite3.Connection | None:
        """Begin a transaction; None if another connection is in the way."""
        try:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            if is_busy(error) and not last_try:
                return None
            raise self._failed(error) from error
        return connection

    def _begun_by(self, deadline: float) -> sqlite3.Connection:
        pause = 0.0005
        while True:
            left = deadline - time.monotonic()
            connection = self._begun(last_try=left <= 0)
            if connection is not None:
                return connection
            # Jittered, so that several who wait do not try at the same moments; short, since commits are.
            time.sleep(max(0.0, min(left, pause * random.uniform(0.5, 1.5))))
            pause = min(pause * 1.5, 0.01)

    def _failed(self, error: BaseException) -> BaseException:
        self._undo(error)
        return translated(error, self.settings) if isinstance(error, sqlite3.Error) else error
