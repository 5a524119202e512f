"""One statement to the server and its rows back, on a connection of ours.

A cursor of the driver serves any statement with any values, and takes longer for it than the server takes for most of
those here. Their parameters are packed already, see wire.py, and each text is one prepared statement: what is left to
do are a few calls of libpq, which psycopg gives as ``psycopg.pq``. A statement with other parameters goes by a cursor.
"""

from __future__ import annotations

import asyncio
import itertools
import select
from collections.abc import Generator
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from omniq_postgres.connecting import PREPARED, AsyncConnection, SyncConnection
from omniq_postgres.jobs import Query, Rows
from omniq_postgres.wire import Parameter

__all__ = ["rows", "rows_blocking"]

READ, WRITE = select.POLLIN, select.POLLOUT


class _Exchange:
    """What is known of one connection: the statements that the server has prepared for it, and how to read rows."""

    def __init__(self, connection: AsyncConnection | SyncConnection) -> None:
        self._connection = connection.pgconn
        self._prepares = connection.prepare_threshold is not None
        self._reader = Transformer(connection)
        self._numbers = itertools.count(1)
        self._seen: dict[tuple[bytes, tuple[int, ...]], bytes | None] = {}
        """Statement and types → its name, or None after its first use: many a one comes once and never again."""

    def run(self, query: Query) -> Generator[int, None, Rows]:
        """Do the exchange; yields what to wait for at the socket."""
        parameters = query.parameters
        types = tuple(0 if parameter is None else parameter.oid for parameter in parameters)
        formats = [Format.BINARY] * len(types)
        name = None
        if query.prepare and self._prepares:
            name = yield from self._prepared(query.text, types)
        if name is None:
            self._connection.send_query_params(query.text, parameters, types, formats, Format.BINARY)
        else:
            self._connection.send_query_prepared(name, parameters, formats, Format.BINARY)
        result = yield from self._result()
        if result.status != ExecStatus.TUPLES_OK:
            return []
        self._reader.set_pgresult(result)
        return self._reader.load_rows(0, result.ntuples, tuple)

    def _prepared(self, text: bytes, types: tuple[int, ...]) -> Generator[int, None, bytes | None]:
        key = (text, types)
        if key not in self._seen:
            if len(self._seen) < PREPARED:
                self._seen[key] = None
            return None
        name = self._seen[key]
        if name is None:
            name = b"omniq_%d" % next(self._numbers)
            self._connection.send_prepare(name, text, types)
            yield from self._result()
            self._seen[key] = name
        return name

    def _result(self) -> Generator[int, None, PGresult]:
        connection = self._connection
        while connection.flush():
            # A server that has much to say may want to be heard before it listens.
            yield READ | WRITE
            connection.consume_input()
        last: PGresult | None = None
        while True:
            while connection.is_busy():
                yield READ
                connection.consume_input()
            result = connection.get_result()
            if result is None:
                break
            last = result
        if last is None:
            raise psycopg.OperationalError("the server gave no answer")
        if last.status == ExecStatus.FATAL_ERROR:
            raise error_from_result(last)
        return last


_exchanges: WeakKeyDictionary[AsyncConnection | SyncConnection, _Exchange] = WeakKeyDictionary()


def _exchange_of(connection: AsyncConnection | SyncConnection) -> _Exchange:
    exchange = _exchanges.get(connection)
    if exchange is None:
        exchange = _exchanges[connection] = _Exchange(connection)
    return exchange


def _is_packed(query: Query) -> bool:
    return all(parameter is None or isinstance(parameter, Parameter) for parameter in query.parameters)


async def rows(connection: AsyncConnection, query: Query) -> Rows:
    """Run a statement.

    :raises psycopg.Error: if it fails, or the connection is lost.
    """
    if not _is_packed(query):
        cursor = await connection.cursor(binary=True).execute(query.text, query.parameters, prepare=False)
        return await cursor.fetchall() if cursor.description else []
    loop = asyncio.get_running_loop()
    socket = connection.pgconn.socket
    exchange = _exchange_of(connection).run(query)
    try:
        while True:
            wanted = next(exchange)
            ready = loop.create_future()
            loop.add_reader(socket, _settle, ready)
            if wanted & WRITE:
                loop.add_writer(socket, _settle, ready)
            try:
                await ready
            finally:
                loop.remove_reader(socket)
                if wanted & WRITE:
                    loop.remove_writer(socket)
    except StopIteration as done:
        found: Rows = done.value
        return found


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def rows_blocking(connection: SyncConnection, query: Query) -> Rows:
    """Run a statement while the calling thread waits; see :func:`rows`."""
    if not _is_packed(query):
        cursor = connection.cursor(binary=True).execute(query.text, query.parameters, prepare=False)
        return cursor.fetchall() if cursor.description else []
    poll = select.poll()
    socket = connection.pgconn.socket
    poll.register(socket, READ)
    exchange = _exchange_of(connection).run(query)
    try:
        while True:
            poll.modify(socket, next(exchange))
            poll.poll()
    except StopIteration as done:
        found: Rows = done.value
        return found
