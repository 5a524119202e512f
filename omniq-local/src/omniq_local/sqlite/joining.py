"""The caller's own transaction, on the caller's connection to the same file: the caller commits what is written in it.

Nothing here begins, commits or rolls back; a savepoint makes each call all or nothing. The connection stays as
it is: it may make rows and texts in any way, so all goes through cursors of our own.

Waiters cannot be told before the caller commits, and no connection of ours learns of the commit. So their names stay
on the table of waiters, and a thread of ours tries for a moment to write after the caller: when it gets through, the
transaction has ended, and they are woken. Where it does not, they find out by themselves, see waiting.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from omniq.errors import StorageUnavailable
from omniq.flow import NewFlow
from omniq.storage import Enqueued
from omniq.storage.transactions import CallerTransaction, driver_connection
from omniq.task import NewTask, Outcome
from omniq_local.sqlite.connecting import identity_of
from omniq_local.sqlite.connections import Job
from omniq_local.sqlite.database import Database
from omniq_local.sqlite.enqueueing import enqueue
from omniq_local.sqlite.errors import is_busy, translated
from omniq_local.sqlite.finishing import finish
from omniq_local.sqlite.settings import Settings
from omniq_local.sqlite.transaction import Transaction

__all__ = ["JoinedTransaction", "join"]

T = TypeVar("T")


def join(connection: object, database: Database) -> JoinedTransaction:
    """Take part in the transaction of a caller's connection; see :meth:`~omniq.storage.Storage.join`."""
    own = driver_connection(connection)
    if not isinstance(own, sqlite3.Connection):
        raise TypeError(
            f"{own!r} cannot be used with {database.settings.shown}: give a sqlite3 connection, or SQLAlchemy's or "
            "Django's over one, to the same file"
        )
    _check_file(own, database.settings)
    return JoinedTransaction(own, database)


def _check_file(connection: sqlite3.Connection, settings: Settings) -> None:
    with _texts(connection, os.fsdecode):
        # Its main database, which comes first: in one that is attached, SQLite would not commit together with
        # the caller's own tables.
        _, _, path = _cursor(connection).execute("PRAGMA database_list").fetchone()
    try:
        status = os.stat(path)
    except OSError:
        same = False
    else:
        same = (status.st_dev, status.st_ino) == identity_of(settings)
    if not same:
        raise ValueError(
            f"the connection leads to {path or 'a database in memory'}, and the queue's tasks are in {settings.path}: "
            "only in one file can both be committed together"
        )


def _cursor(connection: sqlite3.Connection) -> sqlite3.Cursor:
    # Not the connection's own cursor(), which makes rows of the caller's kind.
    return sqlite3.Cursor(connection)


@contextmanager
def _texts(connection: sqlite3.Connection, factory: Callable[[bytes], str]) -> Iterator[None]:
    text_factory = connection.text_factory
    connection.text_factory = factory
    try:
        yield
    finally:
        connection.text_factory = text_factory


class JoinedTransaction(CallerTransaction):
    """A caller's transaction on the file of a storage.

    :param connection: the caller's.
    :param database: of the storage.
    """

    def __init__(self, connection: sqlite3.Connection, database: Database) -> None:
        self._connection = connection
        self._database = database

    def enqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        return self._do(partial(enqueue, tasks, flow=flow))

    def finish(self, outcome: Outcome) -> bool:
        return self._do(partial(finish, [outcome]))[0]

    def _do(self, job: Job[T]) -> T:
        with _texts(self._connection, str):
            try:
                self._lock()
                return self._all_or_nothing(job)
            except sqlite3.Error as error:
                if not hasattr(error, "sqlite_errorcode"):
                    raise  # the caller's use of the connection: it is closed, or another thread's
                raise self._translated(error) from error

    def _execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        return _cursor(self._connection).execute(statement, parameters)

    def _lock(self) -> None:
        # Where sqlite3 itself begins transactions, it does so here as before any other change.
        self._execute(self._database.sql["joining.lock"])
        if not self._connection.in_transaction:
            raise ValueError(
                "the connection commits each statement by itself, so that there is no transaction to take part in: "
                'begin one (connection.execute("BEGIN IMMEDIATE") of sqlite3, transaction.atomic() of Django), and '
                "give SQLAlchemy's another isolation level than AUTOCOMMIT"
            )

    def _all_or_nothing(self, job: Job[T]) -> T:
        database = self._database
        self._execute("SAVEPOINT omniq")
        try:
            transaction = Transaction(self._connection, database.sql, database.now(), self._execute)
            result = job(transaction)
            news = transaction.complete_for_others()
            self._execute("RELEASE omniq")
        except BaseException:
            if self._connection.in_transaction:  # some errors, such as of a full disk, undo all of it
                self._execute("ROLLBACK TO omniq")
                self._execute("RELEASE omniq")
            raise
        if news is not None:
            database.spread(news)
        return result

    def _translated(self, error: sqlite3.Error) -> Exception:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT:
            return StorageUnavailable(
                f"your transaction has read {self._database.settings.path} before another connection wrote to it, and "
                'can write no more: roll back, and begin with "BEGIN IMMEDIATE" where you read before you write'
            )
        if is_busy(error):
            return StorageUnavailable(
                f"another connection has been writing to {self._database.settings.path} for longer than your "
                "connection waits (the timeout of sqlite3.connect): roll back, and try again"
            )
        return translated(error, self._database.settings)
