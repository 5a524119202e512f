"""What a memory store is made of: the record of one task, the orders that records stand in, and the queue."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from attrs import define, field

from omniq.task import StoredTask, TaskState

__all__ = ["Index", "Line", "Record", "Register"]


_NEVER = datetime.max.replace(tzinfo=UTC)
_GONE = StoredTask(id="", queue="", name="", body=b"", created_at=_NEVER, run_at=_NEVER)


@define(eq=False)
class Record:
    """One task as it stands."""

    task: StoredTask
    sequence: int = 0
    """Its place in the order of enqueueing."""
    removed: bool = False


class Register:
    """All records, by id and in the order of enqueueing."""

    def __init__(self) -> None:
        self.by_id: dict[str, Record] = {}
        # Holds what was removed, too, until it outnumbers what is there.
        self._log: list[Record] = []
        self._sequence = 0

    def add(self, task: StoredTask) -> Record:
        """Return the record of a new task, with the next sequence number."""
        self._sequence += 1
        record = self.by_id[task.id] = Record(task, self._sequence)
        self._log.append(record)
        return record

    def remove(self, record: Record) -> None:
        del self.by_id[record.task.id]
        # Its place stays in the log for a while, its task does not.
        record.removed, record.task = True, _GONE
        if len(self._log) > 2 * len(self.by_id) + 64:
            self._log = [kept for kept in self._log if not kept.removed]

    def latest(self, before: int | None = None) -> Iterator[Record]:
        """Return the records, the latest enqueued first.

        :param before: only those with a smaller sequence number.
        """
        end = len(self._log)
        if before is not None:
            end = bisect_left(self._log, before, key=lambda record: record.sequence)
        for position in range(end - 1, -1, -1):
            record = self._log[position]
            if not record.removed:
                yield record


class Index:
    """Records in the order of a time, then of their sequence numbers; any of them can leave at any time."""

    __slots__ = ("_heap", "_live", "_times")

    def __init__(self) -> None:
        # Two by sequence number rather than one of pairs: a pair for each record would be work for the garbage
        # collector.
        self._live: dict[int, Record] = {}
        self._times: dict[int, datetime] = {}
        # Holds what has left, too, until it comes up or outnumbers what is live.
        self._heap: list[tuple[datetime, int]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._live.values())

    def put(self, record: Record, at: datetime) -> None:
        """Add a record, or move it to another time."""
        sequence = record.sequence
        self._live[sequence], self._times[sequence] = record, at
        heapq.heappush(self._heap, (at, sequence))

    def discard(self, record: Record) -> None:
        self._live.pop(record.sequence, None)
        self._times.pop(record.sequence, None)
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = [(at, sequence) for sequence, at in self._times.items()]
            heapq.heapify(self._heap)

    def first(self) -> datetime | None:
        """Return the earliest time."""
        while self._heap:
            at, sequence = self._heap[0]
            if self._times.get(sequence) == at:
                return at
            heapq.heappop(self._heap)
        return None

    def take(self, limit: int, until: datetime | None = None) -> list[Record]:
        """Take out the earliest records, and return them.

        :param until: only those whose time is no later.
        """
        taken: list[Record] = []
        while len(taken) < limit and (at := self.first()) is not None and (until is None or at <= until):
            _, sequence = heapq.heappop(self._heap)
            del self._times[sequence]
            taken.append(self._live.pop(sequence))
        return taken


@define(eq=False)
class Line:
    """One queue."""

    ready: dict[int, Index] = field(factory=dict)
    """By priority."""
    scheduled: Index = field(factory=Index)
    blocked: dict[int, Record] = field(factory=dict)
    """By sequence number."""
    ended: dict[TaskState, dict[int, Record]] = field(factory=lambda: {TaskState.FAILED: {}, TaskState.CANCELLED: {}})
    """Those that have ended otherwise than well, by sequence number."""
    counts: dict[TaskState, int] = field(factory=lambda: dict.fromkeys(TaskState, 0))

    def in_state(self, state: TaskState) -> Iterable[Record]:
        """Return the records in a state that are kept here: neither running nor succeeded."""
        if state is TaskState.READY:
            return (record for index in self.ready.values() for record in index)
        if state is TaskState.BLOCKED:
            return self.blocked.values()
        return self.scheduled if state is TaskState.SCHEDULED else self.ended.get(state, {}).values()

    def oldest(self) -> datetime | None:
        """Return since when the oldest ready task has been ready."""
        return min((at for index in self.ready.values() if (at := index.first())), default=None)
