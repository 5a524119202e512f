"""Tasks in the caller's own transaction on a database file, through libraries that have a connection to it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from django.db import transaction  # type: ignore[import-untyped]  # it brings no types
from sqlalchemy.orm import Session

from omniq import TaskCancelled, TaskFailed, TaskQueue, current_task
from tests.django_support import ALIAS, connection_to

Way = Callable[[Path], Any]


def engine_of(path: Path, **options: Any) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=sqlalchemy.NullPool, **options)


def django_connection(path: Path) -> AbstractContextManager[Any]:
    return connection_to(ENGINE="django.db.backends.sqlite3", NAME=str(path))


# In a transaction that commits


@contextmanager
def alchemy_connection(path: Path) -> Iterator[Any]:
    with engine_of(path).begin() as connection:
        yield connection


@contextmanager
def alchemy_session(path: Path) -> Iterator[Any]:
    with Session(engine_of(path)) as session, session.begin():
        yield session


@contextmanager
def django_atomic(path: Path) -> Iterator[Any]:
    with django_connection(path) as connection, transaction.atomic(using=ALIAS):
        yield connection


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "takes it back"])
@pytest.mark.parametrize("way", [alchemy_connection, alchemy_session, django_atomic], ids=lambda way: str(way.__name__))
def test_a_task_exists_if_and_only_if_the_caller_commits(tmp_path: Path, way: Way, fails: bool) -> None:
    path = tmp_path / "shop.db"
    with TaskQueue(f"sqlite:///{path}") as queue:

        @queue.task
        def work() -> None: ...

        assert queue.stats() == []  # the file is there
        try:
            with way(path) as connection:
                work.using(connection=connection).enqueue()
                assert queue.stats() == []
                if fails:
                    raise LookupError
        except LookupError:
            pass
        assert len(queue.stats()) == (0 if fails else 1)


@pytest.mark.parametrize("fails", [False, True], ids=["commits", "takes it back"])
def test_a_flow_exists_if_and_only_if_the_caller_commits(tmp_path: Path, fails: bool) -> None:
    with TaskQueue(f"sqlite:///{tmp_path}/shop.db") as queue:

        @queue.task
        def one() -> int:
            return 1

        @queue.task
        def double(number: int) -> int:
            return 2 * number

        assert queue.stats() == []  # the file is there
        with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
            handle = queue.enqueue_flow(one.call().then(double), connection=connection)
            assert queue.stats() == []
            connection.rollback() if fails else connection.commit()
        if fails:
            assert queue.stats() == []
            return

        async def work() -> None:
            async with queue.worker():
                assert await handle.aresult(timeout=30) == 2

        asyncio.run(work())


def test_what_waits_for_a_task_follows_as_the_commit_that_completes_it_does(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    with TaskQueue(f"sqlite:///{path}", max_retries=0) as queue:

        @queue.task
        def sell(commits: bool) -> int:
            with closing(sqlite3.connect(path)) as connection:
                current_task().complete_in(connection, 7)
                connection.commit() if commits else connection.rollback()
            return 8

        @queue.task
        def report(number: int) -> int:
            return number

        handles = [queue.enqueue_flow(sell.call(commits).then(report)) for commits in (True, False)]

        async def work() -> None:
            async with queue.worker():
                assert await handles[0].aresult(timeout=30) == 7
                with pytest.raises(TaskCancelled, match="NotCommitted"):
                    await handles[1].aresult(timeout=30)

        asyncio.run(work())


# Without one


@contextmanager
def alchemy_without_transaction(path: Path) -> Iterator[Any]:
    with engine_of(path, isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection


@contextmanager
def session_without_transaction(path: Path) -> Iterator[Any]:
    with Session(engine_of(path, isolation_level="AUTOCOMMIT")) as session:
        yield session


@pytest.mark.parametrize(
    "way",
    [alchemy_without_transaction, session_without_transaction, django_connection],
    ids=lambda way: str(way.__name__),
)
def test_without_a_transaction_nothing_is_enqueued_or_completed(tmp_path: Path, way: Way) -> None:
    path = tmp_path / "shop.db"
    with TaskQueue(f"sqlite:///{path}") as queue:

        @queue.task(max_retries=0)
        def complete() -> None:
            with way(path) as connection:
                current_task().complete_in(connection, None)

        assert queue.stats() == []
        with way(path) as connection, pytest.raises(ValueError, match=r"commits each statement.*begin one"):
            complete.using(connection=connection).enqueue()
        assert queue.stats() == []

        async def work() -> None:
            async with queue.worker(concurrency=1):
                handle = await complete.aenqueue()
                with pytest.raises(TaskFailed, match=r"commits each statement.*begin one"):
                    await handle.aresult(timeout=30)

        asyncio.run(work())
