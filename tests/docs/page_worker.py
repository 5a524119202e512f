"""A worker beside a page's blocks, as the page takes for granted: in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from types import ModuleType

from omniq import TaskQueue


def _queue_of(scope: Mapping[str, object]) -> TaskQueue:
    places = [scope, *(vars(module) for module in scope.values() if isinstance(module, ModuleType))]
    return next(queue for place in places if isinstance(queue := place.get("queue"), TaskQueue))


@contextlib.contextmanager
def running_worker(scope: Mapping[str, object]) -> Iterator[None]:
    """Serve a page's queue meanwhile.

    :param scope: the page's names; its queue is called ``queue``, or is that of a module that the page imported.
    """
    queue = _queue_of(scope)
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    started = threading.Event()

    async def work() -> None:
        async with queue.worker(grace=0):
            started.set()
            await stopped.wait()

    def serve() -> None:
        loop.run_until_complete(work())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    if not started.wait(60):
        raise TimeoutError("the page's worker did not start")
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(60)
