"""A shop whose orders and whose tasks are in one database: the application of the tests of transactions.

``python -m tests.faults.shop worker '{"lease": 0.5}'`` runs a worker until it is stopped or killed; ``… produce
'{"first": 0, "count": 100}'`` takes orders, each with the task that fulfils it, in one transaction. The database is
named by ``SHOP``, the folder of the history by ``HISTORY``.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omniq import Fixed, LeaseLost, TaskQueue, current_task, hookimpl
from omniq.plugins import Plugins
from omniq.task import Task, TaskError
from tests.faults.history import History

PATH = os.environ.get("SHOP", "shop.db")
history = History(Path(os.environ.get("HISTORY", ".")))


class Witness:
    """Notes what the workers of this process learn of their tasks."""

    @hookimpl
    def omniq_worker_started(self) -> None:
        history.note("worker started")

    @hookimpl
    def omniq_task_succeeded(self, task: Task) -> None:
        history.note("succeeded", task.id, task.delivery)

    @hookimpl
    def omniq_task_failed(self, task: Task, error: TaskError) -> None:
        history.note("failed", task.id, task.delivery, error=error.type, message=error.message)

    @hookimpl
    def omniq_task_retrying(self, task: Task, error: TaskError) -> None:
        history.note("retrying", task.id, task.delivery, error=error.type, message=error.message)


def _plugins() -> Plugins:
    plugins = Plugins()
    plugins.register(Witness(), name="witness")
    return plugins


queue = TaskQueue(f"sqlite:///{PATH}?foreign=allow&busy_timeout=20", plugins=_plugins(), retry=Fixed(0.02))


@contextmanager
def connected() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(PATH, timeout=20)
    try:
        yield connection
    finally:
        connection.close()


def create_tables() -> None:
    """Make the tables of the queue, and beside them the shop's own."""
    queue.stats()
    with connected() as connection:
        connection.execute("CREATE TABLE ordered (n INTEGER, task TEXT)")
        connection.execute("CREATE TABLE sold (n INTEGER, task TEXT, pid INTEGER, attempt INTEGER)")


def _sell(connection: sqlite3.Connection, n: int) -> None:
    task = current_task()
    connection.execute("INSERT INTO sold VALUES (?, ?, ?, ?)", (n, task.id, os.getpid(), task.attempt))


@queue.task(max_retries=1000)
def sell(n: int) -> int:
    """Fulfil an order on a thread."""
    with connected() as connection:
        _sell(connection, n)
        time.sleep(random.uniform(0, 0.003))  # room for a kill between two steps
        current_task().complete_in(connection, n)
        time.sleep(random.uniform(0, 0.003))  # room for a kill between two steps
        connection.commit()
        time.sleep(random.uniform(0, 0.003))  # room for a kill between two steps
    return -1


@queue.task(max_retries=1000)
async def sell_on_loop(n: int) -> int:
    """Fulfil an order on the event loop."""
    with connected() as connection:
        _sell(connection, n)
        await current_task().acomplete_in(connection, n)
        connection.commit()
    return -1


@queue.task
def sell_and_die(n: int, moment: str) -> int:
    """Fulfil an order, and have the process killed at some moment of the first attempt."""

    def die_at(this: str) -> None:
        if this == moment and current_task().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with connected() as connection:
        _sell(connection, n)
        die_at("before the completion")
        current_task().complete_in(connection, n)
        die_at("before the commit")
        connection.commit()
        die_at("after the commit")
    return -1


@queue.task
def sell_late(n: int, flag: str, where: str) -> int:
    """Fulfil an order, but in the first attempt not before a file is there."""

    def wait_at(this: str) -> None:
        history.note(f"is {this}", current_task().id, attempt=current_task().attempt)
        while this == where and current_task().attempt == 1 and not os.path.exists(flag):
            time.sleep(0.005)  # no event crosses processes

    wait_at("before the transaction")
    with connected() as connection:
        _sell(connection, n)
        try:
            current_task().complete_in(connection, n)
        except LeaseLost:
            history.note("lease lost", current_task().id, attempt=current_task().attempt)
            raise
        wait_at("in the transaction")
        connection.commit()
    history.note("committed", current_task().id, attempt=current_task().attempt)
    return -1


def produce(first: int, count: int) -> None:
    """Take orders, one transaction each; every fifth is thought better of."""
    with connected() as connection:
        for n in range(first, first + count):
            connection.execute("BEGIN IMMEDIATE")
            handle = (sell, sell_on_loop)[n % 2].using(connection=connection).enqueue(n)
            time.sleep(random.uniform(0, 0.003))  # room for a kill between two steps
            connection.execute("INSERT INTO ordered VALUES (?, ?)", (n, handle.id))
            time.sleep(random.uniform(0, 0.003))  # room for a kill between two steps
            if n % 5 == 0:
                connection.rollback()
            else:
                connection.commit()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if sys.argv[1] == "worker":
        queue.run_worker(**json.loads(sys.argv[2]))
    else:
        with queue:
            produce(**json.loads(sys.argv[2]))
