"""What a worker counts: how its tasks came and ended, and how long they waited and ran.

A plugin, which is registered only where the numbers are to be read. All that is counted of one function on one queue is
a row of numbers, so that the rows of several processes are added up number by number.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, TypeAlias

from omniq.hookspecs import hookimpl
from omniq.task import Task

__all__ = ["BOUNDS", "COUNTERS", "Metrics", "Row", "Totals", "added", "from_lines", "histogram", "to_lines"]

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Seconds: the upper bounds of what is counted as one; what takes longer than the last has a number of its own."""
COUNTERS = ("started", "succeeded", "failed", "cancelled", "retried", "recovered", "released")
MOST_PAIRS = 200
"""So many pairs of a queue and a function are told apart; all others are :data:`OTHER`, as a name may be anything."""
OTHER = ("(other)", "(other)")

Row: TypeAlias = list[float]
"""The counters; for run and wait: the sum of the seconds, and how many there are up to each bound and beyond."""
Totals: TypeAlias = dict[tuple[str, str], Row]
"""Queue and function → row."""

_RUN = len(COUNTERS)
_WAIT = _RUN + 1 + len(BOUNDS) + 1
_LENGTH = _WAIT + 1 + len(BOUNDS) + 1
_STARTED, _SUCCEEDED, _FAILED, _CANCELLED, _RETRIED, _RECOVERED, _RELEASED = range(len(COUNTERS))


class Metrics:
    """Counts by the events of a worker. Its methods are the hooks; they may be called on any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: Totals = {}
        self._beat_at: float | None = None

    def __reduce__(self) -> tuple[type[Metrics], tuple[()]]:
        return Metrics, ()  # a child process of the worker's gets one of its own, which nobody reads

    def totals(self) -> Totals:
        """Return a copy of the rows as they are now."""
        with self._lock:
            return {pair: row.copy() for pair, row in self._rows.items()}

    def seconds_since_heartbeat(self) -> float | None:
        """Return how long ago a heartbeat got through; None if none has."""
        return None if self._beat_at is None else time.monotonic() - self._beat_at

    def _count(self, task: Task, counter: int, histogram: int = 0, seconds: float = 0.0) -> None:
        pair = (task.queue, task.name)
        with self._lock:
            row = self._rows.get(pair)
            if row is None:
                if len(self._rows) >= MOST_PAIRS:
                    pair = OTHER
                row = self._rows.setdefault(pair, [0] * _LENGTH)
            row[counter] += 1
            if histogram:
                row[histogram] += seconds
                row[histogram + 1 + bisect_left(BOUNDS, seconds)] += 1

    @hookimpl
    def omniq_task_started(self, task: Task) -> None:
        begun, due = task.started_at, task.run_at
        waited = 0.0 if begun is None or due is None else max(0.0, (begun - due).total_seconds())
        self._count(task, _STARTED, _WAIT, waited)

    @hookimpl
    def omniq_task_succeeded(self, task: Task, seconds: float) -> None:
        self._count(task, _SUCCEEDED, _RUN, seconds)

    @hookimpl
    def omniq_task_failed(self, task: Task, seconds: float) -> None:
        self._count(task, _FAILED, _RUN, seconds)

    @hookimpl
    def omniq_task_cancelled(self, task: Task, seconds: float) -> None:
        self._count(task, _CANCELLED, _RUN, seconds)

    @hookimpl
    def omniq_task_retrying(self, task: Task, seconds: float) -> None:
        self._count(task, _RETRIED, _RUN, seconds)

    @hookimpl
    def omniq_task_recovered(self, task: Task) -> None:
        self._count(task, _RECOVERED)

    @hookimpl
    def omniq_task_released(self, task: Task) -> None:
        self._count(task, _RELEASED)

    @hookimpl
    def omniq_worker_heartbeat(self, error: Exception | None) -> None:
        if error is None:
            self._beat_at = time.monotonic()


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
