"""How many tasks a worker asks the store for, and when: no slot shall wait, and no other worker go without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from omniq.executors import Lane
from omniq.functions import TaskFunction
from omniq.task import Task

__all__ = ["Supply"]

GATHER = 0.002
"""Seconds for which a first free slot waits for others, so that tasks are claimed many at a time."""


class Supply:
    """Counts the room in a worker's lanes.

    A claim does not say which tasks are coroutines and which are plain functions, so with both kinds registered the mix
    that was seen lately decides how many can be asked for. With one kind, tasks are claimed ahead of need: as many as
    end, at the rate of late, until the next claim can have brought more. Where tasks take longer than that, none are.

    :param loop_lane: runs the coroutines.
    :param thread_lane: runs the plain functions.
    :param concurrency: how many tasks may run at once in both.
    :param functions: the registered functions.
    """

    def __init__(
        self, loop_lane: Lane, thread_lane: Lane, concurrency: int, functions: Mapping[str, TaskFunction[Any, Any]]
    ) -> None:
        self._loop_lane = loop_lane
        self._thread_lane = thread_lane
        self._concurrency = concurrency
        self._functions = functions
        self._ahead = 0
        self._counted_at = time.perf_counter()
        self._counted = 0
        self._plain_share = 0.5
        self._waiter: asyncio.Future[None] | None = None
        self._target = 1

    @property
    def _kinds(self) -> set[bool]:
        return {function.definition.is_async for function in self._functions.values()}

    @property
    def wanted(self) -> int:
        """How many tasks to claim now."""
        kinds = self._kinds
        on_loop, on_threads = self._loop_lane, self._thread_lane
        if kinds == {True}:
            return on_loop.slots + self._ahead - on_loop.load
        if kinds == {False}:
            return on_threads.slots + self._ahead - on_threads.load
        total = self._concurrency - on_loop.load - on_threads.load
        room_on_threads = on_threads.slots - on_threads.load
        if total <= 0 or room_on_threads <= 0:
            return 0
        return max(1, min(total, int(room_on_threads / self._plain_share)))

    @property
    def idle(self) -> bool:
        """Whether nothing runs: then there is nothing to wait for."""
        return self._loop_lane.load == 0 and self._thread_lane.load == 0

    @property
    def enough(self) -> bool:
        """Whether so many can be claimed that a round trip is well spent."""
        return self.wanted >= self._enough

    @property
    def _enough(self) -> int:
        kinds = self._kinds
        slots = self._thread_lane.slots if kinds == {False} else self._loop_lane.slots
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
        alone = len(self._kinds) == 1
        self._ahead = min(int(rate * (took + GATHER)), self._concurrency) if alone else 0
        if claimed:
            plain = sum(not task.is_async for task in claimed) / len(claimed)
            self._plain_share = max(0.05, 0.7 * self._plain_share + 0.3 * plain)

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
