"""Knows which flows have something to be done, and when; reads only what has changed since it last looked."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.states import due_at
from omniq_nats.flow_records import FlowRecord, read_flow
from omniq_nats.names import readable
from omniq_nats.times import Clock, micros
from omniq_nats.transport import Stored, Transport

__all__ = ["FlowIndex"]

_log = get_logger("omniq.nats")


class FlowIndex:
    """The flows of a namespace that have not ended, as one storage knows them.

    As with schedules (:mod:`omniq_nats.due_cache`) a look asks for what was stored after the last message that is
    known. An empty message says that a flow has ended; it is there for some minutes, and a flow of which nothing was
    heard for so long is overdue.

    :param transport: to read with.
    :param clock: of the servers.
    """

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._names = transport.settings.names
        self._lock = asyncio.Lock()
        self._generation = 0
        """Of the connection through which all were read; 0: they were not."""
        self._seen = 0
        self._known: dict[str, tuple[int, int | None, dict[str, int]]] = {}
        """By id: the sequence of what is known of it, when it is due, and its blocked tasks by queue."""
        self._due: list[tuple[int, str]] = []
        """When they are due, in order, with their ids."""

    # What is known

    def due(self, now: int, limit: int) -> list[str]:
        """Return the ids of flows that are due, the earliest first."""
        return [flow_id for _, flow_id in self._due[: min(limit, bisect_right(self._due, (now, "\uffff")))]]

    def next_at(self, now: int) -> int | None:
        """Return when the next of those that are not due will be; None: none ever is."""
        end = bisect_right(self._due, (now, "\uffff"))
        return self._due[end][0] if end < len(self._due) else None

    def blocked(self) -> dict[str, int]:
        """Return how many tasks are blocked in each queue that has any."""
        counts: dict[str, int] = {}
        for _, _, blocked in self._known.values():
            for queue, number in blocked.items():
                counts[queue] = counts.get(queue, 0) + number
        return counts

    def with_blocked(self, queue: str) -> list[str]:
        """Return the flows that have blocked tasks in a queue."""
        return [flow_id for flow_id, (_, _, blocked) in self._known.items() if queue in blocked]

    def note(self, record: FlowRecord) -> None:
        """Take note of a flow as it is stored, unless something later is known."""
        flow = record.flow
        if record.seq < self._known.get(flow.id, (0, None, {}))[0]:
            return
        self.forget(flow.id)
        if flow.finished_at is None:
            at = due_at(flow)
            due = None if at is None else micros(at)
            self._known[flow.id] = record.seq, due, record.blocked
            if due is not None:
                insort(self._due, (due, flow.id))

    def forget(self, flow_id: str) -> None:
        """Take note that a flow is gone, has ended, or cannot be read."""
        _, due, _ = self._known.pop(flow_id, (0, None, {}))
        if due is not None:
            del self._due[bisect_left(self._due, (due, flow_id))]

    # Looking

    async def look(self) -> None:
        """Bring what is known up to date."""
        async with self._lock:
            while True:
                generation = self._transport.generation
                if generation == self._generation:
                    async for stored in self._transport.scan_all(self._names.flows, self._seen + 1):
                        self._take(stored)
                else:
                    found = await self._transport.last_all(self._names.flows)
                    self._known.clear()
                    self._due.clear()
                    self._seen = 0
                    for stored in found:
                        self._take(stored)
                # Otherwise the connection was lost, and the answer may be that of another one.
                if self._transport.generation == generation:
                    self._generation = generation
                    return

    async def look_closely(self) -> None:
        """The same, and look at each flow that is due, whether it is there."""
        await self.look()
        due = self.due(self._clock.now(), len(self._due))
        for start in range(0, len(due), 250):
            wanted = {self._names.either_flow(one): one for one in due[start : start + 250]}
            found: dict[str, list[Stored]] = {one: [] for one in wanted.values()}
            for stored in await self._transport.last(list(wanted)):
                found.setdefault(readable(stored.subject.rpartition(".")[2]), []).append(stored)
            for flow_id, both in found.items():
                self._note(flow_id, both)

    def _take(self, stored: Stored) -> None:
        self._seen = max(self._seen, stored.seq)
        self._note(readable(stored.subject.rpartition(".")[2]), [stored])

    def _note(self, flow_id: str, found: list[Stored]) -> None:
        try:
            record = read_flow(flow_id, found)
        except CorruptRecord as problem:
            log_once(_log, problem, self._transport.settings.shown)
            record = None
        if record is None:
            self.forget(flow_id)
        else:
            self.note(record)
