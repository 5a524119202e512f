"""A store on PostgreSQL of the core's parts: one that locks rows, tells others of changes, and joins transactions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import psycopg

from omniq.errors import StorageUnavailable
from omniq.storage import Capability, Finding, Severity, SimpleStorage, SqlTx


class Tx(SqlTx):
    types: Mapping[str, str] = MappingProxyType(
        {"key": 'TEXT COLLATE "C"', "blob": "BYTEA", "float": "DOUBLE PRECISION"}
    )
    contains = "strpos(tags, %s) > 0"
    lock = " FOR UPDATE"
    skip_locked = " FOR UPDATE SKIP LOCKED"
    clock = "clock_timestamp()"
    exists = "SELECT 1 FROM information_schema.tables WHERE table_schema = current_schema() AND table_name = %s"


class Cursor(psycopg.Cursor[Any]):
    """A cursor that waits for the answer to each of many statements.

    Where psycopg sends them ahead of the answers, the server takes a client that stands still among them for one
    that is busy, and no time-out ends its transaction.
    """

    def executemany(self, query: Any, params_seq: Iterable[Any], *, returning: bool = False) -> None:
        for values in params_seq:
            self.execute(query, values)


class Storage(SimpleStorage):
    capabilities: Set[Capability] = frozenset(Capability)
    connection_types: tuple[type, ...] = (psycopg.Connection,)

    def connect(self) -> psycopg.Connection[Any]:
        place = "postgresql" + self.config.location.removeprefix(self.config.scheme)
        options = "-c idle_in_transaction_session_timeout=10s"
        connection = psycopg.connect(place, options=options, cursor_factory=Cursor)
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(7411)")
            Tx(connection.cursor(), self.config.namespace).create()
        connection.autocommit = True
        return connection

    @contextmanager
    def transaction(self, connection: psycopg.Connection[Any], write: bool) -> Iterator[Tx]:
        with connection.transaction():
            tx = Tx(connection.cursor(), self.config.namespace, write=write)
            tx.check()
            yield tx

    @contextmanager
    def joined(self, connection: psycopg.Connection[Any]) -> Iterator[Tx]:
        if connection.autocommit and connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            raise ValueError("begin a transaction first: this connection commits each statement by itself")
        tx = Tx(connection.cursor(), self.config.namespace)
        with tx.savepoint():
            tx.check()
            yield tx

    def announce(self, tx: Tx) -> None:
        tx.cursor.execute(f'NOTIFY "{self.config.namespace}"')

    def listen(self, connection: psycopg.Connection[Any], seconds: float) -> bool:
        connection.execute(f'LISTEN "{self.config.namespace}"')
        return any(True for _ in connection.notifies(timeout=seconds, stop_after=1))

    def fault(self, error: BaseException) -> Exception | None:
        if isinstance(error, psycopg.DataError):
            return ValueError(f"{self.config.redacted} cannot hold this: {error}")
        return StorageUnavailable(f"{self.config.redacted}: {error}") if isinstance(error, psycopg.Error) else None

    def findings(self, tx: Tx) -> list[Finding]:
        return [Finding(severity=Severity.OK, subject="server", message=str(tx.rows("SHOW server_version")[0][0]))]
