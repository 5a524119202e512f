"""Injected parameters as type checkers see them, mypy and pyright: what they read, and nobody runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, assert_type

from omniq import Depends, TaskCall, TaskHandle, TaskQueue, WorkerState, current_task
from omniq._tasks.handle import SyncTaskHandle


class Pool: ...


class Connection: ...


@asynccontextmanager
async def resources(queue: TaskQueue) -> AsyncIterator[Pool]:
    yield Pool()


@contextmanager
def plain_resources(queue: TaskQueue) -> Iterator[Pool]:
    yield Pool()


queue = TaskQueue("memory://", lifespan=resources)
plain_queue = TaskQueue("memory://", lifespan=plain_resources)


async def connection(pool: Pool = WorkerState()) -> AsyncIterator[Connection]:
    yield Connection()


async def transaction(connection: Connection = Depends(connection)) -> AsyncGenerator[Connection, None]:
    yield connection


async def number() -> int:
    return 3


@queue.task
async def send(user: int, db: Connection = Depends(connection), pool: Pool = WorkerState()) -> str:
    return str(user)


@queue.task
async def send_by_name(user: int, *, db: Connection = Depends(transaction), width: int = 3) -> str:
    return str(user)


@plain_queue.task
def send_plainly(user: int, db: Connection = Depends(Connection, scope="worker"), width: int = 3) -> str:
    return str(user)


async def injected_parameters_need_not_be_given() -> None:
    assert_type(send.enqueue(7), SyncTaskHandle[str])
    assert_type(await send_by_name.aenqueue(7, width=4), TaskHandle[str])
    assert_type(send.using(priority=3).call(7), TaskCall[str])
    assert_type(queue.enqueue(send_plainly, 7, width=4), SyncTaskHandle[str])
    assert_type(await send(7, Connection(), pool=Pool()), str)


def what_is_injected_has_the_type_that_the_factory_makes() -> None:
    assert_type(Depends(transaction), Connection)
    assert_type(Depends(Connection), Connection)
    assert_type(Depends(number, scope="worker"), int)
    assert_type(Depends(plain_resources), Pool)
    assert_type(Depends(connection), Any)  # an iterator may be what is injected itself, such as a file
    assert_type(current_task().state, Any)


def dependencies_can_be_replaced() -> None:
    with queue.override({connection: Connection, number: 3}):
        pass
