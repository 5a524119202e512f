"""The state of a queue: one record that says where each of its tasks stands that is neither untouched nor ended.

Every change of a queue is one new version of its queue state, accepted by the server only if it replaces the version
that was read: that makes a change of any number of tasks one atomic step. A task that is not in its queue state is

- on a **overflow page**, which the queue state names, if too many wait to be in the queue state itself, and then no end
  record of it says that it has ended;
- **ready** and untouched, if the queue state's place in the task's line is before it (and it is not among those left
  out);
- **ended** otherwise, and its page of results says how: an end record stands in the queue state itself until it is on
  that page.

Everything here is in memory; nothing does any I/O.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Set

from attrs import define, field

from omniq.errors import CorruptRecord
from omniq.task import TaskError, TaskState
from omniq_nats.entries import Entry, OverflowPage, Tombstone
from omniq_nats.lanes import Lane, Usage
from omniq_nats.lazy_rows import Pending, Running
from omniq_nats.names import BLOCKED_LINE, group_in, group_of, priority_of
from omniq_nats.results import EndRecord, kept_record
from omniq_nats.task_batches import TaskBatch
from omniq_nats.transport import Write

__all__ = ["CANCELLED_AHEAD", "ENDS", "REMOVED_AHEAD", "QueueState"]

ENDS = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)
CANCELLED_AHEAD, REMOVED_AHEAD = "c", "x"


@define(eq=False)
class QueueState:
    """The record of one queue."""

    queue: str
    seq: int = 0
    """Of the message; 0: there is none yet."""
    changes: int = 0
    recent: list[str] = field(factory=list)
    """The names of the latest changes."""
    reserved: tuple[str, int] | None = None
    """The storage that alone may change it, and until when."""
    paused: bool = False
    floor: int = 0
    """Deliveries are larger: those of earlier ones were issued and are not known, see :mod:`omniq_nats.rebuilding`."""
    lines: dict[str, list[int]] = field(factory=dict)
    """How far each line has been claimed: the sequence of a batch, and how many of its tasks."""
    running: Running = field(factory=Running)
    waiting: dict[str, Entry] = field(factory=dict)
    back: dict[str, list[Entry]] = field(factory=dict)
    """Those that wait, by line, in order."""
    overflow: list[OverflowPage] = field(factory=list)
    """More that wait."""
    spent: list[str] = field(factory=list)
    """The names of overflow pages that are empty, or were replaced by others, and whose messages are to be removed."""
    ahead: dict[str, dict[tuple[int, int], str]] = field(factory=dict)
    """By line: tasks that claims have not come to yet and are to leave out, as they were cancelled or removed."""
    pending: dict[str, Pending] = field(factory=dict)
    tombstones: dict[tuple[int, int], Tombstone] = field(factory=dict)
    ended: dict[TaskState, int] = field(factory=lambda: dict.fromkeys(ENDS, 0))
    ttls: dict[float, None] = field(factory=dict)
    """For how long results are kept: each length of time that there is."""
    laid: list[str] = field(factory=list)
    """The names of overflow pages that were stored for the change that is being made; not part of the record."""
    committing: bool = False
    """Whether it was sent and not answered yet; not part of the record."""
    problem: CorruptRecord | None = None
    """Why what is stored cannot be read: nothing of it is known, and nothing replaces it; not part of the record."""
    stream_end: int | None = None
    """The end of the stream, if the change that is being made was made in the knowledge of all that is stored, and is
    not to be accepted once there is more; not part of the record."""
    lane: Lane | None = None
    """What it tells of limits; None: nothing limits its tasks."""
    usages: dict[str, Usage] = field(factory=dict)
    """Of named limits, what was read for the change that is being made; not part of the record."""
    roused: set[str] = field(factory=set)
    """Queues in which tasks may start once the change is made that a limit held back; not part of the record."""
    also: list[Write] = field(factory=list)
    """What is to be stored in the same step as the change that is being made; not part of the record."""

    def check(self, sound: Set[bytes] = frozenset()) -> Set[bytes]:
        """Look into all that is read only when it is asked for.

        :param sound: lines that were looked into before: most go from one version of a queue state into the next.
        :return: the lines that can be read, as far as they were not read yet.
        :raises CorruptRecord: if some of it cannot be read.
        """
        lines = set()
        for task_id, line in self.running.unread():
            lines.add(line)
            if line not in sound:
                _ = self.running[task_id]
        for one in self.pending.values():
            if one.unread is not None:
                lines.add(one.unread)
                if one.unread not in sound:
                    _ = one.batch, one.end_record
        return lines

    # Where a task stands

    def is_ahead(self, line: str, seq: int, index: int) -> bool:
        """Whether claims have not come to a task yet."""
        if line == BLOCKED_LINE:
            return False
        place = self.lines.get(line)
        if place is None and group_in(line):
            return False  # such a line is here as long as it has tasks
        return place is None or (seq, index) >= (place[0], place[1])

    def left_out(self, line: str, seq: int, index: int) -> str | None:
        """Say whether and why claims are to leave out a task that is ahead."""
        return self.ahead.get(line, {}).get((seq, index))

    def live(self, task_id: str, seq: int, index: int) -> Entry | None:
        """Return a task that runs or waits."""
        entry = self.running.get(task_id) or self.waiting.get(task_id)
        return entry if entry is not None and (entry.seq, entry.index) == (seq, index) else None

    def held(self, task_id: str, delivery: int) -> Entry | None:
        """Return a running task if this delivery of it is the one that runs."""
        entry = self.running.get(task_id)
        return entry if entry is not None and entry.delivery == delivery else None

    def next_at(self) -> int | None:
        """Return the earliest time at which one that waits is, or was, ready."""
        times = [entries[0].at for entries in self.back.values() if entries]
        return min([*times, *(overflow_page.at for overflow_page in self.overflow)], default=None)

    @property
    def priorities(self) -> set[int]:
        """Those of the tasks that wait and have neither a key nor a named limit."""
        here = {priority_of(line) for line in self.back if not group_in(line)}
        return here | {overflow_page.priority for overflow_page in self.overflow if not overflow_page.is_lined}

    # Limits

    def with_lane(self) -> Lane:
        """Return the lane, which there is from now on."""
        if self.lane is None:
            self.lane = Lane()
        return self.lane

    def line_up(self, line: str, limited: tuple[str | None, str | None], count: int) -> None:
        """Note that tasks of a group are stored, in one step with this state."""
        lane = self.with_lane()
        lane.group(group_in(line), *limited)
        lane.counts[line] = lane.counts.get(line, 0) + count
        # Whatever was in the line before was passed by a state that is no later than the one that is replaced.
        self.lines.setdefault(line, [self.seq, 0])

    def groups_here(self) -> set[str]:
        """Return the groups that have tasks in lines, or waiting."""
        return set() if self.lane is None else {group_in(line) for line in (*self.lane.counts, *self.back)} - {""}

    def ready_groups(self, now: int) -> dict[str, int]:
        """Return the groups that have ready tasks, with the priority of the first."""
        assert self.lane is not None
        lines = [line for line, count in self.lane.counts.items() if count > 0]
        lines += [line for line, entries in self.back.items() if entries[0].at <= now and group_in(line)]
        found: dict[str, int] = {}
        for line in lines:
            group, priority = group_in(line), priority_of(line)
            if found.get(group, priority) <= priority:
                found[group] = priority
        return found

    def is_ready(self, line: str, now: int) -> bool:
        """Return whether a line of a group has ready tasks."""
        assert self.lane is not None
        waiting = self.back.get(line)
        return self.lane.counts.get(line, 0) > 0 or (waiting is not None and waiting[0].at <= now)

    # Changes

    def uncount(self, batch: TaskBatch, index: int, end_record: EndRecord) -> None:
        """Count a task that has ended no longer; one of another store is not counted until it is sorted in."""
        if end_record.is_torn:
            return  # in which state it was counted cannot be told
        if not self.is_ahead(batch.line, batch.seq, index) or self.left_out(batch.line, batch.seq, index) is not None:
            # Damage that can be read may tell of a state in which no task was counted.
            self.ended[end_record.state] = max(0, self.ended[end_record.state] - 1)

    def put_back(self, entry: Entry) -> None:
        """Let a task wait for its time, or for its claim."""
        self.waiting[entry.id] = entry
        if entry.limited is not None:
            self.with_lane().group(group_of(*entry.limited), *entry.limited)
        insort(self.back.setdefault(entry.line, []), entry, key=lambda other: other.key)

    def withdraw(self, entry: Entry) -> None:
        """Take out a task that waits, one that is in the queue state itself."""
        del self.waiting[entry.id]
        line = entry.line
        entries = self.back[line]
        place = bisect_left(entries, entry.key, key=lambda other: other.key)
        assert entries[place] is entry
        del entries[place]
        if not entries:
            del self.back[line]

    def pass_by(self, batch: TaskBatch, index: int) -> None:
        """Move the place in a line behind a task."""
        if self.lane is not None and self.left_out(batch.line, batch.seq, index) is None:
            self.lane.passed(batch.line)
        if index + 1 < len(batch):
            self.lines[batch.line] = [batch.seq, index + 1]
        else:
            # Behind the guards, too, which follow the batch.
            self.lines[batch.line] = [batch.seq + (len(batch) if batch.is_shared else 0) + 1, 0]

    def pass_over(self, batch: TaskBatch) -> None:
        """Move the place in a line behind a batch that cannot be read."""
        self.lines[batch.line] = [batch.seq + 1, 0]

    def skip_to(self, line: str, seq: int) -> None:
        """Move the place in a line where nothing is before a sequence."""
        place = self.lines[line]
        if place[1] == 0 and place[0] < seq:
            self.lines[line] = [seq, 0]

    def leave_out(self, batch: TaskBatch, index: int, why: str) -> None:
        """Have claims leave out a task that they have not come to."""
        if self.lane is not None and self.left_out(batch.line, batch.seq, index) is None:
            self.lane.passed(batch.line)
        self.ahead.setdefault(batch.line, {})[batch.seq, index] = why

    def forget_passed(self) -> None:
        """Drop what claims have left out by now, and lines of groups that have no tasks left."""
        if self.lane is not None:
            for line in [line for line, count in self.lane.counts.items() if count <= 0]:
                del self.lane.counts[line]
                self.lines.pop(line, None)
        for line, places in list(self.ahead.items()):
            kept = {place: why for place, why in places.items() if self.is_ahead(line, *place)}
            if kept:
                self.ahead[line] = kept
            else:
                del self.ahead[line]

    def start(self, entry: Entry, worker: str, now: int, until: int) -> None:
        """Hand a task to a worker."""
        entry.attempt += 1
        entry.delivery = max(entry.delivery, self.floor) + 1
        entry.worker = worker
        entry.started = now
        entry.until = until
        entry.progress = None
        entry.cancel = False
        self.running[entry.id] = entry

    def stop(self, entry: Entry) -> None:
        """Take a task from its worker."""
        if self.lane is not None:
            self.roused.add(self.queue)
        del self.running[entry.id]
        entry.until = None
        entry.progress = None

    def end_record_of(
        self,
        entry: Entry,
        state: TaskState,
        now: int,
        *,
        error: TaskError | None = None,
        known: EndRecord | None = None,
    ) -> EndRecord:
        """Return the end record of a task that ends now, by the change that is being made.

        :param known: has what is to be kept: error, result and attempt log.
        """
        if known is None:
            known = kept_record(entry.delivery, error, "")
        return EndRecord(
            state=state,
            delivery=entry.delivery,
            attempt=entry.attempt,
            worker=entry.worker,
            started=entry.started,
            finished=now,
            run_at=entry.at,
            keeps_expiry=not entry.expired_order,
            error=known.error,
            result=known.result,
            attempt_log=known.attempt_log,
            blob=known.blob,
            sizes=known.sizes,
            version=self.changes + 1,
        )

    def end(self, entry: Entry, end_record: EndRecord) -> None:
        """Note how a task ended, one that is neither running nor waiting any more."""
        self.ended[end_record.state] += 1
        self.ttls[entry.ttl] = None
        self.note(entry, end_record)

    def note(self, entry: Entry, end_record: EndRecord) -> None:
        """Keep an end record until it is on its page of results."""
        self.pending[entry.id] = Pending.of(entry, end_record)

    def keep_error(self, entry: Entry, now: int, known: EndRecord | None) -> None:
        """Keep what its attempts have left with a task that is to wait again.

        :param known: has it; None: there is none.
        """
        entry.has_error = known is not None
        if known is not None:
            self.note(entry, self.end_record_of(entry, TaskState.SCHEDULED, now, known=known))

    def cancel_slot(self, entry: Entry, now: int, known: EndRecord | None = None) -> None:
        """End a task as cancelled, one that is neither running nor waiting any more.

        :param known: has the error that is to be kept.
        """
        entry.cancel = False
        self.end(entry, self.end_record_of(entry, TaskState.CANCELLED, now, known=known))

    def doom(self, tombstones: Tombstone) -> None:
        """Remove a task: from here on it is not there, and its messages are removed afterwards."""
        self.pending.pop(tombstones.id, None)
        self.tombstones[tombstones.place] = tombstones
