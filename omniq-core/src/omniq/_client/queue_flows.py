"""The flows of a queue: how they are stored, also by schedules, and what can be done with the whole of one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attrs import evolve

from omniq._client.flows import Graph, parts_of
from omniq._tasks.context import current_task
from omniq._tasks.definitions import Definition
from omniq._tasks.enqueueing import Enqueueing, enqueueing
from omniq._tasks.functions import AsyncTaskFunction, TaskCall, TaskFunction
from omniq._tasks.handle import SyncTaskHandle, TaskHandle
from omniq._tasks.scheduled_flows import FLOW_PREFIX, load_run
from omniq._tasks.stand_ins import has_stand_in, refuse_stand_ins
from omniq.errors import FlowNotFound, TaskNotFound
from omniq.flow import Flow
from omniq.storage import Enqueued, Storage, TaskQuery
from omniq.storage.body import as_task
from omniq.storage.corrupt_records import fetch
from omniq.storage.failpoints import failpoint
from omniq.storage.flows import no_flows
from omniq.storage.ids import sibling_id
from omniq.storage.records import dump_flow
from omniq.task import NewTask, Task

if TYPE_CHECKING:
    from omniq._client.producer import Producer

__all__ = ["QueueFlows"]

R = TypeVar("R")

LISTED_AT_A_TIME = 1000
MOVED_AT_A_TIME = 1000


class QueueFlows:
    """The part of a :class:`~omniq.TaskQueue` that is about flows.

    :param queue: the queue, which makes its tasks and handles.
    """

    def __init__(self, queue: Producer) -> None:
        self._queue = queue

    # Storing

    async def aenqueue(self, call: TaskCall[R], connection: object) -> TaskHandle[R]:
        """Enqueue a call with all that it needs; see :meth:`.TaskQueue.aenqueue_flow`."""
        storage = await self._storage()
        with self._around(self._graph(call, storage)) as (graph, entered):
            if connection is not None:
                stored = await storage.join(connection).aenqueue_flow(graph.tasks, graph.flow)
            else:
                stored = await self._astore(storage, graph)
            entered.stored = stored
        return self._handle_of(call, graph, stored, TaskHandle)

    def enqueue(self, call: TaskCall[R], connection: object) -> SyncTaskHandle[R]:
        """Enqueue a call with all that it needs, for synchronous callers."""
        connections = self._queue.connections
        with self._around(self._graph(call, connections.blocking())) as (graph, entered):
            if connection is not None:
                stored = self._queue.joined(connection).enqueue_flow(graph.tasks, graph.flow)
            else:
                stored = connections.run(self._acurrent_store(graph))
            entered.stored = stored
        return cast("SyncTaskHandle[R]", self._handle_of(call, graph, stored, SyncTaskHandle))

    def order_of_runs(self, call: TaskCall[Any], storage: Storage) -> NewTask:
        """Return the task that a schedule enqueues for a call: the call's own, or one that stores the call's flow.

        :param storage: where the flow is to be stored.
        """
        if not call.earlier and not has_stand_in([call.args, call.kwargs]):
            return self._queue.order(call)
        graph = self._graph(call, storage, base=0)
        last = graph.tasks[-1]
        starter = self.starter(last.name).using(queue=last.queue, priority=last.priority)
        return self._queue.order(starter.call(dump_flow(graph.flow, graph.tasks)))

    def starter(self, name: str = "") -> TaskFunction[[str], str]:
        """Return what stores the flow of a schedule's run.

        :param name: of the function whose call is the last of the flow.
        """

        async def start_flow(text: str) -> str:
            run = current_task()
            flow, tasks = load_run(text, run)
            with self._around(Graph(flow, tuple(map(self._queue.codec.sign, tasks)))) as (graph, entered):
                entered.stored = stored = await self._acurrent_store(graph)
            self._queue.tell_enqueued(graph.tasks, stored)
            return stored[-1].id

        definition = Definition(start_flow, name=FLOW_PREFIX + name, retry_on=(Exception,))
        return AsyncTaskFunction(self._queue, definition, self._queue.options)

    def _graph(self, call: TaskCall[Any], storage: Storage, base: int | None = None) -> Graph:
        if not storage.limits.flows:
            raise no_flows(storage)
        return Graph.of(call, self._queue, base=base)

    @contextlib.contextmanager
    def _around(self, graph: Graph) -> Iterator[tuple[Graph, Enqueueing]]:
        around = self._queue.plugins.around_enqueue
        if around is None:
            yield graph, Enqueueing(graph.tasks)
            return
        with enqueueing(around, self._queue.codec, graph.tasks) as entered:
            yield evolve(graph, tasks=tuple(entered.tasks)), entered

    async def _storage(self) -> Storage:
        return (await self._queue.connections.current()).storage

    async def _acurrent_store(self, graph: Graph) -> list[Enqueued]:
        return await self._astore(await self._storage(), graph)

    async def _astore(self, storage: Storage, graph: Graph) -> list[Enqueued]:
        parts = parts_of(graph, storage.limits)
        if len(parts) == 1:
            return await storage.enqueue(graph.tasks, graph.flow)
        stored: list[Enqueued] = []
        for flow, part in parts:
            stored += await storage.enqueue(part, flow)
            failpoint("producer.after-part")
            if stored[-1].id != part[-1].id:  # another flow holds the key
                return stored[-1:] * len(graph.tasks)
        failpoint("producer.before-release")
        await storage.release_hold(graph.flow.id, len(graph.flow.gates))
        failpoint("producer.after-release")
        return stored

    def _handle_of(
        self, call: TaskCall[Any], graph: Graph, stored: Sequence[Enqueued], kind: type[TaskHandle[Any]]
    ) -> TaskHandle[Any]:
        self._queue.tell_enqueued(graph.tasks, stored)
        hint = call.function.definition.types[1]
        return kind(self._queue, stored[-1].id, hint=hint, created=stored[-1].created)

    # Adding to one that is there

    def spawn(self, call: TaskCall[Any], parent: Task, number: int) -> SyncTaskHandle[Any]:
        """Add a call to the flow of a running task; see :meth:`.CurrentTask.spawn`."""
        task = self._sibling(call, parent, number)
        (stored,) = self._queue.connections.run(self._aadd(task))
        return self._queue.handle_of(call, task, stored, SyncTaskHandle)

    async def aspawn(self, call: TaskCall[Any], parent: Task, number: int) -> TaskHandle[Any]:
        """Add a call to the flow of a running task; see :meth:`.CurrentTask.aspawn`."""
        task = self._sibling(call, parent, number)
        (stored,) = await self._aadd(task)
        return self._queue.handle_of(call, task, stored)

    async def _aadd(self, task: NewTask) -> list[Enqueued]:
        return await (await self._storage()).enqueue([task])

    def _sibling(self, call: TaskCall[Any], parent: Task, number: int) -> NewTask:
        if parent.flow is None:
            raise ValueError(f"task {parent.id} ({parent.name}) belongs to no flow; enqueue the call instead")
        task_id = sibling_id(parent.id, number)
        if not isinstance(call, TaskCall):
            raise TypeError(f"{call!r} is no call of a task; write function.call(…)")
        refuse_stand_ins(call.function.name, call.args, call.kwargs)
        task = self._queue.order(call, id=task_id, flow=parent.flow, feeds=parent.feeds)
        if task.unique is not None or call.earlier:
            raise ValueError(f"{call.function.name}: a call added to a flow has no key, and waits for no others")
        return task

    # Whole flows

    async def aid_of(self, task_id: str) -> str:
        """Return the flow of a task.

        :raises TaskNotFound: if the task is not in the store (any more).
        :raises ValueError: if it belongs to no flow.
        """
        task = await fetch(await self._storage(), task_id)
        if task is None:
            raise TaskNotFound(task_id)
        if task.flow is None:
            raise ValueError(f"task {task_id} belongs to no flow; it was enqueued alone")
        return task.flow

    async def aget(self, flow_id: str) -> Flow:
        """Return a flow as it stands.

        :raises FlowNotFound: if it is not in the store (any more).
        """
        (flow,) = await (await self._storage()).get_flows([flow_id])
        if flow is None:
            raise FlowNotFound(flow_id)
        return flow

    async def acancel(self, flow_id: str) -> bool:
        """Cancel a flow; see :meth:`.FlowHandle.acancel`."""
        return await (await self._storage()).cancel_flow(flow_id)

    async def aretry(self, flow_id: str) -> int:
        """Retry what failed in a flow; see :meth:`.FlowHandle.aretry`."""
        storage = await self._storage()
        count = await storage.retry_flow(flow_id)
        # What does not move in the same step is moved here, so that the next wait does not find the old ends.
        while await storage.settle(MOVED_AT_A_TIME) >= MOVED_AT_A_TIME:
            pass
        return count

    async def atasks(self, flow_id: str) -> list[Task]:
        """Return the tasks of a flow, in the order of enqueueing."""
        storage = await self._storage()
        found: list[Task] = []
        cursor: str | None = None
        while True:
            page = await storage.list_tasks(TaskQuery(flow=flow_id, limit=LISTED_AT_A_TIME), cursor)
            found += [as_task(task, self._queue.decoder) for task in page]
            cursor = page.cursor
            if cursor is None:
                return found[::-1]
