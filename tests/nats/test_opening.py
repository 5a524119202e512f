"""Opening: what is made and checked, who is let in, and what is refused with which words."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest

from omniq import TaskQueue
from omniq.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from omniq.storage import Lease, LeaseState, Severity, TaskQuery
from omniq.task import Succeeded, TaskState
from omniq.testing.contract import new_schedule
from tests.nats.support import fresh, make, opened, task
from tests.servers.base import HOST, free_port
from tests.servers.nats import NatsCluster, NatsServer


async def js(url: str, verb: str, body: Any = None) -> dict[str, Any]:
    """Ask the JetStream API."""
    client = await nats.connect(url.partition("?")[0])
    try:
        answer = await client.request(f"$JS.API.{verb}", json.dumps(body).encode() if body else b"", timeout=5)
        told: dict[str, Any] = json.loads(answer.data)
        return told
    finally:
        await client.close()


def stream_of(url: str) -> str:
    return "OMNIQ_" + url.partition("namespace=")[2].partition("&")[0]


# The stream


async def test_a_stream_is_made_with_what_the_url_says(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url, storage="memory")
    async with opened(url):
        config = (await js(url, f"STREAM.INFO.{stream_of(url)}"))["config"]
    assert (config["storage"], config["num_replicas"], config["max_msgs_per_subject"]) == ("memory", 1, 1)


async def test_a_stream_that_somebody_changed_is_set_right(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        config = (await js(url, f"STREAM.INFO.{stream_of(url)}"))["config"]
        await js(url, f"STREAM.UPDATE.{stream_of(url)}", {**config, "discard": "old", "max_bytes": 10**9})
        (found,) = [one for one in await storage.diagnose() if one.subject == "stream"]
        assert found.severity is Severity.ERROR
        assert "discard is 'old' and should be 'new'" in found.message
    async with opened(url) as storage:
        config = (await js(url, f"STREAM.INFO.{stream_of(url)}"))["config"]
        assert config["discard"] == "new"
        assert config["max_bytes"] == 10**9, "what the package has no opinion of stays as it is"
        (found,) = [one for one in await storage.diagnose() if one.subject == "stream"]
        assert found.severity is Severity.OK


async def test_the_number_of_replicas_can_be_raised_and_is_kept_where_nothing_is_said(
    nats_cluster: NatsCluster,
) -> None:
    bare = nats_cluster.url.partition("?")[0]
    url = fresh(bare)
    async with opened(url) as storage:
        (answer,) = await storage.enqueue([task()])
    async with opened(f"{url}&replicas=3"):
        pass
    async with opened(url) as storage:
        (record,) = await storage.get([answer.id])
        assert record is not None
        (found,) = [one for one in await storage.diagnose() if one.subject == "durability"]
        assert "3 replicas" in found.message


async def test_a_stream_of_somebody_else_is_left_alone(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    name = stream_of(url)
    await js(url, f"STREAM.CREATE.{name}", {"name": name, "subjects": [f"foreign.{name}"]})
    with pytest.raises(SchemaMismatch, match="was not made by OmniQ"):
        await make(url).open()
    assert (await js(url, f"STREAM.INFO.{name}"))["config"]["subjects"] == [f"foreign.{name}"]


async def test_a_stream_of_another_version_is_refused(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url):
        config = (await js(url, f"STREAM.INFO.{stream_of(url)}"))["config"]
    config["metadata"]["omniq.schema"] = "99"
    await js(url, f"STREAM.UPDATE.{stream_of(url)}", config)
    with pytest.raises(SchemaMismatch, match=r"its schema is 99, this one knows 3\): update omniq-nats"):
        await make(url).open()


async def test_a_storage_that_cannot_be_changed_is_said_to_be_so(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url):
        pass
    with pytest.raises(ConfigurationError, match="has storage 'file', which cannot be changed"):
        await make(f"{url}&storage=memory").open()


async def test_more_replicas_than_servers_are_said_to_be_too_many(nats_server: NatsServer) -> None:
    with pytest.raises(ConfigurationError, match="cannot keep 3 replicas"):
        await make(fresh(nats_server.url, replicas="3")).open()


# Servers that cannot


async def test_nobody_at_the_address_is_an_error_that_names_it() -> None:
    with pytest.raises(StorageUnavailable, match=f"{HOST}:1.*cannot be reached"):
        await make(f"nats://{HOST}:1?timeout=0.5").open()


async def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    class Bare(NatsServer):
        def command(self) -> list[str]:
            return [str(self.binary), "-a", HOST, "-p", str(self.port), "-m", str(self.monitor)]

    with Bare(tmp_path) as server, pytest.raises(StorageUnavailable, match=r"JetStream is off|not enabled"):
        await make(fresh(server.url, timeout="0.5")).open()


@asynccontextmanager
async def old_server(level: dict[str, Any]) -> AsyncIterator[str]:
    """Be a server that speaks as one of an older version does, as far as opening goes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "old", "version": "2.11.9", "max_payload": 1048576, "headers": True, "proto": 1}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        answers = {"$JS.API.INFO": {"api": level}}
        missing = {"error": {"code": 404, "err_code": 10059, "description": "stream not found"}}
        while line := await reader.readline():
            words = line.decode().split()
            if words[0] == "PING":
                writer.write(b"PONG\r\n")
            elif words[0] == "PUB":
                await reader.readexactly(int(words[-1]) + 2)
                body = json.dumps(answers.get(words[1], missing)).encode()
                writer.write(f"MSG {words[2]} 1 {len(body)}\r\n".encode() + body + b"\r\n")
        writer.close()

    port = free_port()
    server = await asyncio.start_server(serve, HOST, port)
    async with server:
        yield f"nats://{HOST}:{port}"


@pytest.mark.parametrize("level", [{"level": 1}, {}])
async def test_a_server_that_is_too_old_is_refused_with_the_version_that_is_needed(level: dict[str, Any]) -> None:
    async with old_server(level) as url:
        storage = make(fresh(url, timeout="2"))
        with pytest.raises(ConfigurationError, match=r"nats-server 2\.11\.9 .* update it to 2\.12 or later"):
            await storage.open()


# Users


def user_of(namespace: str) -> str:
    """Return the configuration of a user who may use one namespace, as the documentation gives it."""
    stream = f"OMNIQ_{namespace}"
    allowed = [
        f"omniq.{namespace}.>",
        "$JS.API.INFO",
        *(f"$JS.API.STREAM.{verb}.{stream}" for verb in ("INFO", "CREATE", "UPDATE", "PURGE", "MSG.GET", "MSG.DELETE")),
        f"$JS.API.DIRECT.GET.{stream}",
    ]
    heard = [f"omniq.{namespace}.ev.>", f"_INBOX.omniq-{namespace}.>"]
    permissions = json.dumps({"publish": allowed, "subscribe": heard})
    return f'authorization {{ users: [{{user: "shop", password: "secret", permissions: {permissions}}}] }}'


async def test_a_user_who_may_use_nothing_but_the_namespace_can_do_everything(tmp_path: Path) -> None:
    with NatsServer(tmp_path, [user_of("shop")]) as server:
        url = f"{server.url.replace('//', '//shop:secret@')}?namespace=shop&timeout=2"
        async with opened(url) as storage, opened(url) as other:
            ids = [answer.id for answer in await storage.enqueue([task(unique="key"), task(), task()])]
            waits = asyncio.create_task(other.wait_finished(ids, 60))
            claimed = await other.claim({"work": 2}, worker="w", lease=60)
            held = [Lease(one.id, one.delivery) for one in claimed]
            assert await storage.heartbeat("w", held, 60) == [LeaseState.HELD] * 2
            results = [Succeeded(id=one.id, delivery=one.delivery, result=b"x" * 9000) for one in claimed]
            assert await storage.finish(results) == [True, True]
            assert await waits <= set(ids)
            schedule = await storage.put_schedule(new_schedule("s"))
            assert schedule is not None
            assert await storage.fire(schedule, [task()])
            assert await storage.delete_schedule("s") is True
            assert len(await storage.list_tasks(TaskQuery())) == 4
            assert (await storage.stats())[0].counts[TaskState.SUCCEEDED] == 2
            assert await storage.delete(ids[:1]) == [True]
            assert await storage.purge("work") == 3
            assert Severity.ERROR not in {one.severity for one in await storage.diagnose()}


async def test_a_user_of_another_namespace_is_told_what_he_may_not_do(tmp_path: Path) -> None:
    with NatsServer(tmp_path, [user_of("shop")]) as server:
        url = f"{server.url.replace('//', '//shop:secret@')}?namespace=other&timeout=0.5"
        with pytest.raises(StorageUnavailable, match=r"(?i)permissions violation"):
            await make(url).open()


async def test_a_wrong_password_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    with NatsServer(tmp_path, [user_of("shop")]) as server:
        storage = make(f"{server.url.replace('//', '//shop:wrong@')}?namespace=shop&timeout=1")
        with pytest.raises(StorageUnavailable, match=r"(?i)authorization violation") as caught:
            await storage.open()
        assert "wrong" not in str(caught.value)
        assert "wrong" not in repr(storage)


async def test_a_token_lets_in(tmp_path: Path) -> None:
    with NatsServer(tmp_path, ['authorization { token: "let me in" }']) as server:
        url = server.url.replace("//", "//let%20me%20in@")
        async with opened(fresh(url)) as storage:
            assert await storage.enqueue([task()])
        with pytest.raises(StorageUnavailable):
            await make(fresh(server.url, timeout="0.5")).open()


async def test_one_of_several_servers_that_is_not_there_is_passed_over(nats_server: NatsServer) -> None:
    url = nats_server.url.replace("//", f"//{HOST}:1,")
    async with opened(fresh(url)) as storage:
        assert await storage.enqueue([task()])


@pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_queue_is_closed_without_an_error_after_a_loop_that_used_it_has_ended(nats_server: NatsServer) -> None:
    queue = TaskQueue(fresh(nats_server.url))
    encode = queue.task(json.dumps)

    async def use() -> None:
        await encode.aenqueue(1)

    asyncio.run(use())
    queue.close()
    gc.collect()  # what the loop left open warns here, and not in another test
