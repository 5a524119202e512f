"""Takes in records of another store: what had become of a task is part of its batch.

A batch never changes, and no state of a queue can name one that is stored in the same step, as its sequence is not
known yet. So the batch itself has the record of each task, which holds from the step that stores it until the queue's
state, or a page of results, tells of something later. Those that wait are sorted into the queue's state as those that
run later are. Those that have ended stand in the same line: they are counted, and put on their pages, as they are met
there.
"""

from __future__ import annotations

from collections.abc import Sequence

from omniq.flow import Flow
from omniq.storage import Adoption, transitions
from omniq.storage.validation import check_adoptable
from omniq.task import StoredTask, TaskState
from omniq_nats.claiming import fold
from omniq_nats.enqueueing import ATOMIC_TASKS
from omniq_nats.flow_snapshot import Missing
from omniq_nats.flow_steps import Stepped
from omniq_nats.flow_tx import FlowTx
from omniq_nats.flows import Flows, in_parts
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.results import ROOM, EndRecord, inline_of, past_of
from omniq_nats.task_batches import check_new

__all__ = ["Adopter"]


class Adopter:
    """Stores what another store had.

    :param state_store: of the storage.
    :param flows: of the storage: the steps of flows do it, as they know how to store tasks together with all else.
    """

    def __init__(self, state_store: QueueStateStore, flows: Flows) -> None:
        self._state_store = state_store
        self._transport = state_store.transport
        self._flows = flows

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow]) -> tuple[list[Adoption], list[str]]:
        """Do :meth:`omniq.storage.Storage.adopt`.

        :return: the answers, and the ids of tasks that have ended.
        """
        check_adoptable(tasks)
        for task in tasks:
            _check(task)
            self._transport.check_size(len(task.body))
        answers, _ = await in_parts(flows, self._store_flows)
        ended: list[str] = []
        for begin in range(0, len(tasks), ATOMIC_TASKS):
            some = tasks[begin : begin + ATOMIC_TASKS]
            told, stepped = await in_parts(some, self._store_tasks)
            answers += told
            for queue in sorted({task.queue for task in some if task.state is not TaskState.BLOCKED}):
                await self._sort_in(queue)
            ended += [
                task.id
                for task, answer in zip(some, told, strict=True)
                if answer is Adoption.STORED and task.state.is_final
            ]
            ended += await self._flows.settle_these(stepped.due)
        return answers, ended

    async def _store_flows(self, flows: Sequence[Flow], tries: int | None) -> tuple[list[Adoption], Stepped]:
        first = Missing()
        first.flows.update(flow.id for flow in flows)
        first.flow_keys.update(flow.unique for flow in flows if flow.unique is not None)
        return await self._flows.steps.run(lambda tx: transitions.adopt(tx, [], flows), first, tries=tries)

    async def _store_tasks(self, tasks: Sequence[StoredTask], tries: int | None) -> tuple[list[Adoption], Stepped]:
        pasts = await self._pasts(tasks)

        def act(tx: FlowTx) -> list[Adoption]:
            tx.pasts = pasts
            return transitions.adopt(tx, tasks)

        first = Missing()
        first.flows.update(task.flow for task in tasks if task.flow is not None)
        first.keys.update(task.unique for task in tasks if task.unique is not None)
        first.queues.update(task.queue for task in tasks if task.limited is not None)
        return await self._flows.steps.run(act, first, new=tasks, tries=tries)

    async def _pasts(self, tasks: Sequence[StoredTask]) -> dict[str, EndRecord]:
        """Return what had become of tasks; what is large of that is stored in messages of its own."""
        most = self._transport.max_payload
        inline = inline_of(most)
        pasts = {task.id: past_of(task).fitted(most - ROOM) for task in tasks}
        large = {task_id for task_id, past in pasts.items() if past.is_large(inline)}
        if large:
            there = await self._state_store.task_lookup.locate(sorted(large))
            apart = {task_id: pasts[task_id] for task_id in large if task_id not in there}
            await self._state_store.set_apart(apart, {}, inline)
            pasts |= apart
        return pasts

    async def _sort_in(self, queue: str) -> None:
        async def step(queue_state: QueueState) -> tuple[bool, bool]:
            changed = await fold(self._state_store, queue_state)
            return changed, changed

        while await self._state_store.change(queue, step):
            pass


def _check(task: StoredTask) -> None:
    try:
        check_new(task)
    except ValueError as error:
        raise ValueError(f"task {task.id} ({task.name}) cannot be adopted: {error}") from error
