"""The connection: questions and answers, many under way at once, each bounded in time.

Every answer comes to one inbox and is told apart by the last token of its subject. After a loss of the connection the
client connects again by itself; where it gives up, as after a login that was refused once, another client takes its
place. Whatever waited for an answer hears at once that none will come.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import nats.errors
from attrs import define, field
from nats.aio.subscription import Subscription

from omniq.errors import OmniQError, PayloadTooLarge, StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq.storage.outages import Outage
from omniq_nats.connect_errors import Reasons
from omniq_nats.connecting import dial
from omniq_nats.messages import Life, Lost, Stored, Unserved
from omniq_nats.protocol import Heard, Message, WireClient
from omniq_nats.settings import Settings

__all__ = ["NOT_FOUND", "PATIENCE", "Connection", "Listening", "Question"]

_log = get_logger("omniq.nats")

T = TypeVar("T")

NOT_FOUND = 10059
"""What the servers call it that there is no such stream."""
OF_MESSAGES = ("STREAM.MSG.", "STREAM.PURGE.")
"""What the questions begin with that read or remove messages."""
PATIENCE = 2.0
"""Seconds after which a question that changes nothing is asked again."""
TICK = 0.05
"""Seconds between two looks for questions that were not answered in time."""
REPLACE_SECONDS = 15.0
"""The time that a client gets to connect again by itself before another one takes its place."""


@define(eq=False)
class Question:
    """An answer that is waited for: one message, or several until the one that says that these were all."""

    future: asyncio.Future[Message]
    number: str
    several: bool = False
    found: list[Stored] = field(factory=list)
    parts: int = 0
    """How many questions are asked together, each with one answer; 0: it is one."""
    by_part: dict[int, Stored | None] = field(factory=dict)
    """What each of these had as its answer."""
    seconds: float = math.inf
    """For how long it is waited."""
    until: float = math.inf
    """And until when, by the loop's clock."""


@define(eq=False)
class Listening:
    """What is listened for, whichever client it is that hears it."""

    subject: str
    heard: Heard
    subscription: Subscription | None = None


class Connection:
    """A connection to the servers, for the event loop on which it was opened.

    :param settings: of the store.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.last_seen = 0
        """The highest sequence that the stream was seen to have."""
        self.generation = 1
        """Counts the connections, one after the other: what was known of the stream may be wrong after another one."""
        self.renewed: list[Callable[[], None]] = []
        """Called after each loss of the connection, before any request: what servers had not flushed when
        their power failed never was, and its sequences are given once more, so that nothing may be remembered."""
        self.life: Life | None = None
        """Of the stream; None: it is not known, or just found out."""
        self.mourned: Life | None = None
        """The life of which it was logged that it is over."""
        self.looked_by = 0
        """By which generation it was last looked whether the stream is still the one that it was."""
        self.reborn: list[Callable[[], None]] = []
        """Called when another stream has taken the place of the one that there was, or when it was emptied."""
        self.losses = 0
        """How often that was so."""
        self.look: Callable[[], Awaitable[object]] | None = None
        """Looks at the stream, and begins anew if it is another one or gone."""
        self._looking = False
        self.beacon: str | None = None
        """A subject that always has a message; None: the stream has no replicas that might be behind."""
        self._client: WireClient | None = None
        self._questions: dict[str, Question] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._inbox = ""
        self._connected = asyncio.Event()
        self._changed = asyncio.Event()
        """Set whenever the connection is lost or found."""
        self._upkeep: asyncio.Task[None] | None = None
        self._listenings: set[Listening] = set()
        self._reasons = Reasons()
        self._outage = Outage(_log, f"{settings.shown}: the connection is lost", f"{settings.shown}: connected again")
        self._closing = False
        self._refused = ""
        """What the server said when this user was not allowed something."""

    # Life

    async def open(self) -> None:
        """Connect.

        :raises StorageUnavailable: if no server can be reached within the timeout, or it refuses us.
        :raises ConfigurationError: if the client lacks a package that the URL makes it need.
        """
        await self._connect()
        self._upkeep = asyncio.get_running_loop().create_task(self._keep_connected())

    async def _connect(self) -> None:
        """Have a client connect, and hear what is listened for; what an earlier one says does not count any more."""
        mine: list[WireClient] = []

        async def if_mine(do: Callable[[], None]) -> None:
            if mine and self._client is mine[0]:
                do()

        client = await dial(
            self.settings,
            reasons=self._reasons,
            lost=partial(if_mine, self._on_disconnected),
            found=partial(if_mine, self._on_reconnected),
            failed=self._on_error,
        )
        self._inbox = client.new_inbox()
        try:
            await client.hear(f"{self._inbox}.*", self._on_answer)
            for listening in list(self._listenings):
                listening.subscription = await client.hear(listening.subject, listening.heard)
        except nats.errors.Error as error:
            await _end(client)
            raise StorageUnavailable(f"{self.settings.shown} cannot be reached: {error}") from error
        mine.append(client)
        self._client = client
        self._reasons.clear()
        self._connected.set()

    async def _keep_connected(self) -> None:
        """Replace a client that does not connect again by itself."""
        loop = asyncio.get_running_loop()
        lost_at: float | None = None
        while True:
            if self._connected.is_set() and not self.client.is_closed:
                lost_at, seconds = None, None
            else:
                # One that was closed against its will stays so: a server that refuses a login once, as while its
                # configuration is changed, ends it for good.
                lost_at = loop.time() if lost_at is None else lost_at
                seconds = 0.0 if self.client.is_closed else lost_at + REPLACE_SECONDS - loop.time()
                if seconds <= 0:
                    await self._replace()
                    continue
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()

    async def _replace(self) -> None:
        self._connected.clear()
        while True:
            await _end(self.client)
            try:
                await self._connect()
            except OmniQError:
                self._outage.failed(self._why())
            except Exception:  # whatever it is, the next attempt may succeed
                _log.exception("%s: an attempt to connect broke", self.settings.shown)
            else:
                self._on_reconnected()
                return
            await asyncio.sleep(random.uniform(0.25, 1.0))

    async def close(self) -> None:
        """Disconnect; everything that waits for an answer hears that none will come."""
        self._closing = True
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        client, self._client = self._client, None
        self._connected.clear()
        self._forget_questions("the storage was closed")
        if client is not None:
            await _end(client)

    def _on_disconnected(self) -> None:
        self._connected.clear()
        self._changed.set()
        if not self._closing:
            self._outage.failed(self._why())
        self._forget_questions("the connection was lost")

    def begin_anew(self) -> None:
        """Forget all that was known of the stream, as it is another one."""
        self.losses += 1
        self.last_seen = 0
        self._forget()

    async def _look_for_stream(self) -> None:
        """Look whether the stream is there, as there is no answer for it, or what should be in it is not."""
        if self.look is not None and not self._looking:
            self._looking = True
            try:
                with contextlib.suppress(StorageUnavailable):
                    await self.look()
            finally:
                self._looking = False

    def _forget(self) -> None:
        self.generation += 1
        for forget in self.renewed:
            forget()

    def _on_reconnected(self) -> None:
        if self.beacon is None:
            self.last_seen = 0
        self._forget()
        self._reasons.clear()
        self._outage.succeeded()
        self._connected.set()
        self._changed.set()

    def _on_error(self, error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            self._refused = str(error)
        elif self._client is not None and not self._connected.is_set():
            self._outage.failed(self._why())

    def _why(self) -> str:
        error = None if self._client is None else self._client.last_error
        return str(self._reasons) or (str(error) if error else "the server closed it")

    def _forget_questions(self, reason: str) -> None:
        questions, self._questions = self._questions, {}
        for question in questions.values():
            if not question.future.done():
                question.future.set_exception(Lost(f"{self.settings.shown}: {reason}"))

    @property
    def client(self) -> WireClient:
        """The client, connected or not.

        :raises StorageUnavailable: if the link is not open.
        """
        if self._client is None:
            raise StorageUnavailable(f"{self.settings.shown} is not open: call open() first")
        return self._client

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of the server that we are connected to; None: we are not."""
        url = None if self._client is None else self._client.connected_url
        return None if url is None or url.hostname is None or url.port is None else (url.hostname, url.port)

    async def _ready(self, deadline: float) -> WireClient:
        if not self._connected.is_set() or not self.client.is_connected:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._connected.wait()
            except TimeoutError as error:
                raise StorageUnavailable(f"{self.settings.shown} cannot be reached: {self._why()}") from error
        return self.client

    @property
    def max_payload(self) -> int:
        """The most bytes of a message."""
        limit: int = self.client.max_payload
        return limit

    # Asking

    def _on_answer(self, message: Message) -> None:
        number, _, part = message.subject.rpartition(".")[2].partition("-")
        question = self._questions.get(number)
        if question is None or question.future.done():
            return
        place = message.stored_as() if question.several else None
        stored = None if place is None else Stored(*place, message.data)
        if not question.parts:
            if stored is not None:
                question.found.append(stored)
                return
        elif stored is not None or (message.headers or {}).get("Status") == "404":
            question.by_part[int(part)] = stored
            if len(question.by_part) < question.parts:
                return
        question.future.set_result(message)

    def _asked(self, several: bool = False, parts: int = 0) -> tuple[str, Question]:
        number = f"{next(self._numbers):x}"
        question = Question(asyncio.get_running_loop().create_future(), number, several, parts=parts)
        self._questions[number] = question
        return f"{self._inbox}.{number}", question

    async def _answer(self, question: Question, seconds: float) -> Message:
        """Wait for the answer to a question that was sent."""
        loop = question.future.get_loop()
        question.seconds, question.until = seconds, loop.time() + seconds
        # One timer for all questions: one of its own would take a twentieth of the time of enqueueing a task.
        if self._ticking is None:
            self._ticking = loop.call_later(TICK, self._tick, loop)
        try:
            message = await question.future
        finally:
            self._questions.pop(question.number, None)
        if message.headers is not None and message.headers.get("Status") == "503":
            raise Unserved(
                f"{self.settings.shown}: there is no answer for JetStream stream {self.settings.names.stream}; "
                "it has no leader at the moment, or JetStream is off"
            )
        return message

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail the questions that were not answered in time."""
        now = loop.time()
        for question in self._questions.values():
            if question.until <= now and not question.future.done():
                reason = f"; the server says {self._refused}" if self._refused else ""
                question.future.set_exception(
                    Lost(f"{self.settings.shown}: no answer within {max(0.0, question.seconds):.1f} s{reason}")
                )
        self._ticking = loop.call_later(TICK, self._tick, loop) if self._questions else None

    async def ask(self, subject: str, body: Any = None, *, repeat: bool = True) -> dict[str, Any]:
        """Ask the JetStream API.

        :param subject: what follows ``$JS.API.``.
        :param repeat: whether to ask again when no answer comes.
        :return: the answer; the caller looks for its ``error``.
        """
        data = b"" if body is None else json.dumps(body).encode()
        message, _ = await self._repeat(f"{self.settings.api}.{subject}", data, several=False, repeat=repeat)
        answer: dict[str, Any] = json.loads(message.data)
        error = answer.get("error") or {}
        if error.get("err_code") == NOT_FOUND and not subject.startswith("STREAM.INFO."):
            await self._look_for_stream()
            raise Unserved(f"{self.settings.shown}: stream {self.settings.names.stream} was not there")
        if error.get("code") == 503 and subject.startswith(OF_MESSAGES):
            # Not that the message is not there: taken for that, it would count as removed.
            raise Unserved(f"{self.settings.shown}: {error.get('description')}")
        return answer

    async def _repeat(
        self, subject: str, data: bytes, *, several: bool, repeat: bool = True
    ) -> tuple[Message, list[Stored]]:
        """Ask, and ask again where no answer comes.

        :param several: whether stored messages are the answer.
        :return: the last answer, and the stored messages.
        """

        async def ask(client: WireClient) -> Question:
            reply, question = self._asked(several)
            await self._send(client, subject, data, reply, question=question)
            return question

        message, question = await self._until_answered(ask, repeat)
        return message, question.found

    async def _repeat_all(self, subject: str, bodies: Sequence[bytes]) -> tuple[Message, list[Stored | None]]:
        """Ask several questions at once of which each has a stored message as its answer, or that there is none.

        :return: the last answer, and the stored messages in the order of the questions; None for one without.
        """

        async def ask(client: WireClient) -> Question:
            reply, question = self._asked(several=True, parts=len(bodies))
            parts = [(f"{subject} {reply}-{part}", body) for part, body in enumerate(bodies)]
            if not client.post_all(parts):
                for part, body in enumerate(bodies):
                    await self._send(client, subject, body, f"{reply}-{part}", question=question)
            return question

        message, question = await self._until_answered(ask, True)
        return message, [question.by_part.get(part) for part in range(len(bodies))]

    async def _until_answered(
        self, ask: Callable[[WireClient], Awaitable[Question]], repeat: bool
    ) -> tuple[Message, Question]:
        deadline = time.monotonic() + self.settings.timeout
        while True:
            try:
                client = await self._ready(deadline)
                question = await ask(client)
                left = deadline - time.monotonic()
                return await self._answer(question, min(PATIENCE, left) if repeat else left), question
            except StorageUnavailable as error:
                pause = random.uniform(0.02, 0.1)
                if self._closing or not repeat or time.monotonic() + 2 * pause >= deadline:
                    raise
                if isinstance(error, Unserved):
                    await self._look_for_stream()
                await asyncio.sleep(pause)

    async def _send(
        self,
        client: WireClient,
        subject: str,
        data: bytes,
        reply: str = "",
        headers: dict[str, str] | None = None,
        question: Question | None = None,
    ) -> None:
        try:
            if len(data) > client.max_payload:
                raise nats.errors.MaxPayloadError
            if not client.post(subject, data, reply, headers):
                await _cancellable(client.publish(subject, data, reply=reply, headers=headers))
        except BaseException as error:
            if question is not None:
                self._questions.pop(question.number, None)
                question.future.cancel()
            if isinstance(error, nats.errors.MaxPayloadError):
                raise self._too_large(len(data)) from error
            if isinstance(error, nats.errors.Error | OSError):
                raise Lost(f"{self.settings.shown}: {error}") from error
            raise

    def check_size(self, size: int) -> None:
        """Refuse a message that the server would not take.

        :param size: of what it holds, in bytes; there is room beside it for its headers.
        :raises PayloadTooLarge: if it is over the server's limit.
        """
        if size + 1024 > self.max_payload:
            raise self._too_large(size)

    def _too_large(self, size: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"a message of {size:,} bytes is over the server's limit of {self.max_payload:,} (max_payload); "
            "store the data elsewhere and hand over its address, or raise the limit"
        )

    def together(self) -> None:
        """Have what is sent before the loop comes round go out in one piece."""
        if self._client is not None:
            self._client.together()

    # Telling

    async def tell(self, subject: str, data: bytes = b"") -> None:
        """Publish to those that listen just now. Nothing is stored, and there is no answer."""
        with contextlib.suppress(StorageUnavailable, nats.errors.Error):
            await self._send(self.client, subject, data)

    async def tell_all(self, words: Iterable[tuple[str, bytes]]) -> None:
        """Tell many things at once; see :meth:`tell`.

        :param words: of each the subject, and what is told.
        """
        words = list(words)
        if words:
            self.together()
            if self._client is None or not self._client.post_all(words):
                for subject, data in words:
                    await self.tell(subject, data)

    async def listen(self, subject: str, heard: Heard) -> Listening:
        """Call a function with whatever is told.

        The server hears of it before it hears whatever is asked next through this connection. The client's own
        ``flush`` is not used: if it is given up, its late answer ends the client's reading.
        """
        client = self.client
        listening = Listening(subject, heard)
        self._listenings.add(listening)
        try:
            subscription = await _cancellable(client.hear(subject, heard))
        except (nats.errors.Error, OSError):
            return listening  # the client that takes the place of this one hears it
        except BaseException:
            self._listenings.discard(listening)
            raise
        if self._client is client:
            listening.subscription = subscription
        return listening

    async def unlisten(self, listening: Listening) -> None:
        """Stop listening."""
        self._listenings.discard(listening)
        if listening.subscription is not None:
            with contextlib.suppress(StorageUnavailable, nats.errors.Error, OSError):
                await _cancellable(self.client.unhear(listening.subscription))


async def _end(client: WireClient) -> None:
    # A server that does not answer any more must not keep us.
    with contextlib.suppress(Exception):
        async with asyncio.timeout(2):
            await client.close()


async def _cancellable(work: Awaitable[T]) -> T:
    """Wait for something of the client's, which swallows a cancellation that comes while it flushes."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    result = await work
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return result
