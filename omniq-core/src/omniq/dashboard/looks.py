"""Looks at a store that all requests share, at most one a second; and the last hour of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from attrs import define, field, frozen

from omniq._client.queue import TaskQueue
from omniq._worker.worker_info import WorkerInfo
from omniq.schedule import Schedule
from omniq.storage import QueueStats, TaskQuery
from omniq.task import FINAL_STATES, StoredTask, TaskState

__all__ = ["Bucket", "History", "Look", "Looks", "Sample"]

T = TypeVar("T")

FRESH = 1.0
"""Seconds for which one look serves all that ask."""
MOST_KEPT = 200
"""Different things that are kept at a time."""
BUCKET = 30
"""Seconds of history that are added up."""
BUCKETS = 120
RATE_OVER = 10.0
"""Seconds over which the rate is an average."""
LONGEST_GAP = 90.0
"""Seconds between two looks after which nothing is said about the time between."""
PAGE = 1000


@frozen(kw_only=True)
class Look:
    """What a store looks like at one moment."""

    now: datetime
    """By the store's clock."""
    stats: Sequence[QueueStats]
    workers: Sequence[WorkerInfo]
    schedules: Sequence[Schedule]

    def count(self, state: TaskState) -> int:
        """Return how many tasks of all queues are in a state."""
        return sum(one.counts.get(state, 0) for one in self.stats)

    @property
    def oldest_ready(self) -> float | None:
        """For how many seconds the oldest ready task of all queues has waited; None if none is ready."""
        return max((one.oldest_ready for one in self.stats if one.oldest_ready is not None), default=None)


@define
class Bucket:
    """Half a minute."""

    ended: Counter[TaskState] = field(factory=Counter)
    waiting: int | None = None
    """The most tasks that were seen ready; None: there was no look."""


class History:
    """The last hour, as far as pages were asked for: what ended, and how much waited."""

    def __init__(self) -> None:
        self._buckets: dict[int, Bucket] = {}
        self._recent: list[tuple[float, Counter[TaskState]]] = []
        self._last: tuple[datetime, Counter[TaskState]] | None = None
        self._first: datetime | None = None
        self.is_seeded = False

    def seed(self, ended: Iterable[StoredTask], *, is_all: bool) -> None:
        """Fill in what was before the first look: what has ended since is counted by the looks.

        :param ended: the latest tasks that have ended.
        :param is_all: whether these are all; if not, nothing is said about what was before the earliest of them.
        """
        self.is_seeded = True
        times = [(one.finished_at.timestamp(), one.state) for one in ended if one.finished_at is not None]
        since = 0.0 if is_all or not times else min(moment for moment, _ in times)
        until = math.inf if self._first is None else self._first.timestamp()
        for moment, state in times:
            if since + (0 if is_all else BUCKET) <= moment <= until:
                self._bucket(moment).ended[state] += 1

    def add(self, look: Look) -> None:
        """Note a look. A count that fell, as old results were removed, tells nothing."""
        self._first = self._first or look.now
        counts = Counter({state: look.count(state) for state in FINAL_STATES})
        bucket = self._bucket(look.now.timestamp())
        bucket.waiting = max(bucket.waiting or 0, look.count(TaskState.READY))
        if self._last is not None and 0 < (look.now - self._last[0]).total_seconds() < LONGEST_GAP:
            ended = counts - self._last[1]
            bucket.ended.update(ended)
            self._recent.append((look.now.timestamp(), ended))
        else:
            self._recent.clear()
            self._recent.append((look.now.timestamp(), Counter()))
        self._last = look.now, counts
        while self._recent[0][0] < look.now.timestamp() - RATE_OVER:
            del self._recent[0]

    def _bucket(self, moment: float) -> Bucket:
        number = int(moment // BUCKET)
        bucket = self._buckets.setdefault(number, Bucket())
        if len(self._buckets) > 2 * BUCKETS:
            latest = max(self._buckets)
            self._buckets = {n: one for n, one in self._buckets.items() if n > latest - BUCKETS}
        return bucket

    def buckets(self, now: datetime) -> list[Bucket]:
        """Return the last hour, the earliest first."""
        last = int(now.timestamp() // BUCKET)
        return [self._buckets.get(n) or Bucket() for n in range(last - BUCKETS + 1, last + 1)]

    @property
    def rate(self) -> float | None:
        """How many tasks ended a second, over the last seconds; None while that is not known."""
        if len(self._recent) < 2 or (seconds := self._recent[-1][0] - self._recent[0][0]) <= 0:
            return None
        return sum(ended.total() for _, ended in self._recent[1:]) / seconds


@frozen
class Sample:
    """The latest tasks that have ended, listed bare, and whether they are all."""

    tasks: Sequence[StoredTask]
    is_all: bool


class Looks:
    """What is known of a queue's store, each thing read when it is asked for and not fresh any more."""

    def __init__(self, queue: TaskQueue) -> None:
        self.queue = queue
        self.history = History()
        self.taken = 0
        """How many looks were taken."""
        self._kept: dict[Hashable, tuple[float, Any]] = {}
        self._under_way: dict[tuple[Hashable, asyncio.AbstractEventLoop], asyncio.Task[Any]] = {}

    async def latest(self) -> Look:
        """Return what the store looks like."""
        return await self.shared("look", FRESH, self._look)

    async def past(self) -> History:
        """Return the last hour, with what ended before the first look; only a page that shows it waits for that."""
        if not self.history.is_seeded:
            sample = await self.sample(2 * PAGE, FRESH)
            if not self.history.is_seeded:
                self.history.seed(sample.tasks, is_all=sample.is_all)
        return self.history

    async def sample(self, most: int, fresh: float) -> Sample:
        """Return the latest tasks that have ended.

        :param most: of so many at most.
        :param fresh: seconds for which they serve all that ask.
        """
        return await self.shared(("sample", most), fresh, lambda: self._sample(most))

    async def shared(self, key: Hashable, fresh: float, read: Callable[[], Awaitable[T]]) -> T:
        """Return what is kept under a key if it is fresh, else read it; of many who ask at once one does.

        :param fresh: seconds.
        """
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept[0] < fresh:
            value: T = kept[1]
            return value
        own = key, asyncio.get_running_loop()
        if own not in self._under_way:
            # A task of its own: one who goes away must not end it for the others.
            self._under_way[own] = asyncio.create_task(self._keep(own, read))
        return await asyncio.shield(self._under_way[own])

    async def _keep(self, own: tuple[Hashable, asyncio.AbstractEventLoop], read: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await read()
            self._kept.pop(own[0], None)
            self._kept[own[0]] = time.monotonic(), value
            while len(self._kept) > MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            return value
        finally:
            del self._under_way[own]

    def forget(self) -> None:
        """Have everything read anew, after an action that the next page must show."""
        self._kept.clear()

    async def _look(self) -> Look:
        queue = self.queue
        self.taken += 1
        storage = (await queue.connections.current()).storage
        stats, workers, schedules = await asyncio.gather(queue.astats(), queue.aworkers(), queue.aschedules())
        look = Look(now=await storage.now(), stats=stats, workers=workers, schedules=schedules)
        self.history.add(look)
        return look

    async def _sample(self, most: int) -> Sample:
        storage = (await self.queue.connections.current()).storage
        found: list[StoredTask] = []
        cursor: str | None = None
        for _ in range(most // PAGE):
            query = TaskQuery(states=FINAL_STATES, bare=True, limit=PAGE, look_at=PAGE)
            page = await storage.list_tasks(query, cursor)
            found += page.tasks
            cursor = page.cursor
            if cursor is None:
                break
        return Sample(found, cursor is None)
