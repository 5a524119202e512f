"""Behind a proxy everything works; where it pools by transaction, by looking instead of listening."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from omniq import StorageUnavailable, TaskQueue
from omniq.schedule import Schedule
from omniq.storage import Capability, Lease, LeaseState, Severity
from omniq.storage.ids import new_id
from omniq.task import TaskState
from omniq.testing import await_until
from omniq_postgres.connecting import Connector, discard
from tests.postgres.support import connection_of, counts, done, new_task, opened, settings_of, storage, take
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="module")
def proxy(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    with PgBouncer(tmp_path_factory.mktemp("pgbouncer"), server) as running:
        yield running


@pytest.fixture
def url(proxy: PgBouncer) -> str:
    return f"{proxy.url}?namespace=t{new_id()[-8:]}"


async def test_a_task_goes_its_whole_way(url: str) -> None:
    async with opened(url) as store, opened(url) as other:
        ids = [entry.id for entry in await store.enqueue([new_task(unique=f"{n}") for n in range(50)])]
        assert (await asyncio.to_thread(store.enqueue_blocking, [new_task()])) is not None
        for _ in range(20):
            # So often that a driver would prepare what it does, and on ever other connections of the server.
            tasks = [*await take(store, 2), *await take(other, 1)]
            leases = [Lease(task.id, task.delivery) for task in tasks]
            assert await other.heartbeat("w", leases, 60) == [LeaseState.HELD] * len(tasks)
            assert await other.finish([done(task) for task in tasks]) == [True] * len(tasks)
        assert await counts(store) == {TaskState.SUCCEEDED: 51}
        assert all(task is not None and task.result_payload == b"1" for task in await other.get(ids))


async def test_many_at_once_share_the_servers_connections(url: str) -> None:
    async with opened(url, connections=20) as store:
        answers = await asyncio.gather(*(store.enqueue([new_task()]) for _ in range(200)))
        assert all(answer.created for (answer,) in answers)
        claims = await asyncio.gather(*(take(store, 10) for _ in range(30)))
        assert len({task.id for tasks in claims for task in tasks}) == 200


async def test_many_may_come_at_once(url: str) -> None:
    """None of them knows beforehand what the proxy refuses."""
    first = storage(url)
    stores = [first, *(first.sibling() for _ in range(20))]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        answers = await asyncio.gather(*(store.enqueue([new_task()]) for store in stores))
        assert all(answer.created for (answer,) in answers)
        made = await asyncio.gather(*(asyncio.to_thread(store.enqueue_blocking, [new_task()]) for store in stores))
        assert all(answers and answers[0].created for answers in made)
    finally:
        for store in stores:
            await store.close()


async def test_waits_end_without_messages(url: str) -> None:
    async with opened(url) as store, opened(url) as other:
        works = asyncio.create_task(store.wait_for_work(["q"], 60))
        await asyncio.sleep(0.2)  # by then it waits
        (entry,) = await other.enqueue([new_task()])
        async with asyncio.timeout(30):
            await works
            (claimed,) = await take(store)
            ends = asyncio.create_task(other.wait_finished([entry.id], 60))
            await asyncio.sleep(0.2)  # by then it waits
            await store.finish([done(claimed)])
            assert await ends == {entry.id}


async def test_a_transaction_of_the_callers_goes_through_it(proxy: PgBouncer, url: str) -> None:
    async with opened(url) as store:
        task = new_task()
        with psycopg.connect(proxy.url, prepare_threshold=None) as connection:
            store.join(connection).enqueue([task])
        (claimed,) = await take(store)
        assert claimed.id == task.id


async def test_of_several_that_fire_a_schedule_one_does(url: str) -> None:
    async with opened(url) as store, opened(url) as other:
        schedule = await store.put_schedule(Schedule(id="s", task=new_task(), trigger="t", next_run=await store.now()))
        assert schedule is not None
        fired = await asyncio.gather(*(each.fire(schedule, [new_task()]) for each in (store, other) * 10))
        assert len([enqueued for enqueued in fired if enqueued is not None]) == 1
        assert await counts(store) == {TaskState.READY: 1}


async def test_the_doctor_notices_it(url: str) -> None:
    async with opened(url) as store:
        found = {finding.subject: finding.severity for finding in await store.diagnose()}
    assert found["pooler"] is Severity.WARNING
    assert Severity.ERROR not in found.values()


async def test_it_can_be_named_beforehand(url: str) -> None:
    async with opened(url, pooler="transaction") as store:
        assert (await store.enqueue([new_task()]))[0].created


async def test_the_way_past_it_is_not_taken_for_one(server: PostgresServer) -> None:
    async with opened(f"{server.url}?namespace=t{new_id()[-8:]}") as store:
        assert "pooler" not in {finding.subject for finding in await store.diagnose()}


async def test_the_proxy_may_be_restarted(proxy: PgBouncer, url: str) -> None:
    async with opened(url) as store:
        await store.enqueue([new_task()])
        await asyncio.to_thread(proxy.kill)
        await asyncio.to_thread(proxy.start)
        await store.enqueue([new_task()])
        assert await counts(store) == {TaskState.READY: 2}


def test_a_queue_and_its_worker_work_through_it(url: str) -> None:
    with TaskQueue(url) as queue:

        @queue.task
        def double(number: int) -> int:
            return 2 * number

        async def work() -> list[int]:
            async with queue.worker(concurrency=4):
                handles = await queue.aenqueue_many([double.call(number) for number in range(20)])
                return [await handle.aresult(timeout=30) for handle in handles]

        assert asyncio.run(work()) == [2 * number for number in range(20)]


# Session pooling, where each connection has a server process of its own for as long as it lasts


@pytest.fixture(scope="module")
def session_proxy(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    with PgBouncer(tmp_path_factory.mktemp("pgbouncer"), server, mode="session", size=30) as running:
        yield running


async def test_one_that_pools_by_session_is_used_as_the_server_itself_is(session_proxy: PgBouncer) -> None:
    url = f"{session_proxy.url}?namespace=t{new_id()[-8:]}"
    async with opened(url) as store, opened(url) as other:
        for each in (store, other):
            subjects = {finding.subject for finding in await each.diagnose()}
            assert "pooler" not in subjects
            assert "notifications" in subjects
        # Heard of, rather than seen at the next look.
        works = asyncio.create_task(store.wait_for_work(["q"], 60))
        await await_until(lambda: bool(store._session and store._session.waiting._listener._channels), 60, "to listen")
        (entry,) = await other.enqueue([new_task()])
        await asyncio.wait_for(works, 30)
        assert [task.id for task in await take(store)] == [entry.id]
        # What it did not take along with the connection is set nevertheless.
        async with connection_of(url) as connection:
            cursor = await connection.execute("SELECT current_setting('statement_timeout')")
            assert await cursor.fetchone() == ("20s",)


@pytest.mark.parametrize("more", ["", "server_round_robin = 1"])
async def test_one_that_pools_by_transaction_is_never_taken_for_one_that_pools_by_session(
    server: PostgresServer, tmp_path: Path, more: str
) -> None:
    with PgBouncer(tmp_path, server, size=2, more=more) as running:
        # Both of its connections are there, so that it has a choice.
        async with (
            connection_of(running.url, plain=True) as first,
            connection_of(running.url, plain=True) as second,
            first.transaction(),
            second.transaction(),
        ):
            await asyncio.gather(first.execute("SELECT 1"), second.execute("SELECT 1"))
        for _ in range(10):
            connector = Connector(settings_of(running.url))
            discard(await connector.connect())
            assert connector.pooled


async def test_the_first_use_gives_up_after_the_timeout_if_the_proxy_has_no_connection_left(
    server: PostgresServer, tmp_path: Path
) -> None:
    with PgBouncer(tmp_path, server, size=1) as running:
        async with connection_of(running.url, plain=True) as other, other.transaction():
            await other.execute("SELECT 1")
            store = storage(f"{running.url}?namespace=t", timeout=0.5)
            with pytest.raises(StorageUnavailable):
                # Far less than the proxy's own two minutes.
                await asyncio.wait_for(store.open(), 30)


def test_the_capabilities_do_not_depend_on_it(url: str) -> None:
    assert Capability.TRANSACTIONS in storage(url).capabilities
