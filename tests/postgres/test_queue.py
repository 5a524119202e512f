"""A queue on PostgreSQL as its user has it: workers that are killed, effects in the user's own table, and results."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from omniq import TaskQueue
from omniq.task import TaskState
from omniq.testing import await_until, wait_until
from tests.fork_server import Popen
from tests.postgres.support import never_look
from tests.servers.postgres import PostgresServer

TASKS = 60

SHOP = """
import os, time
import psycopg
from omniq import TaskQueue, current_task

queue = TaskQueue(os.environ["SHOP_URL"])


@queue.task(max_retries=20)
def book(order: int) -> str:
    with psycopg.connect(os.environ["SHOP_DSN"]) as connection:
        connection.execute("INSERT INTO effect (scope, number) VALUES (%s, %s)", [os.environ["SHOP_SCOPE"], order])
        time.sleep(0.02)  # so that some are killed in the middle
        current_task().complete_in(connection, f"booked {order}")
    return "plays no part"


@queue.task
def order(number: int, fail: bool) -> None:
    with psycopg.connect(os.environ["SHOP_DSN"]) as connection:
        connection.execute("INSERT INTO effect (scope, number) VALUES (%s, %s)", [os.environ["SHOP_SCOPE"], -number])
        book.using(connection=connection).enqueue(number)
        if fail:
            raise RuntimeError("no")
"""

Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def effects(server: PostgresServer, storage_url: str) -> Callable[[], list[int]]:
    """Return what stands in the user's own table."""
    scope = storage_url.rpartition("=")[2]
    server.execute("CREATE TABLE IF NOT EXISTS effect (scope text, number int)")
    return lambda: [
        number for (number,) in server.execute("SELECT number FROM effect WHERE scope = %s ORDER BY number", scope)
    ]


@pytest.fixture
def start(server: PostgresServer, storage_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start workers of a small shop."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.setenv("SHOP_URL", storage_url)
    monkeypatch.setenv("SHOP_DSN", server.url)
    monkeypatch.setenv("SHOP_SCOPE", storage_url.rpartition("=")[2])
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "omniq", "worker", "shop:queue", "-c", "4", "--lease", "2"]
        started.append(Popen(command, cwd=tmp_path, env=os.environ))
        return started[-1]

    yield begin
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait(30)


@pytest.mark.parametrize("how", ["killed", "stopped past its lease"])
def test_there_are_as_many_effects_as_completions_whatever_becomes_of_workers(
    storage_url: str, effects: Callable[[], list[int]], start: Start, how: str
) -> None:
    with TaskQueue(storage_url) as queue:

        @queue.task(name="shop.book", max_retries=20)
        def book(order: int) -> str:
            raise AssertionError("it runs elsewhere")

        handles = queue.enqueue_many([book.call(number) for number in range(TASKS)])
        victim, other = start(), start()
        for _ in range(2):
            enough = min(len(effects()) + 5, TASKS)
            wait_until(lambda enough=enough: len(effects()) >= enough, 60, "some effects")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            if how == "killed":
                victim.kill()
                victim = start()
            else:
                victim.send_signal(signal.SIGSTOP)
                time.sleep(2.5)  # longer than its lease: the time is what is tested
                victim.send_signal(signal.SIGCONT)
        assert [handle.result(timeout=90) for handle in handles] == [f"booked {number}" for number in range(TASKS)]
        assert effects() == list(range(TASKS))
        (stats,) = queue.stats()
        assert stats.counts[TaskState.SUCCEEDED] == TASKS
        assert other.poll() is None


def test_a_task_is_enqueued_if_and_only_if_the_order_is_stored(
    storage_url: str, effects: Callable[[], list[int]], start: Start
) -> None:
    with TaskQueue(storage_url) as queue:

        @queue.task(name="shop.order", max_retries=0)
        def order(number: int, fail: bool) -> None:
            raise AssertionError("it runs elsewhere")

        queue.enqueue_many([order.call(number, number % 2 == 0) for number in range(1, 21)])
        start()

        def ended() -> bool:
            counts = [stats.counts for stats in queue.stats()]
            return sum(mine[TaskState.SUCCEEDED] + mine[TaskState.FAILED] for mine in counts) == 30

        wait_until(ended, 60, "twenty orders and ten bookings to end")
    stored = [-number for number in effects() if number < 0]
    booked = [number for number in effects() if number > 0]
    assert sorted(stored) == booked == list(range(1, 21, 2))


def test_a_result_is_heard_of(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with TaskQueue(storage_url) as queue:

        @queue.task
        async def double(number: int) -> int:
            return 2 * number

        async def run() -> None:
            async with queue.worker(concurrency=4):
                for number in range(20):
                    assert await (await double.aenqueue(number)).aresult(timeout=60) == 2 * number
                    # Both listen by now, and would not look for themselves in time.
                    never_look(monkeypatch)

        asyncio.run(run())


def test_what_the_database_refuses_reaches_the_caller(storage_url: str, server: PostgresServer) -> None:
    with TaskQueue(storage_url) as queue:

        @queue.task
        def work() -> None: ...

        with psycopg.connect(server.url) as connection:
            handle = work.using(connection=connection).enqueue()
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
            connection.rollback()
        with pytest.raises(LookupError):
            handle.task()


async def test_a_worker_whose_role_may_open_one_connection_says_so_and_claims_nothing(
    storage_url: str, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """It could claim and record, but its heartbeats have no connection: a long task would lose its lease."""

    async def work() -> str:
        return "done"

    role = f"one_{storage_url[-8:]}"
    async with TaskQueue(storage_url) as queue:
        handle = await queue.task(name="work")(work).aenqueue()
        server.execute(
            f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1; GRANT USAGE ON SCHEMA omniq TO {role};"
            f"GRANT ALL ON ALL TABLES IN SCHEMA omniq TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA omniq TO {role}"
        )
        async with TaskQueue(storage_url.replace("postgres@", f"{role}@") + "&migrate=off&timeout=5") as limited:
            limited.task(name="work")(work)
            async with limited.worker(lease=6):
                await await_until(lambda: "cannot send heartbeats, and claims nothing" in caplog.text, 30, "its word")
                assert (await handle.atask()).state is TaskState.READY
                server.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
                assert await handle.aresult(timeout=60) == "done"
