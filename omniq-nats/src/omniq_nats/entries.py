"""What a queue state is made of: tasks that run or wait, and what a change of it leaves to be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import define

from omniq.storage.validation import LARGEST_COUNT, is_text
from omniq_nats.names import group_of, line_of, split_batch
from omniq_nats.results import EndRecord
from omniq_nats.task_batches import TaskBatch
from omniq_nats.times import is_moment

__all__ = [
    "Entry",
    "OverflowPage",
    "Tombstone",
    "check_slot",
    "entry_in_overflow",
    "entry_of",
    "overflow_page_of",
]

_MOST = 2**63


@define(eq=False)
class Entry:
    """One task that runs, or waits for a time or after a claim."""

    id: str
    batch: str
    index: int
    seq: int
    """The sequence of its batch."""
    size: int
    """How many tasks the batch has."""
    ttl: float
    rank: int
    """Its place in the order of enqueueing."""
    priority: int
    at: int
    """When it became, or will become, ready: with the rank, its place within the priority."""
    max_retries: int
    expires: int | None = None
    expired_order: bool = False
    """Whether the order's own expiry no longer counts."""
    attempt: int = 0
    delivery: int = 0
    worker: str | None = None
    started: int | None = None
    until: int | None = None
    """The end of the lease, while it runs."""
    has_error: bool = False
    """Whether what its attempts have left, an error or an attempt log, is kept."""
    has_fate: bool = False
    """Whether an end record of it is kept though it is alive: it was made ready again."""
    cancel: bool = False
    progress: list[Any] | None = None
    flow: str | None = None
    """The flow that it belongs to: its end counts there, in the same step."""
    limited: tuple[str | None, str | None] | None = None
    """Its key and its named limit; None: it has neither."""

    @property
    def key(self) -> tuple[int, int]:
        """Its place within the priority."""
        return self.at, self.rank

    @property
    def line(self) -> str:
        """The line that it would stand in if it had been ready when it was enqueued."""
        return line_of(self.priority) if self.limited is None else line_of(self.priority, group_of(*self.limited))

    def is_expired(self, now: int) -> bool:
        """Whether it is no longer worth starting."""
        return self.expires is not None and self.expires <= now


def check_slot(entry: Entry) -> None:
    """Check what was read of a task that runs or waits.

    :raises ValueError: if something is not what it must be; or another of the errors of such values.
    """
    numbers = (entry.index, entry.seq, entry.size, entry.rank, entry.max_retries, entry.attempt, entry.delivery)
    times = (entry.at, entry.expires, entry.started, entry.until)
    flags: tuple[Any, ...] = (entry.expired_order, entry.has_error, entry.has_fate, entry.cancel)
    split_batch(entry.batch)
    if entry.limited is not None:
        key, limit = entry.limited
        entry.limited = key, limit
        if not all(one is None or is_text(one) for one in entry.limited) or key is limit is None:
            raise ValueError("what it says of a key and a named limit")
    if not (
        is_text(entry.id)
        and all(type(number) is int and 0 <= number < _MOST for number in numbers)
        and entry.attempt < LARGEST_COUNT
        and entry.delivery < LARGEST_COUNT
        and type(entry.ttl) is float
        and 0 <= entry.ttl < math.inf
        and type(entry.priority) is int
        and is_moment(entry.at)
        and all(time is None or is_moment(time) for time in times)
        and all(type(flag) is bool for flag in flags)
        and (entry.worker is None or is_text(entry.worker))
        and (entry.progress is None or len(entry.progress) == 3)
        and (entry.flow is None or is_text(entry.flow))
    ):
        raise ValueError(f"what it says of task {str(entry.id)[:100]!r} is of a wrong type or out of range")


def entry_of(batch: TaskBatch, index: int) -> Entry:
    """Return an entry for a task to which nothing has happened since it was stored."""
    row = batch.rows[index]
    entry = Entry(
        id=row[0],
        batch=batch.name,
        index=index,
        seq=batch.seq,
        size=len(batch),
        ttl=batch.ttl,
        rank=batch.rank(index),
        priority=batch.priority(index),
        at=batch.run_at(index),
        max_retries=row[7],
        expires=row[3],
        flow=batch.flow,
        limited=batch.group_key(index),
    )
    past = batch.past(index)
    return entry if past is None or past.state.is_final else _with_past(entry, past)


def entry_in_overflow(batch: TaskBatch, index: int, end_record: EndRecord | None) -> Entry:
    """Return the entry of a task that is on an overflow page, as far as it can be known without looking there."""
    entry = entry_of(batch, index)
    return entry if end_record is None else _with_past(entry, end_record)


def _with_past(entry: Entry, end_record: EndRecord) -> Entry:
    entry.at, entry.attempt, entry.delivery = end_record.run_at, end_record.attempt, end_record.delivery
    entry.worker, entry.started = end_record.worker, end_record.started
    entry.has_error = end_record.has_left
    entry.expired_order = not end_record.keeps_expiry
    return entry


@define(eq=False)
class Tombstone:
    """A task that was removed, and whose messages have to be."""

    id: str
    batch: str
    index: int
    seq: int
    size: int
    ttl: float
    since: int
    unique: str | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Where it is in the stream."""
        return self.seq, self.index


@define(eq=False)
class OverflowPage:
    """Waiting tasks of one priority, kept apart from the queue state in a message that never changes."""

    name: str
    priority: int
    at: int
    """With the rank, the key of the first that was not taken from it yet."""
    rank: int
    last_at: int
    count: int
    taken: int = 0
    """How many were taken, from its beginning."""
    expires: int | None = None
    """When the first of them expires."""
    is_lined: bool = False
    """Whether they have keys or named limits: then they are not mixed with others."""

    @property
    def key(self) -> tuple[int, int]:
        """The key of the first that was not taken from it yet."""
        return self.at, self.rank

    @property
    def left(self) -> int:
        """How many are on it."""
        return self.count - self.taken


def overflow_page_of(name: str, entries: Sequence[Entry]) -> OverflowPage:
    """Return an overflow page for entries in order."""
    first = entries[0]
    expiries = [entry.expires for entry in entries if entry.expires is not None]
    return OverflowPage(
        name,
        first.priority,
        first.at,
        first.rank,
        entries[-1].at,
        len(entries),
        expires=min(expiries, default=None),
        is_lined=first.limited is not None,
    )
