"""Before the first use of a file: whether it is ours, of a version that we know, and has the namespace's tables."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq.storage.posix import IS_POSIX
from omniq_local.sqlite.connecting import connect
from omniq_local.sqlite.errors import is_busy, not_writable, translated
from omniq_local.sqlite.settings import Settings
from omniq_local.sqlite.statements import schema

__all__ = ["APPLICATION_ID", "OLDEST_SQLITE", "PREPARING", "SCHEMA_VERSION", "prepare"]

T = TypeVar("T")

APPLICATION_ID = 0x4F4D4E51
"""``OMNQ``: marks a file that we created, for us and for the program ``file``."""
SCHEMA_VERSION = 1
"""The version of the tables in schema.sql."""
OLDEST_SQLITE = (3, 37, 0)
"""The first with STRICT tables, which keep values of a wrong type from ever getting in."""
PAGE_SIZE = 2048
"""Bytes. What a small commit costs is what its pages take to write: an eighth less than with pages of 4096 bytes."""


class Patience:
    """Tries again while another process is in the way, for so many seconds in all."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def spend(self, step: Callable[[], T]) -> T:
        """Do a step, again and again if need be."""
        while True:
            try:
                return step()
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() >= self._deadline:
                    raise
            time.sleep(random.uniform(0.001, 0.02))


PREPARING = threading.Lock()
"""Held while a file is prepared, and during a fork, so that no child inherits a connection unknown to it."""


def _make_file(settings: Settings) -> None:
    """Make an empty file, which SQLite takes for a database; what it makes beside it gets the same permissions."""
    # If there is one, it stays as it is; if none can be made, SQLite says why.
    with contextlib.suppress(OSError):
        fd = os.open(settings.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, settings.mode)
        try:
            if IS_POSIX:
                # Whatever the umask says.
                os.fchmod(fd, settings.mode)
        finally:
            os.close(fd)


def prepare(settings: Settings, *, create: bool = True) -> None:
    """Create the file and the namespace's tables, or check that they are what we know; many processes may at once.

    :param create: whether to create the file if there is none.
    :raises SchemaMismatch: if the file is another program's, or was written by a newer version of OmniQ.
    :raises StorageUnavailable: if it cannot be opened or written, or SQLite is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StorageUnavailable(
            f"this Python's SQLite is {sqlite3.sqlite_version}; OmniQ needs {oldest} or newer: "
            "take a newer Python or system"
        )
    patience = Patience(settings.busy_timeout)
    try:
        with PREPARING:
            if create:
                _make_file(settings)
            connection = patience.spend(lambda: connect(settings, create=create))
            try:
                if not os.access(settings.path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                    # SQLite opens it all the same, and would fail at the first task.
                    raise StorageUnavailable(not_writable(settings))
                _prepare(connection, settings, patience)
            finally:
                connection.close()
    except sqlite3.Error as error:
        raise translated(error, settings) from error


def _prepare(connection: sqlite3.Connection, settings: Settings, patience: Patience) -> None:
    # Before anything is changed: the journal mode alone would change another program's file.
    there = patience.spend(lambda: _check(connection, settings))
    patience.spend(lambda: _write_ahead(connection, settings))
    if there:
        return  # without the lock for writing: the caller may hold it itself, in its own transaction
    patience.spend(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        if not _check(connection, settings):
            if _is_empty(connection):
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for statement in schema(settings.prefix).split(";\n"):
                connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _is_empty(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def _check(connection: sqlite3.Connection, settings: Settings) -> bool:
    """Tell whether the namespace's tables are there, and of the version that we know."""
    path, prefix = settings.path, settings.prefix
    meta = f"{prefix}.meta"
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (meta,)).fetchone():
        row = connection.execute(f"SELECT value FROM \"{meta}\" WHERE key = 'schema'").fetchone()
        version = row[0] if row else "none"
        if version == str(SCHEMA_VERSION):
            return True
        if version.isdecimal() and int(version) > SCHEMA_VERSION:
            raise SchemaMismatch(
                f"{path} was written by a newer OmniQ (its tables {prefix!r} are of version {version}, this one knows "
                f"{SCHEMA_VERSION}); upgrade omniq-local here, or name another file"
            )
        raise SchemaMismatch(
            f"{path}: the tables {prefix!r} are of version {version}, which this OmniQ does not know; "
            "name another file or namespace"
        )
    # In this order: what another process makes meanwhile it makes together with the id.
    empty = _is_empty(connection)
    application = _pragma(connection, "application_id")
    ours = application == APPLICATION_ID or (application == 0 and empty)
    if not ours and not settings.foreign:
        raise SchemaMismatch(
            f"{path} is another program's database; name another file, "
            f"or add ?foreign=allow to have OmniQ's tables ({prefix}.task …) beside those in it"
        )
    return False


def _write_ahead(connection: sqlite3.Connection, settings: Settings) -> None:
    if _is_empty(connection) and _pragma(connection, "page_count") == 0:
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StorageUnavailable(
            f"{settings.path}: SQLite cannot keep a write-ahead log here (journal mode {mode!r}); several processes "
            "need shared memory for it, which network file systems lack: take a local disk"
        )
