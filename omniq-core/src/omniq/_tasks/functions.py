"""A Python function as a task: what ``@queue.task`` gives, and a call of it that has not been made yet."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, cast

from omniq._tasks.dependencies import Injection, Overrides, injection_of
from omniq._tasks.handle import SyncTaskHandle, TaskHandle
from omniq._tasks.options import Duration, TaskOptions, check_text
from omniq._tasks.stand_ins import Ended, StandIn, refuse_stand_ins
from omniq.retry import RetryPolicy
from omniq.serialization import ArgumentTypes
from omniq.serialization.hints import resolve_types
from omniq.task import NewTask, Task

__all__ = [
    "AsyncTaskFunction",
    "Definition",
    "Executor",
    "FunctionOwner",
    "TaskCall",
    "TaskFunction",
    "call_of",
    "task_name",
]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)
Executor: TypeAlias = Literal["loop", "thread", "process"]


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


def task_name(function: Callable[..., Any]) -> str:
    """Return the name under which a function is registered: ``module.qualname``.

    A script's functions are named as a worker that imports it names them, so that ``python shop/jobs.py`` enqueues what
    ``omniq worker shop.jobs:queue`` runs.
    """
    module = function.__module__
    if module in ("__main__", "__mp_main__"):  # the second is what multiprocessing calls a script in its children
        main = sys.modules[module]
        spec = getattr(main, "__spec__", None)
        if spec is not None and spec.name != "__main__":  # the name of a folder that is run
            module = spec.name.removesuffix(".__main__")
        elif getattr(main, "__file__", None):
            module = _module_of_script(Path(main.__file__ or ""))
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def _module_of_script(file: Path) -> str:
    """Return the name by which a worker imports a script: within its package, or else from the current folder."""
    file = file.resolve()
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        parts.insert(0, folder.name)
        folder = folder.parent
    # The first place of sys.path is the script's own folder, whatever it is; beyond it the program put it there.
    if len(parts) == 1 and folder not in [Path(place).resolve() for place in sys.path[1:]]:
        with contextlib.suppress(ValueError, OSError):  # it is not below the current folder, or that is gone
            below = folder.relative_to(Path.cwd()).parts
            if all(part.isidentifier() for part in below):
                parts = [*below, *parts]
    return ".".join(parts).removesuffix(".__main__")


class Definition:
    """What a registered function is, whatever the options of one call.

    :param function: a plain or coroutine function.
    :param name: the name under which tasks of it are stored.
    :param retry_on: errors that are retried; others fail the task at once.
    :param executor: where to run it: None: a coroutine on the loop, a plain function on a thread; or ``"process"``.
    :raises TypeError: if it cannot be run as a task, or not there.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        retry_on: tuple[type[BaseException], ...],
        executor: Executor | None = None,
    ) -> None:
        if isinstance(function, TaskFunction):
            function = function.definition.function  # a task of another queue, too
        if inspect.isclass(function) or not callable(function):
            raise TypeError(f"a task must be a function, not {function!r}")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function!r} is a generator; a task must return its result")
        self.function: Callable[..., Any] = function
        self.name = task_name(function) if name is None else check_text(name, "a task's name")
        self.retry_on = _errors(retry_on)
        self.is_async = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        self.executor = _executor(function, executor, is_async=self.is_async)
        self.by_value = self.executor == "process" and _is_in_no_module(function)
        """Whether a child process cannot import the function, so that it must be sent there."""
        self.module_code: CodeType | None = None
        """The execution of a module that declared it, see :mod:`omniq._client.redefinition`."""
        self.injection: Injection = injection_of(function, is_async=self.is_async)
        """What the function is given beside its arguments."""
        self._injected = frozenset(name for name, _ in self.injection)
        self._signature = inspect.signature(function)
        self._positional = self._plain_positions()

    @property
    def signature(self) -> inspect.Signature:
        """The signature as a caller sees it: without what is injected."""
        parameters = self._signature.parameters.values()
        return self._signature.replace(parameters=[one for one in parameters if one.name not in self._injected])

    def injection_with(self, overrides: Overrides) -> Injection:
        """Return what the function is given beside its arguments while some factories stand in for others.

        :raises TypeError: if one of them cannot.
        """
        return injection_of(self.function, overrides, is_async=self.is_async) if self.injection else self.injection

    def _plain_positions(self) -> range:
        # How many arguments a call by position alone may have; such calls, the usual ones, need no Signature.bind.
        kinds = [parameter.kind for parameter in self._signature.parameters.values()]
        positional = [
            parameter
            for parameter in self._signature.parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(positional) < len(kinds):
            return range(0)
        required = sum(parameter.default is parameter.empty for parameter in positional)
        given = list(itertools.takewhile(lambda parameter: parameter.name not in self._injected, positional))
        return range(required, len(given) + 1)

    @functools.cached_property
    def types(self) -> tuple[ArgumentTypes, Any]:
        """The annotations of the parameters and of the return value, resolved at the first need."""
        return resolve_types(self.function, without=self._injected)

    def check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that the function cannot take, and those that are injected.

        :raises TypeError: as calling the function would, naming it.
        """
        if not kwargs and len(args) in self._positional:
            return
        try:
            given = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.name}{self.signature}: {error}") from None
        if self._injected and (wrong := [name for name in given if name in self._injected]):
            raise TypeError(
                f"{self.name}{self.signature}: {', '.join(map(repr, wrong))} is injected where the task runs, and "
                "cannot be given; give what comes after it by name"
            )

    def check_inline(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse a call here and now without what a worker would inject.

        :raises TypeError: names what is missing.
        """
        given = self._signature.bind_partial(*args, **kwargs).arguments
        if missing := [name for name, _ in self.injection if name not in given]:
            raise TypeError(
                f"{self.name}: {', '.join(map(repr, missing))} is injected only where a worker runs the task; to call "
                f"the function here, give it: {', '.join(f'{name}=…' for name in missing)}"
            )


def _errors(errors: tuple[object, ...]) -> tuple[type[BaseException], ...]:
    kinds = tuple(error for error in errors if isinstance(error, type) and issubclass(error, BaseException))
    if kinds != errors:
        raise TypeError(f"retry_on must be a class of errors, or a tuple of such classes, not {errors!r}")
    return kinds


def _executor(function: Callable[..., Any], executor: str | None, *, is_async: bool) -> Executor:
    if executor not in (None, "loop", "thread", "process"):
        raise ValueError(f"executor must be 'thread' or 'process' (a coroutine runs on the 'loop'), not {executor!r}")
    if is_async:
        if executor in ("thread", "process"):
            raise TypeError(f"{function!r} is a coroutine function: it runs on the loop, not in a {executor}")
        return "loop"
    if executor == "loop":
        raise TypeError(f"{function!r} is a plain function: it would block the loop; make it async, or use a thread")
    if executor != "process":
        return "thread"
    if "<locals>" in function.__qualname__:
        raise TypeError(
            f"{function!r} is defined inside a function: a process could not find it; define it at a module's top level"
        )
    if _is_in_no_module(function) and find_spec("cloudpickle") is None:
        raise TypeError(
            f"{function!r} is defined in no module (in a notebook, say): a process could not import it. Move it into a "
            "module, or install what sends it there: pip install 'omniq-core[cloudpickle]'"
        )
    return "process"


def _is_in_no_module(function: Callable[..., Any]) -> bool:
    main = sys.modules["__main__"]
    return (
        function.__module__ == "__main__" and getattr(main, "__spec__", None) is None and not hasattr(main, "__file__")
    )


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
        self.header: bytes | None = None
        """The header of its tasks' bodies; the queue's to set, at the first need."""
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
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
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


class TaskCall(Generic[R_co]):
    """A call of a task function that has not been enqueued yet."""

    __slots__ = ("args", "earlier", "function", "kwargs")

    def __init__(self, function: TaskFunction[Any, R_co], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.earlier: dict[TaskCall[Any], bool] = {}
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
        for call in calls:
            if not isinstance(call, TaskCall):
                raise TypeError(f"{call!r} is no call of a task; write function.call(…)")
            self.earlier[call] = self.earlier.get(call, False) or if_failed == "cancel"
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
