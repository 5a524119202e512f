"""Stores tasks as they are enqueued: all of a call in one step, as far as the servers' limits allow."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections.abc import Iterable, Sequence

from attrs import define, field

from omniq.errors import StorageUnavailable
from omniq.storage import Enqueued
from omniq.task import NewTask
from omniq_nats.claiming import fold
from omniq_nats.names import APART, BLOCKED_LINE, DUE_LINE, LARGE, SHARED, SINGLE, group_in, is_line, readable, token
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore, holder_of
from omniq_nats.standing import find_holding
from omniq_nats.sync_client import SyncClient
from omniq_nats.task_batches import Page, add_to_pages, check_new, encode_batch, guard_body, pages_of
from omniq_nats.times import moment
from omniq_nats.transport import BATCH_LIMIT, Conflict, Lost, Stored, Write

__all__ = ["ATOMIC_TASKS", "ATOMIC_UNIQUE_TASKS", "Entry", "Producer"]

TOLD = 4096
"""Bytes: so large may be what the servers pass on to all workers that wait for work."""
MOST_TOGETHER = BATCH_LIMIT - 8
"""So many messages go together; the rest is for what else belongs to the step, such as a schedule."""
ATOMIC_TASKS = MOST_TOGETHER // 2
"""So many tasks go together however they are mixed: at worst each has its body in a message of its own."""
ATOMIC_UNIQUE_TASKS = MOST_TOGETHER // 3
"""The same, where each needs a message for its unique key, too."""


@define(eq=False)
class Entry:
    """A task on its way into the store."""

    task: NewTask
    number: int = 0
    """Its number among those that are stored together."""
    answer: Enqueued | None = None
    key_seq: int = 0
    """The sequence of the message that says to whom its unique key belongs."""

    @property
    def is_created(self) -> bool:
        """Whether it was stored."""
        return self.answer is not None and self.answer.created


@define(eq=False)
class Batch:
    """What is stored together: some tasks, and what else belongs to the step."""

    entries: list[Entry]
    more: list[Write] = field(factory=list)
    nonce: str = field(factory=lambda: secrets.token_hex(8))
    unsure: bool = False
    """Whether an attempt to store it was not answered, and may have succeeded."""


class Producer:
    """Enqueues.

    :param state_store: of the storage.
    """

    def __init__(self, state_store: QueueStateStore) -> None:
        self._state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names
        self._lines: set[tuple[str, str]] = set()
        """Those that are known to be in the queue state of their queue, and therefore looked at by claims."""
        self._sync_client = SyncClient(self._transport.settings, lambda: self._transport.address, self._lines.clear)
        self._transport.renewed.append(self._lines.clear)
        self._transport.reborn.append(lambda: self._state_store.later(self._adopt()))
        self._unsure: dict[str, str] = {}
        """Of tasks that may have been stored on another thread: the nonce."""
        self._to_fold: set[str] = set()
        """Queues in which tasks that wait are about to be sorted in."""

    async def enqueue(self, tasks: Sequence[NewTask], more: Sequence[Write] = ()) -> list[Enqueued] | None:
        """Store tasks.

        :param more: further messages of the same step, which go with the first tasks if not all can go together.
        :return: for each task what became of it; None if ``more`` could not be stored as it expected something else.
        """
        for task in tasks:
            check_new(task)
            if task.flow is not None:
                raise ValueError(f"task {task.id} is of flow {task.flow}: it cannot be stored with a schedule's run")
        until = self._from_now()
        nonce = None
        if len(tasks) == 1 and not more and tasks[0].unique is None:
            answer, nonce = await self._enqueue_one(tasks[0])
            if answer is not None:
                return [answer]
        entries = [Entry(task) for task in tasks]
        for number, group in enumerate(_groups(entries, self._state_store.clock.now()) or [[]]):
            batch = Batch(group, list(more) if number == 0 else [])
            if nonce is not None:
                batch.nonce, batch.unsure = nonce, True
            if not await self._store(batch, until):
                return None
            until = self._from_now()
        await self._tell([entry.task for entry in entries if entry.is_created])
        return [entry.answer for entry in entries if entry.answer is not None]

    def _from_now(self) -> float:
        """Return until when servers that do not answer from now on are asked again, by the monotonic clock."""
        return time.monotonic() + self._transport.settings.timeout

    async def _enqueue_one(self, task: NewTask) -> tuple[Enqueued | None, str | None]:
        """Store a task in the shortest way, which is open to most.

        :return: the answer, or None if it takes the other way; and, if it may have been stored nevertheless, the nonce.
        """
        now = self._state_store.clock.now()
        nonce = self._unsure.pop(task.id, None) if self._unsure else None
        if nonce is not None:
            return None, nonce
        nonce = _nonce()
        page = _page_of(task, now)
        if (page.queue, page.line) not in self._lines:
            return None, None
        write, *behind = self._writes_of(page, now, nonce)
        generation = self._transport.generation
        try:
            seq = await (self._transport.batch([write, *behind]) if behind else self._transport.publish(write))
        except Conflict:
            return None, None
        except Lost:
            return None, nonce
        if generation != self._transport.generation:
            # The connection was lost meanwhile, and the line need not be in the queue state any more.
            await self._know([page])
        if len(write.data) > TOLD or behind:
            await self._tell([task])
        else:
            self._state_store.task_lookup.remember(task.id, Stored(write.subject, seq, write.data))
        if page.line == DUE_LINE:
            self.fold_later(task.queue)
        return Enqueued(task.id, True), None

    def enqueue_blocking(self, task: NewTask) -> Enqueued | None:
        """Store a task on the calling thread, in the shortest way of all.

        :return: None if it has to take another way.
        """
        check_new(task)
        if task.unique is not None:
            return None
        now = self._state_store.clock.now()
        page = _page_of(task, now)
        if page.line == DUE_LINE or (page.queue, page.line) not in self._lines:
            return None
        nonce = _nonce()
        write, *behind = self._writes_of(page, now, nonce)
        if len(write.data) > TOLD or behind:
            return None
        try:
            answer = self._sync_client.publish(write)
        except Lost:
            # The next call that enqueues it, in the other way, must know that it may be there, and is its own.
            self._unsure[task.id] = nonce
            return None
        if answer is None or "error" in answer or answer["stream"] != self._names.stream:
            return None
        self._state_store.task_lookup.remember(task.id, Stored(write.subject, answer["seq"], write.data))
        return Enqueued(task.id, True)

    def close(self) -> None:
        """Disconnect."""
        self._sync_client.close()

    def _writes_of(self, page: Page, now: int, nonce: str, behind: int = 0) -> list[Write]:
        """Return the messages of a batch of one task.

        :param behind: how many messages are stored together with it, and before it.
        """
        body = encode_batch(page, at=now, behind=behind, nonce=nonce)
        subject = self._names.batch(page.queue, _name_of_single(page, body))
        task_id = page.tasks[0][0].id
        write = Write(subject, body, expected=0, among=self._names.anywhere(task_id))
        return [write] if page.apart is None else [write, Write(self._names.body(task_id), page.apart)]

    async def _store(self, batch: Batch, until: float) -> bool:
        """Store a batch, however often it takes; say whether ``more`` was accepted.

        :param until: see :meth:`_from_now`.
        """
        deadline = time.monotonic() + 2 * self._transport.settings.timeout
        attempt = 0
        while True:
            rest, followers = _sorted_out(entry for entry in batch.entries if entry.answer is None)
            writes, pages = self._writes(rest, batch)
            if not writes and not batch.more:
                return True
            generation = self._transport.generation
            if await self._know(pages):
                until = self._from_now()
            try:
                await self._transport.batch([*batch.more, *writes], until=until)
            except Conflict:
                until = self._from_now()
                if batch.more and await self._fate_of_more(batch) is False:
                    return False
                await self._learn(rest, batch.nonce if batch.unsure else None)
            except Lost:
                if time.monotonic() >= until:
                    raise
                # It may have been stored all the same; the next attempt will meet it then.
                batch.unsure = True
                if batch.more and (stored := await self._fate_of_more(batch)) is not None:
                    if stored:
                        await self._learn(rest, batch.nonce)
                    return stored
            else:
                if generation != self._transport.generation:
                    await self._know(pages)
                for entry in rest:
                    entry.answer = Enqueued(entry.task.id, True)
                await self._follow(followers)
                return True
            if time.monotonic() > deadline:
                raise StorageUnavailable(
                    f"{self._transport.settings.shown}: too much is enqueued at once; no turn came"
                )
            attempt += 1
            await asyncio.sleep(random.uniform(0, min(0.001 * 2**attempt, 0.1)) if attempt > 1 else 0)

    async def _follow(self, followers: Sequence[tuple[Entry, Entry]]) -> None:
        """Answer those of which an earlier one of the same step has the id or the unique key."""
        if not followers:
            return
        places = await self._state_store.task_lookup.locate([entry.task.id for entry, _ in followers])
        for entry, leader in followers:
            # A task that is there already is named itself, whichever task has its key.
            entry.answer = Enqueued(entry.task.id if entry.task.id in places else leader.task.id, False)

    def _writes(self, entries: Sequence[Entry], batch: Batch) -> tuple[list[Write], list[Page]]:
        now = self._state_store.clock.now()
        pages = pages_of((entry.number, entry.task, *_times(entry.task, now)) for entry in entries)
        key_seqs = {entry.task.id: entry.key_seq for entry in entries}
        names = self._names
        writes: list[Write] = []
        keys: list[Write] = []
        behind = len(batch.more)
        for page in pages:
            place = behind + len(writes)
            if len(page.tasks) == 1:
                writes += self._writes_of(page, now, batch.nonce, place)
            else:
                body = encode_batch(page, at=now, behind=place, nonce=batch.nonce)
                task_batch = f"{page.line}-{SHARED}-{secrets.token_hex(8)}"
                writes.append(Write(names.batch(page.queue, task_batch), body, expected=0))
                for index, (task, _, _, _) in enumerate(page.tasks):
                    guard = names.guard(page.queue, page.line, task.id)
                    writes.append(
                        Write(guard, guard_body(task_batch, index), expected=0, among=names.anywhere(task.id))
                    )
            for task, _, _, _ in page.tasks:
                if task.unique is not None:
                    told = json.dumps([task.id]).encode()
                    keys.append(Write(names.key(task.unique), told, expected=key_seqs[task.id]))
        # A batch is followed by its guards, or its body, and nothing else.
        return writes + keys, pages

    async def _know(self, pages: Sequence[Page]) -> bool:
        """See to it that claims look at the lines of some pages before anything is stored there.

        :return: whether the servers were asked.
        """
        return any([await self.know_line(page.queue, page.line) for page in pages])

    def knows(self, queue: str, line: str) -> bool:
        """Return whether a line is known to be in the state of its queue, without a question."""
        return (queue, line) in self._lines

    async def know_line(self, queue: str, line: str) -> bool:
        """See to it that claims look at a line; return whether the servers were asked."""
        if (queue, line) in self._lines:
            return False

        async def step(queue_state: QueueState) -> tuple[None, bool]:
            if line in queue_state.lines:
                return None, False
            queue_state.lines[line] = [0, 0]
            queue_state.also.append(Write(self._names.note(queue, line), b"1"))
            return None, True

        await self._state_store.change(queue, step)
        self._lines.add((queue, line))
        return True

    async def _adopt(self) -> None:
        """See to it that claims look at every line that has tasks: their queue states may have been lost without them.

        Their producer knew the line to be in its queue state, and did not know yet that the queue state was lost.
        """
        lines = {
            tuple(subject.rsplit(".", 4)[1:3]) for subject in await self._transport.subjects(self._names.batches())
        }
        for queue, line in lines:
            if is_line(line) and line != BLOCKED_LINE and not group_in(line):
                await self.know_line(readable(queue), line)
                await self._transport.tell(self._names.work(readable(queue)), b"0")

    async def _fate_of_more(self, batch: Batch) -> bool | None:
        """Say whether what belongs to the step was stored (True), can no longer be (False), or still can (None)."""
        found = {stored.subject: stored for stored in await self._transport.last([one.subject for one in batch.more])}
        if all(one.subject in found and found[one.subject].data == one.data for one in batch.more):
            return True
        seqs = {subject: stored.seq for subject, stored in found.items()}
        return None if all(one.expected in (None, seqs.get(one.subject, 0)) for one in batch.more) else False

    async def _learn(self, entries: Sequence[Entry], nonce: str | None) -> None:
        """Find out who is there already, and who holds the unique keys.

        :param nonce: of an earlier attempt of ours that may have succeeded.
        """
        places, torn = await self._state_store.task_lookup.find([entry.task.id for entry in entries])
        removed = await self._state_store.removed(list(places.values()))
        for entry in entries:
            if entry.task.id in torn:
                entry.answer = Enqueued(entry.task.id, False)
            place = places.get(entry.task.id)
            if place is not None and (place[0].seq, place[1]) not in removed:
                entry.answer = Enqueued(entry.task.id, place[0].nonce == nonce)
        wanted = {
            self._names.key(entry.task.unique): entry
            for entry in entries
            if entry.answer is None and entry.task.unique is not None
        }
        if not wanted:
            return
        keys = {stored.subject: stored for stored in await self._transport.last(list(wanted))}
        holders = {subject: holder_of(stored.data) for subject, stored in keys.items()}
        live = await find_holding(self._state_store, [holder for holder in holders.values() if holder is not None])
        for subject, entry in wanted.items():
            holder = holders.get(subject)
            if holder in live:
                assert holder is not None
                entry.answer = Enqueued(holder, False)
            else:
                entry.key_seq = keys[subject].seq if subject in keys else 0

    async def _tell(self, tasks: Sequence[NewTask]) -> None:
        now = self._state_store.clock.now()
        due: dict[str, int] = {}
        to_fold: set[str] = set()
        for task in tasks:
            run_at, expires = _times(task, now)
            due[task.queue] = min(due.get(task.queue, run_at or 0), run_at or 0)
            if run_at is not None or expires is not None:
                to_fold.add(task.queue)
        for queue, at in due.items():
            await self._transport.tell(self._names.work(queue), b"%d" % at)
        for queue in to_fold:
            self.fold_later(queue)

    def fold_later(self, queue: str) -> None:
        """Sort in what waits, so that it is not left to the next claim; callers need not wait for it."""
        if queue not in self._to_fold:
            self._to_fold.add(queue)
            self._state_store.later(self._fold(queue))

    async def _fold(self, queue: str) -> None:
        async def step(queue_state: QueueState) -> tuple[None, bool]:
            # What is stored from here on may not be seen.
            self._to_fold.discard(queue)
            return None, await fold(self._state_store, queue_state)

        try:
            await self._state_store.change(queue, step)
        finally:
            self._to_fold.discard(queue)


def _nonce() -> str:
    """Return what tells attempts apart; asking the system for random bytes would take longer than all else here."""
    return f"{random.getrandbits(64):016x}"


def _page_of(task: NewTask, now: int) -> Page:
    return add_to_pages({}, task, 0, *_times(task, now))[0]


def _name_of_single(page: Page, body: bytes) -> str:
    kind = APART if page.apart is not None else SINGLE if len(body) <= TOLD else LARGE
    return f"{page.line}-{kind}-{token(page.tasks[0][0].id)}"


def _times(task: NewTask, now: int) -> tuple[int | None, int | None]:
    run_at = None if task.run_at is None else moment(task.run_at, now)
    expires = None if task.expires is None else moment(task.expires, now)
    return (run_at if run_at is not None and run_at > now else None), expires


def _sorted_out(entries: Iterable[Entry]) -> tuple[list[Entry], list[tuple[Entry, Entry]]]:
    """Tell those that can be stored from those whose id or unique key an earlier one has, and name that one."""
    rest: list[Entry] = []
    followers: list[tuple[Entry, Entry]] = []
    ids: dict[str, Entry] = {}
    keys: dict[str, Entry] = {}
    for entry in entries:
        unique = entry.task.unique
        leader = ids.get(entry.task.id) or (None if unique is None else keys.get(unique))
        if leader is not None:
            followers.append((entry, leader))
            continue
        ids[entry.task.id] = entry
        if unique is not None:
            keys[unique] = entry
        rest.append(entry)
    return rest, followers


def _groups(entries: Sequence[Entry], now: int) -> list[list[Entry]]:
    """Split into as few as can be stored together."""
    groups: list[list[Entry]] = []
    pages: dict[tuple[str, str], Page] = {}
    left = 0
    for entry in entries:
        cost = add_to_pages(pages, entry.task, 0, *_times(entry.task, now))[1] + (entry.task.unique is not None)
        if left < cost:
            groups.append([])
            left = MOST_TOGETHER
            pages.clear()
            cost = add_to_pages(pages, entry.task, 0, *_times(entry.task, now))[1] + (entry.task.unique is not None)
        entry.number = len(groups[-1])
        groups[-1].append(entry)
        left -= cost
    return groups
