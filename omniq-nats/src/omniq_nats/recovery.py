"""Takes back tasks whose leases have run out, and ends those that came too late to be started."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from attrs import define, field

from omniq.errors import StorageError
from omniq.storage.attempts import appended, lost_line
from omniq.task import StoredTask, TaskError, TaskState
from omniq_nats.claiming import fold
from omniq_nats.entries import Entry
from omniq_nats.flows import STEP, Flows
from omniq_nats.names import DUE_LINE
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.reading import get, tasks_at
from omniq_nats.results import ROOM, EndRecord, inline_of, kept_record
from omniq_nats.transport import Conflict

__all__ = ["Recovery"]


class Recovery:
    """Does on behalf of dead workers what there is to do with the tasks that they claimed.

    :param state_store: of the storage.
    :param flows: of the storage.
    """

    def __init__(self, state_store: QueueStateStore, flows: Flows) -> None:
        self._flows = flows
        self._state_store = state_store
        self._names = state_store.names

    async def recover(self, limit: int) -> tuple[list[StoredTask], list[str]]:
        """Do :meth:`omniq.storage.Storage.recover`.

        :return: the tasks whose lease had run out, and the ids of all that ended.
        """
        queue_states = await self._state_store.read_all()
        for queue, queue_state in queue_states.items():
            if queue_state.problem is not None:
                with contextlib.suppress(StorageError):
                    # A change of it, even one that leaves it as it is, makes it anew first.
                    await self._recover(queue, 0, True)
        now = self._state_store.clock.now()
        taken: list[tuple[str, _Recovered]] = []
        count = 0
        for lapsed in (True, False):
            for queue, queue_state in queue_states.items():
                if count < limit and (
                    _has_work(queue_state, now, lapsed) or (not lapsed and await self._is_to_fold(queue_state))
                ):
                    recovered = await self._recover(queue, limit - count, lapsed)
                    taken.append((queue, recovered))
                    count += recovered.count
        tasks: list[StoredTask] = []
        for queue, recovered in taken:
            batches = await self._state_store.task_lookup.of_slots(queue, recovered.entries)
            places = [(batches[entry.seq], entry.index) for entry in recovered.entries if entry.seq in batches]
            found = await tasks_at(self._state_store, places)
            tasks += [found[batch.seq, index] for batch, index in places if (batch.seq, index) in found]
            if any(entry.id not in recovered.ended for entry in recovered.entries):
                await self._state_store.transport.tell(self._names.work(queue), b"0")
        members, ended = await self._recover_members(queue_states, limit - count)
        return tasks + members, [*(task_id for _, recovered in taken for task_id in recovered.ended), *ended]

    async def _recover_members(
        self, queue_states: Mapping[str, QueueState], limit: int
    ) -> tuple[list[StoredTask], list[str]]:
        """Do the same with tasks of flows, and what is left to be done in flows."""
        now = self._state_store.clock.now()
        tasks: list[StoredTask] = []
        ended: list[str] = []
        for queue, read in queue_states.items():
            queue_state = self._state_store.remembered(queue) or read  # with what was sorted in just now
            if queue_state.problem is not None:
                continue
            expired = await self._expired_members(queue_state, now, limit)
            is_lapsed = any(_is_lapsed(one, now) and one.flow is not None for one in queue_state.running.values())
            if limit > 0 and (expired or is_lapsed):
                lost, stepped = await self._flows.recover(queue, expired, limit)
                found = await get(self._state_store, [task.id for task in lost])
                tasks += [task for task in found if task is not None]
                ended += stepped.ended
                limit -= len({task.id for task in lost} | stepped.ended.keys())
        await self._flows.index.look()
        _, settled = await self._flows.settle(STEP)
        return tasks, [*ended, *settled]

    async def _expired_members(self, queue_state: QueueState, now: int, limit: int) -> list[str]:
        entries = list(queue_state.waiting.values())
        for page in queue_state.overflow:
            if page.expires is not None and page.expires <= now:
                with contextlib.suppress(Conflict):  # it was replaced meanwhile
                    entries += await self._state_store.overflow.read(queue_state.queue, page)
        return [entry.id for entry in entries if entry.flow is not None and entry.is_expired(now)][:limit]

    async def _is_to_fold(self, queue_state: QueueState) -> bool:
        """Whether there are tasks that wait, and may have expired, and were not sorted in."""
        return (
            DUE_LINE in queue_state.lines
            and await self._state_store.task_lookup.ahead(queue_state, DUE_LINE, None, 64) is not None
        )

    async def _recover(self, queue: str, limit: int, lapsed: bool) -> _Recovered:
        blobs: dict[str, str] = {}
        most = self._state_store.transport.max_payload - ROOM

        async def step(queue_state: QueueState) -> tuple[_Recovered, bool]:
            now = self._state_store.clock.now()
            recovered = _Recovered()
            folded = False
            if lapsed:
                lapsed_here = [entry for entry in queue_state.running.values() if _is_lapsed(entry, now)]
                entries = [entry for entry in lapsed_here if entry.flow is None][:limit]
                known = await self._state_store.errors(queue_state, entries, whole=True)
                left = {entry.id: _left(entry, now, known.get(entry.id)).fitted(most) for entry in entries}
                await self._state_store.set_apart(left, blobs, inline_of(most))
                for entry in entries:
                    recovered.entries.append(entry)
                    _take_back(queue_state, entry, now, recovered, left[entry.id])
            else:
                folded = await fold(self._state_store, queue_state)
                await self._state_store.overflow.take_expired(queue_state, now, limit)
                entries = [
                    entry for entry in queue_state.waiting.values() if entry.is_expired(now) and entry.flow is None
                ][:limit]
                known = await self._state_store.errors(queue_state, entries)
                for entry in entries:
                    queue_state.withdraw(entry)
                    queue_state.cancel_slot(entry, now, known.get(entry.id))
                    recovered.ended.append(entry.id)
            return recovered, folded or bool(recovered.entries or recovered.ended)

        return await self._state_store.change(queue, step, remembered=False)


@define(eq=False)
class _Recovered:
    entries: list[Entry] = field(factory=list)
    ended: list[str] = field(factory=list)

    @property
    def count(self) -> int:
        return len({entry.id for entry in self.entries}.union(self.ended))


def _has_work(queue_state: QueueState, now: int, lapsed: bool) -> bool:
    if lapsed:
        return any(_is_lapsed(entry, now) for entry in queue_state.running.values())
    return any(entry.is_expired(now) for entry in queue_state.waiting.values()) or any(
        overflow_page.expires is not None and overflow_page.expires <= now for overflow_page in queue_state.overflow
    )


def _is_lapsed(entry: Entry, now: int) -> bool:
    return entry.until is not None and entry.until <= now


def _left(entry: Entry, now: int, known: EndRecord | None) -> EndRecord:
    """Return an end record that holds what is to be kept of a task that was lost: its error and its attempt log."""
    error, log = (None, "") if known is None else (known.error, known.attempt_log)
    if not entry.cancel and entry.attempt > entry.max_retries:
        message = f"worker {entry.worker} died or lost its lease in attempt {entry.attempt}, the last one"
        error = TaskError(type="WorkerLost", message=message)
    line = lost_line(entry.attempt, entry.worker, entry.started, now)
    return kept_record(entry.delivery, error, appended(log, line))


def _take_back(queue_state: QueueState, entry: Entry, now: int, recovered: _Recovered, left: EndRecord) -> None:
    queue_state.stop(entry)
    if entry.cancel:
        queue_state.cancel_slot(entry, now, left)
    elif entry.attempt <= entry.max_retries:
        queue_state.keep_error(entry, now, left)
        queue_state.put_back(entry)
        return
    else:
        queue_state.end(entry, queue_state.end_record_of(entry, TaskState.FAILED, now, known=left))
    recovered.ended.append(entry.id)
