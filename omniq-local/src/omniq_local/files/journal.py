"""How a change of many files is one step: it is written down whole before the first file is touched.

A change is a list of actions that say how things shall be, so that doing them again does no harm. Whoever finds the
journal one change ahead of the store (the process that wrote it died in the middle) does its actions again and thereby
completes it; a change that is not whole in the journal touched nothing. Where an action fails (the disk is full), those
before it are undone and the change is struck from the journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from zlib import crc32

from attrs import frozen

__all__ = ["Action", "Frame", "Journal", "apply", "pass_by", "redo"]

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

_HEADER = struct.Struct("<4sIQQQQQI")
_MAGIC = b"oqj1"
LAP = 2 * 2**20
"""Bytes after which the journal is written from its beginning again."""

probe: Callable[[str], None] | None = None
"""Called before each step of a change, so that tests can have the process die there."""


def pass_by(step: str) -> None:
    """Come to a step of a change."""
    if probe is not None:
        probe(step)


@frozen(kw_only=True)
class Frame:
    """One change as it stands in the journal."""

    generation: int
    """Of the store after it."""
    sequence: int
    layout: int
    queues: int
    schedules: int
    actions: Sequence[Action]
    size: int
    """Bytes that it takes in the journal."""


class Journal:
    """The file that changes are written down in.

    :param path: the file.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def write(self, offset: int, numbers: tuple[int, int, int, int, int], actions: Sequence[Action]) -> int:
        """Write a change down; tell how many bytes it takes.

        :param numbers: generation, sequence, layout, queues and schedules after it.
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
        os.fdatasync(self._fd)

    def empty(self) -> None:
        """Forget all changes."""
        os.ftruncate(self._fd, 0)

    def trim(self) -> None:
        """Give back what an uncommonly large change took."""
        if os.fstat(self._fd).st_size > 2 * LAP:
            os.ftruncate(self._fd, LAP)

    def ahead(self, offset: int, generation: int) -> bool:
        """Tell, at little cost, whether a change beyond a generation seems to stand at a position."""
        header = os.pread(self._fd, _HEADER.size, offset)
        return len(header) == _HEADER.size and header[:4] == _MAGIC and _HEADER.unpack(header)[2] == generation + 1

    def read(self, offset: int) -> Frame | None:
        """Give the change at a position; None if none is there that is whole."""
        header = os.pread(self._fd, _HEADER.size, offset)
        if len(header) < _HEADER.size:
            return None
        magic, checksum, generation, sequence, layout, queues, schedules, size = _HEADER.unpack(header)
        if magic != _MAGIC:
            return None
        body = os.pread(self._fd, size, offset + _HEADER.size)
        if len(body) != size or crc32(body) != checksum:
            return None
        return Frame(
            generation=generation,
            sequence=sequence,
            layout=layout,
            queues=queues,
            schedules=schedules,
            actions=list(_actions(body)),
            size=_HEADER.size + size,
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _actions(body: bytes) -> Iterator[Action]:
    text, _, _ = body.partition(b"\n")
    position = len(text) + 1
    for kind, *rest in json.loads(text):
        if kind in ("tail", "create", "write"):
            *plain, size = rest
            yield kind, *plain, body[position : position + size], None
            position += size
        else:
            yield kind, *rest


# Doing


def apply(base: str, actions: Sequence[Action]) -> None:
    """Do the actions of a change for the first time; if one fails, undo those before it.

    :raises OSError: if one cannot be done. Then either all are undone, or the error has a note that says otherwise.
    """
    done = 0
    try:
        for action in actions:
            pass_by(action[0])
            _DO[action[0]](base, action)
            done += 1
    except BaseException as error:
        try:
            for action in reversed(actions[: done + 1]):
                _undo(base, action)
        except OSError as second:
            raise NotUndone(second.errno, second.strerror, second.filename) from error
        raise


class NotUndone(OSError):
    """An action failed, and those before it could not be undone: whoever comes next completes the change."""


def redo(base: str, actions: Sequence[Action]) -> None:
    """Do the actions of a change, some or all of which may have been done already."""
    for action in actions:
        _REDO[action[0]](base, action)


def _create(base: str, action: Action) -> None:
    path = f"{base}/{action[1]}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(fd, action[2], 0)
    finally:
        os.close(fd)


def _write_all(fd: int, content: bytes, offset: int) -> None:
    written = os.pwrite(fd, content, offset)
    while written < len(content):
        written += os.pwrite(fd, content[written:], offset + written)


def _link(base: str, action: Action) -> None:
    path, new = f"{base}/{action[1]}", f"{base}/{action[2]}"
    try:
        os.link(path, new)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(new), exist_ok=True)
        os.link(path, new)
    except FileExistsError:
        os.unlink(new)
        os.link(path, new)


def _tail(base: str, action: Action) -> None:
    _, path, offset, content, old = action
    fd = os.open(f"{base}/{path}", os.O_WRONLY)
    try:
        _write_all(fd, content, offset)
        if old is None or len(old) > len(content):
            os.ftruncate(fd, offset + len(content))
    finally:
        os.close(fd)


def _write(base: str, action: Action) -> None:
    path, content = f"{base}/{action[1]}", action[2]
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        _write_all(fd, content, 0)
        if len(action) < 4 or action[3] is None or len(action[3]) > len(content):
            os.ftruncate(fd, len(content))
    finally:
        os.close(fd)


def _folder(base: str, action: Action) -> None:
    os.makedirs(f"{base}/{action[1]}", exist_ok=True)


def _move(base: str, action: Action) -> None:
    _, path, new, home = action
    try:
        os.rename(f"{base}/{path}", f"{base}/{new}")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(f"{base}/{new}"), exist_ok=True)
        try:
            os.rename(f"{base}/{path}", f"{base}/{new}")
        except FileNotFoundError:
            # Somebody removed that name by hand.
            if home:
                _link(base, ("link", home, new))


def _remove(base: str, action: Action) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{base}/{action[1]}")


def _clear(base: str, action: Action) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(f"{base}/{action[1]}")


_DO: dict[str, Callable[[str, Action], None]] = {
    "create": _create,
    "link": _link,
    "tail": _tail,
    "write": _write,
    "folder": _folder,
    "move": _move,
    "remove": _remove,
    "clear": _clear,
}


def _again_link(base: str, action: Action) -> None:
    with contextlib.suppress(FileNotFoundError):
        _link(base, action)


def _again_tail(base: str, action: Action) -> None:
    with contextlib.suppress(FileNotFoundError):
        _tail(base, action)


def _again_move(base: str, action: Action) -> None:
    _, path, new, home = action
    os.makedirs(os.path.dirname(f"{base}/{new}"), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{base}/{path}", f"{base}/{new}")
        # Two names of one file: a rename between them changes nothing at all.
        os.unlink(f"{base}/{path}")
    if home and not os.path.lexists(f"{base}/{new}"):
        _again_link(base, ("link", home, new))


_REDO = {**_DO, "link": _again_link, "tail": _again_tail, "move": _again_move}


def _undo(base: str, action: Action) -> None:
    match action:
        case ("create", path, *_):
            _remove(base, ("remove", path))
        case ("link", _, new):
            _remove(base, ("remove", new))
        case ("tail", path, offset, _, bytes() as old):
            _again_tail(base, ("tail", path, offset, old, None))
        case ("write", path, _, None):
            _remove(base, ("remove", path))
        case ("write", path, _, bytes() as old):
            _write(base, ("write", path, old))
        case ("folder", path):
            _clear(base, ("clear", path))
        case ("move", path, new, _):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{base}/{new}", f"{base}/{path}")
        case ("remove", path):
            # Removals come last, and what does not need to be there does not fail for want of space.
            raise OSError(5, "a file could not be removed", path)
