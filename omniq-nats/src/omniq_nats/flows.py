"""Flows: their tasks are stored, ended, retried and removed through the shared transitions, each time in one step.

Tasks without a flow never come here. A task of a flow is claimed, kept under lease and retried like any other; only
where one ends, or comes or goes, its flow changes in the same step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from attrs import evolve

from omniq.errors import CorruptRecord, PayloadTooLarge
from omniq.flow import Flow, NewFlow
from omniq.storage import Enqueued, QueueStats, flow_transitions, transitions
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.states import due_at, ended_task
from omniq.storage.values import Salvaged
from omniq.task import NewTask, Outcome, StoredTask, TaskState
from omniq_nats.enqueueing import ATOMIC_TASKS, ATOMIC_UNIQUE_TASKS, Producer
from omniq_nats.flow_index import FlowIndex
from omniq_nats.flow_records import GATES, read_flow
from omniq_nats.flow_snapshot import Missing
from omniq_nats.flow_steps import FlowSteps, Stepped
from omniq_nats.flow_tx import FlowTx
from omniq_nats.gathering import Gathering
from omniq_nats.names import DUE_LINE, readable
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import past_of
from omniq_nats.task_batches import check_new, is_limited
from omniq_nats.times import micros
from omniq_nats.transport import Conflict, Stored, Write

__all__ = ["STEP", "Flows"]

A = TypeVar("A")
T = TypeVar("T")

_log = get_logger("omniq.nats")

STEP = 300
"""Tasks that one step of the agenda moves at most, and a claim or a recovery for others."""
TRIES = 4
"""So often others may be quicker before a step is done in two."""
AGAIN = 4
"""So often such a step is tried again at once where it stores tasks with keys: their producers meet at the queue."""
PASSED = 64
"""So many debounced tasks whose places others have taken may stand before the others."""
REMOVED = 300
"""Tasks that one step removes at most."""
PATIENT = 256
"""So many flows that are kept yet are passed before the rest is taken to have ended later."""


class Flows:
    """The flows of one storage.

    :param state_store: of the storage.
    :param producer: of the storage.
    :param members: the flow of each task of one that was claimed in this process.
    """

    def __init__(self, state_store: QueueStateStore, producer: Producer, members: dict[str, str]) -> None:
        self._state_store = state_store
        self._transport = state_store.transport
        self._names = state_store.names
        self.members = members
        self.index = FlowIndex(state_store.transport, state_store.clock)
        self._producer = producer
        self.steps = FlowSteps(state_store, producer, self.index)
        self._limited = Gathering(self._enqueue_together, ATOMIC_UNIQUE_TASKS)

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> tuple[list[Enqueued], Stepped]:
        """Do :meth:`omniq.storage.Storage.enqueue` for tasks of which some are of a flow."""
        for task in tasks:
            check_new(task)
        if len(tasks) > ATOMIC_TASKS:
            raise ValueError(
                f"{len(tasks):,} tasks, some of them of a flow, are more than one call stores all or none, which is "
                f"{ATOMIC_TASKS:,}: build the flow in parts, behind a gate with a hold"
            )
        first = Missing()
        if flow is not None:
            first.flows.add(flow.id)
            if flow.unique is not None:
                first.flow_keys.add(flow.unique)
        first.flows.update(task.flow for task in tasks if task.flow is not None)
        answers, stepped = await self._enqueue(tasks, flow, first)
        # What stands behind a gate that is open, or broken, from the beginning.
        stepped.ended |= await self.settle_these(stepped.due)
        return answers, stepped

    async def enqueue_limited(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        """Do the same for tasks of no flow, of which some have a key, a named limit or a debounce."""
        for task in tasks:
            check_new(task)
        answers: list[Enqueued] = []
        for start in range(0, len(tasks), ATOMIC_UNIQUE_TASKS):
            answers += await self._limited.enqueue(tasks[start : start + ATOMIC_UNIQUE_TASKS])
        return answers

    async def _enqueue_together(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return (await self._enqueue(tasks, None, Missing()))[0]

    async def fire(self, tasks: Sequence[NewTask], also: Sequence[Write], *, fresh: bool) -> list[Enqueued]:
        """Store such tasks together with the messages of a schedule's run.

        :param fresh: whether these are taken to be new without a look.
        :raises Conflict: if another was quicker.
        """
        for task in tasks:
            check_new(task)
        answers, _ = await self._enqueue(tasks, None, Missing(), also, fresh=fresh)
        return answers

    async def _enqueue(
        self,
        tasks: Sequence[NewTask],
        flow: NewFlow | None,
        first: Missing,
        also: Sequence[Write] = (),
        *,
        fresh: bool = True,
    ) -> tuple[list[Enqueued], Stepped]:
        def act(tx: FlowTx) -> list[Enqueued]:
            tx.also = also
            answers = transitions.enqueue(tx, tasks, flow)
            if any(task.state.is_final for task in tx.inserted.values()):
                # One whose place another of the same call has taken is stored as it has ended.
                tx.pasts = {task.id: past_of(task) for task in tx.inserted.values()}
            return answers

        limited = [task for task in tasks if is_limited(task)]
        first.queues.update(task.queue for task in limited)
        first.keys.update(task.unique for task in limited if task.unique is not None)
        fresh = fresh and not any(task.debounce is not None for task in limited)
        answers, stepped = await self.steps.run(
            act,
            first,
            new=tasks,
            fresh=fresh,
            again=AGAIN if limited and not also else 0,
            tries=1 if also else None,
        )
        for queue in {task.queue for task in limited}:
            known = self._state_store.remembered(queue)
            if known is not None and len(known.ahead.get(DUE_LINE, ())) > PASSED:
                self._producer.fold_later(queue)
        return answers, stepped

    async def settle_these(self, flows: Iterable[str]) -> dict[str, int]:
        """Do at once what is due of some flows, as far as a step reaches; return the ids of tasks that have ended."""
        ended: dict[str, int] = {}
        for flow_id in flows:
            _, stepped = await self._settle_one(flow_id, flow_transitions.SETTLED_AT_ONCE)
            ended |= stepped.ended
        return ended

    async def finish(self, outcomes: Sequence[Outcome], queues: Mapping[str, str]) -> tuple[list[bool], Stepped]:
        """Do :meth:`omniq.storage.Storage.finish`.

        :param queues: of each task, its queue, as far as it is known.
        """

        async def step(part: Sequence[Outcome], tries: int | None) -> tuple[list[bool], Stepped]:
            first = self._of_tasks((outcome.id for outcome in part), queues)
            return await self.steps.run(lambda tx: transitions.finish(tx, part), first, tries=tries)

        return await in_parts(outcomes, step)

    def _of_tasks(self, ids: Iterable[str], queues: Mapping[str, str]) -> Missing:
        first = Missing()
        for task_id in ids:
            if task_id in queues:
                first.queues.add(queues[task_id])
            if task_id in self.members:
                first.flows.add(self.members[task_id])
        return first

    async def recover(self, queue: str, expired: Sequence[str], limit: int) -> tuple[list[StoredTask], Stepped]:
        """Do :meth:`omniq.storage.Storage.recover` for the tasks of flows in a queue.

        :param expired: the ids of those that have expired.
        """

        def act(tx: FlowTx) -> list[StoredTask]:
            tx.expiring = expired
            return transitions.recover(tx, limit)

        return await self.steps.run(act, Missing(queues={queue}))

    async def expire(self, queue: str, ids: Sequence[str]) -> Stepped:
        """End tasks that a claim has come upon and that are no longer worth starting."""

        def act(tx: FlowTx) -> None:
            tx.expiring = ids
            ended = [ended_task(task, TaskState.CANCELLED, tx.now) for task in tx.expired(len(ids))]
            tx.save(ended)
            flow_transitions.count_ends(tx, ended)

        _, stepped = await self.steps.run(act, Missing(queues={queue}))
        return stepped

    async def end_unreadable(self, queue: str, torn: Mapping[str, StoredTask], lost: Iterable[str]) -> Stepped:
        """End tasks that were claimed and cannot be read.

        :param torn: what stands for those of which the order is there, by their ids.
        :param lost: the flows of those of which it is not.
        """
        flows = sorted(set(lost))

        def is_torn(task: StoredTask) -> bool:
            return isinstance(task, Salvaged) and task.finished_at is None

        def act(tx: FlowTx) -> None:
            held = [task_id for task_id, task in tx.load(torn).items() if not task.state.is_final or is_torn(task)]
            ended = [ended_task(torn[task_id], TaskState.FAILED, tx.now) for task_id in held]
            tx.save(ended)
            flow_transitions.count_ends(tx, ended)
            for flow in tx.flows(flows).values():
                step = flow_transitions.FlowStep(tx, flow)
                step.flow.doubtful = True
                step.close()

        _, stepped = await self.steps.run(act, Missing(queues={queue}))
        return stepped

    # What follows

    def is_due(self) -> bool:
        """Return whether something is left to be done, as far as is known."""
        return bool(self.index.due(self._state_store.clock.now(), 1))

    async def settle(self, limit: int) -> tuple[int, dict[str, int]]:
        """Do :meth:`omniq.storage.Storage.settle`, as far as is known.

        :return: how many tasks were moved, and the ids of those that have ended.
        """
        moved, ended = 0, dict[str, int]()
        last = ""
        while moved < limit and (due := self.index.due(self._state_store.clock.now(), 1)):
            step, stepped = await self._settle_one(due[0], min(limit - moved, STEP))
            moved += step
            ended |= stepped.ended
            if not step and due[0] == last:
                break
            last = due[0]
        return moved, ended

    async def _settle_one(self, flow_id: str, limit: int) -> tuple[int, Stepped]:
        while True:
            try:
                return await self.steps.run(partial(flow_transitions.settle, limit=limit), Missing(flows={flow_id}))
            except PayloadTooLarge:
                if limit < 2:
                    raise
                limit //= 2

    # Reading

    async def get(self, ids: Sequence[str]) -> list[Flow | None]:
        """Do :meth:`omniq.storage.Storage.get_flows`."""

        def act(tx: FlowTx) -> list[Flow | None]:
            found: list[Flow | None] = []
            missing = Missing()
            for flow_id in ids:
                # What each of them needs is read together: else all begin anew for each.
                try:
                    found += flow_transitions.get_flows(tx, [flow_id])
                except Missing as one:
                    missing.add(one)
            if missing:
                raise missing
            return found

        return await self.steps.read(act, Missing(flows=set(ids)))

    async def with_blocked(self, stats: Sequence[QueueStats]) -> list[QueueStats]:
        """Return queues in numbers, with their blocked tasks."""
        await self.index.look_closely()
        blocked = self.index.blocked()
        found = {
            one.queue: evolve(one, counts={**one.counts, TaskState.BLOCKED: blocked.get(one.queue, 0)}) for one in stats
        }
        for queue, number in blocked.items():
            if queue not in found:
                counts = dict.fromkeys(TaskState, 0) | {TaskState.BLOCKED: number}
                found[queue] = QueueStats(queue=queue, counts=counts)
        return [found[queue] for queue in sorted(found)]

    # Control

    async def cancel(self, ids: Sequence[str]) -> tuple[list[bool], Stepped]:
        """Do :meth:`omniq.storage.Storage.cancel` for tasks of flows."""
        return await self._each(transitions.cancel, ids)

    async def retry(self, ids: Sequence[str]) -> tuple[list[bool], Stepped]:
        """Do :meth:`omniq.storage.Storage.retry` for tasks of flows."""
        return await self._each(transitions.retry, ids)

    async def delete(self, ids: Sequence[str]) -> tuple[list[bool], Stepped]:
        """Do :meth:`omniq.storage.Storage.delete` for tasks of flows."""
        return await self._each(transitions.delete, ids)

    async def _each(
        self, act: Callable[[FlowTx, Sequence[str]], list[bool]], ids: Sequence[str]
    ) -> tuple[list[bool], Stepped]:
        async def step(part: Sequence[str], tries: int | None) -> tuple[list[bool], Stepped]:
            first = Missing(ids=set(part))
            return await self.steps.run(lambda tx: act(tx, part), first, frees=True, tries=tries)

        return await in_parts(ids, step)

    async def release_hold(self, flow_id: str, gate: int) -> tuple[bool, Stepped]:
        """Do :meth:`omniq.storage.Storage.release_hold`."""
        first = Missing(flows={flow_id}, gates={(flow_id, gate // GATES)})
        return await self.steps.run(lambda tx: flow_transitions.release_hold(tx, flow_id, gate), first)

    async def cancel_flow(self, flow_id: str) -> tuple[bool, Stepped]:
        """Do :meth:`omniq.storage.Storage.cancel_flow`."""
        return await self.steps.run(
            lambda tx: flow_transitions.cancel_flow(tx, flow_id), Missing(flows={flow_id}), frees=True
        )

    async def retry_flow(self, flow_id: str) -> tuple[int, Stepped]:
        """Do :meth:`omniq.storage.Storage.retry_flow`."""
        return await self.steps.run(
            lambda tx: flow_transitions.retry_flow(tx, flow_id), Missing(flows={flow_id}), frees=True
        )

    async def blocked_in(self, queue: str, limit: int) -> list[str]:
        """Return the ids of blocked tasks of a queue."""
        await self.index.look_closely()
        found: list[str] = []
        for flow_id in self.index.with_blocked(queue):

            def act(tx: FlowTx, flow_id: str = flow_id) -> list[str]:
                members = tx.members(flow_id, None, (TaskState.BLOCKED,), None)
                return [task.id for task in members if task.queue == queue]

            found += await self.steps.read(act, Missing(flows={flow_id}))
            if len(found) >= limit:
                break
        return found[:limit]

    # Upkeep

    async def prune(self, limit: int) -> tuple[int, dict[str, int]]:
        """Do :meth:`omniq.storage.Storage.prune` for flows.

        :return: how many tasks were removed, and their ids.
        """
        removed, gone = 0, dict[str, int]()
        start, young = 1, 0
        while removed < limit and young < PATIENT:
            stored, left = await self._transport.scan(self._names.ended_flows, start, 64)
            for one in stored:
                flow_id = readable(one.subject.rpartition(".")[2])
                if not self._is_over(flow_id, one):
                    young += 1
                    continue
                young = 0
                while removed < limit:
                    step = min(limit - removed, REMOVED)
                    count, stepped = await self.steps.run(
                        partial(_prune, limit=step), Missing(flows={flow_id}), frees=True
                    )
                    removed += count
                    gone |= stepped.ended
                    if count < step:
                        break
            if not left or not stored:
                break
            start = stored[-1].seq + 1
        return removed, gone

    def _is_over(self, flow_id: str, stored: Stored) -> bool:
        try:
            record = read_flow(flow_id, [stored])
        except CorruptRecord as problem:
            log_once(_log, problem, self._transport.settings.shown)
            return False
        at = None if record is None else due_at(record.flow)
        return at is not None and micros(at) <= self._state_store.clock.now()


async def in_parts(
    items: Sequence[T], step: Callable[[Sequence[T], int | None], Awaitable[tuple[list[A], Stepped]]]
) -> tuple[list[A], Stepped]:
    """Do something to each of some in one step; in several, if one has no room for it, or others are always quicker.

    A step over many flows loses each race with a step of one of them.

    :param step: does it to some of them, in so many tries.
    """
    answers: list[A] = []
    done = Stepped()
    parts = [items] if items else []
    while parts:
        part = parts.pop(0)
        try:
            told, stepped = await step(part, TRIES if len(part) > 1 else None)
        except (Conflict, PayloadTooLarge):
            if len(part) == 1:
                raise
            half = len(part) // 2
            parts[:0] = [part[:half], part[half:]]
            continue
        answers += told
        done.ended |= stepped.ended
        done.due |= stepped.due
    return answers, done


def _prune(tx: FlowTx, limit: int) -> int:
    return transitions.prune(tx, limit)
