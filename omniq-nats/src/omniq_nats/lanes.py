"""What a queue's state tells of limits: whose tasks are ready, and what they have had so far.

Ready tasks of one key and one named limit are a **group**: they stand in lines of their own, one for each priority, and
among those that wait. Such a line is in the queue's state exactly as long as it has tasks: they are enqueued in one
step with the state. So a claim knows from the state alone which groups have tasks, and reads only those it takes from.
A queue that has no limit and no groups has no lane, and pays nothing.

Slots are running tasks: they are counted where they are, in the state, and there is no counter that could leak.

Everything here is in memory; nothing does any I/O.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field

from omniq.limit import Limit, Rate
from omniq.storage.validation import is_text
from omniq_nats.names import group_in

__all__ = ["UNLIMITED", "Group", "Lane", "Usage", "at_rest", "slots_of", "tokens_of"]

UNLIMITED = 2**63


@define(eq=False)
class Group:
    """The tasks of one key and one named limit."""

    key: str | None
    limit: str | None
    vtime: int = 0
    """Its place among the groups that have tasks of the same priority: the smallest is served first."""


@define(eq=False)
class Lane:
    """What a queue's state tells of limits."""

    is_limited: bool = False
    """Whether a limit of the queue is stored, in a message of its own."""
    vtime: int = 0
    """Of the group that was served last: one that was without tasks begins there."""
    plain_vtime: int = 0
    """That of the tasks without key and named limit."""
    at_rest: int = 0
    """When the rate of the queue is at rest, in microseconds."""
    rests: dict[str, int] = field(factory=dict)
    """By key: when the rate of the key is."""
    groups: dict[str, Group] = field(factory=dict)
    counts: dict[str, int] = field(factory=dict)
    """How many tasks of a line of a group claims have not come to and are not to leave out."""
    names: dict[str, int] = field(factory=dict)
    """How many tasks run here by each named limit, as what is stored of the usage of that limit says."""

    def group(self, name: str, key: str | None, limit: str | None) -> Group:
        """Return a group; one that was not there begins where the queue is."""
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = Group(key, limit, self.vtime)
        return found

    def passed(self, line: str) -> None:
        """Count that claims have come to a task, or are to leave it out."""
        if line in self.counts:
            self.counts[line] -= 1

    def row(self) -> list[Any]:
        """Return what is stored of it."""
        groups = {name: [group.key, group.limit, group.vtime] for name, group in self.groups.items()}
        return [
            self.is_limited,
            self.vtime,
            self.plain_vtime,
            self.at_rest,
            self.rests,
            groups,
            self.counts,
            self.names,
        ]

    @classmethod
    def read(cls, row: Any) -> Lane:
        """Read what :meth:`row` returned.

        :raises ValueError: if something is not what it must be; or another of the errors of such values.
        """
        is_limited, vtime, plain_vtime, rest, rests, groups, counts, names = row
        numbers = [vtime, plain_vtime, rest, *rests.values(), *counts.values(), *names.values()]
        read = {name: Group(*group) for name, group in groups.items()}
        numbers += [group.vtime for group in read.values()]
        texts = [text for group in read.values() for text in (group.key, group.limit) if text is not None]
        if not (
            type(is_limited) is bool
            and all(type(number) is int and 0 <= number < UNLIMITED for number in numbers)
            and all(map(is_text, [*texts, *rests, *names]))
            and all(group_in(line) in read for line in counts)
        ):
            raise ValueError("what it says of limits is of a wrong type or out of range")
        return cls(is_limited, vtime, plain_vtime, rest, rests, read, counts, names)


@define(eq=False)
class Usage:
    """What is stored of the use of a named limit, beside the limit itself."""

    name: str
    seq: int = 0
    """Of its message; 0: there is none."""
    at_rest: int = 0
    """When its rate is at rest, in microseconds."""
    held: dict[str, int] = field(factory=dict)
    """By each queue that has tasks with it: how many of these run."""
    is_changed: bool = False
    """Whether it is to be stored; not part of the record."""


def slots_of(limit: Limit | None, running: int) -> int:
    """Return for how many more running tasks there is room; 0 or less: for none."""
    return UNLIMITED if limit is None or limit.concurrency is None else limit.concurrency - running


def at_rest(stored: int, rate: Rate, now: int) -> int:
    """Return when a rate is at rest, whatever is stored: that may come of another rate, or of a clock put back."""
    return min(max(stored, now), now + rate.burst * rate.interval)


def tokens_of(limit: Limit | None, stored: int, now: int) -> tuple[int, int]:
    """Return how many tasks may start now by a rate, and when the next may if none may."""
    if limit is None or limit.rate is None:
        return UNLIMITED, now
    interval = limit.rate.interval
    due = at_rest(stored, limit.rate, now) - (limit.rate.burst - 1) * interval
    return max(0, (now - due) // interval + 1), due
