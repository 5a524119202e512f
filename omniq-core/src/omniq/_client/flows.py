"""From calls that depend on each other to a flow: the tasks, the gates between them, and who feeds which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from attrs import evolve, frozen

from omniq._tasks.definitions import Definition
from omniq._tasks.functions import TaskCall
from omniq._tasks.scheduled_flows import COUNTED
from omniq._tasks.stand_ins import StandIn, has_stand_in
from omniq.errors import SerializationError
from omniq.flow import NewFlow, NewGate
from omniq.serialization import ArgumentTypes
from omniq.storage import StorageLimits
from omniq.storage.ids import new_id
from omniq.task import Feed, NewTask, Reference

__all__ = ["Graph", "parts_of"]

_Needs = dict[TaskCall[Any], bool]
"""The calls that another waits for, and whether it needs the success of each."""
_Slot = tuple[tuple[str | int, ...], StandIn]
"""A place among the arguments, and what stands there."""


class Orderer(Protocol):
    """Makes tasks of calls; the queue."""

    def order(
        self,
        call: TaskCall[Any],
        arguments: tuple[tuple[Any, ...], Mapping[str, Any], ArgumentTypes] | None = None,
        **fields: Any,
    ) -> NewTask: ...


@frozen
class Graph:
    """A flow that is ready to be stored."""

    flow: NewFlow
    tasks: tuple[NewTask, ...]
    """Each after all that it waits for."""

    @classmethod
    def of(cls, call: TaskCall[Any], queue: Orderer, *, base: int | None = None) -> Graph:
        """Return the flow of a call and all that it needs.

        :param queue: encodes the calls; nothing is stored.
        :param base: the number of the first task's id, which the others follow; None: that of a new id.
        :raises TypeError: if a stand-in is where there can be none.
        :raises ValueError: if the calls depend on each other in a circle, or one of them cannot be of a flow.
        :raises SerializationError: if an argument cannot be encoded; names the function and the path to it.
        """
        return _Compiler(queue).compiled(call, _new_base() if base is None else base)


class _Compiler:
    def __init__(self, queue: Orderer) -> None:
        self._queue = queue
        self._slots: dict[TaskCall[Any], list[_Slot]] = {}
        self._needs: dict[TaskCall[Any], _Needs] = {}
        self._depths: dict[TaskCall[Any], int] = {}
        self._types: dict[tuple[Definition, tuple[tuple[str | int, Any], ...]], ArgumentTypes] = {}

    def compiled(self, root: TaskCall[Any], base: int) -> Graph:
        if not isinstance(root, TaskCall):
            raise TypeError(f"{root!r} is no call of a task; write function.call(…), which does not run it yet")
        self._visit(root)
        # By depth, so that the calls of a group follow one another, and so do their ids.
        calls = sorted(self._depths, key=self._depths.__getitem__)
        ids = {call: str(UUID(int=base + number)) for number, call in enumerate(calls)}
        gates, behind, feeds = self._gates(calls)
        unique = None
        tasks = []
        for call in calls:
            task = self._task(call, ids, {"flow": ids[root], "behind": behind[call], "feeds": feeds[call]})
            if task.unique is not None:
                if call is not root:
                    raise ValueError(
                        f"{call.function.name} has unique={task.unique!r}, and is a part of a flow, of which only the "
                        "last call can have a key: that of the whole"
                    )
                unique, task = task.unique, evolve(task, unique=None)
            tasks.append(task)
        ttl = max(task.result_ttl for task in tasks)
        return Graph(NewFlow(id=ids[root], gates=tuple(gates), unique=unique, result_ttl=ttl), tuple(tasks))

    # What depends on what

    def _visit(self, root: TaskCall[Any]) -> None:
        """Find all calls, and how deep each stands: a loop, as a chain may be longer than Python's stack."""
        stack: list[tuple[TaskCall[Any], Iterator[TaskCall[Any]]]] = [(root, iter(self._look(root)))]
        open_calls = {root: None}
        while stack:
            call, left = stack[-1]
            for needed in left:
                if needed in open_calls:
                    circle = " → ".join(one.function.name for one in [*open_calls, needed])
                    raise ValueError(f"these calls wait for each other in a circle: {circle}")
                if needed not in self._depths:
                    open_calls[needed] = None
                    stack.append((needed, iter(self._look(needed))))
                    break
            else:
                stack.pop()
                del open_calls[call]
                self._depths[call] = 1 + max((self._depths[one] for one in self._needs[call]), default=-1)

    def _look(self, call: TaskCall[Any]) -> _Needs:
        slots = self._slots[call] = list(_slots(call))
        needs = dict(call.earlier)
        for _, stand_in in slots:
            success = stand_in.omniq_kind.startswith("output")
            for one in stand_in.omniq_calls:
                needs[one] = needs.get(one, False) or success
        self._needs[call] = needs
        return needs

    def _gates(
        self, calls: Sequence[TaskCall[Any]]
    ) -> tuple[list[NewGate], dict[TaskCall[Any], int | None], dict[TaskCall[Any], tuple[Feed, ...]]]:
        """Return a gate for each distinct set of calls that others wait for."""
        numbers: dict[frozenset[tuple[TaskCall[Any], bool]], int] = {}
        gates: list[NewGate] = []
        behind: dict[TaskCall[Any], int | None] = {}
        feeds: dict[TaskCall[Any], list[Feed]] = {call: [] for call in calls}
        for call in calls:
            needs = frozenset(self._needs[call].items())
            waits = bool(needs) or bool(self._slots[call])
            if not waits:
                behind[call] = None
                continue
            if needs not in numbers:
                number = numbers[needs] = len(gates)
                gates.append(NewGate(n=number, rank=f"{self._depths[call]:09d}"))
                for one, success in self._needs[call].items():
                    feeds[one].append(Feed(number, success))
            behind[call] = numbers[needs]
        return gates, behind, {call: tuple(fed) for call, fed in feeds.items()}

    # Tasks

    def _task(self, call: TaskCall[Any], ids: Mapping[TaskCall[Any], str], place: Mapping[str, Any]) -> NewTask:
        slots = self._slots[call]
        references = tuple(
            Reference(path, stand_in.omniq_kind, _runs([ids[one] for one in stand_in.omniq_calls]))
            for path, stand_in in slots
        )
        args, kwargs = call.args, call.kwargs
        types = call.function.definition.types[0]
        if slots:
            args, kwargs = _emptied(args, kwargs)
            types = self._typed(args, kwargs, call.function.definition, dict.fromkeys(path[1] for path, _ in slots))
        try:
            return self._queue.order(call, (args, kwargs, types), id=ids[call], references=references, **place)
        except SerializationError as error:
            if has_stand_in(args) or has_stand_in(kwargs):
                raise TypeError(
                    f"{call.function.name} is given the result of a task too deep inside an argument: it can be an "
                    "argument, or an item of a list, tuple or dict that is one"
                ) from None
            raise type(error)(f"{error.message} (of {call.function.name})", error.path) from error

    def _typed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], definition: Definition, places: Iterable[str | int]
    ) -> ArgumentTypes:
        """Return the types of arguments of which some are not there yet."""
        hints = {one: _hint(args[one] if isinstance(one, int) else kwargs[one]) for one in places}
        key = definition, tuple(hints.items())
        if key not in self._types:
            types = definition.types[0]
            count = max((one + 1 for one in hints if isinstance(one, int)), default=0)
            positional = [hints.get(n, types.of_position(n)) for n in range(max(count, len(types.positional)))]
            named = {name: hint for name, hint in hints.items() if isinstance(name, str)}
            self._types[key] = evolve(types, positional=tuple(positional), keyword={**types.keyword, **named})
        return self._types[key]


def _hint(value: Any) -> Any:
    """Return the type of an argument in which nothing stands yet, or items of it do not."""
    containers: dict[type, Any] = {list: list[Any], dict: dict[str, Any]}
    return containers.get(type(value), Any)


def _new_base() -> int:
    return UUID(new_id()).int >> COUNTED << COUNTED


def _slots(call: TaskCall[Any]) -> Iterator[_Slot]:
    places: list[tuple[tuple[str | int, ...], Any]] = [(("args", n), value) for n, value in enumerate(call.args)]
    places += [(("kwargs", name), value) for name, value in call.kwargs.items()]
    for path, value in places:
        if isinstance(value, StandIn):
            yield path, value
        elif type(value) in (list, tuple):
            yield from (((*path, n), one) for n, one in enumerate(value) if isinstance(one, StandIn))
        elif type(value) is dict:
            for name, one in value.items():
                if isinstance(one, StandIn):
                    if not isinstance(name, str):
                        raise TypeError(
                            f"{call.function.name}: the result of a task stands in a dict under {name!r}, which must "
                            "be a text"
                        )
                    yield (*path, name), one


def _emptied(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with None for each stand-in."""

    def emptied(value: Any) -> Any:
        if isinstance(value, StandIn):
            return None
        if type(value) is dict and any(isinstance(one, StandIn) for one in value.values()):
            return {name: None if isinstance(one, StandIn) else one for name, one in value.items()}
        if type(value) in (list, tuple) and any(isinstance(one, StandIn) for one in value):
            made = [None if isinstance(one, StandIn) else one for one in value]
            return made if type(value) is list else tuple(made)
        return value

    return tuple(map(emptied, args)), {name: emptied(value) for name, value in kwargs.items()}


def _runs(ids: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Return ids as the first of each run of ids that follow one another, and its length."""
    runs: list[tuple[str, int]] = []
    end = -1
    for one in ids:
        number = UUID(one).int
        if runs and number == end:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((one, 1))
        end = number + 1
    return tuple(runs)


HOLD_SECONDS = 60.0
"""For how long a flow that is stored in parts may stand still before it is given up."""


GATE_COST = 5
"""What a new gate counts in :attr:`.StorageLimits.flow_step`, where a task that feeds one gate counts 1."""


def parts_of(graph: Graph, limits: StorageLimits) -> list[tuple[NewFlow, Sequence[NewTask]]]:
    """Return a flow in parts that a store keeps all or none; of several, the roots are behind a gate that is held.

    :param graph: the flow.
    :param limits: of the store.
    """
    starts = _starts_of_parts(graph.tasks, limits)
    if len(starts) == 1:
        return [(graph.flow, graph.tasks)]
    held = NewGate(n=len(graph.flow.gates), rank="", hold=True)
    by_number = {gate.n: gate for gate in graph.flow.gates}
    tasks = [task if task.behind is not None else evolve(task, behind=held.n) for task in graph.tasks]
    parts: list[tuple[NewFlow, Sequence[NewTask]]] = []
    for start, end in zip(starts, [*starts[1:], len(tasks)], strict=True):
        part = tasks[start:end]
        # A gate comes with the first that feeds it: with none it would be open at once.
        fed = [feed.gate for task in part for feed in task.feeds]
        empty = [task.behind for task in part if task.behind is not None]
        gates = [gate for n in dict.fromkeys([*fed, *empty]) if (gate := by_number.pop(n, None)) is not None]
        gates = [held, *gates] if start == 0 else gates
        parts.append((evolve(graph.flow, gates=tuple(gates), hold_ttl=HOLD_SECONDS), part))
    return parts


def _starts_of_parts(tasks: Sequence[NewTask], limits: StorageLimits) -> list[int]:
    most_tasks, most = limits.atomic_tasks or len(tasks), limits.flow_step
    if most is None:
        return list(range(0, len(tasks), most_tasks))
    starts, cost = [0], 0
    seen: set[int | None] = {None}
    for at, task in enumerate(tasks):
        gates = {task.behind, *(feed.gate for feed in task.feeds)} - seen
        seen |= gates
        own = max(len(task.feeds), 1) + GATE_COST * len(gates)
        if at > starts[-1] and (cost + own > most or at - starts[-1] >= most_tasks):
            starts.append(at)
            cost = 0
        cost += own
    return starts
