"""Removes tasks by the queue: on request, and once their results need be kept no longer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from omniq.task import TaskState
from omniq_nats.claiming import fold
from omniq_nats.entries import Entry, Tombstone
from omniq_nats.flows import Flows
from omniq_nats.names import DUE_LINE, untoken
from omniq_nats.orphan_cleanup import OrphanCleanup
from omniq_nats.queue_state import REMOVED_AHEAD, QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import EndRecord, read_page
from omniq_nats.standing import ENDED, stand
from omniq_nats.task_batches import KEPT, TaskBatch
from omniq_nats.times import after

__all__ = ["STEP", "Removal"]

STEP = 300
"""So many tasks are removed in one change of a queue state."""
PATIENT = 16
"""So many pages without anything that is over are looked through before the rest is taken to be younger."""

READY, SCHEDULED, RUNNING = TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING


class Removal:
    """Removes many tasks, in steps.

    :param state_store: of the storage.
    :param flows: of the storage: tasks of flows are removed there, as far as they have not ended.
    """

    def __init__(self, state_store: QueueStateStore, flows: Flows) -> None:
        self._flows = flows
        self._state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names
        self._orphan_cleanup = OrphanCleanup(state_store)

    def tombstones(self, batch: TaskBatch, index: int) -> Tombstone:
        row = batch.rows[index]
        return Tombstone(
            row[0], batch.name, index, batch.seq, len(batch), batch.ttl, self._state_store.clock.now(), row[4]
        )

    async def bury(self, queue: str) -> None:
        queue_state = self._state_store.remembered(queue)
        if queue_state is not None and queue_state.tombstones:
            await self._state_store.bury(queue, list(queue_state.tombstones.values()))

    async def purge(self, queue: str, state: TaskState | None) -> tuple[int, list[str]]:
        """Do :meth:`omniq.storage.Storage.purge`.

        :return: how many were removed, and their ids.
        """
        gone: list[str] = []
        if state in (None, TaskState.BLOCKED):
            while some := await self._delete_members(await self._flows.blocked_in(queue, STEP)):
                gone += some
        if state is not RUNNING:
            while some := await self._purge_live(queue, state):
                gone += some
            if state is None or state.is_final:
                while some := await self._purge_ended(queue, state):
                    gone += some
        return len(set(gone)), gone

    async def _delete_members(self, ids: Sequence[str]) -> list[str]:
        """Remove tasks of flows; return the ids of those that were there."""
        if not ids:
            return []
        answers, _ = await self._flows.delete(ids)
        return [task_id for task_id, answer in zip(ids, answers, strict=True) if answer]

    async def _purge_live(self, queue: str, state: TaskState | None) -> list[str]:
        members: list[str] = []

        async def step(queue_state: QueueState) -> tuple[list[Tombstone], bool]:
            members.clear()
            tombstones: list[Tombstone] = []
            changed = await fold(self._state_store, queue_state)
            now = self._state_store.clock.now()
            await self._take_wanted(queue_state, state, now)
            wanted = list(filter(_of_state(state, now), queue_state.waiting.values()))[:STEP]
            members.extend(entry.id for entry in wanted if entry.flow is not None)
            batches = await self._state_store.task_lookup.of_slots(queue, wanted)
            for entry in wanted:
                if entry.flow is not None:
                    continue
                queue_state.withdraw(entry)
                batch = batches.get(entry.seq)
                if batch is not None:
                    tombstones.append(self.tombstones(batch, entry.index))
            if state in (None, READY):
                tombstones += await self._take_untouched(queue_state, STEP - len(tombstones) - len(members), members)
            for one in tombstones:
                queue_state.doom(one)
            return tombstones, changed or bool(tombstones or wanted)

        tombstones = await self._state_store.change(queue, step, frees=True)
        await self.bury(queue)
        return [*(one.id for one in tombstones), *await self._delete_members(members)]

    async def _take_wanted(self, queue_state: QueueState, state: TaskState | None, now: int) -> None:
        """Move tasks that are to be removed from overflow pages into the queue state, as far as one step takes them."""
        overflow = self._state_store.overflow
        for overflow_page in list(queue_state.overflow):
            if len(queue_state.waiting) >= STEP:
                return
            if state is None:
                await overflow.take(queue_state, overflow_page, STEP)
            elif (overflow_page.at <= now) if state is READY else (overflow_page.last_at > now):
                await overflow.sift(queue_state, overflow_page, _of_state(state, now), STEP)

    async def _take_untouched(self, queue_state: QueueState, limit: int, members: list[str]) -> list[Tombstone]:
        tombstones: list[Tombstone] = []
        for line in [line for line in queue_state.lines if line != DUE_LINE]:
            batch = await self._state_store.task_lookup.ahead(queue_state, line, None, limit)
            while batch is not None and len(tombstones) < limit:
                place = queue_state.lines[line]
                ahead = range(place[1] if place[0] == batch.seq else 0, len(batch))
                if batch.flow is not None and (here := _not_left_out(queue_state, batch, ahead)):
                    members += here[: max(1, limit)]
                    break  # once these are left out it is passed
                for index in ahead:
                    if queue_state.left_out(line, batch.seq, index) is None:
                        tombstones.append(self.tombstones(batch, index))
                    queue_state.pass_by(batch, index)
                batch = await self._state_store.task_lookup.ahead(queue_state, line, batch, limit)
        return tombstones

    async def _purge_ended(self, queue: str, state: TaskState | None) -> list[str]:
        queue_state = (await self._state_store.read([queue]))[queue]
        await self._state_store.bring(queue, queue_state.pending)
        places: list[tuple[str, int, int, float]] = []
        start = 1
        while len(places) < STEP:
            stored, left = await self._transport.scan(self._names.results_of(queue), start, 64)
            for one in stored:
                page = read_page(one)
                ttl, name = _page_name(one.subject)
                places += [
                    (batch, seq, index, ttl)
                    for batch, seq, index, task_id, end_record in page.places(name)
                    # Of one that waits for a retry the error of its latest attempt is kept there.
                    if _has_ended(end_record, state)
                    and task_id not in queue_state.waiting
                    and task_id not in queue_state.running
                ]
            if not left or not stored:
                break
            start = stored[-1].seq + 1
        return await self._remove_ended(queue, places, state=state)

    async def _remove_ended(
        self,
        queue: str,
        places: Sequence[tuple[str, int, int, float]],
        *,
        state: TaskState | None = None,
        older: bool = False,
    ) -> list[str]:
        """Remove tasks that have ended.

        :param places: name and sequence of the batch, number, and the seconds that results are kept.
        :param state: only those that ended so.
        :param older: only those whose time is over.
        """
        entries = [_bare_entry(*place) for place in places]

        async def step(queue_state: QueueState) -> tuple[list[Tombstone], bool]:
            now = self._state_store.clock.now()
            batches = await self._state_store.task_lookup.of_slots(queue, entries)
            wanted = [
                (batches[entry.seq], entry.index)
                for entry in entries
                if entry.seq in batches and stand(queue_state, batches[entry.seq], entry.index) is ENDED
            ]
            end_records = await self._state_store.end_records(queue_state, wanted)
            tombstones = []
            for batch, index in wanted:
                end_record = end_records.get((batch.seq, index))
                if end_record is None or not _has_ended(end_record, state):
                    continue
                if older and not _is_over(end_record, batch.ttl, now):
                    continue
                queue_state.uncount(batch, index, end_record)
                if queue_state.is_ahead(batch.line, batch.seq, index):
                    queue_state.leave_out(batch, index, REMOVED_AHEAD)
                one = self.tombstones(batch, index)
                queue_state.doom(one)
                tombstones.append(one)
            return tombstones, bool(tombstones)

        if not entries:
            return []
        tombstones = await self._state_store.change(queue, step, remembered=False, frees=True)
        await self.bury(queue)
        return [one.id for one in tombstones]

    # Upkeep

    async def prune(self, limit: int) -> tuple[int, list[str]]:
        """Do :meth:`omniq.storage.Storage.prune`.

        :return: how many were removed, and their ids.
        """
        gone: list[str] = []
        for queue, queue_state in (await self._state_store.read_all()).items():
            if queue_state.pending:
                await self._state_store.bring(queue, queue_state.pending)
            for ttl in list(queue_state.ttls):
                if ttl != KEPT and len(gone) < limit and any(queue_state.ended.values()):
                    places = await self._over(queue, ttl, limit - len(gone))
                    gone += await self._remove_ended(queue, places, older=True)
            if queue_state.tombstones:
                await self._state_store.bury(queue, list(queue_state.tombstones.values()))
        count, members = await self._flows.prune(limit - len(gone))
        gone += members
        await self._transport.keep_reserve()
        await self._orphan_cleanup.sweep_at_times()
        return len(gone) - len(members) + count, gone

    async def _over(self, queue: str, ttl: float, limit: int) -> list[tuple[str, int, int, float]]:
        """Find tasks that ended longer ago than results of theirs are kept: those that ended first come first."""
        now = self._state_store.clock.now()
        found: list[tuple[str, int, int, float]] = []
        start, young = 1, 0
        while len(found) < limit and young < PATIENT:
            stored, left = await self._transport.scan(self._names.results_of(queue, ttl), start, 64)
            for one in stored:
                page = read_page(one)
                over = [
                    (batch, seq, index, ttl)
                    for batch, seq, index, _, end_record in page.places(_page_name(one.subject)[1])
                    if _is_over(end_record, ttl, now)
                ]
                found += over
                young = 0 if over else young + 1
            if not left or not stored:
                break
            start = stored[-1].seq + 1
        return found[:limit]


def _not_left_out(queue_state: QueueState, batch: TaskBatch, indices: Iterable[int]) -> list[str]:
    """Return the ids of the tasks of a batch to which claims would come."""
    return [batch.rows[index][0] for index in indices if queue_state.left_out(batch.line, batch.seq, index) is None]


def _has_ended(end_record: EndRecord, state: TaskState | None) -> bool:
    """Return whether a task ended in a state; None: in any, as one may have of which that cannot be read."""
    return end_record.state.is_final and (state is None or (end_record.state is state and not end_record.is_torn))


def _is_over(end_record: EndRecord, ttl: float, now: int) -> bool:
    """Return whether a task ended longer ago than its result is kept; of a torn record that cannot be told."""
    return end_record.state.is_final and not end_record.is_torn and after(end_record.finished, ttl) <= now


def _of_state(state: TaskState | None, now: int) -> Callable[[Entry], bool]:
    return lambda entry: state in (None, READY if entry.at <= now else SCHEDULED)


def _page_name(subject: str) -> tuple[float, str]:
    _, ttl, batch = subject.rsplit(".", 2)
    return float(untoken(ttl)), batch


def _bare_entry(batch: str, seq: int, index: int, ttl: float) -> Entry:
    return Entry(id="", batch=batch, index=index, seq=seq, size=0, ttl=ttl, rank=0, priority=0, at=0, max_retries=0)
