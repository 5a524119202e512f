"""The few numbers that every process looks at first: how often the store has changed, and which of its parts."""

from __future__ import annotations

import os
import struct
from zlib import crc32

from attrs import define

__all__ = ["Control", "boot_id", "read_control", "write_control"]

_FORMAT = struct.Struct("<8sQQQQQQQ36s")
_CHECK = struct.Struct("<I")
_MAGIC = b"omniqfs1"


@define
class Control:
    """The numbers."""

    generation: int = 0
    """Counts the changes."""
    sequence: int = 0
    """Of the task enqueued last."""
    offset: int = 0
    """Where the next change is written in the journal."""
    durable: int = 0
    """1 if somebody uses the store who has each change flushed to the disk."""
    layout: int = 0
    """Changes when a sub-folder is made or removed within the folder of a state."""
    queues: int = 0
    """Changes when a queue comes or goes."""
    schedules: int = 0
    """Changes when a schedule does."""
    boot: str = ""
    """Which start of the machine the store was used in."""


def read_control(fd: int) -> Control | None:
    """Read the numbers; None if there are none that are whole."""
    data = os.pread(fd, _FORMAT.size + _CHECK.size, 0)
    if len(data) < _FORMAT.size + _CHECK.size or _CHECK.unpack_from(data, _FORMAT.size)[0] != crc32(
        data[: _FORMAT.size]
    ):
        return None
    magic, generation, sequence, offset, durable, layout, queues, schedules, boot = _FORMAT.unpack_from(data)
    if magic != _MAGIC:
        return None
    return Control(
        generation=generation,
        sequence=sequence,
        offset=offset,
        durable=durable,
        layout=layout,
        queues=queues,
        schedules=schedules,
        boot=boot.rstrip(b"\0").decode("ascii", "replace"),
    )


def write_control(fd: int, control: Control) -> None:
    """Write the numbers: in one piece, so that a process can die only before it or after it."""
    data = _FORMAT.pack(
        _MAGIC,
        control.generation,
        control.sequence,
        control.offset,
        control.durable,
        control.layout,
        control.queues,
        control.schedules,
        control.boot.encode(),
    )
    os.pwrite(fd, data + _CHECK.pack(crc32(data)), 0)


def boot_id() -> str:
    """Tell this start of the machine from others; empty where the system does not."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()[:36]
    except OSError:
        return ""
