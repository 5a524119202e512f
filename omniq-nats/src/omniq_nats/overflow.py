"""Keeps waiting tasks apart from their queue state where there are too many for it, such as a million for next month.

An overflow page is a message with tasks of one priority in order. It never changes: tasks are taken from its beginning,
and how many were is in the queue state; where one is taken out of its middle, a new overflow page replaces it. Queue
states stay small therefore, and a claim reads an overflow page only if the first task on it is due.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import merge

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.task import TaskState
from omniq_nats.encoding import encode_entries, read_entries
from omniq_nats.entries import Entry, OverflowPage, overflow_page_of
from omniq_nats.names import line_of
from omniq_nats.queue_state import QueueState
from omniq_nats.transport import Conflict, Transport, Write

__all__ = ["LARGEST", "Overflow"]

_log = get_logger("omniq.nats")

MOST_IN_BOOK = 64
KEPT_IN_BOOK = 16
LARGEST = 4000
"""Tasks on one overflow page."""
MOST_DUE = 1000
"""Tasks with keys or named limits that are due, and wait in the queue state itself; more wait until these start."""
DUE_SHARE = 1024
"""Bytes of the largest message for each of these."""
MOST_SMALL = 12
"""So many small overflow pages of one priority there may be before they are made into large ones."""
REMEMBERED = 24


class Overflow:
    """The overflow pages of all queues, as one storage sees them.

    :param transport: to read and write with.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._names = transport.settings.names
        self._known: OrderedDict[str, list[Entry]] = OrderedDict()
        self._torn: dict[str, CorruptRecord] = {}
        """The names of those that cannot be read: nothing is taken from them until the queue state is rebuilt."""
        self._missing: set[str] = set()

    @property
    def most_due(self) -> int:
        """So many tasks with keys or named limits that are due wait in a queue state itself."""
        return min(MOST_DUE, self._transport.max_payload // DUE_SHARE)

    async def read(self, queue: str, overflow_page: OverflowPage) -> list[Entry]:
        """Return the tasks that are on an overflow page; none if it cannot be read. They must not be changed."""
        return (await self._all(queue, overflow_page))[overflow_page.taken :]

    async def _all(self, queue: str, overflow_page: OverflowPage) -> list[Entry]:
        entries = self._known.get(overflow_page.name)
        if entries is None:
            stored = await self._transport.last([self._names.overflow_page(queue, overflow_page.name)])
            if not stored and overflow_page.name not in self._missing:
                self._missing.add(overflow_page.name)
                raise Conflict(f"overflow page {overflow_page.name} of queue {queue!r} was replaced")
            self._missing.discard(overflow_page.name)
            try:
                if not stored:
                    # The queue state was read anew since it was missed first.
                    raise corrupt("waiting tasks", None, f"overflow page {overflow_page.name} is not there")
                entries = read_entries(stored[0])
                if len(entries) != overflow_page.count:
                    raise corrupt("waiting tasks", None, "there are not as many as the queue's record says")
            except CorruptRecord as problem:
                log_once(_log, problem, self._transport.settings.shown)
                self._torn[overflow_page.name] = problem
                return []
            self._remember(overflow_page.name, entries)
        return entries

    def _remember(self, name: str, entries: list[Entry]) -> None:
        self._known[name] = entries
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def draw(self, queue_state: QueueState, priority: int, before: tuple[int, int]) -> None:
        """Move tasks from overflow pages into the queue state until whichever comes first in a priority is there.

        :param before: only such as come before this key.
        """
        while True:
            waiting = queue_state.back.get(line_of(priority))
            limit = min(before, waiting[0].key) if waiting else before
            first = min(
                (
                    overflow_page
                    for overflow_page in self._whole(queue_state)
                    if overflow_page.priority == priority and not overflow_page.is_lined and overflow_page.key < limit
                ),
                key=lambda overflow_page: overflow_page.key,
                default=None,
            )
            if first is None:
                return
            await self.take(queue_state, first, 1)

    async def draw_lined(self, queue_state: QueueState, now: int) -> bool:
        """Move tasks with keys or named limits into the queue state whose time has come, as far as there is room."""
        drawn = False
        room = self.most_due - sum(entry.limited is not None for entry in queue_state.waiting.values())
        for overflow_page in sorted(self._whole(queue_state), key=lambda one: one.key):
            while room > 0 and overflow_page.is_lined and overflow_page.left and overflow_page.at <= now:
                taken = await self.take(queue_state, overflow_page, 1)
                room -= len(taken)
                drawn = True
                if not taken:
                    break
        return drawn

    async def take(self, queue_state: QueueState, overflow_page: OverflowPage, number: int) -> list[Entry]:
        """Move tasks from the beginning of an overflow page into the queue state."""
        entries = await self._all(queue_state.queue, overflow_page)
        if not entries:
            return []
        taken = [evolve(entry) for entry in entries[overflow_page.taken : overflow_page.taken + number]]
        for entry in taken:
            queue_state.put_back(entry)
        overflow_page.taken += len(taken)
        if overflow_page.left:
            overflow_page.at, overflow_page.rank = entries[overflow_page.taken].key
        else:
            self.drop(queue_state, overflow_page)
        return taken

    async def problem_of(self, queue: str, overflow_page: OverflowPage) -> CorruptRecord | None:
        """Return why an overflow page cannot be read; None: it can."""
        await self._all(queue, overflow_page)
        return self._torn.get(overflow_page.name)

    def has_torn(self, queue_state: QueueState) -> bool:
        """Return whether one of the overflow pages of a queue state turned out to be unreadable."""
        return bool(self._torn) and any(overflow_page.name in self._torn for overflow_page in queue_state.overflow)

    def _whole(self, queue_state: QueueState) -> list[OverflowPage]:
        """Return the overflow pages that are not known to be unreadable."""
        return [overflow_page for overflow_page in queue_state.overflow if overflow_page.name not in self._torn]

    def drop(self, queue_state: QueueState, overflow_page: OverflowPage) -> None:
        """Take an overflow page off a queue state."""
        queue_state.overflow.remove(overflow_page)
        queue_state.spent.append(overflow_page.name)

    async def take_out(self, queue_state: QueueState, wanted: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        """Move tasks into the queue state from wherever on the overflow pages they are.

        :param wanted: sequences of their batches and their numbers, and the keys of each.
        """
        for overflow_page in list(queue_state.overflow):
            if any(overflow_page.key <= key and key[0] <= overflow_page.last_at for key in wanted.values()):
                await self.sift(queue_state, overflow_page, lambda entry: (entry.seq, entry.index) in wanted)

    async def take_expired(self, queue_state: QueueState, now: int, limit: int) -> None:
        """Move tasks that are no longer worth starting into the queue state, but for those of flows."""
        for overflow_page in list(queue_state.overflow):
            if limit > 0 and overflow_page.expires is not None and overflow_page.expires <= now:
                limit -= await self.sift(
                    queue_state, overflow_page, lambda entry: entry.flow is None and entry.is_expired(now), limit
                )

    async def sift(
        self,
        queue_state: QueueState,
        overflow_page: OverflowPage,
        is_wanted: Callable[[Entry], bool],
        limit: int | None = None,
    ) -> int:
        """Move some of the tasks on an overflow page into the queue state; say how many."""
        entries = await self.read(queue_state.queue, overflow_page)
        found = [entry for entry in entries if is_wanted(entry)][:limit]
        if found:
            gone = {entry.id for entry in found}
            self.drop(queue_state, overflow_page)
            await self._put(queue_state, [entry for entry in entries if entry.id not in gone])
            for entry in found:
                queue_state.put_back(evolve(entry))
        return len(found)

    async def lay_aside(self, queue_state: QueueState, now: int) -> None:
        """Move the latest of a queue state's waiting tasks to overflow pages, if there are too many."""
        if len(queue_state.waiting) > MOST_IN_BOOK:
            ordered = sorted(queue_state.waiting.values(), key=lambda entry: entry.key)
            # A claim of a queue with limits must have in hand what is due, and may be held back.
            held = [entry for entry in ordered if entry.limited is not None and entry.at <= now]
            kept = {entry.id for entry in held[: self.most_due]}
            entries = [entry for entry in ordered if entry.id not in kept]
            entries = entries[KEPT_IN_BOOK:] if len(entries) > MOST_IN_BOOK else held[self.most_due :]
            by_priority: defaultdict[tuple[int, bool], list[Entry]] = defaultdict(list)
            for entry in entries:
                queue_state.withdraw(entry)
                by_priority[entry.priority, entry.limited is not None].append(entry)
                if (entry.delivery or entry.has_fate) and not entry.has_error:
                    # What it has been through must be known without looking through the overflow pages.
                    queue_state.note(entry, queue_state.end_record_of(entry, TaskState.SCHEDULED, now))
            for some in by_priority.values():
                await self._put(queue_state, some)
        await self._unite(queue_state)

    async def _unite(self, queue_state: QueueState) -> None:
        small: defaultdict[tuple[int, bool], list[OverflowPage]] = defaultdict(list)
        for overflow_page in self._whole(queue_state):
            if overflow_page.left < LARGEST // 2:
                small[overflow_page.priority, overflow_page.is_lined].append(overflow_page)
        for overflow in small.values():
            if len(overflow) > MOST_SMALL:
                parts = [await self.read(queue_state.queue, overflow_page) for overflow_page in overflow]
                for overflow_page, part in zip(overflow, parts, strict=True):
                    if part:
                        self.drop(queue_state, overflow_page)
                await self._put(queue_state, list(merge(*parts, key=lambda entry: entry.key)))

    async def _put(self, queue_state: QueueState, entries: Sequence[Entry]) -> None:
        for start in range(0, len(entries), LARGEST):
            some = list(entries[start : start + LARGEST])
            name = secrets.token_hex(8)
            await self._transport.store(Write(self._names.overflow_page(queue_state.queue, name), encode_entries(some)))
            self._remember(name, some)
            queue_state.overflow.append(overflow_page_of(name, some))
            queue_state.laid.append(name)

    async def remove(self, queue: str, names: Iterable[str]) -> None:
        """Remove overflow pages."""
        for name in names:
            self._known.pop(name, None)
            await self._transport.purge(self._names.overflow_page(queue, name))
