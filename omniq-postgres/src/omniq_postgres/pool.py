"""A few connections, shared by whatever goes on at once on one event loop.

Not psycopg_pool: a queue's loop may end without a word (``asyncio.run``) and another one closes what it left, which
that pool's tasks do not survive; and a caller that cannot get a connection wants to hear why.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from omniq.errors import StorageUnavailable
from omniq_postgres.connecting import AsyncConnection, Connector, cut, discard, is_usable

__all__ = ["Pool"]


class Pool:
    """Connections of one event loop. Opens them as they are needed, and keeps those that are sound.

    :param size: how many at most.
    """

    def __init__(self, connector: Connector, size: int) -> None:
        self._connector = connector
        self._size = size
        self._idle: list[AsyncConnection] = []
        self._all: set[AsyncConnection] = set()
        self._count = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def wait_for_room(self, deadline: float) -> None:
        """Wait until :meth:`acquire` has not to wait for others, if called at once; else call :meth:`pass_on`.

        :param deadline: until when, by the loop's clock.
        :raises StorageUnavailable: if all connections are busy until the deadline.
        """
        while not self._closed and not self._idle and self._count >= self._size:
            await self._wait(deadline)

    async def acquire(
        self, deadline: float, suits: Callable[[AsyncConnection], bool] = lambda connection: True
    ) -> AsyncConnection:
        """Return a connection.

        :param deadline: until when to wait for one, by the loop's clock.
        :param suits: whether an idle connection is better than others that are idle.
        :raises psycopg.Error: if a new one cannot be made until then.
        :raises StorageUnavailable: if all are busy until the deadline, or the pool is closed.
        """
        while True:
            if self._closed:
                raise StorageUnavailable(f"{self._connector.settings.shown} was closed")
            while self._idle:
                # The latest used first: those that are not needed stay untouched.
                latest = len(self._idle) - 1
                place = next((n for n in range(latest, -1, -1) if suits(self._idle[n])), latest)
                connection = self._idle.pop(place)
                if is_usable(connection):
                    return connection
                self._forget(connection)
            if self._count < self._size:
                return await self._connect(deadline)
            await self._wait(deadline)

    async def _connect(self, deadline: float) -> AsyncConnection:
        self._count += 1
        try:
            connection = await self._connector.connect(deadline)
        except BaseException:
            self._count -= 1
            self.pass_on()
            raise
        if self._closed:
            discard(connection)
            raise StorageUnavailable(f"{self._connector.settings.shown} was closed")
        self._all.add(connection)
        return connection

    async def _wait(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled():
                self.pass_on()  # what it was to get, the next one gets
            if isinstance(error, asyncio.CancelledError):
                raise
            raise StorageUnavailable(
                f"{self._connector.settings.shown}: all {self._size} connections of this process are busy; "
                "the option connections= allows more"
            ) from None

    def release(self, connection: AsyncConnection) -> None:
        """Take a connection back."""
        if self._closed or not is_usable(connection):
            self._forget(connection)
        else:
            self._idle.append(connection)
        self.pass_on()

    def _forget(self, connection: AsyncConnection) -> None:
        self._count -= 1
        self._all.discard(connection)
        discard(connection)

    def pass_on(self) -> None:
        """Let the next one look who waits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def close(self, *, abandoned: bool = False) -> None:
        """Close all connections; those in use fail.

        :param abandoned: whether the event loop that used them is gone, so that none is given back.
        """
        self._closed = True
        self._idle.clear()
        for connection in list(self._all):
            if abandoned or is_usable(connection):
                self._forget(connection)
            else:
                # Its user finds it lost, and returns it.
                cut(connection)
        while self._waiters and not abandoned:
            self.pass_on()
