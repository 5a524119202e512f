"""Keeps the books of the queues: reads them, changes them step by step, and does what a change leaves to be done.

A change is one message that replaces the book as it was read. Whoever comes second is refused, reads again and does his
step anew. What a change could not do by itself, as it is in other messages (results to be put on their pages, messages
of removed tasks to be taken away), is written down in the book and done afterwards, by whoever made the change or, if
that one died, by whoever changes the book next.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from omniq.errors import CorruptRecord, PayloadTooLarge, StorageError, StorageUnavailable
from omniq.escaping import get_logger
from omniq.storage.validation import log_once
from omniq_nats.archive import Archive, holder_of
from omniq_nats.book import Book
from omniq_nats.fates import Fate
from omniq_nats.lines import Pending
from omniq_nats.link import Conflict, Link, Lost, Write
from omniq_nats.orders import Orders
from omniq_nats.records import encode_book
from omniq_nats.rivals import Rivals
from omniq_nats.shelves import Shelves
from omniq_nats.slots import Slot
from omniq_nats.times import Clock
from omniq_nats.turns import Step, Turn, Turns

__all__ = ["Keeper", "holder_of"]

_log = get_logger("omniq.nats")

T = TypeVar("T")

LEFT_BEHIND = 3_000_000
"""Microseconds after which what another client left to do is done for it."""
MOST_PENDING = 600
MOST_BROUGHT = 100_000
REMEMBERED = 48
"""So many of the latest changes are known by name, so that whoever lost the answer can see that his was accepted."""


class Keeper(Archive):
    """The books of one storage object.

    :param link: open while the storage is.
    :param clock: of the servers.
    """

    def __init__(self, link: Link, clock: Clock) -> None:
        super().__init__(link, clock)
        self.orders = Orders(link)
        self.shelves = Shelves(link)
        self._books: dict[str, Book] = {}
        self._generation = link.generation
        self._rivals = Rivals(link)
        self._turns = Turns(self._change, self._rivals)
        self._cleared: set[str] = set()
        self._chores: set[asyncio.Task[None]] = set()
        link.renewed.append(self._forget)

    def _forget(self) -> None:
        self._books.clear()
        self._pages.clear()
        self._brought.clear()
        self._buried.clear()
        self._cleared.clear()

    async def close(self) -> None:
        """Do what is left to do, as far as the servers can be reached."""
        chores = list(self._chores)
        if chores:
            _, late = await asyncio.wait(chores, timeout=self.link.settings.timeout)
            for chore in late:
                chore.cancel()
        self._books.clear()

    async def errors(self, book: Book, slots: Sequence[Slot]) -> dict[str, Fate]:
        """Return the fates that have the errors of earlier attempts, by the ids of the tasks that had any."""
        slots = [slot for slot in slots if slot.has_error]
        if not slots:
            return {}
        homes = await self.orders.of_slots(book.queue, slots)
        fates = await self.fates(book, [(homes[slot.seq], slot.index) for slot in slots if slot.seq in homes])
        return {slot.id: fates[slot.seq, slot.index] for slot in slots if (slot.seq, slot.index) in fates}

    # Changing

    async def change(
        self, queue: str, step: Step[T], *, remembered: bool = True, share: float = 1.0, frees: bool = False
    ) -> T:
        """Change a book in one step, and give the step's result.

        :param step: called with the book as it is; once more for each time that somebody else was quicker. What it did
            to a book that was not accepted does not count.
        :param remembered: whether the step may first see the book as it is remembered; if it leaves that as it is, it
            is called again with the book as it is now.
        :param share: how much of the largest message the book may take after it: the rest is for changes that come
            after this one and that must be possible, as the end of a task that was claimed.
        :param frees: whether it is part of the removal of something, for which there is a reserve in a full stream.
        :raises StorageUnavailable: if it could not be done in time.
        :raises PayloadTooLarge: if the book would be too large.
        """
        return await self._turns.take(queue, Turn(step, remembered, share, frees))

    async def _change(self, queue: str, turns: Sequence[Turn[Any]]) -> None:
        """Make several changes of a book in one step."""
        deadline = time.monotonic() + 2 * self.link.settings.timeout
        unsure: dict[str, tuple[Book, list[tuple[Turn[Any], Any]]]] = {}
        left = list(turns)
        known = 0
        for attempt in range(1_000_000):
            generation = self.link.generation
            is_remembered = attempt == 0 and all(turn.remembered for turn in left)
            if self._rivals.have_changed(queue) or self._generation != self.link.generation:
                is_remembered = False
            self._generation = self.link.generation
            book = self._books.pop(queue, None) if is_remembered else None
            is_fresh = book is None
            if book is not None:
                known = max(known, book.changes)
            else:
                book = (await self.read([queue], whole=False))[queue]
                if book.changes < known and book.problem is None:
                    # Books only ever grow older: this one is of another stream.
                    known = 0
                    await self.link.find_again()
                    continue
                # Who knows a change by its name knows that it was accepted.
                accepted = next((name for name in unsure if name in book.recent), None)
                if accepted is not None:
                    self._see_to(unsure[accepted][0])
                    _give(unsure[accepted][1])
                    return
            name = secrets.token_hex(5)
            try:
                results, changed = await self._try_readable(book, left)
                if results is None:
                    continue
                if not changed:
                    if is_fresh:
                        self._books[queue] = book
                        _give(results)
                        return
                elif generation != self.link.generation:
                    # What was read may never have been, and its sequence may be that of another book by now.
                    raise Conflict("the connection was lost")
                elif await self._is_committed(book, name, deadline, left):
                    _give(results)
                    return
                else:
                    unsure[name] = book, results
            except Conflict as conflict:
                # Somebody else was quicker; or a shelf that the book speaks of was replaced, and the book with it.
                self._give_up(book)
                if book.stream_end is None:
                    await self._rivals.lost(queue)
                    await self._rivals.begin(queue)
                if time.monotonic() > deadline:
                    raise StorageUnavailable(
                        f"{self.link.settings.shown}: queue {queue!r} is changed by so many at once that no turn "
                        f"came: {conflict}"
                    ) from conflict
                await asyncio.sleep(random.uniform(0, min(0.0005 * 2 ** min(attempt, 7), 0.05)))
        raise AssertionError

    async def _try_readable(
        self, book: Book, turns: list[Turn[Any]]
    ) -> tuple[list[tuple[Turn[Any], Any]] | None, bool]:
        """Do :meth:`_try`; as if there were no record, if that cannot be read, which then must not be changed."""
        if book.problem is None:
            try:
                return await self._try(book, turns)
            except CorruptRecord:
                problem = _problem_of(book)
                if problem is None:
                    raise
                log_once(_log, problem, self.link.settings.shown)
                book = Book(book.queue, book.seq, problem=problem)
        results, changed = await self._try(book, turns)
        if changed and book.problem is not None:
            raise book.problem
        return results, changed

    async def _try(self, book: Book, turns: list[Turn[Any]]) -> tuple[list[tuple[Turn[Any], Any]] | None, bool]:
        """Have those whose turn it is change a book.

        :return: their results, and whether any of them changed it; None instead if one failed, who is taken out then:
            what he did to the book must not count, and the others do theirs once more.
        """
        book.also = []
        book.stream_end = None
        results: list[tuple[Turn[Any], Any]] = []
        changed = False
        for turn in list(turns):
            try:
                result, has_changed = await turn.step(book)
            except Conflict:
                raise
            except Exception as error:
                if len(turns) == 1 or _problem_of(book) is not None:
                    raise
                self._give_up(book)
                turn.error = error
                turns.remove(turn)
                return None, False
            results.append((turn, result))
            changed = changed or has_changed
        return results, changed

    async def _is_committed(self, book: Book, name: str, deadline: float, turns: Sequence[Turn[Any]]) -> bool:
        """Store a book; False: no answer came, and it may have been accepted all the same."""
        share, frees = min(turn.share for turn in turns), any(turn.frees for turn in turns)
        try:
            await self._commit(book, name, share, frees)
        except Lost:
            if not book.committing or time.monotonic() > deadline:
                raise
            return False
        return True

    async def _commit(self, book: Book, name: str, share: float, frees: bool) -> None:
        await self._tidy(book)
        await self.shelves.lay_aside(book, self.clock.now())
        book.changes += 1
        book.recent = [*book.recent[1 - REMEMBERED :], name]
        book.forget_passed()
        subject = self.names.book(book.queue)
        data = encode_book(book)
        limit = share * (self.link.max_payload - 1024)
        if len(data) > limit:
            # Not what this very change brings: it is not accepted yet.
            await self._bring_and_drop(
                book, {key: one for key, one in book.pending.items() if one.version < book.changes}
            )
            data = encode_book(book)
        if len(data) > limit:
            self._give_up(book)
            raise PayloadTooLarge(
                f"the record of queue {book.queue!r} would be {len(data):,} bytes, and the server's limit is "
                f"{self.link.max_payload:,} (max_payload), of which it may have {share:.0%}: too many tasks run, "
                "wait or were cancelled at once; raise the limit, or spread them over more queues"
            )
        book.committing = True
        writes = [Write(subject, data, expected=book.seq, end=book.stream_end), *book.also]
        book.seq = await self.link.batch(writes, frees=frees)
        book.committing = False
        book.laid = []
        self._books[book.queue] = book
        self._see_to(book)

    def _give_up(self, book: Book) -> None:
        """Take away what was stored for a change that did not come about."""
        if book.laid:
            self.later(self.shelves.remove(book.queue, book.laid))

    async def _tidy(self, book: Book) -> None:
        now = self.clock.now()
        for task_id, one in list(book.pending.items()):
            if self._brought.get(task_id, -1) >= one.version:
                del book.pending[task_id], self._brought[task_id]
        for place in list(book.doomed):
            if place in self._buried:
                del book.doomed[place]
                self._buried.discard(place)
        if len(self._brought) > MOST_BROUGHT:
            self._brought.clear()
        # Not what this very change brings: it is not accepted yet.
        known = {task_id: one for task_id, one in book.pending.items() if one.version <= book.changes}
        if len(book.pending) <= MOST_PENDING:
            known = {task_id: one for task_id, one in known.items() if one.since < now - LEFT_BEHIND}
        await self._bring_and_drop(book, known)
        book.spent = [name for name in book.spent if name not in self._cleared]
        self._cleared.intersection_update(book.spent)
        left = [one for one in book.doomed.values() if one.since < now - LEFT_BEHIND]
        if left:
            await self.bury(book.queue, left)
            for gone in left:
                del book.doomed[gone.place]
                self._buried.discard(gone.place)

    async def _bring_and_drop(self, book: Book, known: dict[str, Pending]) -> None:
        if known:
            await self.bring(book.queue, known)
            for task_id, one in known.items():
                if self._brought.pop(task_id, -1) >= one.version:
                    del book.pending[task_id]

    def _see_to(self, book: Book) -> None:
        fresh = {task_id: one for task_id, one in book.pending.items() if one.version == book.changes}
        if fresh:
            self.later(self.bring(book.queue, fresh))
        if book.spent:
            self.later(self._clear_away(book.queue, list(book.spent)))

    async def _clear_away(self, queue: str, names: list[str]) -> None:
        await self.shelves.remove(queue, names)
        self._cleared.update(names)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for; what fails is left to whoever comes next."""

        async def guarded() -> None:
            try:
                await work
            except StorageError as error:
                _log.debug("left to be done by whoever comes next: %s", error)

        chore = asyncio.get_running_loop().create_task(guarded())
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    def is_quiet(self, queue: str) -> bool:
        """Whether nobody else seems to store anything at the moment, and we do not either."""
        return self.link.is_quiet and not self._chores and not self._rivals.are_there(queue)

    def forget(self, queues: Iterable[str]) -> None:
        """Read the books of some queues anew before they are next changed."""
        for queue in queues:
            self._books.pop(queue, None)

    def remembered(self, queue: str) -> Book | None:
        """Give a book as it was when it was last read or changed here."""
        return self._books.get(queue)


def _problem_of(book: Book) -> CorruptRecord | None:
    """Return why a book cannot be read; None: it can."""
    try:
        book.check()
    except CorruptRecord as problem:
        return problem
    return book.problem


def _give(results: Sequence[tuple[Turn[Any], Any]]) -> None:
    for turn, result in results:
        turn.result, turn.error = result, None
