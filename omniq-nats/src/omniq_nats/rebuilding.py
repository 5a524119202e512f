"""Makes a queue state anew from the messages of its tasks, where what is stored of it cannot be read, or is gone.

What the tasks' own messages do not tell is lost: which tasks ran, and in which attempt, unless an error of theirs was
kept. A task without a final end record is therefore ready again. What is not held any more is fenced off by a floor
under the deliveries: the sequence of the message that is replaced, as a delivery is a change of a queue state, and each
change a message.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.storage.validation import LARGEST_COUNT
from omniq_nats.encoding import NewerVersion, read_queue_state
from omniq_nats.entries import OverflowPage, entry_in_overflow, entry_of
from omniq_nats.flow_records import is_blocked_at
from omniq_nats.limits import DELETED, LimitRecords
from omniq_nats.names import BLOCKED_LINE, LIMIT, PAUSED, group_in, is_line
from omniq_nats.overflow import LARGEST, Overflow
from omniq_nats.queue_state import CANCELLED_AHEAD, QueueState
from omniq_nats.result_pages import ResultPages
from omniq_nats.task_batches import TaskBatch
from omniq_nats.task_lookup import Place, TaskLookup

__all__ = ["rebuild"]

STEP = 256
"""Tasks that are looked into at a time."""


async def rebuild(pages: ResultPages, task_lookup: TaskLookup, overflow: Overflow, queue: str) -> QueueState | None:
    """Return the state of a queue without what of it cannot be read, to be stored in place of what is there.

    :return: None if there is nothing to rebuild: all of it can be read, there is nothing of the queue, or the state is
        of a newer version, which must not be replaced.
    :raises Conflict: if it is changed meanwhile.
    """
    transport, names = pages.transport, pages.names
    found = await transport.last([names.queue_state(queue)])
    torn: list[OverflowPage] = []
    passed = 0
    try:
        queue_state = read_queue_state(queue, found[0]) if found else None
    except CorruptRecord as problem:
        if isinstance(problem.__cause__, NewerVersion):
            return None
        queue_state = None
    if queue_state is not None:
        torn = [one for one in queue_state.overflow if await overflow.problem_of(queue, one)]
        if not _drop_unreadable(queue_state) and not torn:
            return None
        queue_state.floor = max(queue_state.floor, _floor(queue_state.seq))
    elif not found and not await transport.count(names.batches(queue)):
        return None
    else:
        passed = found[0].seq if found else await transport.end() + 1
        queue_state = await _begin(pages, queue, found[0].seq if found else 0, passed)
    for overflow_page in torn:
        overflow.drop(queue_state, overflow_page)
    await _restore(pages, task_lookup, overflow, queue_state, passed)
    if not found and not queue_state.lines and not queue_state.waiting and not any(queue_state.ended.values()):
        return None  # all tasks that it ever had are behind gates
    return queue_state


def _floor(seq: int) -> int:
    # Half of what a delivery may be is left to those that come.
    return min(seq, LARGEST_COUNT // 2)


def _drop_unreadable(queue_state: QueueState) -> bool:
    """Take running tasks and end records that cannot be read out of a queue state; return whether there were any."""
    is_torn = False
    for task_id in list(queue_state.running):
        try:
            _ = queue_state.running[task_id]
        except CorruptRecord:
            is_torn = True
            del queue_state.running[task_id]
    for task_id, one in list(queue_state.pending.items()):
        try:
            _ = one.batch, one.end_record
        except CorruptRecord:
            is_torn = True
            del queue_state.pending[task_id]
    return is_torn


async def _begin(pages: ResultPages, queue: str, seq: int, passed: int) -> QueueState:
    """Return a queue state without any task.

    :param seq: of the message that it replaces.
    :param passed: how far claims have come in each line. All tasks before that are restored, those to which nothing has
        happened, too: of a line that began earlier clients would claim what they remember, though it was removed.
    """
    transport, names = pages.transport, pages.names
    queue_state = QueueState(queue, seq, changes=passed, floor=_floor(passed))
    for note in await transport.last_all(names.notes(queue)):
        name = note.subject.rpartition(".")[2]
        if name == LIMIT and note.data != DELETED:
            queue_state.with_lane().is_limited = True
        elif is_line(name) and name != BLOCKED_LINE:
            queue_state.lines[name] = [passed, 0]
        elif name == PAUSED:
            queue_state.paused = note.data != b"0"
    held = await LimitRecords(transport, pages.clock).usages_of(queue)
    if held:
        queue_state.with_lane().names = held  # until it is seen that none of them runs any more
    return queue_state


async def _restore(
    pages: ResultPages, task_lookup: TaskLookup, overflow: Overflow, queue_state: QueueState, passed: int
) -> None:
    """Let those tasks wait that claims have come to, of which neither the queue state nor an end record tells.

    :param passed: how far they have come in a line of which the queue state does not know.
    """
    queue = queue_state.queue
    known = {
        (entry.seq, entry.index)
        for overflow_page in queue_state.overflow
        for entry in await overflow.read(queue, overflow_page)
    }
    queue_state.ended = dict.fromkeys(queue_state.ended, 0)
    some: list[Place] = []
    async for stored in pages.transport.scan_all(pages.names.batches(queue)):
        batch = task_lookup.read(stored)
        if batch.problem is None:
            if batch.line != BLOCKED_LINE and not group_in(batch.line):
                queue_state.lines.setdefault(batch.line, [passed, 0])
            some += [
                (batch, index)
                for index in range(len(batch))
                if (batch.seq, index) not in known and _is_passed(queue_state, batch, index)
            ]
        if len(some) >= STEP:
            await _restore_some(pages, task_lookup, queue_state, some)
            some = []
            if len(queue_state.waiting) > LARGEST:
                await overflow.lay_aside(queue_state, pages.clock.now())
    await _restore_some(pages, task_lookup, queue_state, some)


def _is_passed(queue_state: QueueState, batch: TaskBatch, index: int) -> bool:
    """Return whether claims have come to a task, or leave it out, and it neither runs nor waits in the queue state."""
    if (batch.seq, index) in queue_state.tombstones or queue_state.live(batch.rows[index][0], batch.seq, index):
        return False
    if queue_state.is_ahead(batch.line, batch.seq, index):
        return queue_state.left_out(batch.line, batch.seq, index) == CANCELLED_AHEAD
    return True


async def _restore_some(
    pages: ResultPages, task_lookup: TaskLookup, queue_state: QueueState, places: Sequence[Place]
) -> None:
    gone: set[tuple[int, int]] = set()
    end_records = await pages.end_records(queue_state, places, gone)
    gone |= await task_lookup.misnamed([place for place in places if place[0].is_shared])
    gates = await task_lookup.gates_of((batch, index) for batch, index in places if batch.may_be_blocked(index))
    for batch, index in places:
        end_record = end_records.get((batch.seq, index))
        if (batch.seq, index) in gone:
            continue
        if end_record is None or end_record.is_torn or not end_record.state.is_final:
            sound = None if end_record is None or end_record.is_torn else end_record
            if batch.may_be_blocked(index) and is_blocked_at(gates, batch, index, sound):
                continue
            entry = entry_in_overflow(batch, index, sound)
            # Another of its id that waits, or runs, came first.
            if entry.id not in queue_state.waiting and entry.id not in queue_state.running:
                entry.has_fate = end_record is not None
                queue_state.put_back(entry)
        elif end_record is batch.past(index):
            # It came from another store, and no page tells of it yet.
            queue_state.end(entry_of(batch, index), evolve(end_record, version=queue_state.changes + 1))
        else:
            queue_state.ended[end_record.state] += 1
            queue_state.ttls[batch.ttl] = None
