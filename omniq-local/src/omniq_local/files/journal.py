"""How a change of many files is one step: it is written down whole before the first file is touched.

A change is a list of actions that say how things shall be, so that doing them again does no harm. A process that finds
the journal one change ahead of the store (the process that wrote it died in the middle) does its actions again and
thereby completes it; a change that is not whole in the journal touched nothing. Where an action fails (the disk is
full), those before it are undone and the change is struck from the journal.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from attrs import frozen

from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE
from omniq_local.files.tree import NO_FILE, Tree, check_path

__all__ = [
    "LARGEST",
    "LAST_SEQUENCE",
    "Action",
    "Displaced",
    "Frame",
    "Journal",
    "NotUndone",
    "Numbers",
    "Restored",
    "apply",
    "pass_by",
    "redo",
]

_log = get_logger("omniq.files")

Action = tuple[Any, ...]
"""What shall be done to one file; paths are relative to the namespace's folder:

- ``("create", path, content)``: a new file;
- ``("link", path, new path)``: another name for a file;
- ``("tail", path, offset, content, old content)``: everything of a file from a position on;
- ``("write", path, content, old content or None)``: a whole file, new or old;
- ``("folder", path)``: a new folder;
- ``("move", path, new path, home)``: another name instead of one; ``home`` is a name that the file keeps;
- ``("remove", path)``: without a name;
- ``("clear", path)``: without an empty folder.
"""

_HEADER = struct.Struct("<4sIQQQQQQQI")
_MAGIC = b"oqj1"
LAP = 2 * 2**20
"""Bytes after which the journal is written from its beginning again."""

LARGEST = 2**62
"""No number of a store is larger."""
LAST_SEQUENCE = 9 * 10**11
"""The largest sequence number of a task: with any that follow it, it fits into its place in a file's name."""

probe: Callable[[str], None] | None = None
"""Called before each step of a change, so that tests can have the process die there."""


def pass_by(step: str) -> None:
    """Come to a step of a change."""
    if probe is not None:
        probe(step)


class Numbers(NamedTuple):
    """The numbers of a store that a change makes others, see :class:`~omniq_local.files.superblock.Superblock`."""

    generation: int
    sequence: int
    layout: int
    queues: int
    schedules: int
    flows: int
    limits: int


@frozen(kw_only=True)
class Frame:
    """One change as it stands in the journal."""

    numbers: Numbers
    """Of the store after it."""
    actions: Sequence[Action]
    size: int
    """Bytes that it takes in the journal."""


class Journal:
    """The file that changes are written down in.

    :param tree: the store's files.
    """

    def __init__(self, tree: Tree) -> None:
        self._place = f"{tree.base}/journal"
        self._fd = tree.open_own("journal")

    def write(self, offset: int, numbers: Numbers, actions: Sequence[Action]) -> int:
        """Write a change down; tell how many bytes it takes.

        :param numbers: of the store after it.
        """
        index: list[list[Any]] = []
        blobs: list[bytes] = []
        for action in actions:
            kind = action[0]
            if kind == "tail":
                index.append([kind, action[1], action[2], len(action[3])])
                blobs.append(action[3])
            elif kind in ("create", "write"):
                index.append([kind, action[1], len(action[2])])
                blobs.append(action[2])
            else:
                index.append(list(action))
        body = b"".join((json.dumps(index).encode(errors="surrogatepass"), b"\n", *blobs))
        frame = _HEADER.pack(_MAGIC, crc32(body), *numbers, len(body)) + body
        written = os.pwrite(self._fd, frame, offset)
        if written != len(frame):
            # What is wrong shows when the rest is written.
            rest = memoryview(frame)[written:]
            while rest:
                written = os.pwrite(self._fd, rest, offset + len(frame) - len(rest))
                rest = rest[written:]
        return len(frame)

    def strike(self, offset: int) -> None:
        """Make the change at a position invalid."""
        os.pwrite(self._fd, bytes(_HEADER.size), offset)

    def flush(self) -> None:
        """Have what was written reach the disk."""
        if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, where a sync leaves it in the cache of the drive
            fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(self._fd)

    def empty(self) -> None:
        """Forget all changes."""
        os.ftruncate(self._fd, 0)

    def trim(self) -> None:
        """Return to the disk what an uncommonly large change took."""
        if os.fstat(self._fd).st_size > 2 * LAP:
            os.ftruncate(self._fd, LAP)

    def ahead(self, offset: int, generation: int) -> bool:
        """Tell, at little cost, whether a change beyond a generation seems to stand at a position."""
        header = os.pread(self._fd, _HEADER.size, offset)
        return len(header) == _HEADER.size and header[:4] == _MAGIC and _HEADER.unpack(header)[2] == generation + 1

    def read(self, offset: int) -> Frame | None:
        """Return the change at a position; None if none is there that is whole and may be done."""
        header = os.pread(self._fd, _HEADER.size, offset)
        if len(header) < _HEADER.size:
            return None
        magic, checksum, *values, size = _HEADER.unpack(header)
        if magic != _MAGIC or size > os.fstat(self._fd).st_size:
            return None
        body = os.pread(self._fd, size, offset + _HEADER.size)
        if len(body) != size or crc32(body) != checksum:
            return None
        numbers = Numbers(*values)
        try:
            if max(numbers) > LARGEST or numbers.sequence > LAST_SEQUENCE:
                raise ValueError("its numbers are too large")
            actions = list(_actions(body))
        except UNREADABLE as error:
            # A checksum is easily made: none of our processes wrote this, and nothing of it is done.
            log_once(_log, corrupt("change", numbers.generation, error, place=self._place))
            return None
        return Frame(numbers=numbers, actions=actions, size=_HEADER.size + size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _actions(body: bytes) -> Iterator[Action]:
    text, _, _ = body.partition(b"\n")
    position = len(text) + 1
    for entry in json.loads(text):
        match entry:
            case ["create" | "write" | "tail" as kind, path, *offset, int(size)] if (
                len(offset) == (kind == "tail") and 0 <= size <= len(body) - position
            ):
                yield kind, check_path(path), *map(_check_offset, offset), body[position : position + size], None
                position += size
            case ["folder" | "remove" | "clear" as kind, path]:
                yield kind, check_path(path)
            case ["link", path, new]:
                yield "link", check_path(path), check_path(new)
            case ["move", path, new, home]:
                yield "move", check_path(path), check_path(new), home and check_path(home)
            case _:
                raise ValueError("it has an action of no known kind")


def _check_offset(offset: object) -> int:
    if not isinstance(offset, int) or not 0 <= offset < LARGEST:
        raise ValueError(f"{offset!r} is no position in a file")
    return offset


# Doing


def apply(tree: Tree, actions: Sequence[Action]) -> None:
    """Do the actions of a change for the first time; if one fails, undo those before it.

    :raises OSError: if one cannot be done. Then either all are undone, or the error has a note that says otherwise.
    """
    done = 0
    try:
        for action in actions:
            pass_by(action[0])
            _DO[action[0]](tree, action)
            done += 1
    except BaseException as error:
        failed = actions[min(done, len(actions) - 1)]
        if isinstance(error, OSError) and failed[0] == "tail" and error.errno in NO_FILE:
            error = Displaced(error, failed)
        try:
            for action in reversed(actions[: done + 1]):
                _undo(tree, action)
        except OSError as second:
            raise NotUndone(second.errno, second.strerror, second.filename) from error
        raise error


class Displaced(OSError):
    """A task's file was to be changed and is not there, or is no file. All that was done is undone."""

    def __init__(self, error: OSError, action: Action) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        _, self.path, _, _, self.content = action


class Restored(Exception):  # no error: what failed for it can be done now
    """A task's file was not there, and is again.

    :param path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class NotUndone(OSError):
    """An action failed, and those before it could not be undone: the next process completes the change."""


_LATER = frozenset(
    {
        *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
        *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EXDEV),
    }
)
"""What an action can fail with that succeeds once something is repaired that concerns the whole store."""


def redo(tree: Tree, actions: Sequence[Action]) -> None:
    """Do the actions of a change, some or all of which may have been done already.

    :raises OSError: if the store cannot be written. What something strange in one place stops is passed over.
    """
    for action in actions:
        try:
            _REDO[action[0]](tree, action)
        except OSError as error:
            if error.errno in _LATER:
                raise
            _log.warning("%s: a change cannot be completed there: %s", error.filename, error.strerror)


def _create(tree: Tree, action: Action) -> None:
    tree.create(action[1], action[2])


def _link(tree: Tree, action: Action) -> None:
    tree.link(action[1], action[2])


def _tail(tree: Tree, action: Action) -> None:
    _, path, offset, content, old = action
    tree.write(path, content, offset, cut=old is None or len(old) > len(content))


def _write(tree: Tree, action: Action) -> None:
    _, path, content, old = action
    tree.replace(path, content, cut=old is None or len(old) > len(content))


def _folder(tree: Tree, action: Action) -> None:
    tree.make_folders(action[1])


def _move(tree: Tree, action: Action) -> None:
    _, path, new, home = action
    try:
        tree.rename(path, new)
    except FileNotFoundError:
        tree.make_folders(new.rpartition("/")[0])
        try:
            tree.rename(path, new)
        except FileNotFoundError:
            # That name was removed by hand.
            if home:
                tree.link(home, new)


def _remove(tree: Tree, action: Action) -> None:
    tree.remove(action[1])


def _clear(tree: Tree, action: Action) -> None:
    tree.remove_folder(action[1])


_DO: dict[str, Callable[[Tree, Action], None]] = {
    "create": _create,
    "link": _link,
    "tail": _tail,
    "write": _write,
    "folder": _folder,
    "move": _move,
    "remove": _remove,
    "clear": _clear,
}


def _again_link(tree: Tree, action: Action) -> None:
    with contextlib.suppress(FileNotFoundError):
        tree.link(action[1], action[2])


def _again_tail(tree: Tree, action: Action) -> None:
    try:
        _tail(tree, action)
    except OSError as error:
        # There is nothing to be put right in what is not there.
        if error.errno not in NO_FILE:
            raise


def _again_move(tree: Tree, action: Action) -> None:
    _, path, new, home = action
    tree.make_folders(new.rpartition("/")[0])
    with contextlib.suppress(FileNotFoundError):
        tree.rename(path, new)
        # Two names of one file: a rename between them changes nothing at all.
        tree.remove(path)
    if home and not tree.exists(new):
        _again_link(tree, ("link", home, new))


_REDO = {**_DO, "link": _again_link, "tail": _again_tail, "move": _again_move}


def _undo(tree: Tree, action: Action) -> None:
    match action:
        case ("create", path, *_):
            tree.remove(path)
        case ("link", _, new):
            tree.remove(new)
        case ("tail", path, offset, _, bytes() as old):
            _again_tail(tree, ("tail", path, offset, old, None))
        case ("write", path, _, None):
            tree.remove(path)
        case ("write", path, _, bytes() as old):
            tree.replace(path, old, cut=True)
        case ("folder", path):
            tree.remove_folder(path)
        case ("move", path, new, _):
            with contextlib.suppress(FileNotFoundError):
                tree.rename(new, path)
        case ("remove", path):
            # Removals come last, and what does not need to be there does not fail for want of space.
            raise OSError(5, "a file could not be removed", path)
