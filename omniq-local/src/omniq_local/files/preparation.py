"""Makes a folder a store, or checks that it is one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets

from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq_local.files.control import MARKS
from omniq_local.files.settings import Settings

__all__ = ["VERSION", "gone", "prepare", "sync_all"]

VERSION = 1
MARKER = "omniq.json"
FOLDERS = ("about", "aside", "ids", MARKS, "queues", "schedules", "tasks", "unique", "workers")


def prepare(settings: Settings, *, create: bool = True) -> tuple[int, int]:
    """Make the folders that are missing; give descriptors of the lock's and the control file.

    :param create: whether an empty folder, or none, becomes a store.
    :raises SchemaMismatch: if the folder is used by something else, or by another version.
    :raises StorageUnavailable: if it is no folder, or is to be a store already and is none.
    """
    root = settings.root
    if create:
        try:
            os.makedirs(root, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StorageUnavailable(f"{root} is, or is under, a file; name a folder") from error
        _check_marker(root)
    elif _version_in(f"{root}/{MARKER}") != VERSION:
        raise gone(settings)
    for name in FOLDERS:
        os.makedirs(f"{settings.base}/{name}", exist_ok=True)
    lock = os.open(f"{settings.base}/lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        return lock, os.open(f"{settings.base}/control", os.O_RDWR | os.O_CREAT, 0o666)
    except BaseException:
        os.close(lock)
        raise


def gone(settings: Settings) -> StorageUnavailable:
    """Return the error for a store that was removed while it is in use."""
    return StorageUnavailable(
        f"{settings.base} is gone: it was removed or moved while in use. Put it back, which needs no restart; or "
        "restart what uses it, to begin with an empty store"
    )


def _check_marker(root: str) -> None:
    path = f"{root}/{MARKER}"
    version = _version_in(path)
    if version is None:
        if any(_is_foreign(name) for name in os.listdir(root)):
            raise SchemaMismatch(
                f"{root} holds files, yet none that says it is a store of OmniQ ({MARKER}); name an empty or new folder"
            )
        _write_marker(path)
        version = _version_in(path)
    if version != VERSION:
        raise SchemaMismatch(
            f"{root} was written by another version of OmniQ (its files are of version {version}, this OmniQ's of "
            f"{VERSION}); use that version, or another folder"
        )


def _is_foreign(name: str) -> bool:
    # What others leave who make this store at the same moment, and what a new file system has at its root.
    return not name.startswith(MARKER) and name != "lost+found"


def _version_in(path: str) -> object:
    try:
        with open(path, "rb") as file:
            marker = json.loads(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return "unknown"
    return marker.get("version") if isinstance(marker, dict) else "unknown"


def _write_marker(path: str) -> None:
    # Linked when it is whole: of several processes that come first, one makes it, and none reads half of it.
    temporary = f"{path}.{secrets.token_hex(8)}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps({"what": "a file store of OmniQ; see docs/backends/files.md", "version": VERSION}) + "\n")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def sync_all(fd: int) -> None:
    """Have everything that was written to a file system reach its disk.

    :param fd: of a file on it.
    """
    try:
        syncfs = ctypes.CDLL(None).syncfs
    except (AttributeError, OSError):
        os.sync()
        return
    syncfs(fd)
