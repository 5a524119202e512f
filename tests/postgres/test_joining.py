"""Tasks in the caller's own transaction: there if and only if the caller commits, whatever leads to the driver."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
import pytest
import sqlalchemy
from django.db import transaction  # type: ignore[import-untyped]  # it brings no types
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from omniq.storage import Enqueued, Lease, LeaseState
from omniq.storage.transactions import CallerTransaction
from omniq.task import NewTask, Released, Retry, TaskState
from omniq.testing import await_until
from omniq_postgres.storage import PostgresStorage
from tests.django_support import ALIAS
from tests.postgres.support import django_connection, done, engine_of, new_task, opened, storage, take
from tests.servers.postgres import PostgresServer

Work = Callable[[CallerTransaction], Any]
AsyncWork = Callable[[CallerTransaction], Awaitable[Any]]

RUNNERS: WeakKeyDictionary[PostgresStorage, asyncio.Runner] = WeakKeyDictionary()


# The ways to a synchronous driver: each does some work in a transaction, and commits it or takes it back.


def by_psycopg(server: PostgresServer, store: PostgresStorage, work: Work, commit: bool) -> Any:
    with psycopg.connect(server.url, row_factory=psycopg.rows.dict_row) as connection:
        result = work(store.join(connection))
        if not commit:
            connection.rollback()
    return result


def by_a_psycopg_block(server: PostgresServer, store: PostgresStorage, work: Work, commit: bool) -> Any:
    with psycopg.connect(server.url, autocommit=True) as connection, connection.transaction(force_rollback=not commit):
        return work(store.join(connection))


def by_sqlalchemy_connection(server: PostgresServer, store: PostgresStorage, work: Work, commit: bool) -> Any:
    with engine_of(server).connect() as connection:
        result = work(store.join(connection))
        if commit:
            connection.commit()
    return result


def by_sqlalchemy_session(server: PostgresServer, store: PostgresStorage, work: Work, commit: bool) -> Any:
    with Session(engine_of(server)) as session:
        session.execute(sqlalchemy.text("SELECT 1"))
        result = work(store.join(session))
        if commit:
            session.commit()
    return result


def by_django(server: PostgresServer, store: PostgresStorage, work: Work, commit: bool) -> Any:
    with django_connection(server) as connection, transaction.atomic(using=ALIAS):
        result = work(store.join(connection))
        transaction.set_rollback(not commit, using=ALIAS)
    return result


SYNC = [by_psycopg, by_a_psycopg_block, by_sqlalchemy_connection, by_sqlalchemy_session, by_django]


async def by_async_psycopg(server: PostgresServer, store: PostgresStorage, work: AsyncWork, commit: bool) -> Any:
    async with await psycopg.AsyncConnection.connect(server.url) as connection:
        result = await work(store.join(connection))
        if not commit:
            await connection.rollback()
    return result


async def by_async_connection(server: PostgresServer, store: PostgresStorage, work: AsyncWork, commit: bool) -> Any:
    url = server.url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_async_engine(url, poolclass=sqlalchemy.NullPool)
    async with engine.connect() as connection:
        result = await work(store.join(connection))
        if commit:
            await connection.commit()
    return result


async def by_async_session(server: PostgresServer, store: PostgresStorage, work: AsyncWork, commit: bool) -> Any:
    url = server.url.replace("postgresql://", "postgresql+psycopg://")
    async with AsyncSession(create_async_engine(url, poolclass=sqlalchemy.NullPool)) as session:
        result = await work(store.join(session))
        if commit:
            await session.commit()
    return result


ASYNC = [by_async_psycopg, by_async_connection, by_async_session]


@pytest.fixture
def store(storage_url: str) -> Iterator[PostgresStorage]:
    """Yield an open storage, whose event loop stands still between what is run on it."""
    with asyncio.Runner() as runner:
        made = storage(storage_url)
        RUNNERS[made] = runner
        runner.run(made.open())
        yield made
        runner.run(made.close())


def run(store: PostgresStorage, work: Awaitable[Any]) -> Any:
    async def wait() -> Any:
        return await work

    return RUNNERS[store].run(wait())


def state_of(store: PostgresStorage, task: NewTask) -> TaskState | None:
    (found,) = run(store, store.get([task.id]))
    return None if found is None else found.state


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "takes it back"])
@pytest.mark.parametrize("way", SYNC, ids=lambda way: way.__name__)
def test_a_task_exists_if_and_only_if_the_caller_commits(
    server: PostgresServer, store: PostgresStorage, way: Callable[..., Any], commit: bool
) -> None:
    first, second = new_task(unique="key", tags=("a", 'b"\\'), body=b"\x00\xff"), new_task(run_at=timedelta(hours=1))

    def work(joined: CallerTransaction) -> list[Enqueued]:
        answers = joined.enqueue([first, second, first])
        assert [state_of(store, task) for task in (first, second)] == [None, None], "seen before it was committed"
        return answers

    answers = way(server, store, work, commit)
    assert [answer.created for answer in answers] == [True, True, False]
    expected = [TaskState.READY, TaskState.SCHEDULED] if commit else [None, None]
    assert [state_of(store, task) for task in (first, second)] == expected


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "takes it back"])
@pytest.mark.parametrize("way", SYNC, ids=lambda way: way.__name__)
def test_an_outcome_counts_if_and_only_if_the_caller_commits(
    server: PostgresServer, store: PostgresStorage, way: Callable[..., Any], commit: bool
) -> None:
    task = new_task()
    run(store, store.enqueue([task]))
    (claimed,) = run(store, take(store))

    def work(joined: CallerTransaction) -> bool:
        accepted = joined.finish(done(claimed))
        assert state_of(store, task) is TaskState.RUNNING
        return accepted

    assert way(server, store, work, commit) is True
    assert state_of(store, task) is (TaskState.SUCCEEDED if commit else TaskState.RUNNING)
    assert run(store, store.finish([done(claimed)])) == [not commit]


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "takes it back"])
@pytest.mark.parametrize("way", ASYNC, ids=lambda way: way.__name__)
def test_the_same_holds_for_asynchronous_callers(
    server: PostgresServer, store: PostgresStorage, way: Callable[..., Any], commit: bool
) -> None:
    fresh, old = new_task(), new_task()
    run(store, store.enqueue([old]))
    (claimed,) = run(store, take(store))

    async def work(joined: CallerTransaction) -> list[bool]:
        with pytest.raises(TypeError, match="aenqueue"):
            joined.enqueue([fresh])
        with pytest.raises(TypeError, match="afinish"):
            joined.finish(done(claimed))
        (answer,) = await joined.aenqueue([fresh])
        return [answer.created, await joined.afinish(done(claimed))]

    assert run(store, way(server, store, work, commit)) == [True, True]
    assert state_of(store, fresh) is (TaskState.READY if commit else None)
    assert state_of(store, old) is (TaskState.SUCCEEDED if commit else TaskState.RUNNING)


def test_the_twins_work_with_a_synchronous_driver_too(server: PostgresServer, store: PostgresStorage) -> None:
    task = new_task()
    with psycopg.connect(server.url) as connection:
        (answer,) = run(store, store.join(connection).aenqueue([task]))
    assert answer == Enqueued(task.id, True)
    (claimed,) = run(store, take(store))
    with psycopg.connect(server.url) as connection:
        assert run(store, store.join(connection).afinish(done(claimed))) is True
    assert state_of(store, task) is TaskState.SUCCEEDED


def test_a_worker_that_lost_its_lease_is_told_so_within_its_transaction(
    server: PostgresServer, store: PostgresStorage
) -> None:
    task = new_task()
    run(store, store.enqueue([task]))
    (stale,) = run(store, take(store, lease=0))
    run(store, store.recover(1))
    (claimed,) = run(store, take(store))
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TEMP TABLE effect (n int)")
        assert store.join(connection).finish(done(stale)) is False
    assert state_of(store, task) is TaskState.RUNNING
    assert run(store, store.finish([done(claimed)])) == [True]


def test_an_open_transaction_blocks_nobody(server: PostgresServer, store: PostgresStorage) -> None:
    tasks = [new_task() for _ in range(3)]
    run(store, store.enqueue(tasks))
    claimed = run(store, take(store, 3, lease=0))
    leases = [Lease(task.id, task.delivery) for task in claimed]
    with psycopg.connect(server.url) as connection:
        assert store.join(connection).finish(done(claimed[0])) is True
        # Its lease has run out, but it is being completed: neither taken back nor said to be lost.
        assert [task.id for task in run(store, store.recover(10))] == [tasks[1].id, tasks[2].id]
        states = run(store, store.heartbeat("w", leases, 60))
        assert states == [LeaseState.HELD, LeaseState.LOST, LeaseState.LOST]
        again = run(store, take(store, 3))
        assert run(store, store.finish([done(task) for task in again])) == [True, True]
        run(store, store.set_progress({}))
        connection.rollback()
    assert [task.id for task in run(store, store.recover(10))] == [tasks[0].id]


def test_a_worker_killed_in_its_transaction_leaves_the_task_to_the_next(
    server: PostgresServer, store: PostgresStorage
) -> None:
    task = new_task()
    run(store, store.enqueue([task]))
    (claimed,) = run(store, take(store, lease=0))
    connection = psycopg.connect(server.url)
    assert store.join(connection).finish(done(claimed)) is True
    server.execute("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
    connection.pgconn.finish()
    (recovered,) = run(store, await_until(lambda: store.recover(1), what="the lost task"))
    assert recovered.id == task.id


def test_retries_and_releases_go_through_the_transaction_too(server: PostgresServer, store: PostgresStorage) -> None:
    tasks = [new_task(), new_task()]
    run(store, store.enqueue(tasks))
    first, second = run(store, take(store, 2))
    with psycopg.connect(server.url) as connection:
        joined = store.join(connection)
        assert joined.finish(Retry(id=first.id, delivery=1, delay=60)) is True
        assert joined.finish(Released(id=second.id, delivery=1)) is True
    assert [state_of(store, task) for task in tasks] == [TaskState.SCHEDULED, TaskState.READY]


def test_a_waiting_worker_hears_of_a_task_once_it_is_committed(
    server: PostgresServer, store: PostgresStorage, storage_url: str
) -> None:
    async def wait() -> None:
        async with opened(storage_url) as other:
            waits = asyncio.create_task(other.wait_for_work(["q"], 600))
            await asyncio.sleep(0.1)  # by then it waits
            async with await psycopg.AsyncConnection.connect(server.url) as connection:
                await store.join(connection).aenqueue([new_task()])
                await asyncio.sleep(0.1)  # what must not happen would have by now
                assert not waits.done()
            async with asyncio.timeout(30):
                await waits

    run(store, wait())


def test_a_connection_that_commits_each_statement_is_refused_unless_a_transaction_is_open(
    server: PostgresServer, store: PostgresStorage
) -> None:
    task = new_task()
    with psycopg.connect(server.url, autocommit=True) as connection:
        joined = store.join(connection)
        with pytest.raises(ValueError, match="commits each statement"):
            joined.enqueue([task])
        with connection.transaction():
            assert joined.enqueue([task])[0].created
    with (
        engine_of(server).connect().execution_options(isolation_level="AUTOCOMMIT") as alchemy,
        pytest.raises(ValueError, match="commits each statement"),
    ):
        store.join(alchemy).enqueue([new_task()])
    assert state_of(store, task) is TaskState.READY


def test_django_outside_of_a_transaction_is_refused(server: PostgresServer, store: PostgresStorage) -> None:
    with django_connection(server) as connection, pytest.raises(ValueError, match=r"transaction\.atomic"):
        store.join(connection).enqueue([new_task()])


@pytest.mark.parametrize("connection", [object(), None, "postgresql://", 5])
def test_what_is_no_connection_is_refused_and_those_that_are_known_named(
    store: PostgresStorage, connection: object
) -> None:
    with pytest.raises(TypeError, match=r"psycopg.*SQLAlchemy.*Django"):
        store.join(connection)


def test_another_database_of_the_same_server_is_refused(server: PostgresServer, store: PostgresStorage) -> None:
    with (
        psycopg.connect(server.url.removesuffix("/postgres") + "/template1") as connection,
        pytest.raises(ValueError, match="template1"),
    ):
        store.join(connection)


def test_the_connection_keeps_its_ways(server: PostgresServer, store: PostgresStorage) -> None:
    with psycopg.connect(server.url, row_factory=psycopg.rows.dict_row) as connection:
        store.join(connection).enqueue([new_task()])
        (row,) = connection.execute("SELECT %s AS x, now() AS t", ["a"]).fetchall()
        assert row["x"] == "a"
        assert connection.autocommit is False
