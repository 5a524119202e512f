"""Waiting without asking again and again: for work, and for the end of tasks.

A waiter for work leaves a name with the queues; whatever makes work for it takes one name and calls it, on the
channel of the storage that it belongs to. So one task wakes one worker, however many are idle; one who is called and
has no use for it passes the call on. A waiter for the end of a task leaves its channel with the task. For calls that
are lost there is a look now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from omniq.errors import StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq.storage.ids import new_id
from omniq_redis.client import Client
from omniq_redis.connection import Link
from omniq_redis.errors import LOST, is_passing
from omniq_redis.scripts import pack

__all__ = ["Waiting"]

_log = get_logger("omniq.redis")

LOOK_EVERY = 1.95
"""Seconds between two looks for changes without a notification, at most."""
SPREAD = 0.005
"""Seconds. Those who wait for one moment do not all look at the same time, and most find that it was seen to."""
PING_EVERY = 5.0
"""Seconds between two questions whether the server is still there on a connection that else only listens."""
DEAF_FOR = 30.0
"""Seconds after which a client that may not listen tries again."""
FAR = float("inf")


class _Waiter:
    """One name, and who waits under it. Its times are those of the event loop's clock."""

    def __init__(self, number: int, queues: tuple[str, ...]) -> None:
        self.number = str(number)
        self.queues = queues
        self.called: str | None = None
        """The queue that it was called to."""
        self.is_known = False
        """Whether the name is with the queues, as far as we know."""
        self.due = FAR
        """When the next task of the queues is ready."""
        self.run = FAR
        """When the next schedule is due."""
        self._ahead = 0.0
        self._news = asyncio.Event()
        self._told: list[tuple[float, str | None]] = []

    def begin_look(self) -> None:
        """Take note that the store is asked now: what is told from here on may not be in the answer."""
        self.is_known = True
        self._told.clear()

    def take(self, now: int, due: int, run: int) -> None:
        """Take note of what a look found: the store's time, when the next task and schedule are due (-1: never)."""
        self._ahead = asyncio.get_running_loop().time() - now / 1e6
        self.due = self._time_of(due) if due >= 0 else FAR
        self.run = self._time_of(run) if run >= 0 else FAR
        self._news.clear()
        for moment, queue in self._told:
            self._come_due(moment, queue)

    def _time_of(self, moment: float) -> float:
        return moment / 1e6 + self._ahead + SPREAD * random.random()

    def come_due(self, moment: float, queue: str | None) -> None:
        """Take note that a task of a queue, or a schedule, is due at a moment by the store's clock."""
        self._told.append((moment, queue))
        self._come_due(moment, queue)

    def _come_due(self, moment: float, queue: str | None) -> None:
        at = self._time_of(moment)
        if queue is None and at < self.run:
            self.run = at
            self.wake()
        elif queue in self.queues and at < self.due:
            self.due = at
            self.wake()

    def wake(self) -> None:
        """Let all waiters look at what there is."""
        self._news.set()

    async def sleep(self, seconds: float) -> None:
        """Wait until woken, at most some seconds."""
        if seconds > 0:
            timer = asyncio.get_running_loop().call_later(seconds, self.wake)
            try:
                await self._news.wait()
            finally:
                timer.cancel()
        self._news.clear()


class _End:
    """One who waits for the end of tasks."""

    def __init__(self) -> None:
        self.ended: set[str] = set()
        """Those of which the server told."""
        self.news = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Wait for news, at most some seconds."""
        timer = asyncio.get_running_loop().call_later(seconds, self.news.set)
        try:
            await self.news.wait()
        finally:
            timer.cancel()
        self.news.clear()


class Waiting:
    """The waits of one storage.

    :param client: its connection; another is made for what the server tells.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._prefix = client.settings.prefix
        self._shown = client.settings.shown
        self._channel = new_id()
        self._bell: Link | None = None
        self._ringing: asyncio.Task[None] | None = None
        self._subscribed: asyncio.Future[None] | None = None
        self._was_heard = False
        self._numbers = 0
        self._active: dict[str, _Waiter] = {}
        # A worker waits for the same again and again: its name may stay with the queues meanwhile.
        self._kept: _Waiter | None = None
        self._ends: dict[str, set[_End]] = {}
        self._is_closed = False
        self._deaf_until = 0.0
        self._passing: set[asyncio.Task[None]] = set()

    def take_name(self) -> bytes:
        """Return the name that is with the queues though no caller waits, for a claim to take off; or nothing."""
        if self._kept is None or not self._kept.is_known:
            return b""
        self._kept.is_known = False
        return self._name_of(self._kept)

    def _name_of(self, waiter: _Waiter) -> bytes:
        return f"{self._channel}:{waiter.number}".encode()

    async def close(self) -> None:
        """End all waits, take our names back, and stop listening."""
        self._is_closed = True
        waiters = [*self._active.values(), *([self._kept] if self._kept else [])]
        self._wake_all()
        if self._ringing is not None:
            self._ringing.cancel()
        # A courtesy: no waiter answers to the names any more, and one that was called in vain should say so.
        with contextlib.suppress(StorageUnavailable, TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.gather(*self._passing)
                for waiter in waiters:
                    await self._client.run("sign_off", [self._name_of(waiter), *waiter.queues])
        self.abandon()

    def abandon(self) -> None:
        """Stop listening, and leave the rest to time."""
        self._is_closed = True
        if self._bell is not None:
            self._bell.close()

    def move(self) -> None:
        """Listen anew: there is a new connection for calls, perhaps to another server."""
        if self._bell is not None:
            self._bell.close()

    def _wake_all(self) -> None:
        for waiter in self._active.values():
            waiter.wake()
        for ends in self._ends.values():
            for end in ends:
                end.news.set()

    # What the server tells

    async def _listen(self) -> None:
        """Be subscribed, if that can be had at the moment; otherwise waiters look by themselves."""
        if self._is_heard or asyncio.get_running_loop().time() < self._deaf_until:
            return
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.get_running_loop().create_task(self._subscribe())
        # One who is cancelled leaves the attempt to the others.
        await asyncio.wait([self._ringing])

    async def _subscribe(self) -> None:
        try:
            await self._connect()
        except LOST as error:
            # Refused, it will be so in a moment, too: until then waiters look by themselves.
            if not is_passing(error):
                _log.warning("%s: waiting workers are not called, but look by themselves: %s", self._shown, error)
                self._deaf_until = asyncio.get_running_loop().time() + DEAF_FOR

    async def _connect(self) -> None:
        self._subscribed = asyncio.get_running_loop().create_future()
        bell = await self._client.dial(on_push=self._hear, on_lost=self._on_lost)
        channels = [f"{self._prefix}to:{self._channel}".encode(), f"{self._prefix}due".encode()]
        try:
            bell.tell(pack(b"SUBSCRIBE", *channels))
            async with asyncio.timeout(self._client.settings.timeout):
                await self._subscribed
        except BaseException:
            bell.close()
            raise
        if self._is_closed:
            bell.close()
        self._bell = bell
        self._ask(bell)

    def _ask(self, bell: Link) -> None:
        """Ask whether the server is still there, now and then."""
        if bell.lost is None:
            # A peer that is frozen, or a box in between that has forgotten the connection, says nothing by itself.
            self._was_heard = False
            bell.tell(pack(b"PING"))
            self._client.loop.call_later(self._client.settings.timeout, self._judge, bell)

    def _judge(self, bell: Link) -> None:
        if bell.lost is not None:
            return
        if self._was_heard:
            self._client.loop.call_later(PING_EVERY, self._ask, bell)
            return
        silence = f"no answer within {self._client.settings.timeout:g} s"
        _log.warning(
            "%s: the connection on which waiting workers are called is dead, making another: %s", self._shown, silence
        )
        bell.abort(TimeoutError(silence))

    def _on_lost(self) -> None:
        # What was told meanwhile was not heard.
        if not self._is_closed:
            self._wake_all()

    def _hear(self, message: Any) -> None:
        self._was_heard = True
        if not isinstance(message, list):
            # An error: the user may not subscribe, perhaps.
            if self._subscribed is not None and not self._subscribed.done():
                self._subscribed.set_exception(ResponseError(str(message)))
                self._subscribed.exception()
            return
        if message[0] == b"subscribe":
            if message[2] == 2 and self._subscribed is not None and not self._subscribed.done():
                self._subscribed.set_result(None)
        elif message[0] == b"message":
            self._told(message[2], message[1].endswith(b":due"))

    def _told(self, text: bytes, is_due: bool) -> None:
        if is_due:
            at, colon, queue = text.decode().partition(":")
            for waiter in self._active.values():
                waiter.come_due(float(at), queue if colon else None)
        elif text[:1] == b"w":
            number, _, queue = text[1:].decode().partition(":")
            called = self._active.get(number)
            if called is None or called.called is not None:
                self._pass_on(queue)
            else:
                called.called = queue
                called.wake()
        else:
            task_id = text[1:].decode()
            for end in self._ends.get(task_id, ()):
                end.ended.add(task_id)
                end.news.set()

    def _pass_on(self, queue: str) -> None:
        self._post("pass_on", queue)

    def _post(self, name: str, *words: bytes | str) -> None:
        """Run a script whose answer no caller waits for."""

        async def call() -> None:
            with contextlib.suppress(StorageUnavailable):
                await self._client.run(name, words)

        task = asyncio.get_running_loop().create_task(call())
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    # Work

    async def for_work(self, queues: Sequence[str], timeout: float) -> None:
        """See :meth:`~omniq.storage.Storage.wait_for_work`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        waiter = self._waiter_for(tuple(dict.fromkeys(queues)))
        try:
            while True:
                await self._listen()
                is_heard = self._is_heard
                waiter.begin_look()
                ready, now, due, run = await self._client.run("look", [self._name_of(waiter), *waiter.queues])
                if ready:
                    return
                waiter.take(now, due, run)
                if not await self._rest(waiter, deadline, is_heard):
                    return
        except BaseException:
            if waiter.called is not None:
                self._pass_on(waiter.called)
            raise
        finally:
            del self._active[waiter.number]
            if self._kept is None:
                self._kept = waiter
            else:
                self._sign_off(waiter)

    async def _rest(self, waiter: _Waiter, deadline: float, is_heard: bool) -> bool:
        """Wait until there is something to do.

        :param is_heard: whether calls arrived at the last look.
        :return: whether to look again; otherwise the wait is over.
        """
        loop = asyncio.get_running_loop()
        look_at = loop.time() + LOOK_EVERY * random.uniform(0.92, 1.0)
        while True:
            if is_heard and not self._is_heard and waiter.called is None and not self._is_closed:
                return True
            if waiter.called is None and not self._is_closed:
                # News may bring these times nearer.
                await waiter.sleep(min(deadline, look_at, waiter.due, waiter.run) - loop.time())
            now = loop.time()
            if waiter.called is not None or self._is_closed or now >= min(deadline, waiter.run):
                return False
            if now >= min(look_at, waiter.due):
                return True

    @property
    def _is_heard(self) -> bool:
        return self._bell is not None and self._bell.lost is None

    def _waiter_for(self, queues: tuple[str, ...]) -> _Waiter:
        kept, self._kept = self._kept, None
        if kept is not None and kept.queues == queues:
            waiter = kept
        else:
            if kept is not None:
                self._sign_off(kept)
            self._numbers += 1
            waiter = _Waiter(self._numbers, queues)
        waiter.called = None
        self._active[waiter.number] = waiter
        return waiter

    def _sign_off(self, waiter: _Waiter) -> None:
        if waiter.is_known and waiter.called is None and not self._is_closed:
            self._post("sign_off", self._name_of(waiter), *waiter.queues)

    # Ends

    async def for_end(self, ids: Sequence[str], timeout: float) -> set[str]:
        """See :meth:`~omniq.storage.Storage.wait_finished`."""
        if not ids:
            return set()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        wanted = list(dict.fromkeys(ids))
        if timeout <= 0:
            return await self._ended(b"", wanted)
        await self._listen()
        end = _End()
        for task_id in wanted:
            self._ends.setdefault(task_id, set()).add(end)
        try:
            while True:
                ended = await self._ended(self._channel.encode(), wanted) | end.ended
                left = deadline - loop.time()
                if ended or left <= 0:
                    return ended
                await end.sleep(min(left, LOOK_EVERY * random.uniform(0.92, 1.0)))
                if end.ended:
                    return end.ended
                if self._is_closed:
                    raise StorageUnavailable(f"{self._shown} was closed")
                await self._listen()
        finally:
            for task_id in wanted:
                others = self._ends[task_id]
                others.discard(end)
                if not others:
                    del self._ends[task_id]

    async def _ended(self, channel: bytes, ids: Sequence[str]) -> set[str]:
        return {task_id.decode() for task_id in await self._client.run("await", [channel, *ids])}
