"""Warns of a worker whose slots are all held by tasks that wait for the results of others, which then cannot run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from omniq._tasks.definitions import Executor
from omniq._worker.attempt import Attempt
from omniq._worker.executors import TaskExecutor
from omniq.errors import StorageError
from omniq.storage import Storage
from omniq.storage.escaping import get_logger
from omniq.task import TaskState

__all__ = ["DeadlockWatch"]

_log = get_logger("omniq.worker")

LOOKS = 8
"""So many looks in a row must see it: a parent whose children run elsewhere may be about to go on."""
MOST_CHILDREN = 100
"""So many of the tasks that others wait for are looked at."""
_SLOTS: Mapping[Executor, str] = {"loop": "slots for coroutines (concurrency)", "thread": "threads"}


class DeadlockWatch:
    """Looks at what a worker's slots are held by.

    Tasks in processes of their own are not seen: what they wait for is known in their process alone.

    :param executors: where the tasks of each kind of function run.
    :param storage: is asked how the tasks stand that others wait for, before a warning.
    """

    def __init__(self, executors: Mapping[Executor, TaskExecutor], storage: Storage) -> None:
        self._executors = executors
        self._storage = storage
        self._seen = dict.fromkeys(_SLOTS, 0)
        self._warned: set[Executor] = set()

    async def look(self, attempts: Iterable[Attempt]) -> None:
        """Warn, once while it lasts, if every slot of a kind is held by a task that waits for another.

        It is no reason to warn if one of those others runs, on another worker or in other slots, or has ended.

        :param attempts: what the worker holds.
        """
        full = [executor for executor in _SLOTS if self._executors[executor].load >= self._executors[executor].slots]
        parents: dict[Executor, list[Attempt]] = {executor: [] for executor in full}
        for attempt in attempts if full else ():
            executor = attempt.function.definition.executor
            if executor in parents and attempt.started_at and not attempt.settled and attempt.context.awaited:
                parents[executor].append(attempt)
        for executor in _SLOTS:
            waiting = parents.get(executor, [])
            if len(waiting) < self._executors[executor].slots:
                self._seen[executor] = 0
                self._warned.discard(executor)
                continue
            self._seen[executor] += 1
            if self._seen[executor] >= LOOKS and executor not in self._warned:
                self._seen[executor] = 0
                if await self._stand_still(waiting):
                    self._warned.add(executor)
                    self._warn(executor, waiting)

    async def _stand_still(self, waiting: list[Attempt]) -> bool:
        ids = list(dict.fromkeys(one for attempt in waiting for one in tuple(attempt.context.awaited)))
        try:
            children = await self._storage.get(ids[:MOST_CHILDREN])
        except StorageError:
            return False  # which others tell; the next look asks again
        return all(child is not None and child.state in (TaskState.SCHEDULED, TaskState.READY) for child in children)

    def _warn(self, executor: Executor, waiting: list[Attempt]) -> None:
        parent = waiting[0]
        _log.warning(
            "all %d %s are taken by tasks that wait for the results of other tasks, such as task %s (%s) for task %s. "
            "If those need the same slots, all of them wait for ever: give the children a queue and a worker of their "
            "own, or let the last child enqueue what comes next instead of waiting",
            self._executors[executor].slots,
            _SLOTS[executor],
            parent.task.id,
            parent.task.name,
            next(iter(tuple(parent.context.awaited)), "?"),
        )
