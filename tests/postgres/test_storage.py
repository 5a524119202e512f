"""What is special about this store: what it can hold, what it counts, and how it claims where vacuum is held back."""

from __future__ import annotations

import asyncio
import hashlib
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from omniq import TaskQueue
from omniq.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from omniq.schedule import Schedule
from omniq.storage import Lease, TaskQuery
from omniq.storage.corrupt_records import is_corrupt
from omniq.storage.urls import parse_url
from omniq.task import Failed, Progress, TaskError, TaskState
from omniq.testing import await_until
from omniq_postgres import claiming, dead_tuples, session
from omniq_postgres.storage import PostgresStorage
from tests.postgres.support import counts, done, new_task, opened, settings_of, table_of, take
from tests.servers.postgres import PostgresServer

ID = "01a20d66-651e-7dcf-8542-76f85f963b84"


@pytest.mark.parametrize("task_id", ["", "no id", ID.upper(), ID.replace("-", ""), f"{ID}x"])
async def test_an_id_that_is_no_uuid_is_refused_and_belongs_to_no_task(storage_url: str, task_id: str) -> None:
    async with opened(storage_url) as store:
        with pytest.raises(ValueError, match="UUID"):
            await store.enqueue([new_task(), new_task(id=task_id)])
        assert await store.stats() == []
        assert await store.get([task_id]) == [None]
        assert await store.cancel([task_id]) == await store.delete([task_id]) == await store.retry([task_id]) == [False]
        assert await store.wait_finished([task_id], 5) == {task_id}
        assert await store.finish([Failed(id=task_id, delivery=1, error=TaskError(type="E", message=""))]) == [False]
        await store.set_progress({Lease(task_id, 1): Progress(done=1)})


@pytest.mark.parametrize("field", ["queue", "name", "unique"])
async def test_a_text_with_a_nul_is_refused_whole(storage_url: str, field: str) -> None:
    async with opened(storage_url) as store:
        with pytest.raises(ValueError, match="NUL"):
            await store.enqueue([new_task(), new_task(**{field: "a\0b"})])
        assert await store.stats() == []


async def test_an_error_may_hold_any_text(storage_url: str) -> None:
    error = TaskError(type="E", message="nul \0, half a pair \ud800, 🦜", traceback="\0")
    async with opened(storage_url) as store:
        (entry,) = await store.enqueue([new_task()])
        (claimed,) = await take(store)
        await store.finish([Failed(id=claimed.id, delivery=1, error=error)])
        (found,) = await store.get([entry.id])
        assert found is not None
        assert found.error == error


@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII", "LATIN1"])
async def test_texts_are_kept_whatever_the_encoding_of_the_database_and_the_environment(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    database = f"in_{encoding.lower()}"
    server.execute(f"CREATE DATABASE {database} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    url = f"{server.url.removesuffix('/postgres')}/{database}?namespace=t"
    for variable in ("UTF8", "LATIN1"):
        monkeypatch.setenv("PGCLIENTENCODING", variable)
        async with opened(url) as store:
            task = new_task(name="é", unique=f"ü {variable}", tags=("ß",))
            (answer,) = await asyncio.to_thread(store.enqueue_blocking, [task]) or []
            assert answer.created
            (found,) = await store.get([task.id])
            assert found is not None
            assert (found.name, found.unique, found.tags) == (task.name, task.unique, task.tags)
            if encoding == "LATIN1":
                with pytest.raises(ValueError, match="cannot hold this"):
                    await store.enqueue([new_task(name="🦜")])
            else:
                assert (await store.enqueue([new_task(name="🦜")]))[0].created


async def test_delays_and_times_beyond_every_calendar_are_kept_within(storage_url: str) -> None:
    tasks = [
        new_task(run_at=timedelta.max),
        new_task(run_at=datetime.max.replace(tzinfo=UTC)),
        new_task(expires=timedelta.max, result_ttl=1e300),
        new_task(run_at=timedelta.min),
        new_task(run_at=datetime.min.replace(tzinfo=UTC)),
    ]
    async with opened(storage_url) as store:
        await store.enqueue(tasks)
        found = [task for task in await store.get([task.id for task in tasks]) if task is not None]
        assert [task.state.value for task in found] == ["scheduled", "scheduled", "ready", "ready", "ready"]
        assert found[0].run_at.year > 8000
        assert found[1].run_at == datetime.max.replace(tzinfo=UTC)
        for claimed in await take(store, 9, lease=1e300):
            assert claimed.lease_until is not None
            assert await store.finish([done(claimed)]) == [True]
        assert await store.prune(10) == 0


async def test_keys_longer_than_an_index_can_hold_are_told_apart(storage_url: str) -> None:
    long = "k" * 10_000
    async with opened(storage_url) as store:
        first, second, third = new_task(unique=long), new_task(unique=long + "x"), new_task(unique=long)
        answers = await store.enqueue([first, second, third])
        assert [answer.created for answer in answers] == [True, True, False]
        assert answers[2].id == first.id
        await store.cancel([first.id])
        assert (await store.enqueue([third]))[0].created
        assert await store.retry([first.id]) == [False]
        await store.cancel([third.id])
        assert await store.retry([first.id]) == [True]
        (found,) = await store.get([first.id])
        assert found is not None
        assert found.unique == long


async def test_no_key_is_taken_for_the_hash_of_another(server: PostgresServer, storage_url: str) -> None:
    long = "k" * 300
    async with opened(storage_url) as store:
        await store.enqueue([new_task(unique=long)])
        ((kept,),) = server.execute(f"SELECT key FROM {table_of(storage_url, 'live')}")
        others = [hashlib.sha256(long.encode()).hexdigest(), kept]
        assert [answer.created for answer in await store.enqueue([new_task(unique=key) for key in others])] == [
            True
        ] * 2


async def test_a_large_batch_with_keys_is_one_step(storage_url: str) -> None:
    async with opened(storage_url) as store:
        tasks = [new_task(unique=f"key {number % 900}") for number in range(1000)]
        answers = await store.enqueue(tasks)
        assert sum(answer.created for answer in answers) == 900
        assert [answer.id for answer in answers[900:]] == [task.id for task in tasks[:100]]
        assert [task.id for task in await take(store, 1000)] == [task.id for task in tasks[:900]]


async def test_a_batch_with_ids_that_are_there_stores_the_others(storage_url: str) -> None:
    async with opened(storage_url) as store:
        tasks = [new_task() for _ in range(100)]
        await store.enqueue(tasks[:50])
        answers = await store.enqueue(tasks)
        assert [answer.created for answer in answers] == [False] * 50 + [True] * 50
        assert [answer.id for answer in answers] == [task.id for task in tasks]
        assert await counts(store) == {TaskState.READY: 100}


# Counters


async def test_summing_up_the_counters_takes_no_connection_from_what_goes_on(
    server: PostgresServer, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "FOLD_EVERY", 4)  # the last of what is asked for at once
    monkeypatch.setattr(session, "FOLD_LOOKS", 100_000)
    name = f"folds-{storage_url[-8:]}"
    async with opened(storage_url, application_name=name) as store:
        await store.enqueue([new_task()])
        # What a worker asks for after each task, all at once.
        await asyncio.gather(store.stats(), store.workers(), store.get_schedules())
        await await_until(
            lambda: server.execute(f"SELECT count(*) FROM {table_of(storage_url, 'delta')}") == [(0,)], timeout=30
        )
        found = server.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", name)
    assert found == [(3,)]


async def test_counts_are_right_whoever_sums_them_up_meanwhile(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url) as store, opened(storage_url) as other:
        for store_ in (store, other):
            assert store_._session is not None
            store_._session._jobs = -(10**9)  # nobody sums up by himself
        await asyncio.gather(*(store.enqueue([new_task(queue=f"q{n % 3}")]) for n in range(60)))
        (before,) = server.execute(f"SELECT count(*) FROM {table_of(storage_url, 'delta')}")
        assert before == (60,)
        await asyncio.gather(*(mine.prune(1) for mine in (store, other) for _ in range(5)))
        assert server.execute(f"SELECT count(*) FROM {table_of(storage_url, 'delta')}") == [(0,)]
        assert await counts(other) == {TaskState.READY: 60}
        assert await other.purge("q1") == 20
        await store.prune(1)
        assert [stats.queue for stats in await store.stats()] == ["q0", "q2"]
        assert server.execute(f"SELECT queue FROM {table_of(storage_url, 'counter')} ORDER BY 1") == [("q0",), ("q2",)]


@pytest.mark.parametrize("blocking", [False, True])
async def test_whoever_works_sums_up_the_counters_now_and_then(
    server: PostgresServer, storage_url: str, blocking: bool
) -> None:
    async with opened(storage_url) as store:
        for _ in range(310):
            if blocking:
                await asyncio.to_thread(store.enqueue_blocking, [new_task()])
            else:
                await store.enqueue([new_task()])

        def summed() -> bool:
            ((left,),) = server.execute(f"SELECT count(*) FROM {table_of(storage_url, 'delta')}")
            return bool(left < 50)

        await await_until(summed, 60, "the counters to be summed up")
        assert await counts(store) == {TaskState.READY: 310}


# Claims past what is dead


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every claim for a slow one, and few dead rows for many."""
    monkeypatch.setattr(claiming, "SLOW", -1.0)
    monkeypatch.setattr(claiming, "SLOW_EACH", 0.0)
    monkeypatch.setattr(claiming, "ASK_EVERY", 0.0)
    monkeypatch.setattr(claiming, "MANY_DEAD", 50)


@pytest.mark.usefixtures("hurried")
async def test_where_vacuum_is_held_back_claims_go_on_from_where_they_were(
    server: PostgresServer, storage_url: str
) -> None:
    async with opened(storage_url) as store:
        session = store._session
        assert session is not None
        with psycopg.connect(server.url) as holder:
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT count(*) FROM pg_class")
            order: list[str] = []
            expected: list[str] = []

            async def step() -> bool:
                tasks = [new_task(priority=number % 2) for number in range(20)]
                await store.enqueue(tasks)
                expected.extend(task.id for task in sorted(tasks, key=lambda task: -task.priority))
                claimed = await take(store, 20)
                order.extend(task.id for task in claimed)
                await store.finish([done(task) for task in claimed])
                return session.frontier.pinned_until > 0

            await await_until(step, 30, "so many dead rows that it is noticed")
            for _ in range(20):
                await step()
            while claimed := await take(store, 20):
                order += [task.id for task in claimed]
            assert sorted(order) == sorted(expected), "a task was passed over"
            assert len(set(order)) == len(order)
            # What is ready at an old place, or of a priority not seen before, is found at the next look at everything.
            old = [new_task(priority=-50), new_task(priority=50), new_task(queue="new")]
            await store.enqueue(old)
            found: set[str] = set()

            async def all_found() -> bool:
                claimed = await store.claim({"q": 9, "new": 9}, worker="w", lease=60)
                found.update(task.id for task in claimed)
                return found == {task.id for task in old}

            await await_until(all_found, 30, "the tasks off the beaten track")


async def test_a_paused_queue_gives_nothing_also_where_claims_go_on(
    server: PostgresServer, storage_url: str, hurried: None
) -> None:
    async with opened(storage_url) as store:
        assert store._session is not None
        await store.enqueue([new_task() for _ in range(20)])
        await take(store, 5)
        store._session.frontier.pinned_until = float("inf")
        store._session.frontier.claims.looked_at = float("inf")
        await take(store, 5)
        await store.pause("q")
        assert await take(store, 5) == []


async def test_where_vacuum_is_held_back_prunes_and_recoveries_go_on_from_where_they_were(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_tuples, "SLOW", -1.0)
    async with opened(storage_url) as store:
        session = store._session
        assert session is not None
        for age in (session.pruned, session.recovered):
            age.look_back.share = 1e12  # it never looks back
        for _ in range(3):
            await store.enqueue([new_task(result_ttl=0, max_retries=9) for _ in range(6)])
            lost = await take(store, 6, lease=0)
            assert [len(await store.recover(4)) for _ in range(3)] == [4, 2, 0]
            claimed = await take(store, 6)
            assert sorted(task.id for task in claimed) == sorted(task.id for task in lost)
            await store.finish([done(task) for task in claimed])
            assert [await store.prune(4) for _ in range(3)] == [4, 2, 0]
        assert await store.stats() == []


# The row of another version, or of somebody's hand


async def test_a_record_that_cannot_be_read_is_shown_and_hides_no_other(
    server: PostgresServer, storage_url: str
) -> None:
    async with opened(storage_url) as store:
        broken, sound = await store.enqueue([new_task(), new_task()])
        server.execute(f"UPDATE {table_of(storage_url, 'live')} SET error = 'no JSON' WHERE id = %s", broken.id)
        page = await store.list_tasks(TaskQuery())
        assert {task.id for task in page.tasks} == {broken.id, sound.id}
        claimed = await take(store, 2)
        assert [task.id for task in claimed] == [sound.id]
        (shown,) = await store.get([broken.id])
        assert shown is not None
        assert shown.state is TaskState.FAILED
        assert is_corrupt(shown)
        assert await counts(store) == {TaskState.RUNNING: 1, TaskState.FAILED: 1}
        assert await store.finish([done(task) for task in claimed]) == [True]


@pytest.mark.parametrize("body", ["", "{}", "[" * 100_000, '{"task": {"id": 5}}'], ids=["empty", "{}", "nested", "odd"])
async def test_a_schedule_that_cannot_be_read_is_told_of_and_keeps_no_other_from_firing(
    server: PostgresServer, storage_url: str, caplog: pytest.LogCaptureFixture, body: str
) -> None:
    async with opened(storage_url) as store:
        for name in ("broken", "sound"):
            await store.put_schedule(Schedule(id=name, task=new_task(), trigger="t", next_run=await store.now()))
        server.execute(f"UPDATE {table_of(storage_url, 'schedule')} SET body = %s WHERE id = 'broken'", body)
        assert [schedule.id for schedule in await store.due_schedules(9)] == ["sound"]
        assert [schedule.id for schedule in await store.get_schedules()] == ["sound"]
        assert "'broken' cannot be read" in caplog.text
        assert await store.get_schedules(["broken"]) == []
        assert "omniq schedules delete broken" in "".join(found.message for found in await store.check())
        assert await store.delete_schedule("broken") is True


async def test_tables_that_vanish_are_missed_by_name(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url) as store:
        server.execute(f"DROP TABLE {table_of(storage_url, 'paused')}")
        with pytest.raises(SchemaMismatch, match="omniq migrate"):
            await take(store)


async def test_a_read_only_server_is_tried_until_it_can_be_written(server: PostgresServer, storage_url: str) -> None:
    options = "-c default_transaction_read_only=on"
    async with opened(storage_url):
        pass
    async with opened(storage_url, options=options.replace(" ", "%20"), timeout=1, migrate="off") as store:
        with pytest.raises(StorageUnavailable, match="read-only"):
            await store.enqueue([new_task()])


async def test_another_isolation_that_the_database_prefers_plays_no_part(
    server: PostgresServer, storage_url: str
) -> None:
    server.execute("ALTER ROLE postgres SET default_transaction_isolation = serializable")
    try:
        async with opened(storage_url) as store, opened(storage_url) as other:
            await store.enqueue([new_task() for _ in range(300)])

            async def work(mine: PostgresStorage) -> int:
                number = 0
                while claimed := await take(mine, 5):
                    number += sum(await mine.finish([done(task) for task in claimed]))
                return number

            assert sum(await asyncio.gather(*(work(mine) for mine in (store, other) * 3))) == 300
            connection = await other._opened().database.pool.acquire(float("inf"))
            row = await (await connection.execute("SHOW transaction_isolation")).fetchone()
            assert row == ("read committed",)
    finally:
        server.execute("ALTER ROLE postgres RESET default_transaction_isolation")


# The URL


@pytest.mark.parametrize(
    "query",
    ["schema=a.b", "schema=pg_x", "schema=", "migrate=maybe", "pooler=session", "connections=0", "timeout=soon"],
)
def test_an_option_that_cannot_be_used_is_named(query: str) -> None:
    with pytest.raises(ConfigurationError, match=query.partition("=")[0]):
        PostgresStorage(parse_url(f"postgresql://localhost/db?{query}"))


def test_a_url_that_cannot_be_read_is_refused_without_showing_its_password() -> None:
    with pytest.raises(ConfigurationError) as raised:
        PostgresStorage(parse_url("postgresql://me:sec%zzret@localhost/db"))
    assert "zz" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "PostgreSQL", "postgresql+psycopg"])
async def test_every_scheme_leads_to_the_same(storage_url: str, scheme: str) -> None:
    async with TaskQueue(storage_url.replace("postgresql://", f"{scheme}://")) as queue:
        assert await queue.astats() == []


async def test_the_database_that_lacks_the_tables_is_named(server: PostgresServer) -> None:
    server.execute("CREATE DATABASE lacking")
    # Without a database in it, the URL leads to the one that the user or the environment names.
    url = f"{server.url.removesuffix('/postgres')}?dbname=lacking"
    with pytest.raises(SchemaMismatch, match="the database 'lacking' has no tables"):
        async with opened(url, migrate="off"):
            pass
    # Under another name of the server nothing can be told before.
    elsewhere = f"postgresql://postgres@localhost:{server.port}/lacking"
    async with opened(server.url + "?namespace=full") as store:
        with (
            psycopg.connect(elsewhere) as connection,
            pytest.raises(SchemaMismatch, match="the database 'lacking' has not the tables"),
        ):
            store.join(connection).enqueue([new_task()])


async def test_a_password_in_the_users_place_is_not_shown(server: PostgresServer) -> None:
    url = server.url.replace("postgres@", "hush@") + "?timeout=5"
    with pytest.raises(StorageUnavailable, match=r'role "\*\*\*" does not exist') as raised:
        async with opened(url):
            pass
    assert "hush" not in "".join(traceback.format_exception(raised.value))


def test_an_unknown_option_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(ValueError, match=r"poolsize.*connections.*sslmode"):
        PostgresStorage(parse_url("postgresql://localhost/db?poolsize=3"))


def test_what_libpq_knows_is_passed_on_and_no_secret_is_shown() -> None:
    url = "postgresql://me:secret@localhost/db?sslmode=require&target_session_attrs=read-write&timeout=7"
    settings = settings_of(url)
    assert settings.parameters["sslmode"] == "require"
    assert settings.parameters["target_session_attrs"] == "read-write"
    assert settings.timeout == 7
    assert "secret" not in repr(settings)
    assert "secret" not in repr(PostgresStorage(parse_url(url)))


@pytest.mark.parametrize("make", [lambda store: store.enqueue([new_task()]), lambda store: store.stats()])
async def test_what_is_not_open_says_so(storage_url: str, make: Callable[[PostgresStorage], object]) -> None:
    store = PostgresStorage(parse_url(storage_url))
    with pytest.raises(StorageUnavailable, match=r"open\(\)"):
        await make(store)  # type: ignore[misc]  # both give coroutines
    assert store.enqueue_blocking([new_task()]) is None
