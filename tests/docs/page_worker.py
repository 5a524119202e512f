"""A worker beside a page's blocks, as the page takes for granted: in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from omniq import TaskQueue


@contextlib.contextmanager
def running_worker(queue: TaskQueue) -> Iterator[None]:
    """Serve a queue meanwhile."""
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
    if not started.wait(10):
        raise TimeoutError("the page's worker did not start")
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(10)
