"""Reads records of tasks by id, counts of queues, and workers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence

from omniq.errors import CorruptRecord
from omniq.storage import QueueStats, StoredWorker
from omniq.storage.corrupt_records import corrupt, log_once, salvaged
from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE, check_worker
from omniq.task import StoredTask, TaskState
from omniq_nats.claiming import fold, live_task
from omniq_nats.entries import Entry, entry_in_overflow, entry_of
from omniq_nats.names import DUE_LINE, readable
from omniq_nats.queue_state import REMOVED_AHEAD, QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import EndRecord
from omniq_nats.standing import ENDED, View, stands, view
from omniq_nats.task_batches import TaskBatch, to_task
from omniq_nats.task_lookup import Place
from omniq_nats.times import from_micros
from omniq_nats.transport import Conflict, Stored

__all__ = ["ended_task", "get", "namespaces", "read_worker", "stats", "tasks_at", "tasks_in", "workers"]

_log = get_logger("omniq.nats")

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING


async def get(state_store: QueueStateStore, ids: Sequence[str]) -> list[StoredTask | None]:
    """Do :meth:`omniq.storage.Storage.get`."""
    seen = await view(state_store, ids)
    tasks = await tasks_in(state_store, seen)
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
    return await tasks_in(
        state_store, View({batch.rows[index][0]: (batch, index) for batch, index in places}, queue_states), bare=bare
    )


async def tasks_in(
    state_store: QueueStateStore, seen: View, *, bare: bool = False
) -> dict[tuple[int, int], StoredTask]:
    """Return the records of tasks that were found, by their places."""
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
            task = live_task(batch, entry_of(batch, index), state, end_record, bare=bare)
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
    if queue_state.lane is not None and line in queue_state.lane.counts:
        return max(0, queue_state.lane.counts[line])
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
