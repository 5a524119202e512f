"""What one transaction knows of lines: what it has read of them, and what it has changed and not written yet.

No other transaction changes lines meanwhile, so what was read once holds until the transaction ends.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from copy import copy

from attrs import Factory, define

from omniq.limit import StoredLine
from omniq.storage.limit_transitions import ELIGIBLE, rank_of

__all__ = ["KnownLines"]


@define
class _Order:
    """The first lines of a place."""

    entries: list[tuple[int, int, str]] = Factory(list)
    last: tuple[int, int] | None = None
    """The ranks of the last of those that were read; None: all were."""


class KnownLines:
    """Lines by their ids, by their places and by their keys. What it returns are copies."""

    def __init__(self) -> None:
        self._lines: dict[str, StoredLine | None] = {}
        self._changed: dict[str, None] = {}
        self._orders: dict[tuple[str, str], _Order] = {}
        self._ranks: dict[str, tuple[str, str, int, int]] = {}
        """Of each line that is in an order: of which queue and place, and with which ranks."""
        self._keys: dict[tuple[str, str], dict[str, None]] = {}

    # What was read

    def learn(self, lines: Iterable[tuple[str, StoredLine | None]]) -> None:
        """Take note of lines by their ids; None: there is no such line."""
        self._lines.update(lines)

    def learn_keys(self, keys: Iterable[tuple[str, str]], lines: Iterable[tuple[str, StoredLine]]) -> None:
        """Take note of all lines of some keys, each with its queue."""
        for key in keys:
            self._keys[key] = {}
        for line_id, line in lines:
            self._lines[line_id] = line
            if line.key is not None:
                self._keys[line.queue, line.key][line_id] = None

    def learn_place(self, queue: str, place: str, lines: Iterable[tuple[str, StoredLine]], *, whole: bool) -> None:
        """Take note of the first lines of a queue at a place.

        :param whole: whether there are no others.
        """
        for _, _, line_id in self._orders.get((queue, place), _Order()).entries:
            del self._ranks[line_id]
        order = self._orders[queue, place] = _Order()
        for line_id, line in lines:
            self._lines[line_id] = line
            self._enter(line_id, line)
        order.last = None if whole or not order.entries else order.entries[-1][:2]

    # What is known

    def is_known(self, line_id: str) -> bool:
        """Return whether it is known what line has an id, or that none has."""
        return line_id in self._lines

    def get(self, line_id: str) -> StoredLine | None:
        """Return a line that is known."""
        line = self._lines[line_id]
        return None if line is None else copy(line)

    def at(self, queue: str, place: str, number: int) -> list[StoredLine] | None:
        """Return the first lines of a queue at a place; None: so many of them are not known."""
        order = self._orders.get((queue, place))
        if order is None or (order.last is not None and len(order.entries) < number):
            return None
        return [line for _, _, line_id in order.entries[:number] if (line := self.get(line_id)) is not None]

    def of_key(self, queue: str, key: str) -> list[StoredLine] | None:
        """Return all lines of a key; None: they are not known."""
        known = self._keys.get((queue, key))
        return None if known is None else [line for one in known if (line := self.get(one)) is not None]

    # What is changed

    def put(self, line: StoredLine) -> bool:
        """Add a line, or replace the one with its id.

        :return: whether it has become eligible.
        """
        line_id = line.id
        before = self._lines.get(line_id)
        self._lines[line_id] = line = copy(line)
        self._changed[line_id] = None
        self._leave(line_id)
        self._enter(line_id, line)
        if line.key is not None and (known := self._keys.get((line.queue, line.key))) is not None:
            known[line_id] = None
        return line.place == ELIGIBLE and (before is None or before.place != ELIGIBLE)

    def remove(self, line: StoredLine) -> None:
        """Remove a line."""
        line_id = line.id
        self._lines[line_id] = None
        self._changed[line_id] = None
        self._leave(line_id)

    def changes(self) -> list[tuple[str, StoredLine | None]]:
        """Return what was changed since this was last asked for; None: it was removed."""
        changed = [(line_id, self._lines[line_id]) for line_id in self._changed]
        self._changed.clear()
        return changed

    def _enter(self, line_id: str, line: StoredLine) -> None:
        order = self._orders.get((line.queue, line.place))
        first, second = rank_of(line)
        if order is not None and (order.last is None or (first, second) <= order.last):
            insort(order.entries, (first, second, line_id))
            self._ranks[line_id] = line.queue, line.place, first, second

    def _leave(self, line_id: str) -> None:
        if line_id in self._ranks:
            queue, place, first, second = self._ranks.pop(line_id)
            entries = self._orders[queue, place].entries
            del entries[bisect_left(entries, (first, second, line_id))]
