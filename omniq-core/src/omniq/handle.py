"""What a producer holds after it enqueued a task: a way to its result, its record and its cancellation."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from omniq.options import Duration
from omniq.portal import is_on_running_loop
from omniq.task import Task

__all__ = ["HandleOwner", "SyncTaskHandle", "TaskHandle"]

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
        """Wait for the task's end and return its result, for synchronous callers; see :meth:`aresult`.

        :raises RuntimeError: on a thread whose event loop runs, which would stand still; write ``await handle`` there.
        """
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
        # None rather than a method that returns NoReturn, which type checkers let everybody await.
        __await__: None  # type: ignore[assignment]  # not as in the base class: that is the point
    else:

        def __await__(self) -> Generator[Any, None, R_co]:
            if self._on_loop:
                raise TypeError(
                    "enqueue() is synchronous and its handle cannot be awaited: write `await ….aenqueue(…)`; "
                    f"task {self.id} is stored, and `await handle.aresult()` waits for its result"
                )
            return self.aresult().__await__()
