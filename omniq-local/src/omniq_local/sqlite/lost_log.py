"""Saves what SQLite's log holds, if the log (``-wal``) or its index (``-shm``) was removed while in use.

Connections that have the log open go on writing into it, where no other process will ever read, and the last one to
close removes the log of a process that began a new one. So before anything is read or written the log must be the one
that was opened. If it is not, no process has written into it since (each looks before), and what it holds goes into the
database before all connections of the process are made anew.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from omniq.storage.escaping import get_logger
from omniq.storage.posix import IS_POSIX
from omniq_local.sqlite.settings import Settings

__all__ = ["LogReplaced", "not_the_last", "save_log"]

_log = get_logger("omniq.sqlite")

# SQLite's SHARED_FIRST and SHARED_SIZE: the bytes of the database file that each connection has a lock on.
_SHARED = 0x40000002, 510
WAIT = 2000
"""Milliseconds that others are waited for who read, before what the log holds is saved apart."""


class LogReplaced(Exception):
    """The log is no longer the one that a connection has open."""


def save_log(connection: sqlite3.Connection, settings: Settings) -> None:
    """Move what a removed log holds into the database, or into a file of its own if there is a new log already.

    :param connection: one that has the removed log open.
    """
    path = settings.path
    if _size_of_removed(path + "-wal") == 0:
        _log.warning("%s: another process saved what the removed log held; nothing is lost", path)
        return
    try:
        if _size(path + "-wal") == 0:
            connection.execute(f"PRAGMA busy_timeout = {WAIT}")
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                _log.warning("%s: what the removed log held was saved; nothing is lost", path)
                return
        copy = f"{path}.saved-{time.time_ns()}"
        connection.execute("VACUUM INTO ?", (copy,))
    except sqlite3.Error as error:
        _log.error(
            "%s: what the removed log held cannot be saved (%s); tasks that were stored since the last checkpoint are "
            "lost. Remove %s-wal and -shm only when nothing uses the file",
            *(path, error, path),
        )
        return
    _log.error(
        "%s: another process began a log of its own; what was stored before is in %s alone: look at the tasks there "
        "with omniq tasks list --url sqlite:///%s. Remove %s-wal and -shm only when nothing uses the file",
        *(path, copy, copy, path),
    )


@contextmanager
def not_the_last(settings: Settings) -> Iterator[None]:
    """Keep SQLite from taking a connection that is closed for the last: it would remove the log of that name."""
    try:
        # On other systems a file that is open cannot be removed.
        fd = os.open(settings.path, os.O_RDONLY) if IS_POSIX else -1
    except OSError:
        fd = -1
    if fd < 0:
        yield
        return
    import fcntl  # not there on other systems

    try:
        command = getattr(fcntl, "F_OFD_SETLK", None)
        if command is not None:
            try:
                # A lock of a descriptor's own is in the way of those that SQLite takes, which are the process's.
                fcntl.fcntl(fd, command, struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, *_SHARED, 0))
            except OSError:
                _log.debug("%s: cannot be locked", settings.path, exc_info=True)
        yield
    finally:
        # Only now: it releases all locks that the process holds on the file.
        os.close(fd)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def _size_of_removed(path: str) -> int | None:
    """Return the size of a removed file that this process has open; None where the system does not tell."""
    folder = "/proc/self/fd"
    try:
        for name in os.listdir(folder):
            link = f"{folder}/{name}"
            try:
                if os.readlink(link) == f"{os.path.realpath(path)} (deleted)":
                    return os.stat(link).st_size
            except OSError:
                continue
    except OSError:
        return None
    return None
