"""Takes back what nobody holds any more, and ends what came too late to be started."""

from __future__ import annotations

from attrs import define, field

from omniq.task import StoredTask, TaskError, TaskState
from omniq_nats.book import Book
from omniq_nats.claiming import fold
from omniq_nats.fates import Fate
from omniq_nats.keeper import Keeper
from omniq_nats.names import DUE_LINE
from omniq_nats.reading import tasks_at
from omniq_nats.slots import Slot

__all__ = ["Recovery"]


class Recovery:
    """Does on behalf of dead workers what there is to do with the tasks that they claimed.

    :param keeper: of the storage.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._names = keeper.names

    async def recover(self, limit: int) -> tuple[list[StoredTask], list[str]]:
        """Do :meth:`omniq.storage.Storage.recover`.

        :return: the tasks whose lease had run out, and the ids of all that ended.
        """
        books = await self._keeper.read_all()
        now = self._keeper.clock.now()
        taken: list[tuple[str, _Recovered]] = []
        count = 0
        for lapsed in (True, False):
            for queue, book in books.items():
                if count < limit and (_has_work(book, now, lapsed) or (not lapsed and await self._is_to_fold(book))):
                    recovered = await self._recover(queue, limit - count, lapsed)
                    taken.append((queue, recovered))
                    count += recovered.count
        tasks: list[StoredTask] = []
        for queue, recovered in taken:
            homes = await self._keeper.orders.of_slots(queue, recovered.slots)
            places = [(homes[slot.seq], slot.index) for slot in recovered.slots if slot.seq in homes]
            found = await tasks_at(self._keeper, places)
            tasks += [found[home.seq, index] for home, index in places if (home.seq, index) in found]
            if any(slot.id not in recovered.ended for slot in recovered.slots):
                await self._keeper.link.tell(self._names.work(queue), b"0")
        return tasks, [task_id for _, recovered in taken for task_id in recovered.ended]

    async def _is_to_fold(self, book: Book) -> bool:
        """Whether there are tasks that wait, and may have expired, and were not sorted in."""
        return DUE_LINE in book.lines and await self._keeper.orders.ahead(book, DUE_LINE, None, 64) is not None

    async def _recover(self, queue: str, limit: int, lapsed: bool) -> _Recovered:
        async def step(book: Book) -> tuple[_Recovered, bool]:
            now = self._keeper.clock.now()
            recovered = _Recovered()
            folded = False
            if lapsed:
                slots = [slot for slot in book.running.values() if _is_lapsed(slot, now)][:limit]
                known = await self._keeper.errors(book, slots)
                for slot in slots:
                    recovered.slots.append(slot)
                    _take_back(book, slot, now, recovered, known.get(slot.id))
            else:
                folded = await fold(self._keeper, book)
                await self._keeper.shelves.take_expired(book, now, limit)
                slots = [slot for slot in book.waiting.values() if slot.is_expired(now)][:limit]
                known = await self._keeper.errors(book, slots)
                for slot in slots:
                    book.withdraw(slot)
                    book.cancel_slot(slot, now, known.get(slot.id))
                    recovered.ended.append(slot.id)
            return recovered, folded or bool(recovered.slots or recovered.ended)

        return await self._keeper.change(queue, step, remembered=False)


@define(eq=False)
class _Recovered:
    slots: list[Slot] = field(factory=list)
    ended: list[str] = field(factory=list)

    @property
    def count(self) -> int:
        return len({slot.id for slot in self.slots}.union(self.ended))


def _has_work(book: Book, now: int, lapsed: bool) -> bool:
    if lapsed:
        return any(_is_lapsed(slot, now) for slot in book.running.values())
    return any(slot.is_expired(now) for slot in book.waiting.values()) or any(
        shelf.expires is not None and shelf.expires <= now for shelf in book.shelves
    )


def _is_lapsed(slot: Slot, now: int) -> bool:
    return slot.until is not None and slot.until <= now


def _take_back(book: Book, slot: Slot, now: int, recovered: _Recovered, known: Fate | None) -> None:
    book.stop(slot)
    if slot.cancel:
        book.cancel_slot(slot, now, known)
    elif slot.attempt <= slot.max_retries:
        book.keep_error(slot, now, known)
        book.put_back(slot)
        return
    else:
        message = f"worker {slot.worker} died or lost its lease in attempt {slot.attempt}, the last one"
        book.end(slot, book.fate_of(slot, TaskState.FAILED, now, error=TaskError(type="WorkerLost", message=message)))
    recovered.ended.append(slot.id)
