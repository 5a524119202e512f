"""Who waits is told, is not asked for more than a look a second, and looks for himself where messages are lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest
from attrs import evolve

from omniq.storage.ids import new_id
from omniq.task import Cancelled
from omniq.testing import await_until
from omniq_postgres.connecting import AsyncConnection
from omniq_postgres.notifier import EVERYTHING, SPARSE, TAIL, channels, messages
from omniq_postgres.operations import News
from tests.postgres.support import done, never_look, new_task, opened, settings_of, take
from tests.servers.postgres import PostgresServer

IDLE = 6.0


async def test_an_idle_worker_asks_at_most_once_a_second(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By the server's own log of statements, over some seconds in which nothing happens."""
    settings = {"log_statement": "all", "log_min_duration_statement": "-1", "fsync": "off"}
    with PostgresServer(tmp_path_factory.mktemp("logged"), settings) as logged:
        async with opened(f"{logged.url}?namespace=idle") as store:
            await store.enqueue([new_task(run_at=timedelta(days=1)) for _ in range(1000)])
            await store.wait_for_work(["q", "other"], 1)
            before = asked(logged)
            await store.wait_for_work(["q", "other"], IDLE)
            assert 1 <= asked(logged) - before <= IDLE + 1


def asked(server: PostgresServer) -> int:
    lines = server.log.read_text(errors="replace").splitlines()
    return sum("LOG:  execute" in line or "LOG:  statement" in line for line in lines)


async def test_a_worker_that_waits_is_woken_before_it_looks_for_itself(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(storage_url) as store, opened(storage_url) as other:
        for _ in range(20):
            waits = asyncio.create_task(store.wait_for_work(["q"], 600))
            await asyncio.sleep(0.05)  # by then it waits
            await other.enqueue([new_task()])
            async with asyncio.timeout(60):
                await waits
            await other.finish([done(task) for task in await take(store, 9)])
            # It listens by now, and would not look for itself in time.
            never_look(monkeypatch)


async def test_who_waits_beside_what_is_done_needs_no_message(
    storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As producer and worker of one program do: a message is sent some milliseconds after the one before."""
    monkeypatch.setattr("omniq_postgres.notifier.Notifier.add", lambda *_: None)
    monkeypatch.setattr("omniq_postgres.notifier.Notifier.may_tell", lambda *_: False)
    never_look(monkeypatch)
    async with opened(storage_url) as store:
        waits = asyncio.create_task(store.wait_for_work(["q"], 600))
        await asyncio.sleep(0.2)  # by then it waits
        await store.enqueue([new_task()])
        async with asyncio.timeout(60):
            await waits
        (task,) = await take(store)
        ends = asyncio.create_task(store.wait_finished([task.id], 600))
        await asyncio.sleep(0.2)
        await store.finish([done(task)])
        async with asyncio.timeout(60):
            assert await ends == {task.id}


async def test_who_is_not_told_looks_for_himself(storage_url: str) -> None:
    """Its listening connection is there but deaf."""
    async with opened(storage_url) as store, opened(storage_url) as other:
        assert store._session is not None
        listener = store._session.waiting._listener
        await store.wait_for_work(["q"], 0.1)
        connection = listener._connection
        assert connection is not None
        asyncio.get_running_loop().remove_reader(connection.pgconn.socket)
        waits = asyncio.create_task(store.wait_for_work(["q"], 60))
        await asyncio.sleep(0.1)  # by then it waits
        await other.enqueue([new_task()])
        async with asyncio.timeout(30):
            await waits


async def test_a_listening_connection_that_is_lost_is_made_anew(server: PostgresServer, storage_url: str) -> None:
    async with opened(storage_url) as store:
        await store.wait_for_work(["q"], 0.1)
        assert store._session is not None
        listener = store._session.waiting._listener
        for _ in range(2):
            before = listener._connection
            assert before is not None
            server.execute("SELECT pg_terminate_backend(%s)", before.info.backend_pid)

            def is_new(before: AsyncConnection = before) -> bool:
                return listener._connection not in (None, before)

            await await_until(is_new, 60, "a new connection that listens")


@asynccontextmanager
async def overhearing(server: PostgresServer, url: str) -> AsyncIterator[list[tuple[str, str]]]:
    """Listen to what a store tells."""
    heard: list[tuple[str, str]] = []
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as connection:
        for channel in channels(settings_of(url).names):
            await connection.execute(f'LISTEN "{channel}"'.encode())

        async def hear() -> None:
            async for notify in connection.notifies():
                heard.append((notify.channel.rpartition("_")[2], notify.payload))  # noqa: PERF401  # as they come

        task = asyncio.create_task(hear())
        try:
            yield heard
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_of_a_lone_task_it_is_told_with_what_is_stored(
    server: PostgresServer, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one round trip: also if the process comes to nothing more, such as telling what it did."""
    monkeypatch.setattr("omniq_postgres.notifier.Notifier.add", lambda *_: None)
    monkeypatch.setattr("omniq_postgres.notifier.SPARSE", 0)
    async with overhearing(server, storage_url) as heard, opened(storage_url) as store:
        await store.enqueue([new_task()])
        await await_until(lambda: heard == [("work", '{"q": 0.0}')], 60, "a message")
        assert await asyncio.to_thread(store.enqueue_blocking, [new_task()])
        await await_until(lambda: heard == [("work", '{"q": 0.0}')] * 2, 60, "a message of what a thread enqueued")
        (task,) = await take(store)
        await store.finish([done(task)])
        await await_until(lambda: heard[2:] == [("ends", task.id[-TAIL:])], 60, "a message of the end")


async def test_without_pipelines_it_is_told_in_a_round_trip_of_its_own(
    server: PostgresServer, storage_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a libpq older than 14."""
    monkeypatch.setattr("psycopg.capabilities.has_pipeline", lambda: False)
    async with overhearing(server, storage_url) as heard, opened(storage_url) as store:
        await store.enqueue([new_task()])
        assert await asyncio.to_thread(store.enqueue_blocking, [new_task()])
        (task,) = await take(store)
        await store.finish([done(task)])
        await store.close()
        await await_until(lambda: {channel for channel, _ in heard} == {"work", "ends"}, 60, "messages of both kinds")


async def test_the_end_of_a_task_that_goes_on_is_not_told(server: PostgresServer, storage_url: str) -> None:
    """Its holder is another one by now: what the first says in vain wakes nobody who waits for its end."""
    async with overhearing(server, storage_url) as heard, opened(storage_url) as store:
        await store.enqueue([new_task()])
        (task,) = await take(store)
        await await_until(lambda: heard, 60, "the message of the enqueueing")
        heard.clear()
        assert await store.finish([done(evolve(task, delivery=7))]) == [False]
        assert await store.finish([done(task)]) == [True]
        await store.close()
        await await_until(lambda: heard, 60, "the message of the end")
        assert heard == [("ends", task.id[-TAIL:])]


async def test_a_flood_of_tasks_is_told_of_in_a_few_messages(server: PostgresServer, storage_url: str) -> None:
    async with overhearing(server, storage_url) as heard, opened(storage_url) as store:
        began = time.monotonic()
        for _ in range(200):
            await store.enqueue([new_task()])
        took = time.monotonic() - began
        await store.close()
        await await_until(lambda: heard, 30, "a message")
        assert len(heard) <= took / SPARSE + 2
        assert {channel for channel, _ in heard} == {"work"}


async def test_an_end_is_told_with_what_tells_the_task_apart(server: PostgresServer, storage_url: str) -> None:
    async with overhearing(server, storage_url) as heard, opened(storage_url) as store:
        await store.enqueue([new_task() for _ in range(3)])
        claimed = await take(store, 3)
        await store.finish([done(task) for task in claimed])
        await store.close()
        await await_until(lambda: [payload for channel, payload in heard if channel == "ends"], 30, "an end")
    told = "".join(payload for channel, payload in heard if channel == "ends")
    assert {told[start : start + TAIL] for start in range(0, len(told), TAIL)} == {task.id[-TAIL:] for task in claimed}


def test_what_is_too_much_for_messages_is_told_by_one_that_says_everything(storage_url: str) -> None:
    names = settings_of(storage_url).names
    few = News(ended=[new_id() for _ in range(1000)])
    told = list(messages(few, names))
    assert len(told) == 2
    assert all(len(payload.encode()) < 8000 for _, payload in told)
    assert "".join(payload for _, payload in told) == "".join(task_id[-TAIL:] for task_id in few.ended)
    assert [payload for _, payload in messages(News(ended=[new_id()] * 40_000), names)] == [EVERYTHING]
    ((_, payload),) = messages(News(work={"q" * 100 + str(number): 0.0 for number in range(100)}), names)
    assert json.loads(payload) == {"": 0.0}


async def test_a_message_of_somebody_else_does_no_harm(
    server: PostgresServer, storage_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(storage_url) as store:
        (entry,) = await store.enqueue([new_task(run_at=timedelta(hours=1))])
        works = asyncio.create_task(store.wait_for_work(["q"], 60))
        ends = asyncio.create_task(store.wait_finished([entry.id], 60))
        await asyncio.sleep(0.2)  # by then it waits
        for channel in channels(settings_of(storage_url).names):
            for payload in ("", "{", "[1]", "7", '{"q": "soon"}', "\\x00", "null", '{"q": null}', "[" * 7900):
                server.execute("SELECT pg_notify(%s, %s)", channel, payload)
        await asyncio.sleep(0.2)  # what must not happen would have by now
        assert not ends.done()
        assert caplog.text == "", "one of them was not understood"
        await store.enqueue([new_task()])
        async with asyncio.timeout(30):
            await works
        await store.cancel([entry.id])
        async with asyncio.timeout(30):
            assert await ends == {entry.id}


async def test_a_far_task_does_not_wake_who_waits(storage_url: str) -> None:
    async with opened(storage_url) as store, opened(storage_url) as other:
        waits = asyncio.create_task(store.wait_for_work(["q"], 60))
        await asyncio.sleep(0.1)  # by then it waits
        for _ in range(20):
            await other.enqueue([new_task(run_at=timedelta(hours=1))])
        await asyncio.sleep(0.3)  # what must not happen would have by now
        assert not waits.done()
        await other.enqueue([new_task(run_at=timedelta(seconds=0.3))])
        async with asyncio.timeout(30):
            await waits


async def test_closing_tells_what_was_to_be_told(storage_url: str) -> None:
    async with opened(storage_url) as store:
        (entry, _) = await store.enqueue([new_task(), new_task()])
        claimed = await take(store, 2)
        ends = asyncio.create_task(store.wait_finished([entry.id], 60))
        await asyncio.sleep(0.1)  # by then it waits
        async with opened(storage_url) as other:
            await other.finish([done(claimed[1])])
            await other.finish([Cancelled(id=claimed[0].id, delivery=claimed[0].delivery)])
        async with asyncio.timeout(30):
            assert await ends == {entry.id}
