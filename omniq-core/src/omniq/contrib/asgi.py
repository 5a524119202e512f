"""A queue within the life of an ASGI application: FastAPI, Starlette, Litestar."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from omniq import TaskQueue

if TYPE_CHECKING:
    from omniq._worker.worker import WorkerOptions

__all__ = ["lifespan"]

_Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]


def lifespan(queue: TaskQueue, worker: WorkerOptions | None = None, *, inner: _Lifespan | None = None) -> _Lifespan:
    """Return a lifespan of an application, which disconnects the queue when the application stops.

    :param queue: the application's.
    :param worker: options of a worker on the application's event loop, as for :class:`~omniq.Worker`, or ``{}``; None:
        no worker. The application stops when the tasks that run have ended, or after the worker's ``grace``.
    :param inner: the application's own lifespan: entered before the worker starts, left after it has stopped, while the
        queue is connected. What it yields is yielded.
    :return: a function that takes the application and returns an asynchronous context manager.
    :raises TypeError: if the queue is none.
    """
    if not isinstance(queue, TaskQueue):
        raise TypeError(f"lifespan() takes a TaskQueue, not {queue!r}; write lifespan=lifespan(queue)")

    @asynccontextmanager
    async def entered(app: Any) -> AsyncIterator[Any]:
        async with queue, AsyncExitStack() as stack:
            state = None if inner is None else await stack.enter_async_context(inner(app))
            if worker is not None:
                await stack.enter_async_context(queue.worker(**worker))
            yield state

    return entered
