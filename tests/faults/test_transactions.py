"""Effects and completions in one transaction, whatever is done to the processes: as many of the ones as of the others.

Judged by the application's own tables. On one file there is one lock for writing, so a process that is stopped while
it holds it stops everybody; that is waited for, too.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from omniq import Task, TaskHandle, TaskQueue, TaskState
from omniq.testing import wait_until
from tests.faults import shop as application
from tests.faults.history import Event, History
from tests.fork_server import Popen
from tests.repeating import short_and_long

ROOT = Path(__file__).parents[2]
LEASE = {"lease": 1.5, "recover_every": 0.1, "threads": 4}


class Shop:
    """The application's database, and processes that work on it.

    :param folder: empty, for everything that is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "shop.db"
        (folder / "history").mkdir()
        self.history = History(folder / "history")
        self.queue = TaskQueue(f"sqlite:///{self.database}?foreign=allow&busy_timeout=20")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._run("-c", "from tests.faults.shop import create_tables; create_tables()").wait(60)

    def _run(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "SHOP": str(self.database), "HISTORY": str(self.folder / "history")}
        with (self.folder / f"{len(self._processes)}.log").open("wb") as log:
            process = Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker, and return at once."""
        return self._run("-m", "tests.faults.shop", "worker", json.dumps(LEASE))

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker, and return once it works."""
        process = self.start_worker()
        self.wait_for(lambda: self.history.events("worker started", pid=process.pid), "the start of a worker")
        return process

    def producer(self, first: int, count: int) -> subprocess.Popen[bytes]:
        return self._run("-m", "tests.faults.shop", "produce", json.dumps({"first": first, "count": count}))

    def enqueue(self, name: str, *args: object) -> TaskHandle[Any]:
        of_workers = application.queue.functions[f"{application.__name__}.{name}"]
        function = self.queue.functions.get(of_workers.name) or self.queue.task(name=of_workers.name)(of_workers)
        handle: TaskHandle[Any] = function.enqueue(*args)
        return handle

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database, timeout=20)) as connection:
            return connection.execute(f"SELECT * FROM {table}").fetchall()

    def tasks(self) -> dict[str, Task]:
        tasks: dict[str, Task] = {}
        cursor: str | None = None
        while True:
            page = self.queue.tasks(limit=1000, cursor=cursor)
            tasks |= {task.id: task for task in page}
            cursor = page.cursor
            if cursor is None:
                return tasks

    def is_drained(self) -> bool:
        return not any(n for stats in self.queue.stats() for state, n in stats.counts.items() if not state.is_final)

    def wait_for(self, predicate: Any, what: str, timeout: float = 60) -> None:
        """Do ``wait_until``, and show what the processes logged if it was in vain."""
        try:
            wait_until(predicate, timeout=timeout, what=what)
        except AssertionError as error:
            logs = "\n\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))
            raise AssertionError(f"{error}\n\n{logs}") from None

    def wait_for_sales(self, count: int, producer: subprocess.Popen[bytes]) -> None:
        """Return when so many more orders are fulfilled, or no more are taken."""
        enough = len(self.rows("sold")) + count
        self.wait_for(lambda: len(self.rows("sold")) >= enough or producer.poll() is not None, "sales")

    def close(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
        self.queue.close()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(tmp_path)
    yield shop
    shop.close()


def check_effects_equal_completions(shop: Shop, tasks: dict[str, Task]) -> None:
    assert {task.state for task in tasks.values()} == {TaskState.SUCCEEDED}
    sold = Counter((row[1], row[0]) for row in shop.rows("sold"))
    assert sold == {(task.id, task.result): 1 for task in tasks.values()}


@pytest.mark.parametrize("deaths", short_and_long(6, 16))
def test_orders_tasks_and_effects_stay_equal_while_processes_are_killed(shop: Shop, deaths: int) -> None:
    seed = int(os.environ.get("OMNIQ_SEED", time.time_ns() % 1_000_000))
    print(f"OMNIQ_SEED={seed}")
    dice = random.Random(seed)
    workers = [shop.worker(), shop.worker()]
    first, per_producer, kills = 0, 150, 0
    producer = shop.producer(first, per_producer)
    # Until one of them has hit a task: else this were about nothing.
    while kills < deaths or not any(task.delivery > 1 for task in shop.tasks().values()):
        # Not by the clock alone: whatever is killed shall have done something.
        shop.wait_for_sales(3, producer)
        time.sleep(dice.uniform(0, 0.1))  # until the next kill, at random
        kills += 1
        if dice.random() < 0.3 or producer.poll() is not None:
            producer.kill()
            producer.wait(60)
            first += per_producer
            producer = shop.producer(first, per_producer)
        else:
            victim = dice.choice(workers)
            victim.kill()
            victim.wait(60)
            workers[workers.index(victim)] = shop.start_worker()
    producer.kill()
    producer.wait(60)
    shop.wait_for(shop.is_drained, "the end of every task", timeout=60)

    tasks = shop.tasks()
    ordered = shop.rows("ordered")
    # A task exists if and only if its order does.
    assert {task_id for _, task_id in ordered} == set(tasks)
    assert all(tasks[task_id].result == n for n, task_id in ordered)
    assert not [n for n, _ in ordered if n % 5 == 0]
    check_effects_equal_completions(shop, tasks)
    print(f"{len(tasks)} tasks, {kills} kills, {sum(task.delivery for task in tasks.values())} deliveries")
    told = shop.history.events("succeeded")
    assert max(Counter(event.task for event in told).values()) == 1
    assert all(event.token == tasks[event.task].delivery for event in told)
    assert len(tasks) >= 3 * deaths, "kills in a row with nothing between them"


@pytest.mark.parametrize("moment", ["before the completion", "before the commit", "after the commit"])
def test_a_task_whose_worker_is_killed_around_its_commit_has_one_effect(shop: Shop, moment: str) -> None:
    victim = shop.worker()
    handle = shop.enqueue("sell_and_die", 7, moment)
    shop.wait_for(lambda: victim.poll() is not None, "a death")
    shop.worker()
    assert handle.result(30) == 7

    check_effects_equal_completions(shop, shop.tasks())
    (sale,) = shop.rows("sold")
    assert sale[3] == handle.task().attempt == (1 if moment == "after the commit" else 2)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, and return once it stands still."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def attempts(events: list[Event]) -> list[int]:
    return [event.details["attempt"] for event in events]


def test_a_stopped_worker_that_lost_its_lease_rolls_back_when_it_goes_on(shop: Shop) -> None:
    flag = shop.folder / "go"
    stale = shop.worker()
    handle = shop.enqueue("sell_late", 7, str(flag), "before the transaction")
    shop.wait_for(lambda: shop.history.events("is before the transaction"), "the task's first attempt")
    _stop_without_the_lock(shop, stale)
    other = shop.worker()
    shop.wait_for(lambda: handle.task().state is TaskState.SUCCEEDED, "the task's second attempt")
    flag.touch()
    stale.send_signal(signal.SIGCONT)
    shop.wait_for(lambda: shop.history.events("lease lost"), "the late completion")
    # What comes after it tells that the stale worker has rolled back, and works on.
    other.terminate()
    other.wait(60)
    late = shop.enqueue("sell", 8)
    assert late.result(30) == 8

    assert attempts(shop.history.events("lease lost")) == [1]
    assert attempts(shop.history.events("committed")) == [2]
    assert [row[:1] + row[2:] for row in shop.rows("sold") if row[1] == handle.id] == [(7, other.pid, 2)]
    check_effects_equal_completions(shop, shop.tasks())
    assert [event.token for event in shop.history.events("succeeded", task=handle.id)] == [2]


def _stop_without_the_lock(shop: Shop, process: subprocess.Popen[bytes]) -> None:
    def stopped() -> bool:
        stop(process)
        with closing(sqlite3.connect(shop.database, timeout=0.5, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                return False
        return True

    wait_until(stopped)


def test_a_worker_that_is_stopped_in_its_transaction_beyond_its_lease_has_one_effect(shop: Shop) -> None:
    flag = shop.folder / "go"
    workers = {worker.pid: worker for worker in (shop.worker(), shop.worker())}
    handle = shop.enqueue("sell_late", 7, str(flag), "in the transaction")
    shop.wait_for(lambda: shop.history.events("is in the transaction"), "the task's first attempt")
    (event,) = shop.history.events("is in the transaction")
    holder = workers[event.pid]
    stop(holder)
    time.sleep(2 * LEASE["lease"])  # the fault itself: nobody can write meanwhile, so there is nothing to wait for
    flag.touch()
    holder.send_signal(signal.SIGCONT)
    assert handle.result(30) == 7

    shop.wait_for(lambda: shop.history.events("succeeded"), "word of the success")
    check_effects_equal_completions(shop, shop.tasks())
    assert handle.task().attempt == 1
