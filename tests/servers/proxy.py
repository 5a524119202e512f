"""A TCP proxy between a client and a server that misbehaves as a network can, in ways that are changed while it runs.

It reads no protocol. What it may lose it loses with the connection, as TCP does: bytes never go missing from the
middle of a stream that lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, Self, TypeVar

from tests.servers.base import HOST, free_port

__all__ = ["Cut", "Matches", "Proxy"]

T = TypeVar("T")

Matches = Callable[[bytes], bool]
"""Says whether a request is meant, by its bytes as they came in."""

AT_ONCE = 65536
"""Bytes that are read, and count as one request or answer, at once."""


class _Mode(Protocol):
    async def admit(self, link: _Link) -> None:
        """Let a new connection through, or end it."""

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        """Bring some bytes to their other end, or not; no bytes: their end."""


class _Pass:
    async def admit(self, link: _Link) -> None:
        pass

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        await link.send(data, answer=answer)


class _Delay(_Pass):
    def __init__(self, seconds: float, jitter: float, chance: random.Random) -> None:
        self._seconds, self._jitter, self._chance = seconds, jitter, chance

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        # Half of it each way. Each chunk waits for the one before it: a slow line keeps the order.
        delay = self._seconds + self._chance.uniform(-self._jitter, self._jitter)
        await asyncio.sleep(delay / 2)  # what the line is there for
        await link.send(data, answer=answer)


class _Trickle(_Pass):
    def __init__(self, size: int, pause: float) -> None:
        self._size, self._pause = size, pause

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        # A line has its speed, which a busy machine does not make slower.
        due = time.monotonic()
        for start in range(0, len(data), self._size):
            await link.send(data[start : start + self._size], answer=answer)
            due += self._pause
            await asyncio.sleep(max(0, due - time.monotonic()))  # the pace of the line


class _Blackhole:
    # What was sent arrives when the hole closes, however late and whoever has given up by then: as on a network that
    # was cut in two.
    def __init__(self) -> None:
        self._closed = asyncio.Event()

    def close(self) -> None:
        self._closed.set()

    async def admit(self, link: _Link) -> None:
        await self._closed.wait()

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        await self._closed.wait()
        await link.send(data, answer=answer)


class _Reset(_Pass):
    async def admit(self, link: _Link) -> None:
        link.reset()


class Cut:
    """A connection that is to be cut at one answer or request, or was.

    :param matches: which requests count, or their answers; None: all.
    :param nth: which of them, counted from 1 over all connections.
    """

    def __init__(self, matches: Matches | None = None, nth: int = 1) -> None:
        self._matches = matches
        self._left = nth
        self._happened = threading.Event()

    @property
    def happened(self) -> bool:
        """Whether it came to that."""
        return self._happened.is_set()

    def wait(self, timeout: float = 10) -> None:
        """Return when it has happened."""
        assert self._happened.wait(timeout), "what was to be cut off has not come"

    def is_due(self, request: bytes) -> bool:
        """Count a request or its answer; say whether it is the one."""
        if self.happened or (self._matches is not None and not self._matches(request)):
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self._happened.set()
        return True


class _HoldReply(_Blackhole):
    # Its client stands still from one answer on: no connection of it says or hears anything any more.
    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self._cut = cut

    async def admit(self, link: _Link) -> None:
        if self._cut.happened:
            await super().admit(link)

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        if self._cut.happened or (answer and data and self._cut.is_due(link.request)):
            await super().carry(link, data, answer=answer)
        else:
            await link.send(data, answer=answer)


class _CutReply(_Pass):
    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        if answer and data and self._cut.is_due(link.request):
            link.reset()
        else:
            await link.send(data, answer=answer)


class _CutRequest(_Pass):
    def __init__(self, cut: Cut) -> None:
        self._cut = cut

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        if data and not answer and self._cut.is_due(data):
            await link.send(data[: len(data) // 2], answer=False)
            link.reset(spare_server=True)
        else:
            await link.send(data, answer=answer)


class _Lossy(_Pass):
    def __init__(self, share: float, chance: random.Random) -> None:
        self._share, self._chance = share, chance

    async def carry(self, link: _Link, data: bytes, *, answer: bool) -> None:
        if answer and data and self._chance.random() < self._share:
            link.proxy.lost += 1
            link.reset()
        else:
            await link.send(data, answer=answer)


class _Link:
    """One client's connection and the one to the server that belongs to it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.request = b""
        """What the client has sent since the last answer began."""
        self.said = b""
        """What the client sent first."""
        self.is_frozen = False
        """Whether nothing is passed on any more, though both ends find it taken."""
        self._answering = False
        self._client = reader, writer
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._over = False

    async def run(self) -> None:
        """Go on until one of the ends closes, or :meth:`reset`."""
        self._pumps = [asyncio.ensure_future(self._connect())]
        try:
            await asyncio.wait(self._pumps)
            if self._server is not None:
                reader, server = self._server
                self._pumps = [
                    asyncio.ensure_future(self._pump(self._client[0], server, answer=False)),
                    asyncio.ensure_future(self._pump(reader, self._client[1], answer=True)),
                ]
                await asyncio.wait(self._pumps)
        finally:
            for pump in self._pumps:
                pump.cancel()
            for writer in self._writers:
                writer.close()

    async def _connect(self) -> None:
        await self.proxy.mode.admit(self)
        if self._over:
            return
        with contextlib.suppress(OSError):
            self._server = await asyncio.open_connection(HOST, self.proxy.target)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(AT_ONCE):
                if self.is_frozen:
                    continue
                if not answer:
                    self.said = (self.said + data)[:AT_ONCE]
                    self.request = data if self._answering else self.request + data
                self._answering = answer
                await self.proxy.mode.carry(self, data, answer=answer)
            await self.proxy.mode.carry(self, b"", answer=answer)
            # The other direction may still have something to say.
            writer.write_eof()
            return
        self.reset()

    async def send(self, data: bytes, *, answer: bool) -> None:
        """Bring bytes to the client or the server."""
        assert self._server is not None
        writer = self._client[1] if answer else self._server[1]
        writer.write(data)
        await writer.drain()

    @property
    def _writers(self) -> list[asyncio.StreamWriter]:
        return [self._client[1], *([self._server[1]] if self._server else [])]

    def reset(self, *, spare_server: bool = False) -> None:
        """End both connections at once (RST); what is under way is lost.

        :param spare_server: whether the server is to get what was sent to it, and to see a connection that ends in
            order.
        """
        self._over = True
        if spare_server and self._server is not None:
            self._server[1].close()
        for writer in self._writers[: 1 if spare_server else 2]:
            # To close with a linger time of 0 is to send RST.
            with contextlib.suppress(OSError):
                peer: socket.socket = writer.get_extra_info("socket")
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        for pump in self._pumps:
            if pump is not asyncio.current_task():
                pump.cancel()


class Proxy:
    """Listens on a free port and passes everything on, until told otherwise. Usable from any one thread.

    :param target: the server's port on this machine.
    :param seed: of all that happens at random.
    """

    def __init__(self, target: int, seed: int = 0) -> None:
        self.target = target
        self.port = free_port()
        self.mode: _Mode
        self.lost = 0
        """How many answers were lost by :meth:`lossy`."""
        self._chance = random.Random(seed)
        self._links: dict[_Link, asyncio.Task[Any] | None] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *error: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def reseed(self, seed: int) -> None:
        """Set what all that happens at random from now on follows from."""
        self._chance.seed(seed)

    # Modes

    def pass_on(self) -> None:
        """Be a good network."""
        self._change(_Pass)

    def delay(self, seconds: float, jitter: float = 0.0) -> None:
        """Be slow.

        :param seconds: that a request and its answer take longer.
        :param jitter: by how many seconds more or less.
        """
        self._change(lambda: _Delay(seconds, jitter, self._chance))

    def trickle(self, size: int = 7, pause: float = 0.0005) -> None:
        """Pass on a few bytes at a time.

        :param size: how many.
        :param pause: seconds after each.
        """
        self._change(lambda: _Trickle(size, pause))

    def blackhole(self) -> None:
        """Accept and keep connections, and pass nothing on. What is sent meanwhile arrives when the mode changes."""
        self._change(_Blackhole)

    def reset(self) -> None:
        """End every connection, and each new one, with RST."""
        self._change(_Reset)
        self.drop()

    def cut_reply(self, matches: Matches | None = None, nth: int = 1) -> Cut:
        """Let a request through, and end its connection (RST) instead of passing on what the server answers.

        :param matches: which requests count, by what was sent since the last answer; None: all.
        :param nth: which of their answers, over all connections, counted from 1.
        """
        cut = Cut(matches, nth)
        self._change(lambda: _CutReply(cut))
        return cut

    def hold_reply(self, matches: Matches | None = None, nth: int = 1) -> Cut:
        """Let a request through, and from its answer on be a black hole: as if the client stood still just then.

        :param matches: which requests count, by what was sent since the last answer; None: all.
        :param nth: which of their answers, over all connections, counted from 1.
        """
        cut = Cut(matches, nth)
        self._change(lambda: _HoldReply(cut))
        return cut

    def cut_request(self, matches: Matches | None = None, nth: int = 1) -> Cut:
        """Let half of a request through, and end its connection.

        :param matches: which requests count; None: all.
        :param nth: which of them, over all connections, counted from 1.
        """
        cut = Cut(matches, nth)
        self._change(lambda: _CutRequest(cut))
        return cut

    def lossy(self, share: float) -> None:
        """Cut off a share of all answers, at random.

        :param share: between 0 and 1.
        """
        self._change(lambda: _Lossy(share, self._chance))

    def freeze(self, matches: Matches) -> None:
        """Let some of the connections live on, and say and hear nothing any more; new ones are served.

        :param matches: says which, by what their client has sent.
        """

        async def freeze() -> None:
            for link in self._links:
                link.is_frozen = link.is_frozen or matches(link.said)

        self._do(freeze())

    def drop(self) -> None:
        """End every connection with RST; new ones are served."""
        self._do(self._drop())

    def _change(self, make: Callable[[], _Mode]) -> None:
        async def change() -> None:
            old, self.mode = self.mode, make()
            if isinstance(old, _Blackhole):
                old.close()

        self._do(change())

    # Life

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self.mode = _Pass()
        self._listener = await asyncio.start_server(self._serve, HOST, self.port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        self._links[link] = asyncio.current_task()
        try:
            await link.run()
        finally:
            del self._links[link]

    async def _drop(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _end(self) -> None:
        assert self._listener is not None
        self._listener.close()
        await self._drop()
        serving = [task for task in self._links.values() if task is not None]
        await asyncio.gather(*serving, return_exceptions=True)
