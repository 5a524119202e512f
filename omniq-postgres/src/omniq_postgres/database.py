"""Jobs on connections: each is tried until it is done, cannot be done, or has taken too long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import psycopg
from attrs import define

from omniq.storage.outages import Outage
from omniq_postgres import libpq
from omniq_postgres.connecting import AsyncConnection, Connector, SyncConnection, cut
from omniq_postgres.errors import Remedy, remedy_for, text_of
from omniq_postgres.operations import Context, Job, News, Query, Steps
from omniq_postgres.pool import Pool
from omniq_postgres.statements import Statements

__all__ = ["Database", "drive", "drive_blocking"]

R = TypeVar("R")

FIRST_PAUSE, LONGEST_PAUSE = 0.03, 1.0
"""Seconds between tries; each pause is twice as long as the one before, and of random length within that."""
GRACE = 1.0
"""Seconds for which a job goes on for which no caller waits any more."""


async def drive(connection: AsyncConnection, steps: Steps[R], query: Query) -> R:
    """Run a job's steps on a connection.

    :param query: the first of its statements, which it has yielded already.
    """
    try:
        while True:
            try:
                rows = await libpq.rows(connection, query)
            except psycopg.Error as error:
                query = steps.throw(error)
            else:
                query = steps.send(rows)
    except StopIteration as done:
        result: R = done.value
        return result


def drive_blocking(connection: SyncConnection, steps: Steps[R]) -> R:
    """Run a job's steps on a connection of a synchronous driver."""
    try:
        query = next(steps)
        while True:
            try:
                rows = libpq.rows_blocking(connection, query)
            except psycopg.Error as error:
                query = steps.throw(error)
            else:
                query = steps.send(rows)
    except StopIteration as done:
        result: R = done.value
        return result


@define
class _Effort:
    """One job under way: until when it may be, and what is cut then."""

    deadline: float
    connection: AsyncConnection | None = None
    watchdog: asyncio.TimerHandle | None = None
    late: bool = False
    """Whether it was cut: what the driver then says of the connection is our own doing."""

    def begin(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.watchdog = asyncio.get_running_loop().call_at(self.deadline, self._cut, connection)

    def _cut(self, connection: AsyncConnection) -> None:
        self.late = True
        cut(connection)

    def end(self) -> None:
        if self.watchdog is not None:
            self.watchdog.cancel()
        self.connection = self.watchdog = None

    def hurry(self) -> None:
        """No caller waits for it any more: a server that is silent must not keep the connection from others."""
        self.deadline = min(self.deadline, asyncio.get_running_loop().time() + GRACE)
        assert self.connection is not None
        connection = self.connection
        self.end()
        self.begin(connection)


class Database:
    """What one storage does on the server.

    :param announce: told of the news of each job once it is committed.
    :param may_tell: asked whether a job may tell of its news itself, with the statement that brings it.
    :param outage: told how each job fares.
    """

    def __init__(
        self,
        connector: Connector,
        statements: Statements,
        announce: Callable[[News], None],
        may_tell: Callable[[News], bool],
        outage: Outage,
        *,
        connections: int,
    ) -> None:
        self._connector = connector
        self._settings = connector.settings
        self._announce = announce
        self._may_tell = may_tell
        self._outage = outage
        self.statements = statements
        self.pool = Pool(connector, connections)
        self._under_way: set[asyncio.Task[Any]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether there are jobs under way."""
        return bool(self._under_way)

    async def run(self, job: Job[R], *, timeout: float | None = None) -> R:
        """Do a job. If the caller is cancelled, the job goes on for a moment, so that the connection stays whole.

        Each of its statements is a transaction by itself: a process that stands still between two of them holds nothing
        that others wait for.

        :param timeout: seconds after which to give up; None: those of the settings.
        :raises StorageUnavailable: if it cannot be done in time.
        """
        loop = asyncio.get_running_loop()
        effort = _Effort(loop.time() + (self._settings.timeout if timeout is None else timeout))
        task = loop.create_task(self._persist(job, effort))
        self._under_way.add(task)
        task.add_done_callback(self._done)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if effort.connection is None:
                task.cancel()  # there is nothing under way that would have to come to its end
            else:
                effort.hurry()
            raise

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may not be there any more

    async def _persist(self, job: Job[R], effort: _Effort) -> R:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            try:
                result = await self._attempt(job, effort)
            except psycopg.Error as error:
                if effort.late:
                    raise self._connector.silent() from error
                remedy = remedy_for(error)
                if remedy is Remedy.RECONNECT:
                    self._outage.failed(text_of(error))
                if remedy is Remedy.NOTHING or loop.time() + pause > effort.deadline:
                    raise self._connector.translated(error) from error
            else:
                self._outage.succeeded()
                return result
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _attempt(self, job: Job[R], effort: _Effort) -> R:
        context = Context(self.statements, News(), self._may_tell)
        # A job may have a thread once it has begun: as many wait for a connection as like.
        await self.pool.wait_for_room(effort.deadline)
        steps = job(context)
        try:
            query = next(steps)
        except BaseException as done:
            self.pool.pass_on()
            if not isinstance(done, StopIteration):
                raise
            result: R = done.value  # there is nothing to ask the server
        else:
            try:
                # Where its statement has run before: a new one is planned six times before its plan is kept, and to
                # plan it takes longer than to run it.
                connection = await self.pool.acquire(effort.deadline, partial(libpq.has_run, query=query))
                effort.begin(connection)
                try:
                    result = await drive(connection, steps, query)
                finally:
                    effort.end()
                    self.pool.release(connection)
            finally:
                steps.close()
        if context.news:
            self._announce(context.news)
        return result

    async def drain(self) -> None:
        """Wait for what is under way on this loop."""
        here = asyncio.get_running_loop()
        mine = [task for task in self._under_way if task.get_loop() is here]
        if mine:
            await asyncio.wait(mine, timeout=self._settings.timeout)

    def close(self, *, abandoned: bool = False) -> None:
        """Close all connections; see :meth:`Pool.close`."""
        self.pool.close(abandoned=abandoned)
