"""What ``omniq doctor`` says about an SQLite store."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator

from omniq.storage import Finding
from omniq_local.sqlite.preparation import SCHEMA_VERSION
from omniq_local.sqlite.settings import Settings

__all__ = ["diagnose", "file_system_of"]

SOUND_SQLITE = (3, 51, 3)
"""The first without a rare race, when the log begins anew, that could damage a database."""
SMALL = 64 * 2**20
"""Bytes up to which a whole file is checked."""
LARGE_LOG = 256 * 2**20
LITTLE_SPACE = 256 * 2**20
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph", "afs", "lustre"})


def diagnose(settings: Settings, connection: sqlite3.Connection) -> list[Finding]:
    """See :meth:`~omniq.storage.Storage.diagnose`."""
    return [*_version(), *_database(settings, connection), *_files(settings), *_file_system(settings)]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _version() -> Iterator[Finding]:
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info >= SOUND_SQLITE:
        yield Finding.ok("SQLite", version)
    else:
        yield Finding.warning(
            "SQLite",
            f"{version}: before {'.'.join(map(str, SOUND_SQLITE))} a rare race between two connections that checkpoint "
            "can damage a database; upgrade the system's or Python's SQLite when you can, and keep copies",
        )


def _database(settings: Settings, connection: sqlite3.Connection) -> Iterator[Finding]:
    def pragma(name: str) -> int | str:
        value: int | str = connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    version = connection.execute(f"SELECT value FROM \"{settings.prefix}.meta\" WHERE key = 'schema'").fetchone()[0]
    yield Finding.ok("schema", f"version {version}; this OmniQ knows {SCHEMA_VERSION}")
    mode = pragma("journal_mode")
    if mode == "wal":
        yield Finding.ok("journal mode", "wal")
    else:
        yield Finding.error(
            "journal mode", f"{mode}: readers and writers block each other; another program changed it: restart OmniQ"
        )
    if settings.synchronous == "FULL":
        yield Finding.ok("durability", "synchronous=full: what was acknowledged survives a power failure")
    else:
        yield Finding.ok(
            "durability",
            "synchronous=normal: what was acknowledged survives the death of every process; "
            "a power failure may cost the last commits (?synchronous=full, if it must not)",
        )
    size = int(pragma("page_count")) * int(pragma("page_size"))
    if size > SMALL:
        yield Finding.ok(
            "integrity", f"not checked ({_mib(size)}); sqlite3 {settings.path} 'PRAGMA integrity_check' does"
        )
        return
    found = pragma("quick_check(1)")
    if found == "ok":
        yield Finding.ok("integrity", "no damage found")
    else:
        yield Finding.error(
            "integrity", f"{found}; stop all users and restore a copy, or: sqlite3 {settings.path} .recover > saved.sql"
        )


def _files(settings: Settings) -> Iterator[Finding]:
    yield Finding.ok("file", f"{settings.path}, {_mib(os.path.getsize(settings.path))}")
    log = settings.path + "-wal"
    size = os.path.getsize(log) if os.path.exists(log) else 0
    if size > LARGE_LOG:
        yield Finding.warning(
            "log", f"{_mib(size)}: some connection has been reading for long; end it, and the log begins anew"
        )
    else:
        yield Finding.ok("log", _mib(size))
    if not os.access(settings.path, os.W_OK):
        yield Finding.error("file", f"this user may not write {settings.path}; change its owner or mode")
    if not os.access(settings.folder, os.W_OK | os.X_OK):
        yield Finding.error("folder", f"this user may not write in {settings.folder}, where SQLite keeps its log")


def _file_system(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(settings.folder).free
    if free < LITTLE_SPACE:
        yield Finding.warning("disk", f"only {_mib(free)} free in {settings.folder}")
    else:
        yield Finding.ok("disk", f"{_mib(free)} free")
    kind = file_system_of(settings.folder)
    if kind in NETWORK:
        yield Finding.error(
            "file system",
            f"{kind}: SQLite's locks and shared memory do not work over a network; move it to a local disk",
        )
    elif kind is not None:
        yield Finding.ok("file system", kind)


def file_system_of(folder: str, mounts: str = "/proc/mounts") -> str | None:
    """Return the type of the file system that a folder is on; None where the system does not tell.

    :param folder: an absolute path.
    :param mounts: the table of what is mounted.
    """
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    path = os.path.realpath(folder)
    best, kind = "", None
    for fields in lines:
        if len(fields) < 3:
            continue
        point = fields[1].encode("ascii", "surrogateescape").decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
