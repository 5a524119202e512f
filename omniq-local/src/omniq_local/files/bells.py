"""Who waits for the store to change: a small table, shared by all processes through memory, and how they are woken.

Whoever waits writes himself down, under the store's lock, after he found nothing. Whoever changes the store reads the
table under the same lock, strikes those that the change concerns, and wakes them with a datagram. An entry is a hint,
no more: one that is struck in vain or left behind by a process that died costs a late or a needless look.
"""

from __future__ import annotations

import mmap
import os
import random
import struct
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from zlib import crc32

from omniq_local.sqlite.wake import Bell

if TYPE_CHECKING:
    from omniq_local.files.change import Change

__all__ = ["Bells", "mask_of"]

_SLOT = struct.Struct("<QIIQQ")
_NOBODY = bytes(8)
SLOTS = 512
VALID = 8.0
"""Seconds after which an entry that was not written anew is void."""
FOR_WORK, FOR_END = 1, 2


def mask_of(names: Iterable[str]) -> int:
    """Give the set of some names as bits; several names may share one."""
    mask = 0
    for name in names:
        mask |= 1 << (crc32(name.encode(errors="surrogatepass")) & 63)
    return mask


class Bells:
    """The table of one namespace.

    :param base: the namespace's folder.
    """

    def __init__(self, base: str) -> None:
        self._path = f"{base}/waiters"
        self._map: mmap.mmap | None = None
        self.bell = Bell()

    def open(self) -> None:
        """Open the table."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(fd).st_size < SLOTS * _SLOT.size:
                os.ftruncate(fd, SLOTS * _SLOT.size)
            self._map = mmap.mmap(fd, SLOTS * _SLOT.size)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the table."""
        if self._map is not None:
            self._map.close()
            self._map = None
        self.bell.close()

    def write(self, token: int, port: int, kind: int, mask: int) -> None:
        """Write a waiter down, or anew, under the store's lock."""
        table = self._map
        assert table is not None
        now = int(time.time())
        free = None
        for slot, (other, _, _, _, until) in enumerate(_SLOT.iter_unpack(table)):
            if other == token:
                free = slot
                break
            if free is None and (other == 0 or until < now):
                free = slot
            if other == 0 and until == 0:
                break
        # With no room left he looks now and then, as if a datagram had been lost.
        if free is not None:
            _SLOT.pack_into(table, free * _SLOT.size, token, port, kind, mask, now + int(VALID))

    def strike(self, token: int) -> None:
        """Strike a waiter, under the store's lock."""
        table = self._map
        if table is None:
            return
        for slot, (other, _, _, _, until) in enumerate(_SLOT.iter_unpack(table)):
            if other == token:
                _SLOT.pack_into(table, slot * _SLOT.size, 0, 0, 0, 0, 1)
                return
            if other == 0 and until == 0:
                return

    def heard_by(self, change: Change) -> list[tuple[int, int]]:
        """Give whom a change concerns, token and port, and strike them; under the store's lock."""
        table = self._map
        if table is None or (table[:8] == _NOBODY and table[24:32] == _NOBODY):
            return []
        now = int(time.time())
        waiting: list[tuple[int, int, int, int, int]] = []
        for slot, (token, port, kind, mask, until) in enumerate(_SLOT.iter_unpack(table)):
            if token and until >= now:
                waiting.append((slot, token, port, kind, mask))
            elif token == 0 and until == 0:
                break
        if not waiting:
            return []
        random.shuffle(waiting)
        called: dict[int, tuple[int, int]] = {}
        for queue, number in change.ready.items():
            bit = mask_of([queue])
            # No more than there are tasks: not all of those who are idle for one.
            of_it = [each for each in waiting if each[3] == FOR_WORK and each[4] & bit and each[0] not in called]
            for slot, token, port, _, _ in of_it[:number]:
                called[slot] = token, port
        woken, ended = mask_of(change.woken), mask_of(change.ended)
        schedules = change.schedules_changed
        for slot, token, port, kind, mask in waiting:
            if kind == FOR_END:
                concerned = bool(mask & ended)
            else:
                concerned = bool(mask & woken) or schedules
                schedules = schedules and not concerned
            if concerned:
                called[slot] = token, port
        for slot in called:
            _SLOT.pack_into(table, slot * _SLOT.size, 0, 0, 0, 0, 1)
        return list(called.values())

    def ring(self, pokes: list[tuple[int, int]]) -> None:
        """Wake waiters."""
        if pokes:
            self.bell.ring(pokes)
