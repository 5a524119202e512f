"""How tasks come to a worker: which queues it serves, when it claims, and how it waits for work."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from attrs import frozen

from omniq._runtime.connections import Connections
from omniq._tasks.functions import TaskFunction
from omniq._tasks.options import check_count, check_queues
from omniq._worker.completer import Completer
from omniq._worker.prefetch import Prefetch
from omniq.errors import StorageError, StorageUnavailable
from omniq.storage import Storage
from omniq.storage.escaping import get_logger
from omniq.storage.failpoints import failpoint
from omniq.storage.outages import Outage
from omniq.task import StoredTask

__all__ = ["Fetcher", "Served"]

_log = get_logger("omniq.worker")

RECORDS_EVERY = 0.05
"""Seconds between two looks at whether ends are recorded again."""
DISCOVER_EVERY = 5.0
"""Seconds between two looks for queues that are new to the store, for a worker that serves all of them."""
TURNS = 2
"""Turns of the event loop that it takes a claim to leave for the store."""
WAIT = 30.0
"""Seconds of one wait for work; the storage wakes us earlier when there is some."""


class Served:
    """The queues that a worker serves, in which order.

    :param queues: names, served in strict order; or ``{name: weight}``, served in proportion; None: every queue that
        the store has, those of the registered functions first.
    :param functions: the registered functions.
    :raises ValueError: if a name or weight cannot be used.
    """

    def __init__(
        self, queues: Iterable[str] | Mapping[str, int] | None, functions: Mapping[str, TaskFunction[Any, Any]]
    ) -> None:
        self.fixed = queues is not None
        """Whether they were named; otherwise they are looked for in the store."""
        self.names: tuple[str, ...] = () if queues is None else check_queues(queues)
        self._functions = functions
        self._weights: dict[str, int] | None = None
        self._stored: list[str] = []
        self._ask_at = float("-inf")
        if isinstance(queues, Mapping):
            self._weights = {name: check_count(queues[name], f"the weight of queue {name!r}") for name in self.names}

    @property
    def chosen(self) -> Mapping[str, int] | tuple[str, ...] | None:
        """What was asked for: names in strict order, weights by name, or None for every queue."""
        if self._weights is not None:
            return self._weights
        return self.names if self.fixed else None

    def order(self) -> Iterable[str]:
        """Return the queues in the order in which to claim from them now."""
        weights = self._weights
        if weights is None:
            return self.names
        # A random order in which each queue comes first as often as its weight says (Efraimidis and Spirakis, 2006).
        return sorted(weights, key=lambda name: random.random() ** (1 / weights[name]), reverse=True)

    @property
    def seconds_known(self) -> float:
        """For how many seconds more the store is not to be asked for its queues."""
        return math.inf if self.fixed else self._ask_at - time.monotonic()

    async def discover(self, storage: Storage, *, anew: bool = True) -> None:
        """Find the queues that the store has, unless they were named.

        :param anew: whether to ask the store although it was asked a moment ago.
        """
        if self.fixed:
            return
        if anew or self.seconds_known <= 0:
            self._stored = [stats.queue for stats in await storage.stats()]
            self._ask_at = time.monotonic() + DISCOVER_EVERY
        declared = [function.options.queue for function in self._functions.values()]
        self.names = tuple(dict.fromkeys([*declared, *self._stored]))

    async def discover_patiently(self, connections: Connections, stop: asyncio.Event, who: str) -> bool:
        """Find the queues as soon as the store can be reached.

        :param stop: set when nothing is to be waited for any more.
        :param who: whom the log names as the one that waits.
        :return: False if it was stopped before.
        """
        outage = Outage(_log, f"{who} cannot start", f"{who} reaches the store")
        pause = 0.2
        while not stop.is_set():
            try:
                await self.discover((await connections.current()).storage)
            except StorageUnavailable as error:
                outage.failed(error)
            else:
                outage.succeeded()
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 5.0)
        return not stop.is_set()


@frozen
class _Claim:
    """A claim under way."""

    wanted: int
    answer: asyncio.Future[list[StoredTask]]


class Fetcher:
    """Claims tasks while there is room, and waits for work while there is none.

    :param storage: the worker's open storage.
    :param worker: the worker's id.
    :param lease: seconds that a claim holds.
    :param served: the queues to claim from.
    :param prefetch: how many to claim.
    :param completer: counts the attempts that ended.
    :param accept: is given every claimed task.
    :param on_woken: called after the claim that follows a wait for work. Mostly it was a task that ended the wait, and
        nothing is asked of the store before that one has begun.
    :param on_idle: told how many claims in a row have brought nothing while nothing ran, after each; None: there may be
        work later, which is waited for.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        worker: str,
        lease: float,
        served: Served,
        prefetch: Prefetch,
        completer: Completer,
        accept: Callable[[StoredTask], None],
        on_woken: Callable[[], None],
        on_idle: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._storage = storage
        self._worker = worker
        self._lease = lease
        self._served = served
        self._prefetch = prefetch
        self._completer = completer
        self._accept = accept
        self._on_woken = on_woken
        self._on_idle = on_idle
        self._idle_claims = 0
        self.outage = Outage(_log, f"worker {worker} cannot claim tasks", f"worker {worker} claims tasks again")
        """Of the store, as far as claims go."""
        self._stop = asyncio.Event()
        self._allowed = asyncio.Event()
        self._wait: asyncio.Task[None] | None = None
        self._next: _Claim | None = None
        """Of which the answer is not taken yet."""

    @property
    def waiting(self) -> bool:
        """Whether there was nothing more to claim, and the storage will say when there is."""
        return self._wait is not None

    def allow(self, allowed: bool) -> None:
        """Claim, or do not for now. Nothing is claimed before the first word.

        :param allowed: whether heartbeats get through: without them what is claimed would only lose its lease.
        """
        if allowed or self._stop.is_set():
            self._allowed.set()
        else:
            self._allowed.clear()

    def stop(self) -> None:
        """Claim nothing more. :meth:`run` returns when a claim that is under way has been answered."""
        self._stop.set()
        self._allowed.set()
        self._prefetch.wake()
        if self._wait is not None:
            self._wait.cancel()

    async def run(self) -> None:
        """Go on until stopped."""
        pause = 0.1
        woken = False
        try:
            while self._next is not None or not self._stop.is_set():
                try:
                    under_way, self._next = self._next, None
                    if under_way is None:
                        await self._until_it_may_claim()
                        if self._stop.is_set():
                            return
                        wanted = self._prefetch.wanted
                        if wanted <= 0:
                            continue
                        if self._served.seconds_known <= 0 or not self._served.names:
                            await self._served.discover(self._storage)
                        idle = not self._completer
                        claimed = await self._claim(wanted)
                    else:
                        wanted, idle = under_way.wanted, False
                        claimed = await under_way.answer
                    self.outage.succeeded()
                    count = len(claimed)
                    claimed.reverse()
                    try:
                        if count == wanted:
                            await self._claim_ahead(count)
                    finally:  # a worker that is stopped at once puts back what it has accepted
                        while claimed:  # none is kept longer than it is needed
                            self._accept(claimed.pop())
                    if woken:
                        self._on_woken()
                        woken = False
                    if self._on_idle is not None and idle and not count:
                        self._idle_claims += 1
                        await self._on_idle(self._idle_claims)
                    else:
                        self._idle_claims = 0
                        if count < wanted:
                            woken = True
                            await self._wait_for_work()
                except StorageError as error:
                    self.outage.failed(error)
                    await self._sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(pause * 2, 5.0)
                else:
                    pause = 0.1
        except asyncio.CancelledError:
            if self._next is not None:
                self._next.answer.cancel()
            raise

    async def _until_it_may_claim(self) -> None:
        await self._prefetch.room()
        await self._allowed.wait()
        # Each task more would only be one more whose end waits to be recorded, while its lease is to be renewed.
        while not self._completer.records and not self._stop.is_set():
            await self._sleep(RECORDS_EVERY)

    async def _claim_ahead(self, count: int) -> None:
        """Have the next claim under way before the tasks of this one begin, where there is room for both.

        Tasks that end at once would all have run before the next turn of this one, and none would while it waits.

        :param count: how many this one gave.
        """
        wanted = self._prefetch.beyond(count)
        if (
            wanted
            and self._allowed.is_set()
            and self._completer.records
            and self._served.seconds_known > 0
            and not self._stop.is_set()
        ):
            self._next = _Claim(wanted, asyncio.ensure_future(self._claim(wanted)))
            for _ in range(TURNS):
                await asyncio.sleep(0)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _claim(self, wanted: int) -> list[StoredTask]:
        if not self._served.names:
            return []
        began = time.perf_counter()
        claimed = await self._storage.claim(
            dict.fromkeys(self._served.order(), wanted), worker=self._worker, lease=self._lease, limit=wanted
        )
        if claimed:
            failpoint("worker.after-claim")
        self._prefetch.learn(claimed, ended=self._completer.completed, took=time.perf_counter() - began)
        return claimed

    async def _wait_for_work(self) -> None:
        if self._stop.is_set():
            return
        if not self._served.names:
            await self._sleep(1.0)
            return
        timeout = min(WAIT, max(0.0, self._served.seconds_known))
        self._wait = asyncio.ensure_future(self._storage.wait_for_work(self._served.names, timeout))
        ends: list[asyncio.Future[None]] = [self._wait]
        if self._on_idle is not None:
            ends.append(asyncio.ensure_future(self._completer.empty()))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._wait.done() and not self._wait.cancelled() and (error := self._wait.exception()) is not None:
                raise error
        finally:
            for end in ends:
                end.cancel()
            self._wait = None
