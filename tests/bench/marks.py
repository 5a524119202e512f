"""When each task began: one slot a task, in a file that every process of a measurement maps."""

from __future__ import annotations

import mmap
import time
from pathlib import Path
from typing import Self

__all__ = ["Marks", "clock"]

clock = time.monotonic_ns
"""Nanoseconds on a clock that all processes of a machine share (so it is on Linux and macOS)."""


class Marks:
    """The start of each task of a measurement, by the task's number.

    :param file: as :meth:`create` made it.
    """

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), 0)
        self._slots = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls, file: Path, slots: int) -> Self:
        file.write_bytes(bytes(8 * slots))
        return cls(file)

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, number: int) -> int:
        """When the task of that number began, in nanoseconds of :data:`clock`; 0: not yet."""
        return self._slots[number]

    def began(self, number: int) -> None:
        """Note that the task of that number begins now: the first line of every task that is measured."""
        self._slots[number] = clock()
