"""The caller's own transaction on the database file: his connection, his commit, and nothing of ours without it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import StorageUnavailable
from omniq.storage import Capability, Lease, LeaseState
from omniq.task import Released, Retry, StoredTask, Succeeded, TaskError, TaskState
from omniq.testing import await_until, wait_until
from omniq_local.sqlite import SQLiteStorage, waiting
from tests.local.sqlite_support import count, only, opened, raw, storage, take
from tests.local.support import Clock, new_task


@contextlib.asynccontextmanager
async def shop(folder: Path, **options: Any) -> AsyncIterator[tuple[SQLiteStorage, Path]]:
    """Yield an open store, and the path of the database that the application's own table is in, too."""
    path = folder / "shop.db"
    async with opened(path, "?foreign=allow", **options) as store:
        with raw(path) as connection:
            connection.execute("CREATE TABLE sold (n INTEGER)")
        yield store, path


@contextlib.contextmanager
def connected(path: Path, **options: Any) -> Iterator[sqlite3.Connection]:
    """Yield a connection of the application's, as it opens them."""
    connection = sqlite3.connect(path, **options)
    try:
        yield connection
    finally:
        connection.close()


def sold(path: Path) -> int:
    with connected(path) as connection:
        found: int = connection.execute("SELECT count(*) FROM sold").fetchone()[0]
        return found


async def claimed(store: SQLiteStorage, **options: Any) -> StoredTask:
    """Enqueue a task and claim it."""
    await store.enqueue([new_task(**options)])
    (task,) = await take(store)
    return task


def succeeded(task: StoredTask, result: bytes = b'"done"') -> Succeeded:
    return Succeeded(id=task.id, delivery=task.delivery, result=result)


# Enqueueing and finishing


def test_the_store_says_that_it_can() -> None:
    assert Capability.TRANSACTIONS in SQLiteStorage.capabilities


def test_what_is_rolled_back_was_never_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(path) as connection:
                connection.execute("INSERT INTO sold VALUES (1)")
                joined = store.join(connection)
                joined.enqueue([new_task(tags=("a",), body=b"x" * 5000), new_task(run_at=timedelta(hours=1))])
                connection.rollback()
            assert await store.stats() == []
            assert sold(path) == 0
            with raw(path) as connection:
                for table in ("task", "body", "tag"):
                    assert connection.execute(f'SELECT count(*) FROM "omniq.{table}"').fetchone() == (0,)

    asyncio.run(scenario())


def test_what_is_committed_is_counted_and_claimed_in_its_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            before, after = new_task(), new_task()
            inside = [new_task(), new_task(body=b"x" * 5000, tags=("a",)), new_task(priority=1)]
            await store.enqueue([before])  # fresh: not counted yet
            with connected(path) as connection, connection:
                created = await store.join(connection).aenqueue([*inside, new_task(run_at=timedelta(hours=1))])
            await store.enqueue([after])

            assert all(entry.created for entry in created)
            assert await count(store, TaskState.READY) == 5
            assert await count(store, TaskState.SCHEDULED) == 1
            first, second, third = inside
            assert [task.id for task in await take(store)] == [third.id, before.id, first.id, second.id, after.id]
            assert (await only(store, second.id)).body == b"x" * 5000

    asyncio.run(scenario())


def test_a_repeated_id_and_a_live_unique_key_are_told_of_as_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            live, again = new_task(unique="k"), new_task()
            await store.enqueue([live, again])
            with connected(path) as connection, connection:
                joined = store.join(connection)
                results = joined.enqueue([new_task(unique="k"), again, new_task(unique="l"), new_task(unique="l")])
            assert [result.created for result in results] == [False, False, True, False]
            assert [results[0].id, results[1].id, results[3].id] == [live.id, again.id, results[2].id]
            assert await count(store, TaskState.READY) == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("commits", [True, False])
def test_an_outcome_is_recorded_if_and_only_if_the_caller_commits(tmp_path: Path, commits: bool) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            task = await claimed(store, unique="k", result_ttl=0.0)
            with connected(path) as connection:
                connection.execute("INSERT INTO sold VALUES (1)")
                assert store.join(connection).finish(succeeded(task))
                if commits:
                    connection.commit()
            record = await only(store, task.id)
            lease = Lease(task.id, task.delivery)
            (state,) = await store.heartbeat("w", [lease], 60)
            (second,) = await store.enqueue([new_task(unique="k")])
            late = await store.finish([Retry(id=task.id, delivery=task.delivery, delay=0, error=None)])

            if commits:
                assert (record.state, record.result_payload) == (TaskState.SUCCEEDED, b'"done"')
                assert (state, second.created, late) == (LeaseState.LOST, True, [False])
                assert await count(store, TaskState.SUCCEEDED) == 1
                assert await store.prune(10) == 1, "its time is over"
            else:
                assert (record.state, record.result_payload) == (TaskState.RUNNING, None)
                assert (state, second.created, late) == (LeaseState.HELD, False, [True])
            assert sold(path) == int(commits)

    asyncio.run(scenario())


def test_any_outcome_can_be_recorded(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            task = await claimed(store)
            with connected(path) as connection, connection:
                assert await store.join(connection).afinish(Released(id=task.id, delivery=task.delivery))
            (task,) = await take(store)
            error = TaskError(type="E", message="m")
            with connected(path) as connection, connection:
                joined = store.join(connection)
                assert joined.finish(Retry(id=task.id, delivery=task.delivery, delay=60, error=error))
            record = await only(store, task.id)
            assert (record.state, record.attempt, record.error) == (TaskState.SCHEDULED, 1, error)
            assert await count(store, TaskState.SCHEDULED) == 1

    asyncio.run(scenario())


def test_who_has_lost_the_lease_records_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with shop(tmp_path, clock=clock) as (store, path):
            await store.enqueue([new_task()])
            (stale,) = await take(store, lease=10, worker="slow")
            clock.advance(11)
            await store.recover(10)
            with connected(path) as connection:
                connection.execute("INSERT INTO sold VALUES (1)")
                assert not store.join(connection).finish(succeeded(stale, b'"stale"'))
                connection.rollback()
            (current,) = await take(store, worker="quick")
            with connected(path) as connection:
                joined = store.join(connection)
                assert not joined.finish(succeeded(stale, b'"stale"'))
                assert joined.finish(succeeded(current, b'"current"'))
                assert not joined.finish(succeeded(current, b'"twice"'))
                connection.commit()
            assert (await only(store, stale.id)).result_payload == b'"current"'

    asyncio.run(scenario())


def test_a_call_that_fails_leaves_nothing_in_the_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(path) as connection:
                connection.execute("INSERT INTO sold VALUES (1)")
                # A tag that is no text: it is found out after the tasks are inserted.
                with pytest.raises(UnicodeEncodeError):
                    store.join(connection).enqueue([new_task(), new_task(tags=("\ud800",))])
                connection.commit()
            assert sold(path) == 1, "what the caller did himself is his"
            assert await store.stats() == []

    asyncio.run(scenario())


def test_an_earlier_savepoint_takes_what_came_after_it_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(path, isolation_level=None) as connection:
                connection.execute("BEGIN")
                (kept,) = store.join(connection).enqueue([new_task()])
                connection.execute("SAVEPOINT mine")
                (undone,) = store.join(connection).enqueue([new_task()])
                connection.execute("ROLLBACK TO mine")
                connection.execute("COMMIT")
            assert [task and task.id for task in await store.get([kept.id, undone.id])] == [kept.id, None]
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


# His connection

HAS_AUTOCOMMIT = sys.version_info >= (3, 12)
BEGINS_BY_ITSELF: list[dict[str, Any]] = [
    *({"isolation_level": level} for level in ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE")),
    *([{"autocommit": False}] if HAS_AUTOCOMMIT else []),
]
COMMITS_EACH_STATEMENT: list[dict[str, Any]] = [
    {"isolation_level": None},
    *([{"autocommit": True}] if HAS_AUTOCOMMIT else []),
]


def as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


@pytest.mark.parametrize("row_factory", [sqlite3.Row, as_dict])
@pytest.mark.parametrize("text_factory", [bytes, lambda data: data.decode("latin-1").upper()])
def test_how_his_connection_makes_rows_and_texts_is_his_affair(
    tmp_path: Path, row_factory: Any, text_factory: Any
) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            task = await claimed(store)
            live = new_task(unique="k", queue="other")
            await store.enqueue([live])
            with connected(path) as connection:
                connection.row_factory = row_factory
                connection.text_factory = text_factory
                joined = store.join(connection)
                assert [entry.id for entry in joined.enqueue([new_task(unique="k")])] == [live.id]
                assert joined.finish(succeeded(task))
                assert connection.row_factory is row_factory
                assert connection.text_factory is text_factory
                connection.commit()
            assert (await only(store, task.id)).state is TaskState.SUCCEEDED

    asyncio.run(scenario())


@pytest.mark.parametrize("options", BEGINS_BY_ITSELF, ids=str)
def test_where_sqlite3_begins_transactions_by_itself_it_does_so_here(tmp_path: Path, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(path, **options) as connection:
                (undone,) = store.join(connection).enqueue([new_task()])
                assert connection.in_transaction
                connection.rollback()
                (kept,) = store.join(connection).enqueue([new_task()])
                assert await store.get([kept.id]) == [None], "it was committed for him"
                connection.commit()
            assert await store.get([undone.id]) == [None]
            assert (await only(store, kept.id)).state is TaskState.READY

    asyncio.run(scenario())


@pytest.mark.parametrize("options", COMMITS_EACH_STATEMENT, ids=str)
def test_a_connection_that_commits_each_statement_needs_a_transaction(tmp_path: Path, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            task = await claimed(store)
            with connected(path, **options) as connection:
                joined = store.join(connection)
                with pytest.raises(ValueError, match=r'execute\("BEGIN IMMEDIATE"\)'):
                    joined.enqueue([new_task()])
                with pytest.raises(ValueError, match="no transaction to take part in"):
                    joined.finish(succeeded(task))
                assert not connection.in_transaction
                assert await count(store, TaskState.READY) == 0
                connection.execute("BEGIN IMMEDIATE")
                joined.enqueue([new_task()])
                assert joined.finish(succeeded(task))
                connection.execute("COMMIT")
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_a_transaction_that_has_read_and_then_was_overtaken_is_told_to_begin_otherwise(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(path, isolation_level=None) as connection:
                connection.execute("BEGIN")
                connection.execute("SELECT * FROM sold").fetchall()
                await store.enqueue([new_task()])
                with pytest.raises(StorageUnavailable, match="BEGIN IMMEDIATE"):
                    store.join(connection).enqueue([new_task()])
                connection.execute("ROLLBACK")
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_another_who_writes_is_waited_for_as_long_as_his_connection_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with raw(path) as other, connected(path, timeout=0.01) as connection:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StorageUnavailable, match="another connection has been writing"):
                    store.join(connection).enqueue([new_task()])
                other.execute("ROLLBACK")
                store.join(connection).enqueue([new_task()])
                connection.commit()
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_a_closed_connection_and_one_of_another_thread_are_refused_in_sqlites_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(path) as connection:
                joined = store.join(connection)
            with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
                joined.enqueue([new_task()])
            with connected(path) as connection:
                joined = store.join(connection)
                with pytest.raises(sqlite3.ProgrammingError, match="thread"):
                    await asyncio.to_thread(joined.enqueue, [new_task()])

    asyncio.run(scenario())


# Another database


def test_a_connection_to_another_database_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(tmp_path / "other.db") as connection:
                connection.execute("ATTACH ? AS shop", (str(path),))
                connection.text_factory = bytes
                with pytest.raises(ValueError, match=r"leads to .*other\.db, and the queue's tasks are in .*shop\.db"):
                    store.join(connection)
            with connected(Path(":memory:")) as connection, pytest.raises(ValueError, match="a database in memory"):
                store.join(connection)

    asyncio.run(scenario())


def test_the_same_file_may_have_another_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            link = tmp_path / "link.db"
            link.symlink_to(path)
            with connected(Path(f"{link}")) as connection, connection:
                store.join(connection).enqueue([new_task()])
            assert await count(store, TaskState.READY) == 1

    asyncio.run(scenario())


def test_what_is_no_connection_is_refused_by_the_kinds_that_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            with connected(path) as connection:
                for wrong in (object(), None, str(path), connection.cursor()):
                    with pytest.raises(TypeError, match="give a sqlite3 connection, or SQLAlchemy's or Django's"):
                        store.join(wrong)

    asyncio.run(scenario())


def test_a_storage_that_is_not_open_refuses(tmp_path: Path) -> None:
    with connected(tmp_path / "shop.db") as connection, pytest.raises(StorageUnavailable, match="not open"):
        storage(tmp_path / "shop.db").join(connection)


def test_a_storage_opens_while_somebody_is_in_a_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (_, path), asyncio.timeout(30):
            with connected(path) as connection:
                connection.execute("INSERT INTO sold VALUES (1)")
                # Not the one that is open: it would have nothing to do.
                async with opened(path, "?foreign=allow&namespace=omniq") as other:
                    other.join(connection).enqueue([new_task()])
                    connection.commit()
                    assert await count(other, TaskState.READY) == 1

    asyncio.run(scenario())


# Who waits


LONG = 60.0
"""Seconds: longer than any test lasts."""


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody find anything by himself: what wakes is a wake-up."""
    monkeypatch.setattr(waiting, "LOOK_EVERY", LONG)


def names_on(path: Path) -> int:
    with connected(path) as connection:
        found: int = connection.execute('SELECT count(*) FROM "omniq.waiter"').fetchone()[0]
        return found


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize("delay", [None, timedelta(seconds=0.2)])
def test_a_worker_that_waits_is_woken_by_the_callers_commit(tmp_path: Path, delay: timedelta | None) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path), asyncio.timeout(30):
            waits = asyncio.create_task(store.wait_for_work(["q"], LONG))
            await await_until(lambda: names_on(path) > 0)
            with connected(path) as connection, connection:
                store.join(connection).enqueue([new_task(run_at=delay)])
            await waits
            await await_until(lambda: take(store))

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_who_waits_for_a_result_is_woken_by_the_callers_commit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path), asyncio.timeout(30):
            task = await claimed(store)
            waits = asyncio.create_task(store.wait_finished([task.id], LONG))
            await await_until(lambda: names_on(path) > 0)
            with connected(path) as connection:
                store.join(connection).finish(succeeded(task))
                assert not waits.done()
                connection.commit()
            assert await waits == {task.id}

    asyncio.run(scenario())


@pytest.mark.usefixtures("no_looks")
def test_after_a_rollback_who_waits_is_still_woken_by_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path), asyncio.timeout(30):
            task = await claimed(store)
            waits = asyncio.create_task(store.wait_finished([task.id], LONG))
            await await_until(lambda: names_on(path) > 0)
            with connected(path) as connection:
                store.join(connection).finish(succeeded(task))
                connection.rollback()
            await store.finish([succeeded(task)])
            assert await waits == {task.id}

    asyncio.run(scenario())


def test_who_is_not_told_finds_out_by_himself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq_local.sqlite.database.CALLER_PATIENCE", 0.0)

    async def scenario() -> None:
        async with shop(tmp_path) as (store, path), asyncio.timeout(30):
            waits = asyncio.create_task(store.wait_for_work(["q"], LONG))
            await await_until(lambda: names_on(path) > 0)
            with connected(path) as connection:
                store.join(connection).enqueue([new_task()])
                await await_until(lambda: not _is_spreading(store))
                connection.commit()
            await waits
            assert await take(store)

    asyncio.run(scenario())


def _is_spreading(store: SQLiteStorage) -> bool:
    return store._database._spreading._queue.qsize() > 0


def test_closing_does_not_wait_for_the_callers_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq_local.sqlite.database.CALLER_PATIENCE", LONG)

    async def scenario() -> None:
        async with shop(tmp_path) as (others, path), asyncio.timeout(30):
            waits = asyncio.create_task(others.wait_for_work(["q"], LONG))
            await await_until(lambda: names_on(path) > 0)
            with connected(path) as connection:
                async with opened(path, "?foreign=allow") as store:
                    store.join(connection).enqueue([new_task()])
                assert not waits.done()
                connection.commit()
            await waits  # by his own look
            assert await count(others, TaskState.READY) == 1

    asyncio.run(scenario())
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("omniq-")])


def test_many_callers_and_the_store_itself_write_side_by_side(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with shop(tmp_path) as (store, path):
            kept: list[str] = []
            undone: list[str] = []

            def call() -> None:
                with connected(path, timeout=20) as connection:
                    for index in range(30):
                        connection.execute("INSERT INTO sold VALUES (1)")
                        (entry,) = store.join(connection).enqueue([new_task()])
                        if index % 3:
                            connection.commit()
                            kept.append(entry.id)
                        else:
                            connection.rollback()
                            undone.append(entry.id)
                        time.sleep(0)  # other threads run

            callers = [asyncio.create_task(asyncio.to_thread(call)) for _ in range(4)]
            own = [(await store.enqueue([new_task()]))[0].id for _ in range(50)]
            done: set[str] = set()
            while not all(caller.done() for caller in callers):
                tasks = await take(store, n=10)
                await store.finish([succeeded(task) for task in tasks])
                done |= {task.id for task in tasks}
                await asyncio.sleep(0.001)  # lets the callers in
            await asyncio.gather(*callers)
            done |= {task.id for task in await take(store)}

            assert done == {*kept, *own}
            assert await store.get(undone) == [None] * len(undone)
            assert sold(path) == len(kept)
            for state in (TaskState.READY, TaskState.RUNNING, TaskState.SUCCEEDED):
                await count(store, state)

    asyncio.run(scenario())
