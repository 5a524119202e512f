"""Functions that are not registered: they travel inside the payload, before their arguments.

Only a serializer that runs code can hold one, so only queues that accept such a serializer run them. In the store such
a task is named ``pickled:`` and the function's own name; which function runs, the payload alone says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omniq._tasks.definitions import Definition, task_name
from omniq._tasks.functions import AsyncTaskFunction, FunctionOwner, TaskCall, TaskFunction
from omniq._tasks.options import LONGEST_TEXT, TaskOptions
from omniq._tasks.scheduled_flows import is_flow_run

__all__ = ["ASYNC_PREFIX", "PREFIX", "Runnable", "carried_call", "carriers", "is_carried"]

PREFIX = "pickled:"
ASYNC_PREFIX = "pickled:async:"


def is_carried(name: str) -> bool:
    """Tell whether a task's name is that of a function in its payload."""
    return name.startswith(PREFIX)


def _run(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


async def _run_async(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return await function(*args, **kwargs)


def carried_call(
    owner: FunctionOwner, options: TaskOptions, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
) -> TaskCall[Any]:
    """Make the call of a function that is not registered.

    :param owner: the queue that will enqueue it.
    :param options: how it is to run.
    :raises TypeError: if it cannot be run as a task, or cannot take these arguments.
    """
    described = Definition(function, name=task_name(function)[: LONGEST_TEXT // 2], retry_on=(Exception,))
    if described.injection:
        raise TypeError(f"{described.name} has injected parameters, and only a registered function is given any")
    described.check_arguments(args, kwargs)
    prefix = ASYNC_PREFIX if described.is_async else PREFIX
    carrier = _carrier(owner, options, f"{prefix}{described.name}", is_async=described.is_async)
    return TaskCall(carrier, (function, *args), dict(kwargs))


def _carrier(owner: FunctionOwner, options: TaskOptions, name: str, *, is_async: bool) -> TaskFunction[Any, Any]:
    if is_async:
        return AsyncTaskFunction(owner, Definition(_run_async, name=name, retry_on=(Exception,)), options)
    return TaskFunction(owner, Definition(_run, name=name, retry_on=(Exception,)), options)


def carriers(owner: FunctionOwner, options: TaskOptions) -> dict[str, TaskFunction[Any, Any]]:
    """Return what a worker runs such tasks with, by the prefix of their names."""
    return {
        prefix: _carrier(owner, options, prefix, is_async=prefix == ASYNC_PREFIX) for prefix in (ASYNC_PREFIX, PREFIX)
    }


class Runnable(Mapping[str, TaskFunction[Any, Any]]):
    """What a worker can run: the registered functions, and carriers of others.

    :param registered: the registered functions; what is registered later is seen.
    :param carried: as :func:`carriers` gives them.
    :param start_flow: what stores the flows of schedules, which every worker can run.
    """

    def __init__(
        self,
        registered: Mapping[str, TaskFunction[Any, Any]],
        carried: Mapping[str, TaskFunction[Any, Any]],
        start_flow: TaskFunction[Any, Any],
    ) -> None:
        self._registered = registered
        self._carried = carried
        self._start_flow = start_flow

    def __getitem__(self, name: str) -> TaskFunction[Any, Any]:
        if is_carried(name):
            return self._carried[ASYNC_PREFIX if name.startswith(ASYNC_PREFIX) else PREFIX]
        return self._start_flow if is_flow_run(name) else self._registered[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return what runs the tasks of a name; overridden as a worker asks it of each task."""
        return self._registered.get(name) or super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        # A copy, as dict makes it in one step: another thread may register a function meanwhile.
        yield from (*self._registered, *self._carried)

    def __len__(self) -> int:
        return len(self._registered) + len(self._carried)
