"""Reads and writes one stream. Nothing here knows of tasks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from omniq.errors import PayloadTooLarge, StorageUnavailable
from omniq_nats.connection import NOT_FOUND, PATIENCE, Connection
from omniq_nats.messages import Conflict, Full, Lost, Stored, Unserved, Write
from omniq_nats.protocol import Message
from omniq_nats.settings import Settings

__all__ = ["BATCH_LIMIT", "NOT_FOUND", "Conflict", "Lost", "Stored", "Transport", "Write"]

WRONG_LAST_SEQUENCE = (10071, 10164)
TOO_LARGE = 10054
FULL = (10002, 10023, 10028, 10047, 10077)
"""What the servers call it that a limit of the account, the server, its memory, its disk or the stream is reached."""
RESERVE_BYTES = 256 * 1024
"""The size of what is removed to make room where there is none left."""
AT_ONCE = 4 * 1024 * 1024
"""Bytes of messages that are asked for at once, about. Of a larger answer a server would send a part, too."""
NOTED = 512
"""So many of the latest messages are known without a question."""
NOTED_BYTES = 8192
BEHIND_SECONDS = 0.5
"""For so long a replica may lack what this connection has seen."""
BATCH_LIMIT = 1000
"""The most messages that a server takes in one atomic batch."""


class Transport(Connection):
    """The stream of a namespace, through one connection.

    :param settings: of the store.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._noted: OrderedDict[int, Stored | None] = OrderedDict()
        self._noted_by = self.generation
        self._under_way = 0
        self._stored_as = b'{"stream":"%s","seq":' % settings.names.stream.encode()
        """How the answer begins that a message was stored."""

    # What is known without a question

    def note(self, seq: int, stored: Stored | None) -> None:
        """Take note of a message that was stored.

        :param stored: the message, if it is one that holds tasks.
        """
        self.last_seen = max(self.last_seen, seq)
        if self._noted_by != self.generation:
            # Servers that lost what was not on their disks give the same sequences once more.
            self._noted_by = self.generation
            self._noted.clear()
        self._noted[seq] = stored
        if len(self._noted) > NOTED:
            self._noted.popitem(last=False)

    def noted(self, start: int) -> Iterator[Stored | None]:
        """Yield messages from a sequence on, as far as they are known without a gap; None for one without tasks."""
        if self._noted_by == self.generation:
            while start in self._noted:
                yield self._noted[start]
                start += 1

    def has_noted(self, start: int, end: int) -> bool:
        """Say whether every message from one sequence to another is one that was stored or heard of here."""
        if self._noted_by != self.generation or end - start >= NOTED:
            return False
        return all(seq in self._noted for seq in range(start, end + 1))

    @property
    def is_quiet(self) -> bool:
        """Whether nothing that this connection stores is under way."""
        return not self._under_way

    def _note(self, seq: int, writes: Sequence[Write]) -> None:
        for number, write in enumerate(writes, seq):
            holds_tasks = write.subject.startswith(self.settings.names.task_lookup)
            if not holds_tasks:
                self.note(number, None)
            elif len(write.data) <= NOTED_BYTES:
                self.note(number, Stored(write.subject, number, write.data))

    # Reading

    async def last(self, subjects: Sequence[str]) -> list[Stored]:
        """Return the messages on some subjects, which may have wildcards; in no order, and none where there is none."""
        found: list[Stored] = []
        for start in range(0, len(subjects), 250):
            found += await self._last(list(subjects[start : start + 250]))
        return found

    async def _last(self, subjects: list[str]) -> list[Stored]:
        seen, begun, has_looked = self.last_seen, time.monotonic(), False
        deadline = begun + self.settings.timeout
        if self.beacon is not None:
            # Without a single result the answer does not say how far its server has come.
            subjects.append(self.beacon)
        while True:
            message, stored = await self._latest(subjects)
            self._check_read(message)
            reached = (message.headers or {}).get("Nats-UpTo-Sequence")
            # Replicas answer, too, and one may not have yet what this connection has seen. What another one saw before
            # it was lost does not count.
            needed = min(seen, self.last_seen)
            if reached is None or int(reached) >= needed or time.monotonic() > deadline:
                return [one for one in stored if one.subject != self.beacon]
            if not has_looked and (self.beacon is None or time.monotonic() > begun + BEHIND_SECONDS):
                # No replica is so far behind: it is another stream.
                has_looked = True
                await self._look_for_stream()
            await asyncio.sleep(0.005)

    async def _latest(self, subjects: Sequence[str]) -> tuple[Message, list[Stored]]:
        """Return the messages on some subjects, and what was said at the end of them."""
        question = {"multi_last": subjects, "max_bytes": AT_ONCE}
        message, stored = await self._get(question)
        part = stored
        while part and int((message.headers or {}).get("Nats-Num-Pending", 0)):
            # What was replaced meanwhile comes once more: together they are as the last question found them.
            message, part = await self._get(question | {"seq": part[-1].seq + 1})
            stored = list({one.subject: one for one in [*stored, *part]}.values())
        return message, stored

    async def leader_has(self, subject: str, start: int, end: int) -> bool:
        """Ask the stream's leader, not a replica, whether there is a message on some subjects in a range."""
        body = {"seq": max(1, start), "next_by_subj": subject}
        answer = await self.ask(f"STREAM.MSG.GET.{self.settings.names.stream}", body)
        if "error" in answer:
            return bool(answer["error"].get("code") != 404)
        return bool(answer["message"]["seq"] <= end)

    async def last_all(self, subject: str) -> list[Stored]:
        """Return the messages on all subjects that match one with wildcards."""
        message, stored = await self._latest([subject])
        if (message.headers or {}).get("Status") == "413":  # more than a server gives at once
            return [one async for one in self.scan_all(subject)]
        self._check_read(message)
        reached = (message.headers or {}).get("Nats-UpTo-Sequence")
        if self.beacon is not None and (reached is None or int(reached) < self.last_seen):
            return await self._last([subject])
        return stored

    async def scan(
        self, subject: str, start: int = 1, count: int = 256, max_bytes: int = AT_ONCE
    ) -> tuple[list[Stored], int]:
        """Return messages in the order in which they were stored.

        :param subject: with wildcards.
        :param start: the first sequence that counts.
        :param count: how many at most; with large messages fewer come.
        :param max_bytes: of messages, about.
        :return: the messages, and how many there are after them.
        """
        body = {"batch": count, "seq": max(1, start), "next_by_subj": subject, "max_bytes": max_bytes}
        message, stored = await self._get(body)
        self._check_read(message)
        left = int((message.headers or {}).get("Nats-Num-Pending", 0))
        self.last_seen = max([self.last_seen, *(one.seq for one in stored[-1:])])
        return stored, left

    async def next_ones(self, subject: str, starts: Sequence[int]) -> list[Stored]:
        """Return for each of some sequences the first message from there on.

        A server that is asked for several by :meth:`scan` counts all that follow, which takes it milliseconds where
        tens of thousands are stored. One that is asked for a single one does not, and these are asked for all at once.
        Each has an answer of its own: what is stored meanwhile may be found from a later sequence and not from an
        earlier one.

        :param subject: with wildcards.
        :param starts: the sequences.
        :return: in the same order, the same one for several sequences if it is the first from all of these; up to the
            first sequence from which on nothing was found.
        """
        asked = f"{self.settings.api}.DIRECT.GET.{self.settings.names.stream}"
        quoted = json.dumps(subject)
        bodies = [f'{{"seq":{max(1, seq)},"next_by_subj":{quoted}}}'.encode() for seq in starts]
        message, found = await self._repeat_all(asked, bodies)
        if message.stored_as() is None:
            self._check_read(message)
        stored: list[Stored] = []
        for one in found:
            if one is None:
                break
            stored.append(one)
        self.last_seen = max([self.last_seen, *(one.seq for one in stored[-1:])])
        return stored

    async def scan_all(self, subject: str, start: int = 1, count: int = 256) -> AsyncIterator[Stored]:
        """Yield every message on some subjects in the order in which they were stored.

        :param subject: with wildcards.
        :param start: the first sequence that counts.
        :param count: how many are read at once.
        """
        while True:
            stored, left = await self.scan(subject, start, count)
            for one in stored:
                yield one
            if not stored or not left:
                return
            start = stored[-1].seq + 1

    async def count(self, subject: str, start: int = 1) -> int:
        """Count the messages on some subjects from a sequence on."""
        stored, left = await self.scan(subject, start, 1, max_bytes=1)
        return len(stored) + left

    async def ends(self, subjects: Sequence[str]) -> list[int]:
        """Ask the stream's leader for the latest sequence on each of some subjects with wildcards; 0: there is none."""
        stream = self.settings.names.stream

        async def one(subject: str) -> int:
            answer = await self.ask(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
            return 0 if "error" in answer else int(answer["message"]["seq"])

        return list(await asyncio.gather(*(one(subject) for subject in subjects)))

    async def end(self) -> int:
        """Return the sequence of the stream's latest message."""
        return int((await self.info())["state"]["last_seq"])

    async def find_again(self) -> None:
        """Look whether the stream is still the one that it was, as what should be in it is not."""
        await self._look_for_stream()

    async def subjects(self, subject: str) -> dict[str, int]:
        """Return the subjects that match one with wildcards and how many messages each has, of very many some."""
        answer = await self.ask(f"STREAM.INFO.{self.settings.names.stream}", {"subjects_filter": subject})
        found: dict[str, int] = answer.get("state", {}).get("subjects") or {}
        return found

    async def info(self) -> dict[str, Any]:
        """Return what the servers say of the stream.

        :raises StorageUnavailable: if they say that there is none.
        """
        answer = await self.ask(f"STREAM.INFO.{self.settings.names.stream}")
        if "error" in answer:
            raise StorageUnavailable(
                f"{self.settings.shown}: stream {self.settings.names.stream} cannot be used: "
                f"{answer['error'].get('description')}"
            )
        return answer

    async def _get(self, body: dict[str, Any]) -> tuple[Message, list[Stored]]:
        subject = f"{self.settings.api}.DIRECT.GET.{self.settings.names.stream}"
        return await self._repeat(subject, json.dumps(body).encode(), several=True)

    def _check_read(self, message: Message) -> None:
        headers = message.headers or {}
        if headers.get("Status") not in ("204", "404"):
            raise StorageUnavailable(f"{self.settings.shown}: a read was refused: {headers or message.data[:200]!r}")

    # Writing

    async def publish(self, write: Write, *, frees: bool = False, until: float | None = None) -> int:
        """Store a message.

        :param frees: whether it is part of the removal of something, for which there is a reserve.
        :param until: the time, by the monotonic clock, at which it is given up; None: after the usual time.
        :return: its sequence.
        :raises Conflict: if what it was to replace is not there.
        :raises Lost: if it is not known whether it was stored.
        """
        seq = await self._until_served(lambda deadline: self._publish(write, deadline), frees, until)
        self._note(seq, [write])
        return seq

    async def _publish(self, write: Write, deadline: float) -> int:
        client = await self._ready(deadline)
        reply, question = self._asked()
        await self._send(client, write.subject, write.data, reply, write.headers() or None, question)
        return self._acknowledged(await self._answer(question, min(PATIENCE, deadline - time.monotonic())))

    async def _until_served(
        self, act: Callable[[float], Awaitable[int]], frees: bool, until: float | None = None
    ) -> int:
        """Try again while the stream has no leader, as then nothing was stored."""
        try:
            return await self._served(act, until)
        except Full:
            if not frees or not await self._open_reserve():
                raise
            return await self._served(act, until)

    async def _served(self, act: Callable[[float], Awaitable[int]], until: float | None = None) -> int:
        deadline = time.monotonic() + self.settings.timeout if until is None else until
        self._under_way += 1
        try:
            while True:
                try:
                    return await act(deadline)
                except Unserved:
                    pause = random.uniform(0.02, 0.1)
                    if self._closing or time.monotonic() + 2 * pause > deadline:
                        raise
                    await self._look_for_stream()
                    await asyncio.sleep(pause)
        finally:
            self._under_way -= 1

    async def store(self, write: Write) -> int:
        """Store a message that may be stored twice without harm.

        :return: its sequence.
        """
        deadline = time.monotonic() + self.settings.timeout
        while True:
            try:
                return await self.publish(write)
            except Lost:
                if self._closing or time.monotonic() + 0.1 > deadline:
                    raise

    async def keep_reserve(self) -> None:
        """Have a message in the stream that can be removed where there is no room, if there is room for it.

        Without it nothing could be removed from a full stream: each step of that is first written down.
        """
        size = max(0, min(RESERVE_BYTES, self.max_payload - 1024))
        with contextlib.suppress(StorageUnavailable, Conflict):
            if not (await self.ends([self.settings.names.reserve]))[0]:
                await self._served(partial(self._publish, Write(self.settings.names.reserve, b" " * size, expected=0)))

    async def _open_reserve(self) -> bool:
        """Make room; say whether there was a reserve."""
        (seq,) = await self.ends([self.settings.names.reserve])
        return seq > 0 and await self.remove_one(seq)

    async def batch(self, writes: Sequence[Write], *, frees: bool = False, until: float | None = None) -> int:
        """Store messages one after the other, all or none.

        :param frees: whether they are part of the removal of something, for which there is a reserve.
        :param until: the time, by the monotonic clock, at which it is given up; None: after the usual time.
        :return: the sequence of the first.
        :raises Conflict: if what one of them was to replace is not there.
        :raises Lost: if it is not known whether they were stored.
        :raises PayloadTooLarge: if one is too large, or they are too many; nothing is sent then.
        """
        # Before any is sent: the server would keep the others for a while.
        if len(writes) > BATCH_LIMIT:
            raise PayloadTooLarge(
                f"{len(writes):,} messages are to be stored all or none, and a server takes {BATCH_LIMIT:,} at most; "
                "do it with fewer tasks at a time"
            )
        for write in writes:
            self.check_size(len(write.data))
        if len(writes) == 1:
            return await self.publish(writes[0], frees=frees, until=until)
        seq = await self._until_served(lambda deadline: self._batch(writes, deadline), frees, until)
        self._note(seq, writes)
        return seq

    async def _batch(self, writes: Sequence[Write], deadline: float) -> int:
        client = await self._ready(deadline)
        name = secrets.token_hex(12)
        reply, question = self._asked()
        self.together()
        for number, write in enumerate(writes, start=1):
            headers = write.headers()
            headers["Nats-Batch-Id"] = name
            headers["Nats-Batch-Sequence"] = str(number)
            is_last = number == len(writes)
            if is_last:
                headers["Nats-Batch-Commit"] = "1"
            await self._send(client, write.subject, write.data, reply if is_last else "", headers, question)
        answer = await self._answer(question, min(PATIENCE * 2, deadline - time.monotonic()))
        return self._acknowledged(answer) - len(writes) + 1

    def _acknowledged(self, message: Message) -> int:
        # To read the JSON of an answer that says nothing else would take a tenth of the time of enqueueing a task.
        begin = len(self._stored_as)
        if message.data.startswith(self._stored_as) and (digits := message.data[begin:-1]).isdigit():
            stored_at = int(digits)
            self.last_seen = max(self.last_seen, stored_at)
            return stored_at
        answer = json.loads(message.data)
        error = answer.get("error")
        if error is None:
            stream = self.settings.names.stream
            if answer["stream"] != stream:
                raise Unserved(
                    f"{self.settings.shown}: stream {answer['stream']!r} has the subjects of stream {stream}, which is "
                    "not there; remove that one, or take another namespace"
                )
            seq: int = answer["seq"]
            self.last_seen = max(self.last_seen, seq)
            return seq
        if error.get("err_code") in WRONG_LAST_SEQUENCE:
            raise Conflict(error.get("description"))
        if error.get("err_code") == TOO_LARGE:
            raise self._too_large(len(message.data))
        kind = Full if error.get("err_code") in FULL else StorageUnavailable
        raise kind(f"{self.settings.shown}: the server stored nothing: {error.get('description')}")

    async def remove_one(self, seq: int) -> bool:
        """Remove a message by its sequence; say whether it was there."""
        stream = self.settings.names.stream
        answer = await self.ask(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        return bool(answer.get("success"))

    async def remove(self, sequences: Iterable[int]) -> None:
        """Remove messages by their sequence; those that are gone already do no harm."""
        await asyncio.gather(*(self.remove_one(seq) for seq in sequences))

    async def purge(self, subject: str) -> None:
        """Remove the messages on some subjects."""
        await self.ask(f"STREAM.PURGE.{self.settings.names.stream}", {"filter": subject})
