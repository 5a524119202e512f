"""Calls of one function for each of many items, and calls that are gathered for another to take their results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from omniq._tasks.functions import TaskCall, TaskFunction
from omniq._tasks.stand_ins import Ended, StandIn

__all__ = ["TaskGroup", "each", "gather"]

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)


class TaskGroup(Generic[R_co]):
    """Calls of one function that have not been enqueued yet, one for each of some items; see :func:`each`."""

    __slots__ = ("calls",)

    def __init__(self, calls: Iterable[TaskCall[R_co]]) -> None:
        self.calls = tuple(calls)

    def __len__(self) -> int:
        return len(self.calls)

    def __iter__(self) -> Iterator[TaskCall[R_co]]:
        return iter(self.calls)

    def __repr__(self) -> str:
        return f"<group of {len(self.calls)} calls>"

    @property
    def outputs(self) -> list[R_co]:
        """What the calls will return, in order, to be an argument of another call, or the items of :func:`each`."""
        return cast("list[R_co]", StandIn(self.calls, "outputs"))

    @property
    def outcomes(self) -> list[Ended[R_co]]:
        """How the calls will end, in order, for another call that runs whatever becomes of them."""
        return cast("list[Ended[R_co]]", StandIn(self.calls, "outcomes"))

    def then(
        self, function: TaskFunction[Concatenate[list[R_co], P], S], /, *args: P.args, **kwargs: P.kwargs
    ) -> TaskCall[S]:
        """Return a call that takes the list of all results as its first argument.

        :param function: the task function to call.
        :param args: its other positional arguments.
        :param kwargs: its keyword arguments.
        :return: the call.
        :raises TypeError: if the function cannot take these arguments.
        """
        return cast("TaskCall[S]", cast("Any", function).call(self.outputs, *args, **kwargs))


def each(
    function: TaskFunction[Concatenate[A, P], R], items: Iterable[A], /, *args: P.args, **kwargs: P.kwargs
) -> TaskGroup[R]:
    """Return a group of calls, one for each item, which is the function's first argument.

    :param function: the task function to call.
    :param items: any iterable; or ``outputs`` of another group: then each call needs the one result that it takes.
    :param args: the other positional arguments, the same for all.
    :param kwargs: the keyword arguments, the same for all.
    :return: the group, of which nothing is enqueued yet.
    :raises TypeError: if the function cannot take these arguments.
    """
    wanted: Any = items
    if isinstance(wanted, StandIn):
        single = wanted.omniq_kind.removesuffix("s")
        if single == wanted.omniq_kind:
            raise TypeError(f"each: {items!r} is one result, whose number of items is not known yet")
        wanted = [StandIn([call], single) for call in wanted.omniq_calls]
    make: Any = function.call
    return TaskGroup(make(item, *args, **kwargs) for item in wanted)


def gather(calls: Iterable[TaskCall[R]]) -> list[R]:
    """Return what stands for the list of the results of some calls, as an argument of another call.

    :param calls: of task functions with one type of result.
    :return: a stand-in, which type checkers take for the list.
    :raises TypeError: if one of them is no call.
    """
    found = list(calls)
    for call in found:
        if not isinstance(call, TaskCall):
            raise TypeError(f"{call!r} is no call of a task; write function.call(…)")
    return TaskGroup(found).outputs
