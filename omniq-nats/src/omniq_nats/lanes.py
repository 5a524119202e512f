"""What a queue's state tells of limits: whose tasks are ready, and what they have had so far.

Ready tasks of one key and one named limit are a **group**: they stand in lines of their own, one for each priority, and
among those that wait. Such a line is in the queue's state exactly as long as it has tasks: they are enqueued in one
step with the state. So a claim knows from the state alone which groups have tasks, and reads only those it takes from.
A queue that has no limit and no groups has no lane, and pays nothing.

Slots are running tasks: they are counted where they are, in the state, and there is no counter that could leak.

Everything here is in memory; nothing does any I/O.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from attrs import define, field

from omniq.limit import Limit, Rate
from omniq.storage.validation import is_text
from omniq_nats.names import group_in, is_line

__all__ = ["UNLIMITED", "Group", "Lane", "Usage", "at_rest", "slots_of", "tokens_of"]

UNLIMITED = 2**63
MOST_KNOWN = 16384
"""So many groups and lines are known as they were last read or written: few change from one state to the next."""


class Group(NamedTuple):
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
        """Return what is stored of it beside groups and their lines."""
        head = [self.is_limited, self.vtime, self.plain_vtime, self.at_rest, self.rests, self.names]
        return [*head, len(self.groups), len(self.counts)]

    def rows(self, lines: Mapping[str, Sequence[int]]) -> list[bytes]:
        """Return what is stored of groups and their lines.

        :param lines: how far each has been claimed.
        """
        return [
            *[_write_group(name, group) for name, group in self.groups.items()],
            *[_write_line(line, count, *lines[line]) for line, count in self.counts.items()],
        ]

    @classmethod
    def read(cls, row: Any, rows: list[bytes], lines: dict[str, list[int]]) -> Lane:
        """Read what :meth:`row` and :meth:`rows` returned.

        :param rows: what is of other things than groups and their lines stays in it.
        :param lines: those of groups come to these.
        :raises ValueError: if something is not what it must be; or another of the errors of such values.
        """
        is_limited, vtime, plain_vtime, rest, rests, names, groups, counted = row
        numbers = [vtime, plain_vtime, rest, groups, counted, *rests.values(), *names.values()]
        if not (type(is_limited) is bool and all(map(_is_number, numbers)) and all(map(is_text, [*rests, *names]))):
            raise ValueError("what it says of limits is of a wrong type or out of range")
        lane = cls(is_limited, vtime, plain_vtime, rest, rests, dict(map(_read_group, rows[:groups])), {}, names)
        for line, count, place in map(_read_line, rows[groups : groups + counted]):
            lane.counts[line] = count
            lines[line] = place
        if (
            len(lane.groups) != groups
            or len(lane.counts) != counted
            or not lane.groups.keys() >= set(map(group_in, lane.counts))
        ):
            raise ValueError("it does not say of which key and named limit the tasks of a line are")
        del rows[: groups + counted]
        return lane


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < UNLIMITED


@functools.lru_cache(maxsize=MOST_KNOWN)
def _read_group(row: bytes) -> tuple[str, Group]:
    name, *told = json.loads(row)
    group = Group(*told)
    texts = [name, *(text for text in (group.key, group.limit) if text is not None)]
    if not (all(map(is_text, texts)) and _is_number(group.vtime)):
        raise ValueError("a key and its named limit are of a wrong type or out of range")
    return name, group


@functools.lru_cache(maxsize=MOST_KNOWN)
def _write_group(name: str, group: Group) -> bytes:
    return json.dumps([name, *group], separators=(",", ":")).encode()


@functools.lru_cache(maxsize=MOST_KNOWN)
def _read_line(row: bytes) -> tuple[str, int, list[int]]:
    line, count, seq, taken = json.loads(row)
    if not (is_line(line) and group_in(line) and all(map(_is_number, (count, seq, taken)))):
        raise ValueError("a line is none")
    return line, count, [seq, taken]


@functools.lru_cache(maxsize=MOST_KNOWN)
def _write_line(line: str, count: int, seq: int, taken: int) -> bytes:
    return f'["{line}",{count},{seq},{taken}]'.encode()


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
