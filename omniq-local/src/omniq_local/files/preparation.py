"""Makes a folder a store, or checks that it is one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets

from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq_local.files.settings import Settings
from omniq_local.files.superblock import MARKS
from omniq_local.files.tree import ASIDE, Tree, folder_mode

__all__ = ["VERSION", "gone", "prepare", "sync_all"]

VERSION = 2
MARKER = "omniq.json"
FOLDERS = ("about", ASIDE, "flows", "ids", MARKS, "queues", "schedules", "tasks", "unique", "workers")


def prepare(settings: Settings, tree: Tree, *, create: bool = True) -> tuple[int, int]:
    """Make the folders that are missing, and open them; return descriptors of the lock's and the control file.

    :param tree: the namespace's files; is open afterwards.
    :param create: whether an empty folder, or none, becomes a store.
    :raises SchemaMismatch: if the folder is used by something else, or by another version.
    :raises StorageUnavailable: if it is no folder, or is to be a store already and is none.
    """
    root = settings.root
    if create:
        _make_root(settings)
        _check_marker(settings)
    elif _version_in(f"{root}/{MARKER}") != VERSION:
        raise gone(settings)
    tree.open(create=True)
    for name in FOLDERS:
        tree.make_folders(name)
    lock = tree.open_own("lock")
    try:
        return lock, tree.open_own("control")
    except BaseException:
        os.close(lock)
        raise


def _make_root(settings: Settings) -> None:
    root = settings.root
    try:
        os.makedirs(os.path.dirname(root), exist_ok=True)
        os.mkdir(root, folder_mode(settings.mode))
        # Whatever the umask says.
        os.chmod(root, folder_mode(settings.mode))
    except (FileExistsError, NotADirectoryError) as error:
        if not os.path.isdir(root):
            raise StorageUnavailable(f"{root} is, or is under, a file; name a folder") from error


def gone(settings: Settings) -> StorageUnavailable:
    """Return the error for a store that was removed while it is in use."""
    return StorageUnavailable(
        f"{settings.base} is gone: it was removed or moved while in use. Put it back, which needs no restart; or "
        "restart what uses it, to begin with an empty store"
    )


def _check_marker(settings: Settings) -> None:
    root = settings.root
    path = f"{root}/{MARKER}"
    version = _version_in(path)
    if version is None:
        if any(_is_foreign(name) for name in os.listdir(root)):
            raise SchemaMismatch(
                f"{root} holds files, yet none that says it is a store of OmniQ ({MARKER}); name an empty or new folder"
            )
        _write_marker(path, settings.mode)
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
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        marker = json.loads(os.read(fd, 4096))
    except (ValueError, RecursionError, BlockingIOError, IsADirectoryError):
        return "unknown"
    finally:
        os.close(fd)
    return marker.get("version") if isinstance(marker, dict) else "unknown"


def _write_marker(path: str, mode: int) -> None:
    # Linked when it is whole: of several processes that come first, one makes it, and none reads half of it.
    temporary = f"{path}.{secrets.token_hex(8)}"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
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
