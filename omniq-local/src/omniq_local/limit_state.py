"""What a store keeps of limits in memory: the limits, the lines and where they stand, what runs, and rates."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from copy import copy

from omniq.limit import Lane, Limit, Scope, StoredLine
from omniq.storage.limit_transitions import IDLE, rank_of

__all__ = ["LimitState"]

_Place = tuple[str, str]
"""A queue and a place of lines."""


class LimitState:
    """All limits, lines and rates of one store, and how many tasks run of each key and named limit.

    Used under the store's lock.
    """

    def __init__(self) -> None:
        self._limits: dict[str, Limit] = {}
        self._lanes: dict[str, Lane] = {}
        self._lines: dict[str, StoredLine] = {}
        self._places: dict[_Place, _Order] = {}
        self._of_key: dict[tuple[str, str], set[str]] = {}
        self._at: dict[str, Counter[str]] = {}
        """By place: how many lines of each queue stand there."""
        self._running: Counter[Scope] = Counter()
        self._buckets: dict[Scope, int] = {}

    # What runs

    def enter(self, queue: str, key: str | None, limit: str | None) -> None:
        """Note that a task runs."""
        self._running.update(_scopes(queue, key, limit))

    def leave(self, queue: str, key: str | None, limit: str | None) -> None:
        """Note that a task that ran does not any more."""
        for scope in _scopes(queue, key, limit):
            self._running[scope] -= 1
            if not self._running[scope]:
                del self._running[scope]

    def running(self, scope: Scope) -> int:
        return self._running[scope]

    # Limits, lanes, rates

    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        return {one: self._limits[one] for one in (self._limits if ids is None else ids) if one in self._limits}

    def store_limit(self, limit: Limit) -> None:
        self._limits[limit.id] = limit

    def remove_limit(self, limit_id: str) -> None:
        self._limits.pop(limit_id, None)

    def has_lane(self, queue: str) -> bool:
        return queue in self._lanes

    def lanes(self, queues: Iterable[str] | None) -> dict[str, Lane]:
        if not self._lanes:
            return {}
        return {
            one: copy(self._lanes[one]) for one in (self._lanes if queues is None else queues) if one in self._lanes
        }

    def save_lane(self, lane: Lane) -> None:
        self._lanes[lane.queue] = copy(lane)

    def remove_lane(self, queue: str) -> None:
        self._lanes.pop(queue, None)

    def bucket(self, scope: Scope) -> int:
        return self._buckets.get(scope, 0)

    def save_bucket(self, scope: Scope, at_rest: int) -> None:
        self._buckets[scope] = at_rest

    def remove_bucket(self, scope: Scope) -> None:
        self._buckets.pop(scope, None)

    def buckets(self) -> list[tuple[Scope, int]]:
        """Return all rates, each with when it is at rest."""
        return list(self._buckets.items())

    def drop_buckets(self, until: int, limit: int) -> None:
        for scope, at_rest in self.buckets():
            if at_rest <= until:
                del self._buckets[scope]

    def count(self) -> int:
        """Return how many records of limits, lanes, lines and rates there are."""
        return len(self._limits) + len(self._lanes) + len(self._lines) + len(self._buckets)

    # Lines

    def all_lines(self) -> list[StoredLine]:
        """Return all lines, and alarms."""
        return [copy(line) for line in self._lines.values()]

    def line(self, line_id: str) -> StoredLine | None:
        line = self._lines.get(line_id)
        return None if line is None else copy(line)

    def save_line(self, line: StoredLine) -> None:
        self.drop_line(line.id)
        line = self._lines[line.id] = copy(line)
        self._places.setdefault((line.queue, line.place), _Order()).put(line.id, rank_of(line))
        if line.key is not None:
            self._of_key.setdefault((line.queue, line.key), set()).add(line.id)
        self._at.setdefault(line.place, Counter())[line.queue] += 1

    def remove_line(self, line: StoredLine) -> None:
        self.drop_line(line.id)

    def drop_line(self, line_id: str) -> None:
        """Forget a line, if it is there."""
        line = self._lines.pop(line_id, None)
        if line is None:
            return
        order = self._places[line.queue, line.place]
        order.discard(line_id)
        if not order:
            del self._places[line.queue, line.place]
        if line.key is not None:
            lines = self._of_key[line.queue, line.key]
            lines.discard(line_id)
            if not lines:
                del self._of_key[line.queue, line.key]
        at = self._at[line.place]
        at[line.queue] -= 1
        if not at[line.queue]:
            del at[line.queue]

    def lines(self, queue: str, place: str, limit: int, until: int | None = None) -> list[StoredLine]:
        order = self._places.get((queue, place))
        found = [] if order is None else [self._lines[one] for one in order.first(limit)]
        return [copy(line) for line in found if until is None or line.until <= until]

    def lines_of_key(self, queue: str, key: str) -> list[StoredLine]:
        return [copy(self._lines[one]) for one in sorted(self._of_key.get((queue, key), ()))]

    def queues_at(self, place: str) -> list[str]:
        return sorted(self._at.get(place, ()))

    def has_lines(self, queue: str) -> bool:
        return any(at != IDLE and queue in queues for at, queues in self._at.items())


class _Order:
    """Ids in the order of their ranks; any of them can leave at any time."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[int, int]] = {}
        # Holds what has left, too, until it comes up or outnumbers what is live.
        self._heap: list[tuple[int, int, str]] = []

    def __len__(self) -> int:
        return len(self._live)

    def put(self, name: str, rank: tuple[int, int]) -> None:
        self._live[name] = rank
        heapq.heappush(self._heap, (*rank, name))

    def discard(self, name: str) -> None:
        del self._live[name]
        if len(self._heap) > 2 * len(self._live) + 64:
            self._heap = [(*rank, one) for one, rank in self._live.items()]
            heapq.heapify(self._heap)

    def first(self, limit: int) -> list[str]:
        taken: list[tuple[int, int, str]] = []
        while self._heap and len(taken) < limit:
            first, second, name = entry = heapq.heappop(self._heap)
            if self._live.get(name) == (first, second) and entry not in taken[-1:]:
                taken.append(entry)
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return [name for _, _, name in taken]


def _scopes(queue: str, key: str | None, limit: str | None) -> list[Scope]:
    found = [] if key is None else [Scope(queue, key)]
    return found if limit is None else [*found, Scope(name=limit)]
