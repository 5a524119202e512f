"""SqlTx where the database locks rows: writers pass each other, and none undoes what another did meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from omniq.errors import StorageUnavailable
from omniq.plugins import default_plugins
from omniq.storage import Enqueued, transitions
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Succeeded
from omniq.testing.contract import steps
from tests.servers.postgres import PostgresServer


def task() -> NewTask:
    return NewTask(id=new_id(), queue="q", name="n", body=b"")


@pytest.fixture(params=["postgres", "mysql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Any]:
    store = default_plugins().open_storage(parse_url(url))
    await store.open()
    yield store
    await store.close()


@contextlib.contextmanager
def transaction(store: Any) -> Iterator[Any]:
    """Begin another writer's transaction on a connection of its own."""
    with contextlib.closing(store.connect()) as connection, store.transaction(connection, True) as tx:
        yield tx


async def test_a_claim_passes_over_what_another_has_locked(url: str) -> None:
    async with opened(url) as store:
        first, second = task(), task()
        await store.enqueue([first, second])
        with transaction(store) as tx:
            assert [one.id for one in tx.ready("q", 1)] == [first.id]
            assert [one.id for one in await store.claim({"q": 2}, worker="w", lease=60)] == [second.id]


async def test_what_only_reads_waits_for_no_lock(url: str) -> None:
    async with opened(url) as store:
        new = task()
        await store.enqueue([new])
        with transaction(store) as tx:
            tx.load([new.id])
            async with asyncio.timeout(5):
                assert await store.wait_finished([new.id], 0) == set()


class Rows(list[list[str]]):
    """Rows that note, as they are read, whether the connection waits for answers between them."""

    def __init__(self, rows: list[list[str]], connection: psycopg.Connection[Any]) -> None:
        super().__init__(rows)
        self.seen: list[psycopg.pq.PipelineStatus] = []
        self._connection = connection

    def __iter__(self) -> Iterator[list[str]]:
        for row in super().__iter__():
            self.seen.append(self._connection.info.pipeline_status)
            yield row


async def test_a_client_that_stands_still_between_rows_is_idle_for_the_server(postgres_url: str) -> None:
    # A server ends transactions that idle, and not those of clients that have sent ahead.
    async with opened(postgres_url) as store:
        with transaction(store) as tx:
            rows = Rows([["a"], ["b"]], tx.cursor.connection)
            tx.change_many("SELECT %s::text", rows)
    assert rows.seen == [psycopg.pq.PipelineStatus.OFF] * 2


async def test_of_two_that_delete_schedules_both_revisions_are_remembered(url: str) -> None:
    async with opened(url) as store:
        # One that has read it keeps it locked; one that has not may come second with less.
        with transaction(store) as tx:
            with transaction(store) as other:
                other.raise_revision_floor(5)
            tx.raise_revision_floor(3)
        with transaction(store) as tx:
            assert tx.revision_floor() == 5


async def test_a_schedule_that_another_stores_meanwhile_is_not_replaced_unseen(url: str) -> None:
    async with opened(url) as store:
        schedule = steps.new_schedule("s")
        with pytest.raises(Exception) as caught, transaction(store) as tx:  # noqa: PT011, PT012  # the driver's own
            assert tx.schedule("s") is None
            assert await store.put_schedule(schedule) is not None
            tx.store_schedule(schedule)
        assert isinstance(store.fault(caught.value), StorageUnavailable)


async def test_of_two_that_change_a_schedule_the_second_goes_on_from_the_first(url: str) -> None:
    async with opened(url) as store:
        schedule = await store.put_schedule(steps.new_schedule("s"))
        with transaction(store) as tx:
            transitions.put_schedule(tx, schedule, None)
            second = asyncio.create_task(store.put_schedule(schedule))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await asyncio.shield(second)
        assert (await second).revision == 3


# What PostgreSQL can beyond


async def test_a_change_by_another_wakes_who_waits(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniq.storage.simple.waiting.LOOK_SECONDS", 600.0)
    async with opened(postgres_url) as store:
        waiting = asyncio.create_task(store.wait_for_work(["q"], 600))
        await asyncio.sleep(0)  # the wait begins
        with transaction(store) as tx:
            transitions.enqueue(tx, [task()])
            store.announce(tx)
        async with asyncio.timeout(60):
            await waiting


async def test_a_task_in_a_callers_transaction_exists_if_it_commits(
    postgres_url: str, postgres: PostgresServer
) -> None:
    async with opened(postgres_url) as store:
        dropped, kept = task(), task()
        with psycopg.connect(postgres.url) as own:
            assert store.join(own).enqueue([dropped]) == [Enqueued(dropped.id, True)]
            own.rollback()
            assert store.join(own).enqueue([kept]) == [Enqueued(kept.id, True)]
            own.commit()
            assert [one and one.id for one in await store.get([dropped.id, kept.id])] == [None, kept.id]
            (claimed,) = await store.claim({"q": 1}, worker="w", lease=60)
            outcome = Succeeded(id=kept.id, delivery=claimed.delivery, result=b"1")
            assert [store.join(own).finish(outcome), store.join(own).finish(outcome)] == [True, False]
        own.close()
        with psycopg.connect(postgres.url, autocommit=True) as own, pytest.raises(ValueError, match="begin a trans"):
            store.join(own).enqueue([task()])
