"""The producing half of a queue: calls become orders, orders are handed to the store, and results are waited for."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, overload

from omniq._client.queue_flows import QueueFlows
from omniq._client.registration import Declarations
from omniq._client.schedules import Timetable
from omniq._runtime.portal import warn_on_running_loop
from omniq._tasks.context import running
from omniq._tasks.enqueueing import enqueueing
from omniq._tasks.functions import TaskCall, TaskFunction, call_of
from omniq._tasks.handle import SyncTaskHandle, TaskHandle
from omniq._tasks.options import Duration
from omniq._tasks.pickled_functions import carried_call, is_carried
from omniq._tasks.scheduled_flows import is_flow_run
from omniq._tasks.stand_ins import refuse_stand_ins
from omniq.errors import (
    ResultTimeout,
    SerializationError,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from omniq.serialization import ArgumentTypes
from omniq.storage import Enqueued, Storage, StorageLimits
from omniq.storage.body import join_body, make_content, with_header
from omniq.storage.corrupt_records import fetch
from omniq.storage.durations import duration
from omniq.storage.ids import new_id
from omniq.storage.limits import no_limits
from omniq.task import NewTask, Reference, StoredTask, TaskError, TaskState, record_of

if TYPE_CHECKING:
    from omniq.storage.transactions import CallerTransaction

__all__ = ["Producer"]

P = ParamSpec("P")
R = TypeVar("R")

_Bulk: TypeAlias = tuple[Sequence[TaskCall[R]], Sequence[NewTask]]

BULK = 1000
"""How many tasks enqueue_many hands to the store in one call: enough to be fast, few enough to keep its locks short.

Fewer where the store would not keep them together.
"""
BULKS = 2
"""How many of these calls are under way at once: while the store works on one, the next is packed."""


class Producer(Declarations, Timetable):
    """The producing half of a :class:`~omniq.TaskQueue`."""

    _enqueued: Callable[..., None] | None

    @cached_property
    def flows(self) -> QueueFlows:
        """The part of it that is about flows."""
        return QueueFlows(self)

    @overload
    async def aenqueue(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...

    @overload
    async def aenqueue(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskHandle[R]: ...

    @overload
    async def aenqueue(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]: ...

    async def aenqueue(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Hand a call to the queue; the same as ``function.aenqueue(…)``.

        Under a serializer that can hold functions (``cloudpickle``) it may be any function: one that is not registered
        travels with its arguments.

        :return: a handle of the task, once the store has it.
        :raises TypeError: if the function cannot take these arguments.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        return await self.asubmit(self._call_of(function, args, kwargs))

    @overload
    def enqueue(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle[R]: ...

    @overload
    def enqueue(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> SyncTaskHandle[R]: ...

    @overload
    def enqueue(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle[R]: ...

    def enqueue(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SyncTaskHandle[Any]:
        """Hand a call to the queue, for synchronous callers; see :meth:`aenqueue`. Its handle cannot be awaited."""
        return self.submit(self._call_of(function, args, kwargs))

    def _call_of(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskCall[Any]:
        if isinstance(function, TaskFunction):
            return call_of(function, args, kwargs)
        if self.codec.carries and callable(function):
            return carried_call(self, self.options, function, args, kwargs)
        raise TypeError(
            f"{function!r} is no task of this queue; decorate it with @queue.task, or take the serializer "
            "'cloudpickle', with which any function can travel"
        )

    def submit(self, call: TaskCall[R], order: NewTask | None = None) -> SyncTaskHandle[R]:
        """Enqueue one call, for synchronous callers.

        :param order: what :meth:`order` made of it before; None: it is made now.
        """
        warn_on_running_loop("await ….aenqueue(…)")
        task = self.order(call) if order is None else order
        around = self.plugins.around_enqueue
        if around is None:
            stored = self._stored(call, task)
        else:
            with enqueueing(around, self.codec, [task]) as entered:
                (task,) = entered.tasks
                entered.stored = [stored := self._stored(call, task)]
        return self.handle_of(call, task, stored, SyncTaskHandle)

    def _stored(self, call: TaskCall[Any], task: NewTask) -> Enqueued:
        if call.function.connection is not None:
            return self.joined(call.function.connection).enqueue([task])[0]
        # On a store that is quicker without a thread hop the calling thread does it all.
        at_once = self.connections.blocking().enqueue_blocking([task])
        return self.connections.run(self._astored(call, task)) if at_once is None else at_once[0]

    async def asubmit(self, call: TaskCall[R]) -> TaskHandle[R]:
        """Enqueue one call."""
        task = self.order(call)
        around = self.plugins.around_enqueue
        if around is None:
            stored = await self._astored(call, task)
        else:
            with enqueueing(around, self.codec, [task]) as entered:
                (task,) = entered.tasks
                entered.stored = [stored := await self._astored(call, task)]
        return self.handle_of(call, task, stored)

    async def _astored(self, call: TaskCall[R], task: NewTask) -> Enqueued:
        connection = await self.connections.current()
        if call.function.connection is not None:
            joined = connection.storage.join(call.function.connection)
            return (await joined.aenqueue([task]))[0]
        return await connection.enqueue.send(task)

    def joined(self, connection: object) -> CallerTransaction:
        """Return the store inside the caller's transaction, for synchronous callers.

        :raises TypeError: if the connection is asynchronous.
        """
        joined = self.connections.blocking().join(connection)
        if joined.is_async:
            raise TypeError("this connection is asynchronous: write `await ….aenqueue(…)`, or aenqueue_many(…)")
        return joined

    async def aenqueue_many(self, calls: Iterable[TaskCall[R]], *, connection: object = None) -> list[TaskHandle[R]]:
        """Hand many calls to the queue, up to a thousand a round trip.

        Those of one round trip are stored all or none: a thousand, or fewer where the store says so
        (:attr:`~omniq.storage.StorageLimits.atomic_tasks`). Nothing is stored if one of the calls cannot be encoded.

        :param calls: what ``function.call(…)`` returned, of any functions of this queue.
        :param connection: your own connection to the queue's database, with a transaction open: the tasks exist if and
            only if you commit.
        :return: their handles, in order.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        calls, tasks = self._orders(calls)
        around = self.plugins.around_enqueue
        if around is None or not tasks:
            return await self._asubmit_all(calls, tasks, connection)
        with enqueueing(around, self.codec, tasks) as entered:
            handles = await self._asubmit_all(calls, entered.tasks, connection)
            entered.stored = [Enqueued(handle.id, handle.created) for handle in handles]
        return handles

    def enqueue_many(self, calls: Iterable[TaskCall[R]], *, connection: object = None) -> list[TaskHandle[R]]:
        """Hand many calls to the queue, for synchronous callers; see :meth:`aenqueue_many`."""
        warn_on_running_loop("await queue.aenqueue_many(…)")
        # Encoded here, where the calls may come out of a generator that itself uses the queue.
        calls, tasks = self._orders(calls)
        around = self.plugins.around_enqueue
        if around is None or not tasks:
            return self._submit_all(calls, tasks, connection)
        with enqueueing(around, self.codec, tasks) as entered:
            handles = self._submit_all(calls, entered.tasks, connection)
            entered.stored = [Enqueued(handle.id, handle.created) for handle in handles]
        return handles

    def _submit_all(
        self, calls: Sequence[TaskCall[R]], tasks: Sequence[NewTask], connection: object
    ) -> list[TaskHandle[R]]:
        if connection is None:
            return self.connections.run(self._asubmit_all(calls, tasks))
        joined = self.joined(connection)
        handles: list[TaskHandle[R]] = []
        for bulk in _bulks(calls, tasks, self.connections.blocking().limits):
            handles += self._handles_of(*bulk, joined.enqueue(bulk[1]))
        return handles

    async def _asubmit_all(
        self, calls: Sequence[TaskCall[R]], tasks: Sequence[NewTask], connection: object = None
    ) -> list[TaskHandle[R]]:
        storage = (await self.connections.current()).storage
        handles: list[TaskHandle[R]] = []
        if connection is not None:
            # One after the other: what is done on a connection of the caller's, nothing else may be done on meanwhile.
            store = storage.join(connection).aenqueue
            for bulk in _bulks(calls, tasks, storage.limits):
                handles += self._handles_of(*bulk, await store(bulk[1]))
            return handles
        under_way: deque[tuple[_Bulk[R], asyncio.Task[list[Enqueued]]]] = deque()
        try:
            for bulk in _bulks(calls, tasks, storage.limits):
                under_way.append((bulk, asyncio.create_task(storage.enqueue(bulk[1]))))
                await asyncio.sleep(0)  # it is packed and sent before what comes after is looked at
                if len(under_way) == BULKS:
                    earlier, stored = under_way.popleft()
                    handles += self._handles_of(*earlier, await stored)
            while under_way:
                earlier, stored = under_way.popleft()
                handles += self._handles_of(*earlier, await stored)
        finally:
            for _, stored in under_way:
                stored.cancel()
            await asyncio.gather(*(stored for _, stored in under_way), return_exceptions=True)
        return handles

    def _handles_of(
        self, calls: Sequence[TaskCall[R]], tasks: Sequence[NewTask], stored: Sequence[Enqueued]
    ) -> list[TaskHandle[R]]:
        return [self.handle_of(*each) for each in zip(calls, tasks, stored, strict=True)]

    def _orders(self, calls: Iterable[TaskCall[R]]) -> tuple[list[TaskCall[R]], list[NewTask]]:
        made: list[TaskCall[R]] = []
        tasks: list[NewTask] = []
        for call in calls:
            tasks.append(self.order(call))  # at once: its arguments may be others when the next call is made
            made.append(call)
        return made, tasks

    def order(
        self,
        call: TaskCall[Any],
        arguments: tuple[tuple[Any, ...], Mapping[str, Any], ArgumentTypes] | None = None,
        *,
        references: tuple[Reference, ...] = (),
        **fields: Any,
    ) -> NewTask:
        """Return what a call is to the store: its encoded arguments and options, under a new id.

        :param arguments: what to encode in place of the call's own, and the types; None: those as they are.
        :param references: the places that results take when the task runs.
        :param fields: of the task, such as its place in a flow.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        :raises TypeError: if the call needs others, and is none of a flow.
        """
        if not isinstance(call, TaskCall):
            raise TypeError(f"{call!r} is no call of a task; write function.call(…), which does not run it yet")
        function, definition = call.function, call.function.definition
        if definition.name not in self.functions and not (is_carried(definition.name) or is_flow_run(definition.name)):
            raise ValueError(f"{definition.name} is a task of another queue; enqueue it there")
        args, kwargs, types = arguments or (call.args, call.kwargs, definition.types[0])
        if call.earlier and arguments is None and not fields:
            raise TypeError(f"{definition.name} is to run after others: hand its call to queue.enqueue_flow(…)")
        try:
            payload = self.codec.dump_arguments(args, kwargs, types)
        except SerializationError:
            if arguments is None:
                refuse_stand_ins(definition.name, args, kwargs)
            raise
        unique = function.options.unique
        if unique is True:
            unique = f"{definition.name}:{hashlib.sha256(payload).hexdigest()[:32]}"
        body = (function.start or self._start(function)) + payload
        if references:
            body = with_header(body, references=references)
        values = function.template.copy()
        if values["debounce"] is not None:
            unique = values["debounce"].key
            if "flow" in fields:
                raise ValueError(f"{definition.name}: a task of a flow cannot be debounced")
        if (
            values["key"] is not None or values["limit"] is not None or values["debounce"] is not None
        ) and not self.connections.storage_limits.task_limits:
            raise no_limits(self.connections.sibling())
        values["id"], values["body"], values["unique"] = fields.get("id") or new_id(), body, unique or None
        values.update(fields)
        task = record_of(NewTask, values)
        return self.codec.sign(task) if self.codec.signs else task

    # Flows

    async def aenqueue_flow(self, call: TaskCall[R], *, connection: object = None) -> TaskHandle[R]:
        """Hand a call to the queue with all calls that it needs; they are stored all or none, and run in their order.

        A ``unique`` key of the call is that of the whole flow: while another flow with it is live, nothing is stored,
        and the handle is that of the other.

        :param call: what ``function.call(…)`` returned. It needs the calls whose ``output`` or ``outcome`` is among its
            arguments, and those it is to run ``after``; each of these may need others.
        :param connection: your own connection to the queue's database, with a transaction open: the flow exists if and
            only if you commit.
        :return: a handle of the call's task, whose ``flow`` is a handle of the whole.
        :raises ConfigurationError: if the queue's store holds no flows.
        :raises TypeError: if the result of a call is where it cannot be.
        :raises ValueError: if the calls wait for each other in a circle.
        :raises SerializationError: if an argument cannot be encoded; names the function and the path to it.
        """
        return await self.flows.aenqueue(call, connection)

    def enqueue_flow(self, call: TaskCall[R], *, connection: object = None) -> SyncTaskHandle[R]:
        """Hand a call to the queue with all calls that it needs, for synchronous callers; see :meth:`aenqueue_flow`.

        :return: a handle that cannot be awaited.
        """
        warn_on_running_loop("await queue.aenqueue_flow(…)")
        return self.flows.enqueue(call, connection)

    def _start(self, function: TaskFunction[Any, Any]) -> bytes:
        options = function.options
        policy = self.codec.dump_policy(options.retry)
        own = self.functions.get(function.name)
        if not policy and own is not None and own.options.retry != options.retry:
            raise TypeError(
                f"{options.retry!r} cannot travel with a task: declare it with @queue.task(retry=…), or register "
                "its class through the hook omniq_retry_policies"
            )
        header = self.codec.dump_header(policy, **function.header_fields)
        function.start = join_body(make_content(header, b""))
        return function.start

    @overload
    def handle_of(self, call: TaskCall[R], task: NewTask, stored: Enqueued) -> TaskHandle[R]: ...

    @overload
    def handle_of(
        self, call: TaskCall[R], task: NewTask, stored: Enqueued, kind: type[SyncTaskHandle[Any]]
    ) -> SyncTaskHandle[R]: ...

    def handle_of(
        self, call: TaskCall[R], task: NewTask, stored: Enqueued, kind: type[TaskHandle[Any]] = TaskHandle
    ) -> TaskHandle[R]:
        """Return a handle of what was enqueued, after telling plugins of it.

        :param stored: what became of it.
        :param kind: of the handle.
        """
        if self._enqueued is not None:
            self.tell_enqueued([task], [stored])
        return kind(self, stored.id, hint=call.function.definition.types[1], created=stored.created)

    def tell_enqueued(self, tasks: Sequence[NewTask], stored: Sequence[Enqueued]) -> None:
        """Tell plugins which tasks were stored.

        :param stored: what became of each.
        """
        if self._enqueued is not None:
            for task, entry in zip(tasks, stored, strict=True):
                if entry.created:
                    self._enqueued(task=task)

    # Results

    def handle(self, task_id: str) -> TaskHandle[Any]:
        """Return a handle of a task that was enqueued elsewhere, or earlier. Does no I/O.

        :param task_id: a task's id.
        """
        return TaskHandle(self, task_id)

    def _handle_of_run(self, task: NewTask, stored: Enqueued) -> TaskHandle[Any]:
        return TaskHandle(self, stored.id, hint=self._types(task.name)[1], created=stored.created)

    async def aresult(self, task_id: str, hint: Any = None, timeout: Duration | None = None) -> Any:
        """Wait for a task's end, and return its result; see :meth:`TaskHandle.aresult`."""
        storage = (await self.connections.current()).storage
        with _noted(task_id):
            task = await _ended(storage, task_id, None if timeout is None else duration(timeout, "timeout"))
        if task.state is TaskState.FAILED:
            raise TaskFailed(task_id, task.error or TaskError(type="Exception", message="no error was recorded"))
        if task.state is TaskState.CANCELLED:
            raise TaskCancelled(task_id, task.error)
        return self.codec.load_result(task, self._types(task.name)[1] if hint is None else hint)

    async def aended(self, task_ids: Sequence[str], timeout: float) -> set[str]:
        """Wait until at least one of the tasks has ended; see :func:`omniq.as_completed`.

        :param timeout: seconds.
        :return: those that have ended or are not in the store.
        """
        storage = (await self.connections.current()).storage
        return await storage.wait_finished(task_ids, timeout)


@contextlib.contextmanager
def _noted(task_id: str) -> Iterator[None]:
    """Let the worker of the task that waits here, if it is one, know what it waits for."""
    parent = running.get(None)
    if parent is None:
        yield
        return
    parent.awaited.add(task_id)
    try:
        yield
    finally:
        parent.awaited.discard(task_id)


async def _ended(storage: Storage, task_id: str, timeout: float | None) -> StoredTask:
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    while True:
        left = 30.0 if deadline is None else deadline - loop.time()
        # Asked even with no time left, so that result(timeout=0) gives a result that is there.
        if await storage.wait_finished([task_id], max(0.0, min(left, 30.0))):
            task = await fetch(storage, task_id)
            if task is None:
                raise TaskNotFound(task_id)
            if task.state.is_final:
                return task
        elif deadline is not None and loop.time() >= deadline:
            raise ResultTimeout(f"task {task_id} has not ended within {timeout:g} s; it goes on")


def _bulks(calls: Sequence[TaskCall[R]], tasks: Sequence[NewTask], limits: StorageLimits) -> Iterable[_Bulk[R]]:
    """Split calls and their orders into such as the store keeps together."""
    is_unique = any(task.unique is not None for task in tasks)
    atomic = limits.atomic_unique_tasks if is_unique else limits.atomic_tasks
    size = BULK if atomic is None else min(BULK, atomic)
    return ((calls[start : start + size], tasks[start : start + size]) for start in range(0, len(tasks), size))
