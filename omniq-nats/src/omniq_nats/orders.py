"""Finds tasks as they were enqueued: by id, by home, and along the lines in which they wait to be claimed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

from omniq.errors import CorruptRecord
from omniq.storage.validation import corrupt
from omniq_nats.book import Book
from omniq_nats.homes import Home, read_guard, read_home
from omniq_nats.link import Link, Stored
from omniq_nats.names import readable
from omniq_nats.slots import Slot

__all__ = ["Orders", "Place", "Torn"]

MOST_BYTES = 32 * 1024 * 1024
REMEMBERED = 2000
"""Tasks of which it is known where they are."""
AHEAD = 4
"""So many times as many tasks as are wanted are read of a line: the next claims will want them."""
FAR_BEHIND = 500
"""Messages: so far the place in an empty line may lie behind the end of the stream."""

Place = tuple[Home, int]
"""A home, and the number of a task in it."""


@frozen
class Torn:
    """A task that is there and cannot be read."""

    problem: CorruptRecord
    queue: str
    seqs: list[int]
    """The messages by which it is there."""


@define(eq=False)
class _Part:
    """A part of a line without gaps: every home from one sequence up to another."""

    start: int = 0
    end: int = 0
    homes: list[Home] = field(factory=list)

    def trim(self, seq: int, taken: int) -> None:
        """Begin at a place; anew, if that lies before what is known."""
        if not self.start <= seq <= self.end:
            self.homes.clear()
            self.start = self.end = seq
        self.start = seq
        while self.homes and (self.homes[0].seq < seq or (self.homes[0].seq == seq and len(self.homes[0]) <= taken)):
            del self.homes[0]


class Orders:
    """Reads homes, and remembers some: they never change, and none has the sequence of another.

    :param link: to read with.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._names = link.settings.names
        self._homes: OrderedDict[int, Home] = OrderedDict()
        self._bytes = 0
        self._ahead: defaultdict[tuple[str, str], _Part] = defaultdict(_Part)
        self._places: OrderedDict[str, Place | Stored] = OrderedDict()
        self._generation = link.generation

    def _forget_lost(self) -> None:
        """Forget all that was read through an earlier connection: servers may have lost what was not on their disks."""
        if self._generation != self._link.generation:
            self._generation = self._link.generation
            self._homes.clear()
            self._bytes = 0
            self._ahead.clear()
            self._places.clear()

    def read(self, stored: Stored) -> Home:
        """Read a home, or give it as it is remembered."""
        self._forget_lost()
        home = self._homes.get(stored.seq)
        if home is None:
            home = self._homes[stored.seq] = read_home(stored)
            self._bytes += len(stored.data)
            while self._bytes > MOST_BYTES and len(self._homes) > 1:
                _, oldest = self._homes.popitem(last=False)
                self._bytes -= len(oldest.blobs) + 100 * len(oldest)
        return home

    async def of_slots(self, queue: str, slots: Iterable[Slot]) -> dict[int, Home]:
        """Give the homes of slots by their sequence; those that are gone are left out."""
        self._forget_lost()
        found: dict[int, Home] = {}
        missing: dict[str, int] = {}
        for slot in slots:
            home = self._homes.get(slot.seq)
            if home is not None:
                found[slot.seq] = home
            else:
                missing[self._names.home(queue, slot.home)] = slot.seq
        if missing:
            for stored in await self._link.last(list(missing)):
                if stored.seq == missing[stored.subject]:
                    found[stored.seq] = self.read(stored)
        return found

    async def locate(self, ids: Sequence[str]) -> dict[str, Place]:
        """Find tasks by id, as they are stored now; those that are not there, or cannot be read, are left out."""
        return (await self.find(ids))[0]

    async def find(self, ids: Sequence[str]) -> tuple[dict[str, Place], dict[str, Torn]]:
        """Find tasks by id, as they are stored now: those that can be read, and the others that are there."""
        found: dict[str, Place] = {}
        torn: dict[str, Torn] = {}
        guards: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for stored in await self._link.last([self._names.anywhere(task_id) for task_id in dict.fromkeys(ids)]):
            if stored.subject.startswith(f"{self._names.root}.o.t."):
                home = self.read(stored)
                if home.problem is not None and home.problem.name is not None:
                    torn[home.problem.name] = Torn(home.problem, home.queue, [stored.seq])
                elif home.rows and not home.is_shared:
                    found[home.rows[0][0]] = home, 0
            elif stored.subject.startswith(f"{self._names.root}.o.i."):
                try:
                    task_id, queue, name, index = read_guard(stored)
                    guards[self._names.home(queue, name)].append((task_id, stored.seq - 1 - index, index))
                except CorruptRecord as error:
                    queue = readable(stored.subject.rsplit(".", 4)[1])
                    torn[error.name or ""] = Torn(error, queue, [stored.seq])
        unread = []
        for subject, several in guards.items():
            if several[0][1] not in self._homes:
                unread.append(subject)
        for stored in await self._link.last(unread) if unread else ():
            self.read(stored)
        for several in guards.values():
            for task_id, seq, index in several:
                guarded = self._homes.get(seq)
                if guarded is None:
                    continue
                wrong = guarded.problem
                if wrong is None and not (0 <= index < len(guarded) and guarded.rows[index][0] == task_id):
                    wrong = corrupt("task", task_id, "another is where it should be", place=f"message {seq}")
                if wrong is None:
                    found[task_id] = guarded, index
                else:
                    problem = corrupt("task", task_id, wrong, place=f"message {seq}")
                    torn[task_id] = Torn(problem, guarded.queue, [seq + 1 + index])
        for task_id, place in found.items():
            self.remember(task_id, place)
        return found, torn

    async def torn_in(self, home: Home) -> list[str]:
        """Return the ids of the tasks of a home that cannot be read."""
        if home.problem is None or not home.is_shared:
            return [] if home.problem is None or home.problem.name is None else [home.problem.name]
        ids = []
        for stored in (await self._link.scan(self._names.guards(home.queue, home.line), home.seq + 1))[0]:
            with contextlib.suppress(CorruptRecord):
                task_id, _, name, index = read_guard(stored)
                if name == home.name and stored.seq - 1 - index == home.seq:
                    ids.append(task_id)
        return ids

    async def misnamed(self, places: Sequence[Place]) -> set[tuple[int, int]]:
        """Return which of some places have a task that is called otherwise by what says where it is."""
        signs = {self.sign_of(home.rows[index][0], (home, index)): (home.seq, index) for home, index in places}
        there = {(stored.subject, stored.seq) for stored in await self._link.last([sign for sign, _ in signs])}
        return {place for sign, place in signs.items() if sign not in there}

    # Where tasks were last seen

    def remember(self, task_id: str, place: Place | Stored) -> None:
        """Remember where a task is: its place, or the message that holds it alone."""
        self._places[task_id] = place
        if len(self._places) > REMEMBERED:
            self._places.popitem(last=False)

    def remembered(self, task_id: str) -> Place | None:
        """Give the place at which a task was last seen. It may not be there any more."""
        self._forget_lost()
        place = self._places.get(task_id)
        if isinstance(place, Stored):
            place = self._places[task_id] = self.read(place), 0
        return place

    def sign_of(self, task_id: str, place: Place) -> tuple[str, int]:
        """Give subject and sequence of the message that is there as long as a task is at a place."""
        home, index = place
        if home.is_shared:
            return self._names.guard(home.queue, home.line, task_id), home.seq + 1 + index
        return self._names.home(home.queue, home.name), home.seq

    # Lines

    def know_all(self, book: Book) -> bool:
        """Say whether it is known without a question what every line of a queue holds, up to the stream's end.

        It is the end as far as this connection has heard of it: only servers that are told of it can say whether it is.
        """
        self._forget_lost()
        for line, place in book.lines.items():
            part = self._ahead[book.queue, line]
            part.trim(place[0], place[1])
            subject = self._names.line(book.queue, line)[: -len("*.*")]
            for stored in self._link.noted(part.end):
                if stored is not None and stored.subject.startswith(subject):
                    part.homes.append(self.read(stored))
                part.end += 1
            if part.end <= self._link.last_seen:
                return False
        return True

    async def confirm(self, book: Book) -> None:
        """Make sure that :meth:`know_all` holds from here on, if nothing is heard of in which it does not."""
        seen = self._link.last_seen
        self.know_all(book)
        lines = [line for line in book.lines if self._ahead[book.queue, line].end <= seen]
        await asyncio.gather(*(self._confirm(book.queue, line, seen) for line in lines))

    async def _confirm(self, queue: str, line: str, seen: int) -> None:
        part = self._ahead[queue, line]
        start = part.end
        # Only the leader knows for certain; a replica may not have come to it yet.
        if start <= seen and not await self._link.leader_has(self._names.line(queue, line), start, seen):
            part.end = max(part.end, seen + 1) if part.end >= start else part.end

    async def ahead(
        self, book: Book, line: str, after: Home | None, wanted: int, *, known: bool = False
    ) -> Home | None:
        """Give the next home of a line that claims have not come to the end of.

        :param book: says how far they have come.
        :param after: the home before it; None: the first.
        :param wanted: about how many tasks are looked for.
        :param known: whether to give only what is known without a question.
        """
        self._forget_lost()
        part = self._ahead[book.queue, line]
        place = book.lines[line]
        part.trim(place[0], place[1])
        for home in part.homes:
            if after is None or home.seq > after.seq:
                return home
        if known:
            return None
        seen = self._link.last_seen
        # A claim that has to ask holds up the ends of tasks, which are written in the same step: it rather asks rarely.
        count = max(4, min(256, AHEAD * wanted))
        stored, _ = await self._link.scan(self._names.line(book.queue, line), part.end, count, max_bytes=1024 * 1024)
        homes = [self.read(one) for one in stored]
        if homes:
            part.homes += homes
            part.end = homes[-1].seq + 1
            return homes[0]
        if after is None and seen - place[0] > FAR_BEHIND:
            await self._skip(book, line, seen)
        return None

    async def look_into(self, book: Book, lines: Sequence[str], wanted: int) -> set[str]:
        """Look ahead in several lines at once; give those in which there is nothing."""
        if len(lines) < 2:
            return set()
        self._link.together()
        found = await asyncio.gather(*(self.ahead(book, line, None, wanted) for line in lines))
        return {line for line, home in zip(lines, found, strict=True) if home is None}

    async def _skip(self, book: Book, line: str, seen: int) -> None:
        """Spare the next look the way over what is not of this line; only the leader knows for certain that it is."""
        subject = self._names.line(book.queue, line)
        # What another connection saw before it was lost does not count.
        seen = min(seen, self._link.last_seen)
        if not await self._link.leader_has(subject, book.lines[line][0], seen):
            book.skip_to(line, seen + 1)
