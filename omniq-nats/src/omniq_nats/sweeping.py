"""Finds messages that belong to nothing, and takes them away: a process died, or came too late, between two steps.

A large result, or a shelf of waiting tasks, is stored before the book that names it. If that book then is not accepted,
nobody will ever read the message.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence

from omniq_nats.book import Book
from omniq_nats.keeper import Keeper
from omniq_nats.names import untoken
from omniq_nats.orders import Place
from omniq_nats.times import after, read_stamp

__all__ = ["Sweeper"]

SAFE_AGE = 3600.0
"""Seconds for which a message is left alone, whatever it belongs to."""
EVERY = 3600.0
"""Seconds between two looks of a process, about."""
STEP = 250
"""So many messages are looked into at a time."""


class Sweeper:
    """Sweeps.

    :param keeper: of the storage.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._link = keeper.link
        self._names = keeper.names
        self._next_at = 0.0

    async def sweep_at_times(self) -> None:
        """Sweep, if that was not done for a while."""
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + EVERY * random.uniform(0.75, 1.25)
            await self.sweep()

    async def sweep(self) -> None:
        """Take away what belongs to nothing and is old enough."""
        for subject in await self.stray_blobs():
            await self._link.remove(await self._old([subject]))
        by_queue: defaultdict[str, list[str]] = defaultdict(list)
        for subject in await self.stray_shelves():
            by_queue[untoken(subject.rsplit(".", 2)[1])].append(subject)
        for queue, subjects in by_queue.items():
            await self._remove_shelves(queue, subjects)

    async def strays(self) -> list[str]:
        """Give the subjects of what belongs to nothing, however old it is."""
        return [*await self.stray_blobs(), *await self.stray_shelves()]

    # Large results and errors

    async def stray_blobs(self) -> list[str]:
        """Give the subjects of large results and errors that no task has, nor can have any more."""
        subjects = await self._subjects(f"{self._names.root}.b.>")
        strays: list[str] = []
        for start in range(0, len(subjects), STEP):
            strays += await self._stray_among(subjects[start : start + STEP])
        return strays

    async def _stray_among(self, subjects: Sequence[str]) -> list[str]:
        by_task: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for subject in subjects:
            task_id, name = subject.rsplit(".", 2)[1:]
            by_task[untoken(task_id)][name] = subject
        places = await self._keeper.orders.locate(list(by_task))
        books = await self._keeper.read(sorted({home.queue for home, _ in places.values()}))
        strays: list[str] = []
        for task_id, named in by_task.items():
            place = places.get(task_id)
            used = set() if place is None else await self._used(books[place[0].queue], place, named)
            strays += [subject for name, subject in named.items() if name not in used]
        return strays

    async def _used(self, book: Book, place: Place, named: dict[str, str]) -> set[str]:
        home, index = place
        slot = book.running.get(home.rows[index][0])
        # Only the delivery that runs may still end, and its result may be stored already.
        used = set() if slot is None else {name for name in named if name.startswith(f"{slot.delivery}-")}
        fate = (await self._keeper.fates(book, [place])).get((home.seq, index))
        return used if fate is None or fate.blob is None else used | {fate.blob}

    # Shelves

    async def stray_shelves(self) -> list[str]:
        """Give the subjects of shelves that no queue's book names."""
        there = await self._subjects(self._names.shelves)
        if not there:
            return []
        books = await self._keeper.read_all()
        named = {subject for book in books.values() for subject in self._named_in(book)}
        return [subject for subject in there if subject not in named]

    def _named_in(self, book: Book) -> set[str]:
        names = [*(shelf.name for shelf in book.shelves), *book.spent]
        return {self._names.shelf(book.queue, name) for name in names}

    async def _remove_shelves(self, queue: str, subjects: Sequence[str]) -> None:
        async def step(book: Book) -> tuple[bool, bool]:
            # The book is stored anew, though nothing of it changes: whoever stored a shelf and was then held up for an
            # hour can no longer store the book that names it.
            is_right = bool(book.seq) and not self._named_in(book).intersection(subjects)
            return is_right, is_right

        old = await self._old(subjects)
        if not old:
            return
        is_right = await self._keeper.change(queue, step, remembered=False)
        if is_right:
            await self._link.remove(old)

    # Both

    async def _subjects(self, subject: str) -> list[str]:
        """Give all subjects that match one with wildcards, sorted."""
        stream = self._names.stream
        found: set[str] = set()
        total = 1
        offset = 0
        while offset < total:
            body = {"subjects_filter": subject, "offset": offset}
            answer = await self._link.ask(f"STREAM.INFO.{stream}", body)
            some = answer.get("state", {}).get("subjects") or {}
            if not some:
                break
            found.update(some)
            offset += len(some)
            total = answer.get("total", 0)
        return sorted(found)

    async def _old(self, subjects: Sequence[str]) -> list[int]:
        """Give the sequences of those messages that are old enough to be taken away."""
        stream = self._names.stream
        old: list[int] = []
        for subject in subjects:
            answer = await self._link.ask(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
            message = answer.get("message")
            if message is not None and after(read_stamp(message["time"]), SAFE_AGE) <= self._keeper.clock.now():
                old.append(message["seq"])
        return old
