"""The short way for synchronous callers: the calling thread does it itself, on a connection that it need not share.

A thread hop to an event loop and back costs more than what it would save.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg

from omniq.errors import StorageUnavailable
from omniq.storage.outages import Outage
from omniq_postgres.connecting import Connector, SyncConnection, cut, discard, is_usable
from omniq_postgres.database import FIRST_PAUSE, LONGEST_PAUSE, drive_blocking
from omniq_postgres.errors import Remedy, remedy_for, text_of
from omniq_postgres.operations import Context, Job, News
from omniq_postgres.statements import Statements

__all__ = ["SyncClient"]

R = TypeVar("R")

CONNECTIONS = 8
"""So many threads are served at once; the others wait for them."""
GATHER = 0.003
"""Seconds for which news of several calls are gathered before the event loop is bothered."""
UNTOLD = 100
"""The event loop is told of so many jobs at once of which no other process is to be notified."""
WATCH_EVERY = 0.5


class SyncClient:
    """Jobs on the calling thread, whichever that is. Made on the storage's event loop.

    :param announce: told, on the event loop, of what was done, and by how many jobs.
    :param may_tell: asked whether a job may tell of its news itself, with the statement that brings it.
    :param outage: told how each job fares.
    """

    def __init__(
        self,
        connector: Connector,
        statements: Statements,
        announce: Callable[[News, int], None],
        may_tell: Callable[[News], bool],
        outage: Outage,
    ) -> None:
        self._connector = connector
        self._settings = connector.settings
        self._statements = statements
        self._announce = announce
        self._may_tell = may_tell
        self._outage = outage
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._idle: list[SyncConnection] = []
        self._busy: dict[SyncConnection, float] = {}
        self._slots = threading.Semaphore(CONNECTIONS)
        self._lock = threading.Lock()
        self._news = News()
        self._jobs = 0
        self._gathering = False
        self._watched = False
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether it can be used: not after it was closed, nor in a child of the process that made it."""
        return not self._closed and self._pid == os.getpid()

    def run(self, job: Job[R]) -> R:
        """Do a job, waiting for it on the calling thread.

        :raises StorageUnavailable: if it cannot be done in time.
        """
        deadline = time.monotonic() + self._settings.timeout
        pause = FIRST_PAUSE
        while True:
            try:
                result = self._attempt(job, deadline)
            except psycopg.Error as error:
                remedy = remedy_for(error)
                if remedy is Remedy.RECONNECT:
                    self._outage.failed(text_of(error))
                if remedy is Remedy.NOTHING or time.monotonic() + pause > deadline:
                    raise self._connector.translated(error) from error
            else:
                self._outage.succeeded()
                return result
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    def _attempt(self, job: Job[R], deadline: float) -> R:
        if not self._slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise StorageUnavailable(f"{self._settings.shown}: all {CONNECTIONS} connections for threads are busy")
        try:
            connection = self._take()
            self._busy[connection] = deadline
            self._have_watched()
            context = Context(self._statements, News(), self._may_tell)
            try:
                result = drive_blocking(connection, job(context))
            except psycopg.Error as error:
                if error.sqlstate is None and time.monotonic() > deadline:
                    raise self._connector.silent() from error  # it was cut by us
                raise
            finally:
                del self._busy[connection]
                self._give_back(connection)
        finally:
            self._slots.release()
        self._tell(context.news)
        return result

    def _take(self) -> SyncConnection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connector.connect_blocking()
            if is_usable(connection):
                return connection
            discard(connection)

    def _give_back(self, connection: SyncConnection) -> None:
        if self._closed or not is_usable(connection):
            discard(connection)
        else:
            self._idle.append(connection)

    def _have_watched(self) -> None:
        if not self._watched:
            self._watched = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._watch)

    def _watch(self) -> None:
        """End calls to which the server gives no answer. On the loop: a thread that waits cannot look at the clock."""
        now = time.monotonic()
        for connection, deadline in list(self._busy.items()):
            if now > deadline:
                cut(connection)
        if not self._closed:
            self._loop.call_later(WATCH_EVERY, self._watch)

    def _tell(self, news: News) -> None:
        with self._lock:
            self._news.add(news)
            self._jobs += 1
            if self._gathering or not (self._news or self._jobs >= UNTOLD):
                return
            self._gathering = True
        try:
            self._loop.call_soon_threadsafe(self._hand_over)
        except RuntimeError:  # the loop has ended; waiters look by themselves after a while
            self._gathering = False

    def _hand_over(self) -> None:
        with self._lock:
            news, self._news = self._news, News()
            jobs, self._jobs = self._jobs, 0
            if not jobs:
                self._gathering = False
                return
        self._announce(news, jobs)
        self._loop.call_later(GATHER, self._hand_over)

    def close(self) -> News:
        """Close all connections that are not in use at the moment; those that are used are closed after that.

        :return: what has not been told yet.
        """
        self._closed = True
        while self._idle:
            discard(self._idle.pop())
        with self._lock:
            news, self._news = self._news, News()
        return news
