"""Whose connection is it? The driver's own, or of a library around it, which is recognised without importing it.

Who has an object of a library has imported that library.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import psycopg
from psycopg.pq import TransactionStatus

from omniq.storage.transactions import driver_connection

__all__ = ["Driver", "DriverAdapter", "recognise"]

Driver: TypeAlias = "psycopg.Connection[Any] | psycopg.AsyncConnection[Any]"

_KNOWN = (
    "a Connection or AsyncConnection of psycopg; a Connection, Session, AsyncConnection or AsyncSession of SQLAlchemy "
    "on postgresql+psycopg; a connection of Django on psycopg"
)


class DriverAdapter(ABC):
    """A connection of the caller's.

    :param given: what the caller gave.
    """

    is_async = False

    def __init__(self, given: Any) -> None:
        self._given = given

    @property
    def name(self) -> str:
        """What kind of object it is."""
        kind = type(self._given)
        return f"{kind.__module__}.{kind.__qualname__}"

    def at_hand(self) -> Driver | None:
        """Return the driver's connection if that takes no I/O."""
        return None

    @abstractmethod
    def connect(self) -> Driver:
        """Return the driver's connection, with a transaction that is open or that the next statement opens.

        :raises ValueError: if each statement is committed by itself, or texts are not sent as UTF-8.
        """

    async def aconnect(self) -> Driver:
        """Return the driver's connection, of either kind; see :meth:`connect`."""
        return self.connect()

    def _checked(self, driver: object) -> Driver:
        kind = psycopg.AsyncConnection if self.is_async else psycopg.Connection
        if not isinstance(driver, kind):
            raise TypeError(
                f"{self.name} is on a connection of {type(driver).__module__}, which is of no use here; OmniQ knows "
                f"{_KNOWN}"
            )
        found: Driver = driver
        if found.autocommit and found.pgconn.transaction_status == TransactionStatus.IDLE:
            raise ValueError(
                f"this connection ({self.name}) commits each statement by itself, and no transaction is open: begin "
                "one (connection.transaction() of psycopg, transaction.atomic() of Django), and give SQLAlchemy's "
                "another isolation level than AUTOCOMMIT"
            )
        encoding = found.pgconn.parameter_status(b"client_encoding")
        if encoding != b"UTF8":
            raise ValueError(
                f"this connection ({self.name}) has the client_encoding {(encoding or b'?').decode()}, in which not "
                "every text of a task can be written: connect with client_encoding='utf8', or SET client_encoding"
            )
        return found


class _Plain(DriverAdapter):
    """The driver's own."""

    def __init__(self, given: Any) -> None:
        super().__init__(given)
        self.is_async = isinstance(given, psycopg.AsyncConnection)

    def at_hand(self) -> Driver | None:
        found: Driver = self._given
        return found

    def connect(self) -> Driver:
        return self._checked(self._given)


class _Wrapped(DriverAdapter):
    """A Connection or Session of SQLAlchemy, or a connection of Django."""

    def connect(self) -> Driver:
        return self._checked(driver_connection(self._given))


class _AsyncAlchemy(DriverAdapter):
    """An AsyncConnection, or an AsyncSession, of SQLAlchemy."""

    is_async = True

    def connect(self) -> Driver:
        raise AssertionError("only its twin is called")

    async def aconnect(self) -> Driver:
        connection = self._given
        if isinstance(self._given, _kind("sqlalchemy.ext.asyncio", "AsyncSession")):
            connection = await self._given.connection()
        return self._checked(await connection.run_sync(driver_connection))


def _kind(module: str, *names: str) -> tuple[Any, ...]:
    """Return the classes of a module, if it was imported."""
    found = sys.modules.get(module)
    return tuple(getattr(found, name) for name in names if hasattr(found, name))


def recognise(connection: object) -> DriverAdapter:
    """Find out of which kind a connection is.

    :raises TypeError: if it is of none that is known.
    """
    if isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
        return _Plain(connection)
    alchemy = _kind("sqlalchemy.engine", "Connection") + _kind("sqlalchemy.orm", "Session", "scoped_session")
    if isinstance(connection, alchemy):
        return _Wrapped(connection)
    if isinstance(connection, _kind("sqlalchemy.ext.asyncio", "AsyncConnection", "AsyncSession")):
        return _AsyncAlchemy(connection)
    if "django.db" in sys.modules and hasattr(connection, "ensure_connection") and hasattr(connection, "vendor"):
        if connection.vendor != "postgresql":
            raise TypeError(f"this connection of Django is to {connection.vendor}, not to PostgreSQL")
        return _Wrapped(connection)
    raise TypeError(f"{type(connection).__module__}.{type(connection).__qualname__} is not {_KNOWN}")
