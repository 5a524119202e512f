"""What stands for results of tasks that have not run yet, among the arguments of other calls; and how a task ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from attrs import frozen

from omniq.errors import TaskCancelled, TaskFailed
from omniq.task import TaskError, TaskState

if TYPE_CHECKING:
    from omniq._tasks.functions import TaskCall

__all__ = ["Ended", "StandIn", "has_stand_in", "refuse_stand_ins"]

R_co = TypeVar("R_co", covariant=True)


@frozen
class Ended(Generic[R_co]):
    """How a task of a flow ended, as those are told that run whatever has become of it."""

    id: str
    """The task's id."""
    state: TaskState
    output: R_co | None = None
    """What it returned, if it succeeded."""
    error: TaskError | None = None
    """Why it failed or did not run. Always there unless it succeeded, whose own error is that of its last retry."""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.state is TaskState.SUCCEEDED

    def value(self) -> R_co:
        """Return what the task returned.

        :return: the result.
        :raises TaskFailed: if it failed.
        :raises TaskCancelled: if it was cancelled, or could not run.
        """
        if self.state is TaskState.FAILED:
            raise TaskFailed(self.id, self.error or TaskError(type="Exception", message="no error was recorded"))
        if self.state is not TaskState.SUCCEEDED:
            raise TaskCancelled(self.id, self.error)
        return cast("R_co", self.output)


class StandIn:
    """Stands for the result, or the end, of one call or of several. It can be nothing but an argument.

    :param calls: of which tasks.
    :param kind: see :attr:`omniq.task.Reference.kind`.
    """

    def __init__(self, calls: Sequence[TaskCall[Any]], kind: str) -> None:
        self.omniq_calls = calls
        self.omniq_kind = kind

    def __repr__(self) -> str:
        what = f"{len(self.omniq_calls)} calls" if self.omniq_kind.endswith("s") else repr(self.omniq_calls[0])
        return f"<{self.omniq_kind} of {what}>"

    def __str__(self) -> str:
        return repr(self)  # in the text of an error, say

    def __hash__(self) -> int:
        return id(self)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refusal()

    def _refusal(self) -> TypeError:
        return TypeError(
            f"{self!r} is not known before its task has run: it can only be an argument of another call, or an item of "
            "a list, tuple or dict that is one, and queue.enqueue_flow(…) enqueues that call with all it needs"
        )


def _refuse(self: StandIn, *_: object) -> NoReturn:
    raise self._refusal()


_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul and "
    "rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert lt le gt ge eq ne bool len "
    "iter next contains getitem setitem delitem call int float complex index bytes format round enter "
    "exit await reversed reduce_ex"
)
for _name in _OPERATORS.split():
    setattr(StandIn, f"__{_name}__", _refuse)


def has_stand_in(values: Sequence[object] | Mapping[str, object]) -> bool:
    """Return whether one of some values is a stand-in, or a list, tuple or dict with one in it, however deep.

    :param values: such as the arguments of a call.
    """
    found: list[object] = list(values.values()) if isinstance(values, Mapping) else list(values)
    seen = 0
    while found and seen < _MOST_LOOKED_AT:
        value = found.pop()
        seen += 1
        if isinstance(value, StandIn):
            return True
        if type(value) is dict:
            found.extend(value.values())
        elif type(value) in (list, tuple):
            found.extend(cast("Sequence[object]", value))
    return False


_MOST_LOOKED_AT = 100_000


def refuse_stand_ins(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call that depends on others where it would be made alone.

    :param name: of the function.
    :param args: its positional arguments.
    :param kwargs: its keyword arguments.
    :raises TypeError: if one of them is, or holds, a stand-in.
    """
    if has_stand_in(args) or has_stand_in(kwargs):
        raise TypeError(
            f"{name} is given the result of a task that has not run yet: hand its call to queue.enqueue_flow(…), which "
            "enqueues it with all that it needs"
        )
