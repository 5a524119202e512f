"""What a limit is: how many tasks of a queue, of each key in it, or of a name may run at a time, and start in a time.

:class:`Limit`, :class:`Rate` and :class:`Debounce` are what an application declares. The others are the working copies
of a store's transaction: tasks that wait for a slot under the same key and the same named limit stand in one *line*,
and a line as a whole is eligible or parked, see :mod:`omniq.storage.limit_transitions`. Nothing here does any I/O.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from attrs import Attribute, define, field, frozen

__all__ = [
    "PLAIN",
    "VTIME_STEP",
    "Debounce",
    "Lane",
    "Limit",
    "LimitUsage",
    "Limited",
    "Rate",
    "Scope",
    "StoredLine",
    "UnreadableLimit",
    "limit_id",
    "line_id",
]

LARGEST = 1_000_000_000
"""The largest count and concurrency; more is no limit."""
LONGEST_PERIOD = 366 * 86400.0
"""Seconds."""


def _count(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if value is None and attribute.name == "concurrency":
        return
    if type(value) is not int or not 1 <= value <= LARGEST:
        mend = "; to stop a queue, pause it" if value == 0 else ""
        raise ValueError(f"{attribute.name} of a limit is a whole number from 1 to {LARGEST:,}, not {value!r}{mend}")


def _seconds(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if value is None and attribute.name == "max_wait":
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= LONGEST_PERIOD:
        raise ValueError(
            f"{attribute.name} is a number of seconds, more than 0 and at most {LONGEST_PERIOD:,.0f}, not {value!r}"
        )


def _name(instance: object, attribute: Attribute[Any], value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not 1 <= len(value) <= 300 or not value.isprintable()):
        raise ValueError(f"{attribute.name} of a limit is a text of 1 to 300 printable characters, not {value!r}")


def _weights(instance: object, attribute: Attribute[Any], value: Any) -> None:
    for key, weight in value.items():
        if not isinstance(key, str) or isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"weights are numbers by keys of tasks, not {key!r}: {weight!r}")
        if not 0.01 <= weight <= 100:
            raise ValueError(f"the weight of key {key!r} is a number from 0.01 to 100, not {weight!r}")


@frozen
class Rate:
    """How many tasks may start in a time.

    In any span of ``per`` seconds by the store's clock at most ``count + burst - 1`` tasks start, evenly spread but for
    the burst. A task that was given back unstarted does not count.
    """

    count: int = field(validator=_count)
    """How many, 1 or more."""
    per: float = field(default=1.0, validator=_seconds)
    """Seconds."""
    burst: int = field(default=1, validator=_count, kw_only=True)
    """How many may start at once after a rest, 1 or more."""

    @property
    def interval(self) -> int:
        """Microseconds from one start to the next; rounded up, so that no span holds more than it may."""
        return max(1, -int(-self.per * 1_000_000 // self.count))


def _per_key(instance: Limit, attribute: Attribute[Any], value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Limit):
        raise ValueError(f"per_key is a Limit, not {value!r}")
    if value.queue is not None or value.name is not None or value.per_key is not None or value.weights:
        raise ValueError("per_key is a Limit of concurrency and rate alone: Limit(concurrency=2, rate=Rate(10))")


@frozen(kw_only=True)
class Limit:
    """How many tasks of a queue, or with a named limit, may run at a time, and how many start in a time.

    One with neither ``queue`` nor ``name`` is for ``per_key``: it holds for each key by itself.
    """

    queue: str | None = field(default=None, validator=_name)
    """The queue whose tasks it limits."""
    name: str | None = field(default=None, validator=_name)
    """The name by which tasks of any queue share it."""
    concurrency: int | None = field(default=None, validator=_count)
    """How many may run at a time, under leases; None: any number."""
    rate: Rate | None = None
    """How many may start in a time; None: any number."""
    per_key: Limit | None = field(default=None, validator=_per_key)
    """What holds for the tasks of each key of the queue by themselves; not for tasks without a key."""
    weights: Mapping[str, float] = field(factory=dict, validator=_weights)
    """By key: the share of a key's tasks in the queue, compared with 1 for a key that is not named here."""
    declared: bool = False
    """Whether it was declared in code."""
    app: str | None = None
    """Of a declared one: the app whose code declares it, the ``module:attribute`` of its workers."""
    revision: int = 0
    """Counts the changes: of several who change a limit at once, one wins."""

    def __attrs_post_init__(self) -> None:
        if self.queue is not None and self.name is not None:
            raise ValueError("a limit is of a queue or has a name, not both")
        if self.name is not None and (self.per_key is not None or self.weights):
            raise ValueError("per_key and weights belong to the limit of a queue; a named one is shared by all")
        if self.rate is not None and not isinstance(self.rate, Rate):
            raise ValueError(f"rate is a Rate, such as Rate(100, per=60), not {self.rate!r}")
        if self.concurrency is None and self.rate is None and self.per_key is None and not self.weights:
            raise ValueError("a limit that limits nothing: give it concurrency, rate, per_key or weights")

    @property
    def id(self) -> str:
        """``queue:NAME`` or ``name:NAME``.

        :raises ValueError: for one that is of neither.
        """
        return limit_id(self.queue, self.name)

    def weight(self, key: str | None) -> float:
        """Return the weight of a key.

        :param key: of a task; None: tasks without a key, whose weight is 1.
        :return: what ``weights`` says of the key, else 1.
        """
        return 1.0 if key is None else float(self.weights.get(key, 1.0))


@frozen(kw_only=True)
class UnreadableLimit(Limit):
    """Stands for a stored limit that cannot be read: it lets no task start until it is set anew or deleted."""

    concurrency: int | None = field(default=0, init=False)
    problem: str
    """Why it cannot be read."""


def limit_id(queue: str | None = None, name: str | None = None) -> str:
    """Return the id of the limit of a queue, or of a named one.

    :param queue: the name of the queue, or None.
    :param name: the name of the limit, or None.
    :return: what it is stored under.
    :raises ValueError: if it is not exactly one of them.
    """
    if (queue is None) is (name is None):
        raise ValueError("a limit that is stored has either a queue or a name")
    return f"queue:{queue}" if name is None else f"name:{name}"


@frozen
class Debounce:
    """A task that waits whether another with the same key comes, which then takes its place."""

    key: str = field(validator=_name)
    """As ``unique`` keys are: of tasks with one key that wait, the last one stays."""
    wait: float = field(validator=_seconds)
    """Seconds that a task waits for the next."""
    max_wait: float | None = field(default=None, validator=_seconds)
    """Seconds from the first of those that followed each other after which one runs in any case; None: never."""


@frozen
class Limited:
    """Of a stored task that has a key, a named limit or a debounce: what that is."""

    key: str | None = None
    limit: str | None = None
    first_at: datetime | None = None
    """See :attr:`omniq.task.StoredTask.first_at`."""


# The working copies of a store


class Scope(NamedTuple):
    """What is counted together: the tasks of a queue, of a key in it, or with a named limit."""

    queue: str | None = None
    key: str | None = None
    name: str | None = None


@frozen(kw_only=True)
class LimitUsage:
    """What stands against a limit at a moment."""

    scope: Scope
    """What is counted together."""
    limit: Limit | None
    """What holds for it; None: nothing does."""
    running: int
    """How many tasks of it run; it can be more than the limit for a while after that was lowered."""
    next_start: datetime | None = None
    """When its rate lets the next task start, aware and in UTC; None: now, as far as the rate goes."""
    held_keys: int = 0
    """Of how many keys tasks wait for it, those of a queue by themselves: of the limit of a queue, for ``per_key``. No
    more than 1,000 of each queue are counted. Tasks without a key that share a named limit count as one key."""

    @property
    def is_full(self) -> bool:
        """Whether as many tasks run as may."""
        return self.limit is not None and self.limit.concurrency is not None and self.running >= self.limit.concurrency


PLAIN = ""
"""The line of the tasks that have neither a key nor a named limit."""
VTIME_STEP = 1_000_000
"""By how much one task of weight 1 puts its line back in the order of the lines."""


def line_id(queue: str, key: str | None, limit: str | None) -> str:
    """Return the id of the line in which tasks stand.

    :param queue: the name of their queue.
    :param key: their key, if they have one.
    :param limit: the name of their limit, if they have one.
    :return: 64 hexadecimal digits; :data:`PLAIN` for tasks that have neither.
    """
    if key is None and limit is None:
        return PLAIN
    return hashlib.sha256(json.dumps([queue, key, limit]).encode()).hexdigest()


@define(kw_only=True)
class StoredLine:
    """The ready tasks of one queue, key and named limit, as one; or an alarm, see :attr:`is_alarm`."""

    queue: str
    key: str | None
    limit: str | None
    place: str
    """Where it stands: one of the places of :mod:`omniq.storage.limit_transitions`."""
    priority: int = 0
    """Of its first task, or larger."""
    vtime: int = 0
    """Its place among the lines of its queue that have the same priority: the smallest is served first."""
    until: int = 0
    """Of a line that is asleep: until when, in microseconds since the epoch."""
    is_alarm: bool = False
    """Whether it stands for no tasks, but for the time at which a named limit has room for the lines of its queue that
    are parked at it."""

    @property
    def id(self) -> str:
        """The key under which it is stored."""
        if self.is_alarm:
            return hashlib.sha256(json.dumps(["alarm", self.queue, self.limit]).encode()).hexdigest()
        return line_id(self.queue, self.key, self.limit)


@define(kw_only=True)
class Lane:
    """A queue that has a limit, or lines."""

    queue: str
    vtime: int = 0
    """Of the line that was served last; one that was idle begins there."""
    plain_vtime: int = 0
    """That of the tasks without key and named limit."""
    waking: bool = False
    """Whether its limit was changed, and lines that are parked are still to be made eligible."""
