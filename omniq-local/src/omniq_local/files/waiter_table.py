"""Who waits for the store to change: a small table in a file, shared by all processes, and how they are woken.

A waiter registers here, under the store's lock, after it found nothing. Each change of the store reads the
table under the same lock, strikes those that the change concerns, and wakes them with a datagram. An entry is a hint,
no more: one that is struck in vain or left behind by a process that died costs a late or a needless look.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from omniq_local.files.tree import Tree
from omniq_local.wake import Bell

if TYPE_CHECKING:
    from omniq_local.files.transaction import Transaction

__all__ = ["FOR_END", "FOR_WORK", "VALID", "WaiterTable"]

TOPICS = 12
"""Queues or tasks that one entry can name; who waits for more is woken by all."""
_SLOT = struct.Struct(f"<QIHHQ{TOPICS}Q")
SLOTS = 512
_AT_A_TIME = 16
"""Entries that are read at once: mostly, all that there are."""
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


class WaiterTable:
    """The table of one namespace.

    It is read and written, not mapped: to cut off a file that is mapped kills the processes that look at it.

    :param tree: the namespace's files.
    """

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._fd = -1
        self.bell = Bell()

    def open(self) -> None:
        """Open the table that is there now."""
        fd = self._tree.open_own("waiters")
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def close(self) -> None:
        """Close the table."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.bell.close()

    def _entries(self) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Return the slots that were ever used, each with what is in it."""
        if self._fd < 0:
            return
        for first in range(0, SLOTS, _AT_A_TIME):
            part = os.pread(self._fd, _AT_A_TIME * _SLOT.size, first * _SLOT.size)
            for number in range(len(part) // _SLOT.size):
                entry = _SLOT.unpack_from(part, number * _SLOT.size)
                if entry[0] == 0 and entry[4] == 0:
                    return
                yield first + number, entry
            if len(part) < _AT_A_TIME * _SLOT.size:
                return

    def _put(self, slot: int, entry: tuple[int, ...]) -> None:
        os.pwrite(self._fd, _SLOT.pack(*entry), slot * _SLOT.size)

    def write(self, token: int, port: int, kind: int, names: Sequence[str]) -> None:
        """Write a waiter down, or anew, under the store's lock.

        :param names: of the queues, or ids of the tasks, that it waits for.
        """
        now = int(time.time())
        free, used = None, 0
        for slot, (other, _, _, _, until, *_) in self._entries():
            used = slot + 1
            if other == token:
                free = slot
                break
            if free is None and (other == 0 or until < now):
                free = slot
        if free is None and used < SLOTS:
            free = used
        # With no room left the waiter looks now and then, as if a datagram had been lost.
        if free is not None:
            topics = [_number(name) for name in names[:TOPICS]]
            topics += [0] * (TOPICS - len(topics))
            self._put(free, (token, port, kind, min(len(names), TOPICS + 1), now + int(VALID), *topics))

    def strike(self, token: int) -> None:
        """Strike a waiter, under the store's lock."""
        for slot, (other, *_) in self._entries():
            if other == token:
                self._put(slot, _STRUCK)
                return

    def _waiters(self) -> list[_Waiter]:
        now = int(time.time())
        waiters = []
        for slot, (token, port, kind, number, until, *topics) in self._entries():
            if token and until >= now:
                known = frozenset(topics[:number]) if number <= TOPICS else None
                waiters.append(_Waiter(slot, token, port, kind, known))
        random.shuffle(waiters)
        return waiters

    def heard_by(self, transaction: Transaction) -> list[tuple[int, int]]:
        """Return whom a change concerns, token and port, and strike them; under the store's lock."""
        waiters = self._waiters()
        if not waiters:
            return []
        called: dict[int, _Waiter] = {}
        for queue, number in transaction.ready.items():
            topic = _number(queue)
            of_it = [each for each in waiters if each.kind == FOR_WORK and each.minds(topic)]
            # No more than there are tasks: not all of those who are idle for one.
            called.update({each.slot: each for each in of_it[: max(number, 0)]})
        for queue in transaction.woken:
            topic = _number(queue)
            called.update({each.slot: each for each in waiters if each.kind == FOR_WORK and each.minds(topic)})
        if transaction.schedules_changed or transaction.follows:
            called.update({each.slot: each for each in waiters if each.kind == FOR_WORK})
        if transaction.ended:
            ended = {_number(task_id) for task_id in transaction.ended}
            called.update(
                {
                    each.slot: each
                    for each in waiters
                    if each.kind == FOR_END and (each.topics is None or not ended.isdisjoint(each.topics))
                }
            )
        for slot in called:
            self._put(slot, _STRUCK)
        return [(each.token, each.port) for each in called.values()]

    def ring(self, pokes: list[tuple[int, int]]) -> None:
        """Wake waiters."""
        if pokes:
            self.bell.ring(pokes)
