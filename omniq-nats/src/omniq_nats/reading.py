"""Says how tasks stand: by id, page by page, and in numbers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.storage import QueueStats, StoredWorker, TaskPage, TaskQuery
from omniq.storage.validation import UNREADABLE, check_worker, corrupt, log_once, salvaged
from omniq.task import StoredTask, TaskState
from omniq_nats.book import REMOVED_AHEAD, Book
from omniq_nats.claiming import fold, live_task
from omniq_nats.fates import Fate
from omniq_nats.homes import PLACES, Home, to_task
from omniq_nats.keeper import Keeper
from omniq_nats.link import Conflict, Stored
from omniq_nats.names import DUE_LINE, readable
from omniq_nats.orders import Place, Torn
from omniq_nats.slots import Slot, slot_of
from omniq_nats.times import from_micros

__all__ = [
    "ENDED",
    "find_live",
    "find_living",
    "get",
    "list_tasks",
    "namespaces",
    "slot_on_shelf",
    "stand",
    "stands",
    "stats",
    "workers",
]

_log = get_logger("omniq.nats")

MOST_AT_ONCE = 50
"""So many tasks at most are looked at where they were a moment ago, before they are looked for."""
LOOK = 200
WIDEST = 65536

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING
ENDED = TaskState.CANCELLED
"""However it ended."""


def stand(book: Book, home: Home, index: int) -> Slot | TaskState | None:
    """Say how a task stands as far as its book tells.

    :return: its slot, if it runs or waits; READY if nothing has happened to it yet; CANCELLED if it has ended, in
        whichever way, or is on a shelf: its fate tells; None if it was removed.
    """
    if (home.seq, index) in book.doomed:
        return None
    slot = book.live(home.rows[index][0], home.seq, index)
    if slot is not None:
        return slot
    if book.is_ahead(home.line, home.seq, index):
        why = book.left_out(home.line, home.seq, index)
        if why is None:
            return READY
        if why == REMOVED_AHEAD:
            return None
    return ENDED


async def stands(
    keeper: Keeper,
    book: Book,
    places: Sequence[Place],
    *,
    with_fates: bool = False,
    pages: Mapping[str, Stored] | None = None,
) -> tuple[list[Slot | TaskState | None], dict[tuple[int, int], Fate]]:
    """Say how tasks of a queue stand, as :func:`stand`; SCHEDULED of those that are on a shelf.

    :param with_fates: whether the fates of those that have ended are asked for; otherwise some may be left out.
    :param pages: see :meth:`Keeper.fates`.
    """
    found = [stand(book, home, index) for home, index in places]
    fates: dict[tuple[int, int], Fate] = {}
    gone: set[tuple[int, int]] = set()
    if with_fates or book.shelves:
        told = [
            place
            for place, how in zip(places, found, strict=True)
            if how is ENDED or (with_fates and isinstance(how, Slot) and how.has_error)
        ]
        fates = await keeper.fates(book, told, gone, pages)
    for number, (home, index) in enumerate(places):
        if found[number] is ENDED and book.shelves:
            fate = fates.get((home.seq, index))
            if (home.seq, index) in gone:
                found[number] = None
            elif fate is None or fate.state is SCHEDULED:
                found[number] = SCHEDULED
    return found, fates


@frozen
class View:
    """All that is needed to say how tasks stand."""

    places: dict[str, Place]
    books: dict[str, Book]
    torn: Mapping[str, Torn] = field(factory=dict)
    """The tasks that are there and cannot be read."""
    pages: Mapping[str, Stored] | None = None
    """The pages of results, if they were read, too."""

    @property
    def places_by_queue(self) -> dict[str, list[Place]]:
        """Give the places by the tasks' queues."""
        found: defaultdict[str, list[Place]] = defaultdict(list)
        for place in self.places.values():
            found[place[0].queue].append(place)
        return found


async def view(keeper: Keeper, ids: Sequence[str]) -> View:
    """Read what says how tasks stand; with one question, if it is known where they were a moment ago."""
    seen = await _view_again(keeper, ids) if len(ids) <= MOST_AT_ONCE else None
    if seen is not None:
        return seen
    places, torn = await keeper.orders.find(ids)
    return View(places, await keeper.read(list({home.queue for home, _ in places.values()})), torn)


async def _view_again(keeper: Keeper, ids: Sequence[str]) -> View | None:
    places: dict[str, Place] = {}
    for task_id in ids:
        place = keeper.orders.remembered(task_id)
        if place is None:
            return None
        places[task_id] = place
    names = keeper.names
    books = {names.book(home.queue): home.queue for home, _ in places.values()}
    pages = {names.results(home.queue, home.ttl, home.name, home.seq) for home, _ in places.values()}
    signs = dict(keeper.orders.sign_of(task_id, place) for task_id, place in places.items())
    found = {one.subject: one for one in await keeper.link.last([*signs, *books, *pages])}
    if any(subject not in found or found[subject].seq != seq for subject, seq in signs.items()):
        return None  # a task was removed, or is elsewhere
    if any(subject not in found for subject in books):
        return None
    return View(
        places,
        {queue: keeper.book_of(queue, found[subject]) for subject, queue in books.items()},
        pages={subject: found[subject] for subject in pages if subject in found},
    )


async def find_live(keeper: Keeper, ids: Sequence[str]) -> set[str]:
    """Say which of some tasks are there and have not ended."""
    return (await find_living(keeper, ids))[0]


async def find_living(keeper: Keeper, ids: Sequence[str]) -> tuple[set[str], dict[str, int]]:
    """Say which of some tasks are there and have not ended, and how often the book of each had been changed by then."""
    seen = await view(keeper, ids)
    live: set[str] = set()
    for queue, places in seen.places_by_queue.items():
        found, _ = await stands(keeper, seen.books[queue], places, pages=seen.pages)
        live.update(
            home.rows[index][0] for (home, index), how in zip(places, found, strict=True) if how not in (None, ENDED)
        )
    return live, {task_id: seen.books[seen.places[task_id][0].queue].changes for task_id in live}


async def get(keeper: Keeper, ids: Sequence[str]) -> list[StoredTask | None]:
    """Do :meth:`omniq.storage.Storage.get`."""
    seen = await view(keeper, ids)
    tasks = await _tasks_in(keeper, seen)
    places = {task_id: (home.seq, index) for task_id, (home, index) in seen.places.items()}
    torn = {task_id: salvaged(one.problem, task_id, {"queue": one.queue}) for task_id, one in seen.torn.items()}
    return [tasks.get(places[task_id]) if task_id in places else torn.get(task_id) for task_id in ids]


async def tasks_at(keeper: Keeper, places: Sequence[Place]) -> dict[tuple[int, int], StoredTask]:
    """Give the records of tasks by their places; those that were removed are left out."""
    books = await keeper.read(list({home.queue for home, _ in places}))
    return await _tasks_in(keeper, View({home.rows[index][0]: (home, index) for home, index in places}, books))


async def _tasks_in(keeper: Keeper, seen: View) -> dict[tuple[int, int], StoredTask]:
    found = await asyncio.gather(
        *(_tasks_of(keeper, seen.books[queue], some, seen.pages) for queue, some in seen.places_by_queue.items())
    )
    return {place: task for tasks in found for place, task in tasks.items()}


async def _tasks_of(
    keeper: Keeper, book: Book, places: Sequence[Place], pages: Mapping[str, Stored] | None
) -> dict[tuple[int, int], StoredTask]:
    now = keeper.clock.now()
    found, fates = await stands(keeper, book, places, with_fates=True, pages=pages)
    await keeper.whole(fates, {(home.seq, index): home.rows[index][0] for home, index in places})
    tasks: dict[tuple[int, int], StoredTask] = {}
    for (home, index), stands_so in zip(places, found, strict=True):
        fate = fates.get((home.seq, index))
        how = slot_on_shelf(home, index, fate) if stands_so is SCHEDULED else stands_so
        if isinstance(how, Slot):
            state = RUNNING if how.until is not None else READY if how.at <= now else SCHEDULED
            error = fate.error if fate is not None and how.has_error else None
            tasks[home.seq, index] = live_task(home, how, state, error)
        elif how is READY:
            state = READY if home.order(index).run_at <= now else SCHEDULED
            tasks[home.seq, index] = to_task(home, index, state=state)
        elif how is ENDED and fate is not None:
            tasks[home.seq, index] = ended_task(home, index, fate)
    return tasks


def slot_on_shelf(home: Home, index: int, fate: Fate | None) -> Slot:
    """Give the slot of a task that is on a shelf, as far as it can be known without looking there."""
    slot = slot_of(home, index)
    if fate is not None:
        slot.at, slot.attempt, slot.delivery = fate.run_at, fate.attempt, fate.delivery
        slot.worker, slot.started = fate.worker, fate.started
        slot.has_error = fate.error is not None
        slot.expired_order = not fate.keeps_expiry
    return slot


def ended_task(home: Home, index: int, fate: Fate) -> StoredTask:
    """Give the record of a task that has ended."""
    return to_task(
        home,
        index,
        state=fate.state,
        run_at=fate.run_at,
        attempt=fate.attempt,
        delivery=fate.delivery,
        worker=fate.worker,
        started=fate.started,
        finished=fate.finished,
        error=fate.error,
        result=fate.result,
        keeps_expiry=fate.keeps_expiry,
    )


# Page by page


async def list_tasks(keeper: Keeper, query: TaskQuery, cursor: str | None) -> TaskPage[StoredTask]:
    """Do :meth:`omniq.storage.Storage.list_tasks`.

    :raises ValueError: if the cursor is not one of ours.
    """
    before = None if cursor is None else _read_cursor(cursor)
    found: list[tuple[int, StoredTask]] = []
    # The stream is read backwards, in windows, as it can be read forwards only.
    end = await keeper.link.end() + 1 if before is None else before // PLACES + 1
    width = 2 * PLACES
    while end > 1:
        start = max(1, end - width)
        homes = await _window(keeper, query, start, end)
        rows = [
            (home.rank(index), home, index)
            for home in homes
            for index in range(len(home))
            if _is_asked_for(home, index, query)
        ]
        if query.name is None and query.tag is None:
            # Of those that cannot be read the number stands for the task itself.
            rows += [(home.seq * PLACES, home, -1) for home in homes if home.problem is not None]
        rows = sorted((row for row in rows if before is None or row[0] < before), key=lambda row: -row[0])
        for part in range(0, len(rows), LOOK):
            for rank, task in await _records(keeper, rows[part : part + LOOK]):
                if query.state is not None and task.state is not query.state:
                    continue
                if len(found) >= query.limit and rank < found[-1][0]:
                    return TaskPage(tuple(task for _, task in found), str(found[-1][0]))
                found.append((rank, task))
        end = start
        width = min(2 * width, WIDEST)
    return TaskPage(tuple(task for _, task in found), None)


async def _records(keeper: Keeper, rows: Sequence[tuple[int, Home, int]]) -> list[tuple[int, StoredTask]]:
    """Return the records of tasks, each with its rank.

    :param rows: of each the rank, the home and the number in it; -1: all of a home that cannot be read.
    """
    places = [(home, index) for _, home, index in rows if index >= 0]
    wrong = await keeper.orders.misnamed([place for place in places if place[0].is_shared])
    tasks = await tasks_at(keeper, [place for place in places if (place[0].seq, place[1]) not in wrong])
    records: list[tuple[int, StoredTask]] = []
    for rank, home, index in rows:
        if home.problem is not None:
            records += [(rank, task) for task in await _torn(keeper, await keeper.orders.torn_in(home))]
        elif (task := tasks.get((home.seq, index))) is not None:
            records.append((rank, task))
        elif (home.seq, index) in wrong:
            records += [(rank, task) for task in await _misnamed(keeper, home, index)]
    return records


async def _misnamed(keeper: Keeper, home: Home, index: int) -> list[StoredTask]:
    """Return what stands for the task of which a home has another id than what says where the task is."""
    guards, _ = await keeper.link.scan(keeper.names.guards(home.queue, home.line), home.seq + 1 + index, 1)
    ids = [readable(guard.subject.rpartition(".")[2]) for guard in guards if guard.seq == home.seq + 1 + index]
    return await _torn(keeper, ids)


async def _torn(keeper: Keeper, ids: Sequence[str]) -> list[StoredTask]:
    """Return what stands for those of some tasks that cannot be read."""
    _, torn = await keeper.orders.find(ids)
    return [salvaged(one.problem, task_id, {"queue": one.queue}) for task_id, one in torn.items()]


async def _window(keeper: Keeper, query: TaskQuery, start: int, end: int) -> list[Home]:
    """Give the homes of what was stored together from one message up to another."""
    homes: list[Home] = []
    async for stored in keeper.link.scan_all(keeper.names.homes(query.queue), start):
        if stored.seq >= end + PLACES:
            break
        home = keeper.orders.read(stored)
        if start <= home.first < end:
            homes.append(home)
    return homes


def _is_asked_for(home: Home, index: int, query: TaskQuery) -> bool:
    if query.name is None and query.tag is None:
        return True
    order = home.order(index)
    return (query.name is None or order.name == query.name) and (query.tag is None or query.tag in order.tags)


def _read_cursor(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdecimal()):
        raise ValueError(f"{cursor!r} is not a cursor of this store")
    return int(cursor)


# In numbers


async def stats(keeper: Keeper) -> list[QueueStats]:
    """Do :meth:`omniq.storage.Storage.stats`."""
    books = await keeper.read_all()
    found = await asyncio.gather(*(_patiently(keeper, book) for _, book in sorted(books.items())))
    return [one for one in found if one.paused or any(one.counts.values())]


async def _patiently(keeper: Keeper, book: Book) -> QueueStats:
    while True:
        try:
            return await _stats_of(keeper, book)
        except Conflict:  # a shelf was replaced meanwhile
            book = (await keeper.read([book.queue]))[book.queue]


async def _stats_of(keeper: Keeper, book: Book) -> QueueStats:
    if DUE_LINE in book.lines and await keeper.orders.ahead(book, DUE_LINE, None, 64) is not None:

        async def step(current: Book) -> tuple[Book, bool]:
            return current, await fold(keeper, current)

        book = await keeper.change(book.queue, step, remembered=False)
    if book.doomed:
        # What was removed is counted by the server until its messages are gone.
        await keeper.bury(book.queue, list(book.doomed.values()))
    now = keeper.clock.now()
    lines = [line for line in book.lines if line != DUE_LINE]
    counts = await asyncio.gather(*(_count_line(keeper, book, line) for line in lines))
    groups = [
        *book.back.values(),
        *[await keeper.shelves.read(book.queue, one) for one in book.shelves if one.at <= now],
    ]
    due = sum(bisect_right(slots, now, key=lambda slot: slot.at) for slots in groups)
    oldest = [slots[0].at for slots in groups if slots[0].at <= now]
    for line, count in zip(lines, counts, strict=True):
        if count:
            oldest += await _oldest_of(keeper, book, line)
    return QueueStats(
        queue=book.queue,
        counts={
            SCHEDULED: len(book.waiting) + sum(shelf.left for shelf in book.shelves) - due,
            READY: sum(counts) + due,
            RUNNING: len(book.running),
            **{state: max(0, count) for state, count in book.ended.items()},
        },
        paused=book.paused,
        oldest_ready=max(0.0, (now - min(oldest)) / 1e6) if oldest else None,
    )


async def _count_line(keeper: Keeper, book: Book, line: str) -> int:
    if await keeper.orders.ahead(book, line, None, 4) is None:
        return 0  # one question, or none, in place of three: mostly it is so
    seq, taken = book.lines[line]
    names, link = keeper.names, keeper.link
    counts = await asyncio.gather(
        *(link.count(singles, seq + 1 if taken else seq) for singles in names.singles(book.queue, line)),
        link.count(names.guards(book.queue, line), seq + 1 + taken if taken else seq),
    )
    return sum(counts) - sum(why != REMOVED_AHEAD for why in book.ahead.get(line, {}).values())


async def _oldest_of(keeper: Keeper, book: Book, line: str) -> list[int]:
    home = await keeper.orders.ahead(book, line, None, 4)
    while home is not None:
        seq, taken = book.lines[line]
        for index in range(taken if home.seq == seq else 0, len(home)):
            if book.left_out(line, home.seq, index) is None:
                return [home.at]
        home = await keeper.orders.ahead(book, line, home, 4)
    return []


async def namespaces(keeper: Keeper) -> list[str]:
    """Do :meth:`omniq.storage.Storage.namespaces`."""
    answer = await keeper.link.ask("STREAM.NAMES")
    # None, and an error, where this user may not ask.
    return [name.removeprefix("OMNIQ_") for name in answer.get("streams") or () if name.startswith("OMNIQ_")]


async def workers(keeper: Keeper) -> list[StoredWorker]:
    """Do :meth:`omniq.storage.Storage.workers`."""
    now = keeper.clock.now()
    running: defaultdict[str | None, list[str]] = defaultdict(list)
    for book in (await keeper.read_all()).values():
        for slot in book.running.values():
            running[slot.worker].append(slot.id)
    told: dict[str, str] = {}
    for stored in await keeper.link.last_all(keeper.names.abouts):
        with contextlib.suppress(*UNREADABLE):
            worker, about = json.loads(stored.data)
            told[worker] = about
    alive = []
    for stored in await keeper.link.last_all(keeper.names.workers):
        try:
            worker, until = read_worker(stored, running, told)
            if until > now:
                alive.append(worker)
        except CorruptRecord as problem:
            log_once(_log, problem, keeper.link.settings.shown)
    return sorted(alive, key=lambda info: info.id)


def read_worker(
    stored: Stored, running: Mapping[str | None, Sequence[str]], told: Mapping[str, str]
) -> tuple[StoredWorker, int]:
    """Read when a worker was last heard of.

    :param running: the ids of running tasks by their workers.
    :param told: what workers told about themselves.
    :return: the worker, and the time, in microseconds, until which it counts as alive.
    :raises CorruptRecord: if it cannot be read.
    """
    name = readable(stored.subject.rpartition(".")[2])
    try:
        worker_id, seen, until = json.loads(stored.data)
        if worker_id != name:
            raise ValueError("it names another worker than its subject")
        if type(until) is not int:
            raise ValueError("it does not say until when it counts")
        about = told.get(worker_id)
        worker = StoredWorker(
            id=worker_id,
            seen_at=from_micros(seen),
            running=tuple(running.get(worker_id, ())),
            about=about if isinstance(about, str) else None,
        )
        return check_worker(worker), until
    except UNREADABLE as error:
        place = f"message {stored.seq} on {stored.subject}"
        raise corrupt("worker", name, error, place=place) from error
