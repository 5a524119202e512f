"""Keeps waiting tasks apart from their book where there are too many for it, such as a million for next month.

A shelf is a message with tasks of one priority in order. It never changes: tasks are taken from its beginning, and how
many were is in the book; where one is taken out of its middle, a new shelf replaces it. Books stay small therefore,
and a claim reads a shelf only if the first task on it is due.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import merge

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.storage.validation import corrupt, log_once
from omniq.task import TaskState
from omniq_nats.book import Book
from omniq_nats.link import Conflict, Link, Write
from omniq_nats.records import encode_slots, read_slots
from omniq_nats.slots import Shelf, Slot, shelf_of

__all__ = ["Shelves"]

_log = get_logger("omniq.nats")

MOST_IN_BOOK = 64
KEPT_IN_BOOK = 16
LARGEST = 4000
"""Tasks on one shelf."""
MOST_SMALL = 12
"""So many small shelves of one priority there may be before they are made into large ones."""
REMEMBERED = 24


class Shelves:
    """The shelves of all queues, as one storage sees them.

    :param link: to read and write with.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._names = link.settings.names
        self._known: OrderedDict[str, list[Slot]] = OrderedDict()
        self._torn: set[str] = set()
        """The names of those that cannot be read: they stay as they are, and nothing is taken from them."""

    async def read(self, queue: str, shelf: Shelf) -> list[Slot]:
        """Give the tasks that are on a shelf; none if it cannot be read. They must not be changed."""
        return (await self._all(queue, shelf))[shelf.taken :]

    async def _all(self, queue: str, shelf: Shelf) -> list[Slot]:
        slots = self._known.get(shelf.name)
        if slots is None:
            stored = await self._link.last([self._names.shelf(queue, shelf.name)])
            if not stored:
                raise Conflict(f"shelf {shelf.name} of queue {queue!r} was replaced")
            try:
                slots = read_slots(stored[0])
                if len(slots) != shelf.count:
                    raise corrupt("waiting tasks", None, "there are not as many as the queue's record says")
            except CorruptRecord as problem:
                log_once(_log, problem, self._link.settings.shown)
                self._torn.add(shelf.name)
                return []
            self._remember(shelf.name, slots)
        return slots

    def _remember(self, name: str, slots: list[Slot]) -> None:
        self._known[name] = slots
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def draw(self, book: Book, priority: int, before: tuple[int, int]) -> None:
        """Move tasks from shelves into the book until whichever comes first in a priority is there.

        :param before: only such as come before this key.
        """
        while True:
            waiting = book.back.get(priority)
            limit = min(before, waiting[0].key) if waiting else before
            first = min(
                (shelf for shelf in self._whole(book) if shelf.priority == priority and shelf.key < limit),
                key=lambda shelf: shelf.key,
                default=None,
            )
            if first is None:
                return
            await self.take(book, first, 1)

    async def take(self, book: Book, shelf: Shelf, number: int) -> list[Slot]:
        """Move tasks from the beginning of a shelf into the book."""
        slots = await self._all(book.queue, shelf)
        if not slots:
            return []
        taken = [evolve(slot) for slot in slots[shelf.taken : shelf.taken + number]]
        for slot in taken:
            book.put_back(slot)
        shelf.taken += len(taken)
        if shelf.left:
            shelf.at, shelf.rank = slots[shelf.taken].key
        else:
            self._drop(book, shelf)
        return taken

    def _whole(self, book: Book) -> list[Shelf]:
        """Return the shelves that are not known to be unreadable."""
        return [shelf for shelf in book.shelves if shelf.name not in self._torn]

    def _drop(self, book: Book, shelf: Shelf) -> None:
        book.shelves.remove(shelf)
        book.spent.append(shelf.name)

    async def take_out(self, book: Book, wanted: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Move tasks into the book from wherever on the shelves they are.

        :param wanted: sequences of their homes and their numbers, and the keys of each.
        """
        for shelf in list(book.shelves):
            if any(shelf.key <= key and key[0] <= shelf.last_at for key in wanted.values()):
                await self.sift(book, shelf, lambda slot: (slot.seq, slot.index) in wanted)

    async def take_expired(self, book: Book, now: int, limit: int) -> None:
        """Move tasks that are no longer worth starting into the book."""
        for shelf in list(book.shelves):
            if limit > 0 and shelf.expires is not None and shelf.expires <= now:
                limit -= await self.sift(book, shelf, lambda slot: slot.is_expired(now), limit)

    async def sift(self, book: Book, shelf: Shelf, is_wanted: Callable[[Slot], bool], limit: int | None = None) -> int:
        """Move some of the tasks on a shelf into the book; say how many."""
        slots = await self.read(book.queue, shelf)
        found = [slot for slot in slots if is_wanted(slot)][:limit]
        if found:
            gone = {slot.id for slot in found}
            self._drop(book, shelf)
            await self._put(book, [slot for slot in slots if slot.id not in gone])
            for slot in found:
                book.put_back(evolve(slot))
        return len(found)

    async def lay_aside(self, book: Book, now: int) -> None:
        """Move the latest of a book's waiting tasks to shelves, if there are too many."""
        if len(book.waiting) > MOST_IN_BOOK:
            slots = sorted(book.waiting.values(), key=lambda slot: slot.key)[KEPT_IN_BOOK:]
            by_priority: defaultdict[int, list[Slot]] = defaultdict(list)
            for slot in slots:
                book.withdraw(slot)
                by_priority[slot.priority].append(slot)
                if (slot.delivery or slot.has_fate) and not slot.has_error:
                    # What it has been through must be known without looking through the shelves.
                    book.note(slot, book.fate_of(slot, TaskState.SCHEDULED, now))
            for some in by_priority.values():
                await self._put(book, some)
        await self._unite(book)

    async def _unite(self, book: Book) -> None:
        small: defaultdict[int, list[Shelf]] = defaultdict(list)
        for shelf in self._whole(book):
            if shelf.left < LARGEST // 2:
                small[shelf.priority].append(shelf)
        for shelves in small.values():
            if len(shelves) > MOST_SMALL:
                parts = [await self.read(book.queue, shelf) for shelf in shelves]
                for shelf, part in zip(shelves, parts, strict=True):
                    if part:
                        self._drop(book, shelf)
                await self._put(book, list(merge(*parts, key=lambda slot: slot.key)))

    async def _put(self, book: Book, slots: Sequence[Slot]) -> None:
        for start in range(0, len(slots), LARGEST):
            some = list(slots[start : start + LARGEST])
            name = secrets.token_hex(8)
            await self._link.store(Write(self._names.shelf(book.queue, name), encode_slots(some)))
            self._remember(name, some)
            book.shelves.append(shelf_of(name, some))
            book.laid.append(name)

    async def remove(self, queue: str, names: Iterable[str]) -> None:
        """Remove shelves."""
        for name in names:
            self._known.pop(name, None)
            await self._link.purge(self._names.shelf(queue, name))
