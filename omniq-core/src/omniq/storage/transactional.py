"""Each verb of the contract as one transaction, for a storage that can run Python inside its transactions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from omniq.flow import Flow, NewFlow
from omniq.limit import Limit, LimitUsage, Scope
from omniq.schedule import Schedule
from omniq.storage import flow_transitions, limit_transitions, transitions
from omniq.storage.base import Storage
from omniq.storage.limits import Line, no_limits
from omniq.storage.paging import read_cursor
from omniq.storage.primitives import Tx
from omniq.storage.values import (
    Adoption,
    Enqueued,
    Lease,
    LeaseState,
    QueueStats,
    StorageConfig,
    StorageLimits,
    StoredWorker,
    TaskPage,
    TaskQuery,
)
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState

__all__ = ["FlowsAndLimits", "TransactionalStorage"]

R = TypeVar("R")


class FlowsAndLimits(Storage):
    """The verbs of flows and of limits, and ``adopt``, as transitions: for stores that have other forms of the rest."""

    @abstractmethod
    async def _run(self, verb: Callable[..., R], *values: Any, write: bool = True, wakes: bool = False) -> R:
        """Run a verb in one transaction.

        :param verb: takes the transaction, and the values.
        :param write: whether it may write.
        :param wakes: whether what it changes may be waited for.
        """

    # Flows

    async def release_hold(self, flow_id: str, gate: int) -> bool:
        return await self._run(flow_transitions.release_hold, flow_id, gate, wakes=True)

    async def get_flows(self, ids: Sequence[str]) -> list[Flow | None]:
        return await self._run(flow_transitions.get_flows, ids, write=False)

    async def cancel_flow(self, flow_id: str) -> bool:
        return await self._run(flow_transitions.cancel_flow, flow_id, wakes=True)

    async def retry_flow(self, flow_id: str) -> int:
        return await self._run(flow_transitions.retry_flow, flow_id, wakes=True)

    async def settle(self, limit: int) -> int:
        return await self._run(flow_transitions.settle, limit, wakes=True)

    # Limits

    async def put_limit(self, limit: Limit, expected_revision: int | None = None) -> Limit | None:
        if not self.limits.task_limits:
            raise no_limits(self)
        return await self._run(limit_transitions.put_limit, limit, expected_revision, wakes=True)

    async def get_limits(self, ids: Sequence[str] | None = None) -> list[Limit]:
        return await self._run(limit_transitions.get_limits, ids, write=False)

    async def get_limit_usage(self, scopes: Sequence[Scope] | None = None) -> list[LimitUsage]:
        return await self._run(limit_transitions.get_usage, scopes, write=False)

    async def delete_limit(self, limit_id: str) -> bool:
        return await self._run(limit_transitions.delete_limit, limit_id, wakes=True)

    async def lost_lines(self, lines: Sequence[Line]) -> list[StoredTask]:
        return await self._run(limit_transitions.lost_lines, lines, write=False)

    # Maintenance

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
        return await self._run(transitions.adopt, tasks, flows, wakes=True)


class TransactionalStorage(FlowsAndLimits):
    """A storage whose verbs are :mod:`omniq.storage.transitions`. How a transaction is run, a subclass says."""

    config: StorageConfig
    limits = StorageLimits(flows=True, task_limits=True)
    _purge_step = 1000
    """Tasks that one transaction of ``purge`` removes, so that it locks others out for a short time only."""

    async def _read(self, verb: Callable[[Tx], R]) -> R:
        return await self._run(verb, write=False)

    async def now(self) -> datetime:
        return await self._read(lambda tx: tx.now)

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        return await self._run(transitions.enqueue, tasks, flow, wakes=True)

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        return await self._run(transitions.claim, demand, worker, lease, limit, wakes=True)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        return await self._run(transitions.finish, outcomes, wakes=True)

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        return await self._run(transitions.heartbeat, worker, leases, lease, about)

    async def recover(self, limit: int) -> list[StoredTask]:
        return await self._run(transitions.recover, limit, wakes=True)

    # Reading

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        found = await self._read(lambda tx: tx.get(ids))
        return [found.get(task_id) for task_id in ids]

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        before = read_cursor(cursor, self.config.redacted, None)
        tasks, following = await self._read(lambda tx: tx.page(query, before))
        return TaskPage(tuple(tasks), None if following is None else str(following))

    async def stats(self) -> list[QueueStats]:
        def look(tx: Tx) -> list[QueueStats]:
            counts, paused = tx.counts(), tx.paused()
            return [
                QueueStats(
                    queue=queue,
                    counts=dict.fromkeys(TaskState, 0) | counts.get(queue, {}),
                    paused=queue in paused,
                    oldest_ready=_age(tx.oldest_ready(queue), tx.now),
                )
                for queue in sorted(paused | {queue for queue, states in counts.items() if any(states.values())})
            ]

        return await self._read(look)

    async def workers(self) -> list[StoredWorker]:
        return await self._read(lambda tx: tx.workers())

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.cancel, ids, wakes=True)

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.retry, ids, wakes=True)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.run_now, ids, wakes=True)

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.delete, ids, wakes=True)

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        states = [one for one in TaskState if one is not TaskState.RUNNING and state in (None, one)]
        total = 0
        while True:
            removed: int = await self._run(transitions.purge, queue, states, self._purge_step, wakes=True)
            total += removed
            if removed < self._purge_step:
                return total

    async def pause(self, queue: str) -> bool:
        return await self._run(lambda tx: tx.pause(queue))

    async def resume(self, queue: str) -> bool:
        return await self._run(lambda tx: tx.resume(queue), wakes=True)

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        await self._run(transitions.set_progress, updates)

    # Schedules

    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        return await self._run(transitions.put_schedule, schedule, expected_revision, wakes=True)

    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        known = {schedule.id: schedule for schedule in await self._read(lambda tx: tx.schedules())}
        return [known[one] for one in (sorted(known) if ids is None else ids) if one in known]

    async def delete_schedule(self, schedule_id: str) -> bool:
        return await self._run(transitions.delete_schedule, schedule_id)

    async def due_schedules(self, limit: int) -> list[Schedule]:
        return await self._read(lambda tx: tx.due(limit))

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        return await self._run(transitions.fire, schedule, tasks, wakes=True)

    # Maintenance

    async def prune(self, limit: int) -> int:
        def remove(tx: Tx) -> int:
            tx.forget_workers()
            return transitions.prune(tx, limit)

        return await self._run(remove, wakes=True)


def _age(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else max(0.0, (now - moment).total_seconds())
