"""Tasks that need the resources of a worker, for processes: at a module's top level, where a new process finds them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path

from omniq import Depends, Fixed, TaskQueue, WorkerState, current_task

who: ContextVar[str] = ContextVar("who", default="nobody")


def note(word: str) -> None:
    """Write a word down, with the process that writes it, where the test looks."""
    with Path(os.environ["RESOURCE_TASKS_LOG"]).open("a", encoding="utf-8") as log:
        log.write(f"{os.getpid()} {word}\n")


@contextmanager
def resources(queue: TaskQueue) -> Iterator[int]:
    assert queue is plain_queue
    refusal = Path(os.environ["RESOURCE_TASKS_LOG"]).with_name("refuse")
    if refusal.exists():
        refusal.unlink()
        raise ConnectionError("no connection left")
    note("open")
    who.set("set by the lifespan")
    yield os.getpid()
    note("closed")


@asynccontextmanager
async def async_resources(queue: TaskQueue) -> AsyncIterator[int]:
    note("open")
    yield os.getpid()
    note("closed")


plain_queue = TaskQueue("memory://", lifespan=resources)
async_queue = TaskQueue("memory://", lifespan=async_resources)


def client(state: int = WorkerState()) -> Iterator[str]:
    note("client")
    yield f"client of {state}"
    note("client left")


def connection(of: str = Depends(client, scope="worker")) -> Iterator[str]:
    yield f"connection of {of}"
    note("connection left")


@plain_queue.task(executor="process", max_retries=1, retry=Fixed(0))
def send(user: int, *, db: str = Depends(connection)) -> tuple[int, int, str, str]:
    assert current_task().state == os.getpid()
    return user, os.getpid(), db, who.get()


@async_queue.task(executor="process", max_retries=0)
def asend(user: int, *, db: str = Depends(connection)) -> tuple[int, int, str, str]:
    return user, os.getpid(), db, who.get()
