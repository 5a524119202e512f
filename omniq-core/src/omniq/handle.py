"""What a producer holds after handing over a task: a way to its result, its record and its cancellation."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, Protocol, TypeVar

from omniq.options import Duration
from omniq.task import Task

__all__ = ["HandleOwner", "TaskHandle"]

R_co = TypeVar("R_co", covariant=True)


class HandleOwner(Protocol):
    """What a handle asks of the queue that made it."""

    def run(self, coroutine: Any) -> Any: ...

    async def aresult(self, task_id: str, hint: Any, timeout: Duration | None) -> Any: ...

    async def arecord(self, task_id: str) -> Task: ...

    async def acancel(self, task_id: str) -> bool: ...


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
        """Wait for the task's end and give its result. Can be called any number of times while the result is kept.

        :param timeout: seconds (or a timedelta) to wait at most; None: as long as it takes.
        :raises TaskFailed: if the task failed; its ``error`` holds type, message and the worker's traceback.
        :raises TaskCancelled: if it was cancelled or expired.
        :raises ResultTimeout: if it has not ended in time. The task goes on.
        :raises TaskNotFound: if it is not in the store (any more).
        """
        result: R_co = await self._owner.aresult(self.id, self._hint, timeout)
        return result

    def result(self, timeout: Duration | None = None) -> R_co:
        """Wait for the task's end and give its result, for synchronous callers; see :meth:`aresult`."""
        result: R_co = self._owner.run(self.aresult(timeout))
        return result

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.aresult().__await__()

    async def atask(self) -> Task:
        """Give the task's record as it stands now.

        :raises TaskNotFound: if it is not in the store (any more).
        """
        return await self._owner.arecord(self.id)

    def task(self) -> Task:
        """Give the task's record as it stands now, for synchronous callers; see :meth:`atask`."""
        task: Task = self._owner.run(self.atask())
        return task

    async def acancel(self) -> bool:
        """Cancel the task: at once if it waits; a running one is asked to stop.

        :return: whether it was waiting or running.
        """
        return await self._owner.acancel(self.id)

    def cancel(self) -> bool:
        """Cancel the task, for synchronous callers; see :meth:`acancel`."""
        cancelled: bool = self._owner.run(self.acancel())
        return cancelled
