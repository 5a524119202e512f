"""Runs scripts on the server, whatever happens to the connection meanwhile.

Every script may be run again after an answer was lost: the second run changes nothing that the first one did, or, as
a claim, takes other tasks. So whatever breaks is tried again, with a jittered and growing pause, until the time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from omniq.errors import SchemaMismatch, StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq.storage.ids import new_id
from omniq.storage.outages import Outage
from omniq_redis.connecting import Connector
from omniq_redis.connection import Link, LinkLost
from omniq_redis.errors import LOST, is_passing, reason, unavailable
from omniq_redis.scripts import arguments_of, evalsha, pack, script
from omniq_redis.settings import Settings

__all__ = ["LAYOUT", "Client", "Memory"]

_log = get_logger("omniq.redis")

LAYOUT = 3
"""The version of the keys and records in the store."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0


class Memory:
    """What a storage and its siblings know of the store.

    :param shown: its URL as it may be shown.
    """

    def __init__(self, shown: str) -> None:
        self.epoch = b""
        """The store's, made with it: if another comes up, what was in the store is lost."""
        self.losses = 0
        """How often it was found that the store has lost what it held."""
        self.outage = Outage(_log, f"{shown}: the connection is lost", f"{shown}: connected again")
        self.has_warned = False
        """Whether a worker was told of settings of the server's that lose tasks."""


class Client:
    """The connection of one event loop, made anew whenever it breaks.

    :param settings: where the store is.
    :param connector: connects.
    :param memory: of the store.
    """

    def __init__(self, settings: Settings, connector: Connector, memory: Memory) -> None:
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self._connector = connector
        self._memory = memory
        self.on_connected: Callable[[], None] = lambda: None
        """Called when there is a new connection, perhaps to another server than before."""
        self._link: Link | None = None
        self._connecting: asyncio.Task[Link] | None = None
        self._starts: dict[str, bytes] = {}
        self._flagged = True
        self._lessons: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False
        self._pid = os.getpid()

    async def open(self) -> None:
        """Connect.

        :raises SchemaMismatch: if the store was written by another version.
        :raises StorageUnavailable: if there is no connection to be had soon.
        """
        await self._persist(self._connected, patience=min(self.settings.retry_for, 2.0))

    def close(self) -> None:
        """Disconnect. What is under way fails."""
        self._is_closed = True
        if self._connecting is not None and self._pid == os.getpid() and not self.loop.is_closed():
            self._connecting.cancel()
        if self._link is not None:
            self._link.close()

    # Calls

    async def run(self, name: str, arguments: Sequence[bytes | int | str] = ()) -> Any:
        """Run a script.

        :raises StorageUnavailable: if that could not be done in time.
        """
        words = [
            word if isinstance(word, bytes) else str(word).encode("utf-8", "surrogateescape") for word in arguments
        ]
        return await self.run_packed(name, arguments_of(words), len(words))

    async def run_packed(self, name: str, arguments: bytes, count: int) -> Any:
        """Run a script whose arguments have been packed.

        :param count: how many they are.
        """
        command = self._command(name, arguments, count)
        link = self._link
        if link is not None and link.lost is None:
            try:
                answer = await link.send(command)
            except LinkLost:
                pass
            except asyncio.CancelledError:
                link.doubt()
                raise
            else:
                if not isinstance(answer, hiredis.ReplyError):
                    return answer
        return await self._persist(lambda: self._attempt(name, arguments, count))

    async def ask(self, *words: bytes) -> Any:
        """Send a command that is no script, once.

        :raises hiredis.ReplyError: if the server refuses it.
        """
        answer = await (await self._connected()).send(pack(*words))
        if isinstance(answer, hiredis.ReplyError):
            raise answer
        return answer

    def _command(self, name: str, arguments: bytes, count: int) -> bytes:
        start = self._starts.get(name)
        if start is None:
            start = self._starts[name] = evalsha(script(name, flagged=self._flagged), self.settings.prefix)
        return b"*%d\r\n%b%b" % (count + 4, start, arguments)

    async def _attempt(self, name: str, arguments: bytes, count: int) -> Any:
        return await self._run_on(await self._connected(), name, arguments, count)

    async def _run_on(self, link: Link, name: str, arguments: bytes, count: int) -> Any:
        answer = await link.send(self._command(name, arguments, count))
        if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("NOSCRIPT"):
            await self._teach(link, name)
            answer = await link.send(self._command(name, arguments, count))
        if isinstance(answer, hiredis.ReplyError):
            raise answer
        return answer

    async def _teach(self, link: Link, name: str) -> None:
        lesson = self._lessons.get(name)
        if lesson is None:
            # Many calls may hear at once that the server does not know a script: one of them tells it.
            lesson = self._lessons[name] = asyncio.get_running_loop().create_task(self._load(link, name))
            lesson.add_done_callback(lambda _: self._lessons.pop(name))
            lesson.add_done_callback(_look_at)
        await asyncio.wait([lesson])
        lesson.result()

    async def _load(self, link: Link, name: str) -> None:
        loaded = await link.send(pack(b"SCRIPT", b"LOAD", script(name, flagged=self._flagged).source))
        if isinstance(loaded, hiredis.ReplyError) and self._flagged and "compiling" in str(loaded):
            self._flagged = False
            self._starts.clear()
            loaded = await link.send(pack(b"SCRIPT", b"LOAD", script(name, flagged=False).source))
        if isinstance(loaded, hiredis.ReplyError):
            raise loaded

    async def _persist(self, attempt: Callable[[], Any], patience: float | None = None) -> Any:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self.settings.retry_for if patience is None else patience)
        pause = 0.0
        while True:
            if self._is_closed or self._pid != os.getpid():
                raise StorageUnavailable(f"{self.settings.shown} is not open: call open() first")
            try:
                return await attempt()
            except (*LOST, hiredis.ReplyError) as error:
                if self._is_closed:
                    raise StorageUnavailable(f"{self.settings.shown} was closed") from error
                left = deadline - loop.time()
                if not is_passing(error) or left <= 0:
                    raise unavailable(self.settings, error) from error
                if isinstance(error, hiredis.ReplyError):
                    # Another server may be the master by now, or own the slot.
                    self._turn_away(error)
                pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE, left)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    def _turn_away(self, error: BaseException) -> None:
        self._connector.note(error)
        if self._link is not None:
            self._link.close()

    # The connection

    async def _connected(self) -> Link:
        link = self._link
        if link is not None and link.lost is None:
            return link
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(_look_at)
        # Several callers share one attempt; one who is cancelled leaves it to the others.
        connecting = self._connecting
        await asyncio.wait([connecting])
        if connecting.cancelled():
            raise LinkLost("the storage was closed")
        return connecting.result()

    async def _connect(self) -> Link:
        try:
            link = await self.dial()
            try:
                await self._greet(link)
            except BaseException:
                link.close()
                raise
        except (*LOST, hiredis.ReplyError) as error:
            if self._memory.epoch:  # before the first connection it is for the caller alone to tell
                self._memory.outage.failed(reason(error))
            raise
        if self._is_closed:
            link.close()
            raise LinkLost("the storage was closed")
        self._memory.outage.succeeded()
        link.on_lost = functools.partial(self._lost, link)
        self._link = link
        self.on_connected()
        return link

    def _lost(self, link: Link) -> None:
        if not link.was_closed:
            self._memory.outage.failed(str(link.lost))

    async def check(self) -> None:
        """See whether the store still holds what it held, and say so if not."""
        with contextlib.suppress(*LOST, hiredis.ReplyError):
            await self._greet(await self._connected())

    async def dial(self, **options: Any) -> Link:
        """Return another connection to the server, of which the caller takes care.

        :param options: of :class:`Link`.
        """
        seconds = self.settings.connect_timeout + self.settings.timeout
        try:
            async with asyncio.timeout(seconds):
                connection = await self._connector.dial()
        except LOST as error:
            self._connector.note(error)
            if isinstance(error, TimeoutError) and not str(error):
                raise LinkLost(f"no connection within {seconds:g} s") from error
            raise
        return Link(connection, self.settings.timeout, **options)

    async def _greet(self, link: Link) -> None:
        known = self._memory.epoch
        words = [b"%d" % LAYOUT, new_id().encode(), known]
        layout, epoch, lost = await self._run_on(link, "open", arguments_of(words), len(words))
        if layout != words[0]:
            version = layout[:20].decode(errors="replace")
            newer = version.isdecimal() and int(version) > LAYOUT
            mend = "upgrade omniq-redis" if newer else "let workers of the older version drain it, then take a new one"
            raise SchemaMismatch(
                f"{self.settings.shown}: the store has layout {version} of OmniQ's keys, "
                f"this version writes layout {LAYOUT}; {mend}, or take another namespace"
            )
        if lost and known and known == self._memory.epoch:
            self._memory.losses += 1
            _log.error("%s has lost its data: the tasks that the server held are no longer there", self.settings.shown)
        self._memory.epoch = epoch


def _look_at(shared: asyncio.Task[Any]) -> None:
    # All who asked for it may have been cancelled; then its outcome is looked at nowhere else.
    if not shared.cancelled():
        shared.exception()
