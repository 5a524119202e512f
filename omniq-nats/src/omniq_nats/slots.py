"""What a book is made of: tasks that run or wait, and what a change of it leaves to be done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attrs import define

from omniq.storage.validation import LARGEST_COUNT, is_text
from omniq_nats.homes import Home
from omniq_nats.names import split_home
from omniq_nats.times import is_moment

__all__ = ["Doomed", "Shelf", "Slot", "check_slot", "shelf_of", "slot_of"]

_MOST = 2**63


@define(eq=False)
class Slot:
    """One task that runs, or waits for a time or after a claim."""

    id: str
    home: str
    index: int
    seq: int
    """The sequence of its home."""
    size: int
    """How many tasks the home has."""
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
    """Whether the error of its latest attempt is kept."""
    has_fate: bool = False
    """Whether a fate of it is kept though it is alive: it was made ready again."""
    cancel: bool = False
    progress: list[Any] | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Its place within the priority."""
        return self.at, self.rank

    def is_expired(self, now: int) -> bool:
        """Whether it is no longer worth starting."""
        return self.expires is not None and self.expires <= now


def check_slot(slot: Slot) -> None:
    """Check what was read of a task that runs or waits.

    :raises ValueError: if something is not what it must be; or another of the errors of such values.
    """
    numbers = (slot.index, slot.seq, slot.size, slot.rank, slot.max_retries, slot.attempt, slot.delivery)
    times = (slot.at, slot.expires, slot.started, slot.until)
    flags: tuple[Any, ...] = (slot.expired_order, slot.has_error, slot.has_fate, slot.cancel)
    split_home(slot.home)
    if not (
        is_text(slot.id)
        and all(type(number) is int and 0 <= number < _MOST for number in numbers)
        and slot.attempt < LARGEST_COUNT
        and slot.delivery < LARGEST_COUNT
        and type(slot.ttl) is float
        and 0 <= slot.ttl < math.inf
        and type(slot.priority) is int
        and is_moment(slot.at)
        and all(time is None or is_moment(time) for time in times)
        and all(type(flag) is bool for flag in flags)
        and (slot.worker is None or is_text(slot.worker))
        and (slot.progress is None or len(slot.progress) == 3)
    ):
        raise ValueError(f"what it says of task {str(slot.id)[:100]!r} is of a wrong type or out of range")


def slot_of(home: Home, index: int) -> Slot:
    """Give a slot for a task to which nothing has happened yet."""
    order = home.order(index)
    return Slot(
        id=order.id,
        home=home.name,
        index=index,
        seq=home.seq,
        size=len(home),
        ttl=home.ttl,
        rank=home.rank(index),
        priority=order.priority,
        at=order.run_at,
        max_retries=order.fields[7],
        expires=order.expires,
    )


@define(eq=False)
class Doomed:
    """A task that was removed, and whose messages have to be."""

    id: str
    home: str
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
class Shelf:
    """Waiting tasks of one priority that are kept apart from the book, in a message of their own that never changes."""

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

    @property
    def key(self) -> tuple[int, int]:
        """The key of the first that was not taken from it yet."""
        return self.at, self.rank

    @property
    def left(self) -> int:
        """How many are on it."""
        return self.count - self.taken


def shelf_of(name: str, slots: Sequence[Slot]) -> Shelf:
    """Give a shelf for slots in order."""
    first = slots[0]
    expiries = [slot.expires for slot in slots if slot.expires is not None]
    return Shelf(
        name, first.priority, first.at, first.rank, slots[-1].at, len(slots), expires=min(expiries, default=None)
    )
