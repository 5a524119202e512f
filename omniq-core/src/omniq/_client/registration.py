"""The declaring half of a queue: functions become tasks under a name."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from attrs import evolve

from omniq._client.declared import DeclaredSchedule, ScheduleOptions, check_trigger
from omniq._client.redefinition import is_redefinition, module_code, place_of
from omniq._tasks.definitions import Definition, Executor
from omniq._tasks.functions import AsyncTaskFunction, FunctionOwner, TaskCall, TaskFunction
from omniq._tasks.options import Duration, TaskOptions
from omniq._tasks.payloads import ANY_ARGUMENTS
from omniq._tasks.pickled_functions import is_carried
from omniq._tasks.scheduled_flows import is_flow_run
from omniq.retry import RetryPolicy
from omniq.schedule import Misfire, Overlap, Trigger

if TYPE_CHECKING:
    from omniq.serialization import ArgumentTypes

__all__ = ["Declarations", "ScheduleDecorator", "TaskDecorator"]

P = ParamSpec("P")
R = TypeVar("R")


class TaskDecorator(Protocol):
    """What ``queue.task(…)`` with options returns: it turns a function into a task function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTaskFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...


class ScheduleDecorator(Protocol):
    """What ``queue.scheduled(…)`` returns: it declares a schedule of a task function, or of a function as a task."""

    @overload
    def __call__(self, function: AsyncTaskFunction[P, R], /) -> AsyncTaskFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTaskFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> TaskFunction[P, R]: ...


class Declarations(FunctionOwner):
    """The declaring half of a :class:`~omniq.TaskQueue`."""

    options: TaskOptions
    functions: dict[str, TaskFunction[Any, Any]]
    declared: dict[str, DeclaredSchedule]

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
        schedule: Trigger | Sequence[Trigger] | None = None,
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
        schedule: Trigger | Sequence[Trigger] | None = None,
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
            cancellation kill it; None: plain functions on threads, coroutines on the loop. A function of a notebook is
            sent there, for which ``cloudpickle`` must be installed.
        :param schedule: when to enqueue it by itself, without arguments; several in a list. Workers keep the store in
            step with the code: changed here it is changed there, removed here it is removed there. Its id is the task's
            name, of further ones with a number. With arguments and options: :meth:`scheduled`.
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
        given = schedule if isinstance(schedule, (list, tuple)) else [] if schedule is None else [schedule]
        triggers = [check_trigger(trigger) for trigger in given]

        def register(function: Callable[..., Any]) -> TaskFunction[Any, Any]:
            if isinstance(function, TaskFunction):  # of another queue, too
                function = function.definition.function
            definition = Definition(function, name=name, retry_on=errors, executor=executor)
            return self._register(definition, options, triggers)

        return register if function is None else register(function)

    def scheduled(
        self,
        trigger: Trigger,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        id: str | None = None,  # noqa: A002  # as in schedule()
        misfire: Misfire | str = Misfire.LATEST,
        overlap: Overlap | str = Overlap.ALLOW,
        jitter: Duration = 0.0,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> ScheduleDecorator:
        """Declare a schedule of a task: ``@queue.scheduled(Every(60), args=["eu"])`` above ``@queue.task``.

        One function can have several. A function that is no task yet becomes one, with the queue's defaults. Workers
        keep the store in step with the code, as for ``@queue.task(schedule=…)``.

        :param trigger: when: ``Every(…)``, ``Cron(…)``, ``At(…)``, or a plugin's.
        :param args: the positional arguments of each run.
        :param kwargs: the keyword arguments of each run.
        :param id: the schedule's name, by which it is found and paused; None: the task's name, of further ones with a
            number. Name those of which you may remove one.
        :param misfire: what to do with runs that were missed: ``"latest"``, ``"all"`` or ``"skip"``.
        :param overlap: ``"skip"`` leaves a run out while a task of an earlier one is live.
        :param jitter: seconds (or a timedelta) by which each run may be put off at random.
        :param start: an aware datetime before which nothing runs.
        :param end: an aware datetime after which nothing runs.
        :return: a decorator that returns the task function.
        :raises TypeError: if the function cannot take these arguments, or the trigger is none.
        :raises ValueError: if another schedule is declared under that id, or an option cannot be used.
        """
        if isinstance(args, str):
            raise TypeError(f"args must be a list of arguments, not the string {args!r}; write [{args!r}]")
        options = ScheduleOptions(misfire=misfire, overlap=overlap, jitter=jitter, start=start, end=end)
        check_trigger(trigger)

        def declare(function: Callable[..., Any]) -> Any:
            task: TaskFunction[Any, Any] = function if isinstance(function, TaskFunction) else self.task(function)
            if self.functions.get(task.name) is None or task.definition is not self.functions[task.name].definition:
                raise ValueError(f"{task.name} is no task of this queue: declare its schedules on its own queue")
            self._declare(task.call(*args, **(kwargs or {})), trigger, options, id)
            return task

        return declare

    def _declare(
        self, call: TaskCall[Any], trigger: Trigger, options: ScheduleOptions, schedule_id: str | None = None
    ) -> None:
        if schedule_id is None:
            schedule_id, number = call.function.name, 1
            while schedule_id in self.declared:
                number += 1
                schedule_id = f"{call.function.name} {number}"
        declared = DeclaredSchedule(id=schedule_id, call=call, trigger=trigger, options=options)
        if schedule_id in self.declared:
            raise ValueError(
                f"a schedule with the id {schedule_id!r} is declared already; give one of them another id="
            )
        self.declared[schedule_id] = declared

    def _register(
        self, definition: Definition, options: TaskOptions, triggers: Sequence[Trigger]
    ) -> TaskFunction[Any, Any]:
        if is_carried(definition.name) or is_flow_run(definition.name):
            raise ValueError(
                f"{definition.name!r} cannot name a task: functions and flows that come in payloads are called so"
            )
        definition.module_code = module_code()
        other = self.functions.get(definition.name)
        if other is not None:
            _check_redefinition(other.definition, definition)
        cls = AsyncTaskFunction if definition.is_async else TaskFunction
        registered: TaskFunction[Any, Any] = cls(self, definition, options)
        calls = [registered.call() for _ in triggers]  # a function that needs arguments is refused here
        self.functions[definition.name] = registered
        self._forget_declared(registered)
        for call, trigger in zip(calls, triggers, strict=True):
            self._declare(call, trigger, ScheduleOptions())
        return registered

    def _forget_declared(self, registered: TaskFunction[Any, Any]) -> None:
        """Drop the schedules of what had a function's name before, such as the same module before its reload."""
        for declared in [*self.declared.values()]:
            call = declared.call
            if call.function.name != registered.name:
                continue
            if call.function.definition.function is registered.definition.function:
                # It was declared below @queue.task, on the function itself.
                call = registered.call(*call.args, **call.kwargs)
                self.declared[declared.id] = evolve(declared, call=call)
            else:
                del self.declared[declared.id]

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
