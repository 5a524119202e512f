"""What the file system says when it cannot, in the words of OmniQ's errors: what is wrong where, and what to do."""

from __future__ import annotations

import errno

from omniq.errors import StorageUnavailable
from omniq_local.files.settings import Settings

__all__ = ["translated"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED_TO_US = (errno.EACCES, errno.EPERM, errno.EROFS)


def translated(error: OSError, settings: Settings) -> StorageUnavailable:
    """Return the error to raise instead of the file system's."""
    root, number = settings.root, error.errno
    what = error.filename or root
    if number in _FULL:
        return StorageUnavailable(
            f"{root} cannot grow ({error.strerror}); nothing was stored. Free space, or inodes, on its file system"
        )
    if number in _CLOSED_TO_US:
        return StorageUnavailable(
            f"{root} cannot be written ({error.strerror}: {what}); let this user write the folder and all that is in it"
        )
    if number == errno.EXDEV:
        return StorageUnavailable(
            f"{root} is spread over several file systems ({what}), between which a file cannot be moved in one step; "
            "mount nothing inside the store's folder, and link no folder in it to elsewhere"
        )
    if number == errno.ELOOP:
        return StorageUnavailable(
            f"{root} cannot be used: {what} is a symbolic link, or no regular file, and a store has none; remove it"
        )
    if number == errno.ENOTDIR:
        return StorageUnavailable(
            f"{root} cannot be used: {what} is a file or a symbolic link where a folder is needed; name a folder, and "
            "link none within the store to elsewhere"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return StorageUnavailable(f"{root}: too many open files; raise the limit (ulimit -n)")
    if number == errno.ENOENT:
        return StorageUnavailable(f"{root}: {what} is gone; something else than OmniQ removes files of this store")
    return StorageUnavailable(f"{root}: {error}")
