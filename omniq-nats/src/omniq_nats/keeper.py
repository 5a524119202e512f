"""Keeps the books of the queues: reads them, changes them step by step, and does what a change leaves to be done.

A change is one message that replaces the book as it was read. Whoever comes second is refused, reads again and does his
step anew. What a change could not do by itself, as it is in other messages (results to be put on their pages, messages
of removed tasks to be taken away), is written down in the book and done afterwards, by whoever made the change or, if
that one died, by whoever changes the book next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from omniq.errors import PayloadTooLarge, StorageError, StorageUnavailable
from omniq_nats.book import Book
from omniq_nats.fates import Fate, ResultPage, read_page
from omniq_nats.homes import Home
from omniq_nats.link import Conflict, Link, Lost, Write
from omniq_nats.orders import Orders
from omniq_nats.records import encode_book, read_book
from omniq_nats.shelves import Shelves
from omniq_nats.slots import Doomed, Pending
from omniq_nats.times import Clock

__all__ = ["Keeper"]

_log = logging.getLogger("omniq.nats")

T = TypeVar("T")
Step = Callable[[Book], Awaitable[tuple[T, bool]]]
"""Looks at a book and may change it; gives a result and whether it did."""

LEFT_BEHIND = 3_000_000
"""Microseconds after which what another client left to do is done for it."""
MOST_PENDING = 600
MOST_BROUGHT = 100_000
REMEMBERED = 48
"""So many of the latest changes are known by name, so that whoever lost the answer can see that his was accepted."""
MOST_PAGES = 512


class Keeper:
    """The books of one storage object.

    :param link: open while the storage is.
    :param clock: of the servers.
    """

    def __init__(self, link: Link, clock: Clock) -> None:
        self.link = link
        self.clock = clock
        self.names = link.settings.names
        self.orders = Orders(link)
        self.shelves = Shelves(link)
        self._books: dict[str, Book] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._pages: OrderedDict[str, ResultPage] = OrderedDict()
        self._brought: dict[str, int] = {}
        """Of each task whose fate is on its page: the fate's version."""
        self._buried: set[tuple[int, int]] = set()
        self._cleared: set[str] = set()
        self._chores: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Do what is left to do, as far as the servers can be reached."""
        chores = list(self._chores)
        if chores:
            _, late = await asyncio.wait(chores, timeout=self.link.settings.timeout)
            for chore in late:
                chore.cancel()
        self._books.clear()

    # Reading

    async def read(self, queues: Sequence[str]) -> dict[str, Book]:
        """Give the books of some queues as they are now; an empty one where there is none. Not to be changed."""
        names = self.names
        found = {stored.subject: stored for stored in await self.link.last([names.book(queue) for queue in queues])}
        books = {}
        for queue in queues:
            stored = found.get(names.book(queue))
            books[queue] = Book(queue) if stored is None else read_book(queue, stored.data, stored.seq)
        return books

    async def read_all(self) -> dict[str, Book]:
        """Give the books of all queues as they are now, by name. Not to be changed."""
        books = {}
        for stored in await self.link.last_all(self.names.books):
            book = read_book(stored.subject, stored.data, stored.seq)
            books[book.queue] = book
        return books

    # Changing

    async def change(self, queue: str, step: Step[T], *, remembered: bool = True) -> T:
        """Change a book in one step, and give the step's result.

        :param step: called with the book as it is; once more for each time that somebody else was quicker. What it did
            to a book that was not accepted does not count.
        :param remembered: whether the step may first see the book as it is remembered; if it leaves that as it is, it
            is called again with the book as it is now.
        :raises StorageUnavailable: if it could not be done in time.
        """
        deadline = time.monotonic() + 2 * self.link.settings.timeout
        unsure: dict[str, tuple[Book, T]] = {}
        async with self._locks[queue]:
            for attempt in range(1_000_000):
                book = self._books.pop(queue, None) if remembered and attempt == 0 else None
                is_fresh = book is None
                if book is None:
                    book = (await self.read([queue]))[queue]
                    # Who knows a change by its name knows that it was accepted.
                    accepted = next((name for name in unsure if name in book.recent), None)
                    if accepted is not None:
                        self._see_to(unsure[accepted][0])
                        return unsure[accepted][1]
                book.also = []
                name = secrets.token_hex(5)
                try:
                    result, changed = await step(book)
                    if not changed:
                        if is_fresh:
                            self._books[queue] = book
                            return result
                    elif await self._is_committed(book, name, deadline):
                        return result
                    else:
                        unsure[name] = book, result
                except Conflict as conflict:
                    # Somebody else was quicker; or a shelf that the book speaks of was replaced, and the book with it.
                    self._give_up(book)
                    if time.monotonic() > deadline:
                        raise StorageUnavailable(
                            f"{self.link.settings.shown}: queue {queue!r} is changed by so many at once that no turn "
                            f"came: {conflict}"
                        ) from conflict
                    await asyncio.sleep(random.uniform(0, min(0.0005 * 2 ** min(attempt, 7), 0.05)))
        raise AssertionError

    async def _is_committed(self, book: Book, name: str, deadline: float) -> bool:
        """Store a book; False: no answer came, and it may have been accepted all the same."""
        try:
            await self._commit(book, name)
        except Lost:
            if not book.committing or time.monotonic() > deadline:
                raise
            return False
        return True

    async def _commit(self, book: Book, name: str) -> None:
        await self._tidy(book)
        await self.shelves.lay_aside(book, self.clock.now())
        book.changes += 1
        book.recent = [*book.recent[1 - REMEMBERED :], name]
        book.forget_passed()
        subject = self.names.book(book.queue)
        data = encode_book(book)
        if len(data) > self.link.max_payload - 1024:
            self._give_up(book)
            raise PayloadTooLarge(
                f"the record of queue {book.queue!r} would be {len(data):,} bytes, and the server's limit is "
                f"{self.link.max_payload:,} (max_payload): too many tasks run or wait at once; raise the limit, "
                "or spread them over more queues"
            )
        book.committing = True
        book.seq = await self.link.batch([Write(subject, data, expected=book.seq), *book.also])
        book.committing = False
        book.laid = []
        self._books[book.queue] = book
        self._see_to(book)

    def _give_up(self, book: Book) -> None:
        """Take away what was stored for a change that did not come about."""
        if book.laid:
            self._chore(self.shelves.remove(book.queue, book.laid))

    async def _tidy(self, book: Book) -> None:
        now = self.clock.now()
        for task_id, one in list(book.pending.items()):
            if self._brought.get(task_id, -1) >= one.fate.version:
                del book.pending[task_id], self._brought[task_id]
        for place in list(book.doomed):
            if place in self._buried:
                del book.doomed[place]
                self._buried.discard(place)
        if len(self._brought) > MOST_BROUGHT:
            self._brought.clear()
        # Not what this very change brings: it is not accepted yet.
        known = {task_id: one for task_id, one in book.pending.items() if one.fate.version <= book.changes}
        if len(book.pending) <= MOST_PENDING:
            known = {task_id: one for task_id, one in known.items() if one.since < now - LEFT_BEHIND}
        if known:
            await self.bring(book.queue, known)
            for task_id, one in known.items():
                if self._brought.pop(task_id, -1) >= one.fate.version:
                    del book.pending[task_id]
        book.spent = [name for name in book.spent if name not in self._cleared]
        self._cleared.intersection_update(book.spent)
        left = [one for one in book.doomed.values() if one.since < now - LEFT_BEHIND]
        if left:
            await self.bury(book.queue, left)
            for gone in left:
                del book.doomed[gone.place]
                self._buried.discard(gone.place)

    def _see_to(self, book: Book) -> None:
        fresh = {task_id: one for task_id, one in book.pending.items() if one.fate.version == book.changes}
        if fresh:
            self._chore(self.bring(book.queue, fresh))
        if book.spent:
            self._chore(self._clear_away(book.queue, list(book.spent)))

    async def _clear_away(self, queue: str, names: list[str]) -> None:
        await self.shelves.remove(queue, names)
        self._cleared.update(names)

    def _chore(self, work: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except StorageError as error:
                _log.debug("left to be done by whoever comes next: %s", error)

        chore = asyncio.get_running_loop().create_task(guarded())
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    # Fates

    async def bring(self, queue: str, pending: dict[str, Pending]) -> None:
        """Put fates on their pages of results."""
        by_page: defaultdict[tuple[str, float], dict[str, Pending]] = defaultdict(dict)
        for task_id, one in pending.items():
            by_page[one.home, one.ttl][task_id] = one
        await asyncio.gather(
            *(self._bring(queue, self.names.results(queue, ttl, home), some) for (home, ttl), some in by_page.items())
        )

    async def _bring(self, queue: str, subject: str, pending: dict[str, Pending]) -> None:
        first = next(iter(pending.values()))
        page = self._pages.pop(subject, None) or ResultPage(0, first.seq, first.size)
        for attempt in range(1000):
            news = [page.note(one.index, task_id, one.fate) for task_id, one in pending.items()]
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
                page = read_page(stored[0]) if stored else ResultPage(0, first.seq, first.size)
                if attempt:
                    await asyncio.sleep(random.uniform(0, min(0.001 * attempt, 0.05)))
        self._remember_page(subject, page)
        for task_id, one in pending.items():
            self._brought[task_id] = max(one.fate.version, self._brought.get(task_id, -1))

    async def _still_pending(self, queue: str, pending: dict[str, Pending]) -> dict[str, Pending]:
        book = (await self.read([queue]))[queue]
        return {
            task_id: one
            for task_id, one in pending.items()
            if task_id in book.pending and book.pending[task_id].fate.version == one.fate.version
        }

    def _remember_page(self, subject: str, page: ResultPage) -> None:
        self._pages[subject] = page
        while len(self._pages) > MOST_PAGES:
            self._pages.popitem(last=False)

    async def fates(
        self, book: Book, wanted: Iterable[tuple[Home, int]], gone: set[tuple[int, int]] | None = None
    ) -> dict[tuple[int, int], Fate]:
        """Give the fates of tasks of a queue by their places; those that have none are left out.

        :param book: read before.
        :param gone: gets the places of those that were removed.
        """
        found: dict[tuple[int, int], Fate] = {}
        missing: defaultdict[str, list[tuple[Home, int]]] = defaultdict(list)
        for home, index in wanted:
            one = book.pending.get(home.rows[index][0])
            if one is not None and (one.seq, one.index) == (home.seq, index):
                found[home.seq, index] = one.fate
            else:
                missing[self.names.results(book.queue, home.ttl, home.name)].append((home, index))
        if missing:
            for stored in await self.link.last(list(missing)):
                page = read_page(stored)
                for home, index in missing[stored.subject]:
                    if page.home == home.seq and index in page.fates:
                        found[home.seq, index] = page.fates[index][1]
                    elif page.home == home.seq and index in page.gone and gone is not None:
                        gone.add((home.seq, index))
        return found

    async def whole(self, fates: dict[tuple[int, int], Fate], ids: dict[tuple[int, int], str]) -> None:
        """Complete fates with what is kept in messages of their own."""
        apart = {
            self.names.blob(ids[place], fate.blob): place for place, fate in fates.items() if fate.blob is not None
        }
        if apart:
            for stored in await self.link.last(list(apart)):
                place = apart[stored.subject]
                fates[place] = fates[place].whole(stored.data)

    # Removal

    async def bury(self, queue: str, doomed: Sequence[Doomed]) -> None:
        """Take away the messages of removed tasks."""
        by_page: defaultdict[str, list[Doomed]] = defaultdict(list)
        for one in doomed:
            by_page[self.names.results(queue, one.ttl, one.home)].append(one)
        stored = {found.subject: read_page(found) for found in await self.link.last(list(by_page))}
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
        is_shared = first.home.split("-", 2)[1] == "g"
        self._pages.pop(subject, None)
        if is_shared and page is None:
            line = first.home.split("-", 1)[0]
            guards = {self.names.guard(queue, line, one.id): one for one in doomed}
            there = {found.subject: found.seq for found in await self.link.last(list(guards))}
            doomed = [one for name, one in guards.items() if there.get(name) == one.seq + 1 + one.index]
            if not doomed:
                return
        for _ in range(1000):
            page = page if page is not None and page.home == first.seq else ResultPage(0, first.seq, first.size)
            for one in doomed:
                fate = page.forget(one.index)
                if fate is not None and fate.blob is not None:
                    subjects.append(self.names.blobs(one.id))
            if page.is_spent:
                gone += [page.home, *([page.seq] if page.seq else [])]
                break
            try:
                await self.link.publish(Write(subject, page.encode(), expected=page.seq))
                break
            except (Conflict, Lost):
                stored = await self.link.last([subject])
                page = read_page(stored[0]) if stored else None
        if is_shared:
            gone += [one.seq + 1 + one.index for one in doomed]

    def forget(self, queues: Iterable[str]) -> None:
        """Read the books of some queues anew before they are next changed."""
        for queue in queues:
            self._books.pop(queue, None)

    def remembered(self, queue: str) -> Book | None:
        """Give a book as it was when it was last read or changed here."""
        return self._books.get(queue)


def holder_of(data: bytes) -> str:
    """Give the id of the task that a unique key belongs to, as the key's message says."""
    holder: str = json.loads(data)[0]
    return holder
