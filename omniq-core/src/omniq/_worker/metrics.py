"""What a worker counts: how its tasks came and ended, and how long they waited and ran.

It is counted where the worker has the task's record in hand anyway, on its loop and without a lock, and read from any
thread. All that is counted of one function on one queue is a row of numbers, so that the rows of several processes are
added up number by number.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar

from omniq._worker.attempt import Attempt
from omniq.task import StoredTask

__all__ = ["BOUNDS", "COUNTERS", "Metrics", "Row", "Totals", "added", "from_lines", "histogram", "to_lines"]

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds: the upper bounds of what is counted as one; what takes longer than the last has a number of its own."""
COUNTERS = ("started", "succeeded", "failed", "cancelled", "retried", "recovered", "released")
MOST_PAIRS = 200
"""So many pairs of a queue and a function are told apart; all others are :data:`OTHER`, as a name may be anything."""
OTHER = ("(other)", "(other)")

T = TypeVar("T", float, timedelta)
Pair: TypeAlias = tuple[str, str]
"""A queue and a function."""
Row: TypeAlias = list[float]
"""The counters; for run and wait: the sum of the seconds, and how many there are up to each bound and beyond."""
Totals: TypeAlias = dict[Pair, Row]

_RUN = len(COUNTERS)
_WAIT = _RUN + 1 + len(BOUNDS) + 1
_LENGTH = _WAIT + 1 + len(BOUNDS) + 1
STARTED, SUCCEEDED, FAILED, CANCELLED, RETRIED, RECOVERED, RELEASED = range(len(COUNTERS))
"""The places of the counters in a row."""


class Metrics:
    """The rows of one worker."""

    def __init__(self) -> None:
        self.held: Callable[[], Iterable[Attempt]] = tuple
        """Returns the attempts that are not counted yet; called on the thread that reads."""
        self._rows: Totals = {}
        self._lock = threading.Lock()
        self._shown: Totals = {}

    def count(self, task: StoredTask, counter: int) -> None:
        """Count what became of a task without an attempt here. Called on the worker's loop."""
        _row_of(self._rows, (task.queue, task.name))[counter] += 1

    def count_end(self, attempt: Attempt, counter: int | None) -> None:
        """Count an attempt that is held no more. Called on the worker's loop.

        :param counter: what became of it; None: nothing that was recorded.
        """
        if attempt.started_at:
            self.count_ends([attempt], counter)
        elif counter is not None:
            self.count(attempt.given.stored, counter)  # type: ignore[union-attr]  # what a worker runs was admitted

    def count_ends(self, attempts: Iterable[Attempt], counter: int | None) -> None:
        """Count attempts that have begun and are held no more, and that ended alike. Called on the worker's loop.

        All that the store has accepted together in one step, as a call for each costs ten times as much.
        """
        for pair, (waits, runs) in _times(attempts).items():
            row = _row_of(self._rows, pair)
            _count_begun(row, waits)
            if counter is not None:
                row[counter] += len(runs)
                if counter != RELEASED:
                    row[_RUN] += sum(runs)
                    _observe(row, _RUN, min(runs), max(runs), runs, BOUNDS)

    def totals(self) -> Totals:
        """Return the rows as they are now, with the attempts that run. Callable from any thread."""
        with self._lock:
            totals = {pair: row.copy() for pair, row in self._rows.copy().items()}
            for pair, (waits, _) in _times(attempt for attempt in self.held() if attempt.started_at).items():
                _count_begun(_row_of(totals, pair), waits)
            # One that has just ended is neither held nor counted for a moment; no number goes down for that.
            for pair, shown in self._shown.items():
                totals[pair] = list(map(max, totals.get(pair, shown), shown))
            self._shown = totals
            return totals


def _row_of(rows: Totals, pair: Pair) -> Row:
    if pair not in rows and len(rows) >= MOST_PAIRS:
        pair = OTHER
    return rows.setdefault(pair, [0] * _LENGTH)


def _times(attempts: Iterable[Attempt]) -> dict[Pair, tuple[list[timedelta], list[float]]]:
    """Return for how long attempts waited and ran."""
    found: dict[Pair, tuple[list[timedelta], list[float]]] = {}
    queue = name = ""
    waits: list[timedelta] = []
    runs: list[float] = []
    for attempt in attempts:
        task: StoredTask = attempt.given.stored  # type: ignore[union-attr]  # likewise
        if task.name != name or task.queue != queue:
            queue, name = task.queue, task.name
            waits, runs = found.setdefault((queue, name), ([], []))
        waits.append(task.started_at - task.run_at)  # type: ignore[operator]  # it was claimed
        runs.append(attempt.ended_at - attempt.started_at)
    return found


def _count_begun(row: Row, waits: Sequence[timedelta]) -> None:
    row[STARTED] += len(waits)
    least, most = min(waits), max(waits)
    # Tasks that were enqueued and claimed together have waited equally long: no need to add up what takes longest here.
    total = least * len(waits) if least == most else sum(waits, timedelta())
    row[_WAIT] += max(0.0, total.total_seconds())
    _observe(row, _WAIT, least, most, waits, _WAIT_BOUNDS)


_WAIT_BOUNDS = tuple(timedelta(seconds=bound) for bound in BOUNDS)


def _observe(row: Row, begin: int, least: T, most: T, values: Sequence[T], bounds: Sequence[T]) -> None:
    lower, upper = bisect_left(bounds, least), bisect_left(bounds, most)
    if lower == upper:
        row[begin + 1 + lower] += len(values)
    else:
        for value in values:
            row[begin + 1 + bisect_left(bounds, value)] += 1


def added(several: Iterable[Totals]) -> Totals:
    """Return the sum of several processes' rows, of which the first pairs are told apart."""
    together: Totals = {}
    for totals in several:
        for pair, row in totals.items():
            if pair not in together and len(together) >= MOST_PAIRS:
                pair = OTHER  # noqa: PLW2901  # the same row, under another name
            known = together.get(pair)
            together[pair] = row.copy() if known is None else [one + more for one, more in zip(known, row, strict=True)]
    return together


def histogram(row: Row, kind: str) -> tuple[list[float], float]:
    """Return how many there are up to each of :data:`BOUNDS` and beyond, each with those before it, and their sum.

    :param kind: ``"run"`` or ``"wait"``.
    """
    begin = _RUN if kind == "run" else _WAIT
    counts: list[float] = []
    for count in row[begin + 1 : begin + 2 + len(BOUNDS)]:
        counts.append(count + (counts[-1] if counts else 0))
    return counts, row[begin]


def to_lines(totals: Totals) -> list[list[Any]]:
    """Return rows as JSON has them."""
    return [[queue, name, row] for (queue, name), row in totals.items()]


def from_lines(lines: Iterable[tuple[str, str, Row]]) -> Totals:
    """Return what :func:`to_lines` was given."""
    return {(queue, name): row for queue, name, row in lines if len(row) == _LENGTH}
