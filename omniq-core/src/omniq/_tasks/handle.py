"""What a producer holds after it enqueued a task: a way to its result, its record and its cancellation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from omniq._runtime.portal import is_on_running_loop
from omniq._tasks.options import Duration
from omniq.errors import ResultTimeout
from omniq.flow import Flow
from omniq.storage.durations import duration
from omniq.task import Task

__all__ = ["FlowHandle", "HandleOwner", "SyncTaskHandle", "TaskHandle", "as_completed"]

R_co = TypeVar("R_co", covariant=True)

WAITED_FOR = 1000
"""How many tasks :func:`as_completed` waits for at a time."""
TURN = 0.2
"""Seconds after which it waits for others, if there are more."""
LONGEST_WAIT = 30.0
"""Seconds that one call to the store may wait."""


class HandleOwner(Protocol):
    """What a handle asks of the queue that made it."""

    def run(self, coroutine: Any) -> Any: ...

    async def aresult(self, task_id: str, hint: Any, timeout: Duration | None) -> Any: ...

    async def arecord(self, task_id: str) -> Task: ...

    async def acancel(self, task_id: str) -> bool: ...

    async def aended(self, task_ids: Sequence[str], timeout: float) -> set[str]: ...

    @property
    def flows(self) -> FlowsOwner: ...


class FlowsOwner(Protocol):
    """What the handle of a flow asks of the part of the queue that is about flows."""

    async def aid_of(self, task_id: str) -> str: ...

    async def aget(self, flow_id: str) -> Flow: ...

    async def acancel(self, flow_id: str) -> bool: ...

    async def aretry(self, flow_id: str) -> int: ...

    async def atasks(self, flow_id: str) -> list[Task]: ...


class TaskHandle(Generic[R_co]):
    """A task that was handed over.

    ``created`` is False where a live task with the same ``unique`` key was there already: then this is the handle of
    that one.
    """

    __slots__ = ("_hint", "_owner", "created", "id")

    def __init__(self, owner: HandleOwner, task_id: str, *, hint: Any = None, created: bool = True) -> None:
        self._owner = owner
        self._hint = hint
        self.id = task_id
        self.created = created

    def __repr__(self) -> str:
        return f"TaskHandle({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def aresult(self, timeout: Duration | None = None) -> R_co:
        """Wait for the task's end, and return its result. Can be called any number of times while the result is kept.

        :param timeout: seconds (or a timedelta) to wait at most; None: as long as it takes.
        :return: what the function returned.
        :raises TaskFailed: if the task failed; its ``error`` holds type, message and the worker's traceback.
        :raises TaskCancelled: if it was cancelled or expired.
        :raises ResultTimeout: if it has not ended in time. The task goes on.
        :raises TaskNotFound: if it is not in the store (any more).
        """
        result: R_co = await self._owner.aresult(self.id, self._hint, timeout)
        return result

    def result(self, timeout: Duration | None = None) -> R_co:
        """Wait for the task's end and return its result, for synchronous callers; see :meth:`aresult`.

        :raises RuntimeError: on a thread whose event loop runs, which would stand still: write ``await handle`` there,
            or ``await handle.aresult(…)``.
        """
        result: R_co = self._owner.run(self.aresult(timeout))
        return result

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.aresult().__await__()

    async def atask(self) -> Task:
        """Return the task's record as it stands now.

        :raises TaskNotFound: if it is not in the store (any more).
        """
        return await self._owner.arecord(self.id)

    def task(self) -> Task:
        """Return the task's record as it stands now, for synchronous callers; see :meth:`atask`."""
        task: Task = self._owner.run(self.atask())
        return task

    @property
    def flow(self) -> FlowHandle:
        """A handle of the flow that the task belongs to. Does no I/O."""
        return FlowHandle(self._owner, self.id)

    async def acancel(self) -> bool:
        """Cancel the task: at once if it waits; a running one is asked to stop.

        :return: whether it was waiting or running.
        """
        return await self._owner.acancel(self.id)

    def cancel(self) -> bool:
        """Cancel the task, for synchronous callers; see :meth:`acancel`."""
        cancelled: bool = self._owner.run(self.acancel())
        return cancelled


class SyncTaskHandle(TaskHandle[R_co]):
    """The handle that the synchronous ``enqueue`` returns: a :class:`TaskHandle` that type checkers refuse to await.

    ``await task.enqueue(…)`` is ``await task.aenqueue(…)`` without its ``a``. If this handle could be awaited, that
    would wait for the task's end where the caller wanted to store it. So one that was made on a running event loop
    raises a TypeError when it is awaited; one that was made before the loop ran does not. ``await handle.aresult()``
    is possible with every handle.
    """

    __slots__ = ("_on_loop",)

    def __init__(self, owner: HandleOwner, task_id: str, *, hint: Any = None, created: bool = True) -> None:
        super().__init__(owner, task_id, hint=hint, created=created)
        self._on_loop = is_on_running_loop()

    if TYPE_CHECKING:
        # None rather than a method that returns NoReturn, which type checkers allow to be awaited.
        __await__: None  # type: ignore[assignment]  # not as in the base class: that is the point
    else:

        def __await__(self) -> Generator[Any, None, R_co]:
            if self._on_loop:
                raise TypeError(
                    "enqueue() is synchronous and its handle cannot be awaited: write `await ….aenqueue(…)`; "
                    f"task {self.id} is stored, and `await handle.aresult()` waits for its result"
                )
            return self.aresult().__await__()


class FlowHandle:
    """The flow that a task belongs to: how far it is, and what can be done about the whole of it."""

    __slots__ = ("_owner", "_task_id")

    def __init__(self, owner: HandleOwner, task_id: str) -> None:
        self._owner = owner
        self._task_id = task_id

    def __repr__(self) -> str:
        return f"<the flow of {self._task_id!r}>"

    @property
    def _flows(self) -> FlowsOwner:
        return self._owner.flows

    async def aprogress(self) -> Flow:
        """Return the flow as it stands: how many of its tasks are in each state, and whether it has ended.

        :return: the flow.
        :raises TaskNotFound: if the handle's task is not in the store (any more).
        :raises FlowNotFound: if the flow is not.
        :raises ValueError: if the task belongs to no flow.
        """
        return await self._flows.aget(await self._flows.aid_of(self._task_id))

    def progress(self) -> Flow:
        """Return the flow as it stands, for synchronous callers; see :meth:`aprogress`.

        :return: the flow.
        """
        flow: Flow = self._owner.run(self.aprogress())
        return flow

    async def acancel(self) -> bool:
        """Cancel all of it: what waits ends, what runs is asked to stop, and nothing can be added.

        :return: False if it has ended, or was cancelled before.
        """
        return await self._flows.acancel(await self._flows.aid_of(self._task_id))

    def cancel(self) -> bool:
        """Cancel all of it, for synchronous callers; see :meth:`acancel`.

        :return: False if it has ended, or was cancelled before.
        """
        cancelled: bool = self._owner.run(self.acancel())
        return cancelled

    async def aretry(self) -> int:
        """Run again what failed or was cancelled, and then what waits for it; what has succeeded is not run again.

        :return: how many tasks run again at once, without those that wait for them.
        """
        return await self._flows.aretry(await self._flows.aid_of(self._task_id))

    def retry(self) -> int:
        """Run again what failed or was cancelled, for synchronous callers; see :meth:`aretry`.

        :return: how many tasks run again at once.
        """
        count: int = self._owner.run(self.aretry())
        return count

    async def atasks(self) -> list[Task]:
        """Return the records of all tasks of the flow.

        :return: in the order of enqueueing.
        """
        return await self._flows.atasks(await self._flows.aid_of(self._task_id))

    def tasks(self) -> list[Task]:
        """Return the records of all tasks of the flow, for synchronous callers; see :meth:`atasks`.

        :return: in the order of enqueueing.
        """
        tasks: list[Task] = self._owner.run(self.atasks())
        return tasks


class _Completions(Generic[R_co]):
    """What :func:`as_completed` returns, to be iterated once."""

    def __init__(self, handles: Iterable[TaskHandle[R_co]], timeout: float | None) -> None:
        self._waiting = {handle.id: handle for handle in handles}
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        owners = {id(handle._owner): handle._owner for handle in self._waiting.values()}
        if len(owners) > 1:
            raise ValueError("as_completed takes handles of one queue; wait for those of each queue by themselves")
        self._owner = next(iter(owners.values()), None)

    def __iter__(self) -> Iterator[TaskHandle[R_co]]:
        owner = self._owner
        while self._waiting and owner is not None:
            ids, patience = self._next()
            yield from self._ended(ids, owner.run(owner.aended(ids, patience)))

    async def __aiter__(self) -> AsyncIterator[TaskHandle[R_co]]:
        owner = self._owner
        while self._waiting and owner is not None:
            ids, patience = self._next()
            for handle in self._ended(ids, await owner.aended(ids, patience)):
                yield handle

    def _next(self) -> tuple[list[str], float]:
        # So many at a time that asking for them again and again costs little; the others have their turn soon.
        ids = list(islice(self._waiting, WAITED_FOR))
        left = LONGEST_WAIT if self._deadline is None else self._deadline - time.monotonic()
        return ids, max(0.0, min(left, LONGEST_WAIT if len(ids) == len(self._waiting) else TURN))

    def _ended(self, ids: Sequence[str], ended: set[str]) -> Iterator[TaskHandle[R_co]]:
        if not ended:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise ResultTimeout(f"{len(self._waiting)} tasks have not ended within {self._timeout:g} s; they go on")
            for task_id in ids:
                self._waiting[task_id] = self._waiting.pop(task_id)
        for task_id in ids:
            if task_id in ended:
                yield self._waiting.pop(task_id)


def as_completed(handles: Iterable[TaskHandle[R_co]], timeout: Duration | None = None) -> _Completions[R_co]:
    """Iterate over handles in the order in which their tasks end; both ``for`` and ``async for`` will do.

    The result of each can then be had at once; getting it raises what the task ended with. A task that is not in the
    store any more counts as ended.

    :param handles: of tasks of one queue. Those of one task are taken as one.
    :param timeout: seconds (or a timedelta) from now for all of them; None: as long as it takes.
    :return: an iterable, for one iteration.
    :raises ResultTimeout: while iterating, if some have not ended in time. The tasks go on.
    :raises RuntimeError: while iterating with ``for`` on a thread whose event loop runs; use ``async for`` there.
    :raises ValueError: if the handles are of several queues.
    """
    return _Completions(handles, None if timeout is None else duration(timeout, "timeout"))
