"""Finds the server to write to, and connects to it: the one named, the sentinels' master, or a cluster's node."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any, cast

from redis import connection as blocking
from redis.asyncio import Sentinel
from redis.asyncio import connection as asynchronous
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as BlockingRetry
from redis.sentinel import MasterNotFoundError as BlockingMasterNotFoundError
from redis.sentinel import Sentinel as BlockingSentinel

from omniq_redis.probing import is_riddle, what_is_wrong
from omniq_redis.settings import Address, Settings

__all__ = ["Connector"]

# Of which redis-py tells no types.
_Sentinel, _BlockingSentinel = cast(Any, Sentinel), cast(Any, BlockingSentinel)
# A connection that only listens sends nothing of its own by which it would notice that it is cut.
_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}
# What redis-py says of each sentinel that does not answer.
_SILENT = re.compile(r" - [a-z:]*(?:Connection|Timeout)Error")
_MOVED = re.compile(r"MOVED \d+ (.*):(\d+)")


class Connector:
    """Connects one storage to its server, and remembers where that was found.

    :param settings: where it is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._places = list(settings.addresses)
        self._next = 0
        self._moved: Address | None = None

    def note(self, error: BaseException) -> None:
        """Learn from an error of the server's, or of connecting to it, where to connect next."""
        found = _MOVED.search(str(error))
        if isinstance(error, MovedError):
            self._moved = error.host or self._current()[0], error.port
        elif found is not None:
            self._moved = found[1] or self._current()[0], int(found[2])
        else:
            # The node may be gone, and its slots be another's.
            self._moved = None
            self._next += 1

    def _current(self) -> Address:
        if self._moved is not None:
            return self._moved
        return self._places[self._next % len(self._places)]

    def _arguments(self, address: Address | None) -> dict[str, Any]:
        settings = self._settings
        if address is None:
            place: dict[str, Any] = {"path": settings.path}
        else:
            place = {"host": address[0], "port": address[1], "socket_keepalive": True}
            place["socket_keepalive_options"] = _KEEPALIVE
        return {
            **place,
            **settings.connection,
            "socket_timeout": settings.timeout,
            "socket_connect_timeout": settings.connect_timeout,
            "protocol": 2,
        }

    def _kind(self, module: Any) -> Any:
        if self._settings.path:
            return module.UnixDomainSocketConnection
        return module.SSLConnection if self._settings.tls else module.Connection

    def _sentinel_arguments(self, retry: object) -> dict[str, Any]:
        settings = self._settings
        return {
            # One that is gone is not to keep us from asking the next.
            "retry": retry,
            **settings.sentinel,
            "ssl": settings.tls,
            "socket_timeout": min(settings.timeout, 1.0),
            "socket_connect_timeout": min(settings.connect_timeout, 1.0),
        }

    async def dial(self) -> Any:
        """Return a connection of redis-py's for the running event loop, connected.

        :raises RedisError: if there is none to be had.
        """
        settings = self._settings
        address = None if settings.path else self._current()
        if settings.kind == "sentinel":
            asked = self._sentinel_arguments(Retry(NoBackoff(), 0))
            sentinel = _Sentinel(settings.addresses, sentinel_kwargs=asked)
            try:
                address = await sentinel.discover_master(settings.master)
            except MasterNotFoundError as error:
                wrong = await asyncio.to_thread(what_is_wrong, settings.addresses[0], settings.tls)
                raise self._no_master(error, wrong) from error
            finally:
                for client in sentinel.sentinels:
                    await client.aclose()
        connection = self._kind(asynchronous)(retry=Retry(NoBackoff(), 0), **self._arguments(address))
        try:
            await connection.connect()
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if _is_unclear(error):
                wrong = await asyncio.to_thread(what_is_wrong, address or settings.path or "", settings.tls)
                if wrong is not None:
                    raise RedisConnectionError(wrong) from error
            raise
        return connection

    def dial_blocking(self) -> Any:
        """Return a connection of redis-py's for one thread at a time, connected.

        :raises RedisError: if there is none to be had.
        """
        settings = self._settings
        address = None if settings.path else self._current()
        if settings.kind == "sentinel":
            asked = self._sentinel_arguments(BlockingRetry(NoBackoff(), 0))
            sentinel = _BlockingSentinel(settings.addresses, sentinel_kwargs=asked)
            try:
                address = sentinel.discover_master(settings.master)
            except BlockingMasterNotFoundError as error:
                raise self._no_master(error, what_is_wrong(settings.addresses[0], settings.tls)) from error
            finally:
                for client in sentinel.sentinels:
                    client.close()
        connection = self._kind(blocking)(retry=BlockingRetry(NoBackoff(), 0), **self._arguments(address))
        try:
            connection.connect()
        except BaseException as error:
            if _is_unclear(error):
                wrong = what_is_wrong(address or settings.path or "", settings.tls)
                if wrong is not None:
                    raise RedisConnectionError(wrong) from error
            raise
        return connection

    def _no_master(self, error: BaseException, wrong: str | None) -> RedisConnectionError:
        """Return the error for sentinels that name no master; redis-py's shows the insides of its clients."""
        settings = self._settings
        places = ", ".join(f"{host}:{port}" for host, port in settings.addresses)
        silent = len(_SILENT.findall(str(error)))
        if wrong is not None:
            told = wrong
        elif silent < len(settings.addresses):
            told = f"they know no master {settings.master!r} that is up"
        else:
            told = "none of them answers"
        return RedisConnectionError(f"no master to be had from the sentinels at {places}: {told}")


def _is_unclear(error: BaseException) -> bool:
    return isinstance(error, RedisConnectionError | RedisTimeoutError | OSError) and is_riddle(error)
