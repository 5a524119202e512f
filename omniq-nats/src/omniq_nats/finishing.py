"""Records how deliveries ended, and extends leases: what the holder of a task says."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

from attrs import define, evolve, field

from omniq.errors import PayloadTooLarge
from omniq.storage import Lease, LeaseState
from omniq.task import (
    Cancelled,
    Failed,
    Outcome,
    Progress,
    Released,
    Retry,
    Succeeded,
    TaskError,
    TaskState,
)
from omniq_nats.entries import Entry
from omniq_nats.flows import Flows
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import INLINE, ROOM, EndRecord, inline_of, kept_record
from omniq_nats.times import after
from omniq_nats.transport import Write

__all__ = ["Holder"]

MOST_TEXT = 8000
"""Characters that are kept of an error's message, and of its traceback, if the server cannot take them all."""
MOST_INLINE = 200 * 1024
"""Bytes of results and errors in one change of a queue state."""


class Holder:
    """Does for a worker what there is to do with the tasks that it claimed.

    :param state_store: of the storage.
    :param queues: of each claimed task, the queue: shared by all storages of the process that are on the same store.
    :param flows: of the storage.
    """

    def __init__(self, state_store: QueueStateStore, queues: dict[str, str], flows: Flows) -> None:
        self._flows = flows
        self._state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names
        self._queues = queues

    async def _by_queue(self, ids: Sequence[str]) -> dict[str, list[int]]:
        """Return the numbers of some tasks by their queue; unknown ones are left out."""
        unknown = [task_id for task_id in ids if task_id not in self._queues]
        places = await self._state_store.task_lookup.locate(unknown) if unknown else {}
        found: defaultdict[str, list[int]] = defaultdict(list)
        for number, task_id in enumerate(ids):
            queue = self._queues.get(task_id) or (places[task_id][0].queue if task_id in places else None)
            if queue is not None:
                found[queue].append(number)
        return found

    # The end of a delivery

    async def finish(self, outcomes: Sequence[Outcome]) -> tuple[list[bool], dict[str, int]]:
        """Do :meth:`omniq.storage.Storage.finish`.

        Those of tasks of flows go together with their flows.

        :return: the answers, and the ids of tasks that have ended, each with the number of the change of its queue
            state.
        """
        limit = self._transport.max_payload - ROOM
        outcomes = [_fitting(outcome, limit) for outcome in outcomes]
        answers = [False] * len(outcomes)
        ended: dict[str, int] = {}
        woken: dict[str, int] = {}
        by_queue = await self._by_queue([outcome.id for outcome in outcomes])
        members = self._flows.members
        if members and (some := [number for number, outcome in enumerate(outcomes) if outcome.id in members]):
            await self._finish_members(outcomes, some, answers, ended)
            by_queue = {
                queue: left
                for queue, numbers in by_queue.items()
                if (left := [number for number in numbers if outcomes[number].id not in members])
            }
        parts = [self._finish(queue, outcomes, numbers, answers, ended, woken) for queue, numbers in by_queue.items()]
        if len(parts) == 1:
            await parts[0]
        else:
            await asyncio.gather(*parts)
        for queue, at in woken.items():
            await self._transport.tell(self._names.work(queue), b"%d" % at)
        for task_id in ended:
            self._queues.pop(task_id, None)
            members.pop(task_id, None)
        return answers, ended

    async def _finish_members(
        self, outcomes: Sequence[Outcome], numbers: Sequence[int], answers: list[bool], ended: dict[str, int]
    ) -> None:
        parts = _parts(outcomes, numbers, min(MOST_INLINE, self._transport.max_payload // 8))
        for part in parts:
            told, stepped = await self._flows.finish([outcomes[number] for number in part], self._queues)
            for number, answer in zip(part, told, strict=True):
                answers[number] = answer
            ended |= stepped.ended

    async def _finish(
        self,
        queue: str,
        outcomes: Sequence[Outcome],
        numbers: Sequence[int],
        answers: list[bool],
        ended: dict[str, int],
        woken: dict[str, int],
    ) -> None:
        most = self._transport.max_payload
        parts = _parts(outcomes, numbers, min(MOST_INLINE, most // 8))
        blobs: dict[str, str] = {}
        alone: set[int] = set()
        inline = inline_of(most)
        while parts:
            part = parts.pop(0)
            kept = 0 if len(part) == 1 and part[0] in alone else inline

            async def step(
                queue_state: QueueState, part: Sequence[int] = part, kept: int = kept
            ) -> tuple[_Finished, bool]:
                finished = _Finished(queue_state.changes + 1)
                now = self._state_store.clock.now()
                held = []
                for number in part:
                    entry = queue_state.held(outcomes[number].id, outcomes[number].delivery)
                    if entry is not None and entry.flow is not None:
                        finished.members.append(number)
                    elif entry is not None:
                        held.append(number)
                asked = [outcomes[number] for number in held if not _says_all(outcomes[number])]
                known = await self._state_store.errors(
                    queue_state, [queue_state.running[outcome.id] for outcome in asked], whole=True
                )
                left: dict[str, EndRecord] = {}
                for number in held:
                    outcome = outcomes[number]
                    left.setdefault(outcome.id, _left(outcome, known.get(outcome.id)).fitted(most - ROOM))
                await self._state_store.set_apart(left, blobs, kept)
                if queue_state.lane is not None:
                    released = [outcomes[number].id for number in held if isinstance(outcomes[number], Released)]
                    given_back = [queue_state.running[task_id] for task_id in dict.fromkeys(released)]
                    await self._state_store.limits.give_back(queue_state, given_back)
                for number in held:
                    outcome = outcomes[number]
                    entry = queue_state.held(outcome.id, outcome.delivery)
                    if entry is not None:
                        finished.accepted.append(number)
                        _settle(queue_state, entry, outcome, now, left[outcome.id], finished)
                return finished, bool(finished.accepted)

            try:
                finished = await self._state_store.change(queue, step)
            except PayloadTooLarge:
                # The queue state is nearly full: one after the other, and each with as little as possible.
                if len(part) == 1 and part[0] in alone:
                    raise
                alone.update(part)
                parts = [[number] for number in part] + parts
                continue
            for number in finished.accepted:
                answers[number] = True
            if finished.members:
                await self._finish_members(outcomes, finished.members, answers, ended)
            ended |= dict.fromkeys(finished.ended, finished.change)
            if finished.ready_at is not None:
                woken[queue] = min(woken.get(queue, finished.ready_at), finished.ready_at)

    # Leases

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        """Do :meth:`omniq.storage.Storage.heartbeat`."""
        states = [LeaseState.LOST] * len(leases)
        by_queue = await self._by_queue([one.id for one in leases])
        await asyncio.gather(
            self._sign(worker, lease),
            self._describe(worker, lease, about),
            *(self._extend(queue, leases, numbers, lease, states) for queue, numbers in by_queue.items()),
        )
        return states

    async def _sign(self, worker: str, lease: float) -> None:
        now = self._state_store.clock.now()
        told = json.dumps([worker, now, after(now, lease) if lease > 0 else 0]).encode()
        ttl = max(60, min(int(lease) * 2, 10**6)) if lease > 0 else 1
        await self._transport.store(Write(self._names.worker(worker), told, ttl=ttl))

    async def _describe(self, worker: str, lease: float, about: str | None) -> None:
        if about is None and lease > 0:
            return
        # An empty message takes the place of what was told before, and is gone a second later.
        told = json.dumps([worker, about]).encode() if lease > 0 else b""
        ttl = max(60, min(int(lease) * 20, 10**7)) if lease > 0 else 1
        await self._transport.store(Write(self._names.about(worker), told, ttl=ttl))

    async def _extend(
        self, queue: str, leases: Sequence[Lease], numbers: Sequence[int], lease: float, states: list[LeaseState]
    ) -> None:
        async def step(queue_state: QueueState) -> tuple[dict[int, LeaseState], bool]:
            until = after(self._state_store.clock.now(), lease)
            told = {}
            for number in numbers:
                entry = queue_state.held(leases[number].id, leases[number].delivery)
                if entry is None:
                    continue
                entry.until = until
                told[number] = LeaseState.CANCEL_REQUESTED if entry.cancel else LeaseState.HELD
            return told, bool(told)

        for number, state in (await self._state_store.change(queue, step)).items():
            states[number] = state

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        """Do :meth:`omniq.storage.Storage.set_progress`."""
        leases = list(updates)
        for queue, numbers in (await self._by_queue([lease.id for lease in leases])).items():

            async def step(queue_state: QueueState, numbers: Sequence[int] = numbers) -> tuple[None, bool]:
                changed = False
                for number in numbers:
                    entry = queue_state.held(leases[number].id, leases[number].delivery)
                    if entry is not None:
                        progress = updates[leases[number]]
                        entry.progress = [progress.done, progress.total, progress.note]
                        changed = True
                return None, changed

            await self._state_store.change(queue, step)


@define(eq=False)
class _Finished:
    change: int
    """Which change of the queue state it is."""
    accepted: list[int] = field(factory=list)
    members: list[int] = field(factory=list)
    """Those of tasks of flows, which are still to be recorded."""
    ended: list[str] = field(factory=list)
    ready_at: int | None = None
    """When one is ready again, the earliest; 0: at once."""


def _parts(outcomes: Sequence[Outcome], numbers: Sequence[int], most: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    size = 0
    for number in numbers:
        cost = min(_size(outcomes[number]), INLINE)
        if size + cost > most or len(parts[-1]) >= 2000:
            parts.append([])
            size = 0
        parts[-1].append(number)
        size += cost
    return parts


def _size(outcome: Outcome) -> int:
    match outcome:
        case Succeeded():
            return len(outcome.result)
        case Failed() | Retry():
            return _error_size(outcome.error) + len(outcome.attempt_log)
        case Released():
            return _error_size(outcome.error)
        case Cancelled():
            return len(outcome.attempt_log)
    return 0


def _error_size(error: TaskError | None) -> int:
    return 0 if error is None else len(error.type) + len(error.message) + len(error.traceback)


def _fitting(outcome: Outcome, limit: int) -> Outcome:
    """Return an outcome that the servers can take; a result that they cannot is a failure that says so."""
    size = _size(outcome)
    if size <= limit:
        return outcome
    if isinstance(outcome, Succeeded):
        message = f"the result takes {size:,} bytes, and the server's limit is {limit:,} (max_payload)"
        error = TaskError(type="PayloadTooLarge", message=message)
        return Failed(id=outcome.id, delivery=outcome.delivery, error=error)
    if isinstance(outcome, Failed | Retry | Released) and outcome.error and _error_size(outcome.error) > limit:
        message, traceback = outcome.error.message[:MOST_TEXT], outcome.error.traceback[-MOST_TEXT:]
        return evolve(outcome, error=evolve(outcome.error, message=message, traceback=traceback))
    return outcome


def _says_all(outcome: Outcome) -> bool:
    """Return whether nothing is kept of what earlier attempts left."""
    return isinstance(outcome, Failed | Retry) and bool(outcome.attempt_log)


def _left(outcome: Outcome, known: EndRecord | None) -> EndRecord:
    """Return an end record that holds what is to be kept after an outcome: error, result, attempt log.

    :param known: has what earlier attempts left.
    """
    error, log = (None, "") if known is None else (known.error, known.attempt_log)
    result = None
    match outcome:
        case Succeeded():
            error, result = None, outcome.result
        case Failed() | Retry():
            error, log = outcome.error, outcome.attempt_log or log
        case Released():
            error = outcome.error or error
        case Cancelled():
            log = outcome.attempt_log or log
    return kept_record(outcome.delivery, error, log, result)


def _settle(
    queue_state: QueueState, entry: Entry, outcome: Outcome, now: int, left: EndRecord, finished: _Finished
) -> None:
    queue_state.stop(entry)
    if isinstance(outcome, Retry | Released):
        _settle_again(queue_state, entry, outcome, now, left, finished)
        return
    match outcome:
        case Succeeded():
            state = TaskState.SUCCEEDED
        case Failed():
            state = TaskState.FAILED
        case Cancelled():
            state = TaskState.CANCELLED
        case _:
            raise TypeError(f"not an outcome that a store knows: {outcome!r}")
    queue_state.end(entry, queue_state.end_record_of(entry, state, now, known=left))
    finished.ended.append(entry.id)


def _settle_again(
    queue_state: QueueState, entry: Entry, outcome: Retry | Released, now: int, left: EndRecord, finished: _Finished
) -> None:
    if isinstance(outcome, Retry):
        at = after(now, outcome.delay) if outcome.delay else now
    else:
        entry.attempt -= 1
        at = after(now, outcome.delay) if outcome.delay else entry.at
    if entry.cancel:
        queue_state.cancel_slot(entry, now, left)
        finished.ended.append(entry.id)
        return
    entry.at = at
    queue_state.keep_error(entry, now, left if left.has_left else None)
    queue_state.put_back(entry)
    ready_at = 0 if at <= now else at
    finished.ready_at = ready_at if finished.ready_at is None else min(ready_at, finished.ready_at)
