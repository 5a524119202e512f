"""One connection of an event loop: commands go out as they come, answers come back in the same order.

redis-py connects (and knows about TLS, credentials, databases and names); from then on its transport is ours. Nothing
stands between a call and its answer but the reader of hiredis: that is less than half of what a call through a client
costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection

from omniq_redis.transports import PublicTransport, Transport, transport_of

__all__ = ["Link", "LinkLost"]

SILENCE = 0.5
"""Seconds without an answer after which a call that is given up takes its connection with it."""


class LinkLost(Exception):
    """The connection broke, or no answer came in time. What was sent may or may not have been done."""


class Link(asyncio.Protocol):
    """A connection that is up.

    :param connection: one of redis-py's that is connected, and used by no other from now on.
    :param timeout: seconds after which an answer that has not come means that the connection is lost.
    :param on_push: is given everything that arrives, instead of the calls; for a connection that subscribes.
    :param on_lost: called once when the connection is lost or closed.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        timeout: float,
        *,
        on_push: Callable[[Any], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.lost: BaseException | None = None
        # Its stream is kept as long as the transport is used: a stream that is not referenced closes it.
        self._connection: Any = connection
        self._reader = hiredis.Reader()
        self._timeout = timeout
        self._on_push = on_push
        self.on_lost = on_lost
        self._pending: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self.was_closed = False
        """Whether it is lost because we closed it."""
        self._pid = os.getpid()
        transport = transport_of(connection)
        self._is_public = transport is None
        if transport is not None:
            transport.set_protocol(self)
        self._transport: Transport = transport or PublicTransport(connection, self._take, self.connection_lost)

    def send(self, command: bytes) -> asyncio.Future[Any]:
        """Send a packed command.

        :return: the answer to come; an error of the server's is its answer, a hiredis.ReplyError.
        :raises LinkLost: if the connection is down.
        """
        if self.lost is not None:
            raise LinkLost(str(self.lost)) from self.lost
        future: asyncio.Future[Any] = self.loop.create_future()
        self._pending.append((future, self.loop.time() + self._timeout))
        if self._watch is None:
            self._watch = self.loop.call_later(self._timeout, self._look_for_silence)
        self._transport.write(command)
        return future

    def tell(self, command: bytes) -> None:
        """Send a packed command whose answer goes to ``on_push``."""
        if self.lost is None:
            self._transport.write(command)

    def doubt(self) -> None:
        """Take note that a caller gave up waiting: a connection that has been silent for long is given up, too."""
        if self._pending and self._pending[0][1] - self._timeout + SILENCE < self.loop.time():
            self.abort(TimeoutError(f"no answer within {SILENCE:g} s"))

    def _look_for_silence(self) -> None:
        self._watch = None
        if not self._pending:
            return
        left = self._pending[0][1] - self.loop.time()
        if left <= 0:
            self.abort(TimeoutError(f"no answer within {self._timeout:g} s"))
        else:
            self._watch = self.loop.call_later(left, self._look_for_silence)

    # What the transport tells

    def data_received(self, data: bytes) -> None:
        """Take what has arrived."""
        reader = self._reader
        reader.feed(data)
        while True:
            try:
                answer = reader.gets()
            except hiredis.ProtocolError as error:
                self.abort(error)
                return
            if answer is False:
                return
            self._take(answer)

    def _take(self, answer: Any) -> None:
        if self._on_push is not None:
            self._on_push(answer)
        elif self._pending:
            future = self._pending.popleft()[0]
            if not future.done():
                future.set_result(answer)

    def eof_received(self) -> bool:
        """Take note that the server closed the connection."""
        self.connection_lost(ConnectionResetError("the server closed the connection"))
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        """Take note that the connection is down."""
        if self.lost is not None:
            return
        self.lost = error or ConnectionResetError("the connection was closed")
        if self._watch is not None:
            self._watch.cancel()
        self._hang_up()
        pending, self._pending = self._pending, deque()
        for future, _ in pending:
            if not future.done():
                future.set_exception(LinkLost(f"{type(self.lost).__name__}: {self.lost}"))
                # A caller that was cancelled does not ask any more.
                future.exception()
        if self.on_lost is not None:
            self.on_lost()

    def _hang_up(self) -> None:
        try:
            self._transport.close()
        except RuntimeError:
            # The loop is closed, and with it went whatever could close its transports.
            with contextlib.suppress(OSError, AttributeError):
                self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                inner: Any = self._transport
                inner._sock.close()
                inner._sock = None
        if not self._is_public:
            self._connection._writer = self._connection._reader = None

    def abort(self, error: BaseException) -> None:
        """Close the connection."""
        self.connection_lost(error)
        self._transport.abort()

    def close(self) -> None:
        """Close the connection, unless it is a parent process's."""
        if self._pid == os.getpid():
            self.was_closed = self.lost is None
            self.connection_lost(ConnectionResetError("the storage was closed"))
