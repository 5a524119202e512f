"""Keeps the state of each queue: reads it, changes it step by step, and does what a change leaves to be done.

A change is one message that replaces the queue state as it was read. The second of two is refused, reads again and
does its step anew. What a change could not do by itself, as it is in other messages (results to be put on their pages,
messages of removed tasks to be taken away), is written down in the queue state and done afterwards, by whoever made the
change or, if that one died, by whoever changes the queue state next.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from omniq.errors import CorruptRecord, PayloadTooLarge, StorageError, StorageUnavailable
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq_nats.commit_queue import Commit, CommitQueue, Step
from omniq_nats.contention import Contention
from omniq_nats.encoding import encode_queue_state
from omniq_nats.entries import Entry
from omniq_nats.lazy_rows import Pending
from omniq_nats.limits import LimitRecords
from omniq_nats.overflow import Overflow
from omniq_nats.queue_state import QueueState
from omniq_nats.rebuilding import rebuild
from omniq_nats.result_pages import ResultPages, holder_of
from omniq_nats.results import EndRecord
from omniq_nats.task_lookup import TaskLookup
from omniq_nats.times import Clock
from omniq_nats.transport import Conflict, Lost, Transport, Write

__all__ = ["QueueStateStore", "holder_of"]

_log = get_logger("omniq.nats")

T = TypeVar("T")

LEFT_BEHIND = 3_000_000
"""Microseconds after which what another client left to do is done for it."""
MOST_PENDING = 600
MOST_BROUGHT = 100_000
POLL = 0.02
"""Seconds between looks at a queue state that another has reserved, at most."""
LOST = 2
"""Of so many races that a change of a queue with limits has lost, it reserves the queue's state before the next."""
SHORTEST = 0.1
"""Seconds for which it does so at least."""
LONGEST = 2.0
"""And at most."""
REMEMBERED = 48
"""So many of the latest changes are known by name: a caller that lost the answer sees that its change was accepted."""


class QueueStateStore(ResultPages):
    """The queue states of one storage object.

    :param transport: open while the storage is.
    :param clock: of the servers.
    """

    def __init__(self, transport: Transport, clock: Clock) -> None:
        super().__init__(transport, clock)
        self.task_lookup = TaskLookup(transport)
        self.overflow = Overflow(transport)
        self.limits = LimitRecords(transport, clock)
        self._queue_states: dict[str, QueueState] = {}
        self._generation = transport.generation
        self._contention = Contention(transport)
        self._commit_queue = CommitQueue(self._change, self._contention)
        self._cleared: set[str] = set()
        self._me = secrets.token_hex(6)
        self._chores: set[asyncio.Task[None]] = set()
        transport.renewed.append(self._forget)

    def _forget(self) -> None:
        self._queue_states.clear()
        self._pages.clear()
        self._brought.clear()
        self._buried.clear()
        self._cleared.clear()

    async def close(self) -> None:
        """Do what is left to do, as far as the servers can be reached."""
        chores = list(self._chores)
        if chores:
            _, late = await asyncio.wait(chores, timeout=self.transport.settings.timeout)
            for chore in late:
                chore.cancel()
        self._queue_states.clear()

    async def errors(
        self, queue_state: QueueState, entries: Sequence[Entry], *, whole: bool = False
    ) -> dict[str, EndRecord]:
        """Return the end records that have what earlier attempts left, by the ids of the tasks of which that is kept.

        :param whole: with what is kept in messages of their own, and without those that cannot be read.
        """
        entries = [entry for entry in entries if entry.has_error]
        if not entries:
            return {}
        batches = await self.task_lookup.of_slots(queue_state.queue, entries)
        end_records = await self.end_records(
            queue_state, [(batches[entry.seq], entry.index) for entry in entries if entry.seq in batches]
        )
        if whole:
            await self.whole(end_records, {(entry.seq, entry.index): entry.id for entry in entries})
        return {
            entry.id: end_records[entry.seq, entry.index]
            for entry in entries
            if (entry.seq, entry.index) in end_records and not (whole and end_records[entry.seq, entry.index].is_torn)
        }

    # Changing

    async def change(
        self, queue: str, step: Step[T], *, remembered: bool = True, share: float = 1.0, frees: bool = False
    ) -> T:
        """Change a queue state in one step, and give the step's result.

        :param step: called with the queue state as it is; once more for each time that another was quicker. What
            it did to a queue state that was not accepted does not count.
        :param remembered: whether the step may first see the queue state as it is remembered; if it leaves that as it
            is, it is called again with the queue state as it is now.
        :param share: how much of the largest message the queue state may take after it: the rest is for changes that
            come after this one and that must be possible, as the end of a task that was claimed.
        :param frees: whether it is part of the removal of something, for which there is a reserve in a full stream.
        :raises StorageUnavailable: if it could not be done in time.
        :raises PayloadTooLarge: if the queue state would be too large.
        """
        return await self._commit_queue.take(queue, Commit(step, remembered, share, frees))

    async def _change(self, queue: str, commit_queue: Sequence[Commit[Any]]) -> None:
        """Make several changes of a queue state in one step."""
        deadline = time.monotonic() + 2 * self.transport.settings.timeout
        unsure: dict[str, tuple[QueueState, list[tuple[Commit[Any], Any]]]] = {}
        left = list(commit_queue)
        known = 0
        is_rebuilt = has_torn_lines = is_held = False
        for attempt in range(1_000_000):
            begun = time.monotonic()
            generation = self.transport.generation
            is_remembered = attempt == 0 and all(commit.remembered for commit in left)
            if self._contention.have_changed(queue) or self._generation != self.transport.generation:
                is_remembered = False
            self._generation = self.transport.generation
            queue_state = self._queue_states.pop(queue, None) if is_remembered else None
            is_fresh = queue_state is None
            if queue_state is not None:
                known = max(known, queue_state.changes)
            else:
                queue_state = (await self.read([queue], whole=False))[queue]
                if queue_state.changes < known and queue_state.problem is None:
                    # Queue states only ever grow older: this one is of another stream.
                    known = 0
                    await self.transport.find_again()
                    continue
                # Who knows a change by its name knows that it was accepted.
                accepted = next((name for name in unsure if name in queue_state.recent), None)
                if accepted is not None:
                    self._see_to(unsure[accepted][0])
                    _give(unsure[accepted][1])
                    return
            if self.is_reserved(queue_state) and time.monotonic() < deadline:
                await asyncio.sleep(random.uniform(0, POLL))
                continue
            if is_held and queue_state.reserved is not None and queue_state.reserved[0] == self._me:
                queue_state.reserved = None  # this is the change for which it is
            name = secrets.token_hex(5)
            try:
                is_sound = self._is_sound(queue_state) and not has_torn_lines
                if not is_rebuilt and not (is_sound and queue_state.seq):
                    has_changed, is_rebuilt = await self._rebuild(queue), True
                    if has_changed:
                        continue
                results, changed = await self._try(queue_state, left)
                if results is None:
                    continue
                if changed and queue_state.problem is not None:
                    raise queue_state.problem
                if is_sound and not is_rebuilt and not self._is_sound(queue_state):
                    # What cannot be read was come upon on the way.
                    self._give_up(queue_state)
                    continue
                if not changed:
                    if is_fresh:
                        self._queue_states[queue] = queue_state
                        _give(results)
                        return
                elif generation != self.transport.generation:
                    # What was read may never have been, and its sequence may be that of another queue state by now.
                    raise Conflict("the connection was lost")
                elif await self._is_committed(queue_state, name, deadline, left):
                    _give(results)
                    return
                else:
                    unsure[name] = queue_state, results
            except CorruptRecord:
                problem = _problem_of(queue_state)
                if problem is None or is_rebuilt:
                    raise
                log_once(_log, problem, self.transport.settings.shown)
                has_torn_lines = True
            except Conflict as conflict:
                # Another was quicker; or an overflow page that the queue state speaks of was replaced, and the
                # queue state with it.
                self._give_up(queue_state)
                if queue_state.stream_end is None:
                    await self._contention.lost(queue, again=attempt > 0 and queue_state.lane is not None)
                    await self._contention.begin(queue)
                if time.monotonic() > deadline:
                    raise StorageUnavailable(
                        f"{self.transport.settings.shown}: queue {queue!r} is changed by so many at once that no turn "
                        f"came: {conflict}"
                    ) from conflict
                if queue_state.lane is not None and attempt >= LOST:
                    # What looks at limits takes longer than most changes, and would lose every race with them.
                    is_held = await self._hold(queue, time.monotonic() - begun) or is_held
                    continue
                # Who has the turn loses to such as do not know of it, and is to be quicker than these.
                if not self._contention.are_there(queue):
                    await asyncio.sleep(random.uniform(0, min(0.0005 * 2 ** min(attempt, 7), 0.05)))
        raise AssertionError

    async def _hold(self, queue: str, took: float) -> bool:
        """Reserve a queue state for a change that is under way here; return whether that was done.

        :param took: how long the change took when it was last tried.
        """
        queue_state = (await self.read([queue], whole=False))[queue]
        if queue_state.problem is not None or self.is_reserved(queue_state) or not queue_state.seq:
            return False
        seconds = min(max(SHORTEST, 4 * took), LONGEST, self.transport.settings.timeout)
        queue_state.reserved = self._me, self.clock.now() + int(seconds * 1_000_000)
        try:
            await self._commit(queue_state, secrets.token_hex(5), 1.0, False)
        except (Conflict, PayloadTooLarge):
            self._give_up(queue_state)
            return False
        except Lost:
            pass  # it may have been accepted all the same
        return True

    async def _rebuild(self, queue: str) -> bool:
        """Store a queue state without what of it cannot be read; return False if all of it can."""
        queue_state = await rebuild(self, self.task_lookup, self.overflow, queue)
        if queue_state is None:
            return False
        try:
            await self._commit(queue_state, secrets.token_hex(5), 1.0, True)
        except Conflict:
            self._give_up(queue_state)
            raise
        _log.warning(
            "the record of queue %r (%s) was made anew from its tasks, as not all of it could be read: tasks that "
            "ran, and of which that is not known any more, are ready again",
            queue,
            self.transport.settings.shown,
        )
        return True

    def _is_sound(self, queue_state: QueueState) -> bool:
        """Return False if there is something in a queue state that turned out to be unreadable."""
        return queue_state.problem is None and not self.overflow.has_torn(queue_state)

    async def _try(
        self, queue_state: QueueState, commit_queue: list[Commit[Any]]
    ) -> tuple[list[tuple[Commit[Any], Any]] | None, bool]:
        """Have those whose turn it is change a queue state.

        :return: their results, and whether any of them changed it; None instead if one failed, who is taken out then:
            what that step did to the queue state must not count, and the others are done once more.
        """
        queue_state.also = []
        queue_state.usages = {}
        queue_state.roused = set()
        queue_state.stream_end = None
        results: list[tuple[Commit[Any], Any]] = []
        changed = False
        for commit in list(commit_queue):
            try:
                result, has_changed = await commit.step(queue_state)
            except Conflict:
                raise
            except Exception as error:
                if len(commit_queue) == 1 or _problem_of(queue_state) is not None:
                    raise
                self._give_up(queue_state)
                commit.error = error
                commit_queue.remove(commit)
                return None, False
            results.append((commit, result))
            changed = changed or has_changed
        return results, changed

    async def _is_committed(
        self, queue_state: QueueState, name: str, deadline: float, commit_queue: Sequence[Commit[Any]]
    ) -> bool:
        """Store a queue state; False: no answer came, and it may have been accepted all the same."""
        share, frees = min(commit.share for commit in commit_queue), any(commit.frees for commit in commit_queue)
        try:
            await self._commit(queue_state, name, share, frees)
        except Lost:
            if not queue_state.committing or time.monotonic() > deadline:
                raise
            return False
        return True

    async def _commit(self, queue_state: QueueState, name: str, share: float, frees: bool) -> None:
        write = await self._write_of(queue_state, name, share)
        queue_state.committing = True
        also = [*queue_state.also, *self.limits.writes(queue_state.usages)]
        queue_state.seq = await self.transport.batch([write, *also], frees=frees)
        self._accepted(queue_state)

    async def _write_of(self, queue_state: QueueState, name: str, share: float) -> Write:
        """Return the message that makes a change of a queue state."""
        await self._tidy(queue_state)
        await self.overflow.lay_aside(queue_state, self.clock.now())
        queue_state.changes += 1
        queue_state.recent = [*queue_state.recent[1 - REMEMBERED :], name]
        queue_state.forget_passed()
        await self.limits.follow(queue_state)
        subject = self.names.queue_state(queue_state.queue)
        data = encode_queue_state(queue_state)
        limit = share * (self.transport.max_payload - 1024)
        if len(data) > limit:
            # Not what this very change brings: it is not accepted yet.
            await self._bring_and_drop(
                queue_state, {key: one for key, one in queue_state.pending.items() if one.version < queue_state.changes}
            )
            data = encode_queue_state(queue_state)
        if len(data) > limit:
            self._give_up(queue_state)
            raise PayloadTooLarge(
                f"the record of queue {queue_state.queue!r} would be {len(data):,} bytes, and the server's limit is "
                f"{self.transport.max_payload:,} (max_payload), of which it may have {share:.0%}: too many tasks run, "
                "wait or were cancelled at once, or have keys of their own; raise the limit, or spread them over more "
                "queues"
            )
        return Write(subject, data, expected=queue_state.seq, end=queue_state.stream_end)

    def _accepted(self, queue_state: QueueState) -> None:
        queue_state.committing = False
        queue_state.laid = []
        self._queue_states[queue_state.queue] = queue_state
        self._see_to(queue_state)
        if queue_state.roused:
            self.later(self.rouse(queue_state.roused))
            queue_state.roused = set()

    async def rouse(self, queues: Iterable[str]) -> None:
        """Have those who wait for work in some queues look again."""
        for queue in sorted(queues):
            await self.transport.tell(self.names.work(queue), b"0")

    @contextlib.asynccontextmanager
    async def turns(self, queues: Iterable[str]) -> AsyncIterator[None]:
        """Hold off all other changes of some queue states by this storage, and, where they heed it, by others."""
        async with contextlib.AsyncExitStack() as stack:
            for queue in sorted(queues):  # in one order, so that no two wait for each other
                await stack.enter_async_context(self._commit_queue.turn(queue))
            yield

    async def wait_for_turns(self, queues: Iterable[str]) -> None:
        """Let others go first that have the turn, before a change of some queue states is tried again."""
        for queue in sorted(queues):
            await self._contention.begin(queue)

    async def reserve(self, queues: Iterable[str], seconds: float) -> None:
        """Keep all others from changing some queue states, for one that takes longer than their changes do.

        It stands in the queue state, which each of them reads before it changes that, and it is made by a change that
        is as short as any. The change for which it is ends it, and otherwise the time does.

        :param seconds: for how long, at most; no longer than an answer is waited for.
        """
        until = self.clock.now() + int(min(seconds, self.transport.settings.timeout) * 1_000_000)

        async def step(queue_state: QueueState) -> tuple[None, bool]:
            queue_state.reserved = self._me, until
            return None, queue_state.seq > 0

        for queue in sorted(queues):
            with contextlib.suppress(PayloadTooLarge):
                await self.change(queue, step)

    def is_reserved(self, queue_state: QueueState) -> bool:
        """Whether another has reserved a queue state."""
        who, until = queue_state.reserved or (self._me, 0)
        now = self.clock.now()
        # What is further away was not reserved by this clock: it was put back.
        return who != self._me and now < until <= now + int(self.transport.settings.timeout * 1_000_000)

    async def commit_together(
        self,
        queue_states: Sequence[QueueState],
        name: str,
        before: Sequence[Write] = (),
        after: Sequence[Write] = (),
        *,
        frees: bool = False,
        share: float = 1.0,
    ) -> int:
        """Make changes of several queue states, and store other messages, all or none.

        :param name: of the change.
        :param before: messages that come before those of the queue states.
        :param after: and behind them.
        :param frees: see :meth:`change`.
        :param share: see there, too.
        :return: the sequence of the first message.
        :raises Conflict: if another was quicker.
        :raises Lost: if it is not known whether they were stored.
        :raises PayloadTooLarge: if one of them is too large, or they are too many for one step.
        """
        for queue_state in queue_states:
            queue_state.reserved = None
        try:
            usages = queue_states[0].usages if queue_states else {}
            assert all(queue_state.usages is usages for queue_state in queue_states)
            writes = [await self._write_of(queue_state, name, share) for queue_state in queue_states]
            first = await self.transport.batch([*before, *writes, *after, *self.limits.writes(usages)], frees=frees)
        except PayloadTooLarge:
            for queue_state in queue_states:
                self._give_up(queue_state)
            raise
        except Conflict:
            for queue_state in queue_states:
                self._give_up(queue_state)
                self._queue_states.pop(queue_state.queue, None)
                await self._contention.lost(queue_state.queue, again=True)
            raise
        for number, queue_state in enumerate(queue_states):
            queue_state.seq = first + len(before) + number
            self._accepted(queue_state)
        return first

    def _give_up(self, queue_state: QueueState) -> None:
        """Take away what was stored for a change that did not come about."""
        if queue_state.laid:
            self.later(self.overflow.remove(queue_state.queue, queue_state.laid))

    async def _tidy(self, queue_state: QueueState) -> None:
        now = self.clock.now()
        for task_id, one in list(queue_state.pending.items()):
            if self._brought.get(task_id, -1) >= one.version:
                del queue_state.pending[task_id], self._brought[task_id]
        for place in list(queue_state.tombstones):
            if place in self._buried:
                del queue_state.tombstones[place]
                self._buried.discard(place)
        if len(self._brought) > MOST_BROUGHT:
            self._brought.clear()
        # Not what this very change brings: it is not accepted yet.
        known = {task_id: one for task_id, one in queue_state.pending.items() if one.version <= queue_state.changes}
        if len(queue_state.pending) <= MOST_PENDING:
            known = {task_id: one for task_id, one in known.items() if one.since < now - LEFT_BEHIND}
        await self._bring_and_drop(queue_state, known)
        queue_state.spent = [name for name in queue_state.spent if name not in self._cleared]
        self._cleared.intersection_update(queue_state.spent)
        left = [one for one in queue_state.tombstones.values() if one.since < now - LEFT_BEHIND]
        if left:
            await self.bury(queue_state.queue, left)
            for gone in left:
                del queue_state.tombstones[gone.place]
                self._buried.discard(gone.place)

    async def _bring_and_drop(self, queue_state: QueueState, known: dict[str, Pending]) -> None:
        if known:
            await self.bring(queue_state.queue, known)
            for task_id, one in known.items():
                if self._brought.pop(task_id, -1) >= one.version:
                    del queue_state.pending[task_id]

    def _see_to(self, queue_state: QueueState) -> None:
        fresh = {task_id: one for task_id, one in queue_state.pending.items() if one.version == queue_state.changes}
        if fresh:
            self.later(self.bring(queue_state.queue, fresh))
        if queue_state.spent:
            self.later(self._clear_away(queue_state.queue, list(queue_state.spent)))

    async def _clear_away(self, queue: str, names: list[str]) -> None:
        await self.overflow.remove(queue, names)
        self._cleared.update(names)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that no caller waits for; what fails is left to the next process."""

        async def guarded() -> None:
            try:
                await work
            except StorageError as error:
                _log.debug("left to be done by the next process: %s", error)

        chore = asyncio.get_running_loop().create_task(guarded())
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    def is_quiet(self, queue: str) -> bool:
        """Whether no other process seems to store anything at the moment, and this one does not either."""
        return self.transport.is_quiet and not self._chores and not self._contention.are_there(queue)

    def forget(self, queues: Iterable[str]) -> None:
        """Read the queue states of some queues anew before they are next changed."""
        for queue in queues:
            self._queue_states.pop(queue, None)

    def remembered_states(self) -> list[tuple[str, QueueState]]:
        """Return those queue states that are remembered, by queue."""
        return list(self._queue_states.items())

    def remembered(self, queue: str) -> QueueState | None:
        """Return a queue state as it was when it was last read or changed here."""
        return self._queue_states.get(queue)


def _problem_of(queue_state: QueueState) -> CorruptRecord | None:
    """Return why a queue state cannot be read; None: it can."""
    try:
        queue_state.check()
    except CorruptRecord as problem:
        return problem
    return queue_state.problem


def _give(results: Sequence[tuple[Commit[Any], Any]]) -> None:
    for commit, result in results:
        commit.result, commit.error = result, None
