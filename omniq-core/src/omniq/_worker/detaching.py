"""Coroutines that do not heed their cancellation, on an event loop that is to end all the same.

``asyncio.run`` cancels every task that it knows of, and waits until all have ended. It does not know of a task that was
taken out of its registry, for which there is no public function. Where ``asyncio.tasks._unregister_task`` is not as it
is in CPython 3.11 to 3.13, coroutines run within :class:`Detachable`: a little slower, and by public means alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Protocol

__all__ = ["Detachable", "Detacher"]


def _find_unregister() -> Callable[[asyncio.Task[Any]], object] | None:
    function = getattr(asyncio.tasks, "_unregister_task", None)
    return function if callable(function) else None


class Detachable:
    """Awaits a coroutine until it is detached: then it ends at its next step, and the coroutine gets no other.

    :param coroutine: the coroutine.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self.detached = False

    def __await__(self) -> Generator[Any, Any, None]:
        value: Any = None
        error: BaseException | None = None
        while not self.detached:
            try:
                waited_for = self._coroutine.send(value) if error is None else self._coroutine.throw(error)
            except StopIteration:
                return
            value = error = None
            try:
                value = yield waited_for
            except BaseException as thrown:  # whatever it is, it is meant for the coroutine
                error = thrown
        with contextlib.suppress(RuntimeError):  # it does not heed this either
            self._coroutine.close()
        raise asyncio.CancelledError


class _CreateTask(Protocol):
    def __call__(
        self, coroutine: Coroutine[Any, Any, None], /, *, context: Context | None = None
    ) -> asyncio.Task[None]: ...


class Detacher:
    """Starts tasks that can be detached from their loop, and detaches them.

    :param loop: the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._unregister = _find_unregister()
        self._detachables: dict[asyncio.Task[None], Detachable] = {}
        self.create_task: _CreateTask = self._create_detachable_task if self._unregister is None else loop.create_task
        """Does :meth:`asyncio.loop.create_task`."""

    def _create_detachable_task(
        self, coroutine: Coroutine[Any, Any, None], *, context: Context | None = None
    ) -> asyncio.Task[None]:
        detachable = Detachable(coroutine)
        task = self._loop.create_task(_wait_for(detachable), context=context)
        self._detachables[task] = detachable
        task.add_done_callback(self._detachables.pop)
        return task

    def detach(self, task: asyncio.Task[None]) -> None:
        """Stop waiting for a task that :meth:`create_task` made and that may never end."""
        detachable = self._detachables.get(task)
        if detachable is not None:
            detachable.detached = True
        elif self._unregister is not None:
            self._unregister(task)
            with contextlib.suppress(AttributeError):  # private, too; without it asyncio complains of the task, no more
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # unknown to typeshed


async def _wait_for(detachable: Detachable) -> None:
    await detachable
