"""Knows when each schedule is due next, and reads only what has changed since it last looked."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

from omniq.schedule import Schedule
from omniq_nats.schedule_encoding import readable
from omniq_nats.times import micros
from omniq_nats.transport import Stored, Transport

__all__ = ["DueCache", "is_due"]


class DueCache:
    """When the schedules of a namespace are due, as one storage knows it.

    A look asks for messages that were stored after the last one that is known, of which there are none most of the
    time, however many schedules there are. All of them are read at the first look, and after a loss of the connection:
    what the servers have then need not be what they had. That one was deleted is found out when it would be due.

    :param transport: to read with.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._names = transport.settings.names
        self._lock = asyncio.Lock()
        self._generation = 0
        """Of the connection through which all were read; 0: they were not."""
        self._seen = 0
        """The highest sequence of a schedule that a look has found: all up to there is known."""
        self._known: dict[str, tuple[int, int | None]] = {}
        """By subject: the sequence of what is known of it, and when it is due; None: never."""
        self._runs: list[tuple[int, str]] = []
        """When they are due, in order, with their subjects."""

    # What is known

    def outlook(self, now: int) -> tuple[int, int | None]:
        """Return how many are due, and when the next of the others will be, in microseconds; None: none ever is."""
        end = bisect_right(self._runs, (now, "\uffff"))
        return end, self._runs[end][0] if end < len(self._runs) else None

    def due(self, now: int, limit: int) -> list[str]:
        """Return the subjects of those that are due, the earliest first."""
        end, _ = self.outlook(now)
        return [subject for _, subject in self._runs[: min(end, limit)]]

    def note(self, subject: str, seq: int, schedule: Schedule | None) -> None:
        """Take note of what is stored on a subject, unless something later is known.

        :param schedule: None: it cannot be read.
        """
        if seq < self._known.get(subject, (0, None))[0]:
            return
        self.forget(subject)
        run = None if schedule is None or schedule.paused or schedule.next_run is None else micros(schedule.next_run)
        if run is not None:
            insort(self._runs, (run, subject))
        self._known[subject] = seq, run

    def forget(self, subject: str) -> None:
        """Take note that a schedule is gone."""
        _, run = self._known.pop(subject, (0, None))
        if run is not None:
            del self._runs[bisect_left(self._runs, (run, subject))]

    # Looking

    async def look(self) -> None:
        """Bring what is known up to date."""
        async with self._lock:
            while True:
                generation = self._transport.generation
                await self._look(generation)
                # Otherwise the connection was lost, and the answer may be that of another one.
                if self._transport.generation == generation:
                    self._generation = generation
                    return

    async def _look(self, generation: int) -> None:
        if generation == self._generation:
            async for stored in self._transport.scan_all(self._names.schedules, self._seen + 1):
                self._take(stored)
        else:
            await self._read_all()

    async def _read_all(self) -> None:
        found = await self._transport.last_all(self._names.schedules)
        self._known.clear()
        self._runs.clear()
        self._seen = 0
        for stored in found:
            self._take(stored)

    def _take(self, stored: Stored) -> None:
        self._read(stored)
        self._seen = max(self._seen, stored.seq)

    def _read(self, stored: Stored) -> Schedule | None:
        schedule = readable(stored)
        self.note(stored.subject, stored.seq, schedule)
        return schedule

    async def read(self, subjects: Sequence[str]) -> list[Schedule]:
        """Read some schedules as they are now, and take note of it."""
        found = {stored.subject: stored for stored in await self._transport.last(subjects)}
        schedules = []
        for subject in subjects:
            stored = found.get(subject)
            if stored is None:
                self.forget(subject)
            elif (schedule := self._read(stored)) is not None:
                schedules.append(schedule)
        return schedules


def is_due(schedule: Schedule, now: int) -> bool:
    """Say whether a schedule is to be fired."""
    return schedule.next_run is not None and not schedule.paused and micros(schedule.next_run) <= now
