"""Finds tasks as they were enqueued: by id, by batch, and along the lines in which they wait to be claimed."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, evolve, field, frozen

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt
from omniq_nats.entries import Entry
from omniq_nats.flow_records import GATES, GatePage, read_gates
from omniq_nats.names import group_in, readable
from omniq_nats.queue_state import QueueState
from omniq_nats.task_batches import TaskBatch, read_batch, read_guard
from omniq_nats.transport import Stored, Transport

__all__ = ["Place", "TaskLookup", "Torn"]

MOST_BYTES = 16 * 1024 * 1024
"""Of memory that remembered batches take, about."""
REMEMBERED = 2000
"""Tasks of which it is known where they are."""
AHEAD = 4
"""So many times as many tasks as are wanted are read of a line: the next claims will want them."""
MOST_READ = 512
"""Tasks, at most, that are read of a line at once."""
MOST_BYTES_READ = 1024 * 1024
WIDEST = 256
"""So many batches of a line are asked for at once, at most."""
MOST_LINES = 2000
"""Of so many lines it is known how they go on."""
FAR_BEHIND = 500
"""Messages: so far the place in an empty line may lie behind the end of the stream."""

Place = tuple[TaskBatch, int]
"""A batch, and the number of a task in it."""


@frozen
class Torn:
    """A task that is there and cannot be read."""

    problem: CorruptRecord
    queue: str
    seqs: list[int]
    """The messages by which it is there."""


@define(eq=False)
class _Part:
    """A part of a line without gaps: every batch from one sequence up to another."""

    start: int = 0
    end: int = 0
    batches: list[TaskBatch] = field(factory=list)
    has_more: bool = False
    """Whether there was more behind it when it was last read on."""
    width: int = 1
    """How many batches are asked for at once when it is next read on."""
    stride: int = 1
    """How far these are taken to be apart, as their guards are between them."""
    reading: asyncio.Lock = field(factory=asyncio.Lock)

    def following(self, after: TaskBatch | None) -> TaskBatch | None:
        """Return the first batch after one, or the first of all."""
        for batch in self.batches:
            if after is None or batch.seq > after.seq:
                return batch
        return None

    def trim(self, seq: int, taken: int) -> None:
        """Begin at a place; anew, if that lies before what is known."""
        if not self.start <= seq <= self.end:
            self.batches.clear()
            self.start = self.end = seq
        self.start = seq
        passed = 0
        for batch in self.batches:
            if batch.seq > seq or (batch.seq == seq and len(batch) > taken):
                break
            passed += 1
        if passed:
            del self.batches[:passed]


class TaskLookup:
    """Reads batches, and remembers some: they never change, and none has the sequence of another.

    :param transport: to read with.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._names = transport.settings.names
        self._batches: OrderedDict[int, TaskBatch] = OrderedDict()
        self._bytes = 0
        self._ahead: OrderedDict[tuple[str, str], _Part] = OrderedDict()
        self._places: OrderedDict[str, Place | Stored] = OrderedDict()
        self._generation = transport.generation

    def _forget_lost(self) -> None:
        """Forget all that was read through an earlier connection: servers may have lost what was not on their disks."""
        if self._generation != self._transport.generation:
            self._generation = self._transport.generation
            self._batches.clear()
            self._bytes = 0
            self._ahead.clear()
            self._places.clear()

    def read(self, stored: Stored) -> TaskBatch:
        """Read a batch, or give it as it is remembered."""
        self._forget_lost()
        batch = self._batches.get(stored.seq)
        if batch is None:
            batch = self._batches[stored.seq] = read_batch(stored)
            self._bytes += _room_of(batch)
            while self._bytes > MOST_BYTES and len(self._batches) > 1:
                _, oldest = self._batches.popitem(last=False)
                self._bytes -= _room_of(oldest)
        return batch

    async def of_slots(self, queue: str, entries: Iterable[Entry]) -> dict[int, TaskBatch]:
        """Return the batches of entries by their sequence; those that are gone are left out."""
        self._forget_lost()
        found: dict[int, TaskBatch] = {}
        missing: dict[str, int] = {}
        for entry in entries:
            batch = self._batches.get(entry.seq)
            if batch is not None:
                found[entry.seq] = batch
            else:
                missing[self._names.batch(queue, entry.batch)] = entry.seq
        if missing:
            for stored in await self._transport.last(list(missing)):
                if stored.seq == missing[stored.subject]:
                    found[stored.seq] = self.read(stored)
        return found

    async def with_bodies(self, batches: Mapping[int, TaskBatch]) -> dict[int, TaskBatch]:
        """Return batches by their sequence with the bodies that are kept apart; those that are gone are left out.

        These are not remembered, as they are large. Of one that is not there the batch stays without it.
        """
        whole = dict(batches)
        apart = {self._names.body(batch.rows[0][0]): batch for batch in whole.values() if batch.blobs is None}
        if not apart:
            return whole
        for stored in await self._transport.last(list(apart)):
            batch = apart[stored.subject]
            if stored.seq == batch.seq + 1 and len(stored.data) == batch.rows[0][9]:
                whole[batch.seq] = evolve(batch, blobs=stored.data)
        # They are taken away after their batches.
        missing = [batch for batch in whole.values() if batch.blobs is None]
        if missing:
            names = [self._names.batch(batch.queue, batch.name) for batch in missing]
            there = {stored.seq for stored in await self._transport.last(names)}
            whole = {seq: batch for seq, batch in whole.items() if batch.blobs is not None or seq in there}
        return whole

    async def gates_of(self, places: Iterable[Place]) -> dict[tuple[str, int], GatePage]:
        """Return the gates of flows behind which tasks stand, page by page; those that cannot be read are left out."""
        subjects: dict[str, tuple[str, int]] = {}
        for batch, index in places:
            behind = batch.ties[index][0] if batch.ties else None
            if batch.flow is not None and behind is not None:
                subjects[self._names.gates(batch.flow, behind // GATES)] = batch.flow, behind // GATES
        found: dict[tuple[str, int], GatePage] = {}
        for stored in await self._transport.last(list(subjects)) if subjects else ():
            flow_id, page = subjects[stored.subject]
            with contextlib.suppress(CorruptRecord):  # a step of the flow logs it
                found[flow_id, page] = read_gates(flow_id, stored)
        return found

    async def locate(self, ids: Sequence[str]) -> dict[str, Place]:
        """Find tasks by id, as they are stored now; those that are not there, or cannot be read, are left out."""
        return (await self.find(ids))[0]

    async def find(self, ids: Sequence[str]) -> tuple[dict[str, Place], dict[str, Torn]]:
        """Find tasks by id, as they are stored now: those that can be read, and the others that are there."""
        found: dict[str, Place] = {}
        torn: dict[str, Torn] = {}
        guards: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for stored in await self._transport.last([self._names.anywhere(task_id) for task_id in dict.fromkeys(ids)]):
            if stored.subject.startswith(f"{self._names.root}.o.t."):
                batch = self.read(stored)
                if batch.problem is not None and batch.problem.name is not None:
                    torn[batch.problem.name] = Torn(batch.problem, batch.queue, [stored.seq])
                elif batch.rows and not batch.is_shared:
                    found[batch.rows[0][0]] = batch, 0
            elif stored.subject.startswith(f"{self._names.root}.o.i."):
                try:
                    task_id, queue, name, index = read_guard(stored)
                    guards[self._names.batch(queue, name)].append((task_id, stored.seq - 1 - index, index))
                except CorruptRecord as error:
                    queue = readable(stored.subject.rsplit(".", 4)[1])
                    torn[error.name or ""] = Torn(error, queue, [stored.seq])
        unread = []
        for subject, several in guards.items():
            if several[0][1] not in self._batches:
                unread.append(subject)
        for stored in await self._transport.last(unread) if unread else ():
            self.read(stored)
        for several in guards.values():
            for task_id, seq, index in several:
                guarded = self._batches.get(seq)
                if guarded is None:
                    continue
                wrong = guarded.problem
                if wrong is None and not (0 <= index < len(guarded) and guarded.rows[index][0] == task_id):
                    wrong = corrupt("task", task_id, "another is where it should be", place=f"message {seq}")
                if wrong is None:
                    found[task_id] = guarded, index
                else:
                    problem = corrupt("task", task_id, wrong, place=f"message {seq}")
                    torn[task_id] = Torn(problem, guarded.queue, [seq + 1 + index])
        for task_id, place in found.items():
            self.remember(task_id, place)
        return found, torn

    async def torn_in(self, batch: TaskBatch) -> list[str]:
        """Return the ids of the tasks of a batch that cannot be read."""
        if batch.problem is None or not batch.is_shared:
            return [] if batch.problem is None or batch.problem.name is None else [batch.problem.name]
        ids = []
        for stored in (await self._transport.scan(self._names.guards(batch.queue, batch.line), batch.seq + 1))[0]:
            with contextlib.suppress(CorruptRecord):
                task_id, _, name, index = read_guard(stored)
                if name == batch.name and stored.seq - 1 - index == batch.seq:
                    ids.append(task_id)
        return ids

    async def misnamed(self, places: Sequence[Place]) -> set[tuple[int, int]]:
        """Return which of some places have a task that is called otherwise by what says where it is."""
        signs = {self.sign_of(batch.rows[index][0], (batch, index)): (batch.seq, index) for batch, index in places}
        there = {(stored.subject, stored.seq) for stored in await self._transport.last([sign for sign, _ in signs])}
        return {place for sign, place in signs.items() if sign not in there}

    # Where tasks were last seen

    def remember(self, task_id: str, place: Place | Stored) -> None:
        """Remember where a task is: its place, or the message that holds it alone."""
        self._places[task_id] = place
        if len(self._places) > REMEMBERED:
            self._places.popitem(last=False)

    def remembered(self, task_id: str) -> Place | None:
        """Return the place at which a task was last seen. It may not be there any more."""
        self._forget_lost()
        place = self._places.get(task_id)
        if isinstance(place, Stored):
            place = self._places[task_id] = self.read(place), 0
        return place

    def sign_of(self, task_id: str, place: Place) -> tuple[str, int]:
        """Return subject and sequence of the message that is there as long as a task is at a place."""
        batch, index = place
        if batch.is_shared:
            return self._names.guard(batch.queue, batch.line, task_id), batch.seq + 1 + index
        return self._names.batch(batch.queue, batch.name), batch.seq

    # Lines

    def _part(self, queue: str, line: str) -> _Part:
        """Return what is known of a line. Those of keys come and go, so that not all are remembered."""
        part = self._ahead.get((queue, line))
        if part is None:
            part = self._ahead[queue, line] = _Part()
            if len(self._ahead) > MOST_LINES:
                self._ahead.popitem(last=False)
        else:
            self._ahead.move_to_end((queue, line))
        return part

    def know_all(self, queue_state: QueueState) -> bool:
        """Say whether it is known without a question what every line of a queue holds, up to the stream's end.

        It is the end as far as this connection has heard of it: only servers that are told of it can say whether it is.
        """
        self._forget_lost()
        for line, place in queue_state.lines.items():
            part = self._part(queue_state.queue, line)
            part.trim(place[0], place[1])
            subject = self._names.line(queue_state.queue, line)[: -len("*.*")]
            for stored in self._transport.noted(part.end):
                if stored is not None and stored.subject.startswith(subject):
                    part.batches.append(self.read(stored))
                part.end += 1
            if part.end <= self._transport.last_seen:
                return False
        return True

    async def confirm(self, queue_state: QueueState) -> None:
        """Make sure that :meth:`know_all` holds from here on, if nothing is heard of in which it does not."""
        seen = self._transport.last_seen
        self.know_all(queue_state)
        # Of the lines of groups the queue's state tells whether they have tasks.
        plain = [line for line in queue_state.lines if not group_in(line)]
        lines = [line for line in plain if self._part(queue_state.queue, line).end <= seen]
        await asyncio.gather(*(self._confirm(queue_state.queue, line, seen) for line in lines))

    async def _confirm(self, queue: str, line: str, seen: int) -> None:
        part = self._part(queue, line)
        start = part.end
        # Only the leader knows for certain; a replica may not have come to it yet.
        if start <= seen and not await self._transport.leader_has(self._names.line(queue, line), start, seen):
            part.end = max(part.end, seen + 1) if part.end >= start else part.end

    async def ahead(
        self, queue_state: QueueState, line: str, after: TaskBatch | None, wanted: int, *, known: bool = False
    ) -> TaskBatch | None:
        """Return the next batch of a line that claims have not come to the end of.

        :param queue state: says how far they have come.
        :param after: the batch before it; None: the first.
        :param wanted: about how many tasks are looked for.
        :param known: whether to give only what is known without a question.
        """
        self._forget_lost()
        part = self._part(queue_state.queue, line)
        place = queue_state.lines[line]
        part.trim(place[0], place[1])
        batch = part.following(after)
        if batch is not None or known:
            return batch
        seen = self._transport.last_seen
        async with part.reading:
            # What was read meanwhile may have it; or the part begins behind this place by now, for a call that knows a
            # newer queue state.
            part.trim(place[0], place[1])
            batch = part.following(after)
            while batch is None and await self._read_on(part, queue_state.queue, line, wanted):
                part.trim(place[0], place[1])
                batch = part.following(after)
        if batch is not None:
            return batch
        if after is None and seen - place[0] > FAR_BEHIND:
            await self._skip(queue_state, line, seen)
        return None

    def known_after(self, queue_state: QueueState, batch: TaskBatch) -> list[TaskBatch]:
        """Return the batches of its line that follow one without a gap, as far as they are known without a question."""
        batches = self._part(queue_state.queue, batch.line).batches
        return batches[bisect_right(batches, batch.seq, key=lambda other: other.seq) :]

    async def _read_on(self, part: _Part, queue: str, line: str, wanted: int) -> bool:
        """Read more of a line; return whether there was any."""
        start = part.end
        # A claim that has to ask holds up the ends of tasks, which are written in the same step: it rather asks rarely.
        tasks, size = max(4, min(MOST_READ, AHEAD * wanted)), MOST_BYTES_READ
        batches: list[TaskBatch] = []
        end = start
        while tasks > 0 and size > 0:
            width = min(part.width, -(-tasks // max(1, part.stride - 1)))
            starts = range(end, end + width * part.stride, part.stride)
            stored = await self._transport.next_ones(self._names.line(queue, line), starts)
            if not stored:
                part.width = part.stride = 1
                break
            found = 0
            for begin, one in zip(starts, stored, strict=False):
                if begin > end:
                    break  # those before it take less room than was thought, and another may be between
                if one.seq < end:
                    continue  # the same as before
                batch = self.read(one)
                batches.append(batch)
                found += 1
                tasks -= max(1, len(batch))
                size -= len(one.data)
                part.stride = 1 + (len(batch) if batch.is_shared else 0)
                end = one.seq + part.stride
            few = 1 + MOST_BYTES_READ // max(1, len(one.data))
            part.width = min(2 * width if found == width else found, WIDEST, few)
        if batches and part.end == start:
            part.batches += batches
            part.end = end
            part.has_more = tasks <= 0 or size <= 0
        return bool(batches)

    def runs_short(self, queue_state: QueueState, line: str, wanted: int) -> bool:
        """Return whether there is more in a line than what is known of it, and that is soon claimed."""
        part = self._part(queue_state.queue, line)
        return part.has_more and not part.reading.locked() and sum(map(len, part.batches)) < 4 * wanted

    async def read_on(self, queue: str, line: str, wanted: int) -> None:
        """Read more of a line ahead of need, so that no claim has to wait for it."""
        part = self._part(queue, line)
        async with part.reading:
            await self._read_on(part, queue, line, wanted)

    async def look_into(self, queue_state: QueueState, lines: Sequence[str], wanted: int) -> set[str]:
        """Look ahead in several lines at once; give those in which there is nothing."""
        if len(lines) < 2:
            return set()
        self._transport.together()
        found = await asyncio.gather(*(self.ahead(queue_state, line, None, wanted) for line in lines))
        return {line for line, batch in zip(lines, found, strict=True) if batch is None}

    async def _skip(self, queue_state: QueueState, line: str, seen: int) -> None:
        """Spare the next look the way over what is not of this line; only the leader knows for certain that it is."""
        subject = self._names.line(queue_state.queue, line)
        # What another connection saw before it was lost does not count.
        seen = min(seen, self._transport.last_seen)
        if not await self._transport.leader_has(subject, queue_state.lines[line][0], seen):
            queue_state.skip_to(line, seen + 1)


def _room_of(batch: TaskBatch) -> int:
    """Return how many bytes of memory a batch takes, about."""
    return len(batch.blobs or b"") + 1000 + 500 * len(batch)
