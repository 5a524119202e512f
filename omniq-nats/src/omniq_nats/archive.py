"""Reads books, and keeps the pages of results: puts fates on them, finds them there, takes away what was removed."""

from __future__ import annotations

import asyncio
import json
import random
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.storage.validation import UNREADABLE, check_text, corrupt, log_once
from omniq_nats.book import Book
from omniq_nats.fates import Fate, ResultPage, new_page, number_on_page, page_to_write, read_page, torn_fate
from omniq_nats.homes import Home
from omniq_nats.lines import Pending
from omniq_nats.link import Conflict, Link, Lost, Stored, Write
from omniq_nats.names import SHARED, readable, split_home
from omniq_nats.records import read_book
from omniq_nats.slots import Doomed
from omniq_nats.times import Clock

__all__ = ["Archive", "holder_of"]

_log = get_logger("omniq.nats")

MOST_PAGES = 512


class Archive:
    """What is stored of a namespace apart from orders and shelves.

    :param link: open while the storage is.
    :param clock: of the servers.
    """

    def __init__(self, link: Link, clock: Clock) -> None:
        self.link = link
        self.clock = clock
        self.names = link.settings.names
        self._pages: OrderedDict[str, ResultPage] = OrderedDict()
        self._page_turns: dict[str, asyncio.Lock] = {}
        self._brought: dict[str, int] = {}
        """Of each task whose fate is on its page: the fate's version."""
        self._buried: set[tuple[int, int]] = set()

    # Reading

    async def read(self, queues: Sequence[str], *, whole: bool = True) -> dict[str, Book]:
        """Give the books of some queues as they are now; an empty one where there is none. Not to be changed.

        :param whole: whether all of them is looked into at once, so that what cannot be read is known to be so.
        """
        names = self.names
        found = {stored.subject: stored for stored in await self.link.last([names.book(queue) for queue in queues])}
        books = {}
        self.link.last_seen = max([self.link.last_seen, *(stored.seq for stored in found.values())])
        for queue in queues:
            stored = found.get(names.book(queue))
            books[queue] = Book(queue) if stored is None else self.book_of(queue, stored, whole=whole)
        return books

    def book_of(self, queue: str, stored: Stored, *, whole: bool = True) -> Book:
        """Read a book; of one that cannot be read it is said why, and nothing else."""
        try:
            book = read_book(queue, stored)
            if whole:
                book.check()
        except CorruptRecord as problem:
            log_once(_log, problem, self.link.settings.shown)
            return Book(queue, stored.seq, problem=problem)
        return book

    async def read_all(self) -> dict[str, Book]:
        """Give the books of all queues as they are now, by name. Not to be changed."""
        books = {}
        for stored in await self.link.last_all(self.names.books):
            queue = readable(stored.subject.rpartition(".")[2])
            books[queue] = self.book_of(queue, stored)
        return books

    # Fates

    async def bring(self, queue: str, pending: dict[str, Pending]) -> None:
        """Put fates on their pages of results."""
        by_page: defaultdict[str, dict[str, Pending]] = defaultdict(dict)
        for task_id, one in pending.items():
            by_page[self.names.results(queue, one.ttl, one.home, one.seq)][task_id] = one
        pages = [self._bring(queue, subject, some) for subject, some in by_page.items()]
        if len(pages) == 1:
            # At once, so that it goes out together with the word that the task has ended.
            await pages[0]
        else:
            await asyncio.gather(*pages)

    async def _bring(self, queue: str, subject: str, pending: dict[str, Pending]) -> None:
        turn = self._page_turns.setdefault(subject, asyncio.Lock())
        async with turn:
            await self._bring_in_turn(queue, subject, pending)
        if len(self._page_turns) > MOST_PAGES:
            self._page_turns = {name: lock for name, lock in self._page_turns.items() if lock.locked()}

    async def _bring_in_turn(self, queue: str, subject: str, pending: dict[str, Pending]) -> None:
        first = next(iter(pending.values()))
        page = self._pages.pop(subject, None) or new_page(first.home, first.seq, first.size)
        for attempt in range(1000):
            news = [
                page.note(number_on_page(one.home, one.seq, one.index), task_id, one.fate, one.home)
                for task_id, one in pending.items()
            ]
            if not any(news):
                break
            try:
                page.seq = await self.link.publish(Write(subject, page.encode(), expected=page.seq))
                break
            except (Conflict, Lost):
                stored = await self.link.last([subject])
                if not stored and page.seq:
                    # The page was taken away, and with it tasks that were removed.
                    pending = await self._still_pending(queue, pending)
                    if not pending:
                        return
                page = page_to_write(stored, first.home, first.seq, first.size)
                if attempt:
                    await asyncio.sleep(random.uniform(0, min(0.001 * attempt, 0.05)))
        self._remember_page(subject, page)
        for task_id, one in pending.items():
            self._brought[task_id] = max(one.version, self._brought.get(task_id, -1))

    async def _still_pending(self, queue: str, pending: dict[str, Pending]) -> dict[str, Pending]:
        book = (await self.read([queue]))[queue]
        return {
            task_id: one
            for task_id, one in pending.items()
            if task_id in book.pending and book.pending[task_id].version == one.version
        }

    def _remember_page(self, subject: str, page: ResultPage) -> None:
        self._pages[subject] = page
        while len(self._pages) > MOST_PAGES:
            self._pages.popitem(last=False)

    async def fates(
        self,
        book: Book,
        wanted: Iterable[tuple[Home, int]],
        gone: set[tuple[int, int]] | None = None,
        pages: Mapping[str, Stored] | None = None,
    ) -> dict[tuple[int, int], Fate]:
        """Give the fates of tasks of a queue by their places; those that have none are left out.

        :param book: read before.
        :param gone: gets the places of those that were removed.
        :param pages: the pages of results by subject, if they were read with the book or after it.
        """
        found: dict[tuple[int, int], Fate] = {}
        missing: defaultdict[str, list[tuple[Home, int]]] = defaultdict(list)
        for home, index in wanted:
            one = book.pending.get(home.rows[index][0])
            if one is not None and (one.seq, one.index) == (home.seq, index):
                found[home.seq, index] = one.fate
            else:
                missing[self.names.results(book.queue, home.ttl, home.name, home.seq)].append((home, index))
        if missing:
            read = await self.link.last(list(missing)) if pages is None else pages.values()
            for stored in read:
                page = read_page(stored)
                for home, index in missing[stored.subject]:
                    number = number_on_page(home.name, home.seq, index)
                    if page.problem is not None:
                        found[home.seq, index] = torn_fate(page.problem)
                        continue
                    if not page.is_of(home.name, home.seq):
                        continue
                    if number in page.fates:
                        task_id, fate, _ = page.fates[number]
                        if task_id != home.rows[index][0]:
                            fate = torn_fate(corrupt("result", task_id, "it stands where another's should be"))
                        found[home.seq, index] = fate
                    elif number in page.gone and gone is not None:
                        gone.add((home.seq, index))
        return found

    async def whole(self, fates: dict[tuple[int, int], Fate], ids: dict[tuple[int, int], str]) -> None:
        """Complete fates with what is kept in messages of their own."""
        apart = {
            self.names.blob(ids[place], fate.blob): place for place, fate in fates.items() if fate.blob is not None
        }
        if apart:
            there = {stored.subject: stored.data for stored in await self.link.last(list(apart))}
            for subject, place in apart.items():
                fates[place] = fates[place].whole(there.get(subject, b""))

    # Removal

    async def bury(self, queue: str, doomed: Sequence[Doomed]) -> None:
        """Take away the messages of removed tasks."""
        by_page: defaultdict[str, list[Doomed]] = defaultdict(list)
        for one in doomed:
            by_page[self.names.results(queue, one.ttl, one.home, one.seq)].append(one)
        stored = {
            found.subject: page_to_write([found], doomed.home, doomed.seq, doomed.size)
            for found in await self.link.last(list(by_page))
            for doomed in by_page[found.subject][:1]
        }
        gone: list[int] = []
        subjects: list[str] = []
        await asyncio.gather(
            *(
                self._bury(queue, subject, some, stored.get(subject), gone, subjects)
                for subject, some in by_page.items()
            )
        )
        keys = {self.names.key(one.unique): one.id for one in doomed if one.unique is not None}
        if keys:
            gone += [
                found.seq for found in await self.link.last(list(keys)) if holder_of(found.data) == keys[found.subject]
            ]
        await self.link.remove(gone)
        for subject in subjects:
            await self.link.purge(subject)
        self._buried.update(one.place for one in doomed)

    async def _bury(
        self,
        queue: str,
        subject: str,
        doomed: list[Doomed],
        page: ResultPage | None,
        gone: list[int],
        subjects: list[str],
    ) -> None:
        first = doomed[0]
        is_shared = split_home(first.home)[1] == SHARED
        self._pages.pop(subject, None)
        if is_shared and page is None:
            line = first.home.split("-", 1)[0]
            guards = {self.names.guard(queue, line, one.id): one for one in doomed}
            there = {found.subject: found.seq for found in await self.link.last(list(guards))}
            doomed = [one for name, one in guards.items() if there.get(name) == one.seq + 1 + one.index]
            if not doomed:
                return
        for _ in range(1000):
            if page is None or not page.is_of(first.home, first.seq):
                page = new_page(first.home, first.seq, first.size)
            for one in doomed:
                fate = page.forget(number_on_page(one.home, one.seq, one.index))
                if fate is not None and fate.blob is not None:
                    subjects.append(self.names.blobs(one.id))
            if page.is_spent:
                gone += [first.seq] if is_shared else []
                gone += [page.seq] if page.seq else []
                break
            try:
                await self.link.publish(Write(subject, page.encode(), expected=page.seq), frees=True)
                break
            except (Conflict, Lost):
                stored = await self.link.last([subject])
                page = page_to_write(stored, first.home, first.seq, first.size) if stored else None
        # A guard of each, or the home that each has to itself.
        gone += [one.seq + 1 + one.index if is_shared else one.seq for one in doomed]


def holder_of(data: bytes) -> str | None:
    """Return the id of the task that a unique key belongs to, as the key's message says; None: it cannot be read."""
    try:
        return check_text(json.loads(data)[0], "holder")
    except UNREADABLE:
        return None
