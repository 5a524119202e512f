"""The ways to the servers: WebSockets, TLS, certificates, keys and other JetStream domains, each with a real server."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]  # it brings no types
import pytest
import trustme

from omniq.errors import ConfigurationError, StorageUnavailable
from omniq.task import Succeeded
from omniq.testing import await_until
from omniq_nats.connecting import _within
from tests.nats.support import fresh, make, opened, task
from tests.nats.test_opening import js
from tests.servers.base import HOST, free_port
from tests.servers.nats import NatsCluster, NatsServer

# The client gives aiohttp a number where aiohttp would rather have an object of its own.
pytestmark = pytest.mark.filterwarnings("ignore:parameter 'timeout' of type 'float':DeprecationWarning")


async def a_task_gets_through(url: str) -> None:
    """Have a task enqueued, claimed and finished, and its result waited for, by two clients."""
    async with opened(url) as producer, opened(url) as worker:
        waits = asyncio.create_task(worker.wait_for_work(["work"], 60))
        (answer,) = await producer.enqueue([task(body=b"x" * 200_000)])
        async with asyncio.timeout(30):
            await waits
        ends = asyncio.create_task(producer.wait_finished([answer.id], 60))
        (claimed,) = await worker.claim({"work": 1}, worker="w", lease=60)
        assert claimed.body == b"x" * 200_000
        assert await worker.finish([Succeeded(id=claimed.id, delivery=1, result=b"r" * 100_000)]) == [True]
        async with asyncio.timeout(30):
            assert await ends == {answer.id}
        (record,) = await producer.get([answer.id])
        assert record is not None
        assert record.result_payload == b"r" * 100_000


async def refusal(url: str) -> str:
    """Return what is said when a store cannot be opened."""
    with pytest.raises(StorageUnavailable) as caught:
        await make(fresh(url, timeout="1")).open()
    return str(caught.value)


def at(port: int, scheme: str) -> str:
    return f"{scheme}://{HOST}:{port}"


# Certificates


class Papers:
    """An authority, and what it has certified, in files.

    :param folder: for them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(self.ca)
        self.cert, self.key = self.issue(HOST)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certify a name; give the files of the certificate and its key."""
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        issued = self.authority.issue_cert(name)
        issued.private_key_pem.write_to_path(key)
        for pem in issued.cert_chain_pems:
            pem.write_to_path(cert, append=True)
        return cert, key

    def block(self, more: str = "") -> str:
        """Return the block of a server's configuration."""
        return f'tls {{ cert_file: "{self.cert}", key_file: "{self.key}", {more} }}'


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


async def test_tls_with_an_authority_of_ones_own(tmp_path: Path, papers: Papers) -> None:
    with NatsServer(tmp_path, [papers.block()]) as server:
        for scheme in ("tls", "nats"):
            await a_task_gets_through(fresh(at(server.port, scheme), tls_ca=str(papers.ca)))


async def test_a_server_whose_authority_is_not_trusted_is_refused_and_told_so(tmp_path: Path, papers: Papers) -> None:
    others = tmp_path / "others"
    others.mkdir()
    with NatsServer(tmp_path, [papers.block()]) as server:
        for url in (at(server.port, "tls"), f"{at(server.port, 'tls')}?tls_ca={Papers(others).ca}"):
            assert "certificate verify failed" in await refusal(url)


async def test_a_server_with_a_certificate_for_another_name_is_refused_unless_that_is_expected(
    tmp_path: Path, papers: Papers
) -> None:
    papers.issue("broker.example")
    block = papers.block().replace(str(papers.cert), str(papers.folder / "broker.example.crt"))
    block = block.replace(str(papers.key), str(papers.folder / "broker.example.key"))
    with NatsServer(tmp_path, [block]) as server:
        url = f"{at(server.port, 'tls')}?tls_ca={papers.ca}"
        assert "certificate is not valid for '127.0.0.1'" in await refusal(url)
        await a_task_gets_through(fresh(url, tls_hostname="broker.example"))


async def test_a_server_that_wants_to_know_the_client_gets_its_certificate(tmp_path: Path, papers: Papers) -> None:
    cert, key = papers.issue("worker.example")
    with NatsServer(tmp_path, [papers.block(f'ca_file: "{papers.ca}", verify: true')]) as server:
        url = f"{at(server.port, 'tls')}?tls_ca={papers.ca}"
        assert "certificate required" in await refusal(url)
        await a_task_gets_through(fresh(url, tls_cert=str(cert), tls_key=str(key)))


@pytest.mark.parametrize("option", ["", "?tls_ca={ca}"])
async def test_a_server_that_does_not_encrypt_is_told_nothing(tmp_path: Path, papers: Papers, option: str) -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id": "x", "version": "2.12.0", "headers": true, "max_payload": 1048576}\r\n')
        while line := await reader.readline():
            heard.append(line)
        writer.close()

    port = free_port()
    async with await asyncio.start_server(serve, HOST, port):
        scheme = "nats" if option else "tls"
        url = f"{scheme}://me:secret@{HOST}:{port}{option.format(ca=papers.ca)}"
        assert "does not encrypt" in await refusal(url)
    assert heard == []


async def test_a_refusal_is_told_rather_than_that_the_connection_broke_afterwards() -> None:
    met = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal met
        met += 1
        if met == 1:
            writer.write(b'INFO {"server_id": "x", "version": "2.12.0", "headers": true, "max_payload": 1048576}\r\n')
            await reader.readline()
            writer.write(b"-ERR 'Authorization Violation'\r\n")
            await writer.drain()
        writer.transport.abort()

    port = free_port()
    async with await asyncio.start_server(serve, HOST, port):
        assert "Authorization Violation" in await refusal(f"nats://{HOST}:{port}")
    assert met > 1


async def test_a_connection_by_tls_is_made_anew_after_the_server_was_away(tmp_path: Path, papers: Papers) -> None:
    with NatsServer(tmp_path, [papers.block()]) as server:
        async with opened(fresh(at(server.port, "tls"), tls_ca=str(papers.ca), timeout="30")) as storage:
            await storage.enqueue([task()])
            await asyncio.to_thread(server.kill)
            claims = asyncio.create_task(storage.claim({"work": 9}, worker="w", lease=60))
            await asyncio.to_thread(server.start)
            assert len(await claims) == 1


# WebSockets


def websocket(port: int, more: str = "no_tls: true") -> str:
    return f'websocket {{ listen: "{HOST}:{port}", {more} }}'


async def test_a_websocket(tmp_path: Path) -> None:
    port = free_port()
    with NatsServer(tmp_path, [websocket(port), 'authorization { user: "me", password: "secret" }']):
        await a_task_gets_through(fresh(f"ws://me:secret@{HOST}:{port}"))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ResourceWarning)
            for _ in range(3):
                assert "uthorization" in await refusal(f"ws://me:wrong@{HOST}:{port}")
                gc.collect()
    assert [str(one.message) for one in warned if one.category is ResourceWarning] == []


async def test_an_encrypted_websocket(tmp_path: Path, papers: Papers) -> None:
    port = free_port()
    with NatsServer(tmp_path, [websocket(port, papers.block())]):
        await a_task_gets_through(fresh(at(port, "wss"), tls_ca=str(papers.ca)))
        assert "certificate verify failed" in await refusal(at(port, "wss"))


async def test_a_websocket_is_opened_anew_after_the_server_was_away(tmp_path: Path) -> None:
    port = free_port()
    with NatsServer(tmp_path, [websocket(port)]) as server:
        async with opened(fresh(at(port, "ws"), timeout="30")) as storage:
            await storage.enqueue([task()])
            await asyncio.to_thread(server.kill)
            claims = asyncio.create_task(storage.claim({"work": 9}, worker="w", lease=60))
            await asyncio.to_thread(server.start)
            assert len(await claims) == 1


async def test_a_websocket_to_a_cluster_is_opened_to_another_of_the_named_servers(tmp_path: Path) -> None:
    with NatsCluster(tmp_path, websockets=True) as cluster:
        by_port = {server.websocket: server for server in cluster}
        url = fresh("ws://" + ",".join(f"{HOST}:{port}" for port in by_port), replicas="3", timeout="30")
        async with opened(url) as storage:
            await storage.enqueue([task()])
            (ours,) = [server for server in cluster if server.ask("connz")["connections"]]
            await asyncio.to_thread(ours.kill)
            assert len(await storage.claim({"work": 9}, worker="w", lease=60)) == 1


async def test_a_websocket_to_one_of_a_cluster_is_not_sought_where_none_is(tmp_path: Path) -> None:
    with NatsCluster(tmp_path, websockets=True) as cluster:
        named, *_ = cluster
        async with opened(fresh(f"ws://{HOST}:{named.websocket}", timeout="30")) as storage:
            await storage.enqueue([task(), task()])
            for _ in range(2):
                await asyncio.to_thread(named.kill)
                claims = asyncio.create_task(storage.claim({"work": 1}, worker="w", lease=60))
                await asyncio.sleep(0.3)  # by then it waits
                await asyncio.to_thread(named.start)
                assert len(await claims) == 1


async def test_without_the_package_for_websockets_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(
        ConfigurationError, match=r"needs the package aiohttp .*: pip install 'omniq-nats\[websocket\]'"
    ):
        await make(f"ws://{HOST}:1?timeout=0.5").open()


# Keys


class Actor:
    """Somebody with a key: an operator, an account or a user.

    :param kind: of the three.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.seed: bytes = nkeys.encode_seed(os.urandom(32), getattr(nkeys, f"PREFIX_BYTE_{kind.upper()}"))
        self.name: str = nkeys.from_seed(bytearray(self.seed)).public_key.decode()

    def vouch(self, other: Actor, **told: Any) -> str:
        """Return a signed statement about another actor, or oneself."""
        claims = {
            "jti": other.name,
            "iat": int(time.time()),
            "iss": self.name,
            "sub": other.name,
            "name": other.kind,
            "nats": {"type": other.kind, "version": 2, **told},
        }
        parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, claims]
        text = b".".join(_base64(json.dumps(part).encode()) for part in parts)
        return (text + b"." + _base64(nkeys.from_seed(bytearray(self.seed)).sign(text))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


USER = dict.fromkeys(("subs", "data", "payload"), -1)
ACCOUNT = {**USER, **dict.fromkeys(("conn", "leaf", "imports", "exports"), -1)}
STORAGE = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


def creds(jwt: str, seed: bytes) -> str:
    return (
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


async def test_a_user_with_a_credentials_file(tmp_path: Path) -> None:
    operator, system, account, user, stranger = map(Actor, ("operator", "account", "account", "user", "user"))
    lines = [
        f"operator: {operator.vouch(operator)}",
        f"system_account: {system.name}",
        "resolver: MEMORY",
        "resolver_preload: {",
        f"  {system.name}: {operator.vouch(system, limits=ACCOUNT)}",
        f"  {account.name}: {operator.vouch(account, limits={**ACCOUNT, **STORAGE})}",
        "}",
    ]
    known, unknown = tmp_path / "user.creds", tmp_path / "stranger.creds"
    known.write_text(creds(account.vouch(user, **USER), user.seed))
    unknown.write_text(creds(stranger.vouch(stranger, **USER), stranger.seed))
    with NatsServer(tmp_path / "server", lines) as server:
        await a_task_gets_through(fresh(server.url, credentials=str(known)))
        assert "uthorization" in await refusal(f"{server.url}?credentials={unknown}")
        assert "No such file" in await refusal(f"{server.url}?credentials={tmp_path / 'missing'}")


async def test_a_user_with_a_key(tmp_path: Path) -> None:
    user, stranger = Actor("user"), Actor("user")
    for actor, name in ((user, "user.nk"), (stranger, "stranger.nk")):
        (tmp_path / name).write_bytes(actor.seed)
    with NatsServer(tmp_path / "server", [f"authorization {{ users: [{{ nkey: {user.name} }}] }}"]) as server:
        await a_task_gets_through(fresh(server.url, nkey=str(tmp_path / "user.nk")))
        assert "uthorization" in await refusal(f"{server.url}?nkey={tmp_path / 'stranger.nk'}")


@pytest.mark.parametrize("option", ["nkey", "credentials"])
async def test_without_the_package_for_keys_its_name_is_told(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str
) -> None:
    monkeypatch.setitem(sys.modules, "nkeys", None)
    (tmp_path / "key").write_bytes(Actor("user").seed)
    with pytest.raises(ConfigurationError, match=r"needs the package nkeys .*: pip install 'omniq-nats\[nkeys\]'"):
        await make(fresh(nats_server.url, **{option: str(tmp_path / "key")})).open()


# Domains


async def test_the_domain_of_a_server(tmp_path: Path) -> None:
    with NatsServer(tmp_path, domain="hub") as server:
        await a_task_gets_through(fresh(server.url, domain="hub"))
        assert "JetStream" in await refusal(f"{server.url}?domain=elsewhere")


def leaf_lines(port: int) -> Sequence[str]:
    return [f'leafnodes {{ remotes: [{{ url: "nats-leaf://{HOST}:{port}" }}] }}']


async def test_a_client_of_a_leaf_node_reaches_the_domain_of_the_hub(tmp_path: Path) -> None:
    port = free_port()
    with (
        NatsServer(tmp_path / "hub", [f"leafnodes {{ listen: {HOST}:{port} }}"], name="hub", domain="hub") as hub,
        NatsServer(tmp_path / "leaf", leaf_lines(port), name="leaf", domain="leaf") as leaf,
    ):

        async def is_joined() -> bool:
            return bool(leaf.ask("leafz")["leafs"])

        await await_until(is_joined, 30, "the leaf node to join the hub")
        url = fresh(leaf.url, domain="hub")
        await a_task_gets_through(url)
        name = f"STREAM.INFO.OMNIQ_{url.partition('namespace=')[2].partition('&')[0]}"
        assert "config" in await js(hub.url, name)
        assert "error" in await js(leaf.url, name)
        async with opened(f"{url}&timeout=1") as storage:
            await asyncio.to_thread(hub.kill)
            with pytest.raises(StorageUnavailable):
                await storage.enqueue([task()])
            await asyncio.to_thread(hub.start)

            async def goes_on() -> bool:
                try:
                    return (await storage.enqueue([task()]))[0].created
                except StorageUnavailable:
                    return False

            await await_until(goes_on, 30, "the leaf node to join the hub again")


async def test_a_client_that_takes_a_cancellation_for_a_failed_try_is_cancelled_again() -> None:
    tries = 0

    async def go_on() -> None:
        nonlocal tries
        while tries < 3:
            try:
                await asyncio.sleep(60)  # what is cancelled
            except asyncio.CancelledError:
                tries += 1

    with pytest.raises(TimeoutError):
        await _within(0.01, go_on())
    assert tries == 3
