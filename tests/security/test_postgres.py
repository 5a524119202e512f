"""Somebody who can write to the tables of a PostgreSQL store, with a connection of psycopg's: nothing of OmniQ's."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from omniq import Every, TaskQueue
from omniq.errors import StorageError
from omniq.storage.ids import new_id
from omniq.task import TaskState
from omniq.testing import await_until
from tests.servers.postgres import QUICK, PostgresServer

SECRET = "hunter2-in-a-frame"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres"), QUICK) as running:
        yield running


class Attacked:
    """A queue, and what is written to its tables behind its back."""

    def __init__(self, server: PostgresServer) -> None:
        self.namespace = f"t{new_id().replace('-', '')[-20:]}"
        self.server = server
        self.queue = TaskQueue(f"{server.url}?namespace={self.namespace}")
        self.ran: list[int] = []
        self.task = self.queue.task(name="note", max_retries=0)(self.note)

    async def note(self, number: int) -> int:
        self.ran.append(number)
        return number

    def write(self, table: str, change: str, name: str) -> None:
        self.server.execute(f"UPDATE omniq.{self.namespace}_{table} SET {change} WHERE id::text = %s", name)

    async def doctor(self) -> str:
        storage = (await self.queue.connections.current()).storage
        return "\n".join(found.message for found in await storage.check())


def attack(server: PostgresServer, test: Callable[[Attacked], Any]) -> None:
    async def run() -> None:
        attacked = Attacked(server)
        async with attacked.queue:
            await test(attacked)

    asyncio.run(run())


READY = [
    ("live", "run_at = '200000-01-01'"),
    ("live", "run_at = '-infinity'"),
    ("live", "run_at = 'infinity'"),
    ("live", "expires_at = 'infinity'"),
    ("live", "delivery = 2147483647"),
    ("live", "attempt = 2147483647"),
    ("live", "error = 'no JSON'"),
    ("task", "created_at = 'infinity'"),
    ("task", "tags = ARRAY[NULL]::text[]"),
    ("task", "tags = ARRAY[['a'], ['b']]"),
    ("task", "result_ttl = 'NaN'"),
]


def test_bad_tasks_lose_no_other_of_their_claim(server: PostgresServer) -> None:
    async def test(attacked: Attacked) -> None:
        queue = attacked.queue
        handles = await queue.aenqueue_many([attacked.task.call(number) for number in range(2 * len(READY))])
        good, bad = handles[::2], handles[1::2]
        for handle, (table, change) in zip(bad, READY, strict=True):
            attacked.write(table, change, handle.id)
        async with queue.worker():
            assert [await handle.aresult(timeout=60) for handle in good] == list(range(0, 2 * len(READY), 2))

            async def all_ended() -> bool:
                (stats,) = await queue.astats()
                return stats.counts[TaskState.FAILED] == len(bad)

            await await_until(all_ended, what="the end of the bad ones")
        assert sorted(attacked.ran) == list(range(0, 2 * len(READY), 2))
        told = await attacked.doctor()
        for handle, what in zip(bad, READY, strict=True):
            shown = await queue.aget(handle.id)
            assert shown is not None, what
            assert shown.error is not None, what
            assert (shown.state, shown.error.type) == (TaskState.FAILED, "CorruptRecord"), what
            assert f"omniq tasks delete {handle.id}" in told, what
            assert await queue.adelete(handle.id), what
            assert await queue.aget(handle.id) is None, what

    attack(server, test)


WAITING = ["run_at = 'infinity'", "run_at = '-infinity'", "run_at = '200000-01-01'", "state = -1", "state = 9"]


def test_waiting_tasks_that_make_no_sense_stop_no_queue(server: PostgresServer) -> None:
    async def test(attacked: Attacked) -> None:
        for change in WAITING:
            bad = await attacked.task.using(delay=3600).aenqueue(99)
            attacked.write("live", change, bad.id)
            async with attacked.queue.worker():
                for number in range(3):
                    assert await (await attacked.task.aenqueue(number)).aresult(timeout=60) == number, change
            assert bad.id in await attacked.doctor(), change
            assert await attacked.queue.adelete(bad.id), change
        assert 99 not in attacked.ran

    attack(server, test)


LEASES = ["lease_until = 'infinity'", "lease_until = '-infinity'", "lease_until = NULL", "lease_until = '200000-01-01'"]


def test_leases_that_are_none_do_not_hold_for_ever(server: PostgresServer) -> None:
    async def test(attacked: Attacked) -> None:
        handles = [await attacked.task.using(max_retries=1).aenqueue(number) for number in range(len(LEASES) + 1)]
        storage = (await attacked.queue.connections.current()).storage
        assert len(await storage.claim({"default": 9}, worker="w", lease=0.01)) == len(handles)
        for handle, change in zip(handles, LEASES, strict=False):
            attacked.write("live", change, handle.id)
        async with attacked.queue.worker():
            assert [await handle.aresult(timeout=60) for handle in handles] == list(range(len(handles)))

    attack(server, test)


SCHEDULES = ["next_run = 'infinity'", "next_run = '-infinity'", "revision = 9223372036854775807", "body = '{}'"]


def test_schedules_that_make_no_sense_stop_no_other(server: PostgresServer) -> None:
    async def test(attacked: Attacked) -> None:
        queue = attacked.queue
        await queue.aschedule(attacked.task.call(2), Every(0.2), id="good")
        for number, change in enumerate(SCHEDULES):
            await queue.aschedule(attacked.task.call(1), Every(3600), id=f"bad{number}")
            attacked.write("schedule", change, f"bad{number}")
        async with queue.worker():
            await await_until(lambda: 2 in attacked.ran, what="a run of the good one")
            assert [schedule.id for schedule in await queue.aschedules()] == ["good"]
        told = await attacked.doctor()
        for number, change in enumerate(SCHEDULES):
            assert f"omniq schedules delete bad{number}" in told, change
            assert await queue.adelete_schedule(f"bad{number}"), change
            again = await queue.aschedule(attacked.task.call(3), Every(3600), id=f"bad{number}")
            assert again.id == f"bad{number}", change

    attack(server, test)


def test_counters_beyond_every_number_stop_no_worker(server: PostgresServer) -> None:
    async def test(attacked: Attacked) -> None:
        storage = (await attacked.queue.connections.current()).storage
        table = f"omniq.{attacked.namespace}_counter"
        for queue in ("default", "other"):
            server.execute(f"INSERT INTO {table} VALUES (%s, %s, 1, 0, %s, 0, 0)", queue, 2**63 - 1, -(2**63))
        await attacked.task.aenqueue(1)
        await storage.prune(10)  # which sums them up
        async with attacked.queue.worker():
            assert await (await attacked.task.aenqueue(2)).aresult(timeout=60) == 2
        assert "queue 'other'" in await attacked.doctor()

    attack(server, test)


def test_a_row_without_its_order_takes_no_task_with_it(server: PostgresServer) -> None:
    async def test(attacked: Attacked) -> None:
        handles = await attacked.queue.aenqueue_many([attacked.task.call(number) for number in range(4)])
        for number in (0, 2):
            server.execute(f"DELETE FROM omniq.{attacked.namespace}_task WHERE id = %s", handles[number].id)
        async with attacked.queue.worker():
            assert [await handles[number].aresult(timeout=60) for number in (1, 3)] == [1, 3]

    attack(server, test)


@pytest.mark.parametrize("url", ["postgresql://ada:{}@127.0.0.1:1/db", "postgresql://127.0.0.1:1/db?password={}"])
def test_no_frame_of_a_failure_to_connect_holds_the_password(url: str) -> None:
    """As a tracker captures them that reports what each local variable was."""
    queue = TaskQueue(url.format(SECRET) + ("&" if "?" in url else "?") + "timeout=0.1")
    noop = queue.task(name="noop")(lambda: None)

    async def aenqueue() -> None:
        await noop.aenqueue()

    for fail in (noop.enqueue, lambda: asyncio.run(aenqueue())):
        with pytest.raises(StorageError) as caught:
            fail()
        assert not [place for place, value in locals_of(caught.value) if SECRET in value]


def locals_of(error: BaseException | None) -> Iterator[tuple[str, str]]:
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename != __file__:
                for name, value in frame.f_locals.items():
                    yield f"{frame.f_code.co_qualname}:{line} {name}", repr(value)
        error = error.__cause__ or error.__context__
