"""Waiting for work and for the end of tasks: woken by messages, with a look from time to time in case they are lost."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from omniq_postgres import binary_params
from omniq_postgres.connecting import Connector
from omniq_postgres.dead_tuples import Frontier
from omniq_postgres.limits import outlook
from omniq_postgres.listening import Listener
from omniq_postgres.notifier import EVERYTHING, TAIL, channels
from omniq_postgres.operations import Context, Job, News, Steps
from omniq_postgres.settings import Names

__all__ = ["Waiting"]

LOOK_AFTER = (2.4, 2.9)
"""Seconds between looks at the store while messages are listened for; and, below, while they are not."""
LOOK_AFTER_UNHEARD = (1.0, 1.3)
FIRST_LOOK_UNHEARD, LAST_LOOK_UNHEARD = 0.02, 1.0
"""Seconds between looks for the end of a task without messages: more at first, as many tasks are short."""


class _Waiter:
    """A waiter for work."""

    def __init__(self, queues: Sequence[str]) -> None:
        self.queues = frozenset(queues)
        self.woken = asyncio.Event()
        self.sooner = False
        """Whether there may be something sooner than was known: not to claim now, but to look again when."""
        self.until = float("inf")
        """When the next look is due anyway, by the loop's clock."""


class _Watcher:
    """A waiter for the end of tasks."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.heard: set[str] = set()
        """The tails of ids whose end was told."""


def prospects(
    queues: Sequence[str], frontier: Frontier, context: Context
) -> Steps[tuple[bool, float | None, float | None]]:
    """Find out whether a task is claimable, in how many seconds one will be, and when a schedule is due."""
    names = binary_params.texts(list(queues))
    if frontier.may_wait_on():
        marks = [(queue, *mark) for queue in queues for mark in frontier.marks.get(queue, {}).items()]
        ((ready, work, schedule, lanes),) = yield context.query(
            "waiting.prospects_onward",
            names,
            binary_params.texts([queue for queue, _, _ in marks]),
            binary_params.smallints([priority for _, priority, _ in marks]),
            binary_params.timestamps([run_at for _, _, (run_at, _) in marks]),
            binary_params.bigints([seq for _, _, (_, seq) in marks]),
        )
    else:
        began = time.monotonic()
        ((ready, flows, work, schedule, lanes),) = yield context.query("waiting.prospects", names)
        frontier.waits.done(began)
        frontier.has_flows = frontier.has_flows or flows
        if flows:
            return True, work, schedule
    if not lanes:
        return ready, work, schedule
    # Of these what is ready, or due, may be held back: all others are looked at apart from them.
    ready, soonest = yield from outlook(lanes, context)
    others = [queue for queue in queues if queue not in lanes]
    if not ready and others:
        ready, work, schedule = yield from prospects(others, frontier, context)
    else:
        work = None
    return ready, min((moment for moment in (work, soonest) if moment is not None), default=None), schedule


def find_ended(ids: Sequence[str], context: Context) -> Steps[set[str]]:
    """Find out which tasks have ended or are not there."""
    rows = yield context.query("waiting.ended", binary_params.uuids(ids))
    return {row[0] for row in rows} | {task_id for task_id in ids if not binary_params.is_id(task_id)}


class Waiting:
    """Those who wait on one storage."""

    def __init__(
        self, connector: Connector, run: Callable[[Job[Any]], Awaitable[Any]], names: Names, frontier: Frontier
    ) -> None:
        self._run = run
        self._frontier = frontier
        self._work_channel, self._ends_channel = channels(names)
        self._workers: set[_Waiter] = set()
        self._ends: dict[str, set[_Watcher]] = {}
        self._listener = Listener(connector, self._heard, self._missed)

    # For work

    async def for_work(self, queues: Sequence[str], timeout: float) -> None:
        """See :meth:`~omniq.storage.Storage.wait_for_work`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        waiter = _Waiter(queues)
        self._workers.add(waiter)
        try:
            while True:
                # Listening comes before looking: what happens after the look is heard.
                heard = await self._listener.listen(self._work_channel)
                waiter.woken.clear()
                waiter.until = float("inf")
                ready, work, schedule = await self._run(lambda context: prospects(queues, self._frontier, context))
                if ready or (work is not None and work <= 0):
                    return
                now = loop.time()
                look = now + random.uniform(*(LOOK_AFTER if heard else LOOK_AFTER_UNHEARD))
                due = [now + seconds for seconds in (work, schedule) if seconds is not None]
                reason = min([deadline, *due])
                waiter.until = min(look, reason)
                await _wait(waiter.woken, waiter.until - now)
                if waiter.woken.is_set():
                    if not waiter.sooner:
                        return
                elif loop.time() >= reason:
                    return
        finally:
            self._workers.discard(waiter)

    # For ends

    async def for_end(self, ids: Sequence[str], timeout: float) -> set[str]:
        """See :meth:`~omniq.storage.Storage.wait_finished`."""
        if not ids:
            return set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause = FIRST_LOOK_UNHEARD
        with self._interest(ids) as watcher:
            while True:
                heard = await self._listener.listen(self._ends_channel)
                watcher.woken.clear()
                ended: set[str] = await self._run(lambda context: find_ended(ids, context))
                left = deadline - loop.time()
                if ended or left <= 0:
                    return ended
                look = random.uniform(*LOOK_AFTER) if heard else pause * random.uniform(0.8, 1.2)
                pause = min(pause * 1.5, LAST_LOOK_UNHEARD)
                await _wait(watcher.woken, min(look, left))
                if watcher.heard:
                    # Told after it was committed, and a caller that asks for the record looks at it anyway.
                    return {task_id for task_id in ids if task_id[-TAIL:] in watcher.heard}

    @contextmanager
    def _interest(self, ids: Sequence[str]) -> Iterator[_Watcher]:
        watcher = _Watcher()
        tails = {task_id[-TAIL:] for task_id in ids}
        for tail in tails:
            self._ends.setdefault(tail, set()).add(watcher)
        try:
            yield watcher
        finally:
            for tail in tails:
                watchers = self._ends[tail]
                watchers.discard(watcher)
                if not watchers:
                    del self._ends[tail]

    # Messages

    def tell(self, news: News) -> None:
        """Wake those who wait here, for whom the next message may be a while away."""
        if news.work:
            self._heard_of_work(news.work)
        self._heard_of_ends(task_id[-TAIL:] for task_id in news.ended)

    def _heard(self, channel: str, payload: str) -> None:
        if channel == self._work_channel:
            self._heard_of_work(_read(payload))
        elif channel == self._ends_channel:
            if payload == EVERYTHING:
                self._wake_for_ends()
                return
            self._heard_of_ends(payload[start : start + TAIL] for start in range(0, len(payload), TAIL))

    def _heard_of_ends(self, tails: Iterable[str]) -> None:
        for tail in tails:
            for watcher in self._ends.get(tail, ()):
                watcher.heard.add(tail)
                watcher.woken.set()

    def _heard_of_work(self, work: Mapping[str, float]) -> None:
        now = asyncio.get_running_loop().time()
        for waiter in self._workers:
            mine = [seconds for queue, seconds in work.items() if not queue or queue in waiter.queues]
            soonest = min(mine, default=None)
            if soonest is None or now + soonest >= waiter.until:
                continue
            waiter.sooner = soonest > 0 or set(work) == {""}
            waiter.woken.set()

    def _missed(self) -> None:
        for waiter in self._workers:
            waiter.sooner = True
            waiter.woken.set()
        self._wake_for_ends()

    def _wake_for_ends(self) -> None:
        for watchers in self._ends.values():
            for watcher in watchers:
                watcher.woken.set()

    async def close(self) -> None:
        """Stop listening."""
        await self._listener.close()


def _read(payload: str) -> dict[str, float]:
    """Read what is told of work: queue → in how many seconds."""
    try:
        return {queue: float(seconds) for queue, seconds in json.loads(payload).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {"": 0.0}  # any client can send anything on a channel


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(max(seconds, 0.0)):
            await event.wait()
    except TimeoutError:
        pass
