"""The pages of results: puts end records on them, finds them there, and takes away what was removed."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.validation import UNREADABLE, check_text
from omniq_nats.encoding import read_queue_state
from omniq_nats.entries import Tombstone
from omniq_nats.lazy_rows import Pending
from omniq_nats.names import APART, SHARED, readable, split_batch
from omniq_nats.queue_state import QueueState
from omniq_nats.results import (
    LISTED,
    EndRecord,
    ResultPage,
    new_page,
    number_on_page,
    page_to_write,
    read_page,
    torn_fate,
)
from omniq_nats.task_batches import KEPT, TaskBatch
from omniq_nats.times import Clock
from omniq_nats.transport import Conflict, Lost, Stored, Transport, Write

__all__ = ["ResultPages", "holder_of"]

_log = get_logger("omniq.nats")

MOST_PAGES = 512


class ResultPages:
    """What is stored of a namespace apart from orders and overflow pages.

    :param transport: open while the storage is.
    :param clock: of the servers.
    """

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self.transport = transport
        self.clock = clock
        self.names = transport.settings.names
        self._pages: OrderedDict[str, ResultPage] = OrderedDict()
        self._page_turns: dict[str, asyncio.Lock] = {}
        self._brought: dict[str, int] = {}
        """Of each task whose end record is on its page: the end record's version."""
        self._buried: set[tuple[int, int]] = set()
        self._sound: dict[str, Set[bytes]] = {}
        """By queue: the lines of its state that were looked into when it was last read."""

    # Reading

    async def read(self, queues: Sequence[str], *, whole: bool = True) -> dict[str, QueueState]:
        """Return the queue states of some queues as they are now; an empty one where there is none. Not to be changed.

        :param whole: whether all of them is looked into at once, so that what cannot be read is known to be so.
        """
        names = self.names
        found = {
            stored.subject: stored
            for stored in await self.transport.last([names.queue_state(queue) for queue in queues])
        }
        queue_states = {}
        self.transport.last_seen = max([self.transport.last_seen, *(stored.seq for stored in found.values())])
        for queue in queues:
            stored = found.get(names.queue_state(queue))
            queue_states[queue] = QueueState(queue) if stored is None else self.book_of(queue, stored, whole=whole)
        return queue_states

    def book_of(self, queue: str, stored: Stored, *, whole: bool = True) -> QueueState:
        """Read a queue state; of one that cannot be read it is said why, and nothing else."""
        try:
            queue_state = read_queue_state(queue, stored)
            if whole:
                if queue not in self._sound and len(self._sound) >= MOST_PAGES:
                    self._sound.clear()
                self._sound[queue] = queue_state.check(self._sound.get(queue, frozenset()))
        except CorruptRecord as problem:
            log_once(_log, problem, self.transport.settings.shown)
            return QueueState(queue, stored.seq, problem=problem)
        return queue_state

    async def read_all(self) -> dict[str, QueueState]:
        """Return the queue states of all queues as they are now, by name. Not to be changed."""
        queue_states = {}
        for stored in await self.transport.last_all(self.names.queue_states):
            queue = readable(stored.subject.rpartition(".")[2])
            queue_states[queue] = self.book_of(queue, stored)
        return queue_states

    # End records

    async def bring(self, queue: str, pending: dict[str, Pending]) -> None:
        """Put end records on their pages of results."""
        by_page: defaultdict[str, dict[str, Pending]] = defaultdict(dict)
        for task_id, one in pending.items():
            batch, _, seq, _, ttl, *_ = one.row
            by_page[self.names.results(queue, ttl, batch, seq)][task_id] = one
        pages = [self._bring(queue, subject, some) for subject, some in by_page.items()]
        if len(pages) == 1:
            # At once, so that it goes out together with the word that the task has ended.
            await pages[0]
        else:
            await asyncio.gather(*pages)

    async def _bring(self, queue: str, subject: str, pending: dict[str, Pending]) -> None:
        commit = self._page_turns.setdefault(subject, asyncio.Lock())
        async with commit:
            await self._bring_in_turn(queue, subject, pending)
        if len(self._page_turns) > MOST_PAGES:
            self._page_turns = {name: lock for name, lock in self._page_turns.items() if lock.locked()}

    async def _bring_in_turn(self, queue: str, subject: str, pending: dict[str, Pending]) -> None:
        first = next(iter(pending.values()))
        page = self._pages.pop(subject, None) or new_page(first.batch, first.seq, first.size)
        for attempt in range(1000):
            news: list[Pending] = []
            leaving: list[Pending] = []
            for one in pending.values():
                batch, index, seq, *_ = one.row
                number = number_on_page(batch, seq, index)
                known = page.state_of(number)
                if page.note(number, one.id, one.end_record, batch):
                    news.append(one)
                    if known in LISTED and one.end_record.state not in LISTED:
                        leaving.append(one)
            if not news:
                break
            # Before the page is replaced, each time: another process may meanwhile have taken one off the list.
            listed = await self._list(queue, news, leaving)
            try:
                page.seq = await self.transport.publish(Write(subject, page.encode(), expected=page.seq))
                if listed:
                    await self.transport.remove(listed)
                break
            except (Conflict, Lost):
                stored = await self.transport.last([subject])
                if not stored and page.seq:
                    # The page was taken away, and with it tasks that were removed.
                    pending = await self._still_pending(queue, pending)
                    if not pending:
                        return
                page = page_to_write(stored, first.batch, first.seq, first.size)
                if attempt:
                    await asyncio.sleep(random.uniform(0, min(0.001 * attempt, 0.05)))
        self._remember_page(subject, page)
        for task_id, one in pending.items():
            self._brought[task_id] = max(one.version, self._brought.get(task_id, -1))

    async def _list(self, queue: str, news: Sequence[Pending], leaving: Sequence[Pending]) -> list[int]:
        """Put those on the list that belong there; return the messages of others, once their page is replaced.

        :param leaving: those that belonged there before and do not any more.
        """
        joining = [one for one in news if one.end_record.state in LISTED]
        if joining:
            writes = [Write(self.names.listed(queue, one.id), b"%d %d" % (one.seq, one.index)) for one in joining]
            await asyncio.gather(*map(self.transport.store, writes))
        if not leaving:
            return []
        return [one.seq for one in await self.transport.last([self.names.listed(queue, one.id) for one in leaving])]

    async def _still_pending(self, queue: str, pending: dict[str, Pending]) -> dict[str, Pending]:
        queue_state = (await self.read([queue]))[queue]
        return {
            task_id: one
            for task_id, one in pending.items()
            if task_id in queue_state.pending and queue_state.pending[task_id].version == one.version
        }

    def _remember_page(self, subject: str, page: ResultPage) -> None:
        self._pages[subject] = page
        while len(self._pages) > MOST_PAGES:
            self._pages.popitem(last=False)

    async def end_records(
        self,
        queue_state: QueueState,
        wanted: Iterable[tuple[TaskBatch, int]],
        gone: set[tuple[int, int]] | None = None,
        pages: Mapping[str, Stored] | None = None,
    ) -> dict[tuple[int, int], EndRecord]:
        """Return the end records of tasks of a queue by their places; those that have none are left out.

        :param queue state: read before.
        :param gone: gets the places of those that were removed.
        :param pages: the pages of results by subject, if they were read with the queue state or after it.
        """
        wanted = list(wanted)
        missing = self._pages_of(queue_state, wanted)
        if not missing:
            return self.end_records_on(queue_state, wanted, {})
        read = await self.transport.last(list(missing)) if pages is None else pages.values()
        found = {
            stored.subject: read_page(
                stored, {number_on_page(batch.name, batch.seq, index) for batch, index in missing[stored.subject]}
            )
            for stored in read
            if stored.subject in missing
        }
        return self.end_records_on(queue_state, wanted, found, gone)

    def _pages_of(
        self, queue_state: QueueState, wanted: Iterable[tuple[TaskBatch, int]]
    ) -> defaultdict[str, list[tuple[TaskBatch, int]]]:
        """Return by the subjects of their pages of results those of some tasks whose end records may be there."""
        missing: defaultdict[str, list[tuple[TaskBatch, int]]] = defaultdict(list)
        for batch, index in wanted:
            one = queue_state.pending.get(batch.rows[index][0])
            if one is None or (one.seq, one.index) != (batch.seq, index):
                missing[self.names.results(queue_state.queue, batch.ttl, batch.name, batch.seq)].append((batch, index))
        return missing

    def end_records_on(
        self,
        queue_state: QueueState,
        wanted: Iterable[tuple[TaskBatch, int]],
        pages: Mapping[str, ResultPage],
        gone: set[tuple[int, int]] | None = None,
    ) -> dict[tuple[int, int], EndRecord]:
        """Return the end records of tasks of a queue as :meth:`end_records` does, of pages that were read.

        :param pages: by subject.
        """
        found: dict[tuple[int, int], EndRecord] = {}
        gone = set() if gone is None else gone
        wanted = list(wanted)
        missing = self._pages_of(queue_state, wanted)
        for batch, index in wanted:
            one = queue_state.pending.get(batch.rows[index][0])
            if one is not None and (one.seq, one.index) == (batch.seq, index):
                found[batch.seq, index] = one.end_record
        for subject, page in pages.items():
            for batch, index in missing.get(subject, ()):
                number = number_on_page(batch.name, batch.seq, index)
                if page.problem is not None:
                    found[batch.seq, index] = torn_fate(page.problem)
                    continue
                if not page.is_of(batch.name, batch.seq):
                    continue
                if number in page.end_records:
                    task_id, end_record, _ = page.end_records[number]
                    if task_id != batch.rows[index][0]:
                        end_record = torn_fate(corrupt("result", task_id, "it stands where another's should be"))
                    found[batch.seq, index] = end_record
                elif number in page.gone:
                    gone.add((batch.seq, index))
        for batch, index in wanted:
            past = batch.past(index)
            if past is not None and (batch.seq, index) not in gone:
                found.setdefault((batch.seq, index), past)
        return found

    async def whole(
        self, end_records: dict[tuple[int, int], EndRecord], ids: dict[tuple[int, int], str], *, bare: bool = False
    ) -> None:
        """Complete end records with what is kept in messages of their own.

        :param bare: whether what a bare list shows is enough.
        """
        apart = {
            self.names.blob(ids[place], end_record.blob): place
            for place, end_record in end_records.items()
            if end_record.blob is not None and not (bare and end_record.sizes is not None)
        }
        if apart:
            there = {stored.subject: stored.data for stored in await self.transport.last(list(apart))}
            for subject, place in apart.items():
                end_records[place] = end_records[place].whole(there.get(subject, b""))

    async def set_apart(self, left: dict[str, EndRecord], names: dict[str, str], inline: int) -> None:
        """Store what is large of end records in messages of their own, before the step that refers to them.

        :param left: by the ids of the tasks; what is large is replaced.
        :param names: of the messages that were stored before, by the same; the new ones are added.
        :param inline: bytes that are not large.
        """
        writes = []
        for task_id, end_record in left.items():
            if task_id not in names and not end_record.is_large(inline):
                continue
            is_new = task_id not in names
            name = names.setdefault(task_id, f"{end_record.delivery}-{secrets.token_hex(4)}")
            left[task_id], body = end_record.apart(name, inline)
            if is_new:
                writes.append(self.transport.store(Write(self.names.blob(task_id, name), body)))
        await asyncio.gather(*writes)

    # Removal

    async def removed(self, places: Sequence[tuple[TaskBatch, int]]) -> set[tuple[int, int]]:
        """Say which tasks were removed, but for their messages; take those away."""
        removed: set[tuple[int, int]] = set()
        for queue, queue_state in (await self.read(sorted({batch.queue for batch, _ in places}))).items():
            tombstones = [
                queue_state.tombstones[batch.seq, index]
                for batch, index in places
                if (batch.seq, index) in queue_state.tombstones
            ]
            if tombstones:
                await self.bury(queue, tombstones)
                removed.update(one.place for one in tombstones)
        return removed

    async def drop_pages(self, subjects: Sequence[str]) -> None:
        """Take away pages of results that tell of no task, of flows that are gone."""
        read = [read_page(stored) for stored in await self.transport.last(subjects)]
        await self.transport.remove(page.seq for page in read if not page.end_records and page.problem is None)

    async def bury(self, queue: str, tombstones: Sequence[Tombstone]) -> None:
        """Take away the messages of removed tasks."""
        by_page: defaultdict[str, list[Tombstone]] = defaultdict(list)
        for one in tombstones:
            by_page[self.names.results(queue, one.ttl, one.batch, one.seq)].append(one)
        stored = {
            found.subject: page_to_write([found], tombstones.batch, tombstones.seq, tombstones.size)
            for found in await self.transport.last(list(by_page))
            for tombstones in by_page[found.subject][:1]
        }
        gone: list[int] = []
        subjects: list[str] = []
        listed: list[str] = []
        await asyncio.gather(
            *(
                self._bury(queue, subject, some, stored.get(subject), gone, subjects, listed)
                for subject, some in by_page.items()
            )
        )
        gone += [found.seq for found in await self.transport.last(listed)] if listed else []
        # Several of them may have had one key, one after the other; any of these can be the one that has it now.
        keys: defaultdict[str, set[str]] = defaultdict(set)
        for one in tombstones:
            if one.unique is not None:
                keys[self.names.key(one.unique)].add(one.id)
        if keys:
            gone += [
                found.seq
                for found in await self.transport.last(list(keys))
                if holder_of(found.data) in keys[found.subject]
            ]
        await self.transport.remove(gone)
        # After their tasks: the body of a task that is there is there, too.
        await self.transport.remove(one.seq + 1 for one in tombstones if split_batch(one.batch)[1] == APART)
        for subject in subjects:
            await self.transport.purge(subject)
        self._buried.update(one.place for one in tombstones)

    async def _bury(
        self,
        queue: str,
        subject: str,
        tombstones: list[Tombstone],
        page: ResultPage | None,
        gone: list[int],
        subjects: list[str],
        listed: list[str],
    ) -> None:
        first = tombstones[0]
        is_shared = split_batch(first.batch)[1] == SHARED
        self._pages.pop(subject, None)
        if is_shared and page is None:
            line = first.batch.split("-", 1)[0]
            guards = {self.names.guard(queue, line, one.id): one for one in tombstones}
            there = {found.subject: found.seq for found in await self.transport.last(list(guards))}
            tombstones = [one for name, one in guards.items() if there.get(name) == one.seq + 1 + one.index]
            if not tombstones:
                return
        for _ in range(1000):
            if page is None or not page.is_of(first.batch, first.seq):
                page = new_page(first.batch, first.seq, first.size)
            for one in tombstones:
                end_record = page.forget(number_on_page(one.batch, one.seq, one.index))
                if end_record is not None and end_record.blob is not None:
                    subjects.append(self.names.blobs(one.id))
                if end_record is not None and end_record.state in LISTED:
                    listed.append(self.names.listed(queue, one.id))
            if page.is_spent and is_shared:
                gone.append(first.seq)
            if page.is_spent and first.ttl != KEPT:
                gone += [page.seq] if page.seq else []
                break
            # Of a flow's tasks it tells that they were removed for as long as the flow is there.
            try:
                await self.transport.publish(Write(subject, page.encode(), expected=page.seq), frees=True)
                break
            except (Conflict, Lost):
                stored = await self.transport.last([subject])
                page = page_to_write(stored, first.batch, first.seq, first.size) if stored else None
        # A guard of each, or the batch that each has to itself.
        gone += [one.seq + 1 + one.index if is_shared else one.seq for one in tombstones]


def holder_of(data: bytes) -> str | None:
    """Return the id of the task that a unique key belongs to, as the key's message says; None: it cannot be read."""
    try:
        return check_text(json.loads(data)[0], "holder")
    except UNREADABLE:
        return None
