"""Turns between processes that change one queue state all the time: else most of what they do would be in vain.

A process that has lost a race for a queue state tells the others when it begins a change and when it has ended it; they
wait for it for a while. A word that is lost costs some milliseconds; what is accepted is decided by the servers alone.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial

from attrs import define, field

from omniq_nats.protocol import Message
from omniq_nats.transport import Transport

__all__ = ["Contention"]

LASTS = 1.0
"""Seconds for which there are taken to be rivals, after a race was lost or one had to wait for the other."""
SOON = 0.25
"""Seconds within which a second race is lost where there are rivals, and a word is heard where they still are at it."""
COURTESY = 0.003
"""Seconds for which the process that had the latest turn listens whether another wants the next."""
PATIENCE = 0.1
"""Seconds for which one that has the turn, or is to have it, is waited for."""
WAITING, BEGUN, ENDED = b"w", b"b", b"e"


@define(eq=False)
class _Race:
    """What is known of a queue state that others change, too."""

    lost_at: float = -SOON
    heard_at: float = -SOON
    until: float = 0.0
    """Until when there are taken to be rivals."""
    hold: float = 0.0
    """Until when one that has the turn, or is to have it, is waited for."""
    courtesy: float = 0.0
    """Until when it is awaited that one of them wants the turn."""
    wanted: bool = False
    """Whether one of them waits for its turn."""
    is_stale: bool = False
    """Whether one of them may have changed the queue state since we did."""
    gone_on: asyncio.Event = field(factory=asyncio.Event)


class Contention:
    """Who else changes the queue states of queues.

    :param transport: of the storage.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._names = transport.settings.names
        self._me = secrets.token_hex(6).encode()
        self._races: dict[str, _Race] = {}

    def are_there(self, queue: str) -> bool:
        """Whether others change a queue state, as far as was seen lately."""
        race = self._races.get(queue)
        return race is not None and time.monotonic() < race.until

    def have_changed(self, queue: str) -> bool:
        """Whether others may have changed a queue state since we did, as far as is known without a question."""
        race = self._races.get(queue)
        return race is not None and race.is_stale

    async def lost(self, queue: str, *, again: bool = False) -> None:
        """Take note of a race that was lost.

        :param again: whether the same change lost one before, however long ago.
        """
        race = self._races.get(queue)
        if race is None:
            race = self._races[queue] = _Race()
            await self._transport.listen(self._names.commit(queue), partial(self._hear, race))
        now = time.monotonic()
        if again or now - race.lost_at < SOON:
            race.until = now + LASTS
        race.lost_at = now

    def _hear(self, race: _Race, message: Message) -> None:
        who, _, what = message.data.partition(b" ")
        if who == self._me:
            return
        now = time.monotonic()
        race.heard_at = now
        if what == WAITING:
            race.until = now + LASTS
            race.wanted = True
            if not race.is_stale:
                race.hold = now + PATIENCE  # the latest turn was ours
            return
        race.is_stale = True
        race.wanted = False
        race.hold = now + PATIENCE if what == BEGUN else 0.0
        race.gone_on.set()

    async def begin(self, queue: str) -> None:
        """Wait for the turn, and tell the others that it has begun."""
        if not self.are_there(queue):
            return
        race = self._races[queue]
        told = False
        while (left := max(race.hold, race.courtesy) - time.monotonic()) > 0:
            if not told and race.hold > race.courtesy:
                told = True
                race.until = time.monotonic() + LASTS
                await self._tell(queue, WAITING)
            race.gone_on.clear()
            timer = asyncio.get_running_loop().call_later(left, race.gone_on.set)
            try:
                await race.gone_on.wait()
            finally:
                timer.cancel()
        await self._tell(queue, BEGUN)

    async def end(self, queue: str) -> None:
        """Tell the others that the turn has ended."""
        race = self._races.get(queue)
        if race is None:
            return
        race.is_stale = False
        if self.are_there(queue):
            now = time.monotonic()
            if race.wanted:
                race.hold = now + PATIENCE
            elif now - race.heard_at < SOON:
                race.courtesy = now + COURTESY
            await self._tell(queue, ENDED)

    async def _tell(self, queue: str, what: bytes) -> None:
        await self._transport.tell(self._names.commit(queue), b"%s %s" % (self._me, what))
