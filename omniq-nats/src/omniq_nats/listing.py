"""Lists tasks page by page, the latest first."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

from omniq.storage import TaskPage, TaskQuery
from omniq.storage.corrupt_records import salvaged
from omniq.storage.paging import CLOCK_SLACK, Pager, slackened
from omniq.storage.validation import UNREADABLE
from omniq.task import StoredTask, TaskState
from omniq_nats.names import readable
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.reading import tasks_at, tasks_in
from omniq_nats.results import LISTED
from omniq_nats.standing import view
from omniq_nats.task_batches import PLACES, TaskBatch
from omniq_nats.times import from_micros, micros

__all__ = ["list_tasks"]

LOOK = 200
"""So many tasks at most are looked at in one go."""
NARROWEST, WIDEST = 128, 65536
"""Of so many messages tasks are read in one go; of few first, as they may be large."""


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
    if states is None or not states <= {*LISTED, TaskState.RUNNING}:
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
        if TaskState.RUNNING in states:
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
        tasks = await tasks_in(state_store, seen, bare=query.bare)
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
        found = await state_store.transport.next_ones(state_store.names.batches(queue), [middle])
        if not found or state_store.task_lookup.read(found[0]).at >= at:
            high = middle
        else:
            low = middle + 1
    return min(end, low + PLACES)


def _is_asked_for(batch: TaskBatch, index: int, query: TaskQuery) -> bool:
    if query.enqueued_before is not None and from_micros(batch.created_at(index)) >= query.enqueued_before:
        return False
    row = batch.rows[index]
    return (query.name is None or row[6] == query.name) and (query.tag is None or query.tag in row[8])


def _read_cursor(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdecimal()):
        raise ValueError(f"{cursor!r} is not a cursor of this store")
    return int(cursor)


# In numbers
