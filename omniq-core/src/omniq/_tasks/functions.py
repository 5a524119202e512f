"""A Python function as a task: what ``@queue.task`` returns, and a call of it that has not been made yet."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, cast

from omniq._tasks.definitions import Definition
from omniq._tasks.handle import SyncTaskHandle, TaskHandle
from omniq._tasks.options import Duration, TaskOptions
from omniq._tasks.stand_ins import Ended, StandIn, refuse_stand_ins
from omniq.limit import Debounce
from omniq.retry import RetryPolicy
from omniq.task import NewTask, Task

__all__ = [
    "AsyncTaskFunction",
    "FunctionOwner",
    "TaskCall",
    "TaskFunction",
    "call_of",
]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)


_WORDS_OF_OTHERS = {
    "delay": "enqueue(…); to put it off, using(delay=SECONDS).enqueue(…)",
    "apply_async": "using(delay=…, queue=…).enqueue(…), with the function's own arguments",
    "send": "enqueue(…)",
    "send_with_options": "using(delay=…, queue=…).enqueue(…)",
    "kiq": "aenqueue(…)",
    "kicker": "using(…)",
    "defer": "enqueue(…)",
    "defer_async": "aenqueue(…)",
    "configure": "using(…)",
    "s": "call(…)",
    "si": "call(…)",
    "signature": "call(…)",
    "message": "call(…)",
    "apply": "a plain call, function(…)",
    "call_local": "a plain call, function(…)",
    "schedule": "using(delay=…) or using(run_at=…), then enqueue(…)",
}
"""What users of other queues type, and what is meant."""


class FunctionOwner(Protocol):
    """What a task function asks of the queue that registered it."""

    def submit(self, call: TaskCall[Any]) -> SyncTaskHandle[Any]: ...

    async def asubmit(self, call: TaskCall[Any]) -> TaskHandle[Any]: ...

    @property
    def flows(self) -> Spawner: ...


class Spawner(Protocol):
    """What a running task asks of the part of the queue that is about flows."""

    def spawn(self, call: TaskCall[Any], parent: Task, number: int) -> SyncTaskHandle[Any]: ...

    async def aspawn(self, call: TaskCall[Any], parent: Task, number: int) -> TaskHandle[Any]: ...


class TaskFunction(Generic[P, R]):
    """A function registered with a queue. Calling it runs it here and now; :meth:`enqueue` hands it to a worker."""

    def __init__(
        self, owner: FunctionOwner, definition: Definition, options: TaskOptions, connection: object = None
    ) -> None:
        self.owner = owner
        self.definition = definition
        self.options = options
        self.connection = connection
        """In whose transaction its tasks are enqueued; None: in one of the queue's own."""
        self.start: bytes | None = None
        """The bodies of its tasks, up to the encoded arguments; the queue's to set, at the first need."""
        # Its name and text; not its attributes, which might be called as ours are.
        functools.update_wrapper(self, definition.function, updated=())

    @property
    def name(self) -> str:
        """The name under which its tasks are stored."""
        return self.definition.name

    def __repr__(self) -> str:
        return f"<task function {self.name}>"

    # Each method that takes the function's arguments takes itself by position alone: one of them may be named ``self``.

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, as if it were no task.

        :raises TypeError: if an argument is missing, injected ones included: nothing is injected here.
        """
        refuse_stand_ins(self.name, args, kwargs)
        if self.definition.injection:
            self.definition.check_inline(args, kwargs)
        return cast("R", self.definition.function(*args, **kwargs))

    def call(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskCall[R]:
        """Return a call that can be enqueued later, with others (``queue.enqueue_many``) or by a schedule.

        :raises TypeError: if the function cannot take these arguments, or was given a ``connection``: a call may be
            enqueued at any time, when that transaction is long over.
        """
        if self.connection is not None:
            raise TypeError(
                f"a call of {self.name} cannot keep a connection: make it without, and give the connection to "
                "queue.enqueue_many([…], connection=…)"
            )
        return call_of(self, args, kwargs)

    def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle[R]:
        """Hand the call to the queue and return as soon as the store has it.

        In a coroutine write :meth:`aenqueue`: this one blocks the event loop, and warns of it once a place.

        :return: a handle of the task, which cannot be awaited.
        :raises TypeError: if the function cannot take these arguments.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        :raises StorageUnavailable: if the store cannot take it; then nothing was stored, or the same id can be tried
            again.
        """
        return self.owner.submit(call_of(self, args, kwargs))

    async def aenqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Hand the call to the queue; see :meth:`enqueue`."""
        return await self.owner.asubmit(call_of(self, args, kwargs))

    def using(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        expires: Duration | datetime | None = None,
        unique: str | bool | None = None,
        max_retries: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: Duration | None = None,
        result_ttl: Duration | None = None,
        tags: Iterable[str] | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        limit: str | None = None,
        debounce: Debounce | None = None,
        connection: object = None,
    ) -> TaskFunction[P, R]:
        """Return the same function with other options.

        :param queue: the queue to put its tasks into.
        :param priority: −100…100, larger is claimed first.
        :param delay: seconds (or a timedelta) from now until the task may start.
        :param run_at: an aware datetime at which it may start; instead of ``delay``.
        :param expires: seconds (or a timedelta) from now, or an aware datetime, after which it is no longer started.
        :param unique: at most one live task has this key; a second enqueue gives the first's handle. True: one
            for each function and arguments; False: none.
        :param max_retries: how often it may run again after its first attempt.
        :param retry: how long to wait before each.
        :param timeout: seconds (or a timedelta) that one attempt may take.
        :param result_ttl: seconds (or a timedelta) to keep the record and result after the end.
        :param tags: words to find the task by.
        :param headers: short texts that travel beside the arguments, such as a correlation id, and can be read as
            ``current_task().headers`` and ``Task.headers``: at most 32, 8,192 bytes in all.
        :param key: whose task it is within its queue: those of each key share what ``queue.limit(per_key=…)`` allows,
            and keys get equal shares of the queue, or those of its ``weights``.
        :param limit: a named limit, see ``queue.limit(name=…)``, which tasks of any queue can share.
        :param debounce: the task waits, and takes the place of one that waits with the same key; instead of ``delay``,
            ``run_at`` and ``unique``.
        :param connection: your own connection to the queue's database, with a transaction open: the task exists if and
            only if you commit.
        :raises TypeError, ValueError: if one of them cannot be used; the message names it.
        """
        options = self.options.using(
            queue=queue,
            priority=priority,
            delay=delay,
            run_at=run_at,
            expires=expires,
            unique=unique,
            max_retries=max_retries,
            retry=retry,
            timeout=timeout,
            result_ttl=result_ttl,
            tags=tags,
            headers=headers,
            key=key,
            limit=limit,
            debounce=debounce,
        )
        return type(self)(self.owner, self.definition, options, self.connection if connection is None else connection)

    if not TYPE_CHECKING:  # a type checker tells of names that are not there by itself

        def __getattr__(self, name: str) -> Any:
            own = _WORDS_OF_OTHERS.get(name)
            hint = "" if own is None else f"; OmniQ's word for it is {own}"
            # Asked for before __init__, too, where a copy is made.
            called = vars(self).get("__qualname__", "")
            raise AttributeError(f"task function {called} has no attribute {name!r}{hint}")

    @property
    def header_fields(self) -> dict[str, Any]:
        """The fields of its tasks' headers but the serializer and the retry policy, see :mod:`omniq.storage.body`."""
        options = self.options
        return {"timeout": options.timeout, "is_async": self.definition.is_async, "headers": options.headers}

    @functools.cached_property
    def template(self) -> dict[str, Any]:
        """All fields of an order, as every task of this function and options has them, without an id and a body."""
        options = self.options
        alike = NewTask(
            id="",
            queue=options.queue,
            name=self.definition.name,
            body=b"",
            priority=options.priority,
            max_retries=options.max_retries,
            run_at=options.run_at,
            expires=options.expires,
            tags=options.tags,
            result_ttl=options.result_ttl,
            key=options.key,
            limit=options.limit,
            debounce=options.debounce,
        )
        return vars(alike)


class AsyncTaskFunction(TaskFunction[P, R]):
    """A coroutine function registered with a queue, and for ``inspect`` and ``asyncio`` a coroutine function itself."""

    def __init__(
        self, owner: FunctionOwner, definition: Definition, options: TaskOptions, connection: object = None
    ) -> None:
        super().__init__(owner, definition, options, connection)
        _mark_coroutine_function(self, definition.function)

    # The call gives a coroutine of R where a plain function's gives R: the one difference a type checker must see.
    def __call__(  # type: ignore[override]  # see above
        self, /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run the coroutine function here and now, as if it were no task; see :meth:`TaskFunction.__call__`."""
        refuse_stand_ins(self.name, args, kwargs)
        if self.definition.injection:
            self.definition.check_inline(args, kwargs)
        return cast("Coroutine[Any, Any, R]", self.definition.function(*args, **kwargs))


if sys.version_info >= (3, 12):

    def _mark_coroutine_function(marked: object, function: Callable[..., Any]) -> None:
        inspect.markcoroutinefunction(cast("Callable[..., Any]", marked))

else:

    def _mark_coroutine_function(marked: object, function: Callable[..., Any]) -> None:
        # inspect takes for a function what has all that it looks at in one, as functions of compiled modules have.
        plain = function if inspect.iscoroutinefunction(function) else type(function).__call__
        plain = inspect.unwrap(getattr(plain, "func", plain), stop=lambda inner: hasattr(inner, "__code__"))
        for name in ("__name__", "__annotations__"):
            if not hasattr(marked, name):
                setattr(marked, name, getattr(plain, name, None))
        for name in ("__code__", "__defaults__", "__kwdefaults__"):
            setattr(marked, name, getattr(plain, name, None))


# One for all calls that wait for no other: a dictionary of each one's own would be work for the garbage collector.
_NONE: Mapping[Any, Any] = MappingProxyType({})


class TaskCall(Generic[R_co]):
    """A call of a task function that has not been enqueued yet."""

    __slots__ = ("args", "earlier", "function", "kwargs")

    def __init__(self, function: TaskFunction[Any, R_co], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.earlier: Mapping[TaskCall[Any], bool] = _NONE
        """The calls that must have ended before, and whether each must have succeeded; beside those whose results are
        among the arguments."""

    @property
    def output(self) -> R_co:
        """What the call will return, to be an argument of another call. Type checkers take it for the result itself."""
        return cast("R_co", StandIn([self], "output"))

    @property
    def outcome(self) -> Ended[R_co]:
        """How the call will end, to be an argument of another call that runs whatever becomes of this one."""
        return cast("Ended[R_co]", StandIn([self], "outcome"))

    def then(
        self, function: TaskFunction[Concatenate[R_co, P], S], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskCall[S]:
        """Return a call that takes this one's result as its first argument.

        :param function: the task function to call.
        :param args: its other positional arguments.
        :param kwargs: its keyword arguments.
        :return: the call, of which :meth:`then` makes a longer chain.
        :raises TypeError: if the function cannot take these arguments.
        """
        return cast("TaskCall[S]", cast("Any", function).call(self.output, *args, **kwargs))

    def after(self, *calls: TaskCall[Any], if_failed: Literal["cancel", "run"] = "cancel") -> TaskCall[R_co]:
        """Have this call wait for others without taking their results.

        :param calls: the calls.
        :param if_failed: what becomes of this one if one of them does not succeed: it is cancelled, or runs all the
            same.
        :return: this call itself.
        :raises TypeError: if one of them is no call.
        :raises ValueError: if ``if_failed`` is neither of both.
        """
        if if_failed not in ("cancel", "run"):
            raise ValueError(f"if_failed must be 'cancel' or 'run', not {if_failed!r}")
        self.earlier = earlier = self.earlier if isinstance(self.earlier, dict) else {}
        for call in calls:
            if not isinstance(call, TaskCall):
                raise TypeError(f"{call!r} is no call of a task; write function.call(…)")
            earlier[call] = earlier.get(call, False) or if_failed == "cancel"
        return self

    def __repr__(self) -> str:
        arguments = [repr(value) for value in self.args] + [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.function.name}({', '.join(arguments)})"


def call_of(function: TaskFunction[P, R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskCall[R]:
    """Return a call that is enqueued at once, in the function's connection if it has one.

    :raises TypeError: if the function cannot take these arguments.
    """
    function.definition.check_arguments(args, kwargs)
    return TaskCall(function, args, kwargs)
