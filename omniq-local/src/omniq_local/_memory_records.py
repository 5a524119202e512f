"""What a memory store is made of: the record of one task, the orders that records stand in, and the queue."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator
from datetime import datetime

from attrs import define, field

from omniq.storage import TaskQuery
from omniq.task import NewTask, Progress, StoredTask, TaskError, TaskState

__all__ = ["Index", "Line", "Record", "Register"]


@define(eq=False)
class Record:
    """One task: the producer's order and what has become of it."""

    order: NewTask
    created_at: datetime
    run_at: datetime
    """When it became, or will become, ready: with the sequence number, its place within the priority."""
    expires_at: datetime | None
    sequence: int = 0
    state: TaskState = TaskState.READY
    removed: bool = False
    attempt: int = 0
    delivery: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    lease_until: datetime | None = None
    worker: str | None = None
    error: TaskError | None = None
    progress: Progress | None = None
    cancel_requested: bool = False
    result: bytes | None = None

    def task(self) -> StoredTask:
        order = self.order
        return StoredTask(
            id=order.id,
            queue=order.queue,
            name=order.name,
            body=order.body,
            priority=order.priority,
            state=self.state,
            attempt=self.attempt,
            delivery=self.delivery,
            max_retries=order.max_retries,
            created_at=self.created_at,
            run_at=self.run_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            expires_at=self.expires_at,
            lease_until=self.lease_until,
            worker=self.worker,
            unique=order.unique,
            tags=order.tags,
            result_ttl=order.result_ttl,
            error=self.error,
            progress=self.progress,
            cancel_requested=self.cancel_requested,
            result_payload=self.result,
        )

    def matches(self, query: TaskQuery) -> bool:
        return (
            (query.queue is None or self.order.queue == query.queue)
            and (query.state is None or self.state is query.state)
            and (query.name is None or self.order.name == query.name)
            and (query.tag is None or query.tag in self.order.tags)
        )


class Register:
    """All records, by id and in the order of enqueueing."""

    def __init__(self) -> None:
        self._by_id: dict[str, Record] = {}
        # Holds what was removed, too, until it outnumbers what is there.
        self._log: list[Record] = []
        self._sequence = 0

    def get(self, task_id: str) -> Record | None:
        return self._by_id.get(task_id)

    def add(self, record: Record) -> None:
        """Take a record in and give it the next sequence number."""
        self._sequence += 1
        record.sequence = self._sequence
        self._by_id[record.order.id] = record
        self._log.append(record)

    def remove(self, record: Record) -> None:
        record.removed = True
        del self._by_id[record.order.id]
        if len(self._log) > 2 * len(self._by_id) + 64:
            self._log = [kept for kept in self._log if not kept.removed]

    def latest(self, before: int | None = None) -> Iterator[Record]:
        """Give the records, the latest enqueued first.

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

    __slots__ = ("_heap", "_live")

    def __init__(self) -> None:
        self._live: dict[int, tuple[datetime, Record]] = {}
        # Holds what has left, too, until it comes up or outnumbers what is live.
        self._heap: list[tuple[datetime, int]] = []

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Record]:
        return (record for _, record in self._live.values())

    def put(self, record: Record, at: datetime) -> None:
        """Add a record, or move it to another time."""
        self._live[record.sequence] = at, record
        heapq.heappush(self._heap, (at, record.sequence))

    def discard(self, record: Record) -> None:
        self._live.pop(record.sequence, None)
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = [(at, sequence) for sequence, (at, _) in self._live.items()]
            heapq.heapify(self._heap)

    def first(self) -> tuple[datetime, Record] | None:
        """Give the earliest entry."""
        while self._heap:
            at, sequence = self._heap[0]
            entry = self._live.get(sequence)
            if entry is not None and entry[0] == at:
                return entry
            heapq.heappop(self._heap)
        return None

    def due(self, now: datetime) -> Record | None:
        """Give the earliest record if its time has come."""
        entry = self.first()
        return entry[1] if entry is not None and entry[0] <= now else None


@define(eq=False)
class Line:
    """One queue."""

    ready: dict[int, Index] = field(factory=dict)
    """By priority."""
    scheduled: Index = field(factory=Index)
    counts: dict[TaskState, int] = field(factory=lambda: dict.fromkeys(TaskState, 0))
    paused: bool = False

    def oldest(self) -> datetime | None:
        heads = [entry[0] for index in self.ready.values() if (entry := index.first())]
        return min(heads, default=None)
