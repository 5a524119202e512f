"""Servers that refuse a client for a while, and what the log shows of it."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

import pytest

from omniq import TaskQueue
from omniq.errors import StorageUnavailable
from omniq.testing import await_until
from omniq_nats.storage import NatsStorage
from tests.nats.support import fresh, make, opened, task
from tests.nats.test_ways import refusal
from tests.servers.nats import NatsServer


def password(word: str) -> list[str]:
    return [f'authorization {{ user: "me", password: "{word}" }}']


def reload(server: NatsServer, lines: list[str]) -> None:
    """Have a server read another configuration."""
    server.lines = lines
    server.command()
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)


async def is_cut_off(storage: NatsStorage) -> bool:
    try:
        await storage.stats()
    except StorageUnavailable:
        return True
    return False


async def test_a_login_that_was_refused_for_a_while_makes_nobody_deaf(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "omniq.nats")
    with NatsServer(tmp_path, password("right")) as server:
        url = fresh(server.url.replace("//", "//me:right@"), timeout="1")
        async with opened(url) as worker, opened(url) as producer:
            await worker.enqueue([task(queue="other")])
            waits = asyncio.create_task(worker.wait_for_work(["work"], 600))
            reload(server, password("wrong"))
            await await_until(lambda: is_cut_off(worker), 30, "the server to refuse the worker")
            await await_until(lambda: is_cut_off(producer), 30, "the server to refuse the producer")

            async def is_told_why() -> bool:
                # A call that gives up in the middle of an attempt does not know the reason yet.
                with pytest.raises(StorageUnavailable) as caught:
                    await worker.stats()
                assert "right" not in str(caught.value)
                return "authorization" in str(caught.value).lower()

            await await_until(is_told_why, 30, "the reason of the refusal")
            reload(server, password("right"))

            async def has_enqueued() -> bool:
                return not await is_cut_off(producer) and bool(await producer.enqueue([task()]))

            await await_until(has_enqueued, 30, "the producer to be let in again")
            async with asyncio.timeout(30):
                # It heard of the work, or that there was no server for a while.
                await asyncio.gather(waits, return_exceptions=True)
                await await_until(lambda: claims(worker), 30, "the worker to be let in again")
                # What was listened for before is heard through the connection that took the place of the first one.
                again = asyncio.create_task(worker.wait_for_work(["work"], 600))
                await producer.enqueue([task()])
                await again
    told = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "omniq.nats"]
    shown = producer._settings.shown
    assert sum(message.startswith(f"{shown}: the connection is lost") for _, message in told) >= 2
    assert sum(message.startswith(f"{shown}: connected again after") for _, message in told) == 2
    assert len(told) < 12, "each attempt is told of"


async def test_a_worker_whose_login_was_refused_for_a_while_works_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with NatsServer(tmp_path, password("right")) as server:
        queue = TaskQueue(fresh(server.url.replace("//", "//me:right@"), timeout="1"))

        @queue.task
        async def add(a: int, b: int) -> int:
            return a + b

        async with queue, queue.worker(lease=3, recover_every=0.5):
            assert await (await add.aenqueue(1, 2)).aresult(20) == 3
            reload(server, password("wrong"))

            # That it cannot claim, either, is told only if it tried before its first heartbeat failed.
            await await_until(lambda: "cannot send heartbeats" in caplog.text, 30, "the worker to be refused")
            reload(server, password("right"))

            async def has_worked() -> bool:
                try:
                    return await (await add.aenqueue(3, 4)).aresult(5) == 7
                except (StorageUnavailable, TimeoutError):
                    return False

            await await_until(has_worked, 40, "the worker to work on")

            async def is_listed() -> bool:
                return len(await queue.aworkers()) == 1

            await await_until(is_listed, 60, "its heartbeats to get through")


async def claims(storage: NatsStorage) -> bool:
    try:
        return bool(await storage.claim({"work": 9}, worker="w", lease=99))
    except StorageUnavailable:
        return False


async def test_a_server_with_too_many_clients_says_so(tmp_path: Path) -> None:
    with NatsServer(tmp_path, ["max_connections: 1"]) as server:
        url = fresh(server.url)
        async with opened(url):
            for _ in range(5):
                assert "maximum connections exceeded" in await refusal(server.url)


async def test_somebody_who_is_no_nats_server_is_said_to_be_silent() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        with pytest.raises(StorageUnavailable, match="no greeting came in time; is it a NATS server"):
            await make(fresh(f"nats://127.0.0.1:{port}", timeout="2.5")).open()


async def test_a_connection_that_is_lost_and_comes_back_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "omniq.nats")
    with NatsServer(tmp_path) as server:
        async with opened(fresh(server.url, timeout="1")) as storage:
            await asyncio.to_thread(server.kill)
            for _ in range(5):
                assert await is_cut_off(storage)
            await asyncio.to_thread(server.start)
            await await_until(lambda: claims_nothing(storage), 30, "the connection to come back")
    told = [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "omniq.nats"]
    assert [level for level, _ in told] == ["WARNING", "INFO"], told
    assert "the connection is lost" in told[0][1]
    assert "connected again after" in told[1][1]


async def claims_nothing(storage: NatsStorage) -> bool:
    return not await is_cut_off(storage)
