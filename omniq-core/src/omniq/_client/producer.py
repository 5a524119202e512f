"""The producing half of a queue: calls become orders, orders are handed to the store, and results are waited for."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from omniq._client.registration import Declarations
from omniq._client.schedules import Timetable
from omniq._runtime.portal import warn_on_running_loop
from omniq._tasks.context import running
from omniq._tasks.enqueueing import enqueueing
from omniq._tasks.functions import TaskCall, TaskFunction, call_of
from omniq._tasks.handle import SyncTaskHandle, TaskHandle
from omniq._tasks.options import Duration
from omniq._tasks.pickled_functions import carried_call, is_carried
from omniq.errors import ResultTimeout, TaskCancelled, TaskFailed, TaskNotFound
from omniq.storage import Enqueued, Storage, StorageLimits
from omniq.storage.body import as_task, join_body, make_content
from omniq.storage.durations import duration
from omniq.storage.ids import new_id
from omniq.storage.validation import fetch
from omniq.task import NewTask, StoredTask, TaskError, TaskState

if TYPE_CHECKING:
    from omniq.storage.transactions import CallerTransaction

__all__ = ["Producer"]

P = ParamSpec("P")
R = TypeVar("R")

BULK = 1000
"""How many tasks enqueue_many hands to the store in one call: enough to be fast, few enough to keep its locks short.

Fewer where the store would not keep them together.
"""
BULKS = 2
"""How many of these calls are under way at once: while the store works on one, the next is packed."""


class Producer(Declarations, Timetable):
    """The producing half of a :class:`~omniq.TaskQueue`."""

    _enqueued: Callable[..., None] | None

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

    def submit(self, call: TaskCall[R]) -> SyncTaskHandle[R]:
        """Enqueue one call, for synchronous callers."""
        warn_on_running_loop("await ….aenqueue(…)")
        task = self.order(call)
        around = self.plugins.around_enqueue
        if around is None:
            stored = self._stored(call, task)
        else:
            with enqueueing(around, self.codec, [task]) as entered:
                (task,) = entered.tasks
                entered.stored = [stored := self._stored(call, task)]
        return self._handle_of(call, task, stored, SyncTaskHandle)

    def _stored(self, call: TaskCall[Any], task: NewTask) -> Enqueued:
        if call.function.connection is not None:
            return self._joined(call.function.connection).enqueue([task])[0]
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
        return self._handle_of(call, task, stored)

    async def _astored(self, call: TaskCall[R], task: NewTask) -> Enqueued:
        connection = await self.connections.current()
        if call.function.connection is not None:
            joined = connection.storage.join(call.function.connection)
            return (await joined.aenqueue([task]))[0]
        return await connection.enqueue.send(task)

    def _joined(self, connection: object) -> CallerTransaction:
        joined = self.connections.blocking().join(connection)
        if joined.is_async:
            raise TypeError("this connection is asynchronous: write `await ….aenqueue(…)`, or aenqueue_many(…)")
        return joined

    async def aenqueue_many(self, calls: Iterable[TaskCall[R]], *, connection: object = None) -> list[TaskHandle[R]]:
        """Hand many calls to the queue, up to a thousand a round trip.

        Those of one round trip are stored all or none: a thousand, or fewer where the store says so
        (:attr:`~omniq.storage.StorageLimits.atomic_tasks`). Nothing is stored if one of the calls cannot be encoded.

        :param calls: what ``function.call(…)`` gave, of any functions of this queue.
        :param connection: your own connection to the queue's database, with a transaction open: the tasks exist if and
            only if you commit.
        :return: their handles, in order.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        orders = [(call, self.order(call)) for call in calls]
        around = self.plugins.around_enqueue
        if around is None or not orders:
            return await self._asubmit_orders(orders, connection)
        with enqueueing(around, self.codec, [task for _, task in orders]) as entered:
            handles = await self._asubmit_orders(_replaced(orders, entered.tasks), connection)
            entered.stored = [Enqueued(handle.id, handle.created) for handle in handles]
        return handles

    def enqueue_many(self, calls: Iterable[TaskCall[R]], *, connection: object = None) -> list[TaskHandle[R]]:
        """Hand many calls to the queue, for synchronous callers; see :meth:`aenqueue_many`."""
        warn_on_running_loop("await queue.aenqueue_many(…)")
        # Encoded here, where the calls may come out of a generator that itself uses the queue.
        orders = [(call, self.order(call)) for call in calls]
        around = self.plugins.around_enqueue
        if around is None or not orders:
            return self._submit_orders(orders, connection)
        with enqueueing(around, self.codec, [task for _, task in orders]) as entered:
            handles = self._submit_orders(_replaced(orders, entered.tasks), connection)
            entered.stored = [Enqueued(handle.id, handle.created) for handle in handles]
        return handles

    def _submit_orders(self, orders: Sequence[tuple[TaskCall[R], NewTask]], connection: object) -> list[TaskHandle[R]]:
        if connection is None:
            return self.connections.run(self._asubmit_orders(orders))
        joined = self._joined(connection)
        handles: list[TaskHandle[R]] = []
        for bulk in _bulks(orders, self.connections.blocking().limits):
            handles += self._handles_of(bulk, joined.enqueue([task for _, task in bulk]))
        return handles

    async def _asubmit_orders(
        self, orders: Sequence[tuple[TaskCall[R], NewTask]], connection: object = None
    ) -> list[TaskHandle[R]]:
        storage = (await self.connections.current()).storage
        handles: list[TaskHandle[R]] = []
        if connection is not None:
            # One after the other: what is done on a connection of the caller's, nothing else may be done on meanwhile.
            store = storage.join(connection).aenqueue
            for bulk in _bulks(orders, storage.limits):
                handles += self._handles_of(bulk, await store([task for _, task in bulk]))
            return handles
        under_way: deque[tuple[Sequence[tuple[TaskCall[R], NewTask]], asyncio.Task[list[Enqueued]]]] = deque()
        try:
            for bulk in _bulks(orders, storage.limits):
                under_way.append((bulk, asyncio.create_task(storage.enqueue([task for _, task in bulk]))))
                await asyncio.sleep(0)  # it is packed and sent before what comes after is looked at
                if len(under_way) == BULKS:
                    earlier, stored = under_way.popleft()
                    handles += self._handles_of(earlier, await stored)
            while under_way:
                earlier, stored = under_way.popleft()
                handles += self._handles_of(earlier, await stored)
        finally:
            for _, stored in under_way:
                stored.cancel()
            await asyncio.gather(*(stored for _, stored in under_way), return_exceptions=True)
        return handles

    def _handles_of(
        self, orders: Sequence[tuple[TaskCall[R], NewTask]], stored: Sequence[Enqueued]
    ) -> list[TaskHandle[R]]:
        return [self._handle_of(*order, entry) for order, entry in zip(orders, stored, strict=True)]

    def order(self, call: TaskCall[Any]) -> NewTask:
        """Return what a call is to the store: its encoded arguments and options, under a new id.

        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        if not isinstance(call, TaskCall):
            raise TypeError(f"{call!r} is no call of a task; write function.call(…), which does not run it yet")
        function, definition = call.function, call.function.definition
        if definition.name not in self.functions and not is_carried(definition.name):
            raise ValueError(f"{definition.name} is a task of another queue; enqueue it there")
        payload = self.codec.dump_arguments(call.args, call.kwargs, definition.types[0])
        unique = function.options.unique
        if unique is True:
            unique = f"{definition.name}:{hashlib.sha256(payload).hexdigest()[:32]}"
        body = join_body(make_content(self._header(function), payload))
        task = NewTask(id=new_id(), body=body, unique=unique or None, **function.template)
        return self.codec.sign(task)

    def _header(self, function: TaskFunction[Any, Any]) -> bytes:
        if function.header is None:
            options = function.options
            policy = self.codec.dump_policy(options.retry)
            own = self.functions.get(function.name)
            if not policy and own is not None and own.options.retry != options.retry:
                raise TypeError(
                    f"{options.retry!r} cannot travel with a task: declare it with @queue.task(retry=…), or register "
                    "its class through the hook omniq_retry_policies"
                )
            function.header = self.codec.dump_header(policy, **function.header_fields)
        return function.header

    @overload
    def _handle_of(self, call: TaskCall[R], task: NewTask, stored: Enqueued) -> TaskHandle[R]: ...

    @overload
    def _handle_of(
        self, call: TaskCall[R], task: NewTask, stored: Enqueued, kind: type[SyncTaskHandle[Any]]
    ) -> SyncTaskHandle[R]: ...

    def _handle_of(
        self, call: TaskCall[R], task: NewTask, stored: Enqueued, kind: type[TaskHandle[Any]] = TaskHandle
    ) -> TaskHandle[R]:
        if self._enqueued is not None and stored.created:
            self._enqueued(task=task)
        return kind(self, stored.id, hint=call.function.definition.types[1], created=stored.created)

    # Results

    def handle(self, task_id: str) -> TaskHandle[Any]:
        """Return a handle of a task that was enqueued elsewhere, or earlier. Does no I/O.

        :param task_id: a task's id.
        """
        return TaskHandle(self, task_id)

    def _handle_of_run(self, task: NewTask, stored: Enqueued) -> TaskHandle[Any]:
        return TaskHandle(self, stored.id, hint=self._types(task.name)[1], created=stored.created)

    async def aresult(self, task_id: str, hint: Any = None, timeout: Duration | None = None) -> Any:
        """Wait for a task's end and give its result; see :meth:`TaskHandle.aresult`."""
        storage = (await self.connections.current()).storage
        with _noted(task_id):
            task = await _ended(storage, task_id, None if timeout is None else duration(timeout, "timeout"))
        if task.state is TaskState.FAILED:
            raise TaskFailed(task_id, task.error or TaskError(type="Exception", message="no error was recorded"))
        if task.state is TaskState.CANCELLED:
            raise TaskCancelled(task_id)
        return self.codec.load_result(as_task(task), self._types(task.name)[1] if hint is None else hint)

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


def _replaced(
    orders: Sequence[tuple[TaskCall[R], NewTask]], tasks: Sequence[NewTask]
) -> Sequence[tuple[TaskCall[R], NewTask]]:
    return [(call, task) for (call, _), task in zip(orders, tasks, strict=True)]


def _bulks(
    orders: Sequence[tuple[TaskCall[R], NewTask]], limits: StorageLimits
) -> Iterable[Sequence[tuple[TaskCall[R], NewTask]]]:
    """Split orders into such as the store keeps together."""
    is_unique = any(task.unique is not None for _, task in orders)
    atomic = limits.atomic_unique_tasks if is_unique else limits.atomic_tasks
    size = BULK if atomic is None else min(BULK, atomic)
    return (orders[start : start + size] for start in range(0, len(orders), size))
