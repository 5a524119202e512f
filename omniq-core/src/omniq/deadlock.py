"""Warns of a worker whose slots are all held by tasks that wait for the results of others, which then cannot run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from omniq.execute import Attempt
from omniq.executors import Lane
from omniq.functions import Executor

__all__ = ["DeadlockWatch"]

_log = logging.getLogger("omniq.worker")

LOOKS = 8
"""So many looks in a row must see it: a parent whose children run elsewhere may be about to go on."""
_SLOTS: Mapping[Executor, str] = {"loop": "slots for coroutines (concurrency)", "thread": "threads"}


class DeadlockWatch:
    """Looks at what a worker's slots are held by.

    Tasks in processes of their own are not seen: what they wait for is known in their process alone.

    :param lanes: where the tasks of each kind of function run.
    """

    def __init__(self, lanes: Mapping[Executor, Lane]) -> None:
        self._lanes = lanes
        self._seen = dict.fromkeys(_SLOTS, 0)

    def look(self, attempts: Iterable[Attempt]) -> None:
        """Warn, once while it lasts, if every slot of a kind is held by a task that waits for another.

        :param attempts: what the worker holds.
        """
        full = [executor for executor in _SLOTS if self._lanes[executor].load >= self._lanes[executor].slots]
        parents: dict[Executor, list[Attempt]] = {executor: [] for executor in full}
        for attempt in attempts if full else ():
            executor = attempt.function.definition.executor
            if executor in parents and attempt.started_at and not attempt.settled and attempt.context.awaited:
                parents[executor].append(attempt)
        for executor in _SLOTS:
            waiting = parents.get(executor, [])
            self._seen[executor] = self._seen[executor] + 1 if len(waiting) >= self._lanes[executor].slots else 0
            if self._seen[executor] == LOOKS:
                self._warn(executor, waiting)

    def _warn(self, executor: Executor, waiting: list[Attempt]) -> None:
        parent = waiting[0]
        _log.warning(
            "all %d %s are taken by tasks that wait for the results of other tasks, such as task %s (%s) for task %s. "
            "If those need the same slots, all of them wait for ever: give the children a queue and a worker of their "
            "own, or let the last child enqueue what comes next instead of waiting",
            self._lanes[executor].slots,
            _SLOTS[executor],
            parent.task.id,
            parent.task.name,
            next(iter(tuple(parent.context.awaited)), "?"),
        )
