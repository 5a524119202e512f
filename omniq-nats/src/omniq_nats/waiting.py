"""Waits for work and for the end of tasks: told by others, and looking again at times, as a word can be lost."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from attrs import define, field

from omniq_nats.book import Book
from omniq_nats.keeper import Keeper
from omniq_nats.names import DUE_LINE
from omniq_nats.reading import find_live
from omniq_nats.scheduling import Timetable

__all__ = ["Waiting"]

LOOK_EVERY = 0.99
"""Seconds between two questions while a wait goes on: one of them is whether tasks came, the other whether a book was
changed, so that each is asked every two seconds."""
OVERDUE_PAUSE = 1.0
"""Seconds. A schedule that is due but that nobody fires must not make idle workers spin."""


@define(eq=False)
class _Waiter:
    """Somebody who waits."""

    woken: asyncio.Event = field(factory=asyncio.Event)
    until: int | None = None
    """The time, by the servers' clock, at which there will be a reason to return."""
    look_again: bool = False
    """Whether that time may have changed."""

    def hear(self, at: int, now: int) -> None:
        """Hear that there is, or will be, a reason to return."""
        if at <= now:
            self.woken.set()
        elif self.until is None or at < self.until:
            self.until = at
            self.woken.set()


class Waiting:
    """The waits of one storage.

    :param keeper: of the storage.
    :param timetable: says when schedules are due.
    """

    def __init__(self, keeper: Keeper, timetable: Timetable) -> None:
        self._keeper = keeper
        self._link = keeper.link
        self._names = keeper.names
        self._timetable = timetable
        self._workers: defaultdict[str, set[_Waiter]] = defaultdict(set)
        self._listening: set[str] = set()
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Let everybody who waits return."""
        self._closed.set()
        for waiters in self._workers.values():
            for waiter in waiters:
                waiter.woken.set()

    # For work

    async def for_work(self, queues: Sequence[str], timeout: float) -> None:
        """Do :meth:`omniq.storage.Storage.wait_for_work`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        waiter = _Waiter()
        keys = [*map(self._names.work, queues), self._names.timetable]
        await self._listen(keys)
        for key in keys:
            self._workers[key].add(waiter)
        try:
            while not self._closed.is_set():
                waiter.woken.clear()
                waiter.look_again, waiter.until = False, None
                ends = await self._link.ends(self._watched)
                if await self._look(queues, waiter) or not await self._sleep(waiter, deadline, ends):
                    return
        finally:
            for key in keys:
                self._workers[key].discard(waiter)

    @property
    def _watched(self) -> tuple[str, str]:
        return self._names.homes(), self._names.books

    async def _listen(self, subjects: Sequence[str]) -> None:
        for subject in subjects:
            if subject not in self._listening:
                self._listening.add(subject)
                try:
                    await self._link.listen(subject, self._hear)
                except BaseException:
                    self._listening.discard(subject)
                    raise

    def _hear(self, subject: str, data: bytes) -> None:
        now = self._keeper.clock.now()
        at = int(data) if data.isdigit() else 0
        for waiter in self._workers.get(subject, ()):
            if subject == self._names.timetable:
                waiter.look_again = True
                waiter.woken.set()
            else:
                waiter.hear(at, now)

    async def _look(self, queues: Sequence[str], waiter: _Waiter) -> bool:
        """Say whether there is work; if not, note when there will be."""
        books = await self._keeper.read(queues)
        now = self._keeper.clock.now()
        times = [at for book in books.values() if not book.paused and (at := book.next_at()) is not None]
        if any(at <= now for at in times):
            return True
        for book in books.values():
            if not book.paused and await self._has_untouched(book):
                return True
        run = await self._timetable.next_run()
        if run is not None:
            times.append(run if run > now else now + int(OVERDUE_PAUSE * 1e6))
        if waiter.until is not None:
            times.append(waiter.until)  # told of while we looked
        waiter.until = min(times, default=None)
        return False

    async def _has_untouched(self, book: Book) -> bool:
        for line in sorted(book.lines, key=lambda name: name == DUE_LINE):
            home = await self._keeper.orders.ahead(book, line, None, 4)
            while home is not None:
                seq, taken = book.lines[line]
                for index in range(taken if home.seq == seq else 0, len(home)):
                    if book.left_out(line, home.seq, index) is None:
                        return True
                home = await self._keeper.orders.ahead(book, line, home, 4)
        return False

    async def _sleep(self, waiter: _Waiter, deadline: float, ends: list[int]) -> bool:
        """Sleep until there may be work; say whether to look again, rather than to return."""
        loop = asyncio.get_running_loop()
        turn = 0
        while not self._closed.is_set():
            seconds = deadline - loop.time()
            if seconds <= 0:
                return False
            if waiter.until is not None:
                due = (waiter.until - self._keeper.clock.now()) / 1e6
                if due <= 0:
                    return False
                seconds = min(seconds, due)
            try:
                async with asyncio.timeout(min(seconds, LOOK_EVERY)):
                    await waiter.woken.wait()
            except TimeoutError:
                if seconds > LOOK_EVERY:
                    turn = 1 - turn
                    if (await self._link.ends((self._watched[turn],)))[0] != ends[turn]:
                        return True
                continue
            waiter.woken.clear()
            if waiter.look_again:
                return True
            if waiter.until is None or waiter.until <= self._keeper.clock.now():
                return False
        return False

    # For the end

    async def for_end(self, ids: Sequence[str], timeout: float) -> set[str]:
        """Do :meth:`omniq.storage.Storage.wait_finished`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        waiter = _Waiter()
        woken = waiter.woken
        subscriptions = []
        key = f"end {id(waiter)}"
        self._workers[key].add(waiter)
        try:
            for subject in dict.fromkeys(map(self._names.end, ids)):
                subscription = await self._link.listen(subject, lambda subject, data: woken.set())
                subscriptions.append(subscription)
            while True:
                woken.clear()
                ended = await self._ended(ids)
                left = deadline - loop.time()
                if ended or not ids or left <= 0 or self._closed.is_set():
                    return ended
                try:
                    async with asyncio.timeout(min(left, 1.0)):
                        await woken.wait()
                except TimeoutError:
                    continue
        finally:
            del self._workers[key]
            for subscription in subscriptions:
                await self._link.unlisten(subscription)

    async def _ended(self, ids: Sequence[str]) -> set[str]:
        live = await find_live(self._keeper, ids)
        return {task_id for task_id in ids if task_id not in live}
