"""The files of a namespace, each reached from the descriptor of its folder; no link is followed, no pipe opened.

Other programs can put anything into the store's folder: a symbolic link to a file outside of it, a pipe
that blocks who opens it, a folder where a file should be. What is done here is done to regular files within the
namespace's folder, or fails at once with an error that names the path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import time
from collections.abc import Iterator
from hashlib import sha256

from omniq_local.paths import PRIVATE

__all__ = ["ASIDE", "NO_FILE", "Tree", "check_path", "folder_mode"]

_FOLDERS = frozenset(
    {
        *("about", "aside", "flows", "ids", "limits", "lines", "queues", "schedules", "tasks", "unique", "workers"),
        *("blocked", "expiring", "lined", "ready", "scheduled", "running", "succeeded", "failed", "cancelled"),
    }
)
"""The folders of a namespace in which changes happen."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_OWN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
NO_FILE = frozenset(
    {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ESPIPE, errno.EISDIR, errno.EAGAIN, errno.ENOTDIR, errno.EMLINK}
)
"""What opening, reading or writing fails with where there is something else than a regular file, or nothing."""
ASIDE = "aside"
"""The folder of what was found and does not belong there."""
_LONGEST_NAME = 200
"""Bytes of a name in it, to which a time may be added."""
_CHUNK = 65536
_MOST_OPEN = 384
"""Folders that are kept open, where the process may have many files open."""


def folder_mode(file_mode: int) -> int:
    """Return the permissions of folders: who may read a file may search its folder, too."""
    return file_mode | (file_mode & 0o444) >> 2


def check_path(path: object) -> str:
    """Return a path that was read from a file.

    :raises ValueError: if it is none of a file in one of the namespace's folders.
    """
    if not isinstance(path, str) or "\0" in path:
        raise ValueError(f"{path!r} is no path")
    os.fsencode(path)
    parts = path.split("/")
    if len(parts) < 2 or parts[0] not in _FOLDERS or not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"{path!r} is no path within a folder of the store")
    return path


class Tree:
    """The files of one namespace. Paths are relative to its folder. Used under the store's lock.

    :param root: the store's folder.
    :param namespace: the name of the namespace's folder in it.
    :param mode: the permissions of files.
    """

    def __init__(self, root: str, namespace: str, mode: int = PRIVATE) -> None:
        self.base = f"{root}/{namespace}"
        self._root = root
        self._namespace = namespace
        self._file_mode = mode
        self._folder_mode = folder_mode(mode)
        self._umask_matters = bool(mode & 0o066)
        """Whether what is made is to be open to others, whatever the umask of the process."""
        self._fd = -1
        self._folders: dict[str, int] = {}
        # A quarter of what the process may open: it has better uses for the rest.
        self._most_open = max(16, min(_MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))

    # Life

    def open(self, *, create: bool) -> None:
        """Open the namespace's folder that is there now.

        :param create: whether to make it if there is none.
        """
        root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            make = self._make_folder if create else self._open_folder
            fd = make(self._namespace, root, "")
        finally:
            os.close(root)
        self.close()
        self._fd = fd
        self._keep_to_mode(fd, self._folder_mode)

    def close(self) -> None:
        """Close all folders."""
        self.forget()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def forget(self) -> None:
        """Note that folders may have been removed and made anew: close all but the namespace's."""
        folders, self._folders = self._folders, {}
        for fd in folders.values():
            os.close(fd)

    # Files

    def read(self, path: str) -> bytes:
        """Return what is in a file.

        :raises FileNotFoundError: if there is none.
        :raises OSError: if it is no regular file.
        """
        folder, _, name = path.rpartition("/")
        fd = -1
        try:
            fd = os.open(name, _READ, dir_fd=self._folders.get(folder) or self._folder(folder))
            data = os.read(fd, _CHUNK)
            if len(data) < _CHUNK:
                return data
            # A pipe has no end.
            left = _check_regular(fd) - len(data)
            parts = [data]
            while left > 0 and (part := os.read(fd, min(left, 2**20))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
        except OSError as error:
            raise self._named(error, path) from None
        finally:
            if fd >= 0:
                os.close(fd)

    def read_part(self, path: str, offset: int, length: int) -> tuple[bytes, int]:
        """Return a part of a file, and the size of all of it.

        :raises FileNotFoundError: if there is none.
        :raises OSError: if it is no regular file.
        """
        folder, _, name = path.rpartition("/")
        fd = -1
        try:
            fd = os.open(name, _READ, dir_fd=self._folders.get(folder) or self._folder(folder))
            size = _check_regular(fd)
            return os.pread(fd, length, offset), size
        except OSError as error:
            raise self._named(error, path) from None
        finally:
            if fd >= 0:
                os.close(fd)

    def write(self, path: str, content: bytes, offset: int, *, cut: bool) -> None:
        """Write into a file that is there.

        :param cut: whether nothing may follow.
        """
        folder, _, name = path.rpartition("/")
        fd = -1
        try:
            fd = os.open(name, _WRITE, dir_fd=self._folders.get(folder) or self._folder(folder))
            _write_all(fd, content, offset)
            if cut:
                os.ftruncate(fd, offset + len(content))
        except OSError as error:
            raise self._named(error, path) from None
        finally:
            if fd >= 0:
                os.close(fd)

    def replace(self, path: str, content: bytes, *, cut: bool) -> None:
        """Write a whole file: into the one that is there, or a new one, also where anything else is in its place.

        :param cut: whether the file that is there may be longer.
        """
        try:
            self.write(path, content, 0, cut=cut)
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            self.create(path, content)

    def create(self, path: str, content: bytes) -> None:
        """Make a new file, and the folder that it is in if need be; instead of one that is there."""
        try:
            fd = self._create(path)
        except FileNotFoundError:
            self.make_folders(path.rpartition("/")[0])
            fd = self._create(path)
        except FileExistsError:
            # Not emptied: it may be another's, by a hard link.
            self.remove(path)
            fd = self._create(path)
        try:
            if self._umask_matters:
                os.fchmod(fd, self._file_mode)
            _write_all(fd, content, 0)
        except OSError as error:
            raise self._named(error, path) from None
        finally:
            os.close(fd)

    def _create(self, path: str) -> int:
        folder, _, name = path.rpartition("/")
        try:
            return os.open(name, _WRITE | os.O_CREAT | os.O_EXCL, self._file_mode, dir_fd=self._folder(folder))
        except OSError as error:
            raise self._named(error, path) from None

    def open_own(self, name: str) -> int:
        """Open one of the files beside the folders for reading and writing; make it if it is not there.

        :return: a descriptor, which is the caller's to close.
        """
        try:
            fd = os.open(name, _OWN, self._file_mode, dir_fd=self._fd)
            try:
                _check_regular(fd)
                self._keep_to_mode(fd, self._file_mode)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise self._named(error, name) from None
        return fd

    def _keep_to_mode(self, fd: int, mode: int) -> None:
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) & 0o777 != mode and status.st_uid == os.geteuid():
            os.fchmod(fd, mode)

    # Names

    def link(self, path: str, new: str) -> None:
        """Have a file have another name, too; make the folder that this is in if need be, and take it from another."""
        folder, _, name = path.rpartition("/")
        new_folder, _, new_name = new.rpartition("/")
        try:
            try:
                self._link(name, folder, new_name, new_folder)
            except FileNotFoundError:
                self.make_folders(new_folder)
                self._link(name, folder, new_name, new_folder)
            except FileExistsError:
                self.remove(new)
                self._link(name, folder, new_name, new_folder)
        except OSError as error:
            raise self._named(error, path) from None

    def _link(self, name: str, folder: str, new_name: str, new_folder: str) -> None:
        source, target = self._both(folder, new_folder)
        os.link(name, new_name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)

    def _both(self, folder: str, other: str) -> tuple[int, int]:
        one, two = self._folders.get(folder), self._folders.get(other)
        if one is not None and two is not None:
            return one, two
        self._folder(folder)
        target = self._folder(other)
        # To open the second may have closed the first.
        return self._folder(folder), target

    def rename(self, path: str, new: str) -> None:
        """Rename a file, replacing what has the new name."""
        folder, _, name = path.rpartition("/")
        new_folder, _, new_name = new.rpartition("/")
        try:
            source, target = self._both(folder, new_folder)
            os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            raise self._named(error, path) from None

    def remove(self, path: str) -> None:
        """Remove a name, and with its last one the file, if it is there; a folder in its place is moved aside."""
        folder, _, name = path.rpartition("/")
        try:
            os.unlink(name, dir_fd=self._folder(folder))
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            self.set_aside(path)
        except OSError as error:
            raise self._named(error, path) from None

    def set_aside(self, path: str) -> str:
        """Move what does not belong where it is, whatever it is; return the path where it is then."""
        target = self.place_aside(path)
        self.rename(path, target)
        return target

    def place_aside(self, path: str) -> str:
        """Return where something is to be moved aside to: a path that is not in use."""
        name = path.replace("/", "_")
        if len(os.fsencode(name)) > _LONGEST_NAME:
            digest = sha256(os.fsencode(name)).hexdigest()[:32]
            name = f"{os.fsdecode(os.fsencode(name)[: _LONGEST_NAME - 40])}~{digest}"
        target = f"{ASIDE}/{name}"
        return f"{target}.{time.time_ns()}" if self.exists(target) else target

    def exists(self, path: str) -> bool:
        """Return whether there is anything under a name."""
        return self._status(path) is not None

    def is_same(self, path: str, other: str) -> bool:
        """Return whether two names are of one file."""
        one, two = self._status(path), self._status(other)
        return one is not None and two is not None and os.path.samestat(one, two)

    def names_of(self, path: str) -> int:
        """Return how many names a file has."""
        status = self._status(path)
        return 0 if status is None else status.st_nlink

    def _status(self, path: str) -> os.stat_result | None:
        folder, _, name = path.rpartition("/")
        try:
            return os.stat(name, dir_fd=self._folder(folder), follow_symlinks=False)
        except OSError:
            return None

    # Folders

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, in no order; none if it is not there or no folder."""
        try:
            fd = self._walk(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def walk(self, folder: str) -> Iterator[str]:
        """Return the paths of all that is in a folder and in those in it, apart from folders."""
        try:
            fd = self._walk(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        finally:
            os.close(fd)
        for name, is_folder in found:
            if is_folder:
                yield from self.walk(f"{folder}/{name}")
            else:
                yield f"{folder}/{name}"

    def make_folders(self, folder: str) -> None:
        """Make a folder, and those that it is in, if they are not there."""
        self._close_folder(folder)
        fd, place = os.dup(self._fd), ""
        for part in folder.split("/"):
            outer, place = fd, f"{place}/{part}".lstrip("/")
            try:
                fd = self._make_folder(part, outer, place)
            finally:
                os.close(outer)
        self._keep(folder, fd)

    def remove_folder(self, folder: str) -> None:
        """Remove a folder if it is empty."""
        self._close_folder(folder)
        outer, _, name = folder.rpartition("/")
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self._folder(outer))

    def _make_folder(self, name: str, outer: int, folder: str) -> int:
        """Make a folder if it is not there; return a descriptor of it, the caller's to close."""
        try:
            os.mkdir(name, self._folder_mode, dir_fd=outer)
        except FileExistsError:
            return self._open_folder(name, outer, folder)
        except OSError as error:
            raise self._named(error, folder) from None
        fd = self._open_folder(name, outer, folder)
        if self._umask_matters:
            os.fchmod(fd, self._folder_mode)
        return fd

    def _open_folder(self, name: str, outer: int, folder: str) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=outer)
        except OSError as error:
            raise self._named(error, folder) from None

    def _folder(self, folder: str) -> int:
        """Return the descriptor of a folder; it stays ours."""
        fd = self._folders.get(folder)
        if fd is None:
            if not folder:
                return self._fd
            fd = self._walk(folder)
            self._keep(folder, fd)
        return fd

    def _keep(self, folder: str, fd: int) -> None:
        folders = self._folders
        if len(folders) >= self._most_open:
            # The one opened first.
            os.close(folders.pop(next(iter(folders))))
        folders[folder] = fd

    def _close_folder(self, folder: str) -> None:
        fd = self._folders.pop(folder, None)
        if fd is not None:
            os.close(fd)

    def _walk(self, folder: str) -> int:
        """Return a descriptor of a folder that is there now, the caller's to close."""
        place, *rest = folder.split("/")
        fd = self._open_folder(place, self._fd, place)
        for part in rest:
            outer, place = fd, f"{place}/{part}"
            try:
                fd = self._open_folder(part, outer, place)
            finally:
                os.close(outer)
        return fd

    def _named(self, error: OSError, path: str) -> OSError:
        named = error.filename
        if not (isinstance(named, str) and named.startswith(self.base)):
            error.filename = f"{self.base}/{path}" if path else self.base
            error.filename2 = None
        return error


def _check_regular(fd: int) -> int:
    """Return the size of a file.

    :raises OSError: if it is no regular one.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.ELOOP, "it is no regular file")
    return status.st_size


def _write_all(fd: int, content: bytes, offset: int) -> None:
    written = os.pwrite(fd, content, offset)
    while written < len(content):
        written += os.pwrite(fd, content[written:], offset + written)
