"""The declaring half of a queue: functions become tasks under a name."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from omniq.carrying import is_carried
from omniq.codec import ANY_ARGUMENTS
from omniq.functions import AsyncTaskFunction, Definition, Executor, FunctionOwner, TaskFunction
from omniq.options import Duration, TaskOptions
from omniq.redefinition import is_redefinition, module_code, place_of
from omniq.retry import RetryPolicy
from omniq.schedule import Trigger

if TYPE_CHECKING:
    from omniq.serialization import ArgumentTypes

__all__ = ["Declarations", "TaskDecorator"]

P = ParamSpec("P")
R = TypeVar("R")


class TaskDecorator(Protocol):
    """What ``queue.task(…)`` with options gives: it turns a function into a task function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTaskFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...


class Declarations(FunctionOwner):
    """The declaring half of a :class:`~omniq.TaskQueue`."""

    options: TaskOptions
    functions: dict[str, TaskFunction[Any, Any]]
    declared: dict[str, Trigger]

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
        :raises ValueError: if another function is registered under that name already, or an option cannot be used. A
            module that is executed again, such as a cell of a notebook, replaces its own.
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
        if is_carried(definition.name):
            raise ValueError(f"{definition.name!r} cannot name a task: functions that come in payloads are called so")
        definition.module_code = module_code()
        other = self.functions.get(definition.name)
        if other is not None:
            _check_redefinition(other.definition, definition)
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


def _check_redefinition(before: Definition, after: Definition) -> None:
    if is_redefinition(before.function, after.function, before.module_code, after.module_code):
        return
    mend = "give one of them another name="
    if "<locals>" in after.name:
        mend += ", or have the decorator around it keep the function's own name (functools.wraps)"
    raise ValueError(
        f"a task named {after.name!r} is registered already, for {place_of(before.function)}, and "
        f"{place_of(after.function)} is another function; {mend}"
    )
