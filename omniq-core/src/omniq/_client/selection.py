"""Tasks chosen by what they have in common, and what can be done to all of them: in steps, so that no call is long."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
from datetime import datetime, timedelta
from typing import Protocol, Self

from attrs import evolve, frozen

from omniq._client.audit import tell_action
from omniq._runtime.connections import Connections
from omniq.plugins import Plugins
from omniq.storage import Count, Storage, TaskQuery
from omniq.task import TaskState

__all__ = ["CANCEL", "DELETE", "RETRY", "RUN_NOW", "Action", "Selection", "SelectionOwner", "Step"]

STEP = 500
"""How many tasks the store is asked to change in one call: few enough to keep its locks short."""
READ_AT_ONCE = 25
"""Tasks that are named and read in one call: each is read with its arguments and its result."""
RESOLUTION = timedelta(microseconds=1)
"""Of the clocks of stores."""


class SelectionOwner(Protocol):
    """What a selection needs of its queue."""

    connections: Connections
    plugins: Plugins


@frozen(kw_only=True)
class Step:
    """What one step of an action on many tasks did."""

    done: int
    """How many tasks were changed."""
    skipped: int
    """How many were not: each had changed between being found and being acted on, or had no right to, such as one whose
    ``unique`` key belongs to another task by now; or was named, and is in another state or not there."""
    by_state: Mapping[TaskState, int]
    """How many of those that were changed had been in each state."""
    left: tuple[str, ...] = ()
    """The ids of those that were skipped."""


@frozen
class Action:
    """Something that can be done to many tasks."""

    name: str
    """Of the storage's method, and of the action that plugins are told of."""
    states: frozenset[TaskState]
    """In which it can be done."""
    default: frozenset[TaskState]
    """In which it is done to tasks that were chosen without a state."""


_LIVE = frozenset(state for state in TaskState if not state.is_final)
_NOT_RUNNING = frozenset(TaskState) - {TaskState.RUNNING}
CANCEL = Action("cancel", _LIVE, _LIVE)
RETRY = Action("retry", frozenset({TaskState.FAILED, TaskState.CANCELLED}), frozenset({TaskState.FAILED}))
DELETE = Action("delete", _NOT_RUNNING, _NOT_RUNNING)
RUN_NOW = Action("run_now", frozenset({TaskState.SCHEDULED}), frozenset({TaskState.SCHEDULED}))


class Selection:
    """Tasks that match; :meth:`omniq.TaskQueue.select` makes one. To make it does no I/O.

    A task that is enqueued after its first use, by the store's clock, is not part of it. What is counted and then acted
    on is therefore the same, whatever is enqueued meanwhile.

    An action does something only as its steps are iterated over, each of 500 tasks at most; to stop iterating ends the
    action, and the steps before it stay done. Each step is told to plugins by ``omniq_action_taken``.
    """

    def __init__(self, owner: SelectionOwner, query: TaskQuery, ids: Iterable[str] | None) -> None:
        self._owner = owner
        self._query = query
        self._ids = None if ids is None else tuple(dict.fromkeys(ids))
        self._before: datetime | None = None

    async def _use(self) -> tuple[Storage, TaskQuery]:
        """Return the store, and the query without what was enqueued since the first use."""
        storage = (await self._owner.connections.current()).storage
        if self._ids is not None:
            return storage, self._query
        if self._before is None:
            # Also what is enqueued at the very moment: a task that was there may have been enqueued at it.
            before = await storage.now() + RESOLUTION
            self._before = before if self._query.enqueued_before is None else min(before, self._query.enqueued_before)
        return storage, evolve(self._query, enqueued_before=self._before)

    async def acount(self, limit: int | None = None) -> Count:
        """Return how many tasks match.

        :param limit: count no further than to this number, 1 or more; None: to the end.
        :return: the number, and whether there may be more.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be 1 or more, or None, not {limit!r}")
        storage, query = await self._use()
        if self._ids is None:
            return await storage.count_tasks(query, limit)
        found = 0
        for start in range(0, len(self._ids), READ_AT_ONCE):
            tasks = await storage.get(self._ids[start : start + READ_AT_ONCE])
            found += sum(task is not None and query.matches(task) for task in tasks)
            if limit is not None and found >= limit:
                return Count(limit, at_least=True)
        return Count(found)

    def count(self, limit: int | None = None) -> Count:
        """Return how many tasks match, for synchronous callers; see :meth:`acount`."""
        return self._owner.connections.run(self.acount(limit), instead="await ….acount(…)")

    def acancel(self) -> AsyncIterator[Step]:
        """Cancel those that wait or run; a running one is asked to stop.

        :return: what each step did, to be iterated over.
        :raises ValueError: if tasks in the chosen states cannot be cancelled.
        """
        return _Steps(self, CANCEL)

    def cancel(self) -> Iterator[Step]:
        """Cancel those that wait or run, for synchronous callers; see :meth:`acancel`."""
        return self._each(self.acancel(), "acancel")

    def aretry(self) -> AsyncIterator[Step]:
        """Make those ready again that failed, or also those that were cancelled if they are chosen by state or id.

        :return: what each step did, to be iterated over.
        :raises ValueError: if tasks in the chosen states cannot be retried.
        """
        return _Steps(self, RETRY)

    def retry(self) -> Iterator[Step]:
        """Make those ready again that failed, for synchronous callers; see :meth:`aretry`."""
        return self._each(self.aretry(), "aretry")

    def adelete(self) -> AsyncIterator[Step]:
        """Remove those that are not running, with their results.

        :return: what each step did, to be iterated over.
        :raises ValueError: if tasks in the chosen states cannot be deleted.
        """
        return _Steps(self, DELETE)

    def delete(self) -> Iterator[Step]:
        """Remove those that are not running, for synchronous callers; see :meth:`adelete`."""
        return self._each(self.adelete(), "adelete")

    def arun_now(self) -> AsyncIterator[Step]:
        """Make those ready that are scheduled for later.

        :return: what each step did, to be iterated over.
        :raises ValueError: if tasks in the chosen states cannot be scheduled.
        """
        return _Steps(self, RUN_NOW)

    def run_now(self) -> Iterator[Step]:
        """Make those ready that are scheduled for later, for synchronous callers; see :meth:`arun_now`."""
        return self._each(self.arun_now(), "arun_now")

    def _each(self, steps: AsyncIterator[Step], twin: str) -> Iterator[Step]:
        async def step() -> Step | None:
            return await anext(steps, None)

        while (one := self._owner.connections.run(step(), instead=f"async for step in ….{twin}()")) is not None:
            yield one


class _Steps(AsyncIterator[Step]):
    """An action under way. Between two steps it holds nothing that would have to be given back."""

    def __init__(self, selection: Selection, verb: Action) -> None:
        self._selection = selection
        self._verb = verb
        self._states = _states(selection._query.states, verb, is_named=selection._ids is not None)
        self._cursor: str | None = None
        self._at = 0
        self._is_over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Step:
        storage, query = await self._selection._use()
        query = evolve(query, states=self._states, limit=STEP, bare=True)
        ids = self._selection._ids
        while not self._is_over:
            if ids is None:
                page = await storage.list_tasks(query, self._cursor)
                step = await self._act(storage, {task.id: task.state for task in page}, [])
                self._cursor, self._is_over = page.cursor, page.cursor is None
            else:
                step = await self._act(storage, *await _named(storage, query, ids[self._at : self._at + STEP]))
                self._at += STEP
                self._is_over = self._at >= len(ids)
            if step.done or step.skipped:
                return step
        raise StopAsyncIteration

    async def _act(self, storage: Storage, found: Mapping[str, TaskState], left: list[str]) -> Step:
        ids = list(found)
        answers = await getattr(storage, self._verb.name)(ids) if ids else []
        by_state: Counter[TaskState] = Counter()
        for task_id, did in zip(ids, answers, strict=True):
            if did:
                by_state[found[task_id]] += 1
            else:
                left.append(task_id)
        if ids:
            tell_action(self._selection._owner.plugins, self._verb.name, ids, by_state.total())
        return Step(done=by_state.total(), skipped=len(left), by_state=dict(by_state), left=tuple(left))


async def _named(storage: Storage, query: TaskQuery, ids: Sequence[str]) -> tuple[dict[str, TaskState], list[str]]:
    """Return of the tasks of these ids those that match, with their states, and the ids of the others."""
    found: dict[str, TaskState] = {}
    for start in range(0, len(ids), READ_AT_ONCE):
        few = ids[start : start + READ_AT_ONCE]
        for task_id, task in zip(few, await storage.get(few), strict=True):
            if task is not None and query.matches(task):
                found[task_id] = task.state
    return found, [task_id for task_id in ids if task_id not in found]


def _states(chosen: Set[TaskState] | None, verb: Action, *, is_named: bool) -> Set[TaskState]:
    if chosen is None:
        return verb.states if is_named else verb.default
    if not chosen & verb.states:
        given, possible = (" or ".join(sorted(states)) for states in (chosen, verb.states))
        raise ValueError(f"{verb.name} does nothing to tasks that are {given}; choose such as are {possible}")
    return chosen & verb.states
