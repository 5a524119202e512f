"""Hands ready tasks to workers, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import define, field

from omniq.errors import StorageUnavailable
from omniq.escaping import get_logger
from omniq.storage.validation import log_once
from omniq.task import Progress, StoredTask, TaskError, TaskState
from omniq_nats.book import Book
from omniq_nats.homes import Home, to_task
from omniq_nats.keeper import Keeper
from omniq_nats.names import DUE_LINE, line_of, priority_of
from omniq_nats.records import encode_book
from omniq_nats.slots import Slot, slot_of
from omniq_nats.times import after

__all__ = ["claim", "fold"]

_log = get_logger("omniq.nats")

SHARE = 0.75
"""How much of the largest message a book may take for more tasks to be claimed."""
SLOT = 250
"""More bytes than a running task takes in its book, unless its id is long."""
FOLDED = 2000
"""So many tasks are sorted in at most before a book is written."""


async def fold(keeper: Keeper, book: Book, *, known: bool = False) -> bool:
    """Sort in the tasks of the line of those that wait; say whether there were any that nobody had come to yet.

    :param known: whether to look only at what is known without a question.
    """
    if DUE_LINE not in book.lines:
        return False
    folded = 0
    home = await keeper.orders.ahead(book, DUE_LINE, None, 64, known=known)
    while home is not None and folded < FOLDED:
        if home.problem is not None:
            log_once(_log, home.problem, keeper.link.settings.shown)
            book.pass_over(home)
            folded += 1
        for index in _ahead_in(book, home):
            if book.left_out(DUE_LINE, home.seq, index) is None and not _is_taken(book, home, index):
                book.put_back(slot_of(home, index))
            book.pass_by(home, index)
            folded += 1
        home = await keeper.orders.ahead(book, DUE_LINE, home, 64, known=known)
    return folded > 0


def _is_taken(book: Book, home: Home, index: int) -> bool:
    """Return whether another task has the id of one: whoever wrote that, the one that was there first keeps it."""
    task_id = home.rows[index][0]
    return task_id in book.running or task_id in book.waiting


def _ahead_in(book: Book, home: Home) -> range:
    place = book.lines[home.line]
    return range(place[1] if place[0] == home.seq else 0, len(home))


@define(eq=False)
class _Line:
    """One line of ready tasks, read from where claims have come to."""

    keeper: Keeper
    book: Book
    name: str
    room: int
    known: bool = False
    """Whether to look only at what is known without a question."""
    home: Home | None = None
    index: int = 0
    passed: list[Home] = field(factory=list)
    """Homes that cannot be read."""
    _begun: bool = field(default=False, init=False)

    async def head(self) -> tuple[Home, int] | None:
        """Give the first task that was not claimed yet."""
        while True:
            if self.home is not None and self.index < len(self.home):
                left_out = self.book.left_out(self.name, self.home.seq, self.index) is not None
                if not left_out and not _is_taken(self.book, self.home, self.index):
                    return self.home, self.index
                self.take()
                continue
            following = await self.keeper.orders.ahead(self.book, self.name, self.home, self.room, known=self.known)
            if following is None:
                return None
            self.home = following
            self.index = _ahead_in(self.book, following).start
            if following.problem is not None:
                self.book.pass_over(following)
                self.passed.append(following)

    def take(self) -> None:
        """Go on to the next."""
        assert self.home is not None
        self.book.pass_by(self.home, self.index)
        self.index += 1


@define(eq=False)
class Claimed:
    """What one claim brought."""

    slots: list[Slot] = field(factory=list)
    ended: list[str] = field(factory=list)
    """The ids of those that had expired."""
    ids: set[str] = field(factory=set)
    """Those of the slots."""
    is_full: bool = False
    """Whether there may be more, for which there is no room in the book."""


async def claim(
    keeper: Keeper, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None
) -> tuple[list[StoredTask], list[str]]:
    """Do :meth:`omniq.storage.Storage.claim`.

    :return: the tasks, and the ids of those that turned out to have expired.
    """
    tasks: list[StoredTask] = []
    ended: list[str] = []
    full: list[str] = []
    for queue, wanted in demand.items():
        room = wanted if limit is None else min(wanted, limit - len(tasks))
        if room > 0:
            claimed = await _claim(keeper, queue, room, worker, lease)
            homes = await keeper.orders.of_slots(queue, claimed.slots)
            errors = await _errors(keeper, queue, claimed.slots, homes)
            found = [
                running_task(homes[slot.seq], slot, errors.get((slot.seq, slot.index)))
                for slot in claimed.slots
                if slot.seq in homes
            ]
            sound = [task for task in found if task.state is TaskState.RUNNING]
            if len(sound) < len(claimed.slots):
                ended += await _end_unreadable(keeper, queue, claimed.slots, found)
            tasks += sound
            ended += claimed.ended
            if claimed.is_full:
                full.append(queue)
    if full and not tasks:
        raise StorageUnavailable(
            f"{keeper.link.settings.shown}: queue {full[0]!r} has as many running tasks as its record can hold, the "
            f"server's limit being {keeper.link.max_payload:,} bytes (max_payload): more can be claimed as these end; "
            "raise the limit, or spread them over more queues"
        )
    return tasks, ended


async def _end_unreadable(keeper: Keeper, queue: str, slots: Sequence[Slot], found: Sequence[StoredTask]) -> list[str]:
    """End what was claimed and cannot be read, before anybody is given the others.

    :param found: the tasks that were claimed, as far as they are there.
    :return: the ids.
    """
    by_id = {task.id: task for task in found}

    async def step(book: Book) -> tuple[list[str], bool]:
        ended = []
        for slot in slots:
            task, held = by_id.get(slot.id), book.held(slot.id, slot.delivery)
            if held is None or (task is not None and task.state is TaskState.RUNNING):
                continue
            book.stop(held)
            ended.append(slot.id)
            # Of one whose order is not there any more nothing can be kept.
            if task is not None:
                book.end(held, book.fate_of(held, TaskState.FAILED, keeper.clock.now(), error=task.error))
        return ended, bool(ended)

    return await keeper.change(queue, step)


async def _errors(
    keeper: Keeper, queue: str, slots: Sequence[Slot], homes: Mapping[int, Home]
) -> dict[tuple[int, int], TaskError | None]:
    """Read the errors of earlier attempts, of the tasks that had any."""
    places = {(slot.seq, slot.index): slot.id for slot in slots if slot.has_error and slot.seq in homes}
    if not places:
        return {}
    book = keeper.remembered(queue) or (await keeper.read([queue]))[queue]
    fates = await keeper.fates(book, [(homes[seq], index) for seq, index in places])
    await keeper.whole(fates, places)
    return {place: fate.error for place, fate in fates.items()}


def _room_in(keeper: Keeper, book: Book, wanted: int) -> int:
    """Say how many more tasks can run such that there is room in the book for what their ends need, too."""
    limit = keeper.link.max_payload
    if (len(book.running) + wanted) * SLOT < limit // 8:
        return wanted
    return int(SHARE * limit - len(encode_book(book))) // SLOT


async def _claim(keeper: Keeper, queue: str, wanted: int, worker: str, lease: float) -> Claimed:
    attempts = 0

    async def step(book: Book) -> tuple[Claimed, bool]:
        nonlocal attempts
        attempts += 1
        if book.paused:
            return Claimed(), False
        changed = False
        claimed = Claimed()
        room = min(wanted, _room_in(keeper, book, wanted))
        if room <= 0:
            claimed.is_full = True
            return claimed, False
        if attempts == 1 and keeper.is_quiet(queue) and keeper.orders.know_all(book):
            # What a worker was woken for came with the word that woke it. It need ask for nothing then, and that there
            # is nothing else is what the servers check as they accept the change.
            end = keeper.link.last_seen
            changed = await _take_all(keeper, book, room, claimed, known=True)
            if claimed.slots:
                book.stream_end = end
        if not claimed.slots:
            changed = await _take_all(keeper, book, room, claimed, known=False) or changed
        now = keeper.clock.now()
        until = after(now, lease)
        for slot in claimed.slots:
            book.start(slot, worker, now, until)
        return claimed, changed or bool(claimed.slots or claimed.ended)

    return await keeper.change(queue, step)


async def _take_all(keeper: Keeper, book: Book, room: int, claimed: Claimed, *, known: bool) -> bool:
    """Take what is ready, in order; say whether tasks that wait were sorted in."""
    lines = {priority_of(line): line for line in book.lines if line != DUE_LINE}
    empty: set[str] = set()
    if DUE_LINE in book.lines and not known:
        first = [lines[priority] for priority in sorted(lines, reverse=True)[:1]]
        empty = await keeper.orders.look_into(book, [DUE_LINE, *first], room)
    changed = await fold(keeper, book, known=known or DUE_LINE in empty)
    now = keeper.clock.now()
    for priority in sorted({*lines, *book.priorities}, reverse=True):
        name = lines.get(priority, line_of(priority))
        line = _Line(keeper, book, name, room, known or name in empty)
        await _take(
            keeper, book, priority, line if priority in lines else None, room - len(claimed.slots), now, claimed
        )
        for home in line.passed:
            changed = True
            if home.problem is not None:
                log_once(_log, home.problem, keeper.link.settings.shown)
    return changed


async def _take(
    keeper: Keeper, book: Book, priority: int, line: _Line | None, room: int, now: int, claimed: Claimed
) -> None:
    while room > 0:
        head = None if line is None else await line.head()
        before = (now + 1, 0) if head is None else min((now + 1, 0), _key(head))
        if book.shelves:
            await keeper.shelves.draw(book, priority, before)
        waiting = book.back.get(priority)
        slot = waiting[0] if waiting and waiting[0].at <= now else None
        if head is not None and (slot is None or _key(head) < slot.key):
            assert line is not None
            line.take()
            slot = slot_of(*head)
        elif slot is not None:
            book.withdraw(slot)
            if slot.is_expired(now):
                book.cancel_slot(slot, now)
                claimed.ended.append(slot.id)
                continue
        else:
            return
        if slot.id not in claimed.ids:
            claimed.ids.add(slot.id)
            claimed.slots.append(slot)
            room -= 1


def _key(place: tuple[Home, int]) -> tuple[int, int]:
    home, index = place
    return home.at, home.rank(index)


def running_task(home: Home, slot: Slot, error: TaskError | None = None) -> StoredTask:
    """Give the record of a running task."""
    return live_task(home, slot, TaskState.RUNNING, error)


def live_task(home: Home, slot: Slot, state: TaskState, error: TaskError | None = None) -> StoredTask:
    """Give the record of a task that is running or waits."""
    progress = slot.progress
    return to_task(
        home,
        slot.index,
        state=state,
        run_at=slot.at,
        attempt=slot.attempt,
        delivery=slot.delivery,
        worker=slot.worker,
        started=slot.started,
        lease_until=slot.until,
        error=error,
        progress=None if progress is None else Progress(done=progress[0], total=progress[1], note=progress[2]),
        cancel_requested=slot.cancel,
        keeps_expiry=not slot.expired_order,
    )
