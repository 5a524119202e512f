"""What SQLite says when it cannot, in the words of OmniQ's errors: which file, what is wrong, and what to do."""

from __future__ import annotations

import os
import sqlite3

from omniq.errors import PayloadTooLarge, SchemaMismatch, StorageUnavailable
from omniq_local.sqlite.settings import Settings

__all__ = ["is_broken", "is_busy", "is_undecodable", "not_writable", "translated"]

_PRIMARY = 0xFF
"""The bits of an error code that hold its kind; the others say more about where it came from."""


def _kind(error: sqlite3.Error) -> int:
    # Errors that Python's wrapper raises by itself (a closed connection) carry no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection was in the way, so that the same may be tried again soon."""
    return _kind(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_undecodable(error: sqlite3.Error) -> bool:
    """Whether a text in the file is not UTF-8."""
    return "decode" in str(error)


def is_broken(error: sqlite3.Error) -> bool:
    """Whether the connection itself may be of no more use."""
    return _kind(error) in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_CORRUPT,
    )


def translated(error: sqlite3.Error, settings: Settings) -> Exception:
    """Return the error to raise instead of SQLite's."""
    kind = _kind(error)
    path, folder = settings.path, settings.folder
    if not hasattr(error, "sqlite_errorcode") or kind == sqlite3.SQLITE_CONSTRAINT:
        # Trying again would not help: a field of a task is of a type that it cannot be.
        return TypeError(f"a value cannot be stored: {error}")
    if kind == sqlite3.SQLITE_TOOBIG:
        return PayloadTooLarge(f"larger than SQLite can store ({error})")
    if kind == sqlite3.SQLITE_NOTADB:
        return SchemaMismatch(f"{path} is no SQLite database; name another file, or move this one away")
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageUnavailable(
            f"{path} has been locked by another connection for more than {settings.busy_timeout:g} s; "
            "end what holds a transaction open, or allow more with ?busy_timeout="
        )
    if kind == sqlite3.SQLITE_FULL:
        return StorageUnavailable(f"{path} cannot grow: the disk is full; nothing was stored. Free space on {folder}")
    if kind == sqlite3.SQLITE_READONLY:
        return StorageUnavailable(not_writable(settings))
    if kind == sqlite3.SQLITE_CANTOPEN:
        return StorageUnavailable(_why_not_opened(settings))
    if kind == sqlite3.SQLITE_CORRUPT:
        return StorageUnavailable(
            f"{path} is damaged ({error}); stop everything that uses it and restore a copy, or save what can be read: "
            f"sqlite3 {path} .recover"
        )
    if kind == sqlite3.SQLITE_IOERR:
        return StorageUnavailable(f"{path}: the disk failed or is full ({error}); look at the file system of {folder}")
    return StorageUnavailable(f"{path}: {error}")


def not_writable(settings: Settings) -> str:
    """Say that this user may not write the file."""
    return (
        f"{settings.path} cannot be written; let this user write the file and its folder {settings.folder}, "
        "in which SQLite keeps its log"
    )


def _why_not_opened(settings: Settings) -> str:
    path, folder = settings.path, settings.folder
    try:
        os.stat(folder)
    except PermissionError:
        return f"{path} cannot be opened: this user may not reach {folder}; grant access to the folders above it"
    except OSError:
        pass  # that it is not there is said below
    if not os.path.isdir(folder):
        return f"{path} cannot be opened: there is no folder {folder}; create it, or name another file"
    if os.path.isdir(path):
        return f"{path} cannot be opened: it is a folder; name a file in it"
    if not os.path.lexists(path) and os.access(folder, os.W_OK | os.X_OK):
        return f"there is no file {path} any more; put it back, or restart what uses it to begin with a new one"
    return f"{path} cannot be opened; let this user read and write the file and its folder {folder}"
