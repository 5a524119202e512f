"""One statement to the server and its rows back, on a connection of ours.

A cursor of the driver serves any statement with any values, and takes longer for it than the server takes for most of
those here. Their parameters are packed already, see wire.py, and each text is one prepared statement: what is left to
do are a few calls of libpq, which psycopg gives as ``psycopg.pq``. A statement with other parameters goes by a cursor.

What is to run after a statement goes to the server together with it (libpq's pipeline mode), where libpq can do so and
no proxy stands in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
from collections.abc import Generator, Sequence
from weakref import WeakKeyDictionary

import psycopg
from psycopg import abc, capabilities
from psycopg.adapt import AdaptersMap, Loader, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from omniq_postgres.binary_params import Parameter
from omniq_postgres.connecting import PREPARED, AsyncConnection, SyncConnection
from omniq_postgres.operations import Query, Rows

__all__ = ["has_run", "rows", "rows_blocking"]

READ, WRITE = select.POLLIN, select.POLLOUT


class _Libpq:
    """What is known of one connection: the statements that the server has prepared for it, and how to read rows."""

    def __init__(self, connection: AsyncConnection | SyncConnection) -> None:
        self._connection = connection.pgconn
        self._prepares = connection.prepare_threshold is not None
        self._pipelines = self._prepares and capabilities.has_pipeline()
        self._reader = Transformer(connection)
        self._lenient = Transformer(_Lenient(connection))
        self._numbers = itertools.count(1)
        self._seen: dict[tuple[bytes, tuple[int, ...]], bytes | None] = {}
        """Statement and types → its name, or None after its first use: many a one comes once and never again."""

    def has_run(self, query: Query) -> bool:
        """Say whether the server has the statement prepared for this connection, or will at its next use."""
        return (query.text, _types(query)) in self._seen

    def run(self, query: Query) -> Generator[int, None, Rows]:
        """Do the exchange; yields what to wait for at the socket."""
        after = query.after
        if query.lead:
            return (yield from self._together([*query.lead, query]))
        if after is None:
            result = yield from self._one(query)
        elif self._pipelines:
            result = yield from self._both(query, after)
        else:
            result = yield from self._one(query)
            with contextlib.suppress(psycopg.DatabaseError):
                yield from self._one(after)
        return self._rows(result)

    def _rows(self, result: PGresult) -> Rows:
        if result.status != ExecStatus.TUPLES_OK:
            return []
        try:
            return _loaded(self._reader, result)
        except UnicodeDecodeError:
            return _loaded(self._lenient, result)

    def _one(self, query: Query) -> Generator[int, None, PGresult]:
        self._send(query, (yield from self._prepared(query)))
        yield from self._flush()
        return _sound((yield from self._result()))

    def _both(self, query: Query, after: Query) -> Generator[int, None, PGresult]:
        connection = self._connection
        name = yield from self._prepared(query)
        name_after = yield from self._prepared(after)
        connection.enter_pipeline_mode()
        self._send(query, name)
        connection.pipeline_sync()
        self._send(after, name_after)
        connection.pipeline_sync()
        yield from self._flush()
        result = yield from self._result()
        yield from self._next()  # the end of the first transaction
        yield from self._result()
        yield from self._next()
        connection.exit_pipeline_mode()
        return _sound(result)

    def _together(self, queries: Sequence[Query]) -> Generator[int, None, Rows]:
        """Run statements of one transaction; return the rows of all."""
        if not self._pipelines:
            apart: Rows = []
            for query in queries:
                apart += self._rows((yield from self._one(query)))
            return apart
        connection = self._connection
        names: list[bytes | None] = []
        for query in queries:
            names += [(yield from self._prepared(query))]
        connection.enter_pipeline_mode()
        for query, name in zip(queries, names, strict=True):
            self._send(query, name)
        connection.pipeline_sync()
        yield from self._flush()
        results: list[PGresult] = []
        for _ in queries:
            results += [(yield from self._result())]
        yield from self._next()
        connection.exit_pipeline_mode()
        found: Rows = []
        for result in results:
            found += self._rows(_sound(result))
        return found

    def _send(self, query: Query, name: bytes | None) -> None:
        formats = [Format.BINARY] * len(query.parameters)
        if name is None:
            self._connection.send_query_params(query.text, query.parameters, _types(query), formats, Format.BINARY)
        else:
            self._connection.send_query_prepared(name, query.parameters, formats, Format.BINARY)

    def _prepared(self, query: Query) -> Generator[int, None, bytes | None]:
        """Return the name of the prepared statement, or None if it is not prepared."""
        if not (query.prepare and self._prepares):
            return None
        key = (query.text, _types(query))
        if key not in self._seen:
            if len(self._seen) < PREPARED:
                self._seen[key] = None
            return None
        name = self._seen[key]
        if name is None:
            name = b"omniq_%d" % next(self._numbers)
            self._connection.send_prepare(name, *key)
            yield from self._flush()
            _sound((yield from self._result()))
            self._seen[key] = name
        return name

    def _flush(self) -> Generator[int, None, None]:
        while self._connection.flush():
            # A server that has much to say may want to be heard before it listens.
            yield READ | WRITE
            self._connection.consume_input()

    def _next(self) -> Generator[int, None, PGresult | None]:
        while self._connection.is_busy():
            yield READ
            self._connection.consume_input()
        return self._connection.get_result()

    def _result(self) -> Generator[int, None, PGresult]:
        last: PGresult | None = None
        while (result := (yield from self._next())) is not None:
            last = result
        if last is None:
            raise psycopg.OperationalError("the server gave no answer")
        return last


def _loaded(reader: abc.Transformer, result: PGresult) -> Rows:
    reader.set_pgresult(result)
    return reader.load_rows(0, result.ntuples, tuple)


class _AnyText(Loader):
    """Reads what is no UTF-8, too, which a database without an encoding takes. Who reads the record finds it wrong."""

    format = Format.BINARY

    def load(self, data: abc.Buffer) -> str:
        return bytes(data).decode(errors="surrogateescape")


class _Lenient:
    """A connection, as far as reading goes, that takes any text."""

    def __init__(self, connection: AsyncConnection | SyncConnection) -> None:
        self.connection = connection
        self.adapters = AdaptersMap(connection.adapters)
        self.adapters.register_loader("text", _AnyText)


def _types(query: Query) -> tuple[int, ...]:
    return tuple(0 if parameter is None else parameter.oid for parameter in query.parameters)


def _sound(result: PGresult) -> PGresult:
    if result.status == ExecStatus.FATAL_ERROR:
        raise error_from_result(result)
    return result


_exchanges: WeakKeyDictionary[AsyncConnection | SyncConnection, _Libpq] = WeakKeyDictionary()


def _libpq_of(connection: AsyncConnection | SyncConnection) -> _Libpq:
    exchange = _exchanges.get(connection)
    if exchange is None:
        exchange = _exchanges[connection] = _Libpq(connection)
    return exchange


def has_run(connection: AsyncConnection | SyncConnection, query: Query) -> bool:
    """Say whether a statement has run on a connection before, which then need not plan it anew."""
    exchange = _exchanges.get(connection)
    return exchange is not None and _is_packed(query) and exchange.has_run(query)


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
    exchange = _libpq_of(connection).run(query)
    found: asyncio.Future[Rows] = loop.create_future()

    def go_on() -> None:
        if found.done():
            return
        try:
            wanted = next(exchange)
        except StopIteration as done:
            found.set_result(done.value)
        except Exception as error:
            found.set_exception(error)
        else:
            if wanted & WRITE:
                loop.add_writer(socket, go_on)
            else:
                loop.remove_writer(socket)

    # Watched from the first part of an answer to the last: only then the caller is woken.
    loop.add_reader(socket, go_on)
    try:
        go_on()
        return await found
    finally:
        loop.remove_reader(socket)
        loop.remove_writer(socket)


def rows_blocking(connection: SyncConnection, query: Query) -> Rows:
    """Run a statement while the calling thread waits; see :func:`rows`."""
    if not _is_packed(query):
        cursor = connection.cursor(binary=True).execute(query.text, query.parameters, prepare=False)
        return cursor.fetchall() if cursor.description else []
    poll = select.poll()
    socket = connection.pgconn.socket
    poll.register(socket, READ)
    exchange = _libpq_of(connection).run(query)
    try:
        while True:
            poll.modify(socket, next(exchange))
            poll.poll()
    except StopIteration as done:
        found: Rows = done.value
        return found
