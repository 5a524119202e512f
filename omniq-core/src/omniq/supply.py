"""How many tasks a worker asks the store for, and when: no slot shall wait, and no other worker go without."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omniq.executors import Lane
from omniq.functions import Executor, TaskFunction
from omniq.task import Task

__all__ = ["Supply"]

GATHER = 0.002
"""Seconds for which a first free slot waits for others, so that tasks are claimed many at a time."""
LEAST_SHARE = 0.05
"""The least share of claimed tasks that a lane is taken to get, so that it is never overrun by a change of mix."""


class Supply:
    """Counts the room in a worker's lanes.

    A claim does not say in which lane its tasks will run. With functions of several kinds registered, the mix that was
    seen lately decides how many tasks can be asked for: so many that no lane is expected to get more than it has room
    for. With one kind, tasks are claimed ahead of need: as many as end, at the rate of late, until the next claim can
    have brought more. Where tasks take longer than that, none are.

    :param lanes: where the tasks of each kind of function run.
    :param concurrency: how many tasks may run at once in all of them.
    :param functions: the registered functions.
    """

    def __init__(
        self, lanes: Mapping[Executor, Lane], concurrency: int, functions: Mapping[str, TaskFunction[Any, Any]]
    ) -> None:
        self._lanes = lanes
        self._concurrency = concurrency
        self._functions = functions
        self._ahead = 0
        self._counted_at = time.perf_counter()
        self._counted = 0
        self._shares: dict[Executor, float] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._target = 1

    @property
    def _used(self) -> list[Executor]:
        # Asked again each time: a task may import a module that registers more.
        return list({function.definition.executor for function in self._functions.values()})

    @property
    def wanted(self) -> int:
        """How many tasks to claim now."""
        used = self._used
        if len(used) == 1:
            lane = self._lanes[used[0]]
            return lane.slots + self._ahead - lane.load
        room = self._concurrency - sum(lane.load for lane in self._lanes.values())
        for kind in used:
            lane = self._lanes[kind]
            free = lane.slots - lane.load
            if free <= 0:
                return 0
            room = min(room, max(1, int(free / self._shares.get(kind, 1 / len(used)))))
        return max(room, 0)

    @property
    def idle(self) -> bool:
        """Whether nothing runs: then there is nothing to wait for."""
        return not any(lane.load for lane in self._lanes.values())

    @property
    def enough(self) -> bool:
        """Whether so many can be claimed that a round trip is well spent."""
        return self.wanted >= self._enough

    @property
    def _enough(self) -> int:
        used = self._used
        slots = self._lanes[used[0]].slots if len(used) == 1 else self._concurrency
        return max(1, slots // 2)

    def learn(self, claimed: Sequence[Task], *, ended: int, took: float) -> None:
        """Take note of a claim.

        :param claimed: what it gave.
        :param ended: how many attempts have ended in all.
        :param took: seconds of its round trip.
        """
        now = time.perf_counter()
        rate = (ended - self._counted) / max(now - self._counted_at, 1e-6)
        self._counted, self._counted_at = ended, now
        used = self._used
        self._ahead = min(int(rate * (took + GATHER)), self._concurrency) if len(used) == 1 else 0
        if len(used) > 1 and claimed:
            self._learn_shares(used, claimed)

    def _learn_shares(self, used: Sequence[Executor], claimed: Sequence[Task]) -> None:
        known = (self._functions.get(task.name) for task in claimed)
        counts = Counter(function.definition.executor for function in known if function is not None)
        for kind in used:
            before = self._shares.get(kind, 1 / len(used))
            self._shares[kind] = max(LEAST_SHARE, 0.7 * before + 0.3 * counts[kind] / len(claimed))

    def freed(self) -> None:
        """Take note that an attempt ended."""
        if self._waiter is not None and not self._waiter.done() and self.wanted >= self._target:
            self._waiter.set_result(None)

    async def room(self, stop: asyncio.Event) -> None:
        """Return when at least one task can be claimed, or the worker stops."""
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        try:
            while self.wanted <= 0 and not stop.is_set():
                self._target = 1
                waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._waiter = waiter
                await asyncio.wait([waiter, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            self._waiter = None

    async def gather(self) -> None:
        """Return when so many can be claimed that a round trip is well spent, or after a moment."""
        loop = asyncio.get_running_loop()
        self._target = self._enough
        self._waiter = waiter = loop.create_future()
        timer = loop.call_later(GATHER, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
