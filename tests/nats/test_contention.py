"""Turns at a queue's state: what processes tell each other, and whom they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from omniq.testing import await_until
from omniq_nats.contention import PATIENCE, Contention
from omniq_nats.names import Names
from omniq_nats.protocol import Message
from omniq_nats.transport import Transport


class Words:
    """Stands for the servers: passes on what each of several processes tells."""

    def __init__(self) -> None:
        self.settings = self
        self.names = Names("test")
        self.told: list[list[bytes]] = []
        self._listeners: list[Callable[[Message], None]] = []

    async def listen(self, subject: str, hear: Callable[[Message], None]) -> None:
        self._listeners.append(hear)

    async def tell(self, subject: str, data: bytes) -> None:
        self.told.append(data.split(b" "))
        self.say(data)

    def say(self, data: bytes) -> None:
        for hear in self._listeners:
            hear(Message("", data))

    async def rival(self) -> Contention:
        """Return one that knows that there are others."""
        contention = Contention(cast(Transport, cast(Any, self)))
        await contention.lost("work", again=True)
        return contention


async def test_who_ends_a_turn_names_one_of_those_that_wait_and_the_others_wait_on() -> None:
    words = Words()
    first, *others = [await words.rival() for _ in range(4)]
    await first.begin("work")
    order: list[Contention] = []

    async def take_turn(one: Contention) -> None:
        await one.begin("work")
        order.append(one)

    async def turns_taken(number: int) -> Contention:
        await await_until(lambda: len(order) == number, 30, "the next turn")
        return order[-1]

    turns = [asyncio.create_task(take_turn(one)) for one in others]
    await await_until(lambda: sum(what == b"w" for _, what, _ in words.told) == 3, 30, "all others to wait")
    assert order == []
    last = first
    for number in range(1, 4):
        await last.end("work")
        last = await turns_taken(number)
        named = [said for _, what, said in words.told if what == b"e"]
        assert named[-1] == last._me
    await asyncio.gather(*turns)


async def test_one_that_was_named_begins_though_another_has_begun_meanwhile() -> None:
    words = Words()
    first, second = await words.rival(), await words.rival()
    await first.begin("work")
    turn = asyncio.create_task(second.begin("work"))
    await await_until(lambda: [what for _, what, _ in words.told][-1] == b"w", 30, "the second to wait")
    words.say(b"%s e %s" % (first._me, second._me))
    words.say(b"other b 600000")
    for _ in range(10):
        await asyncio.sleep(0)
    assert turn.done()  # nobody would name it once more
    await turn


async def test_how_long_a_turn_is_waited_for_follows_from_how_long_turns_last() -> None:
    words = Words()
    slow, other = await words.rival(), await words.rival()
    assert await said_at_begin(slow, words) == PATIENCE
    slow._races["work"].begun -= 0.3
    await slow.end("work")
    assert await said_at_begin(slow, words) >= 0.9
    assert other.have_changed("work")


async def said_at_begin(one: Contention, words: Words) -> float:
    await one.begin("work")
    who, what, said = words.told[-1]
    assert (who, what) == (one._me, b"b")
    return int(said) / 1000
