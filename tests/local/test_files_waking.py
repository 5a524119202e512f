"""Who is woken by a change, with nobody looking by himself in between unless the test is about that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from omniq.task import StoredTask
from omniq.testing import await_until
from omniq_local.files import FileStorage, waiter_table, waiting
from omniq_local.wake import Bell
from tests.local.files_support import opened, run_python, succeed, take
from tests.local.support import new_task

HOUR = 3600.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture(autouse=True)
def _nobody_looks_by_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_EVERY", HOUR)
    monkeypatch.setattr(waiting, "VALID", HOUR)
    monkeypatch.setattr(waiter_table, "VALID", HOUR)


async def arrival(store: FileStorage, queues: Iterable[str] = ("q",)) -> StoredTask:
    """Do what an idle worker does until it has claimed a task."""
    while not (claimed := await store.claim(dict.fromkeys(queues, 1), worker="w", lease=HOUR)):
        await store.wait_for_work(tuple(queues), HOUR)
    return claimed[0]


@pytest.mark.parametrize("delay", [None, 0.2])
def test_each_of_many_waiting_workers_gets_one_of_as_many_tasks(root: Path, delay: float | None) -> None:
    run_at = None if delay is None else timedelta(seconds=delay)

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(opened(root)) for _ in range(5)]
            workers = [asyncio.create_task(arrival(store)) for store in stores]
            await asyncio.sleep(0.1)  # by then it waits
            await stores[0].enqueue([new_task(run_at=run_at) for _ in range(5)])
            assert len({(await worker).id for worker in workers}) == 5

    asyncio.run(scenario())


def test_tasks_that_become_due_sooner_than_what_was_known_are_heard_of(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store, opened(root) as other:
            await store.enqueue([new_task(run_at=timedelta(seconds=HOUR))])
            worker = asyncio.create_task(arrival(store))
            await asyncio.sleep(0.1)  # by then it waits
            await other.enqueue([new_task(run_at=timedelta(seconds=0.2))])
            await worker

    asyncio.run(scenario())


def test_one_task_wakes_one_of_many_who_wait(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store, opened(root) as other:
            waits = [asyncio.create_task(store.wait_for_work(("q",), HOUR)) for _ in range(8)]
            table = other._folder.waiter_table
            await await_until(lambda: len(table._waiters()) == 8)
            await other.enqueue([new_task()])
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.1)  # what must not happen would have by now
            assert sum(wait.done() for wait in waits) == 1
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    asyncio.run(scenario())


def test_who_waits_for_more_than_an_entry_can_name_is_woken_too(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store, opened(root) as other:
            worker = asyncio.create_task(arrival(store, [f"q{number}" for number in range(40)]))
            await asyncio.sleep(0.1)  # by then it waits
            await other.enqueue([new_task(queue="q39")])
            await worker
            ids = [answer.id for answer in await store.enqueue([new_task() for _ in range(40)])]
            ended = asyncio.create_task(store.wait_finished(ids, HOUR))
            await asyncio.sleep(0.1)  # by then it waits
            await other.cancel(ids[39:])
            assert await ended == {ids[39]}

    asyncio.run(scenario())


def test_work_and_ends_from_another_process_are_heard_of(root: Path) -> None:
    program = """
        import asyncio, sys
        from pathlib import Path
        from tests.local.files_support import opened, succeed, take
        from tests.local.support import new_task

        async def main():
            async with opened(Path(sys.argv[1])) as store:
                await succeed(store, await take(store))
                await store.enqueue([new_task(queue="other")])

        asyncio.run(main())
    """

    async def scenario() -> None:
        async with opened(root) as store:
            (added,) = await store.enqueue([new_task()])
            worker = asyncio.create_task(arrival(store, ["other"]))
            ended = asyncio.create_task(store.wait_finished([added.id], HOUR))
            await asyncio.sleep(0.1)  # by then it waits
            await asyncio.to_thread(run_python, program, str(root))
            assert await ended == {added.id}
            assert (await worker).queue == "other"

    asyncio.run(scenario())


def test_a_wake_up_that_is_lost_is_made_up_for_by_a_look(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(Bell, "ring", lambda self, pokes: None)

    async def scenario() -> None:
        async with opened(root) as store, opened(root) as other:
            worker = asyncio.create_task(arrival(store))
            await asyncio.sleep(0.1)  # by then it waits
            await other.enqueue([new_task()])
            task = await worker
            ended = asyncio.create_task(store.wait_finished([task.id], HOUR))
            await asyncio.sleep(0.1)  # by then it waits
            await succeed(other, [task])
            assert await ended == {task.id}

    asyncio.run(scenario())


def test_who_waits_when_the_store_is_closed_is_let_go(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store:
            waits = asyncio.create_task(store.wait_for_work(("q",), HOUR))
            await asyncio.sleep(0.1)  # by then it waits
        await waits

    asyncio.run(scenario())


def test_waits_that_are_over_leave_no_entry_that_takes_a_wake_up_from_others(root: Path) -> None:
    async def scenario() -> None:
        async with opened(root) as store, opened(root) as other:
            for _ in range(20):
                await other.wait_for_work(("q",), 0.001)
            worker = asyncio.create_task(arrival(store))
            await asyncio.sleep(0.1)  # by then it waits
            await other.enqueue([new_task()])
            await worker
            assert await take(store) == []

    asyncio.run(scenario())
