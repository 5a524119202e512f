"""Making connections: what every one of them is given, and what is found out from the first.

No frame of an error that leaves this module holds the password: where errors are reported, local variables often are,
too. So it is in no local variable here, and an error of the driver's leaves the driver's frames behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Iterator
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncRawCursor, RawCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from omniq.errors import OmniQError, StorageUnavailable
from omniq_postgres import binary_params
from omniq_postgres.errors import translated
from omniq_postgres.settings import IDLE_IN_TRANSACTION, Pooler, Settings

__all__ = ["PREPARED", "AsyncConnection", "Connector", "SyncConnection", "cut", "cut_at", "discard", "is_usable"]

OLDEST = 130000
"""The oldest server version."""
PREPARED = 200
"""Statements that one connection has prepared at most."""
PROXY_PATIENCE = 2.0
"""Seconds that finding out how a proxy pools may take."""

AsyncConnection: TypeAlias = psycopg.AsyncConnection[TupleRow]
SyncConnection: TypeAlias = psycopg.Connection[TupleRow]


class Connector:
    """Makes connections to one store. Shared by siblings, so that what is found out is found out once."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = ""
        """The name of the database; known once a connection was made."""
        self._takes_options = settings.pooler != Pooler.TRANSACTION
        self._pooled: bool | None = None if settings.pooler == Pooler.AUTO else settings.pooler == Pooler.TRANSACTION

    @property
    def pooled(self) -> bool:
        """Whether a proxy gives a server process for one transaction only; known once a connection was made."""
        return bool(self._pooled)

    def translated(self, error: psycopg.Error) -> OmniQError | ValueError:
        """Return the error that a user of the core knows."""
        return translated(error, self.settings.shown, self.database)

    def silent(self) -> StorageUnavailable:
        """Return the error for a call that got no answer in time."""
        return StorageUnavailable(f"{self.settings.shown} gave no answer within {self.settings.timeout:g} s")

    def _options(self) -> dict[str, str]:
        timeout = str(int(self.settings.timeout * 1000))
        return {
            # All statements here go by an index; a table that looks small when a plan is made may grow.
            "enable_seqscan": "off",
            "jit": "off",
            "TimeZone": "UTC",
            # Each statement here is right by itself, and made to pass by what others hold.
            "default_transaction_isolation": "read committed",
            # Only migrations, and changes of flows, take several round trips in one transaction.
            "statement_timeout": timeout,
            "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION),
            # And what was claimed for a client that takes no answer any more is free again.
            "tcp_user_timeout": timeout,
            "tcp_keepalives_idle": "30",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
        }

    def _parameters(self) -> dict[str, Any]:
        # Whatever the database or the environment says: texts are packed as UTF-8.
        parameters = {**self.settings.parameters, "client_encoding": "UTF8"}
        given = parameters.pop("options", "")
        if self._takes_options:
            escaped = {name: value.replace(" ", "\\ ") for name, value in self._options().items()}
            ours = " ".join(f"-c {name}={value}" for name, value in escaped.items())
            parameters["options"] = f"{ours} {given}".strip()
        return parameters

    def _refused(self, error: psycopg.OperationalError, *, took_options: bool) -> None:
        """Learn from a connection that was refused that the next one may be accepted, or raise the error.

        :param took_options: whether it was asked for with options.
        """
        # PgBouncer refuses what it does not know unless it was told to ignore it. Of several who connect at once each
        # has to learn it.
        if took_options and "unsupported startup parameter" in str(error):
            self._takes_options = False
            return
        if self.settings.lone_user and self.settings.lone_user in str(error):
            raise type(error)(str(error).replace(self.settings.lone_user, "***")) from None
        raise error

    async def connect(self, deadline: float | None = None) -> AsyncConnection:
        """Make a connection for a loop.

        :param deadline: by the loop's clock; None: after the settings' timeout.
        :raises psycopg.Error: if that cannot be done in time.
        :raises StorageUnavailable: if the server is too old.
        """
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self.settings.timeout
        connection = await self._connect(deadline)
        try:
            with cut_at(deadline, connection):
                self._check(connection)
                if self._pooled is None:
                    self._pooled = await self._is_pooled(connection)
                if (statement := self._set_up(connection)) is not None:
                    await connection.execute(statement, prepare=False)
        except BaseException:
            discard(connection)
            raise
        return connection

    async def _connect(self, deadline: float) -> AsyncConnection:
        takes_options = self._takes_options
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                try:
                    connection = await self._dial()
                except psycopg.OperationalError as error:
                    self._refused(error, took_options=takes_options)
                    connection = await self._dial()
                connection.cursor_factory = AsyncRawCursor
                return connection
        raise psycopg.errors.ConnectionTimeout("no connection was made in time")

    async def _dial(self) -> AsyncConnection:
        try:
            return await psycopg.AsyncConnection.connect(self.settings.dsn, autocommit=True, **self._parameters())
        except BaseException as error:
            raise _bare(error) from None

    def _dial_blocking(self) -> SyncConnection:
        try:
            return psycopg.Connection.connect(self.settings.dsn, autocommit=True, **self._parameters())
        except BaseException as error:
            raise _bare(error) from None

    def connect_blocking(self) -> SyncConnection:
        """Make a connection for a thread; see :meth:`connect`."""
        takes_options = self._takes_options
        try:
            connection = self._dial_blocking()
        except psycopg.OperationalError as error:
            self._refused(error, took_options=takes_options)
            connection = self._dial_blocking()
        try:
            connection.cursor_factory = RawCursor
            self._check(connection)
            if (statement := self._set_up(connection)) is not None:
                connection.execute(statement, prepare=False)
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
        self.database = connection.info.dbname

    async def _is_pooled(self, connection: AsyncConnection) -> bool:
        """Find out whether there is a proxy that gives a server process for one transaction only."""
        process = await _process_of(connection)
        # A proxy that hands out server processes cannot tell beforehand which one it will be.
        if process == connection.info.backend_pid:
            return False
        # One that pools by session gives each of two connections a process of its own, and always the same. The order
        # is one in which a proxy that takes turns betrays itself. If in doubt, nothing is relied upon.
        try:
            other = await self._connect(asyncio.get_running_loop().time() + PROXY_PATIENCE)
        except psycopg.Error:
            return True
        try:
            with cut_at(asyncio.get_running_loop().time() + PROXY_PATIENCE, other):
                mine: set[int] = {process}
                others: set[int] = set()
                for both in ((connection, other), (other, connection)) * 4:
                    for each in both:
                        (mine if each is connection else others).add(await _process_of(each))
        except psycopg.Error:
            return True
        finally:
            discard(other)
        return len(mine) > 1 or len(others) > 1 or mine == others

    def _set_up(self, connection: AsyncConnection | SyncConnection) -> bytes | None:
        """Prepare a connection for use; gives a statement to run on it first, if any."""
        connection.prepare_threshold = None if self._pooled else 5
        connection.prepared_max = PREPARED
        binary_params.register(connection.adapters)
        if self._takes_options or self._pooled:
            return None
        # What a proxy did not take along holds for this server process as long as it is ours.
        settings = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in self._options().items())
        return f"SELECT {settings}".encode()


E = TypeVar("E", bound=BaseException)


def _bare(error: E) -> E:
    """Return an error without the frames that it has come through, and without those of errors before it."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


async def _process_of(connection: AsyncConnection) -> int:
    cursor = await connection.execute("SELECT pg_backend_pid()", prepare=False)
    row = await cursor.fetchone()
    return 0 if row is None else int(row[0])


def is_usable(connection: AsyncConnection | SyncConnection) -> bool:
    """Whether an idle connection still leads to the server, as far as can be told without asking it."""
    if connection.closed or connection.pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    # Nothing was asked for: what comes nevertheless is the news that the server is going or gone.
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


@contextlib.contextmanager
def cut_at(deadline: float, connection: AsyncConnection) -> Iterator[None]:
    """End what is under way on a connection at a time of the loop's clock, though the server be silent."""
    watchdog = asyncio.get_running_loop().call_at(deadline, cut, connection)
    try:
        yield
    finally:
        watchdog.cancel()
