"""Hands ready tasks to workers, in order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from attrs import define, evolve, field

from omniq.errors import StorageUnavailable
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.task import Progress, StoredTask, TaskState
from omniq_nats.encoding import encode_queue_state
from omniq_nats.entries import Entry, entry_of
from omniq_nats.fairness import serve
from omniq_nats.names import DUE_LINE, group_in, line_of, priority_of
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import EndRecord
from omniq_nats.task_batches import TaskBatch, to_task
from omniq_nats.times import after

__all__ = ["FlowEnds", "claim", "fold", "live_task"]

_log = get_logger("omniq.nats")

SHARE = 0.75
"""How much of the largest message a queue state may take for more tasks to be claimed."""
SLOT = 250
"""More bytes than a running task takes in its queue state, unless its id is long."""
FOLDED = 2000
"""So many tasks are sorted in at most before a queue state is written."""
FOLDED_BYTES = 64
"""Of results, errors and attempt logs; so many count as one more task."""


MOST_EXPIRED = 200
"""Tasks of flows that are ended in one step as they have expired."""


async def fold(state_store: QueueStateStore, queue_state: QueueState, *, known: bool = False) -> bool:
    """Sort in the tasks of the line of those that wait; return whether there were any.

    :param known: whether to look only at what is known without a question.
    """
    if DUE_LINE not in queue_state.lines:
        return False
    folded = 0
    batch = await state_store.task_lookup.ahead(queue_state, DUE_LINE, None, 64, known=known)
    while batch is not None and folded < FOLDED:
        if batch.problem is not None:
            log_once(_log, batch.problem, state_store.transport.settings.shown)
            queue_state.pass_over(batch)
            folded += 1
        for index in _ahead_in(queue_state, batch):
            if queue_state.left_out(DUE_LINE, batch.seq, index) is None and not _is_taken(queue_state, batch, index):
                folded += _sort_in(queue_state, batch, index)
            queue_state.pass_by(batch, index)
            folded += 1
        batch = await state_store.task_lookup.ahead(queue_state, DUE_LINE, batch, 64, known=known)
    return folded > 0


def _sort_in(queue_state: QueueState, batch: TaskBatch, index: int) -> int:
    """Sort in a task; return as how many more it counts, by what the queue state has to hold of it."""
    entry, past = entry_of(batch, index), batch.past(index)
    if past is None or not past.state.is_final:
        queue_state.put_back(entry)
        return 0
    # It has ended in the store that it came from: it is kept, and counted, as those that have ended here.
    queue_state.end(entry, evolve(past, version=queue_state.changes + 1))
    return past.size // FOLDED_BYTES


def _is_taken(queue_state: QueueState, batch: TaskBatch, index: int) -> bool:
    """Return whether another task has the id of one: whatever wrote that, the one that was there first keeps it."""
    task_id = batch.rows[index][0]
    return task_id in queue_state.running or task_id in queue_state.waiting


def _ahead_in(queue_state: QueueState, batch: TaskBatch) -> range:
    place = queue_state.lines[batch.line]
    return range(place[1] if place[0] == batch.seq else 0, len(batch))


@define(eq=False)
class _Line:
    """One line of ready tasks, read from where claims have come to."""

    state_store: QueueStateStore
    queue_state: QueueState
    name: str
    room: int
    known: bool = False
    """Whether to look only at what is known without a question."""
    batch: TaskBatch | None = None
    index: int = 0
    passed: list[TaskBatch] = field(factory=list)
    """Homes that cannot be read."""
    _next: list[TaskBatch] = field(factory=list, init=False)
    """Those after it, the last first, that are known."""
    _begun: bool = field(default=False, init=False)

    async def head(self) -> tuple[TaskBatch, int] | None:
        """Return the first task that was not claimed yet."""
        while True:
            if self.batch is not None and self.index < len(self.batch):
                left_out = self.queue_state.left_out(self.name, self.batch.seq, self.index) is not None
                if not left_out and not _is_taken(self.queue_state, self.batch, self.index):
                    return self.batch, self.index
                self.take()
                continue
            if self._next:
                following = self._next.pop()
            else:
                lookup = self.state_store.task_lookup
                found = await lookup.ahead(self.queue_state, self.name, self.batch, self.room, known=self.known)
                if found is None:
                    return None
                following = found
                self._next = lookup.known_after(self.queue_state, following)[::-1]
            self.batch = following
            self.index = _ahead_in(self.queue_state, following).start
            if following.problem is not None:
                self.queue_state.pass_over(following)
                self.passed.append(following)

    def take(self) -> None:
        """Go on to the next."""
        assert self.batch is not None
        self.queue_state.pass_by(self.batch, self.index)
        self.index += 1


class Ends(Protocol):
    """What has ended."""

    @property
    def ended(self) -> dict[str, int]:
        """The ids of tasks, each with the number of the change of its queue's state."""


class FlowEnds(Protocol):
    """Ends tasks of flows, each in one step with its flow."""

    async def expire(self, queue: str, ids: Sequence[str]) -> Ends:
        """End tasks that are no longer worth starting."""

    async def end_unreadable(self, queue: str, torn: Mapping[str, StoredTask], lost: Iterable[str]) -> Ends:
        """End tasks that were claimed and cannot be read.

        :param torn: what stands for those of which the order is there, by their ids.
        :param lost: the flows of those of which it is not.
        """


class _MembersExpired(Exception):
    """Tasks of flows come next that are no longer worth starting."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids


@define(eq=False)
class Claimed:
    """What one claim brought."""

    entries: list[Entry] = field(factory=list)
    ended: list[str] = field(factory=list)
    """The ids of those that had expired."""
    ids: set[str] = field(factory=set)
    """Those of the entries."""
    at: int | None = None
    """The time by which limits were looked at, if there are any."""
    is_full: bool = False
    """Whether there may be more, for which there is no room in the queue state."""


async def claim(
    state_store: QueueStateStore,
    flows: FlowEnds,
    demand: Mapping[str, int],
    *,
    worker: str,
    lease: float,
    limit: int | None,
) -> tuple[list[StoredTask], list[str]]:
    """Do :meth:`omniq.storage.Storage.claim`.

    :param flows: ends tasks of flows that are not to be handed out.
    :return: the tasks, and the ids of those that turned out to have expired.
    """
    tasks: list[StoredTask] = []
    ended: list[str] = []
    full: list[str] = []
    for queue, wanted in demand.items():
        room = wanted if limit is None else min(wanted, limit - len(tasks))
        if room > 0:
            claimed = None
            while claimed is None:
                try:
                    claimed = await _claim(state_store, queue, room, worker, lease)
                except _MembersExpired as expired:
                    ended += (await flows.expire(queue, expired.ids)).ended
            batches = await state_store.task_lookup.of_slots(queue, claimed.entries)
            batches = await state_store.task_lookup.with_bodies(batches)
            known = await _known(state_store, queue, claimed.entries, batches)
            found = [
                running_task(batches[entry.seq], entry, known.get((entry.seq, entry.index)))
                for entry in claimed.entries
                if entry.seq in batches
            ]
            sound = [task for task in found if task.state is TaskState.RUNNING]
            if len(sound) < len(claimed.entries):
                ended += await _end_unreadable(state_store, flows, queue, claimed.entries, found)
            tasks += sound
            ended += claimed.ended
            if claimed.is_full:
                full.append(queue)
    if full and not tasks:
        raise StorageUnavailable(
            f"{state_store.transport.settings.shown}: queue {full[0]!r} has as many running tasks as its record can "
            "hold, the "
            f"server's limit being {state_store.transport.max_payload:,} bytes (max_payload): more can be "
            "claimed as these end; "
            "raise the limit, or spread them over more queues"
        )
    return tasks, ended


async def _end_unreadable(
    state_store: QueueStateStore,
    flows: FlowEnds,
    queue: str,
    entries: Sequence[Entry],
    found: Sequence[StoredTask],
) -> list[str]:
    """End what was claimed and cannot be read, before the others are returned.

    :param found: the tasks that were claimed, as far as they are there.
    :return: the ids.
    """
    by_id = {task.id: task for task in found}
    members = {entry.id for entry in entries if entry.flow is not None and entry.id in by_id}
    torn = {task_id: by_id[task_id] for task_id in members if by_id[task_id].state is not TaskState.RUNNING}
    lost = {entry.flow for entry in entries if entry.flow is not None and entry.id not in by_id}

    async def step(queue_state: QueueState) -> tuple[list[str], bool]:
        ended = []
        for entry in entries:
            task, held = by_id.get(entry.id), queue_state.held(entry.id, entry.delivery)
            if held is None or entry.id in members or (task is not None and task.state is TaskState.RUNNING):
                continue
            queue_state.stop(held)
            ended.append(entry.id)
            # Of one whose order is not there any more nothing can be kept.
            if task is not None:
                queue_state.end(
                    held, queue_state.end_record_of(held, TaskState.FAILED, state_store.clock.now(), error=task.error)
                )
        return ended, bool(ended)

    ended = await state_store.change(queue, step)
    if torn or lost:
        ended += (await flows.end_unreadable(queue, torn, lost)).ended
    return ended


async def _known(
    state_store: QueueStateStore, queue: str, entries: Sequence[Entry], batches: Mapping[int, TaskBatch]
) -> dict[tuple[int, int], EndRecord]:
    """Read what earlier attempts left, of the tasks that had any."""
    places = {(entry.seq, entry.index): entry.id for entry in entries if entry.has_error and entry.seq in batches}
    if not places:
        return {}
    queue_state = state_store.remembered(queue) or (await state_store.read([queue]))[queue]
    end_records = await state_store.end_records(queue_state, [(batches[seq], index) for seq, index in places])
    await state_store.whole(end_records, places)
    return end_records


def _room_in(state_store: QueueStateStore, queue_state: QueueState, wanted: int) -> int:
    """Say how many more tasks can run such that there is room in the queue state for what their ends need, too."""
    limit = state_store.transport.max_payload
    if (len(queue_state.running) + wanted) * SLOT < limit // 8:
        return wanted
    return int(SHARE * limit - len(encode_queue_state(queue_state))) // SLOT


async def _claim(state_store: QueueStateStore, queue: str, wanted: int, worker: str, lease: float) -> Claimed:
    attempts = 0

    async def step(queue_state: QueueState) -> tuple[Claimed, bool]:
        nonlocal attempts
        attempts += 1
        if queue_state.paused:
            return Claimed(), False
        changed = False
        claimed = Claimed()
        room = min(wanted, _room_in(state_store, queue_state, wanted))
        if room <= 0:
            claimed.is_full = True
            return claimed, False
        if (
            queue_state.lane is None
            and attempts == 1
            and state_store.is_quiet(queue)
            and state_store.task_lookup.know_all(queue_state)
        ):
            # What a worker was woken for came with the word that woke it. It need ask for nothing then, and that there
            # is nothing else is what the servers check as they accept the change.
            end = state_store.transport.last_seen
            changed = await _take_all(state_store, queue_state, room, claimed, known=True)
            if claimed.entries:
                queue_state.stream_end = end
        if not claimed.entries:
            changed = await _take_all(state_store, queue_state, room, claimed, known=False) or changed
        # By a limit's rate they start at the time at which there was room.
        now = state_store.clock.now() if claimed.at is None else claimed.at
        until = after(now, lease)
        for entry in claimed.entries:
            queue_state.start(entry, worker, now, until)
        return claimed, changed or bool(claimed.entries or claimed.ended)

    return await state_store.change(queue, step)


async def _take_all(
    state_store: QueueStateStore, queue_state: QueueState, room: int, claimed: Claimed, *, known: bool
) -> bool:
    """Take what is ready, in order; say whether tasks that wait were sorted in."""
    lines = {priority_of(line): line for line in queue_state.lines if line != DUE_LINE and not group_in(line)}
    empty: set[str] = set()
    if DUE_LINE in queue_state.lines and not known:
        first = [lines[priority] for priority in sorted(lines, reverse=True)[:1]]
        empty = await state_store.task_lookup.look_into(queue_state, [DUE_LINE, *first], room)
    changed = await fold(state_store, queue_state, known=known or DUE_LINE in empty)
    now = state_store.clock.now()
    if queue_state.lane is not None:
        changed = await state_store.overflow.draw_lined(queue_state, now) or changed
        claimed.at = now
        source = _Source(state_store, queue_state, room, now, claimed)
        changed = await serve(state_store.limits, queue_state, source, room, now) or changed
        return changed or source.has_passed
    for priority in sorted({*lines, *queue_state.priorities}, reverse=True):
        name = lines.get(priority, line_of(priority))
        line = _Line(state_store, queue_state, name, room, known or name in empty)
        await _take(
            state_store,
            queue_state,
            name,
            line if priority in lines else None,
            room - len(claimed.entries),
            now,
            claimed,
        )
        if name in queue_state.lines and state_store.task_lookup.runs_short(queue_state, name, room):
            state_store.later(state_store.task_lookup.read_on(queue_state.queue, name, room))
        for batch in line.passed:
            changed = True
            if batch.problem is not None:
                log_once(_log, batch.problem, state_store.transport.settings.shown)
    return changed


async def _take(
    state_store: QueueStateStore,
    queue_state: QueueState,
    name: str,
    line: _Line | None,
    room: int,
    now: int,
    claimed: Claimed,
) -> None:
    while room > 0:
        head = None if line is None else await line.head()
        if queue_state.overflow and not group_in(name):
            before = (now + 1, 0) if head is None else min((now + 1, 0), _key(head))
            await state_store.overflow.draw(queue_state, priority_of(name), before)
        waiting = queue_state.back.get(name)
        entry = waiting[0] if waiting and waiting[0].at <= now else None
        if head is not None and (entry is None or _key(head) < entry.key):
            assert line is not None
            line.take()
            entry = entry_of(*head)
        elif entry is not None:
            queue_state.withdraw(entry)
            if entry.is_expired(now):
                if entry.flow is not None:
                    others = [one.id for one in queue_state.waiting.values() if one.flow and one.is_expired(now)]
                    raise _MembersExpired([entry.id, *others[:MOST_EXPIRED]])
                queue_state.cancel_slot(entry, now)
                claimed.ended.append(entry.id)
                continue
        else:
            return
        if entry.id not in claimed.ids:
            claimed.ids.add(entry.id)
            claimed.entries.append(entry)
            room -= 1


class _Source:
    """Takes tasks of the lines of a queue that has a lane, see :class:`omniq_nats.fairness.Source`."""

    def __init__(
        self, state_store: QueueStateStore, queue_state: QueueState, room: int, now: int, claimed: Claimed
    ) -> None:
        self._state_store = state_store
        self._queue_state = queue_state
        self._room = room
        self._now = now
        self._claimed = claimed
        self._lines: dict[str, _Line] = {}
        self.has_passed = False
        """Whether lines turned out to hold less than was known."""

    @property
    def taken(self) -> int:
        return len(self._claimed.entries)

    def _line(self, name: str) -> _Line | None:
        if name not in self._queue_state.lines:
            return None
        if name not in self._lines:
            self._lines[name] = _Line(self._state_store, self._queue_state, name, self._room)
        return self._lines[name]

    async def priority(self) -> int | None:
        names = {line for line in self._queue_state.lines if line != DUE_LINE and not group_in(line)}
        for priority in sorted({*map(priority_of, names), *self._queue_state.priorities}, reverse=True):
            name = line_of(priority)
            line = self._line(name)
            if line is not None and await line.head() is not None:
                return priority
            await self._state_store.overflow.draw(self._queue_state, priority, (self._now + 1, 0))
            waiting = self._queue_state.back.get(name)
            if waiting and waiting[0].at <= self._now:
                return priority
        return None

    async def take(self, line: str, number: int) -> None:
        source, lane, before = self._line(line), self._queue_state.lane, self.taken
        await _take(self._state_store, self._queue_state, line, source, number, self._now, self._claimed)
        if source is None:
            return
        for batch in source.passed:
            self.has_passed = True
            if batch.problem is not None:
                log_once(_log, batch.problem, self._state_store.transport.settings.shown)
        source.passed.clear()
        short = self.taken - before < number
        if short and lane is not None and lane.counts.get(line, 0) > 0 and await source.head() is None:
            transport, place = self._state_store.transport, self._queue_state.lines[line]
            subject = self._state_store.names.line(self._queue_state.queue, line)
            # A replica may not have come to them yet; what the leader does not have is gone, or cannot be read.
            if not await transport.leader_has(subject, place[0], sys.maxsize):
                lane.counts[line] = 0
                self.has_passed = True

    async def look_ahead(self, lines: list[str], number: int) -> None:
        await self._state_store.task_lookup.look_into(self._queue_state, lines, number)


def _key(place: tuple[TaskBatch, int]) -> tuple[int, int]:
    batch, index = place
    return batch.at, batch.rank(index)


def running_task(batch: TaskBatch, entry: Entry, known: EndRecord | None = None) -> StoredTask:
    """Return the record of a running task."""
    return live_task(batch, entry, TaskState.RUNNING, known)


def live_task(
    batch: TaskBatch, entry: Entry, state: TaskState, known: EndRecord | None = None, *, bare: bool = False
) -> StoredTask:
    """Return the record of a task that is running or waits.

    :param known: has what earlier attempts left.
    :param bare: whether to leave out the body.
    """
    progress = entry.progress
    return to_task(
        batch,
        entry.index,
        state=state,
        run_at=entry.at,
        attempt=entry.attempt,
        delivery=entry.delivery,
        worker=entry.worker,
        started=entry.started,
        lease_until=entry.until,
        error=None if known is None else known.error,
        attempt_log="" if known is None else known.attempt_log,
        progress=None if progress is None else Progress(done=progress[0], total=progress[1], note=progress[2]),
        cancel_requested=entry.cancel,
        keeps_expiry=not entry.expired_order,
        bare=bare,
    )
