"""The few numbers that every process looks at first: how often the store has changed, and which of its parts."""

from __future__ import annotations

import os
import secrets
import struct
from zlib import crc32

from attrs import define

from omniq_local.files.journal import LARGEST, LAST_SEQUENCE, Numbers
from omniq_local.files.tree import Tree

__all__ = [
    "MARKS",
    "Superblock",
    "boot_id",
    "is_original",
    "parse_control",
    "read_control",
    "read_control_text",
    "renew_mark",
    "write_control",
]

_FORMAT = struct.Struct("<8sQQQQQQQQQ36s16s")
_CHECK = struct.Struct("<I")
_SIZE = _FORMAT.size + _CHECK.size
_MAGIC = b"omniqfs1"
MARKS = "marks"
"""The folder that holds a second name of the control file."""


@define
class Superblock:
    """The numbers, in the order in which they stand in the control file."""

    generation: int = 0
    """Counts the changes."""
    sequence: int = 0
    """Of the task enqueued last."""
    offset: int = 0
    """Where the next change is written in the journal."""
    durable: int = 0
    """1 if a process that uses the store flushes each change to the disk."""
    layout: int = 0
    """Changes when a sub-folder is made or removed within the folder of a state."""
    queues: int = 0
    """Changes when a queue comes or goes."""
    schedules: int = 0
    """Counts the changes of schedules, at least; no revision of any was ever larger."""
    flows: int = 0
    """Changes with when there is something to do about flows."""
    limits: int = 0
    """Counts the changes of what is kept of limits; no revision of any was ever larger. 0: nothing ever was."""
    boot: str = ""
    """Which start of the machine the store was used in."""
    mark: str = ""
    """The second name of the control file, see :func:`is_original`."""

    def take(self, numbers: Numbers) -> None:
        """Become those that a change has made of them."""
        self.generation, self.sequence, self.layout, self.queues, self.schedules, self.flows, self.limits = numbers


def read_control_text(fd: int) -> bytes:
    """Return what stands in the control file."""
    return os.pread(fd, _SIZE, 0)


def read_control(fd: int) -> Superblock | None:
    """Read the numbers; None if there are none that are whole."""
    return parse_control(read_control_text(fd))


def parse_control(data: bytes) -> Superblock | None:
    """Return the numbers in a text; None if it is not whole."""
    if len(data) < _FORMAT.size + _CHECK.size or _CHECK.unpack_from(data, _FORMAT.size)[0] != crc32(
        data[: _FORMAT.size]
    ):
        return None
    magic, *numbers, boot, mark = _FORMAT.unpack_from(data)
    names = (name.rstrip(b"\0").decode("ascii", "replace") for name in (boot, mark))
    control = Superblock(*numbers, *names)
    return None if magic != _MAGIC or control.sequence > LAST_SEQUENCE or max(numbers) > LARGEST else control


def write_control(fd: int, control: Superblock) -> bytes:
    """Write the numbers: in one piece, so that a process can die only before it or after it.

    :return: what was written.
    """
    data = _FORMAT.pack(
        _MAGIC,
        control.generation,
        control.sequence,
        control.offset,
        control.durable,
        control.layout,
        control.queues,
        control.schedules,
        control.flows,
        control.limits,
        control.boot.encode(),
        control.mark.encode(),
    )
    data += _CHECK.pack(crc32(data))
    os.pwrite(fd, data, 0)
    return data


def is_original(tree: Tree, control: Superblock) -> bool:
    """Tell whether the hard links of a store are those that it was left with.

    Tools that copy a folder make a file of each of its names, and one that copies into an existing store leaves files
    of both. The second name of the control file shows either: it is a file of its own in the first case, and one of two
    in the second, as it gets a new name whenever the store is opened.
    """
    return tree.names(MARKS) == [control.mark] and tree.is_same("control", f"{MARKS}/{control.mark}")


def renew_mark(tree: Tree) -> str:
    """Make a new second name of the control file instead of any other; return it."""
    for name in tree.names(MARKS):
        tree.remove(f"{MARKS}/{name}")
    mark = secrets.token_hex(8)
    tree.link("control", f"{MARKS}/{mark}")
    return mark


def boot_id() -> str:
    """Tell this start of the machine from others; empty where the system does not."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()[:36]
    except OSError:
        return ""
