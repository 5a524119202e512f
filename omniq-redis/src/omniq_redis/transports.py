"""What a connection of redis-py's is read and written through: its transport, or else its public methods.

redis-py keeps the transport in a private attribute. Where a version of it does not, the same is done through what every
version has: it costs a task for each direction and some tens of microseconds a call.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Protocol

import hiredis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from omniq.storage.escaping import get_logger

__all__ = ["PublicTransport", "Transport", "transport_of"]

_log = get_logger("omniq.redis")

FOREVER = 1e6
"""Seconds to wait for an answer: that it is late is judged elsewhere."""
# The first word of an error, which redis-py takes off.
_WORDS = {
    AskError: "ASK",
    AuthenticationError: "NOAUTH",
    ClusterDownError: "CLUSTERDOWN",
    MasterDownError: "MASTERDOWN",
    MovedError: "MOVED",
    NoPermissionError: "NOPERM",
    NoScriptError: "NOSCRIPT",
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    TryAgainError: "TRYAGAIN",
}


class Transport(Protocol):
    """What is used of :class:`asyncio.Transport`."""

    def write(self, data: bytes, /) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def get_extra_info(self, name: str, /) -> Any: ...


def transport_of(connection: Any) -> Any:
    """Return the transport of a connection of redis-py's; None if it is not where it is known to be."""
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    if all(hasattr(transport, name) for name in ("write", "close", "abort", "get_extra_info", "set_protocol")):
        return transport
    _say_once()
    return None


@functools.cache
def _say_once() -> None:
    _log.warning("this version of redis-py is not one that omniq-redis was tested with; it works, but slower")


class PublicTransport:
    """Reads and writes through the public methods of a connection of redis-py's.

    :param connection: a connected one.
    :param take: is given each answer that arrives.
    :param lose: is called when the connection is lost.
    """

    def __init__(
        self, connection: Any, take: Callable[[Any], None], lose: Callable[[BaseException | None], None]
    ) -> None:
        self._connection = connection
        self._take = take
        self._lose = lose
        self._outgoing: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._until_lost(work)) for work in (self._send, self._receive)]

    def write(self, data: bytes, /) -> None:
        """Send some bytes."""
        self._outgoing.put_nowait(data)

    def close(self) -> None:
        """Close the connection."""
        for task in self._tasks:
            task.cancel()
        self._tasks = [asyncio.get_running_loop().create_task(self._connection.disconnect(nowait=True))]

    abort = close

    def get_extra_info(self, name: str, /) -> Any:
        """Return nothing: the public methods do not tell."""
        return None

    async def _until_lost(self, work: Callable[[], Any]) -> None:
        try:
            await work()
        except Exception as error:  # whichever redis-py raises, the connection is of no more use
            self._lose(error)

    async def _send(self) -> None:
        while True:
            parts = [await self._outgoing.get()]
            while not self._outgoing.empty():
                parts.append(self._outgoing.get_nowait())
            await self._connection.send_packed_command(parts, check_health=False)

    async def _receive(self) -> None:
        while True:
            try:
                answer = await self._connection.read_response(timeout=FOREVER, disconnect_on_error=False)
            except ResponseError as error:
                answer = hiredis.ReplyError(f"{_WORDS.get(type(error), '')} {error}".strip())
            self._take(answer)
