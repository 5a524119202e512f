"""Cancels, retries and removes tasks on request, and holds up queues."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from omniq.task import TaskState
from omniq_nats.book import CANCELLED_AHEAD, REMOVED_AHEAD, Book
from omniq_nats.homes import Home
from omniq_nats.keeper import Keeper, holder_of
from omniq_nats.link import Write
from omniq_nats.orders import Place
from omniq_nats.reading import ENDED, find_live, slot_on_shelf, stand, stands
from omniq_nats.removal import STEP, Removal
from omniq_nats.slots import Slot, slot_of

__all__ = ["Control"]


SHARE = 0.5
"""How much of the largest message a book may take: what was cancelled must not keep claims from coming to it."""

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING


class Control:
    """Does what is asked for from outside.

    :param keeper: of the storage.
    :param removal: takes away what was removed.
    """

    def __init__(self, keeper: Keeper, removal: Removal) -> None:
        self._removal = removal
        self._keeper = keeper
        self._link = keeper.link
        self._names = keeper.names

    async def _each(
        self, ids: Sequence[str], act: Callable[[Book, Home, int], Awaitable[tuple[bool, bool]]]
    ) -> tuple[list[bool], dict[str, list[str]]]:
        """Do something to tasks, those of a queue in one step, or in several if they are many.

        :param act: gives the answer for a task, and whether it changed the book.
        :return: the answers, and by queue the ids of the tasks for which it was yes.
        """
        answers: list[bool] = []
        done: defaultdict[str, list[str]] = defaultdict(list)
        for start in range(0, len(ids), STEP):
            some, yes = await self._step(ids[start : start + STEP], act)
            answers += some
            for queue, task_ids in yes.items():
                done[queue] += task_ids
        return answers, done

    async def _step(
        self, ids: Sequence[str], act: Callable[[Book, Home, int], Awaitable[tuple[bool, bool]]]
    ) -> tuple[list[bool], dict[str, list[str]]]:
        # What is retried takes no more room than it had: a full stream is no reason to refuse any of it.
        places = await self._keeper.orders.locate(ids)
        by_queue: defaultdict[str, list[tuple[int, Place]]] = defaultdict(list)
        for number, task_id in enumerate(ids):
            if task_id in places:
                by_queue[places[task_id][0].queue].append((number, places[task_id]))
        answers = [False] * len(ids)
        for queue, some in by_queue.items():

            async def step(book: Book, some: list[tuple[int, Place]] = some) -> tuple[dict[int, bool], bool]:
                told = {}
                changed = await self._take_from_shelves(book, [place for _, place in some])
                for number, (home, index) in some:
                    told[number], did = await act(book, home, index)
                    changed = changed or did
                return told, changed

            for number, answer in (await self._keeper.change(queue, step, share=SHARE, frees=True)).items():
                answers[number] = answer
        done: defaultdict[str, list[str]] = defaultdict(list)
        for task_id, answer in zip(ids, answers, strict=True):
            if answer:
                done[places[task_id][0].queue].append(task_id)
        return answers, done

    async def _take_from_shelves(self, book: Book, places: Sequence[Place]) -> bool:
        if not book.shelves:
            return False
        found, fates = await stands(self._keeper, book, places)
        wanted = {
            (home.seq, index): slot_on_shelf(home, index, fates.get((home.seq, index))).key
            for (home, index), how in zip(places, found, strict=True)
            if how is SCHEDULED
        }
        await self._keeper.shelves.take_out(book, wanted)
        return bool(wanted)

    async def cancel(self, ids: Sequence[str]) -> tuple[list[bool], list[str]]:
        """Do :meth:`omniq.storage.Storage.cancel`.

        :return: the answers, and the ids that may have ended.
        """

        async def act(book: Book, home: Home, index: int) -> tuple[bool, bool]:
            how = stand(book, home, index)
            now = self._keeper.clock.now()
            if isinstance(how, Slot):
                if how.until is not None:
                    changed, how.cancel = not how.cancel, True
                    return True, changed
                # The error of its latest attempt stays with it.
                known = await self._keeper.errors(book, [how])
                book.withdraw(how)
                book.cancel_slot(how, now, known.get(how.id))
                return True, True
            if how is READY:
                book.leave_out(home, index, CANCELLED_AHEAD)
                book.cancel_slot(slot_of(home, index), now)
                return True, True
            return False, False

        answers, done = await self._each(ids, act)
        return answers, [task_id for some in done.values() for task_id in some]

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        """Do :meth:`omniq.storage.Storage.retry`."""

        async def act(book: Book, home: Home, index: int) -> tuple[bool, bool]:
            if stand(book, home, index) is not ENDED:
                return False, False
            fate = (await self._keeper.fates(book, [(home, index)])).get((home.seq, index))
            if fate is None or fate.is_torn or fate.state not in (TaskState.FAILED, TaskState.CANCELLED):
                return False, False
            slot = slot_of(home, index)
            unique = home.order(index).unique
            if unique is not None and not await self._take_key(book, unique, slot.id):
                return False, False
            now = self._keeper.clock.now()
            slot.at = now
            slot.delivery, slot.worker, slot.started = fate.delivery, fate.worker, fate.started
            if not fate.keeps_expiry or slot.is_expired(now):
                slot.expires, slot.expired_order = None, True
            slot.has_fate = True
            book.ended[fate.state] -= 1
            if book.is_ahead(home.line, home.seq, index):
                # It waits from now on; claims are to leave it out where it was.
                book.leave_out(home, index, CANCELLED_AHEAD)
            book.keep_error(slot, now, fate if fate.error is not None or fate.blob is not None else None)
            book.put_back(slot)
            return True, True

        answers: list[bool] = []
        for task_id in ids:
            # One by one: of two with one key the first is to get it.
            (answer,), done = await self._each([task_id], act)
            answers.append(answer)
            for queue in done:
                await self._link.tell(self._names.work(queue), b"0")
        return answers

    async def _take_key(self, book: Book, unique: str, task_id: str) -> bool:
        subject = self._names.key(unique)
        stored = await self._link.last([subject])
        if stored:
            holder = holder_of(stored[0].data)
            if holder not in (None, task_id) and (holder in book.running or holder in book.waiting):
                return False
            if holder is not None and holder != task_id and await find_live(self._keeper, [holder]):
                return False
        told = json.dumps([task_id]).encode()
        book.also.append(Write(subject, told, expected=stored[0].seq if stored else 0))
        return True

    async def delete(self, ids: Sequence[str]) -> tuple[list[bool], list[str]]:
        """Do :meth:`omniq.storage.Storage.delete`.

        :return: the answers, and the ids of those that are gone.
        """

        async def act(book: Book, home: Home, index: int) -> tuple[bool, bool]:
            how = stand(book, home, index)
            if how is None or (isinstance(how, Slot) and how.until is not None):
                return False, False
            if isinstance(how, Slot):
                book.withdraw(how)
            elif how is ENDED:
                fate = (await self._keeper.fates(book, [(home, index)])).get((home.seq, index))
                if fate is None or not fate.state.is_final:
                    return False, False
                book.ended[fate.state] -= 1
            if book.is_ahead(home.line, home.seq, index):
                book.leave_out(home, index, REMOVED_AHEAD)
            book.doom(self._removal.doomed(home, index))
            return True, True

        answers: list[bool] = []
        gone: list[str] = []
        for start in range(0, len(ids), STEP):
            some, done = await self._each(ids[start : start + STEP], act)
            answers += some
            gone += [task_id for several in done.values() for task_id in several]
            for queue in done:
                await self._removal.bury(queue)
        missing = [task_id for task_id, answer in zip(ids, answers, strict=True) if not answer]
        if missing:
            torn = await self._delete_torn(missing)
            answers = [answer or task_id in torn for task_id, answer in zip(ids, answers, strict=True)]
            gone += torn
        return answers, gone

    async def _delete_torn(self, ids: Sequence[str]) -> list[str]:
        """Remove tasks that cannot be read, unless they run; return the ids of those that were."""
        _, torn = await self._keeper.orders.find(ids)
        gone: list[str] = []
        for task_id, one in torn.items():

            async def step(book: Book, task_id: str = task_id) -> tuple[bool, bool]:
                slot = book.waiting.get(task_id)
                if slot is not None:
                    book.withdraw(slot)
                return task_id not in book.running, slot is not None

            if await self._keeper.change(one.queue, step, frees=True):
                await self._link.remove(one.seqs)
                gone.append(task_id)
        return gone

    # Whole queues

    async def pause(self, queue: str, paused: bool) -> bool:
        """Hold up a queue, or let it go on; say whether that changed anything."""

        async def step(book: Book) -> tuple[bool, bool]:
            changed = book.paused is not paused
            book.paused = paused
            return changed, changed

        changed = await self._keeper.change(queue, step)
        if changed and not paused:
            await self._link.tell(self._names.work(queue), b"0")
        return changed
