"""Making connections: what every one of them is given, and what is found out from the first."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncRawCursor, RawCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from omniq.errors import StorageUnavailable
from omniq_postgres import wire
from omniq_postgres.settings import Pooler, Settings

__all__ = ["AsyncConnection", "Connector", "SyncConnection", "cut", "discard", "is_usable"]

OLDEST = 130000
"""The oldest server version."""
IDLE_IN_TRANSACTION = 5000
"""Milliseconds after which the server ends a connection of ours that stands still within a transaction."""
_PREPARED = 200

AsyncConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]
SyncConnection: TypeAlias = psycopg.Connection[TupleRow]


class Connector:
    """Makes connections to one store. Shared by siblings, so that what is found out is found out once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._takes_options = settings.pooler != Pooler.TRANSACTION
        self._pooled: bool | None = None if settings.pooler == Pooler.AUTO else settings.pooler == Pooler.TRANSACTION

    @property
    def pooled(self) -> bool:
        """Whether a proxy gives a server process for one transaction only; known once a connection was made."""
        return bool(self._pooled)

    def _parameters(self) -> dict[str, Any]:
        # Whatever the database or the environment says: texts are packed as UTF-8.
        parameters = {**self.settings.parameters, "client_encoding": "UTF8"}
        if self._takes_options:
            timeout = int(self.settings.timeout * 1000)
            ours = (
                # All statements here go by an index; a table that looks small when a plan is made may grow.
                "-c enable_seqscan=off -c jit=off -c TimeZone=UTC "
                # Each statement here is right by itself, and made to pass by what others hold.
                "-c default_transaction_isolation=read\\ committed "
                # Only migrations take several round trips in one transaction.
                f"-c statement_timeout={timeout} -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION} "
                # And what was claimed for a client that takes no answer any more is free again.
                f"-c tcp_user_timeout={timeout} "
                "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
            )
            parameters["options"] = f"{ours} {parameters.get('options', '')}".strip()
        else:
            parameters.pop("options", None)
        return parameters

    def _refused_options(self, error: psycopg.Error, parameters: dict[str, Any]) -> bool:
        # PgBouncer refuses what it does not know unless it was told to ignore it. Of several who connect at once each
        # has to learn it.
        if "options" in parameters and "unsupported startup parameter" in str(error):
            self._takes_options = False
            return True
        return False

    async def connect(self) -> AsyncConnection:
        """Make a connection for a loop.

        :raises psycopg.Error: if that cannot be done.
        :raises StorageUnavailable: if the server is too old.
        """
        dsn, parameters = self.settings.dsn, self._parameters()
        try:
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True, **parameters)
        except psycopg.OperationalError as error:
            if not self._refused_options(error, parameters):
                raise
            connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True, **self._parameters())
        try:
            connection.cursor_factory = AsyncRawCursor
            self._check(connection)
            if self._pooled is None:
                cursor = await connection.execute("SELECT pg_backend_pid()", prepare=False)
                self._learn(connection, await cursor.fetchone())
            self._set_up(connection)
        except BaseException:
            discard(connection)
            raise
        return connection

    def connect_blocking(self) -> SyncConnection:
        """Make a connection for a thread; see :meth:`connect`."""
        dsn, parameters = self.settings.dsn, self._parameters()
        try:
            connection = psycopg.Connection.connect(dsn, autocommit=True, **parameters)
        except psycopg.OperationalError as error:
            if not self._refused_options(error, parameters):
                raise
            connection = psycopg.Connection.connect(dsn, autocommit=True, **self._parameters())
        try:
            connection.cursor_factory = RawCursor
            self._check(connection)
            if self._pooled is None:
                self._learn(connection, connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone())
            self._set_up(connection)
        except BaseException:
            discard(connection)
            raise
        return connection

    def _check(self, connection: AsyncConnection | SyncConnection) -> None:
        version = connection.info.server_version
        if version < OLDEST:
            raise StorageUnavailable(
                f"{self.settings.shown} is PostgreSQL {version // 10000}; OmniQ needs {OLDEST // 10000} or later"
            )

    def _learn(self, connection: AsyncConnection | SyncConnection, row: TupleRow | None) -> None:
        # A proxy that hands out server processes cannot tell beforehand which one it will be.
        self._pooled = row is None or row[0] != connection.info.backend_pid

    def _set_up(self, connection: AsyncConnection | SyncConnection) -> None:
        connection.prepare_threshold = None if self._pooled else 5
        connection.prepared_max = _PREPARED
        wire.register(connection.adapters)


def is_usable(connection: AsyncConnection | SyncConnection) -> bool:
    """Whether an idle connection still leads to the server, as far as can be told without asking it."""
    if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    # Nobody asked for anything: what comes nevertheless is the news that the server is going or gone.
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN)
    return not poll.poll(0)


def discard(connection: AsyncConnection | SyncConnection) -> None:
    """Close a connection at once, whichever loop it belonged to."""
    connection.pgconn.finish()


def cut(connection: AsyncConnection | SyncConnection) -> None:
    """End whatever a connection waits for, though the server be silent: its owner finds it lost."""
    with contextlib.suppress(OSError, psycopg.Error):
        descriptor = os.dup(connection.pgconn.socket)
        with socket.socket(fileno=descriptor) as twin:
            twin.shutdown(socket.SHUT_RDWR)
