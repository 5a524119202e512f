"""The book of a queue: one record that says where each of its tasks stands that is neither untouched nor ended.

Every change of a queue is one new version of its book, accepted by the server only if it replaces the version that was
read: that makes a change of any number of tasks one atomic step. A task that is not in its book is

- on a **shelf**, which the book names, if too many wait to be in the book itself, and then no fate of it says that it
  has ended;
- **ready** and untouched, if the book's place in the task's line is before it (and it is not among those left out);
- **ended** otherwise, and its page of results says how: a fate stands in the book itself until it is on that page.

Everything here is in memory; nothing does any I/O.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from attrs import define, evolve, field

from omniq.errors import CorruptRecord
from omniq.task import TaskError, TaskState
from omniq_nats.fates import Fate
from omniq_nats.homes import Home
from omniq_nats.lines import Pending, Running
from omniq_nats.link import Write
from omniq_nats.slots import Doomed, Shelf, Slot

__all__ = ["CANCELLED_AHEAD", "ENDS", "REMOVED_AHEAD", "Book"]

ENDS = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)
CANCELLED_AHEAD, REMOVED_AHEAD = "c", "x"


@define(eq=False)
class Book:
    """The record of one queue."""

    queue: str
    seq: int = 0
    """Of the message; 0: there is none yet."""
    changes: int = 0
    recent: list[str] = field(factory=list)
    """The names of the latest changes."""
    paused: bool = False
    lines: dict[str, list[int]] = field(factory=dict)
    """How far each line has been claimed: the sequence of a home, and how many of its tasks."""
    running: Running = field(factory=Running)
    waiting: dict[str, Slot] = field(factory=dict)
    back: dict[int, list[Slot]] = field(factory=dict)
    """Those that wait, by priority, in order."""
    shelves: list[Shelf] = field(factory=list)
    """More that wait."""
    spent: list[str] = field(factory=list)
    """The names of shelves that are empty, or were replaced by others, and whose messages are to be removed."""
    ahead: dict[str, dict[tuple[int, int], str]] = field(factory=dict)
    """By line: tasks that claims have not come to yet and are to leave out, as they were cancelled or removed."""
    pending: dict[str, Pending] = field(factory=dict)
    doomed: dict[tuple[int, int], Doomed] = field(factory=dict)
    ended: dict[TaskState, int] = field(factory=lambda: dict.fromkeys(ENDS, 0))
    ttls: dict[float, None] = field(factory=dict)
    """For how long results are kept: each length of time that there is."""
    laid: list[str] = field(factory=list)
    """The names of shelves that were stored for the change that is being made; not part of the record."""
    committing: bool = False
    """Whether it was sent and not answered yet; not part of the record."""
    problem: CorruptRecord | None = None
    """Why what is stored cannot be read: nothing of it is known, and nothing replaces it; not part of the record."""
    stream_end: int | None = None
    """The end of the stream, if the change that is being made was made in the knowledge of all that is stored, and is
    not to be accepted once there is more; not part of the record."""
    also: list[Write] = field(factory=list)
    """What is to be stored in the same step as the change that is being made; not part of the record."""

    def check(self) -> None:
        """Look into all that is read only when it is asked for.

        :raises CorruptRecord: if some of it cannot be read.
        """
        for task_id in self.running:
            _ = self.running[task_id]
        for one in self.pending.values():
            _ = one.home, one.fate

    # Where a task stands

    def is_ahead(self, line: str, seq: int, index: int) -> bool:
        """Whether claims have not come to a task yet."""
        place = self.lines.get(line)
        return place is None or (seq, index) >= (place[0], place[1])

    def left_out(self, line: str, seq: int, index: int) -> str | None:
        """Say whether and why claims are to leave out a task that is ahead."""
        return self.ahead.get(line, {}).get((seq, index))

    def live(self, task_id: str, seq: int, index: int) -> Slot | None:
        """Give a task that runs or waits."""
        slot = self.running.get(task_id) or self.waiting.get(task_id)
        return slot if slot is not None and (slot.seq, slot.index) == (seq, index) else None

    def held(self, task_id: str, delivery: int) -> Slot | None:
        """Give a running task if this delivery of it is the one that runs."""
        slot = self.running.get(task_id)
        return slot if slot is not None and slot.delivery == delivery else None

    def waiting_by_priority(self) -> Iterator[tuple[int, list[Slot]]]:
        """Give those that wait, larger priorities first."""
        for priority in sorted(self.back, reverse=True):
            yield priority, self.back[priority]

    def next_at(self) -> int | None:
        """Give the earliest time at which one that waits is, or was, ready."""
        times = [slots[0].at for slots in self.back.values() if slots]
        return min([*times, *(shelf.at for shelf in self.shelves)], default=None)

    @property
    def priorities(self) -> set[int]:
        """Those of the tasks that wait."""
        return {*self.back, *(shelf.priority for shelf in self.shelves)}

    # Changes

    def put_back(self, slot: Slot) -> None:
        """Let a task wait for its time, or for its claim."""
        self.waiting[slot.id] = slot
        insort(self.back.setdefault(slot.priority, []), slot, key=lambda other: other.key)

    def withdraw(self, slot: Slot) -> None:
        """Take out a task that waits, one that is in the book itself."""
        del self.waiting[slot.id]
        slots = self.back[slot.priority]
        place = bisect_left(slots, slot.key, key=lambda other: other.key)
        assert slots[place] is slot
        del slots[place]
        if not slots:
            del self.back[slot.priority]

    def pass_by(self, home: Home, index: int) -> None:
        """Move the place in a line behind a task."""
        if index + 1 < len(home):
            self.lines[home.line] = [home.seq, index + 1]
        else:
            # Behind the guards, too, which follow the home.
            self.lines[home.line] = [home.seq + (len(home) if home.is_shared else 0) + 1, 0]

    def pass_over(self, home: Home) -> None:
        """Move the place in a line behind a home that cannot be read."""
        self.lines[home.line] = [home.seq + 1, 0]

    def skip_to(self, line: str, seq: int) -> None:
        """Move the place in a line where nothing is before a sequence."""
        place = self.lines[line]
        if place[1] == 0 and place[0] < seq:
            self.lines[line] = [seq, 0]

    def leave_out(self, home: Home, index: int, why: str) -> None:
        """Have claims leave out a task that they have not come to."""
        self.ahead.setdefault(home.line, {})[home.seq, index] = why

    def forget_passed(self) -> None:
        """Drop what claims have left out by now."""
        for line, places in list(self.ahead.items()):
            kept = {place: why for place, why in places.items() if self.is_ahead(line, *place)}
            if kept:
                self.ahead[line] = kept
            else:
                del self.ahead[line]

    def start(self, slot: Slot, worker: str, now: int, until: int) -> None:
        """Hand a task to a worker."""
        slot.attempt += 1
        slot.delivery += 1
        slot.worker = worker
        slot.started = now
        slot.until = until
        slot.progress = None
        slot.cancel = False
        self.running[slot.id] = slot

    def stop(self, slot: Slot) -> None:
        """Take a task from its worker."""
        del self.running[slot.id]
        slot.until = None
        slot.progress = None

    def fate_of(
        self,
        slot: Slot,
        state: TaskState,
        now: int,
        *,
        error: TaskError | None = None,
        result: bytes | None = None,
        known: Fate | None = None,
    ) -> Fate:
        """Return the fate of a task that ends now, by the change that is being made.

        :param known: has the error that is to be kept.
        """
        fate = Fate(
            state=state,
            delivery=slot.delivery,
            attempt=slot.attempt,
            worker=slot.worker,
            started=slot.started,
            finished=now,
            run_at=slot.at,
            keeps_expiry=not slot.expired_order,
            error=error,
            result=result,
            version=self.changes + 1,
        )
        return fate if known is None else evolve(fate, error=known.error, blob=known.blob)

    def end(self, slot: Slot, fate: Fate) -> None:
        """Note how a task ended, one that is neither running nor waiting any more."""
        self.ended[fate.state] += 1
        self.ttls[slot.ttl] = None
        self.note(slot, fate)

    def note(self, slot: Slot, fate: Fate) -> None:
        """Keep a fate until it is on its page of results."""
        self.pending[slot.id] = Pending.of(slot, fate)

    def keep_error(self, slot: Slot, now: int, known: Fate | None) -> None:
        """Keep the error of its latest attempt with a task that is to wait again.

        :param known: has it; None: there is none.
        """
        slot.has_error = known is not None
        if known is not None:
            self.note(slot, self.fate_of(slot, TaskState.SCHEDULED, now, known=known))

    def cancel_slot(self, slot: Slot, now: int, known: Fate | None = None) -> None:
        """End a task as cancelled, one that is neither running nor waiting any more.

        :param known: has the error that is to be kept.
        """
        slot.cancel = False
        self.end(slot, self.fate_of(slot, TaskState.CANCELLED, now, known=known))

    def doom(self, doomed: Doomed) -> None:
        """Remove a task: from here on it is not there, and its messages are removed afterwards."""
        self.pending.pop(doomed.id, None)
        self.doomed[doomed.place] = doomed
