"""What a URL of a Redis store can say, and what it cannot."""

from __future__ import annotations

import asyncio
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from omniq.errors import ConfigurationError, StorageUnavailable
from omniq.plugins import default_plugins
from omniq.schedule import Schedule
from omniq.storage import StorageConfig, TaskQuery
from omniq.storage.urls import parse_url
from omniq.task import TaskState
from omniq_redis.settings import OPTIONS, SCHEMES, read_settings
from omniq_redis.storage import RedisStorage
from omniq_redis.sync_client import Pool
from tests.redis.redis_support import done, new_task, only, opened, storage, take
from tests.servers.base import free_port
from tests.servers.redis import RedisServer

ROOT = Path(__file__).parents[2]


def settings_of(url: str, **extra: Any) -> Any:
    return read_settings(parse_url(url), extra)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_leads_to_this_storage(scheme: str) -> None:
    place = {"unix": "unix:///run/redis.sock"}.get(scheme, f"{scheme}://a:1,b:2/name")
    if scheme in ("redis", "rediss"):
        place = f"{scheme}://a"
    elif scheme.endswith("cluster"):
        place = f"{scheme}://a:1,b:2"
    assert isinstance(default_plugins().open_storage(parse_url(place)), RedisStorage)


@pytest.mark.parametrize(
    ("url", "addresses", "database"),
    [
        ("redis://", (("localhost", 6379),), 0),
        ("redis://example.org", (("example.org", 6379),), 0),
        ("redis://example.org:7000/3", (("example.org", 7000),), 3),
        ("redis://example.org?db=4", (("example.org", 6379),), 4),
        ("redis://[::1]:7000", (("::1", 7000),), 0),
        ("redis+cluster://a:1,b,[::1]:3", (("a", 1), ("b", 6379), ("::1", 3)), 0),
        ("redis+sentinel://a:1,b/main/2", (("a", 1), ("b", 26379)), 2),
    ],
)
def test_a_url_names_servers_and_a_database(url: str, addresses: tuple[tuple[str, int], ...], database: int) -> None:
    settings = settings_of(url)
    assert (settings.addresses, settings.connection["db"]) == (addresses, database)


def test_a_sentinel_url_names_the_master() -> None:
    settings = settings_of("redis+sentinel://user:word@a/main?sentinel_username=s&sentinel_password=t")
    assert settings.master == "main"
    assert (settings.connection["username"], settings.connection["password"]) == ("user", "word")
    assert (settings.sentinel["username"], settings.sentinel["password"]) == ("s", "t")


def test_options_say_how_it_is_used() -> None:
    settings = settings_of(
        "redis://a?timeout=1.5&connect_timeout=2&retry_for=3&pool_size=4&pool_timeout=5&client_name=n&username=u&password=p"
    )
    assert (settings.timeout, settings.connect_timeout, settings.retry_for) == (1.5, 2, 3)
    assert (settings.pool_size, settings.pool_timeout) == (4, 5)
    assert settings.connection["client_name"] == "n"
    assert (settings.connection["username"], settings.connection["password"]) == ("u", "p")


def test_more_can_be_given_to_the_driver_by_argument() -> None:
    provider = object()
    assert settings_of("redis://a", credential_provider=provider).connection["credential_provider"] is provider


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("redis://a/b", "number"),
        ("redis://a/0/1", "nothing else"),
        ("redis://a/1?db=2", "twice"),
        ("redis://a:port", "host and a port"),
        ("redis+cluster://a/1", "database 0"),
        ("redis+sentinel://a", "master"),
        ("unix://run/redis.sock", "three slashes"),
        ("redis://a?ssl_ca_certs=x", "rediss://"),
        ("rediss://a?ssl_cert_reqs=perhaps", "ssl_cert_reqs"),
        ("redis://a?timeout=0", "timeout"),
        ("redis://a?timeout=soon", "timeout"),
        ("redis://a?pool_size=0", "pool_size"),
        ("redis://a?pool_size=1.5", "a whole number from 1 to 10000"),
        ("redis://a?pol_size=1", "pool_size"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RedisStorage(parse_url(url))


def test_no_error_shows_a_password() -> None:
    for url in ("redis://user:s3cret@a/b", "redis://user:s3cret@a:port", "redis://a?password=s3cret&timeout=x"):
        with pytest.raises(ConfigurationError) as caught:
            RedisStorage(parse_url(url))
        assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(settings_of("redis://user:s3cret@a?sentinel_password=s3cret"))
    config = parse_url("redis://user:s3cret@a")
    assert isinstance(config, StorageConfig)
    assert "s3cret" not in repr(RedisStorage(config))


def test_every_option_is_documented() -> None:
    for page in (ROOT / "docs" / "backends" / "redis.md", ROOT / "omniq-redis" / "README.md"):
        text = page.read_text("utf-8")
        assert [option for option in OPTIONS if f"`{option}`" not in text] == []


# An ACL user that is limited to its own namespace


@asynccontextmanager
async def limited(server: RedisServer, namespace: str) -> AsyncIterator[RedisStorage]:
    """Yield a storage of a user who may do what the documentation says he must."""
    page = (ROOT / "docs" / "backends" / "redis.md").read_text("utf-8")
    (documented,) = re.findall(r"^ACL SETUSER shop (.*?)^```", page, re.MULTILINE | re.DOTALL)
    server.ask("ACL", "SETUSER", namespace, "reset", *documented.replace("{shop}", f"{{{namespace}}}").split())
    try:
        async with opened(f"redis://{namespace}:password@127.0.0.1:{server.port}/0", namespace) as store:
            yield store
    finally:
        server.ask("ACL", "DELUSER", namespace)


@pytest.mark.parametrize("kind", ["redis_server", "valkey_server"])
def test_a_user_who_is_limited_to_the_namespace_can_do_everything(
    kind: str, namespace: str, request: pytest.FixtureRequest
) -> None:
    server: RedisServer = request.getfixturevalue(kind)

    async def scenario() -> None:
        async with limited(server, namespace) as store:
            stored = await store.enqueue([new_task(unique="key"), new_task()])
            assert store.enqueue_blocking([new_task()]) is not None
            worker = asyncio.create_task(store.wait_for_work(["r"], 60))
            ends = asyncio.create_task(store.wait_finished([stored[0].id], 60))
            await asyncio.sleep(0.1)  # by then it waits
            await store.enqueue([new_task(queue="r")])
            claimed = await take(store)
            await store.heartbeat("w", [], 30)
            await store.finish(done(claimed))
            await asyncio.wait_for(worker, 30)
            assert await asyncio.wait_for(ends, 30) == {stored[0].id}
            assert (await only(store, stored[0].id)).state is TaskState.SUCCEEDED
            assert len(await store.list_tasks(TaskQuery())) == 4
            schedule = Schedule(id="s", task=new_task(), trigger="[]", next_run=await store.now())
            assert await store.put_schedule(schedule) is not None
            (due,) = await store.due_schedules(9)
            assert await store.fire(due, [new_task()])
            await store.pause("q")
            await store.resume("q")
            await store.recover(10)
            await store.prune(10)
            await store.cancel([one.id for one in await store.list_tasks(TaskQuery())])
            await store.retry([one.id for one in await store.list_tasks(TaskQuery())])
            assert [worker.id for worker in await store.workers()] == ["w"]
            findings = await store.diagnose()
            assert "INFO" in findings[0].message
            await store.delete([one.id for one in stored])
            await store.purge("q")

    asyncio.run(scenario())


def test_a_user_who_is_limited_to_another_namespace_is_refused(redis_server: RedisServer, namespace: str) -> None:
    async def scenario() -> None:
        async with limited(redis_server, namespace):
            other = storage(f"redis://{namespace}:password@127.0.0.1:{redis_server.port}/0", f"{namespace}x")
            with pytest.raises(StorageUnavailable, match="permission"):
                await other.open()

    asyncio.run(scenario())


def test_a_user_who_may_not_subscribe_finds_work_by_looking(
    redis_server: RedisServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with limited(redis_server, namespace) as store:
            redis_server.ask("ACL", "SETUSER", namespace, "-subscribe")
            worker = asyncio.create_task(store.wait_for_work(["q"], 60))
            await asyncio.sleep(0.1)  # by then it waits
            await store.enqueue([new_task()])
            await asyncio.wait_for(worker, 30)

    asyncio.run(scenario())
    assert "look by themselves" in caplog.text


# TLS


def new_certificate(folder: Path) -> tuple[Path, Path]:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@asynccontextmanager
async def encrypted(server: RedisServer, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """Put an encrypting door before a server; give its port, and the certificate to trust."""
    key, certificate = new_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def pass_through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(copy(reader, outer), copy(inner, writer))

    door = await asyncio.start_server(pass_through, "127.0.0.1", 0, ssl=context)
    async with door:
        yield door.sockets[0].getsockname()[1], certificate
        door.close()


def test_a_connection_can_be_encrypted(redis_server: RedisServer, namespace: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with encrypted(redis_server, tmp_path) as (port, certificate):
            url = f"rediss://localhost:{port}/0"
            async with opened(f"{url}?ssl_ca_certs={certificate}", namespace) as store:
                (stored,) = await store.enqueue([new_task(body=bytes(1_000_000))])
                assert await asyncio.to_thread(store.enqueue_blocking, [new_task()]) is not None
                worker = asyncio.create_task(store.wait_for_work(["r"], 60))
                await asyncio.sleep(0.1)  # by then it waits
                await store.enqueue([new_task(queue="r")])
                await asyncio.wait_for(worker, 30)
                assert len(await take(store)) == 2
                assert len((await only(store, stored.id)).body) == 1_000_000
            with pytest.raises(StorageUnavailable, match="certificate"):
                await storage(f"{url}?retry_for=0.1", namespace).open()

    asyncio.run(scenario())


async def refusals(url: str, namespace: str) -> list[str]:
    """Return what is said when a server cannot be used: to a coroutine, and to a thread."""
    store = storage(f"{url}?retry_for=0.1&connect_timeout=1&timeout=1", namespace)
    with pytest.raises(StorageUnavailable) as of_loop:
        await store.open()
    pool = Pool(store._settings, store._connector)
    with pytest.raises(StorageUnavailable) as of_thread:
        await asyncio.to_thread(pool.run, "now", b"", 0)
    return [str(of_loop.value), str(of_thread.value)]


def test_a_server_that_speaks_tls_and_one_that_does_not_are_told_apart(
    redis_server: RedisServer, namespace: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with encrypted(redis_server, tmp_path) as (port, _):
            for said in await refusals(f"redis://localhost:{port}/0", namespace):
                assert said.endswith("the server speaks TLS there: write rediss instead of redis")
        for said in await refusals(f"rediss://localhost:{redis_server.port}/0", namespace):
            assert said.endswith("not speak TLS there: write redis instead of rediss, or name its TLS port")

    asyncio.run(scenario())


def test_a_server_without_room_for_more_clients_is_told_of(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RedisServer(tmp_path, config={"maxclients": "1"}) as server, server.client() as client:
            client.ping()
            for said in await refusals(server.url, "omniq"):
                assert said.endswith(": max number of clients reached")

    asyncio.run(scenario())


def test_sentinels_that_do_not_answer_are_told_of_in_a_line(namespace: str) -> None:
    async def scenario() -> None:
        places = f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"
        for said in await refusals(f"redis+sentinel://user:s3cret@{places}/mymaster/0", namespace):
            text = f"no master to be had from the sentinels at {places.replace(',', ', ')}: none of them answers"
            assert said.endswith(text)
            assert len(said) < 300
            assert "s3cret" not in said

    asyncio.run(scenario())
