"""A store in which there is no room left: what can be removed from it, and what ends meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from omniq import TaskQueue, TaskState
from omniq.errors import StorageUnavailable
from omniq.storage import Severity
from omniq.testing import await_until
from omniq_nats.messages import Full
from omniq_nats.storage import NatsStorage
from tests.nats.support import fresh, opened, task
from tests.nats.test_limits import finding
from tests.nats.test_opening import js, stream_of
from tests.servers.nats import NatsServer


async def limit_stream(server: NatsServer) -> str:
    url = fresh(server.url)
    async with opened(url):
        config = (await js(url, f"STREAM.INFO.{stream_of(url)}"))["config"]
        await js(url, f"STREAM.UPDATE.{stream_of(url)}", {**config, "max_bytes": 1_000_000})
    return url


async def as_it_is(server: NatsServer) -> str:
    return fresh(server.url)


async def limited_account(server: NatsServer) -> str:
    return fresh(server.url.replace("//", "//a:a@"))


ACCOUNT = "accounts { A { jetstream: { max_store: 1MB, max_mem: 1MB }, users: [{user: a, password: a}] } }"
KINDS = {
    "stream": ("", limit_stream, "maximum bytes exceeded"),
    "account": (ACCOUNT, limited_account, "resource limits exceeded for account"),
    "server": ("max_file_store: 1MB", as_it_is, "insufficient resources"),
}


@asynccontextmanager
async def full(tmp_path: Path, kind: str) -> AsyncIterator[tuple[NatsStorage, list[str]]]:
    """Return a storage that is full, and the ids of the tasks in it."""
    line, make_url, says = KINDS[kind]
    server = NatsServer(tmp_path, [line] if line.startswith("accounts") else [])
    if line.startswith("max_file_store"):
        server.limits = line
    with server:
        async with opened(await make_url(server)) as storage:
            ids: list[str] = []

            async def fill(size: int) -> None:
                for _ in range(1000):
                    (answer,) = await storage.enqueue([task(body=b"x" * size)])
                    ids.append(answer.id)

            for size in (5000, 1000):
                with pytest.raises(Full, match=says):
                    await fill(size)
            yield storage, ids


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("how", ["purge", "delete", "cancel"])
async def test_tasks_can_be_removed_and_cancelled_in_a_full_store(tmp_path: Path, kind: str, how: str) -> None:
    async with full(tmp_path, kind) as (storage, ids):
        if how == "cancel":
            assert await storage.cancel(ids[:5]) == [True] * 5
            records = await storage.get(ids[:5])
            assert [record and record.state for record in records] == [TaskState.CANCELLED] * 5
            return
        if how == "purge":
            assert await storage.purge("work") >= len(ids)
        else:
            assert await storage.delete(ids[:50]) == [True] * 50
        assert await storage.get(ids[:3]) == [None] * 3
        # There is room again, and what was taken to make it is there for the next time.
        assert (await storage.enqueue([task(body=b"x" * 5000)]))[0].created
        names = storage._settings.names
        assert storage._opened is not None
        transport = storage._opened.transport
        if how == "purge":
            await storage.prune(1)
            assert (await transport.ends([names.reserve]))[0] > 0


@pytest.mark.parametrize("kind", ["account", "server"])
async def test_the_doctor_tells_that_a_store_is_full(tmp_path: Path, kind: str) -> None:
    async with full(tmp_path, kind) as (storage, _):
        told = await finding(storage, "space")
        assert told.severity is Severity.ERROR
        assert "full" in told.message
        assert "max_file_store" in told.message


async def test_tasks_that_end_while_there_is_no_room_are_recorded_once_there_is(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    server.limits = "max_file_store: 2MB"
    with server:
        url = fresh(server.url)
        release = asyncio.Event()
        queue = TaskQueue(url)

        @queue.task(max_retries=0)
        async def work() -> str:
            await release.wait()
            return "done" * 100

        async with queue, queue.worker(lease=5, recover_every=0.5, concurrency=8):
            handles = [await work.aenqueue() for _ in range(8)]

            async def all_run() -> bool:
                return [(await handle.atask()).state for handle in handles] == [TaskState.RUNNING] * 8

            await await_until(all_run, 60)
            # Another stream takes all the room that there is.
            await js(url, "STREAM.CREATE.GREEDY", {"name": "GREEDY", "subjects": ["greedy.>"]})
            async with opened(url) as other:
                assert other._opened is not None
                client = other._opened.transport.client

                async def is_full() -> bool:
                    for _ in range(20):
                        await client.publish("greedy.x", b"x" * 20_000)
                    await client.flush()
                    try:
                        await other.enqueue([task(queue="not served", body=b"x" * 1000)])
                    except StorageUnavailable:
                        return True
                    return False

                await await_until(is_full, 30)
            release.set()
            with pytest.raises(StorageUnavailable):
                await work.aenqueue()
            await js(url, "STREAM.DELETE.GREEDY")
            assert [await handle.aresult(30) for handle in handles] == ["done" * 100] * 8
            assert [(await handle.atask()).delivery for handle in handles] == [1] * 8
