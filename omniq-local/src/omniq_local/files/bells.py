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
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from omniq_local.wake import Bell

if TYPE_CHECKING:
    from omniq_local.files.change import Change

__all__ = ["FOR_END", "FOR_WORK", "VALID", "Bells"]

TOPICS = 12
"""Queues or tasks that one entry can name; who waits for more is woken by all."""
_SLOT = struct.Struct(f"<QIHHQ{TOPICS}Q")
_NOBODY = bytes(8)
SLOTS = 512
VALID = 8.0
"""Seconds after which an entry that was not written anew is void."""
FOR_WORK, FOR_END = 1, 2
_STRUCK = (0, 0, 0, 0, 1, *[0] * TOPICS)


@lru_cache(4096)
def _number(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


class _Waiter(NamedTuple):
    slot: int
    token: int
    port: int
    kind: int
    topics: frozenset[int] | None
    """None: all that there are."""

    def minds(self, topic: int) -> bool:
        return self.topics is None or topic in self.topics


class Bells:
    """The table of one namespace.

    :param base: the namespace's folder.
    """

    def __init__(self, base: str) -> None:
        self._path = f"{base}/waiters"
        self._map: mmap.mmap | None = None
        self.bell = Bell()

    def open(self) -> None:
        """Open the table that is there now."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(fd).st_size < SLOTS * _SLOT.size:
                os.ftruncate(fd, SLOTS * _SLOT.size)
            old, self._map = self._map, mmap.mmap(fd, SLOTS * _SLOT.size)
            if old is not None:
                old.close()
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the table."""
        if self._map is not None:
            self._map.close()
            self._map = None
        self.bell.close()

    def write(self, token: int, port: int, kind: int, names: Sequence[str]) -> None:
        """Write a waiter down, or anew, under the store's lock.

        :param names: of the queues, or ids of the tasks, that he waits for.
        """
        table = self._map
        assert table is not None
        now = int(time.time())
        free = None
        for slot, (other, _, _, _, until, *_) in enumerate(_SLOT.iter_unpack(table)):
            if other == token:
                free = slot
                break
            if free is None and (other == 0 or until < now):
                free = slot
            if other == 0 and until == 0:
                break
        # With no room left he looks now and then, as if a datagram had been lost.
        if free is not None:
            topics = [_number(name) for name in names[:TOPICS]]
            topics += [0] * (TOPICS - len(topics))
            entry = token, port, kind, min(len(names), TOPICS + 1), now + int(VALID), *topics
            _SLOT.pack_into(table, free * _SLOT.size, *entry)

    def strike(self, token: int) -> None:
        """Strike a waiter, under the store's lock."""
        table = self._map
        if table is None:
            return
        for slot, (other, _, _, _, until, *_) in enumerate(_SLOT.iter_unpack(table)):
            if other == token:
                _SLOT.pack_into(table, slot * _SLOT.size, *_STRUCK)
                return
            if other == 0 and until == 0:
                return

    def _waiters(self, table: mmap.mmap) -> list[_Waiter]:
        now = int(time.time())
        waiters = []
        for slot, (token, port, kind, number, until, *topics) in enumerate(_SLOT.iter_unpack(table)):
            if token and until >= now:
                known = frozenset(topics[:number]) if number <= TOPICS else None
                waiters.append(_Waiter(slot, token, port, kind, known))
            elif token == 0 and until == 0:
                break
        random.shuffle(waiters)
        return waiters

    def heard_by(self, change: Change) -> list[tuple[int, int]]:
        """Give whom a change concerns, token and port, and strike them; under the store's lock."""
        table = self._map
        if table is None or (table[:8] == _NOBODY and table[16:24] == _NOBODY):
            return []
        waiters = self._waiters(table)
        called: dict[int, _Waiter] = {}
        for queue, number in change.ready.items():
            topic = _number(queue)
            of_it = [each for each in waiters if each.kind == FOR_WORK and each.minds(topic)]
            # No more than there are tasks: not all of those who are idle for one.
            called.update({each.slot: each for each in of_it[: max(number, 0)]})
        for queue in change.woken:
            topic = _number(queue)
            called.update({each.slot: each for each in waiters if each.kind == FOR_WORK and each.minds(topic)})
        if change.schedules_changed:
            called.update({each.slot: each for each in waiters if each.kind == FOR_WORK})
        if change.ended:
            ended = {_number(task_id) for task_id in change.ended}
            called.update(
                {
                    each.slot: each
                    for each in waiters
                    if each.kind == FOR_END and (each.topics is None or not ended.isdisjoint(each.topics))
                }
            )
        for slot in called:
            _SLOT.pack_into(table, slot * _SLOT.size, *_STRUCK)
        return [(each.token, each.port) for each in called.values()]

    def ring(self, pokes: list[tuple[int, int]]) -> None:
        """Wake waiters."""
        if pokes:
            self.bell.ring(pokes)
