"""Removes tasks by the queue: on request, and once their results need be kept no longer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from omniq.task import TaskState
from omniq_nats.book import REMOVED_AHEAD, Book
from omniq_nats.claiming import fold
from omniq_nats.fates import read_page
from omniq_nats.homes import Home
from omniq_nats.keeper import Keeper
from omniq_nats.names import DUE_LINE, untoken
from omniq_nats.reading import ENDED, stand
from omniq_nats.slots import Doomed, Slot
from omniq_nats.sweeping import Sweeper
from omniq_nats.times import after

__all__ = ["STEP", "Removal"]

STEP = 300
"""So many tasks are removed in one change of a book."""
PATIENT = 16
"""So many pages without anything that is over are looked through before the rest is taken to be younger."""

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING


class Removal:
    """Removes many tasks, in steps.

    :param keeper: of the storage.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._link = keeper.link
        self._names = keeper.names
        self._sweeper = Sweeper(keeper)

    def doomed(self, home: Home, index: int) -> Doomed:
        row = home.rows[index]
        return Doomed(row[0], home.name, index, home.seq, len(home), home.ttl, self._keeper.clock.now(), row[4])

    async def bury(self, queue: str) -> None:
        book = self._keeper.remembered(queue)
        if book is not None and book.doomed:
            await self._keeper.bury(queue, list(book.doomed.values()))

    async def purge(self, queue: str, state: TaskState | None) -> tuple[int, list[str]]:
        """Do :meth:`omniq.storage.Storage.purge`.

        :return: how many were removed, and their ids.
        """
        gone: list[str] = []
        if state is not RUNNING:
            while some := await self._purge_live(queue, state):
                gone += some
            if state is None or state.is_final:
                while some := await self._purge_ended(queue, state):
                    gone += some
        return len(gone), gone

    async def _purge_live(self, queue: str, state: TaskState | None) -> list[str]:
        async def step(book: Book) -> tuple[list[Doomed], bool]:
            doomed: list[Doomed] = []
            changed = await fold(self._keeper, book)
            now = self._keeper.clock.now()
            await self._take_wanted(book, state, now)
            wanted = list(filter(_of_state(state, now), book.waiting.values()))[:STEP]
            homes = await self._keeper.orders.of_slots(queue, wanted)
            for slot in wanted:
                book.withdraw(slot)
                home = homes.get(slot.seq)
                if home is not None:
                    doomed.append(self.doomed(home, slot.index))
            if state in (None, READY):
                doomed += await self._take_untouched(book, STEP - len(doomed))
            for one in doomed:
                book.doom(one)
            return doomed, changed or bool(doomed or wanted)

        doomed = await self._keeper.change(queue, step, frees=True)
        await self.bury(queue)
        return [one.id for one in doomed]

    async def _take_wanted(self, book: Book, state: TaskState | None, now: int) -> None:
        """Move tasks that are to be removed from shelves into the book, as far as one step takes them."""
        shelves = self._keeper.shelves
        for shelf in list(book.shelves):
            if len(book.waiting) >= STEP:
                return
            if state is None:
                await shelves.take(book, shelf, STEP)
            elif (shelf.at <= now) if state is READY else (shelf.last_at > now):
                await shelves.sift(book, shelf, _of_state(state, now), STEP)

    async def _take_untouched(self, book: Book, limit: int) -> list[Doomed]:
        doomed: list[Doomed] = []
        for line in [line for line in book.lines if line != DUE_LINE]:
            home = await self._keeper.orders.ahead(book, line, None, limit)
            while home is not None and len(doomed) < limit:
                place = book.lines[line]
                for index in range(place[1] if place[0] == home.seq else 0, len(home)):
                    if book.left_out(line, home.seq, index) is None:
                        doomed.append(self.doomed(home, index))
                    book.pass_by(home, index)
                home = await self._keeper.orders.ahead(book, line, home, limit)
        return doomed

    async def _purge_ended(self, queue: str, state: TaskState | None) -> list[str]:
        book = (await self._keeper.read([queue]))[queue]
        await self._keeper.bring(queue, book.pending)
        places: list[tuple[str, int, int, float]] = []
        start = 1
        while len(places) < STEP:
            stored, left = await self._link.scan(self._names.results_of(queue), start, 64)
            for one in stored:
                page = read_page(one)
                ttl, name = _page_name(one.subject)
                places += [
                    (home, seq, index, ttl)
                    for home, seq, index, task_id, fate in page.places(name)
                    # Of one that waits for a retry the error of its latest attempt is kept there.
                    if fate.state.is_final
                    and state in (None, fate.state)
                    and task_id not in book.waiting
                    and task_id not in book.running
                ]
            if not left or not stored:
                break
            start = stored[-1].seq + 1
        return await self._remove_ended(queue, places, state=state)

    async def _remove_ended(
        self,
        queue: str,
        places: Sequence[tuple[str, int, int, float]],
        *,
        state: TaskState | None = None,
        older: bool = False,
    ) -> list[str]:
        """Remove tasks that have ended.

        :param places: name and sequence of the home, number, and the seconds that results are kept.
        :param state: only those that ended so.
        :param older: only those whose time is over.
        """
        slots = [_bare_slot(*place) for place in places]

        async def step(book: Book) -> tuple[list[Doomed], bool]:
            now = self._keeper.clock.now()
            homes = await self._keeper.orders.of_slots(queue, slots)
            wanted = [
                (homes[slot.seq], slot.index)
                for slot in slots
                if slot.seq in homes and stand(book, homes[slot.seq], slot.index) is ENDED
            ]
            fates = await self._keeper.fates(book, wanted)
            doomed = []
            for home, index in wanted:
                fate = fates.get((home.seq, index))
                if fate is None or not fate.state.is_final or state not in (None, fate.state):
                    continue
                if older and after(fate.finished, home.ttl) > now:
                    continue
                book.ended[fate.state] -= 1
                if book.is_ahead(home.line, home.seq, index):
                    book.leave_out(home, index, REMOVED_AHEAD)
                one = self.doomed(home, index)
                book.doom(one)
                doomed.append(one)
            return doomed, bool(doomed)

        if not slots:
            return []
        doomed = await self._keeper.change(queue, step, remembered=False, frees=True)
        await self.bury(queue)
        return [one.id for one in doomed]

    # Upkeep

    async def prune(self, limit: int) -> tuple[int, list[str]]:
        """Do :meth:`omniq.storage.Storage.prune`.

        :return: how many were removed, and their ids.
        """
        gone: list[str] = []
        for queue, book in (await self._keeper.read_all()).items():
            if book.pending:
                await self._keeper.bring(queue, book.pending)
            for ttl in list(book.ttls):
                if len(gone) < limit and any(book.ended.values()):
                    places = await self._over(queue, ttl, limit - len(gone))
                    gone += await self._remove_ended(queue, places, older=True)
            if book.doomed:
                await self._keeper.bury(queue, list(book.doomed.values()))
        await self._link.keep_reserve()
        await self._sweeper.sweep_at_times()
        return len(gone), gone

    async def _over(self, queue: str, ttl: float, limit: int) -> list[tuple[str, int, int, float]]:
        """Find tasks that ended longer ago than results of theirs are kept: those that ended first come first."""
        now = self._keeper.clock.now()
        found: list[tuple[str, int, int, float]] = []
        start, young = 1, 0
        while len(found) < limit and young < PATIENT:
            stored, left = await self._link.scan(self._names.results_of(queue, ttl), start, 64)
            for one in stored:
                page = read_page(one)
                over = [
                    (home, seq, index, ttl)
                    for home, seq, index, _, fate in page.places(_page_name(one.subject)[1])
                    if fate.state.is_final and after(fate.finished, ttl) <= now
                ]
                found += over
                young = 0 if over else young + 1
            if not left or not stored:
                break
            start = stored[-1].seq + 1
        return found[:limit]


def _of_state(state: TaskState | None, now: int) -> Callable[[Slot], bool]:
    return lambda slot: state in (None, READY if slot.at <= now else SCHEDULED)


def _page_name(subject: str) -> tuple[float, str]:
    _, ttl, home = subject.rsplit(".", 2)
    return float(untoken(ttl)), home


def _bare_slot(home: str, seq: int, index: int, ttl: float) -> Slot:
    return Slot(id="", home=home, index=index, seq=seq, size=0, ttl=ttl, rank=0, priority=0, at=0, max_retries=0)
