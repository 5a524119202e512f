"""What a storage has while it is open: its connections, its ear, its voice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from typing import Any, TypeVar

import psycopg

from omniq.errors import OmniQError
from omniq.storage.escaping import get_logger
from omniq.storage.outages import Outage
from omniq_postgres import migrating
from omniq_postgres.connecting import Connector
from omniq_postgres.database import Database
from omniq_postgres.dead_tuples import Age, Frontier
from omniq_postgres.errors import Remedy, remedy_for
from omniq_postgres.maintenance import FOLDED, fold
from omniq_postgres.notifier import Notifier, is_flood
from omniq_postgres.operations import Job, News
from omniq_postgres.statements import Statements
from omniq_postgres.sync_client import SyncClient
from omniq_postgres.waiting import Waiting

__all__ = ["Session"]

_log = get_logger("omniq.postgres")

R = TypeVar("R")

OPENING = 5.0
"""Seconds for which a server that starts is waited for."""
FOLD_EVERY = 300
"""Jobs. After so many of them the changes of the counters are summed up, so that they never become many."""
FOLD_LOOKS, FOLD_PAUSE = 10, 0.01
"""How often a fold looks whether other jobs are under way before it is done nevertheless, and the seconds before each
look."""


class Session:
    """The connections of one open storage. Made on its event loop."""

    def __init__(self, connector: Connector, statements: Statements) -> None:
        self._connector = connector
        self._settings = connector.settings
        self._loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.finalizer: weakref.finalize[Any, Any] | None = None
        shown = self._settings.shown
        outage = Outage(_log, f"{shown}: the connection is lost or cannot be made", f"{shown}: connected again")
        self._notifier = Notifier(self._run_quietly)
        may_tell = self._notifier.may_tell
        self.database = Database(
            connector, statements, self._announce, may_tell, outage, connections=self._settings.connections
        )
        self.sync_client = SyncClient(connector, statements, self._announce, may_tell, outage)
        self.bulk = asyncio.Lock()
        """Held by who enqueues several tasks in one call."""
        self.frontier = Frontier()
        self.pruned = Age()
        self.recovered = Age()
        self.waiting = Waiting(connector, self.database.run, self._settings.names, self.frontier)
        self._jobs = 0
        self._folding: asyncio.Task[None] | None = None

    @property
    def is_mine(self) -> bool:
        """Whether this process opened it; a fork's child has nothing to do with its parent's connections."""
        return self.pid == os.getpid()

    async def open(self) -> None:
        """Connect, and create or check the schema.

        :raises SchemaMismatch: if it is another version's.
        :raises StorageUnavailable: if the server cannot be reached or used.
        """
        deadline = self._loop.time() + self._settings.timeout
        give_up = min(self._loop.time() + OPENING, deadline)
        while True:
            try:
                connection = await self.database.pool.acquire(deadline)
                try:
                    await migrating.ensure(connection, self._settings, deadline)
                finally:
                    self.database.pool.release(connection)
            except psycopg.Error as error:
                # One that refuses connections is waited for only if it says that it will not for long.
                starting = error.sqlstate is not None or "starting up" in str(error)
                if remedy_for(error) is Remedy.NOTHING or not starting or self._loop.time() > give_up:
                    raise self._connector.translated(error) from error
                await asyncio.sleep(0.1)
            else:
                return

    async def run(self, job: Job[R]) -> R:
        """Do a job; see :meth:`Database.run`."""
        self._count(1)
        return await self.database.run(job)

    def _count(self, jobs: int) -> None:
        self._jobs += jobs
        if self._jobs >= FOLD_EVERY:
            self._jobs = 0
            if self._folding is None or self._folding.done():
                self._folding = self._loop.create_task(self._fold())

    async def _fold(self) -> None:
        # Beside what tasks need just now it would take a connection from them: to make one more, and to plan the first
        # statements there, takes many times as long as they do.
        for _ in range(FOLD_LOOKS):
            await asyncio.sleep(FOLD_PAUSE)
            if not self.database.is_busy:
                break
        with contextlib.suppress(OmniQError):  # the next one does it
            while await self.database.run(fold) >= FOLDED:
                pass

    async def _run_quietly(self, job: Job[None]) -> None:
        await self.database.run(job, timeout=2.0)

    def _announce(self, news: News, jobs: int = 0) -> None:
        if news:
            self.frontier.has_flows = self.frontier.has_flows or "" in news.work
            if not is_flood(news):
                self.waiting.tell(news)
            self._notifier.add(news)
        if jobs:
            self._count(jobs)

    async def close(self) -> None:
        """Tell what is to be told, and disconnect. From any loop."""
        if self.finalizer is not None:
            self.finalizer.detach()
        untold = self.sync_client.close()
        await self.waiting.close()
        here = self._loop is asyncio.get_running_loop()
        if here:
            self._notifier.add(untold)
            if self._folding is not None:
                await asyncio.wait([self._folding], timeout=2)
            await self.database.drain()
            await self._notifier.drain()
        self.database.close(abandoned=not here)

    def abandon(self) -> None:
        """Close what was left open by a storage that is gone."""
        if self.is_mine:
            self.sync_client.close()
            self.database.close(abandoned=True)
