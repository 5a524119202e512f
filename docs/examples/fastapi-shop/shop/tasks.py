"""The shop's tasks, and what they need: ``omniq worker shop.tasks:queue --no-log-setup``."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import sentry_sdk
from attrs import frozen
from sqlalchemy import Connection, Engine, create_engine, text

from omniq import Depends, TaskQueue, WorkerState
from omniq.contrib.context import Carry
from omniq.contrib.sentry import Sentry
from shop.correlation import log_request_ids, request_id
from shop.reports import start_reports

log = logging.getLogger("shop")
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s [%(request_id)s] %(message)s")
log_request_ids()


@frozen
class State:
    """What the tasks of a worker, or of a child process, share."""

    pool: Engine


@contextmanager
def resources(queue: TaskQueue) -> Iterator[State]:
    """Open what the tasks need, and close it when the last one has ended."""
    start_reports()
    pool = create_engine(os.environ.get("SHOP_DATABASE", "sqlite:///shop.db"), connect_args={"timeout": 30})
    with pool.begin() as db:
        db.execute(text("CREATE TABLE IF NOT EXISTS orders (article text, kind text)"))
    log.info("the pool is open")
    yield State(pool)
    pool.dispose()
    sentry_sdk.flush()
    log.info("the pool is closed")


queue = TaskQueue(
    os.environ.get("SHOP_TASKS", "sqlite:///tasks.db"),
    lifespan=resources,
    plugins=[Carry(request_id=request_id), Sentry()],  # in this order: the reports have the request's id
    max_retries=0,
)


def connection(state: State = WorkerState()) -> Iterator[Connection]:
    """Yield a connection in a transaction: committed when the task has succeeded, rolled back when it raises."""
    with state.pool.begin() as db:
        yield db


class OutOfStockError(Exception):
    """There is no such article."""


def insert(db: Connection, article: str, kind: str) -> str:
    """Store an order, and find out too late that there is no such article."""
    log.info("ordering a %s", article)
    db.execute(text("INSERT INTO orders VALUES (:article, :kind)"), {"article": article, "kind": kind})
    if article == "unicorn":
        raise OutOfStockError(article)
    return f"{article} by {kind}"


@queue.task
async def order_on_loop(article: str, *, db: Connection = Depends(connection)) -> str:
    """Carry an order out in a coroutine."""
    return await asyncio.to_thread(insert, db, article, "loop")


@queue.task
def order_on_thread(article: str, *, db: Connection = Depends(connection)) -> str:
    """Carry an order out on a thread."""
    return insert(db, article, "thread")


@queue.task(executor="process")
def order_in_process(article: str, *, db: Connection = Depends(connection)) -> str:
    """Carry an order out in a child process."""
    return insert(db, article, "process")
