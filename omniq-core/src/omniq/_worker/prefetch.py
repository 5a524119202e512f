"""How many tasks a worker asks the store for, and when: no slot shall wait, and no other worker go without."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omniq._tasks.definitions import Executor
from omniq._tasks.functions import TaskFunction
from omniq._worker.executors import TaskExecutor
from omniq.task import StoredTask

__all__ = ["Lookahead", "Prefetch"]

GATHER = 0.002
"""Seconds for which a first free slot waits for others, so that tasks are claimed many at a time."""
LEAST_SHARE = 0.05
"""The least share of claimed tasks that an executor is taken to get, so that it is never overrun by a change of mix."""
MOST_AHEAD = 3
"""How many times as many tasks as the worker's ``concurrency`` are claimed ahead of need at most."""
AHEAD = 8
"""How many tasks are looked past in a first round, as expected."""
ROUND = 1.0
"""Seconds between two rounds that bring something; about as long as a worker keeps a task that waits for a slot."""
LONGEST_PAUSE = 10.0
"""Seconds between two rounds that bring nothing, at last."""


class Lookahead:
    """How far to look past tasks whose executor is full, for those behind them whose executor has room.

    A claim gives tasks in their order, of whatever kind. So those behind can be had only together with those before
    them, which then wait in their executor until it has a slot, or until the worker gives them back to others a second
    later, unstarted. That ends a round: so long there are never more of them than the reach.

    The next round begins a second after the last one did if that one brought something. If not, it reaches twice as
    far, and comes after twice as long: to the store each round is another delivery of the same tasks.

    How many of what is claimed will have to wait is only expected, from the mix of late; it may be more by a change.

    :param most: the farthest reach.
    :param clock: returns a time in seconds that never goes back.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._reach = min(AHEAD, most)
        self._pause = ROUND
        self._in_vain = False
        self._next_round = 0.0

    def room(self, waiting: int) -> int:
        """Return how many tasks more may be claimed although they may have to wait.

        :param waiting: how many wait already.
        """
        if waiting == 0 and self._clock() < self._next_round:
            return 0
        return max(0, self._reach - waiting)

    def learn(self, waiting: int, *, looked_past: int, useful: bool) -> None:
        """Take note of a claim that was made while an executor was full.

        :param waiting: how many tasks waited before it.
        :param looked_past: how many it gave that have to wait.
        :param useful: whether it gave one whose executor has room.
        """
        if waiting == 0 and looked_past:  # a round begins
            if self._in_vain:
                self._reach = min(2 * self._reach, self._most)
                self._pause = min(2 * self._pause, LONGEST_PAUSE)
            else:
                self._pause = ROUND
            self._next_round = self._clock() + self._pause
            self._in_vain = True
        if useful:
            self._in_vain = False


class Prefetch:
    """Counts the room in a worker's executors.

    A claim does not say in which executor its tasks will run. With functions of several kinds registered, the mix that
    was seen lately decides how many tasks can be asked for: so many that no executor is expected to get more than it
    has room for. While one of the executors is full, :class:`Lookahead` decides. With one kind, tasks are claimed ahead
    of need: as many as end, at the rate of late, until the next claim can have brought more, and as many again, which
    run while that one is under way. Where tasks take longer than that, none are.

    :param executors: where the tasks of each kind of function run.
    :param concurrency: how many tasks may run at once in all of them.
    :param functions: the registered functions.
    :param clock: returns a time in seconds that never goes back.
    """

    def __init__(
        self,
        executors: Mapping[Executor, TaskExecutor],
        concurrency: int,
        functions: Mapping[str, TaskFunction[Any, Any]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._executors = executors
        self._concurrency = concurrency
        self._functions = functions
        self._known = 0
        self._kinds: list[Executor] = []
        self._ahead = 0
        self._lookahead = Lookahead(concurrency, clock)
        self._clock = clock
        self._counted_at = clock()
        self._counted = 0
        self._shares: dict[Executor, float] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._target = 1
        self._gathers = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def _used(self) -> list[Executor]:
        # A task may import a module that registers more functions; none is ever removed.
        if len(self._functions) != self._known:
            self._known = len(self._functions)
            self._kinds = list({function.definition.executor for function in self._functions.values()})
        return self._kinds

    @property
    def wanted(self) -> int:
        """How many tasks to claim now."""
        used = self._used
        if len(used) == 1:
            return self._part_of(self._room_at(used[0]))
        room = self._concurrency - sum(executor.load for executor in self._executors.values())
        full = self._full(used)
        if full and len(full) == len(used):
            return 0
        for kind in used:
            executor = self._executors[kind]
            free = self._lookahead.room(self._waiting) if kind in full else executor.capacity - executor.load
            if free == 0:
                return 0
            room = min(room, max(1, int(free / self._shares.get(kind, 1 / len(used)))))
        return max(room, 0)

    def _room_at(self, kind: Executor) -> int:
        executor = self._executors[kind]
        return executor.capacity + self._ahead - executor.load

    def _part_of(self, room: int) -> int:
        """Return how many to claim at once. Half where tasks end so soon: the others are claimed while those run."""
        return min(room, self._enough) if self._ahead >= self._slots else room

    def beyond(self, claimed: int) -> int:
        """Return how many tasks to claim now, before those of a claim are in their executor; 0: it is too soon.

        :param claimed: how many those are.
        """
        used = self._used
        room = self._room_at(used[0]) - claimed if len(used) == 1 else 0
        return self._part_of(room) if room >= self._enough else 0

    def _full(self, used: Sequence[Executor]) -> list[Executor]:
        return [kind for kind in used if self._executors[kind].load >= self._executors[kind].capacity]

    @property
    def _waiting(self) -> int:
        return sum(max(0, executor.load - executor.capacity) for executor in self._executors.values())

    @property
    def idle(self) -> bool:
        """Whether nothing runs: then there is nothing to wait for."""
        return not any(executor.load for executor in self._executors.values())

    @property
    def enough(self) -> bool:
        """Whether so many can be claimed that a round trip is well spent."""
        return self.wanted >= self._enough

    @property
    def _enough(self) -> int:
        # Of what is claimed ahead, too: else right after a claim that left a little room there would be another.
        return max(1, (self._slots + self._ahead) // 2)

    @property
    def _slots(self) -> int:
        used = self._used
        return self._executors[used[0]].capacity if len(used) == 1 else self._concurrency

    def learn(self, claimed: Sequence[StoredTask], *, ended: int, took: float) -> None:
        """Take note of a claim.

        :param claimed: what it gave.
        :param ended: how many attempts have ended in all.
        :param took: seconds of its round trip.
        """
        now = self._clock()
        rate = (ended - self._counted) / max(now - self._counted_at, 1e-6)
        self._counted, self._counted_at = ended, now
        used = self._used
        ahead = min(int(2 * rate * (took + GATHER)), MOST_AHEAD * self._concurrency)
        self._ahead = ahead if len(used) == 1 else 0
        if len(used) > 1 and claimed:
            self._learn_shares(used, claimed)

    def _learn_shares(self, used: Sequence[Executor], claimed: Sequence[StoredTask]) -> None:
        known = (self._functions.get(task.name) for task in claimed)
        counts = Counter(function.definition.executor for function in known if function is not None)
        full = self._full(used)
        if full:
            self._lookahead.learn(
                self._waiting,
                looked_past=sum(counts[kind] for kind in full),
                useful=any(kind not in full for kind in counts),
            )
        for kind in used:
            before = self._shares.get(kind, 1 / len(used))
            self._shares[kind] = max(LEAST_SHARE, 0.7 * before + 0.3 * counts[kind] / len(claimed))

    def freed(self) -> None:
        """Take note that an attempt ended."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        wanted = self.wanted
        if wanted >= self._target:
            waiter.set_result(None)
        elif wanted > 0 and not self._gathers:
            self._gather(waiter)
        elif self._timer is None and len(self._kinds) > 1:  # with one kind there is none to look past
            self._look_past_in_time(waiter)

    async def room(self) -> None:
        """Return when so many tasks can be claimed that a round trip is well spent, or a moment after the first can.

        There may still be room for none: after :meth:`wake`, or when it is time to look past an executor that is full.
        """
        if self.wanted > 0 and (self.idle or self.enough):
            return
        # A future of its own: each further turn of the loop would run more of what the claim is to come before.
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        self._target = self._enough
        self._gathers = False
        if self.wanted > 0:
            self._gather(waiter)
        else:
            self._look_past_in_time(waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def wake(self) -> None:
        """Have :meth:`room` return."""
        if self._waiter is not None:
            _wake(self._waiter)

    def _gather(self, waiter: asyncio.Future[None]) -> None:
        self._gathers = True
        self._wake_in(GATHER, waiter)

    def _look_past_in_time(self, waiter: asyncio.Future[None]) -> None:
        """Have :meth:`room` return in a while if an executor is full and another is not.

        Nothing tells when the next round of looking ahead can begin.
        """
        used = self._used
        if 0 < len(self._full(used)) < len(used):
            self._wake_in(ROUND / 4, waiter)

    def _wake_in(self, seconds: float, waiter: asyncio.Future[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, _wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
