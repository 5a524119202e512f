"""Runs steps of flows: reads what they need, does them at once, and stores what they change all or none.

A step runs the shared transitions over a snapshot. All that it changes (the flow's message, the states of the queues
whose tasks it ends or moves, new tasks) goes to the servers as one atomic batch, which they accept only if each of
these messages is still the one that was read. If one is not, the step is done again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from attrs import define, field

from omniq.errors import CorruptRecord, FlowClosed, StorageUnavailable
from omniq.task import NewTask, StoredTask
from omniq_nats.enqueueing import Producer
from omniq_nats.flow_changes import Changes, changes_of, limited_queues, lines_of
from omniq_nats.flow_index import FlowIndex
from omniq_nats.flow_records import FlowRecord
from omniq_nats.flow_snapshot import Missing, Rosters, Snapshot
from omniq_nats.flow_tx import FlowTx
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import POLL, QueueStateStore, holder_of
from omniq_nats.task_batches import KEPT
from omniq_nats.transport import Conflict, Lost

__all__ = ["FlowSteps", "Stepped"]

T = TypeVar("T")

LOST = 2
"""Of so many races that a step has lost, it reserves the states of its queues before the next."""
SHORTEST = 0.1
"""Seconds for which it does so at least, to begin with."""


class _Needs(Exception):
    """A step has to begin anew, with more in hand."""

    def __init__(
        self,
        queues: set[str] | None = None,
        lines: set[tuple[str, str]] | None = None,
        unmade: set[str] | None = None,
    ) -> None:
        self.queues = queues or set()
        """Queues whose states it changes."""
        self.lines = lines or set()
        """Queues and lines that claims do not look at yet."""
        self.unmade = unmade or set()
        """Queues of which there is no state: it may have been removed, and is made anew from the tasks first."""


@define(eq=False)
class Stepped:
    """What a step has done, beside its result."""

    ended: dict[str, int] = field(factory=dict)
    """The ids of tasks that have ended or are gone, each with the number of the change of its queue's state."""
    due: set[str] = field(factory=set)
    """Flows of which something is left to be done at once."""


@define(eq=False)
class _Plan:
    """A step, and what is known of it from earlier attempts."""

    first: Missing
    new: dict[str, NewTask | StoredTask]
    frees: bool
    fresh: bool
    deadline: float
    snapshot: Snapshot | None = None
    begun: float = 0.0
    """When the latest attempt began."""
    made: set[str] = field(factory=set)
    """Queues of which there was no state."""
    unsure: dict[str, tuple[object, Changes]] = field(factory=dict)
    """Attempts of which it is not known whether they were accepted, by name."""


class FlowSteps:
    """The steps of flows of one storage.

    :param state_store: of the storage.
    :param producer: sees to it that claims look at the lines of new tasks.
    :param index: is told of all that changes.
    """

    def __init__(self, state_store: QueueStateStore, producer: Producer, index: FlowIndex) -> None:
        self.state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names
        self._producer = producer
        self._index = index
        self._rosters = Rosters()

    async def read(self, act: Callable[[FlowTx], T], first: Missing) -> T:
        """Return what a step that changes nothing says.

        :param act: the step.
        :param first: what it is going to need.
        """
        snapshot = await self._snapshot(first)
        while True:
            try:
                return act(FlowTx(snapshot, self._names, self.state_store.clock.now()))
            except Missing as missing:
                await snapshot.load(missing)

    async def run(
        self,
        act: Callable[[FlowTx], T],
        first: Missing,
        *,
        new: Sequence[NewTask | StoredTask] = (),
        frees: bool = False,
        tries: int | None = None,
        fresh: bool = True,
        again: int = 0,
    ) -> tuple[T, Stepped]:
        """Do a step, however often it takes.

        :param act: the step.
        :param first: what it is going to need.
        :param new: the tasks that it may store.
        :param frees: whether it is part of the removal of something.
        :param tries: how often others may be quicker before it is given up; None: as often as there is time for.
        :param again: how often it is tried again at once where others were quicker, before others of this storage
            have their turns.
        :param fresh: whether these are taken to be new without a look, at first.
        :return: its result, and what it has done.
        :raises Conflict: if it is given up.
        :raises StorageUnavailable: if it could not be done in time.
        """
        deadline = time.monotonic() + 2 * self._transport.settings.timeout
        plan = _Plan(first, {task.id: task for task in new}, frees, fresh and bool(new), deadline)
        mended = lost = 0
        for attempt in range(1_000_000):
            try:
                async with self.state_store.turns(first.queues):
                    return await self._try_again(act, plan, again)
            except _Needs as needs:
                first.queues |= needs.queues
                for queue, line in needs.lines:
                    await self._producer.know_line(queue, line)
                await self._look(needs.unmade)
                plan.made |= needs.unmade
                plan.snapshot = None if needs.lines or needs.unmade else plan.snapshot
                continue
            except CorruptRecord:
                mended += 1
                if mended > len(first.queues) + 1:
                    raise
                await self._look(first.queues)
            except Conflict as conflict:
                lost += 1
                if tries is not None and lost >= tries and not plan.unsure:
                    raise
                if time.monotonic() > deadline:
                    raise StorageUnavailable(
                        f"{self._transport.settings.shown}: flows are changed by so many at once that no turn came: "
                        f"{conflict}"
                    ) from conflict
                if lost >= LOST:
                    took = max(SHORTEST, time.monotonic() - plan.begun)
                    await self.state_store.reserve(first.queues, took * 2 ** (lost + 1 - LOST))
            except Lost:
                if time.monotonic() > deadline or not plan.unsure:
                    raise
            plan.snapshot, plan.fresh = None, False
            await asyncio.sleep(random.uniform(0, min(0.0005 * 2 ** min(attempt, 7), 0.05)))
        raise AssertionError

    async def _try_again(self, act: Callable[[FlowTx], T], plan: _Plan, times: int) -> tuple[T, Stepped]:
        for _ in range(times):
            try:
                return await self._try(act, plan)
            except Conflict:
                plan.snapshot, plan.fresh = None, False
                await self.state_store.wait_for_turns(plan.first.queues)
        return await self._try(act, plan)

    async def _snapshot(self, first: Missing) -> Snapshot:
        snapshot = Snapshot(self.state_store, self._rosters)
        await snapshot.load(first)
        return snapshot

    async def _try(self, act: Callable[[FlowTx], T], plan: _Plan) -> tuple[T, Stepped]:
        generation = self._transport.generation
        plan.begun = time.monotonic()
        if plan.snapshot is None:
            plan.snapshot = await self._snapshot(plan.first)
            while self._is_reserved(plan.snapshot) and time.monotonic() < plan.deadline:
                await asyncio.sleep(random.uniform(0, POLL))
                plan.begun = time.monotonic()
                plan.snapshot = await self._snapshot(plan.first)
            for name, (known, changes) in plan.unsure.items():
                if _is_accepted(name, plan.snapshot):
                    return known, await self._follow(changes, plan.snapshot)  # type: ignore[return-value]  # of this very step
        snapshot = plan.snapshot
        result, tx = await self._acted(act, snapshot, plan)
        self._note_read(snapshot)
        touched = {
            held.batch.queue for task_id, held in tx.tasks.held.items() if task_id in tx.saved or task_id in tx.removed
        }
        touched |= limited_queues(tx)
        if touched - plan.first.queues:
            raise _Needs(queues=touched)
        unmade = {queue for queue in touched if not snapshot.queue_states[queue].seq} - plan.made
        if unmade:
            raise _Needs(unmade=unmade)
        lines = {line for line in lines_of(tx) if not self._producer.knows(*line)}
        if lines:
            raise _Needs(lines=lines)
        name = secrets.token_hex(5)
        changes = await changes_of(self.state_store, tx, plan.new, name)
        if changes.is_none:
            return result, Stepped()
        if self._is_reserved(snapshot):
            raise Conflict("another has reserved it")
        if generation != self._transport.generation:
            # What was read may never have been, and its sequence may be that of something else by now.
            raise Conflict("the connection was lost")
        plan.first.flows |= {record.flow.id for record in changes.flows}
        try:
            await self._commit(changes, name, plan)
        except Lost:
            plan.unsure[name] = result, changes
            raise
        return result, await self._follow(changes, snapshot)

    def _is_reserved(self, snapshot: Snapshot) -> bool:
        return any(map(self.state_store.is_reserved, snapshot.queue_states.values()))

    async def _acted(self, act: Callable[[FlowTx], T], snapshot: Snapshot, plan: _Plan) -> tuple[T, FlowTx]:
        while True:
            tx = FlowTx(snapshot, self._names, self.state_store.clock.now(), fresh=plan.fresh)
            try:
                return act(tx), tx
            except Missing as missing:
                unreserved = missing.queues - plan.first.queues
                if unreserved:
                    raise _Needs(queues=unreserved) from None
                await snapshot.load(missing)
            except (ValueError, FlowClosed):
                if not tx.was_fresh:
                    raise
                plan.fresh = False  # a repeated call is none: whether it is one is looked at now

    def _note_read(self, snapshot: Snapshot) -> None:
        for flow_id, record in snapshot.flows.items():
            if record is None:
                self._index.forget(flow_id)
            else:
                self._index.note(record)
                if record.strays:
                    self.state_store.later(self._transport.remove(record.strays))

    async def _look(self, queues: Iterable[str]) -> None:
        """Make the states of queues anew of which something cannot be read, or that are not there."""

        async def look(queue_state: QueueState) -> tuple[None, bool]:
            queue_state.check()
            return None, False

        for queue in sorted(queues):
            await self.state_store.change(queue, look)

    async def _commit(self, changes: Changes, name: str, plan: _Plan) -> None:
        if changes.flows or changes.queue_states or changes.before or changes.after:
            first = await self.state_store.commit_together(
                changes.queue_states, name, changes.before, changes.after, frees=plan.frees, share=changes.share
            )
            seq = first + len(changes.before) + len(changes.queue_states)
            for record in changes.flows:
                record.seq = record.last = seq
                seq += 1
                if record.has_word:
                    record.last = record.word = seq
                    seq += 1

    async def _follow(self, changes: Changes, snapshot: Snapshot) -> Stepped:
        """Do what follows from a step that was accepted."""
        now = self.state_store.clock.now()
        stepped = Stepped()
        states = {queue_state.queue: queue_state for queue_state in changes.queue_states}
        stepped.ended = {task_id: states[queue].changes for task_id, queue in changes.ended.items()}
        for record in changes.flows:
            self._index.note(record)
            if record.strays:
                self.state_store.later(self._transport.remove(record.strays))
            if record.flow.finished_at is None and record.flow.is_due:
                stepped.due.add(record.flow.id)
        for queue_state in changes.queue_states:
            if queue_state.tombstones:
                await self.state_store.bury(queue_state.queue, list(queue_state.tombstones.values()))
        for record in changes.removed_flows:
            await self._remove(record, snapshot)
        for queue, at in changes.woken.items():
            await self._transport.tell(self._names.work(queue), b"%d" % (0 if at <= now else at))
        if stepped.due:
            await self._transport.tell(self._names.flow_word, b"0")
        return stepped

    async def _remove(self, record: FlowRecord, snapshot: Snapshot) -> None:
        pages = {self._names.results(row.queue, KEPT, row.batch, row.seq) for row in snapshot.rows(record, None)}
        await self.state_store.drop_pages(sorted(pages))
        # One to which something was added meanwhile has another message by now.
        if await self._transport.remove_one(record.seq):
            self._index.forget(record.flow.id)
            await self._transport.remove([*record.strays, *([record.word] if record.word else ())])
            await self._transport.purge(self._names.parts_of_flow(record.flow.id))
            if record.flow.unique is not None:
                keys = await self._transport.last([self._names.flow_key(record.flow.unique)])
                # Another flow may have it by now.
                await self._transport.remove([one.seq for one in keys if holder_of(one.data) == record.flow.id])


def _is_accepted(name: str, snapshot: Snapshot) -> bool:
    """Return whether a change was accepted, as far as a flow or the state of a queue that it changed tells."""
    return any(record is not None and name in record.recent for record in snapshot.flows.values()) or any(
        name in queue_state.recent for queue_state in snapshot.queue_states.values()
    )
