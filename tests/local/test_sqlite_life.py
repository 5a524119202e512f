"""Opening, closing and forgetting to; threads, loops, forks and deaths; and what becomes of the log."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omniq.errors import StorageUnavailable
from omniq.storage import Lease, LeaseState
from omniq.task import Succeeded, TaskState
from omniq.testing import await_until, wait_until
from omniq_local.sqlite import checkpoint
from omniq_local.sqlite.connections import MISSED
from omniq_local.sqlite.transaction import Transaction
from tests.local.sqlite_support import count, only, opened, output_of, python, raw, run_python, storage, take
from tests.local.support import new_task

# Opening and closing


def threads_of_ours() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("omniq-sqlite")]


def test_a_storage_that_is_not_open_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = storage(tmp_path / "jobs.db")
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match=r"is not open in this process: call open\(\)"):
                await store.enqueue([new_task()])
            assert store.enqueue_blocking([new_task()]) is None
            await store.close()
            await store.open()
            await store.open()
            await store.close()
            await store.close()

    asyncio.run(scenario())


def test_a_storage_can_be_opened_after_it_could_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = storage(tmp_path / "later" / "jobs.db")
        with pytest.raises(StorageUnavailable):
            await store.open()
        await store.close()
        await asyncio.to_thread((tmp_path / "later").mkdir)
        await store.open()
        assert (await store.enqueue([new_task()]))[0].created
        await store.close()

    asyncio.run(scenario())


def test_an_opening_that_is_given_up_leaves_nothing_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "jobs.db"
        with raw(path) as connection:
            connection.execute("BEGIN IMMEDIATE")  # so that the tables cannot be made
            store = storage(path)
            opening = asyncio.create_task(store.open())
            await asyncio.sleep(0.05)  # by then it waits
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            connection.execute("ROLLBACK")
        await await_until(lambda: store._database._users == 0 and not threads_of_ours())
        await store.open()
        assert (await store.enqueue([new_task()]))[0].created
        await store.close()

    asyncio.run(scenario())


def test_closing_leaves_one_file_and_no_thread(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            sibling = store.sibling()
            await sibling.open()
            await store.enqueue([new_task() for _ in range(2000)])
            await store.stats()
            await sibling.heartbeat("w", [], 30)
            await sibling.close()
            assert await count(store, TaskState.READY) == 2000

    asyncio.run(scenario())
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.db"]
    wait_until(lambda: not threads_of_ours())


FORGETFUL = """
import asyncio, gc, sys
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.storage.urls import parse_url
from omniq_local.sqlite import SQLiteStorage

async def main(keep):
    store = SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}"))
    await store.open()
    await store.enqueue([NewTask(id=new_id(), queue="q", name="n", body=b"") for _ in range(2000)])
    await store.stats()
    await store.heartbeat("w", [], 30)
    await store.wait_for_work(["empty"], 0.01)
    if keep:
        globals()["kept"] = store

asyncio.run(main(False))
gc.collect()
asyncio.run(main(True))
print("done")
"""


def test_forgetting_to_close_is_forgiven(tmp_path: Path) -> None:
    assert run_python(FORGETFUL, tmp_path / "jobs.db") == "done\n"
    assert [path.name for path in tmp_path.iterdir()] == ["jobs.db"]


# Threads and loops


def test_any_number_of_threads_can_enqueue_through_one_storage(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:

            def enqueue(number: int) -> list[bool]:
                stored = [store.enqueue_blocking([new_task(unique=f"{number % 50}")]) for _ in range(5)]
                return [entry.created for entries in stored for entry in entries or ()]

            with ThreadPoolExecutor(8) as pool:
                answers = await asyncio.to_thread(lambda: list(pool.map(enqueue, range(100))))
            created = [flag for answer in answers for flag in answer]
            assert len(created) == 500
            assert sum(created) == await count(store, TaskState.READY) == 50

    asyncio.run(scenario())


@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_threads_and_a_loop_that_write_at_once_lose_nothing(tmp_path: Path, synchronous: str) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db", f"?synchronous={synchronous}") as store:
            with ThreadPoolExecutor(4) as pool:
                threads = [pool.submit(lambda: store.enqueue_blocking([new_task()])) for _ in range(200)]
                done = 0
                while done < 300:
                    await asyncio.gather(*(store.enqueue([new_task(), new_task()]) for _ in range(5)))
                    tasks = await take(store)
                    outcomes = [Succeeded(id=task.id, delivery=task.delivery, result=b"") for task in tasks]
                    assert all(await store.finish(outcomes))
                    done += len(tasks)
                for thread in threads:
                    await asyncio.wrap_future(thread)
            left = await take(store)
            assert await count(store, TaskState.SUCCEEDED) == done
            assert await count(store, TaskState.RUNNING) == len(left)
            assert (done + len(left) - 200) % 10 == 0

    asyncio.run(scenario())


def test_a_thread_that_writes_without_a_pause_lets_others_have_their_turn(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db", "?busy_timeout=60") as store:
            stop = threading.Event()

            def write() -> None:
                while not stop.is_set():
                    store.enqueue_blocking([new_task()])

            with ThreadPoolExecutor(2) as pool:
                writers = [pool.submit(write) for _ in range(2)]
                try:
                    for _ in range(20):
                        await asyncio.wait_for(store.purge("q"), 30)
                finally:
                    stop.set()
                for writer in writers:
                    await asyncio.wrap_future(writer)

    asyncio.run(scenario())


def test_who_only_attempts_stands_back_for_who_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            writer = store._database._main
            writer.lock.acquire()
            waiter = threading.Thread(target=writer.transact, args=([Transaction.fold],))
            waiter.start()
            wait_until(lambda: writer._waiting == 1)
            writer.lock.release()
            # He has not woken up yet; without him it would be done at once.
            assert writer.attempt(Transaction.fold) is MISSED
            await asyncio.to_thread(waiter.join)
            assert writer.attempt(Transaction.fold) is None

    asyncio.run(scenario())


def test_a_sibling_works_on_a_loop_of_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            await store.enqueue([new_task(id="a")])
            (task,) = await take(store, lease=60)

            async def elsewhere() -> list[LeaseState]:
                sibling = store.sibling()
                await sibling.open()
                try:
                    await sibling.cancel(["a"])
                    return await sibling.heartbeat("w", [Lease("a", 1), Lease("a", 2)], 300)
                finally:
                    await sibling.close()

            states = await asyncio.to_thread(asyncio.run, elsewhere())
            assert states == [LeaseState.CANCEL_REQUESTED, LeaseState.LOST]
            extended = await only(store, "a")
            assert extended.lease_until is not None
            assert task.lease_until is not None
            assert extended.lease_until > task.lease_until

    asyncio.run(scenario())


def test_a_heartbeat_does_not_wait_for_others_of_its_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db", "?busy_timeout=30") as store:
            # As if a thread were in the middle of something long, before it has the file.
            with store._database._main.lock:
                assert await asyncio.wait_for(store.heartbeat("w", [], 30), 10) == []
                assert [worker.id for worker in await store.workers()] == ["w"]

    asyncio.run(scenario())


def test_an_answer_that_nobody_waits_for_any_more_harms_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db", "?busy_timeout=30") as store:
            with store._database._main.lock:
                given_up = asyncio.create_task(store.enqueue([new_task(), new_task()]))
                kept = asyncio.create_task(store.enqueue([new_task(), new_task()]))
                await asyncio.sleep(0.05)  # by then it waits
                given_up.cancel()
                await asyncio.gather(given_up, return_exceptions=True)
            assert len(await kept) == 2
            assert await count(store, TaskState.READY) in (2, 4)

    asyncio.run(scenario())


# Forks


FORKING = """
import asyncio, os, sys, threading, traceback
from omniq.errors import StorageUnavailable
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.storage.urls import parse_url
from omniq_local.sqlite import SQLiteStorage

def task():
    return NewTask(id=new_id(), queue="q", name="n", body=b"")

async def in_child(inherited):
    assert inherited.enqueue_blocking([task()]) is None
    try:
        await inherited.enqueue([task()])
        raise AssertionError("the parent's connection was used")
    except StorageUnavailable as error:
        assert "not open in this process" in str(error)
    own = inherited.sibling()
    await own.open()
    assert (await own.enqueue([task()]))[0].created
    assert own.enqueue_blocking([task()])[0].created
    await own.close()
    await inherited.close()
    # What it had it has again once it is opened.
    await inherited.open()
    await inherited.enqueue([task(), task()])
    await inherited.close()

store = SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}"))
loop = asyncio.new_event_loop()
loop.run_until_complete(store.open())
store.enqueue_blocking([task()])
loop.run_until_complete(store.stats())
loop.run_until_complete(store.heartbeat("w", [], 30))
loop.run_until_complete(store.wait_for_work(["empty"], 0.01))
children = []
writing, stored = threading.Event(), 0

def write():
    # A fork may come in the middle of any of these.
    global stored
    while not writing.is_set():
        stored += len(store.enqueue_blocking([task(), task()]))

writer = threading.Thread(target=write)
writer.start()
for _ in range(3):
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(in_child(store))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # as multiprocessing does: an exit would collect the parent's loop, and close its selector
    children.append(child)
    for _ in range(50):
        store.enqueue_blocking([task()])
for child in children:
    assert os.waitpid(child, 0)[1] == 0
writing.set()
writer.join()
store.enqueue_blocking([task()])
(stats,) = loop.run_until_complete(store.stats())
print(stats.counts["ready"] - stored)
loop.run_until_complete(store.close())
loop.close()
"""


def test_a_fork_leaves_the_parents_connections_alone(tmp_path: Path) -> None:
    assert run_python(FORKING, tmp_path / "jobs.db") == f"{1 + 3 * (50 + 4) + 1}\n"


# Dying


DYING = """
import asyncio, os, signal, sys
from omniq.storage.ids import new_id
from omniq.task import NewTask
from omniq.storage.urls import parse_url
from omniq_local.sqlite import SQLiteStorage

async def main():
    store = SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}"))
    await store.open()
    for size in (1, 1, 20, 1, 300):
        tasks = [NewTask(id=new_id(), queue="q", name="n", body=b"x" * 500) for _ in range(size)]
        print(*[entry.id for entry in await store.enqueue(tasks)], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_what_was_acknowledged_survives_the_death_of_the_process(tmp_path: Path) -> None:
    with python(DYING, tmp_path / "jobs.db") as process:
        out, _ = process.communicate(timeout=60)
    acknowledged = out.split()
    assert len(acknowledged) == 323

    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            assert [task.id for task in await take(store)] == acknowledged

    asyncio.run(scenario())


# The log


def test_the_log_does_not_grow_for_ever_while_everybody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 50)
    monkeypatch.setattr(checkpoint, "LONGEST", 200)
    path = tmp_path / "jobs.db"

    async def scenario() -> None:
        async with opened(path) as store:
            written = 0
            # Two pages each, at least: without a checkpoint that would be over thirty megabytes.
            for _ in range(8):
                for _ in range(500):
                    store.enqueue_blocking([new_task(body=b"x" * 600)])
                    written += 1
                # On a busy machine the thread that makes them gets no turn for long.
                await await_until(lambda: not store._database._checkpoints._under_way)
            size = (tmp_path / "jobs.db-wal").stat().st_size
            assert size < 10_000_000
            assert await count(store, TaskState.READY) == written

    asyncio.run(scenario())


def test_a_checkpoint_that_fails_costs_nothing_but_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    async def scenario() -> None:
        async with opened(tmp_path / "jobs.db") as store:
            monkeypatch.setattr(checkpoint, "EVERY", 1)
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint, "connect", fails)
                await store.enqueue([new_task()])
                await await_until(lambda: "cannot checkpoint" in caplog.text)
                await store.enqueue([new_task()])
            await store.enqueue([new_task()])
            assert await count(store, TaskState.READY) == 3

    asyncio.run(scenario())


WORKING = """
import asyncio, sys
from omniq.task import Succeeded
from omniq.storage.urls import parse_url
from omniq_local.sqlite import SQLiteStorage

async def main():
    store = SQLiteStorage(parse_url(f"sqlite:///{sys.argv[1]}"))
    await store.open()
    done = 0
    while tasks := await store.claim({"q": 25}, worker=sys.argv[2], lease=60):
        assert all(await store.finish([Succeeded(id=t.id, delivery=t.delivery, result=b"1") for t in tasks]))
        done += len(tasks)
    print(done)
    await store.close()

asyncio.run(main())
"""


def test_processes_that_work_at_once_get_every_task_once_and_count_right(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"

    async def scenario() -> None:
        async with opened(path) as store:
            await store.enqueue([new_task() for _ in range(2000)])
            with python(WORKING, path, "a") as one, python(WORKING, path, "b") as other:
                for _ in range(300):
                    store.enqueue_blocking([new_task(queue="aside")])
                done = [int(await asyncio.to_thread(output_of, process)) for process in (one, other)]
            assert sum(done) == 2000
            assert await count(store, TaskState.SUCCEEDED) == 2000
            assert await count(store, TaskState.READY, "aside") == 300

    asyncio.run(scenario())


FORK_AT_THE_SAME_TIME = """
import os, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from omniq import TaskQueue

warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12 and later: threads and forks do not go together

queue = TaskQueue(f"sqlite:///{sys.argv[1]}")


@queue.task
def note(): ...


def fork():
    for _ in range(10):
        if not (child := os.fork()):
            os._exit(0)
        os.waitpid(child, 0)
        note.enqueue()


note.enqueue()
with ThreadPoolExecutor(8) as pool:
    for forks in [pool.submit(fork) for _ in range(8)]:
        forks.result()
print(len(queue.tasks(limit=100)))
"""


def test_threads_that_fork_at_the_same_time_leave_the_store_as_it_was(tmp_path: Path) -> None:
    # As tasks do that use multiprocessing. When it fails it hangs.
    assert run_python(FORK_AT_THE_SAME_TIME, tmp_path / "jobs.db").split() == ["81"]
