"""What a store on PostgreSQL survives: lost connections, a crashed server, a fork, a silent network."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from psycopg.pq import Format

from omniq import TaskQueue
from omniq.errors import SchemaMismatch, StorageError, StorageUnavailable
from omniq.storage import Enqueued
from omniq.storage.ids import new_id
from omniq.task import TaskState
from omniq.testing import await_until, wait_until
from omniq_postgres import libpq
from omniq_postgres.claiming import Claim, claim
from omniq_postgres.connecting import Connector, discard
from omniq_postgres.dead_tuples import Frontier
from omniq_postgres.operations import Context, News, Query
from omniq_postgres.pool import Pool
from omniq_postgres.statements import Statements
from omniq_postgres.storage import PostgresStorage
from tests.postgres.support import (
    connection_of,
    counts,
    done,
    new_task,
    opened,
    settings_of,
    storage,
    table_of,
    take,
    terminate_everyone,
)
from tests.servers.base import free_port
from tests.servers.postgres import QUICK, PostgresServer


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[PostgresServer]:
    """Yield a server of this test alone, with everything durable."""
    with PostgresServer(tmp_path) as running:
        yield running


def namespaced(server: PostgresServer) -> str:
    return f"{server.url}?namespace=t{new_id()[-8:]}"


async def test_connections_that_are_terminated_are_made_anew(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url) as store:
        waits = asyncio.create_task(store.wait_for_work(["q"], 60))
        await asyncio.sleep(0.1)  # by then it waits
        for _ in range(3):
            assert terminate_everyone(server.url) > 0
            (answer,) = await store.enqueue([new_task()])
            assert answer.created
            assert await asyncio.to_thread(store.enqueue_blocking, [new_task()])
        await asyncio.wait_for(waits, 30)
        assert await counts(store) == {TaskState.READY: 6}


async def test_whoever_waits_while_connections_are_terminated_hears_nevertheless(
    server: PostgresServer, storage_url: str
) -> None:
    async with opened(storage_url) as store, opened(storage_url) as other:
        (entry,) = await store.enqueue([new_task()])
        (claimed,) = await take(store)
        ends = asyncio.create_task(store.wait_finished([entry.id], 60))
        works = asyncio.create_task(store.wait_for_work(["other"], 60))
        await asyncio.sleep(0.2)  # by then it waits
        terminate_everyone(server.url)
        await other.finish([done(claimed)])
        await other.enqueue([new_task(queue="other")])
        async with asyncio.timeout(30):
            assert await ends == {entry.id}
            await works


async def test_lost_and_restored_connections_are_logged(
    own_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    def told(level: str, text: str) -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if (record.name, record.levelname) == ("omniq.postgres", level) and text in record.getMessage()
        ]

    caplog.set_level("INFO", "omniq.postgres")
    async with opened(namespaced(own_server)) as store:
        waits = asyncio.create_task(store.wait_for_work(["q"], 120))
        await await_until(lambda: bool(store._session and store._session.waiting._listener._channels), 60, "to listen")
        await asyncio.to_thread(own_server.kill)
        call = asyncio.create_task(store.enqueue([new_task()]))
        await await_until(lambda: told("WARNING", "the connection is lost or cannot be made"), 60, "word of the loss")
        await asyncio.to_thread(own_server.start)
        assert (await call)[0].created
        assert len(told("INFO", "connected again after")) == 1
        await asyncio.wait_for(waits, 60)
        await await_until(lambda: told("INFO", "listening again after"), 60, "word of the return")
        assert told("WARNING", "cannot listen")
        # However often it was tried meanwhile.
        assert len(told("WARNING", "")) <= 4
    assert "secret" not in caplog.text


async def test_terminating_every_connection_under_load_loses_and_doubles_nothing(
    server: PostgresServer, storage_url: str
) -> None:
    async with load(storage_url) as flow:
        for _ in range(6):
            before = len(flow.finished)
            terminate_everyone(server.url)
            await await_until(lambda before=before: len(flow.finished) > before + 20, 30, "work to go on")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
    await flow.settle()


@pytest.mark.parametrize("how", ["stopped at once", "killed"])
async def test_a_server_that_crashes_under_load_loses_nothing_that_it_acknowledged(
    own_server: PostgresServer, how: str
) -> None:
    async with load(namespaced(own_server)) as flow:
        for _ in range(2):
            before = len(flow.finished)
            await await_until(lambda before=before: len(flow.finished) > before + 50, 30, "work to go on")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            await asyncio.to_thread(own_server.kill if how == "killed" else lambda: own_server.stop(immediate=True))
            await asyncio.to_thread(own_server.start)
    await flow.settle()


class Load:
    """Producers, workers and upkeep on one store, and what each of them was told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.acknowledged: set[str] = set()
        self.finished: Counter[str] = Counter()
        self.stopping = False

    async def produce(self, store: PostgresStorage) -> None:
        while not self.stopping:
            batch = [new_task(max_retries=1000) for _ in range(10)]
            try:
                answers = await store.enqueue(batch)
            except StorageUnavailable:
                continue  # nobody was told that they are there
            # Not created are those that were stored by a try whose answer was lost.
            assert [answer.id for answer in answers] == [task.id for task in batch]
            self.acknowledged.update(task.id for task in batch)

    async def work(self, store: PostgresStorage) -> None:
        while not self.stopping:
            try:
                tasks = await take(store, 10, lease=1)
                if not tasks:
                    await store.recover(100)
                    await store.wait_for_work(["q"], 0.5)
                answers = await store.finish([done(task) for task in tasks])
            except StorageUnavailable:
                continue
            self.finished.update(task.id for task, accepted in zip(tasks, answers, strict=True) if accepted)

    async def settle(self) -> None:
        """Work off what is left, and see that all that was acknowledged ended, and once."""
        async with opened(self.url) as store:

            async def drained() -> bool:
                await store.recover(1000)
                tasks = await take(store, 500)
                answers = await store.finish([done(task) for task in tasks])
                self.finished.update(task.id for task, accepted in zip(tasks, answers, strict=True) if accepted)
                return await counts(store) == {TaskState.SUCCEEDED: await self.stored(store)}

            await await_until(drained, 60, "everything to end")
            found = await store.get(sorted(self.acknowledged))
            assert None not in found, "what was acknowledged is lost"
            assert {task.state for task in found if task} == {TaskState.SUCCEEDED}
        assert max(self.finished.values()) == 1, "a task's completion was accepted twice"

    async def stored(self, store: PostgresStorage) -> int:
        return sum((await counts(store)).values())


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    """Have tasks flow for a while."""
    flow = Load(url)
    async with opened(url) as first, opened(url) as second, opened(url) as third:
        tasks = [
            asyncio.create_task(flow.produce(first)),
            asyncio.create_task(flow.work(second)),
            asyncio.create_task(flow.work(third)),
        ]
        try:
            await await_until(
                lambda: any(task.done() for task in tasks) or len(flow.finished) > 20, 30, "work to begin"
            )
            yield flow
        finally:
            flow.stopping = True
            await asyncio.gather(*tasks)


# The server's errors, by the class of their SQLSTATE


def refuse(url: str, server: PostgresServer, code: str, *, times: int = 10**6, table: str = "task") -> None:
    """Have the server refuse each change of a table with an error, a number of times."""
    name = settings_of(url).names.relation("refusal")
    server.execute(
        f"CREATE SEQUENCE IF NOT EXISTS {name}; SELECT setval('{name}', 1, false);"
        f"""CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('{name}') <= {times} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END IF;
            RETURN NULL; END $$;"""
        f"CREATE OR REPLACE TRIGGER refusal AFTER INSERT OR UPDATE OR DELETE ON {table_of(url, table)} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
    )


PASSING = ["08000", "08003", "08006", "08P01", "25006", "25P03", "26000", "40001", "40P01", "40003", "42P05"]
PASSING += ["53000", "53200", "53300", "57000", "57P01", "57P02", "57P03", "57P05", "72000", "23505"]
UNAVAILABLE = ["28000", "28P01", "3D000", "42501", "53100", "55000", "55006", "55P03", "57014"]
UNAVAILABLE += ["58000", "58030", "58P01", "F0000", "XX000", "XX001", "XX002"]
UNFIT = ["22000", "22003", "22P05", "54000", "54001"]
NO_SCHEMA = ["3F000", "42P01", "42703", "42883"]
BUGS = ["0A000", "21000", "23502", "23514", "25P02", "42601", "P0001", "ZZ999"]


async def test_what_passes_by_itself_is_tried_again_until_it_has(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url) as store:
        for code in PASSING:
            refuse(storage_url, server, code, times=2)
            assert (await store.enqueue([new_task()]))[0].created, code
            refuse(storage_url, server, code, times=2)
            assert await asyncio.to_thread(store.enqueue_blocking, [new_task()]), code
        assert await counts(store) == {TaskState.READY: 2 * len(PASSING)}
    impatient = storage(storage_url, timeout=0.1)

    async def is_open() -> bool:
        # On a busy machine a tenth of a second can be too short for that alone.
        with suppress(StorageUnavailable):
            await impatient.open()
            return True
        return False

    await await_until(is_open, what="the storage to open")
    for code in PASSING:
        refuse(storage_url, server, code)
        with pytest.raises(StorageUnavailable):
            await impatient.enqueue([new_task()])
    await impatient.close()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [(UNAVAILABLE, StorageUnavailable), (UNFIT, ValueError), (NO_SCHEMA, SchemaMismatch), (BUGS, StorageError)],
    ids=["unavailable", "unfit", "no schema", "bugs"],
)
async def test_what_does_not_pass_by_trying_is_raised_at_once_as_what_it_is(
    server: PostgresServer, storage_url: str, codes: list[str], expected: type[Exception]
) -> None:
    async with opened(storage_url, timeout=3600) as store:
        for code in codes:
            refuse(storage_url, server, code)
            with pytest.raises(expected, match="refused") as raised:
                await store.enqueue([new_task()])
            assert type(raised.value) is expected, code
            with pytest.raises(expected):
                await asyncio.to_thread(store.enqueue_blocking, [new_task()])


@pytest.mark.parametrize("code", ["53100", "53200", "58030", "XX000"])
async def test_work_that_ends_while_the_server_can_store_nothing_is_recorded_later(
    server: PostgresServer, storage_url: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk, no memory, a broken disk, a full quota: the work is done, and not done again."""
    async with TaskQueue(storage_url + "&timeout=2") as queue:
        runs = 0
        go = asyncio.Event()

        @queue.task(max_retries=0)
        async def work(number: int) -> int:
            nonlocal runs
            runs += 1
            await go.wait()
            return number

        async with queue.worker(lease=2, recover_every=0.5):
            handles = await queue.aenqueue_many([work.call(number) for number in range(8)])
            await await_until(lambda: runs == 8, 60, "the tasks to run")
            refuse(storage_url, server, code, table="ended")
            go.set()
            await await_until(lambda: "refused" in caplog.text, 60, "an outcome to be refused")
            server.execute(f"DROP TRIGGER refusal ON {table_of(storage_url, 'ended')}")
            assert [await handle.aresult(timeout=30) for handle in handles] == list(range(8))
        assert runs == 8


async def test_a_server_that_is_not_there_is_said_to_be_unavailable() -> None:
    store = storage(f"postgresql://postgres:secret@127.0.0.1:{free_port()}/postgres?timeout=5")
    with pytest.raises(StorageUnavailable) as raised:
        await store.open()
    assert "secret" not in str(raised.value)
    assert isinstance(raised.value.__cause__, psycopg.OperationalError)
    await store.close()


async def test_a_server_that_is_silent_is_given_up_after_the_timeout(own_server: PostgresServer) -> None:
    async with opened(namespaced(own_server), timeout=1) as store:
        await store.enqueue([new_task()])
        assert await asyncio.to_thread(store.enqueue_blocking, [new_task()])
        own_server.suspend()
        try:
            with pytest.raises(StorageUnavailable, match=r"gave no answer within 1 s|no connection was made in time"):
                await store.enqueue([new_task()])
            with pytest.raises(StorageUnavailable):
                await store.enqueue([new_task()])
            with pytest.raises(StorageUnavailable, match=r"gave no answer within 1 s|no connection was made in time"):
                await asyncio.to_thread(store.enqueue_blocking, [new_task()])
        finally:
            own_server.resume()
        (answer,) = await store.enqueue([new_task()])
        assert answer.created
        await asyncio.to_thread(own_server.kill)
        async with asyncio.timeout(30):
            for call in (store.stats(), store.workers(), store.wait_finished([answer.id], 1), store.purge("q")):
                with pytest.raises(StorageUnavailable, match="refused"):
                    await call


async def test_calls_that_were_given_up_while_the_server_was_silent_do_not_keep_connections(
    own_server: PostgresServer,
) -> None:
    async with opened(namespaced(own_server), timeout=300, connections=2) as store:
        await store.heartbeat("w", [], 60)
        own_server.suspend()
        try:
            for _ in range(4):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.heartbeat("w", [], 60), 0.2)
        finally:
            own_server.resume()
        async with asyncio.timeout(30):
            assert await store.heartbeat("w", [], 60) == []


async def test_what_was_claimed_for_a_client_that_takes_no_answer_is_soon_anybodys(storage_url: str) -> None:
    still = Connector(settings_of(f"{storage_url}&timeout=1")).connect_blocking()
    try:
        async with opened(storage_url) as store:
            # More than the buffers between the two can hold: the server cannot come to the end of the statement.
            ids = {entry.id for entry in await store.enqueue([new_task(body=bytes(10**6)) for _ in range(20)])}
            asked = Claim(demand={"q": 20}, worker="still", lease=60, limit=20)
            query = next(claim(asked, Frontier(), Context(Statements(settings_of(storage_url).names), News())))
            still.pgconn.send_query_params(
                query.text,
                query.parameters,
                param_types=[parameter.oid for parameter in query.parameters],
                param_formats=[Format.BINARY] * len(query.parameters),
            )
            claimed: set[str] = set()

            async def taken() -> bool:
                claimed.update(task.id for task in await take(store, 10))
                return claimed == ids

            await await_until(lambda: _has_begun(storage_url, still.info.backend_pid), 30, "the other's claim")
            assert not await taken()
            await await_until(taken, 60, "the tasks to be given to another one")
    finally:
        discard(still)


async def _has_begun(url: str, process: int) -> bool:
    async with connection_of(url) as connection:
        cursor = await connection.execute("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", [process])
        return await cursor.fetchone() == ("ClientWrite",)


def test_a_server_that_was_killed_can_be_started_again_at_once(tmp_path: Path) -> None:
    with PostgresServer(tmp_path, QUICK) as server:
        server.execute("CREATE TABLE big AS SELECT repeat('x', 500) AS text FROM generate_series(1, 50000)")
        for _ in range(2):
            connections = [psycopg.connect(server.url) for _ in range(40)]
            for connection in connections:
                # The server starts processes for it, beside the connection's own.
                connection.pgconn.send_query(b"SELECT count(*), sum(length(text)) FROM big")
            server.kill()
            server.start()
            for connection in connections:
                connection.close()


async def test_a_cancelled_call_leaves_the_storage_whole(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url, connections=1) as store:
        async with await psycopg.AsyncConnection.connect(server.url) as other:
            await store.join(other).aenqueue([new_task(unique="key")])
            calls = [asyncio.create_task(store.enqueue([new_task(unique="key")])) for _ in range(3)]
            await asyncio.sleep(0.1)  # by then it waits
            for call in calls:
                call.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True)
            )
        assert (await store.enqueue([new_task()]))[0].created


async def test_more_calls_than_connections_wait_for_each_other(storage_url: str) -> None:
    async with opened(storage_url, connections=2) as store:
        answers = await asyncio.gather(*(store.enqueue([new_task()]) for _ in range(50)))
        assert all(answer.created for (answer,) in answers)


async def test_a_call_that_gets_no_connection_in_time_is_told_why(storage_url: str) -> None:
    pool = Pool(Connector(settings_of(storage_url)), 1)
    now = asyncio.get_running_loop().time
    connection = await pool.acquire(now() + 60)
    with pytest.raises(StorageUnavailable, match="connections="):
        await pool.acquire(now() + 0.05)
    waits = asyncio.create_task(pool.acquire(now() + 60))
    await asyncio.sleep(0)  # a turn of the loop, after which it waits
    pool.release(connection)
    assert await waits is connection
    waits = asyncio.create_task(pool.acquire(now() + 60))
    await asyncio.sleep(0)  # the same
    pool.close()
    for call in (waits, pool.acquire(now() + 60)):
        with pytest.raises(StorageUnavailable, match="was closed"):
            await asyncio.wait_for(call, 30)


async def test_a_connection_that_comes_as_the_time_of_a_call_is_over_goes_to_the_next(storage_url: str) -> None:
    pool = Pool(Connector(settings_of(storage_url)), 1)
    loop = asyncio.get_running_loop()
    connection = await pool.acquire(loop.time() + 60)
    now = loop.time()
    first, second = (asyncio.create_task(pool.acquire(until)) for until in (now, now + 60))
    await asyncio.sleep(0)  # both wait, and the first one's time is over in the next turn of the loop
    pool.release(connection)
    with pytest.raises(StorageUnavailable, match="connections="):
        await first
    assert await asyncio.wait_for(second, 30) is connection
    pool.close()


async def test_a_statement_runs_where_the_server_knows_it_already(storage_url: str) -> None:
    async with opened(storage_url) as store:
        pool = store._opened().database.pool
        one, other = [await pool.acquire(float("inf")) for _ in range(2)]
        look = store._statements["reading.workers"]
        for latest, earlier in [(one, other), (other, one)] * 2:
            pool.release(earlier)
            pool.release(latest)
            await store.workers()
            for _ in range(2):
                await pool.acquire(float("inf"))
        assert libpq.has_run(one, Query(look))
        assert not libpq.has_run(other, Query(look))


def test_a_fork_leaves_the_parents_connections_alone(storage_url: str) -> None:
    async def run() -> None:
        async with opened(storage_url) as store:
            await store.enqueue([new_task()])
            assert await asyncio.to_thread(store.enqueue_blocking, [new_task()])
            reading, writing = os.pipe()
            if (child := os.fork()) == 0:
                # Nothing of the parent's may be touched, also by what the child's end brings with it.
                answer = b"0"
                try:
                    answer = b"1" if store.enqueue_blocking([new_task()]) is None else b"2"
                    fresh = store.sibling()
                    thread = threading.Thread(target=lambda: asyncio.run(enqueue_in(fresh)))
                    thread.start()
                    thread.join(30)
                    del store
                finally:
                    os.write(writing, answer)
                    os._exit(0)
            os.close(writing)
            with os.fdopen(reading, "rb") as pipe:
                assert await asyncio.to_thread(pipe.read) == b"1"
            await asyncio.to_thread(os.waitpid, child, 0)
            assert (await store.enqueue([new_task()]))[0].created
            assert await asyncio.to_thread(store.enqueue_blocking, [new_task()])
            assert await counts(store) == {TaskState.READY: 5}

    asyncio.run(run())


async def enqueue_in(store: PostgresStorage) -> None:
    await store.open()
    await store.enqueue([new_task()])
    await store.close()


def test_many_threads_enqueue_the_blocking_way(storage_url: str) -> None:
    async def run() -> None:
        async with opened(storage_url) as store:
            made: list[Enqueued] = []

            def produce() -> None:
                for _ in range(20):
                    made.extend(store.enqueue_blocking([new_task()]) or [])

            await asyncio.gather(*(asyncio.to_thread(produce) for _ in range(12)))
            assert len({entry.id for entry in made if entry.created}) == 240
            assert await counts(store) == {TaskState.READY: 240}
        assert store.enqueue_blocking([new_task()]) is None

    asyncio.run(run())


def test_a_loop_that_ended_without_closing_leaves_nothing_behind(server: PostgresServer, storage_url: str) -> None:
    name = f"left-{new_id()[-8:]}"
    store = storage(storage_url, application_name=name)

    async def leave() -> None:
        await store.open()
        await store.enqueue([new_task()])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.wait_for_work(["nothing"], 60), 0.2)

    asyncio.run(leave())
    asyncio.run(store.close())

    def nothing_is_left() -> bool:
        return server.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", name) == [(0,)]

    wait_until(nothing_is_left, timeout=30, what="the end of the connections that were left open")
