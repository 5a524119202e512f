"""The storage on NATS JetStream: any number of processes on any number of machines share its streams.

What is kept where, and why a change of many tasks is one step, is told in :mod:`omniq_nats.queue_state` and
:mod:`omniq_nats.queue_state_store`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from copy import copy
from datetime import datetime
from functools import partial
from typing import Self

from omniq.errors import StorageUnavailable
from omniq.flow import Flow, NewFlow
from omniq.limit import Limit, LimitUsage, Scope
from omniq.schedule import Schedule
from omniq.storage import (
    Adoption,
    Capability,
    Enqueued,
    Finding,
    Lease,
    LeaseState,
    QueueStats,
    Storage,
    StorageConfig,
    StorageLimits,
    StoredWorker,
    TaskPage,
    TaskQuery,
)
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState
from omniq_nats import claiming, doctor, listing, reading, streams
from omniq_nats.adopting import Adopter
from omniq_nats.control import Control
from omniq_nats.enqueueing import ATOMIC_TASKS, ATOMIC_UNIQUE_TASKS, Producer
from omniq_nats.finishing import Holder
from omniq_nats.flows import STEP, Flows
from omniq_nats.limit_control import delete_limit, forget_idle, put_limit, usage
from omniq_nats.queue_state_store import QueueStateStore
from omniq_nats.recovery import Recovery
from omniq_nats.removal import Removal
from omniq_nats.schedules import ScheduleStore
from omniq_nats.settings import Settings, read_settings
from omniq_nats.task_batches import is_limited
from omniq_nats.times import clock_of, from_micros
from omniq_nats.transport import Transport
from omniq_nats.waiting import LOOK_EVERY, Waiting

__all__ = ["NatsStorage"]

MOST_REMEMBERED = 200_000

_flows: dict[object, dict[str, str]] = {}
"""By store, of each task of a flow claimed in this process, the flow."""
_queues: dict[object, dict[str, str]] = {}
"""By store, of each task claimed in this process, the queue: a heartbeat comes from a storage of its own."""


class _Opened:
    """What an open storage is made of."""

    def __init__(self, settings: Settings) -> None:
        self.transport = Transport(settings)
        self.clock = clock_of(settings.place)
        self.state_store = QueueStateStore(self.transport, self.clock)
        self.queues = _queues.setdefault(settings.place, {})
        self.producer = Producer(self.state_store)
        self.flows = Flows(self.state_store, self.producer, _flows.setdefault(settings.place, {}))
        self.holder = Holder(self.state_store, self.queues, self.flows)
        self.recovery = Recovery(self.state_store, self.flows)
        self.removal = Removal(self.state_store, self.flows)
        self.control = Control(self.state_store, self.removal, self.flows)
        self.adopter = Adopter(self.state_store, self.flows)
        self.schedule_store = ScheduleStore(self.state_store, self.producer, self.flows)
        self.waiting = Waiting(self.state_store, self.schedule_store, self.flows.index)

    async def tell_ends(self, ids: Iterable[str] | Mapping[str, int]) -> None:
        """Tell those who wait for the end of tasks.

        :param ids: of the tasks, if possible each with the number of the change of its queue state that ended it.
        """
        changes = ids if isinstance(ids, Mapping) else {}
        end = self.state_store.names.end
        await self.transport.tell_all((end(one), b"%d" % changes[one] if one in changes else b"") for one in ids)


MAX_PAYLOAD = 1 << 20
"""The most bytes of a message that a server takes unless it is configured otherwise."""


class NatsStorage(Storage):
    """A storage on NATS JetStream.

    :param config: ``nats://host:4222``, ``tls://…`` or ``ws://…``; several hosts with commas between them.
    :raises ValueError: if an option is unknown or cannot be used.
    """

    capabilities: Set[Capability] = frozenset(
        {
            Capability.NOTIFICATIONS,
            Capability.SHARED_BETWEEN_PROCESSES,
            Capability.SHARED_BETWEEN_MACHINES,
            Capability.DURABLE,
        }
    )

    @property
    def limits(self) -> StorageLimits:
        """Of what the server's ``max_payload`` says once it is known, and of the usual 1 MiB before."""
        most = MAX_PAYLOAD if self._opened is None else self._opened.transport.max_payload
        return StorageLimits(
            atomic_tasks=ATOMIC_TASKS,
            atomic_unique_tasks=ATOMIC_UNIQUE_TASKS,
            atomic_across_queues=False,
            lost_wakeup=LOOK_EVERY,
            body=most * 15 // 16,
            running_tasks=most // 256,
            stalled_client=0,
            flows=True,
            task_limits=True,
            active_keys=most // 256,
        )

    def __init__(self, config: StorageConfig) -> None:
        self._settings = read_settings(config)
        self._opened: _Opened | None = None

    def __repr__(self) -> str:
        return f"NatsStorage({self._settings.shown!r}, namespace={self._settings.names.namespace!r})"

    @property
    def losses(self) -> int:
        return 0 if self._opened is None else self._opened.transport.losses

    # Life

    def sibling(self) -> Self:
        twin = copy(self)
        twin._opened = None
        return twin

    async def open(self) -> None:
        if self._opened is not None:
            return
        opened = _Opened(self._settings)
        try:
            await opened.transport.open()
            await streams.prepare(opened.transport, opened.clock)
        except BaseException:
            await opened.transport.close()
            raise
        opened.transport.looked_by = opened.transport.generation
        opened.transport.look = partial(streams.look, opened.transport, opened.clock)
        self._opened = opened

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.waiting.close()
            opened.producer.close()
            await opened.state_store.close()
            await opened.transport.close()

    async def _ready(self) -> _Opened:
        opened = self._opened
        if opened is None:
            raise StorageUnavailable(f"{self._settings.shown} is not open: call open() first")
        # This waits for the servers as long as an operation may. If they do not answer, the operation has had its time.
        await streams.look_at_clock(opened.transport, opened.clock)
        return opened

    async def now(self) -> datetime:
        return from_micros((await self._ready()).clock.now())

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        opened = await self._ready()
        if flow is not None or any(task.flow is not None for task in tasks):
            answers, stepped = await opened.flows.enqueue(tasks, flow)
            await opened.tell_ends(stepped.ended)
            return answers
        if not tasks:
            return []
        if any(map(is_limited, tasks)):
            return await opened.flows.enqueue_limited(tasks)
        enqueued = await opened.producer.enqueue(tasks)
        assert enqueued is not None
        return enqueued

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        opened = self._opened
        if opened is None or opened.clock.is_stale or len(tasks) != 1 or tasks[0].flow is not None:
            return None
        if is_limited(tasks[0]):
            return None
        answer = opened.producer.enqueue_blocking(tasks[0])
        return None if answer is None else [answer]

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        opened = await self._ready()
        if opened.flows.is_due():
            await opened.tell_ends((await opened.flows.settle(STEP))[1])
        tasks, ended = await claiming.claim(
            opened.state_store, opened.flows, demand, worker=worker, lease=lease, limit=limit
        )
        if len(opened.queues) > MOST_REMEMBERED:
            opened.queues.clear()
            opened.flows.members.clear()
        opened.queues.update((task.id, task.queue) for task in tasks)
        opened.flows.members.update((task.id, task.flow) for task in tasks if task.flow is not None)
        await opened.tell_ends(ended)
        return tasks

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        opened = await self._ready()
        answers, ended = await opened.holder.finish(outcomes)
        await opened.tell_ends(ended)
        return answers

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        return await (await self._ready()).holder.heartbeat(worker, leases, lease, about)

    async def recover(self, limit: int) -> list[StoredTask]:
        opened = await self._ready()
        tasks, ended = await opened.recovery.recover(limit)
        await opened.tell_ends(ended)
        return tasks

    # Waiting

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        await (await self._ready()).waiting.for_work(queues, timeout)

    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        return await (await self._ready()).waiting.for_end(ids, timeout)

    # Reading

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        return await reading.get((await self._ready()).state_store, ids)

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        return await listing.list_tasks((await self._ready()).state_store, query, cursor)

    async def stats(self) -> list[QueueStats]:
        opened = await self._ready()
        return await opened.flows.with_blocked(await reading.stats(opened.state_store))

    async def workers(self) -> list[StoredWorker]:
        return await reading.workers((await self._ready()).state_store)

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        opened = await self._ready()
        answers, ended = await opened.control.cancel(ids)
        await opened.tell_ends(ended)
        return answers

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        return await (await self._ready()).control.retry(ids)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        return await (await self._ready()).control.run_now(ids)

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        opened = await self._ready()
        answers, gone = await opened.control.delete(ids)
        await opened.tell_ends(gone)
        opened.state_store.later(opened.transport.keep_reserve())
        return answers

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        opened = await self._ready()
        count, gone = await opened.removal.purge(queue, state)
        await opened.tell_ends(gone)
        opened.state_store.later(opened.transport.keep_reserve())
        return count

    async def pause(self, queue: str) -> bool:
        return await (await self._ready()).control.pause(queue, True)

    async def resume(self, queue: str) -> bool:
        return await (await self._ready()).control.pause(queue, False)

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        await (await self._ready()).holder.set_progress(updates)

    # Flows

    async def release_hold(self, flow_id: str, gate: int) -> bool:
        opened = await self._ready()
        answer, stepped = await opened.flows.release_hold(flow_id, gate)
        await opened.tell_ends(stepped.ended)
        return answer

    async def get_flows(self, ids: Sequence[str]) -> list[Flow | None]:
        return await (await self._ready()).flows.get(ids)

    async def cancel_flow(self, flow_id: str) -> bool:
        opened = await self._ready()
        answer, stepped = await opened.flows.cancel_flow(flow_id)
        await opened.tell_ends(stepped.ended)
        return answer

    async def retry_flow(self, flow_id: str) -> int:
        opened = await self._ready()
        count, stepped = await opened.flows.retry_flow(flow_id)
        await opened.tell_ends(stepped.ended)
        return count

    async def settle(self, limit: int) -> int:
        opened = await self._ready()
        await opened.flows.index.look()
        count, ended = await opened.flows.settle(limit)
        await opened.tell_ends(ended)
        return count

    # Moving in

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
        opened = await self._ready()
        answers, ended = await opened.adopter.adopt(tasks, flows)
        await opened.tell_ends(ended)
        return answers

    # Schedules

    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        return await (await self._ready()).schedule_store.put(schedule, expected_revision)

    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        return await (await self._ready()).schedule_store.get(ids)

    async def delete_schedule(self, schedule_id: str) -> bool:
        return await (await self._ready()).schedule_store.delete(schedule_id)

    async def due_schedules(self, limit: int) -> list[Schedule]:
        return await (await self._ready()).schedule_store.due(limit)

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        return await (await self._ready()).schedule_store.fire(schedule, tasks)

    # Limits

    async def put_limit(self, limit: Limit, expected_revision: int | None = None) -> Limit | None:
        opened = await self._ready()
        return await put_limit(opened.state_store, limit, expected_revision)

    async def get_limits(self, ids: Sequence[str] | None = None) -> list[Limit]:
        records = (await self._ready()).state_store.limits
        found = await (records.all() if ids is None else records.of(dict.fromkeys(ids)))
        return [found[one] for one in (sorted(found) if ids is None else ids) if one in found]

    async def delete_limit(self, limit_id: str) -> bool:
        return await delete_limit((await self._ready()).state_store, limit_id)

    async def get_limit_usage(self, scopes: Sequence[Scope] | None = None) -> list[LimitUsage]:
        if scopes is None:
            scopes = [Scope(limit.queue, name=limit.name) for limit in await self.get_limits()]
        return await usage((await self._ready()).state_store, scopes)

    # Upkeep

    async def prune(self, limit: int) -> int:
        opened = await self._ready()
        count, gone = await opened.removal.prune(limit)
        await forget_idle(opened.state_store)
        await opened.tell_ends(gone)
        return count

    async def namespaces(self) -> list[str]:
        return await reading.namespaces((await self._ready()).state_store)

    async def check(self, limit: int = 100) -> list[Finding]:
        found = await doctor.check((await self._ready()).state_store)
        return [*found, *await super().check(limit)][:limit]

    async def diagnose(self) -> list[Finding]:
        opened = await self._ready()
        return await doctor.diagnose(opened.state_store)
