"""Connections that cannot be taken part in are refused by what users call: there must be a transaction to commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from omniq import TaskFailed, TaskQueue, current_task
from tests.postgres.support import django_connection, engine_of
from tests.servers.postgres import PostgresServer


@contextmanager
def psycopg_without_transaction(server: PostgresServer) -> Iterator[Any]:
    with psycopg.connect(server.url, autocommit=True) as connection:
        yield connection


@contextmanager
def alchemy_without_transaction(server: PostgresServer) -> Iterator[Any]:
    with engine_of(server, isolation_level="AUTOCOMMIT").connect() as connection:
        yield connection


@contextmanager
def session_without_transaction(server: PostgresServer) -> Iterator[Any]:
    with Session(engine_of(server, isolation_level="AUTOCOMMIT")) as session:
        yield session


@pytest.mark.parametrize(
    "way",
    [psycopg_without_transaction, alchemy_without_transaction, session_without_transaction, django_connection],
    ids=lambda way: way.__name__,
)
def test_without_a_transaction_nothing_is_enqueued_or_completed(
    server: PostgresServer, storage_url: str, way: Callable[..., Any]
) -> None:
    """By the way that users go."""
    with TaskQueue(storage_url) as queue:

        @queue.task(max_retries=0)
        def complete() -> None:
            with way(server) as connection:
                current_task().complete_in(connection, None)

        with way(server) as connection:
            with pytest.raises(ValueError, match=r"commits each statement.*begin one"):
                complete.using(connection=connection).enqueue()
            with pytest.raises(ValueError, match=r"commits each statement.*begin one"):
                queue.enqueue_many([complete.call()], connection=connection)
        assert queue.stats() == []

        async def work() -> None:
            async with queue.worker(concurrency=1):
                handle = await complete.aenqueue()
                with pytest.raises(TaskFailed, match=r"commits each statement.*begin one"):
                    await handle.aresult(timeout=30)

        asyncio.run(work())


@asynccontextmanager
async def async_psycopg_without_transaction(server: PostgresServer) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def async_alchemy_without_transaction(server: PostgresServer) -> AsyncIterator[Any]:
    url = server.url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_async_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
    async with AsyncSession(engine) as session:
        yield session


@pytest.mark.parametrize(
    "way", [async_psycopg_without_transaction, async_alchemy_without_transaction], ids=lambda way: way.__name__
)
def test_nor_by_an_asynchronous_driver(server: PostgresServer, storage_url: str, way: Callable[..., Any]) -> None:
    async def work() -> None:
        async with TaskQueue(storage_url) as queue:

            @queue.task(max_retries=0)
            async def complete() -> None:
                async with way(server) as connection:
                    await current_task().acomplete_in(connection, None)

            async with way(server) as connection:
                with pytest.raises(ValueError, match=r"commits each statement.*begin one"):
                    await complete.using(connection=connection).aenqueue()
            assert await queue.astats() == []
            async with queue.worker(concurrency=1):
                handle = await complete.aenqueue()
                with pytest.raises(TaskFailed, match=r"commits each statement.*begin one"):
                    await handle.aresult(timeout=30)

    asyncio.run(work())


def test_a_connection_that_cannot_send_every_text_is_refused(server: PostgresServer, storage_url: str) -> None:
    with TaskQueue(storage_url) as queue:

        @queue.task
        def greet(name: str) -> None: ...

        assert queue.stats() == []
        with psycopg.connect(server.url, client_encoding="latin1") as connection:
            with pytest.raises(ValueError, match="client_encoding LATIN1"):
                greet.using(connection=connection).enqueue("Zoë")
            connection.execute("SET client_encoding TO 'UTF8'")
            handle = greet.using(connection=connection, tags=["Zoë"]).enqueue("Zoë")
        assert handle.task().tags == ("Zoë",)
