"""How those who wait are woken: from other processes, no more of them than there is work for, and without fail."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import StorageUnavailable
from omniq.schedule import Schedule
from omniq.task import Released, Retry, Succeeded, TaskState
from omniq.testing import await_until
from omniq_local.sqlite import SQLiteStorage, waiting
from omniq_local.wake import Bell
from tests.local.sqlite_support import count, opened, output_of, python, raw, take
from tests.local.support import Clock, new_task

LONG = 60.0
"""Seconds: longer than any test lasts."""


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody find anything by himself: what wakes is a wake-up."""
    monkeypatch.setattr(waiting, "LOOK_EVERY", LONG)


def names_on(path: Path, topic: str = "q:q") -> int:
    with raw(path) as connection:
        found: int = connection.execute('SELECT count(*) FROM "omniq.waiter" WHERE topic = ?', (topic,)).fetchone()[0]
        return found


async def waits(store: SQLiteStorage, path: Path, *queues: str) -> asyncio.Task[None]:
    """Let a storage wait for work, and return when its name is on the table."""
    before = names_on(path)
    task = asyncio.create_task(store.wait_for_work(queues or ("q",), LONG))
    await await_until(lambda: names_on(path) > before or task.done())
    return task


OTHER = """
import asyncio, sys
from datetime import timedelta
from omniq.storage.ids import new_id
from omniq.task import NewTask, Succeeded
from omniq.storage.urls import parse_url
from omniq_local.sqlite import SQLiteStorage

async def main():
    store = SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}"))
    await store.open()
    order = NewTask(id=new_id(), queue="q", name="n", body=b"")
    match sys.argv[2]:
        case "one":
            store.enqueue_blocking([order])
        case "resume":
            await store.resume("q")
        case "finish":
            (task,) = await store.claim({"q": 1}, worker="w", lease=60)
            await store.finish([Succeeded(id=task.id, delivery=1, result=b"")])
        case "delete":
            await store.delete([sys.argv[3]])
        case "die waiting":
            waiting = asyncio.create_task(store.wait_for_work(["q"], 60))
            await asyncio.sleep(0.2)  # by then it waits
            print("waits", flush=True)
            await waiting
    await store.close()

asyncio.run(main())
"""


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize("event", ["one", "resume"])
def test_work_from_another_process_wakes_who_waits_for_it(tmp_path: Path, event: str) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            if event == "resume":
                await store.pause("q")
                await store.enqueue([new_task()])
            waiter = await waits(store, path)
            with python(OTHER, path, event) as process:
                await asyncio.wait_for(waiter, 30)
                assert len(await take(store)) == 1
                await asyncio.to_thread(output_of, process)

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize("event", ["finish", "delete"])
def test_an_end_in_another_process_wakes_who_waits_for_it(tmp_path: Path, event: str) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.enqueue([new_task(id="a")])
            waiter = asyncio.create_task(store.wait_finished(["a"], LONG))
            await await_until(lambda: names_on(path, "t:a") == 1)
            with python(OTHER, path, event, "a") as process:
                assert await asyncio.wait_for(waiter, 30) == {"a"}
                await asyncio.to_thread(output_of, process)
            assert names_on(path, "t:a") == 0

    asyncio.run(scenario())


async def add_one(store: SQLiteStorage) -> None:
    await store.enqueue([new_task()])


async def add_soon(store: SQLiteStorage) -> None:
    await store.enqueue([new_task(run_at=timedelta(seconds=0.05))])


async def add_blocking(store: SQLiteStorage) -> None:
    store.enqueue_blocking([new_task(tags=("t",))])


async def give_back(store: SQLiteStorage) -> None:
    (task,) = await take(store, "busy")
    await store.finish([Released(id=task.id, delivery=task.delivery)])


async def try_again(store: SQLiteStorage) -> None:
    (task,) = await take(store, "busy")
    await store.finish([Retry(id=task.id, delivery=task.delivery, delay=0.01)])


async def recover(store: SQLiteStorage) -> None:
    await take(store, "busy", lease=0)
    await store.recover(10)


async def revive(store: SQLiteStorage) -> None:
    (task,) = await take(store, "busy")
    await store.cancel([task.id])
    await store.finish([Released(id=task.id, delivery=task.delivery)])
    await store.retry([task.id])


async def fire(store: SQLiteStorage) -> None:
    (schedule,) = await store.get_schedules()
    await store.fire(schedule, [new_task(queue="busy")])


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize("event", [add_one, add_soon, add_blocking, give_back, try_again, recover, revive, fire])
def test_whatever_makes_a_task_ready_wakes_one_who_waits_for_it(tmp_path: Path, event: Any) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store, opened(path) as other:
            await other.enqueue([new_task(queue="busy")])
            await other.put_schedule(Schedule(id="s", task=new_task(), trigger="t", next_run=None))
            queues = ("q",) if event in (add_one, add_soon, add_blocking) else ("busy",)
            if queues == ("busy",) and event is not fire:
                # The waiter must find nothing, so the task is hidden until he waits.
                (hidden,) = await take(other, "busy")
                await other.finish([Retry(id=hidden.id, delivery=hidden.delivery, delay=3600)])
                waiter = await waits(store, path, "q", "busy")
                with raw(path) as connection:
                    connection.execute('UPDATE "omniq.task" SET run_at = 0 WHERE state = 1')
            else:
                await other.purge("busy")
                waiter = await waits(store, path, "q", "busy")
            await event(other)
            await asyncio.wait_for(waiter, 30)

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_a_schedule_that_is_put_wakes_one_who_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store, opened(path) as other:
            waiter = await waits(store, path)
            soon = await other.now() + timedelta(seconds=0.05)
            await other.put_schedule(Schedule(id="s", task=new_task(), trigger="t", next_run=soon))
            await asyncio.wait_for(waiter, 30)

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_one_task_wakes_one_of_many(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(opened(path)) for _ in range(8)]
            waiters = [await waits(store, path) for store in stores]
            assert names_on(path) == 8
            await stores[0].enqueue([new_task()])
            await await_until(lambda: any(waiter.done() for waiter in waiters))
            assert names_on(path) == 7
            await stores[0].enqueue([new_task(), new_task()])
            await await_until(lambda: sum(waiter.done() for waiter in waiters) == 3)
            assert names_on(path) == 5
            for waiter in waiters:
                waiter.cancel()
            await asyncio.gather(*waiters, return_exceptions=True)

    asyncio.run(scenario())


def test_a_wake_up_that_is_lost_costs_two_seconds_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bell, "ring", lambda self, pokes: None)

    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store, opened(path) as other:
            waiter = await waits(store, path)
            await other.enqueue([new_task(id="a")])
            await asyncio.wait_for(waiter, 30)
            ended = asyncio.create_task(store.wait_finished(["a"], LONG))
            await await_until(lambda: names_on(path, "t:a") == 1)
            await take(other)
            await other.finish([Succeeded(id="a", delivery=1, result=b"")])
            assert await asyncio.wait_for(ended, 30) == {"a"}

    asyncio.run(scenario())
    assert waiting.LOOK_EVERY * (1 + waiting.LOOK_SPREAD) < 1.9


def test_the_name_of_a_process_that_died_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    with python(OTHER, path, "die waiting") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
    assert names_on(path) == 1

    async def scenario() -> None:
        async with opened(path) as store:
            # It gets the wake-up for one task; who lives finds that himself.
            waiter = await waits(store, path)
            for _ in range(2):
                await store.enqueue([new_task()])
            await asyncio.wait_for(waiter, 30)
            assert names_on(path) == 0

    asyncio.run(scenario())


def test_names_whose_time_is_over_are_taken_off_by_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store, opened(path) as other:
            waiter = await waits(store, path)
            with raw(path) as connection:
                connection.execute('UPDATE "omniq.waiter" SET until = 0')
            await other.wait_for_work(["z"], 0.01)
            assert names_on(path) == 0
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)

    asyncio.run(scenario())


def test_a_worker_that_waits_again_and_again_writes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.wait_for_work(["q"], 0.01)
            connection = store._database._main.connection
            assert connection is not None
            statements: list[str] = []
            connection.set_trace_callback(statements.append)
            for _ in range(20):
                await store.wait_for_work(["q"], 0.01)
            connection.set_trace_callback(None)
            assert statements == []
            assert names_on(path) == 1

    asyncio.run(scenario())


def test_a_worker_that_finds_work_takes_its_name_off_the_table(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store, opened(path) as other:
            await store.wait_for_work(["q"], 0.01)
            with raw(path) as connection:
                # As if another had been woken for it.
                connection.execute("UPDATE \"omniq.waiter\" SET topic = 'q:other' WHERE topic = 'q:q'")
            await other.enqueue([new_task()])
            assert names_on(path, "s:") == 1
            assert len(await take(store)) == 1
            assert names_on(path, "s:") == 0

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_what_has_come_due_between_two_waits_ends_the_second_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with opened(tmp_path / "jobs.db", clock=clock) as store:
            await store.enqueue([new_task(run_at=timedelta(seconds=30))])
            await store.wait_for_work(["q"], 0.01)
            # A look that finds the file unchanged, and still has to find what time alone has changed.
            await store.wait_for_work(["q"], 0.01)
            clock.advance(31)
            await asyncio.wait_for(store.wait_for_work(["q"], LONG), 30)
            assert len(await take(store)) == 1

    asyncio.run(scenario())


def test_a_schedule_that_nobody_fires_makes_no_worker_spin_and_hides_no_task(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            overdue = await store.now() - timedelta(hours=1)
            await store.put_schedule(Schedule(id="s", task=new_task(), trigger="t", next_run=overdue))
            began = time.monotonic()
            await asyncio.wait_for(store.wait_for_work(["q"], LONG), 30)
            assert time.monotonic() - began > 0.9
            await store.enqueue([new_task(run_at=timedelta(seconds=0.1))])
            while not await take(store):
                await asyncio.wait_for(store.wait_for_work(["q"], LONG), 30)

    asyncio.run(scenario())


def test_names_go_when_a_wait_is_given_up_and_when_the_storage_is_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            await store.enqueue([new_task(id="a", queue="other")])
            for wait in (store.wait_finished(["a"], LONG), store.wait_for_work(["q"], LONG)):
                waiter = asyncio.create_task(wait)
                await await_until(lambda: names_on(path, "t:a") + names_on(path) > 0)
                waiter.cancel()
                await asyncio.gather(waiter, return_exceptions=True)
            assert await store.wait_finished(["a"], 0.01) == set()
            await await_until(lambda: names_on(path, "t:a") == 0)
        assert names_on(path, "s:") == 0

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_closing_lets_nobody_wait_any_longer(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as other:
            await other.enqueue([new_task(id="a", queue="other")])
            async with opened(path) as store:
                work = await waits(store, path)
                end = asyncio.create_task(store.wait_finished(["a"], LONG))
                await await_until(lambda: names_on(path, "t:a") == 1)
            await asyncio.wait_for(work, 30)
            with pytest.raises(StorageUnavailable, match="was closed"):
                await asyncio.wait_for(end, 30)
            assert names_on(path) + names_on(path, "t:a") == 0

    asyncio.run(scenario())


def test_an_idle_wait_ends_when_its_time_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            await store.enqueue([new_task(run_at=timedelta(hours=1)), new_task(id="a", queue="other")])
            began = time.monotonic()
            await asyncio.wait_for(store.wait_for_work(["q", "empty"], 0.2), 30)
            assert await asyncio.wait_for(store.wait_finished(["a"], 0.2), 30) == set()
            assert time.monotonic() - began >= 0.39
            assert await count(store, TaskState.SCHEDULED) == 1

    asyncio.run(scenario())


def test_a_datagram_from_nobody_known_wakes_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        async with opened(path) as store:
            waiter = await waits(store, path)
            with raw(path) as connection:
                (port,) = connection.execute('SELECT port FROM "omniq.waiter"').fetchone()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for junk in (b"", b"x", b"x" * 8, b"x" * 4000):
                    stranger.sendto(junk, ("127.0.0.1", port))
            await asyncio.sleep(0.05)  # what must not happen would have by now
            assert not waiter.done()
            await store.enqueue([new_task()])
            await asyncio.wait_for(waiter, 30)

    asyncio.run(scenario())
