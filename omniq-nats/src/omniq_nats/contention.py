"""Turns between processes that change one queue state all the time: else most of what they do would be in vain.

A process that has lost a race for a queue state tells the others when it begins a change and when it has ended it; they
wait for it for a while. Who ends a turn names the next of those that said that they wait, so that they do not all begin
at once. A word that is lost, or a process that is, costs as long as a few turns; what is accepted is decided by the
servers alone.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from functools import partial

from attrs import define, field

from omniq_nats.protocol import Message
from omniq_nats.transport import Transport

__all__ = ["Contention"]

LASTS = 10
"""So many times as long as one that has the turn is waited for there are taken to be rivals, after a race was lost or
one had to wait for the other."""
SOON = 0.25
"""Seconds within which a second race is lost where there are rivals, and a word is heard where they still are at it."""
COURTESY = 0.003
"""Seconds for which the process that had the latest turn listens whether another wants the next."""
PATIENCE = 0.1
"""Seconds for which one that has the turn, or is to have it, is waited for at least."""
LONGEST = 2.0
"""And at most."""
TURNS = 3
"""So many times as long as its turns last it is waited for in between."""
FADES = 0.9
"""What becomes of the length of the longest turn with each that is shorter."""
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
    patience: float = PATIENCE
    """For how long one that has the turn is waited for, by what the latest of them said."""
    begun: float = 0.0
    """When our turn began; 0: we have none."""
    lasts: float = 0.0
    """How long our turns last, the longest of late."""
    waiting: dict[bytes, None] = field(factory=dict)
    """Those that wait for their turn."""
    is_next: bool = False
    """Whether one that ended its turn has named us, who wait."""
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
            race.until = now + LASTS * race.patience
        race.lost_at = now

    def _hear(self, race: _Race, message: Message) -> None:
        who, what, said = (*message.data.split(b" "), b"", b"")[:3]
        if who == self._me:
            return
        now = time.monotonic()
        race.heard_at = now
        if what == WAITING:
            race.until = now + LASTS * race.patience
            race.waiting[who] = None
            if not race.is_stale:
                race.hold = now + race.patience  # the latest turn was ours
            return
        race.is_stale = True
        race.waiting.pop(who, None)
        if what == BEGUN:
            race.patience = min(int(said) / 1000, LONGEST) if said.isdigit() else PATIENCE
            race.until = now + LASTS * race.patience
            race.hold = now + race.patience
        else:
            # It names who is next. One of an older version does not, and then all may begin.
            race.waiting.pop(said, None)
            race.is_next = race.is_next or said == self._me
            race.hold = now + race.patience if said not in (b"", self._me) else 0.0
        race.gone_on.set()

    async def begin(self, queue: str) -> None:
        """Wait for the turn, and tell the others that it has begun."""
        if not self.are_there(queue):
            return
        race = self._races[queue]
        race.is_next, told = False, 0.0
        # One that was named begins even if another has begun meanwhile: nobody else knows that it waits.
        while not race.is_next and (left := max(race.hold, race.courtesy) - (now := time.monotonic())) > 0:
            if race.hold > race.courtesy and now - told > SOON:  # again, as others may have come who do not know it
                told = now
                race.until = now + LASTS * race.patience
                await self._tell(queue, WAITING)
            race.gone_on.clear()
            timer = asyncio.get_running_loop().call_later(min(left, SOON), race.gone_on.set)
            try:
                await race.gone_on.wait()
            finally:
                timer.cancel()
        race.begun = time.monotonic()
        await self._tell(queue, BEGUN, b"%d" % (1000 * min(max(PATIENCE, TURNS * race.lasts), LONGEST)))

    async def end(self, queue: str) -> None:
        """Tell the others that the turn has ended."""
        race = self._races.get(queue)
        if race is None:
            return
        race.is_stale = False
        if self.are_there(queue):
            now = time.monotonic()
            if race.begun:
                race.lasts = max(now - race.begun, FADES * race.lasts)
                race.begun = 0.0
            following = random.choice(list(race.waiting)) if race.waiting else b""
            if following:
                del race.waiting[following]
                race.hold = now + race.patience
            elif now - race.heard_at < SOON:
                race.courtesy = now + COURTESY
            await self._tell(queue, ENDED, following)

    async def _tell(self, queue: str, what: bytes, said: bytes = b"") -> None:
        await self._transport.tell(self._names.commit(queue), b" ".join([self._me, what, said]))
