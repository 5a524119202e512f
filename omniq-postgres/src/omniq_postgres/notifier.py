"""Telling others: a NOTIFY after what was committed, not with it, and not for each change.

A transaction that notifies takes a lock of the whole server while it commits, so that those who commit at the same
time wait for each other and for the disk. On its own it writes nothing and holds that lock for a moment only. Of a lone
task it is told in the same round trip, right behind the statement. If the process dies in between, those who wait look
for themselves within three seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from attrs import evolve

from omniq.errors import StorageError
from omniq_postgres import binary_params
from omniq_postgres.operations import Context, Job, News, Query, Steps
from omniq_postgres.settings import Names

__all__ = ["EVERYTHING", "TAIL", "Notifier", "channels", "is_flood", "messages", "notify", "telling", "telling_of_ends"]

SPARSE, GATHER = 0.004, 0.01
"""Seconds between two NOTIFYs at least, where they tell of few tasks, and of many: a lone task is not kept waiting, and
a flood is told of in few messages."""
FEW = 8
"""Tasks: news of more than these is a flood."""
TAIL = 12
"""Of a task's id the last characters are told, which are random; who waits for another with the same looks in vain."""
EVERYTHING = "*"
_LONGEST = 7900
"""Bytes; the server refuses 8000."""
_MOST = 40
"""Messages; more than these say less than one that says everything."""


def channels(names: Names) -> tuple[str, str]:
    """Return the names of the channels on which work and ends are told."""
    return f"omniq_{names.mark}_work", f"omniq_{names.mark}_ends"


def messages(news: News, names: Names) -> Iterator[tuple[str, str]]:
    """Yield the channels and payloads of news."""
    work, ends = channels(names)
    if news.work:
        payload = json.dumps(news.work)
        # A name without meaning makes all waiters look.
        yield work, payload if len(payload) < _LONGEST else json.dumps({"": 0.0})
    if news.ended:
        tails = "".join(task_id[-TAIL:] for task_id in news.ended)
        size = _LONGEST // TAIL * TAIL
        if len(tails) > _MOST * size:
            yield ends, EVERYTHING
            return
        for start in range(0, len(tails), size):
            yield ends, tails[start : start + size]


def notify(news: News, context: Context) -> Steps[None]:
    """Tell of news."""
    if news:
        yield _notification(news, context)


def _notification(news: News, context: Context) -> Query:
    told = list(messages(news, context.sql.names))
    return context.query(
        "waiting.notify",
        binary_params.texts([channel for channel, _ in told]),
        binary_params.texts([payload for _, payload in told]),
    )


def telling(news: News, query: Query, context: Context) -> Query:
    """Return a query that tells of news when it is done, in one round trip, if now is the time; else note the news."""
    if context.may_tell(news):
        return evolve(query, after=_notification(news, context))
    context.news.add(news)
    return query


def telling_of_ends(task_ids: Sequence[str], query: Query, context: Context) -> Query | None:
    """Return a query that tells of the tasks that it has ended, in one round trip; None if now is not the time."""
    if not context.may_tell(News(ended=list(task_ids))):
        return None
    _, ends = channels(context.sql.names)
    return evolve(
        query, after=context.query("waiting.notify_ended", binary_params.text(ends), binary_params.uuids(task_ids))
    )


def is_flood(news: News) -> bool:
    """Whether news is of so many tasks that it is told with what comes meanwhile."""
    return max(len(news.ended), news.tasks) > FEW


class Notifier:
    """Tells others of what one storage did.

    :param run: does a job on the store.
    """

    def __init__(self, run: Callable[[Job[None]], Awaitable[None]]) -> None:
        self._run = run
        self._pending = News()
        self._told_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._telling: set[asyncio.Task[None]] = set()

    def may_tell(self, news: News) -> bool:
        """Whether the statement that brings news may tell of it itself; if so, it counts as told. From any thread."""
        if self._timer is not None or is_flood(news) or time.monotonic() - self._told_at < SPARSE:
            return False
        self._told_at = time.monotonic()
        return True

    def add(self, news: News) -> None:
        """Tell of news at once, or with others in a moment. On the storage's loop."""
        self._pending.add(news)
        if self._timer is not None:
            return
        since = time.monotonic() - self._told_at
        if since >= (GATHER if is_flood(self._pending) else SPARSE):
            self._tell()
        else:
            # Whatever it is about, it is part of what becomes a flood.
            self._timer = asyncio.get_running_loop().call_later(GATHER - since, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._told_at = time.monotonic()
        news, self._pending = self._pending, News()
        if news:
            task = asyncio.get_running_loop().create_task(self._send(news))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _send(self, news: News) -> None:
        with contextlib.suppress(StorageError):  # waiters look by themselves after a while
            await self._run(lambda context: notify(news, context))

    async def drain(self) -> None:
        """Tell of everything, and wait until it is told."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell()
        if self._telling:
            await asyncio.wait(self._telling, timeout=2)
