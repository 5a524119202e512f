"""What users hold: a queue on some store, named by a URL.

Every method has an asynchronous form, ``aenqueue``, and a synchronous one without the ``a``, which runs the same
coroutine on a background loop. There is one implementation of each.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar, Unpack, overload

from omniq.codec import ANY_ARGUMENTS, Codec, FunctionDecoder
from omniq.connections import Connections
from omniq.durations import duration
from omniq.errors import ResultTimeout, TaskCancelled, TaskFailed, TaskNotFound
from omniq.functions import AsyncTaskFunction, Definition, Executor, TaskCall, TaskFunction
from omniq.handle import TaskHandle
from omniq.ids import new_id
from omniq.options import Duration, TaskOptions, check_count
from omniq.plugins import Plugins, default_plugins
from omniq.retry import Exponential, RetryPolicy
from omniq.schedule import Trigger
from omniq.storage import Enqueued, Storage
from omniq.task import NewTask, Task, TaskError, TaskState
from omniq.timetable import Timetable
from omniq.urls import parse_url

if TYPE_CHECKING:
    from omniq.serialization import ArgumentTypes
    from omniq.worker import Worker, WorkerOptions

__all__ = ["TaskDecorator", "TaskQueue"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")

DEFAULT_URL = "sqlite:///omniq.db"
BULK = 1000
"""How many tasks enqueue_many hands to the store in one call: enough to be fast, few enough to keep its locks short."""


class TaskDecorator(Protocol):
    """What ``queue.task(…)`` with options gives: it turns a function into a task function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTaskFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...


class TaskQueue(Timetable):
    """A queue of tasks on a store. Constructing it does no I/O; it connects at the first use.

    Thread-safe, fork-safe, and usable from any number of event loops. A context manager, synchronous and asynchronous.

    :param url: where the tasks are kept, such as ``sqlite:///jobs.db`` or ``memory://``; None: the environment's
        ``OMNIQ_URL``, else ``sqlite:///omniq.db``. A :class:`~omniq.storage.Storage` is taken as well.
    :param namespace: keeps applications apart that share a store.
    :param serializer: the name of the serializer for arguments and results.
    :param accept: the names of the serializers that a worker may decode; None: ``serializer`` alone.
    :param max_retries: for its tasks: how often they may run again after their first attempt.
    :param retry: for its tasks: how long to wait before each; None: ``Exponential()``.
    :param timeout: for its tasks: seconds (or a timedelta) that one attempt may take; None: no limit.
    :param result_ttl: for its tasks: seconds (or a timedelta) to keep the record and result after the end.
    :param max_payload: the most bytes of encoded arguments, and of a result.
    :param plugins: the plugins to use; None: those that are installed.
    :raises UnknownScheme: if no installed storage opens the URL; the message names what to install.
    :raises ConfigurationError: if the URL, an option of it, or a plugin cannot be used.
    """

    def __init__(
        self,
        url: str | Storage | None = None,
        *,
        namespace: str | None = None,
        serializer: str = "json",
        accept: Iterable[str] | None = None,
        max_retries: int = 3,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
        result_ttl: Duration = 86400.0,
        max_payload: int = 1 << 20,
        plugins: Plugins | None = None,
    ) -> None:
        if isinstance(accept, str):
            raise TypeError(f"accept must be a list of names, not the string {accept!r}; write [{accept!r}]")
        check_count(max_payload, "max_payload")
        self.plugins = plugins if plugins is not None else default_plugins()
        if isinstance(url, Storage):
            self.url = f"<{type(url).__name__}>"
            storage = url
        else:
            config = parse_url(url or os.environ.get("OMNIQ_URL") or DEFAULT_URL, namespace)
            self.url = config.redacted
            storage = self.plugins.open_storage(config)
        accepted = (serializer,) if accept is None else tuple(dict.fromkeys((serializer, *accept)))
        self.codec = Codec(self.plugins, serializer=serializer, accept=accepted, max_payload=max_payload)
        self.options = TaskOptions(
            max_retries=max_retries,
            timeout=timeout,
            result_ttl=result_ttl,
            retry=Exponential() if retry is None else retry,
        )
        self.functions: dict[str, TaskFunction[Any, Any]] = {}
        self.declared: dict[str, Trigger] = {}
        self.connections = Connections(storage)
        self.decoder = FunctionDecoder(self.codec, self._types)
        self._enqueued = self.plugins.event("omniq_task_enqueued")

    def __repr__(self) -> str:
        return f"TaskQueue({self.url!r})"

    # Declaring tasks

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTaskFunction[P, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...

    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        max_retries: int | None = None,
        retry: RetryPolicy | None = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        timeout: Duration | None = None,
        result_ttl: Duration | None = None,
        unique: str | bool | None = None,
        executor: Executor | None = None,
        schedule: Trigger | None = None,
    ) -> TaskDecorator: ...

    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        priority: int | None = None,
        max_retries: int | None = None,
        retry: RetryPolicy | None = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
        timeout: Duration | None = None,
        result_ttl: Duration | None = None,
        unique: str | bool | None = None,
        executor: Executor | None = None,
        schedule: Trigger | None = None,
    ) -> Any:
        """Register a function as a task: ``@queue.task``, or ``@queue.task(max_retries=5)``.

        :param name: the name under which its tasks are stored; None: ``module.qualname``.
        :param queue: the queue to put them into; default ``"default"``.
        :param priority: −100…100, larger is claimed first.
        :param max_retries: how often a task may run again after its first attempt.
        :param retry: how long to wait before each.
        :param retry_on: the errors that are retried; others fail the task at once.
        :param timeout: seconds (or a timedelta) that one attempt may take.
        :param result_ttl: seconds (or a timedelta) to keep the record and result after the end.
        :param unique: at most one live task has this key; True: one for each function and arguments.
        :param executor: ``"process"`` runs a CPU-bound plain function in a process of its own, where its timeout and
            cancellation kill it; None: plain functions on threads, coroutines on the loop.
        :param schedule: when to enqueue it by itself, without arguments. Workers keep the store in step with the code:
            changed here it is changed there, removed here it is removed there. Its id is the task's name.
        :return: a :class:`~omniq.TaskFunction`.
        :raises ValueError: if a function is registered under that name already, or an option cannot be used.
        """
        options = self.options.using(
            queue=queue,
            priority=priority,
            max_retries=max_retries,
            retry=retry,
            timeout=timeout,
            result_ttl=result_ttl,
            unique=unique,
        )
        errors = retry_on if isinstance(retry_on, tuple) else (retry_on,)

        def register(function: Callable[..., Any]) -> TaskFunction[Any, Any]:
            definition = Definition(function, name=name, retry_on=errors, executor=executor)
            return self._register(definition, options, schedule)

        return register if function is None else register(function)

    def _register(
        self, definition: Definition, options: TaskOptions, schedule: Trigger | None
    ) -> TaskFunction[Any, Any]:
        other = self.functions.get(definition.name)
        if other is not None and _place(other.definition.function) != _place(definition.function):
            raise ValueError(f"a task named {definition.name!r} is registered already; give one of them another name=")
        cls = AsyncTaskFunction if definition.is_async else TaskFunction
        registered: TaskFunction[Any, Any] = cls(self, definition, options)
        if schedule is not None:
            registered.call()  # a schedule gives no arguments: a function that needs some is refused here
        self.functions[definition.name] = registered
        self.declared.pop(definition.name, None)
        if schedule is not None:
            self.declared[definition.name] = schedule
        return registered

    def _types(self, name: str) -> tuple[ArgumentTypes, Any]:
        function = self.functions.get(name)
        return (ANY_ARGUMENTS, Any) if function is None else function.definition.types

    # Enqueueing

    async def aenqueue(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Hand a call to the queue; the same as ``function.aenqueue(…)``.

        :return: a handle of the task, once the store has it.
        :raises TypeError: if the function cannot take these arguments.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        return await self.asubmit(_task_function(function).call(*args, **kwargs))

    def enqueue(self, function: TaskFunction[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Hand a call to the queue, for synchronous callers; see :meth:`aenqueue`."""
        return self.submit(_task_function(function).call(*args, **kwargs))

    def submit(self, call: TaskCall[R]) -> TaskHandle[R]:
        """Enqueue one call, for synchronous callers."""
        task = self.order(call)
        # On a store that is quicker without a thread hop the calling thread does it all.
        stored = self.connections.blocking().enqueue_blocking([task])
        if stored is None:
            return self.run(self._asubmit_order(call, task))
        return self._handle_of(call, task, stored[0])

    async def asubmit(self, call: TaskCall[R]) -> TaskHandle[R]:
        """Enqueue one call."""
        return await self._asubmit_order(call, self.order(call))

    async def _asubmit_order(self, call: TaskCall[R], task: NewTask) -> TaskHandle[R]:
        connection = await self.connections.current()
        return self._handle_of(call, task, await connection.enqueue.submit(task))

    async def aenqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[TaskHandle[R]]:
        """Hand many calls to the queue, a thousand a round trip.

        Each thousand is stored entirely or not at all. Nothing is stored if one of the calls cannot be encoded.

        :param calls: what ``function.call(…)`` gave, of any functions of this queue.
        :return: their handles, in order.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        orders = [(call, self.order(call)) for call in calls]
        return await self._asubmit_orders(orders)

    def enqueue_many(self, calls: Iterable[TaskCall[R]]) -> list[TaskHandle[R]]:
        """Hand many calls to the queue, for synchronous callers; see :meth:`aenqueue_many`."""
        # Encoded here, where the calls may come out of a generator that itself uses the queue.
        orders = [(call, self.order(call)) for call in calls]
        return self.run(self._asubmit_orders(orders))

    async def _asubmit_orders(self, orders: Sequence[tuple[TaskCall[R], NewTask]]) -> list[TaskHandle[R]]:
        connection = await self.connections.current()
        handles: list[TaskHandle[R]] = []
        for start in range(0, len(orders), BULK):
            bulk = orders[start : start + BULK]
            stored = await connection.storage.enqueue([task for _, task in bulk])
            handles += [self._handle_of(*order, entry) for order, entry in zip(bulk, stored, strict=True)]
        return handles

    def order(self, call: TaskCall[Any]) -> NewTask:
        """Give what a call is to the store: its encoded arguments and options, under a new id.

        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        if not isinstance(call, TaskCall):
            raise TypeError(f"{call!r} is no call of a task; write function.call(…), which does not run it yet")
        function = call.function
        if function.name not in self.functions:
            raise ValueError(f"{function.name} is a task of another queue; enqueue it there")
        payload = self.codec.dump_arguments(call.args, call.kwargs, function.definition.types[0])
        unique = function.options.unique
        if unique is True:
            unique = f"{function.name}:{hashlib.sha256(payload).hexdigest()[:32]}"
        return NewTask(
            id=new_id(),
            payload=payload,
            serializer=self.codec.serializer_name,
            retry=self._policy(function),
            unique=unique or None,
            **function.template,
        )

    def _policy(self, function: TaskFunction[Any, Any]) -> str:
        if function.policy_text is None:
            retry = function.options.retry
            text = self.codec.dump_policy(retry)
            own = self.functions.get(function.name)
            if not text and own is not None and own.options.retry != retry:
                raise TypeError(
                    f"{retry!r} cannot travel with a task: declare it with @queue.task(retry=…), or register its class "
                    "through the hook omniq_retry_policies"
                )
            function.policy_text = text
        return function.policy_text

    def _handle_of(self, call: TaskCall[R], task: NewTask, stored: Enqueued) -> TaskHandle[R]:
        if self._enqueued is not None and stored.created:
            self._enqueued(task=task)
        return TaskHandle(self, stored.id, hint=call.function.definition.types[1], created=stored.created)

    # Reading

    def handle(self, task_id: str) -> TaskHandle[Any]:
        """Give a handle of a task that was enqueued elsewhere, or earlier. Does no I/O.

        :param task_id: a task's id.
        """
        return TaskHandle(self, task_id)

    async def aresult(self, task_id: str, hint: Any = None, timeout: Duration | None = None) -> Any:
        """Wait for a task's end and give its result; see :meth:`TaskHandle.aresult`."""
        storage = (await self.connections.current()).storage
        task = await _ended(storage, task_id, None if timeout is None else duration(timeout, "timeout"))
        if task.state is TaskState.FAILED:
            raise TaskFailed(task_id, task.error or TaskError(type="Exception", message="no error was recorded"))
        if task.state is TaskState.CANCELLED:
            raise TaskCancelled(task_id)
        return self.codec.load_result(task, self._types(task.name)[1] if hint is None else hint)

    # Working

    def worker(self, **options: Unpack[WorkerOptions]) -> Worker:
        """Give a worker that runs this queue's tasks inside ``async with``; leaving it drains what runs.

        :param options: as for :class:`~omniq.Worker`: ``queues``, ``concurrency``, ``threads``, ``lease``, ``grace``,
            ``recover_every``.
        """
        from omniq.worker import Worker  # imported late: a process that only enqueues needs nothing of it

        return Worker(self, **options)

    def run_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Run this queue's tasks until SIGTERM or SIGINT. The first lets running tasks end, a second stops at once.

        :param options: as for :class:`~omniq.Worker`.
        """

        async def work() -> None:
            async with self:
                await self.worker(**options).run()

        asyncio.run(work())

    # Life

    async def aclose(self) -> None:
        """Disconnect. The queue can be used again afterwards: it then connects anew."""
        await self.connections.close()

    def close(self) -> None:
        """Disconnect, for synchronous callers; see :meth:`aclose`."""
        self.connections.close_blocking()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


async def _ended(storage: Storage, task_id: str, timeout: float | None) -> Task:
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    while True:
        left = 30.0 if deadline is None else deadline - loop.time()
        # Asked even with no time left, so that result(timeout=0) gives a result that is there.
        if await storage.wait_finished([task_id], max(0.0, min(left, 30.0))):
            (task,) = await storage.get([task_id])
            if task is None:
                raise TaskNotFound(task_id)
            if task.state.is_final:
                return task
        elif deadline is not None and loop.time() >= deadline:
            raise ResultTimeout(f"task {task_id} has not ended within {timeout:g} s; it goes on")


def _task_function(function: TaskFunction[P, R]) -> TaskFunction[P, R]:
    if not isinstance(function, TaskFunction):
        raise TypeError(f"{function!r} is no task of this queue; decorate it with @queue.task")
    return function


def _place(function: Callable[..., Any]) -> tuple[str, str, int]:
    # A module that is imported twice (a script run as __main__ and imported by its name, a reload) registers the same
    # function again; two different functions under one name are a mistake.
    code = getattr(function, "__code__", None)
    if code is None:
        return (repr(function), "", 0)
    return (code.co_filename, function.__qualname__, code.co_firstlineno)
