"""Says how tasks stand: by id, page by page, and in numbers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

from attrs import field, frozen

from omniq.errors import CorruptRecord
from omniq.storage import QueueStats, StoredWorker, TaskPage, TaskQuery
from omniq.storage.escaping import get_logger
from omniq.storage.paging import CLOCK_SLACK, Pager, slackened
from omniq.storage.validation import UNREADABLE, check_worker, corrupt, log_once, salvaged
from omniq.task import StoredTask, TaskState
from omniq_nats.claiming import fold, live_task
from omniq_nats.entries import Entry, entry_in_overflow
from omniq_nats.flow_records import is_blocked_at
from omniq_nats.names import BLOCKED_LINE, DUE_LINE, readable
from omniq_nats.queue_state import REMOVED_AHEAD, QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import LISTED, EndRecord
from omniq_nats.task_batches import PLACES, TaskBatch, to_task
from omniq_nats.task_lookup import Place, Torn
from omniq_nats.times import from_micros, micros
from omniq_nats.transport import Conflict, Stored

__all__ = [
    "ENDED",
    "find_live",
    "find_living",
    "get",
    "list_tasks",
    "namespaces",
    "stand",
    "stands",
    "stats",
    "workers",
]

_log = get_logger("omniq.nats")

MOST_AT_ONCE = 50
"""So many tasks at most are looked at where they were a moment ago, before they are looked for."""
LOOK = 200
"""So many tasks at most are looked at in one go."""
NARROWEST, WIDEST = 128, 65536
"""Of so many messages tasks are read in one go; of few first, as they may be large."""

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING
ENDED = TaskState.CANCELLED
"""However it ended."""


def stand(queue_state: QueueState, batch: TaskBatch, index: int) -> Entry | TaskState | None:
    """Say how a task stands as far as its queue state tells.

    :return: its entry, if it runs or waits; READY if nothing has happened to it yet; CANCELLED if it has ended, in
        whichever way, or is on an overflow page: its end record tells; None if it was removed.
    """
    if (batch.seq, index) in queue_state.tombstones:
        return None
    entry = queue_state.live(batch.rows[index][0], batch.seq, index)
    if entry is not None:
        return entry
    if queue_state.is_ahead(batch.line, batch.seq, index):
        why = queue_state.left_out(batch.line, batch.seq, index)
        if why is None:
            return READY
        if why == REMOVED_AHEAD:
            return None
    return ENDED


async def stands(
    state_store: QueueStateStore,
    queue_state: QueueState,
    places: Sequence[Place],
    *,
    with_fates: bool = False,
    pages: Mapping[str, Stored] | None = None,
) -> tuple[list[Entry | TaskState | None], dict[tuple[int, int], EndRecord]]:
    """Say how tasks of a queue stand, as :func:`stand`; SCHEDULED of those that are on an overflow page, or BLOCKED.

    :param with_fates: whether the end records of those that have ended are asked for; otherwise some may be left out.
    :param pages: see :meth:`QueueStateStore.end_records`.
    """
    found = [stand(queue_state, batch, index) for batch, index in places]
    end_records: dict[tuple[int, int], EndRecord] = {}
    gone: set[tuple[int, int]] = set()
    behind = [place for place, how in zip(places, found, strict=True) if how is ENDED and place[0].line == BLOCKED_LINE]
    if with_fates or queue_state.overflow or behind:
        told = [
            place
            for place, how in zip(places, found, strict=True)
            if how is ENDED or (with_fates and isinstance(how, Entry) and how.has_error)
        ]
        end_records = await state_store.end_records(queue_state, told, gone, pages)
    gates = await state_store.task_lookup.gates_of(behind)
    for number, (batch, index) in enumerate(places):
        if found[number] is ENDED and (queue_state.overflow or batch.line == BLOCKED_LINE):
            end_record = end_records.get((batch.seq, index))
            if (batch.seq, index) in gone:
                found[number] = None
            elif batch.line == BLOCKED_LINE and (end_record is None or not end_record.state.is_final):
                is_shut = is_blocked_at(gates, batch, index, end_record)
                found[number] = TaskState.BLOCKED if is_shut else SCHEDULED
            elif end_record is None or end_record.state is SCHEDULED:
                found[number] = SCHEDULED
    return found, end_records


@frozen
class View:
    """All that is needed to say how tasks stand."""

    places: dict[str, Place]
    queue_states: dict[str, QueueState]
    torn: Mapping[str, Torn] = field(factory=dict)
    """The tasks that are there and cannot be read."""
    pages: Mapping[str, Stored] | None = None
    """The pages of results, if they were read, too."""

    @property
    def places_by_queue(self) -> dict[str, list[Place]]:
        """Return the places by the tasks' queues."""
        found: defaultdict[str, list[Place]] = defaultdict(list)
        for place in self.places.values():
            found[place[0].queue].append(place)
        return found


async def view(state_store: QueueStateStore, ids: Sequence[str]) -> View:
    """Read what says how tasks stand; with one question, if it is known where they were a moment ago."""
    seen = await _view_again(state_store, ids) if len(ids) <= MOST_AT_ONCE else None
    if seen is not None:
        return seen
    places, torn = await state_store.task_lookup.find(ids)
    return View(places, await state_store.read(list({batch.queue for batch, _ in places.values()})), torn)


async def _view_again(state_store: QueueStateStore, ids: Sequence[str]) -> View | None:
    places: dict[str, Place] = {}
    for task_id in ids:
        place = state_store.task_lookup.remembered(task_id)
        if place is None:
            return None
        places[task_id] = place
    names = state_store.names
    queue_states = {names.queue_state(batch.queue): batch.queue for batch, _ in places.values()}
    pages = {names.results(batch.queue, batch.ttl, batch.name, batch.seq) for batch, _ in places.values()}
    signs = dict(state_store.task_lookup.sign_of(task_id, place) for task_id, place in places.items())
    found = {one.subject: one for one in await state_store.transport.last([*signs, *queue_states, *pages])}
    if any(subject not in found or found[subject].seq != seq for subject, seq in signs.items()):
        return None  # a task was removed, or is elsewhere
    if any(subject not in found for subject in queue_states):
        return None
    return View(
        places,
        {queue: state_store.book_of(queue, found[subject]) for subject, queue in queue_states.items()},
        pages={subject: found[subject] for subject in pages if subject in found},
    )


async def find_live(state_store: QueueStateStore, ids: Sequence[str]) -> set[str]:
    """Say which of some tasks are there and have not ended."""
    return (await find_living(state_store, ids))[0]


async def find_living(state_store: QueueStateStore, ids: Sequence[str]) -> tuple[set[str], dict[str, int]]:
    """Return which of some tasks are there and have not ended, and how often their queue's state had changed."""
    seen = await view(state_store, ids)
    live: set[str] = set()
    for queue, places in seen.places_by_queue.items():
        found, _ = await stands(state_store, seen.queue_states[queue], places, pages=seen.pages)
        live.update(
            batch.rows[index][0] for (batch, index), how in zip(places, found, strict=True) if how not in (None, ENDED)
        )
    return live, {task_id: seen.queue_states[seen.places[task_id][0].queue].changes for task_id in live}


async def get(state_store: QueueStateStore, ids: Sequence[str]) -> list[StoredTask | None]:
    """Do :meth:`omniq.storage.Storage.get`."""
    seen = await view(state_store, ids)
    tasks = await _tasks_in(state_store, seen)
    places = {task_id: (batch.seq, index) for task_id, (batch, index) in seen.places.items()}
    torn = {task_id: salvaged(one.problem, task_id, {"queue": one.queue}) for task_id, one in seen.torn.items()}
    return [tasks.get(places[task_id]) if task_id in places else torn.get(task_id) for task_id in ids]


async def tasks_at(
    state_store: QueueStateStore, places: Sequence[Place], *, bare: bool = False
) -> dict[tuple[int, int], StoredTask]:
    """Return the records of tasks by their places; those that were removed are left out.

    :param bare: whether as a bare list has them: what is large and kept apart is not read then.
    """
    queue_states = await state_store.read(list({batch.queue for batch, _ in places}))
    return await _tasks_in(
        state_store, View({batch.rows[index][0]: (batch, index) for batch, index in places}, queue_states), bare=bare
    )


async def _tasks_in(
    state_store: QueueStateStore, seen: View, *, bare: bool = False
) -> dict[tuple[int, int], StoredTask]:
    found = await asyncio.gather(
        *(
            _tasks_of(state_store, seen.queue_states[queue], some, seen.pages, bare=bare)
            for queue, some in seen.places_by_queue.items()
        )
    )
    return {place: task for tasks in found for place, task in tasks.items()}


async def _tasks_of(
    state_store: QueueStateStore,
    queue_state: QueueState,
    places: Sequence[Place],
    pages: Mapping[str, Stored] | None,
    *,
    bare: bool,
) -> dict[tuple[int, int], StoredTask]:
    now = state_store.clock.now()
    found, end_records = await stands(state_store, queue_state, places, with_fates=True, pages=pages)
    ids = {(batch.seq, index): batch.rows[index][0] for batch, index in places}
    await state_store.whole(end_records, ids, bare=bare)
    batches = {batch.seq: batch for batch, _ in places}
    if not bare:
        batches = await state_store.task_lookup.with_bodies(batches)
    tasks: dict[tuple[int, int], StoredTask] = {}
    for (one, index), stands_so in zip(places, found, strict=True):
        batch = batches.get(one.seq)
        if batch is None:
            continue  # it was removed meanwhile
        end_record = end_records.get((batch.seq, index))
        how = entry_in_overflow(batch, index, end_record) if stands_so is SCHEDULED else stands_so
        if isinstance(how, Entry):
            state = RUNNING if how.until is not None else READY if how.at <= now else SCHEDULED
            task = live_task(batch, how, state, end_record if how.has_error else None, bare=bare)
        elif how is READY:
            state = READY if batch.run_at(index) <= now else SCHEDULED
            task = to_task(batch, index, state=state, bare=bare)
        elif how is TaskState.BLOCKED:
            entry = entry_in_overflow(batch, index, end_record)
            task = live_task(batch, entry, how, end_record, bare=bare)
        elif how is ENDED and end_record is not None:
            task = ended_task(batch, index, end_record, bare=bare)
        else:
            continue
        tasks[batch.seq, index] = _bared(task, batch.rows[index][9], end_record) if bare else task
    return tasks


def _bared(task: StoredTask, size: int, end_record: EndRecord | None) -> StoredTask:
    """Return the record of a task as a bare list has it.

    :param task: without its body, and without what is kept apart of its end record.
    :param size: of its body.
    """
    if end_record is not None and end_record.sizes is not None:
        return task.bare(size, *end_record.sizes)
    return task.bare(size, None if task.result_payload is None else len(task.result_payload))


def ended_task(batch: TaskBatch, index: int, end_record: EndRecord, *, bare: bool = False) -> StoredTask:
    """Return the record of a task that has ended.

    :param bare: whether to leave out the body.
    """
    return to_task(
        batch,
        index,
        state=end_record.state,
        run_at=end_record.run_at,
        attempt=end_record.attempt,
        delivery=end_record.delivery,
        worker=end_record.worker,
        started=end_record.started,
        finished=end_record.finished,
        error=end_record.error,
        result=end_record.result,
        attempt_log=end_record.attempt_log,
        keeps_expiry=end_record.keeps_expiry,
        bare=bare,
    )


# Page by page


async def list_tasks(state_store: QueueStateStore, query: TaskQuery, cursor: str | None) -> TaskPage[StoredTask]:
    """Do :meth:`omniq.storage.Storage.list_tasks`.

    :raises ValueError: if the cursor is not one of ours.
    """
    before = None if cursor is None else _read_cursor(cursor)
    pager = Pager(query)
    listed = await _listed(state_store, query)
    if listed is not None:
        async for rank, task in _in_order(state_store, listed, before, query):
            if pager.is_done_with(rank, task):
                break
        return pager.page()
    # The stream is read backwards, in windows, as it can be read forwards only.
    end = await state_store.transport.end() + 1 if before is None else before // PLACES + 1
    if before is None and query.enqueued_before is not None:
        end = await _end_before(state_store, query.queue, slackened(query.enqueued_before, CLOCK_SLACK), end)
    width, number = NARROWEST, min(LOOK, query.limit + 1)
    # What was stored together counts where its first message is, and the others are behind that.
    beyond = end + PLACES
    behind: list[TaskBatch] = []
    while end > 1:
        start = max(1, end - width)
        batches = await _window(state_store, query, start, end, beyond) + behind
        behind = [batch for batch in batches if batch.first < start]
        batches = [batch for batch in batches if batch.first >= start]
        rows = [
            (batch.rank(index), batch, index)
            for batch in batches
            for index in range(len(batch))
            # Where it counts how many are looked at, others are, too.
            if query.look_at is not None or _is_asked_for(batch, index, query)
        ]
        if query.name is None and query.tag is None:
            # Of those that cannot be read the number stands for the task itself.
            rows += [(batch.seq * PLACES, batch, -1) for batch in batches if batch.problem is not None]
        rows = sorted((row for row in rows if before is None or row[0] < before), key=lambda row: -row[0])
        while rows:
            part, rows = rows[:number], rows[number:]
            for rank, task in await _records(state_store, part, bare=query.bare):
                if pager.is_done_with(rank, task):
                    return pager.page()
            number = min(2 * number, LOOK)
        end = beyond = start
        width = min(2 * width, WIDEST)
    return pager.page()


async def _listed(state_store: QueueStateStore, query: TaskQuery) -> dict[str, int] | None:
    """Return the ids of the tasks in the states asked for, with the sequences of their batches; perhaps others, too.

    None: it is not known where they are, or they are so many that they are soon met among all.
    """
    states = query.states
    if states is None or not states <= {*LISTED, RUNNING}:
        return None
    # First these: what has ended and is not in them any more is on the list by then.
    queue_states = (
        await state_store.read_all() if query.queue is None else await state_store.read([query.queue])
    ).values()
    ended = sum(sum(one.ended.values()) for one in queue_states)
    number = sum(one.ended.get(state, 0) for one in queue_states for state in states & LISTED)
    if number > LOOK and number * number > ended * query.limit:
        return None
    found: dict[str, int] = {}
    if states & LISTED:
        for stored in await state_store.transport.last_all(state_store.names.all_listed(query.queue)):
            with contextlib.suppress(*UNREADABLE):
                found[readable(stored.subject.rpartition(".")[2])] = int(stored.data.split()[0])
    for queue_state in queue_states:
        if RUNNING in states:
            found |= {entry.id: entry.seq for entry in queue_state.running.values()}
        found |= {one.id: one.seq for one in queue_state.pending.values() if one.end_record.state in states}
    return found


async def _in_order(
    state_store: QueueStateStore, listed: Mapping[str, int], before: int | None, query: TaskQuery
) -> AsyncIterator[tuple[int, StoredTask]]:
    """Yield tasks with their ranks, the latest first.

    :param listed: their ids and the sequences of their batches.
    """
    number = min(LOOK, query.limit + 1)
    ids = sorted(listed, key=lambda task_id: -listed[task_id])
    if before is not None:
        # What was stored in one step has one rank for all, but for the lowest bits, and sequences behind that.
        ids = [task_id for task_id in ids if listed[task_id] <= before // PLACES + 2 * PLACES]
    ready: list[tuple[int, StoredTask]] = []
    for start in range(0, len(ids), number):
        part = ids[start : start + number]
        seen = await view(state_store, part)
        tasks = await _tasks_in(state_store, seen, bare=query.bare)
        for task_id in part:
            if task_id in seen.places:
                batch, index = seen.places[task_id]
                if (task := tasks.get((batch.seq, index))) is not None:
                    ready.append((batch.rank(index), task))
            elif (torn := seen.torn.get(task_id)) is not None:
                ready.append((listed[task_id] * PLACES, salvaged(torn.problem, task_id, {"queue": torn.queue})))
        ready.sort(key=lambda one: one[0])
        # What comes later has ranks below its sequences.
        following = ids[start + number : start + number + 1]
        horizon = (listed[following[0]] + 1) * PLACES if following else 0
        while ready and ready[-1][0] >= horizon:
            rank, task = ready.pop()
            if before is None or rank < before:
                yield rank, task


async def _records(
    state_store: QueueStateStore, rows: Sequence[tuple[int, TaskBatch, int]], *, bare: bool
) -> list[tuple[int, StoredTask]]:
    """Return the records of tasks, each with its rank.

    :param rows: of each the rank, the batch and the number in it; -1: all of a batch that cannot be read.
    """
    places = [(batch, index) for _, batch, index in rows if index >= 0]
    wrong = await state_store.task_lookup.misnamed([place for place in places if place[0].is_shared])
    sound = [place for place in places if (place[0].seq, place[1]) not in wrong]
    tasks = await tasks_at(state_store, sound, bare=bare)
    records: list[tuple[int, StoredTask]] = []
    for rank, batch, index in rows:
        if batch.problem is not None:
            records += [(rank, task) for task in await _torn(state_store, await state_store.task_lookup.torn_in(batch))]
        elif (task := tasks.get((batch.seq, index))) is not None:
            records.append((rank, task))
        elif (batch.seq, index) in wrong:
            records += [(rank, task) for task in await _misnamed(state_store, batch, index)]
    return records


async def _misnamed(state_store: QueueStateStore, batch: TaskBatch, index: int) -> list[StoredTask]:
    """Return what stands for the task of which a batch has another id than what says where the task is."""
    guards, _ = await state_store.transport.scan(
        state_store.names.guards(batch.queue, batch.line), batch.seq + 1 + index, 1
    )
    ids = [readable(guard.subject.rpartition(".")[2]) for guard in guards if guard.seq == batch.seq + 1 + index]
    return await _torn(state_store, ids)


async def _torn(state_store: QueueStateStore, ids: Sequence[str]) -> list[StoredTask]:
    """Return what stands for those of some tasks that cannot be read."""
    _, torn = await state_store.task_lookup.find(ids)
    return [salvaged(one.problem, task_id, {"queue": one.queue}) for task_id, one in torn.items()]


async def _window(state_store: QueueStateStore, query: TaskQuery, start: int, end: int, beyond: int) -> list[TaskBatch]:
    """Return the batches from one message up to another.

    :param end: what was stored together from here on does not count.
    :param beyond: and no message from here on.
    """
    batches: list[TaskBatch] = []
    names = state_store.names
    async for stored in state_store.transport.scan_all(names.batches(query.queue), start, min(256, end - start)):
        if stored.seq >= beyond:
            break
        batch = state_store.task_lookup.read(stored)
        if batch.first < end:
            batches.append(batch)
        elif batch.problem is None:
            break  # and so do all behind it
    return batches


async def _end_before(state_store: QueueStateStore, queue: str | None, moment: datetime, end: int) -> int:
    """Return a sequence from which on all tasks were enqueued at a time or later, in a few steps."""
    low, high, at = 1, end, micros(moment)
    while low < high:
        middle = (low + high) // 2
        found = await state_store.transport.next_ones(state_store.names.batches(queue), middle, 1)
        if not found or state_store.task_lookup.read(found[0]).at >= at:
            high = middle
        else:
            low = middle + 1
    return min(end, low + PLACES)


def _is_asked_for(batch: TaskBatch, index: int, query: TaskQuery) -> bool:
    if query.enqueued_before is not None and from_micros(batch.at) >= query.enqueued_before:
        return False
    row = batch.rows[index]
    return (query.name is None or row[6] == query.name) and (query.tag is None or query.tag in row[8])


def _read_cursor(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdecimal()):
        raise ValueError(f"{cursor!r} is not a cursor of this store")
    return int(cursor)


# In numbers


async def stats(state_store: QueueStateStore) -> list[QueueStats]:
    """Do :meth:`omniq.storage.Storage.stats`."""
    queue_states = await state_store.read_all()
    found = await asyncio.gather(
        *(_patiently(state_store, queue_state) for _, queue_state in sorted(queue_states.items()))
    )
    return [one for one in found if one.paused or any(one.counts.values())]


async def _patiently(state_store: QueueStateStore, queue_state: QueueState) -> QueueStats:
    while True:
        try:
            return await _stats_of(state_store, queue_state)
        except Conflict:  # an overflow page was replaced meanwhile
            queue_state = (await state_store.read([queue_state.queue]))[queue_state.queue]


async def _stats_of(state_store: QueueStateStore, queue_state: QueueState) -> QueueStats:
    if (
        DUE_LINE in queue_state.lines
        and await state_store.task_lookup.ahead(queue_state, DUE_LINE, None, 64) is not None
    ):

        async def step(current: QueueState) -> tuple[QueueState, bool]:
            return current, await fold(state_store, current)

        queue_state = await state_store.change(queue_state.queue, step, remembered=False)
    if queue_state.tombstones:
        # What was removed is counted by the server until its messages are gone.
        await state_store.bury(queue_state.queue, list(queue_state.tombstones.values()))
    now = state_store.clock.now()
    lines = [line for line in queue_state.lines if line != DUE_LINE]
    counts = await asyncio.gather(*(_count_line(state_store, queue_state, line) for line in lines))
    groups = [
        *queue_state.back.values(),
        *[await state_store.overflow.read(queue_state.queue, one) for one in queue_state.overflow if one.at <= now],
    ]
    due = sum(bisect_right(entries, now, key=lambda entry: entry.at) for entries in groups)
    oldest = [entries[0].at for entries in groups if entries[0].at <= now]
    for line, count in zip(lines, counts, strict=True):
        if count:
            oldest += await _oldest_of(state_store, queue_state, line)
    return QueueStats(
        queue=queue_state.queue,
        counts=dict.fromkeys(TaskState, 0)
        | {
            SCHEDULED: len(queue_state.waiting)
            + sum(overflow_page.left for overflow_page in queue_state.overflow)
            - due,
            READY: sum(counts) + due,
            RUNNING: len(queue_state.running),
            **{state: max(0, count) for state, count in queue_state.ended.items()},
        },
        paused=queue_state.paused,
        oldest_ready=max(0.0, (now - min(oldest)) / 1e6) if oldest else None,
    )


async def _count_line(state_store: QueueStateStore, queue_state: QueueState, line: str) -> int:
    if await state_store.task_lookup.ahead(queue_state, line, None, 4) is None:
        return 0  # one question, or none, in place of three: mostly it is so
    seq, taken = queue_state.lines[line]
    names, transport = state_store.names, state_store.transport
    counts = await asyncio.gather(
        *(transport.count(singles, seq + 1 if taken else seq) for singles in names.singles(queue_state.queue, line)),
        transport.count(names.guards(queue_state.queue, line), seq + 1 + taken if taken else seq),
    )
    return sum(counts) - sum(why != REMOVED_AHEAD for why in queue_state.ahead.get(line, {}).values())


async def _oldest_of(state_store: QueueStateStore, queue_state: QueueState, line: str) -> list[int]:
    batch = await state_store.task_lookup.ahead(queue_state, line, None, 4)
    while batch is not None:
        seq, taken = queue_state.lines[line]
        for index in range(taken if batch.seq == seq else 0, len(batch)):
            if queue_state.left_out(line, batch.seq, index) is None:
                return [batch.at]
        batch = await state_store.task_lookup.ahead(queue_state, line, batch, 4)
    return []


async def namespaces(state_store: QueueStateStore) -> list[str]:
    """Do :meth:`omniq.storage.Storage.namespaces`."""
    answer = await state_store.transport.ask("STREAM.NAMES")
    # None, and an error, where this user may not ask.
    return [name.removeprefix("OMNIQ_") for name in answer.get("streams") or () if name.startswith("OMNIQ_")]


async def workers(state_store: QueueStateStore) -> list[StoredWorker]:
    """Do :meth:`omniq.storage.Storage.workers`."""
    now = state_store.clock.now()
    running: defaultdict[str | None, list[str]] = defaultdict(list)
    for queue_state in (await state_store.read_all()).values():
        for entry in queue_state.running.values():
            running[entry.worker].append(entry.id)
    told: dict[str, str] = {}
    for stored in await state_store.transport.last_all(state_store.names.abouts):
        with contextlib.suppress(*UNREADABLE):
            worker, about = json.loads(stored.data)
            told[worker] = about
    alive = []
    for stored in await state_store.transport.last_all(state_store.names.workers):
        try:
            worker, until = read_worker(stored, running, told)
            if until > now:
                alive.append(worker)
        except CorruptRecord as problem:
            log_once(_log, problem, state_store.transport.settings.shown)
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
