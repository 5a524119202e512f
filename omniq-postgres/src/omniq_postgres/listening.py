"""Hearing of what others did: one connection that LISTENs, kept alive and made anew when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import psycopg
from psycopg.pq import ConnStatus

from omniq.errors import OmniQError
from omniq.storage.escaping import get_logger
from omniq.storage.outages import Outage
from omniq_postgres.connecting import AsyncConnection, Connector, cut_at, discard
from omniq_postgres.errors import text_of

__all__ = ["Listener"]

_log = get_logger("omniq.postgres")

KEEPALIVE = 30.0
"""Seconds between looks whether the server is still there."""
PATIENCE = 5.0
"""Seconds that it may take to answer."""
FIRST_PATIENCE = 1.0
"""Seconds for which a caller waits for the connection that listens; after that it looks for itself."""
LONGEST_PAUSE = 10.0


class Listener:
    """Listens on channels of a store, from the event loop on which it was first asked to.

    :param heard: called with the channel and the payload of each message.
    :param missed: called when messages may have been missed.
    """

    def __init__(self, connector: Connector, heard: Callable[[str, str], None], missed: Callable[[], None]) -> None:
        self._connector = connector
        self._heard = heard
        self._missed = missed
        self._wanted: set[str] = set()
        self._channels: set[str] = set()
        """Those that the present connection listens on."""
        self._connection: AsyncConnection | None = None
        self._lost: asyncio.Future[None] | None = None
        self._watched: int | None = None
        shown = connector.settings.shown
        self._outage = Outage(
            _log,
            f"{shown}: cannot listen, so that work and results are looked for every second",
            f"{shown}: listening again",
        )
        self._lock = asyncio.Lock()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def listen(self, channel: str) -> bool:
        """See to it that messages of a channel are heard.

        :return: whether they are; if not, then later perhaps.
        """
        if self._connector.pooled:
            return False
        self._wanted.add(channel)
        if self._task is None or self._task.done():
            self._tried.clear()
            self._task = asyncio.get_running_loop().create_task(self._keep(), name="omniq-postgres-listener")
        if not self._tried.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIRST_PATIENCE):
                    await self._tried.wait()
        connection = self._connection
        if connection is None:
            return False
        if channel not in self._channels:
            try:
                await self._execute(connection, f'LISTEN "{channel}"')
            except psycopg.Error:
                self._lose()
                return False
            self._channels.add(channel)
        return True

    async def _keep(self) -> None:
        pause = 0.1
        while True:
            try:
                connection = await self._connect()
            except (psycopg.Error, OmniQError, OSError) as error:
                self._outage.failed(text_of(error))
                self._tried.set()
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = 0.1
            self._outage.succeeded()
            await self._serve(connection)

    async def _connect(self) -> AsyncConnection:
        channels = set(self._wanted)
        connection = await self._connector.connect()
        try:
            # What arrives while a statement is under way, the driver hears first.
            connection.add_notify_handler(lambda notify: self._heard(notify.channel, notify.payload))
            for channel in channels:
                await self._statement(connection, f'LISTEN "{channel}"')
        except BaseException:
            discard(connection)
            raise
        self._channels = channels
        return connection

    async def _serve(self, connection: AsyncConnection) -> None:
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        self._connection = connection
        self._watch(connection)
        self._tried.set()
        self._missed()
        try:
            while True:
                await asyncio.wait([self._lost], timeout=KEEPALIVE * random.uniform(0.8, 1.0))
                if self._lost.done():
                    reason = connection.pgconn.error_message.decode(errors="replace")
                    raise psycopg.OperationalError(reason or "the connection is lost")
                await self._execute(connection, "SELECT 1")
        except psycopg.Error as error:
            self._outage.failed(text_of(error))
        finally:
            self._connection = None
            self._unwatch()
            discard(connection)

    def _watch(self, connection: AsyncConnection) -> None:
        self._watched = connection.pgconn.socket
        asyncio.get_running_loop().add_reader(self._watched, self._read, connection)

    def _unwatch(self) -> None:
        # By its number, which a connection that is lost does not tell any more. Left with the loop, it would keep the
        # next connection that gets the same number from ever being heard.
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            self._watched = None

    async def _execute(self, connection: AsyncConnection, statement: str) -> None:
        async with self._lock:
            if connection.closed:
                raise psycopg.OperationalError("the connection is closed")
            # The driver watches the socket itself meanwhile.
            self._unwatch()
            try:
                await self._statement(connection, statement)
            finally:
                if connection is self._connection and connection.pgconn.status == ConnStatus.OK:
                    self._watch(connection)

    async def _statement(self, connection: AsyncConnection, statement: str) -> None:
        with cut_at(asyncio.get_running_loop().time() + PATIENCE, connection):
            await connection.execute(statement.encode(), prepare=False)

    def _read(self, connection: AsyncConnection) -> None:
        try:
            connection.pgconn.consume_input()
            while (notify := connection.pgconn.notifies()) is not None:
                self._heard(notify.relname.decode(), notify.extra.decode())
            if connection.pgconn.status == ConnStatus.BAD:
                self._lose()
        except psycopg.Error:
            self._lose()

    def _lose(self) -> None:
        self._unwatch()
        lost = self._lost
        if lost is not None and not lost.done():
            lost.set_result(None)

    async def close(self) -> None:
        """Stop listening."""
        task, self._task = self._task, None
        self._tried.set()
        if task is None or task.done():
            return
        if task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        elif self._connection is not None:
            discard(self._connection)
