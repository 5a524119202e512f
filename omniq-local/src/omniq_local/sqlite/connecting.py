"""How a connection to the file is opened, and how to tell that the file is another one by now."""

from __future__ import annotations

import os
import sqlite3
from urllib.parse import quote

from omniq_local.sqlite.settings import Settings

__all__ = ["Identity", "connect", "escaped", "identity_of", "lenient", "log_identity_of", "storable"]

Identity = tuple[int, int] | None
"""What tells a file from every other one, whatever its name; None: there is none."""

LARGEST_LOG = 64 * 2**20
"""Bytes to which SQLite cuts its log when it begins it anew."""


def connect(settings: Settings, *, create: bool = False, busy_timeout: float = 0.0) -> sqlite3.Connection:
    """Open a connection that any thread may use.

    :param create: whether to create the file if there is none.
    :param busy_timeout: seconds for which SQLite itself waits for a lock.
    """
    connection = sqlite3.connect(
        f"file:{quote(os.fsencode(settings.path))}?mode={'rwc' if create else 'rw'}",
        uri=True,
        timeout=busy_timeout,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=512,
    )
    try:
        # No checkpoint within a commit: checkpoint.py sees to that, apart from who waits. What is deleted needs no
        # wiping.
        connection.executescript(
            f"PRAGMA synchronous = {settings.synchronous}; PRAGMA wal_autocheckpoint = 0; PRAGMA temp_store = MEMORY;"
            f"PRAGMA cache_size = -8000; PRAGMA secure_delete = OFF; PRAGMA journal_size_limit = {LARGEST_LOG};"
        )
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def identity_of(settings: Settings) -> Identity:
    """Tell which file the database is."""
    return _identity(settings.path)


def log_identity_of(settings: Settings) -> tuple[Identity, Identity]:
    """Tell which files the log and its index are. While any connection has them open, SQLite keeps them."""
    return _identity(settings.path + "-wal"), _identity(settings.path + "-shm")


def _identity(path: str) -> Identity:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def escaped(text: bytes) -> str:
    """Read a text so that what is no UTF-8 in it cannot be taken for text; a ``text_factory``."""
    return text.decode("utf-8", "surrogateescape")


def storable(text: str) -> str:
    """Return a text that :func:`escaped` has read as :func:`lenient` reads it, which a statement can be given."""
    return text if text.isascii() else lenient(text.encode("utf-8", "surrogateescape"))


def lenient(text: bytes) -> str:
    """Read a text in which not everything may be UTF-8; a ``text_factory``."""
    return text.decode("utf-8", "replace")
