"""What is used of nats-py that it does not promise; and that all goes on, slower, with one that has it no more."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport

from omniq.errors import ConfigurationError
from omniq_nats import protocol
from omniq_nats.protocol import PRIVATE_PARTS
from tests.nats.support import Load, fresh, make, opened, task
from tests.nats.test_ways import Papers, a_task_gets_through, refusal
from tests.servers.base import HOST
from tests.servers.nats import NatsServer

HIDDEN = {
    Client: ("_pending", "_pending_data_size", "_ps", "_transport", "_process_msg"),
    Subscription: ("_id",),
    TcpTransport: ("_io_reader", "_io_writer"),
}


@pytest.fixture
def _asked_anew() -> Iterator[None]:
    protocol._differences.cache_clear()
    yield
    protocol._differences.cache_clear()


def hide(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Have a class lack an attribute, as far as our own code can see; the driver itself needs it."""
    original: Any = owner.__getattribute__

    def get(self: object, asked: str) -> Any:
        if asked == name and sys._getframe(1).f_globals["__name__"].startswith("omniq_nats"):
            raise AttributeError(f"{owner.__name__} has no {name}")
        return original(self, asked)

    monkeypatch.setattr(owner, "__getattribute__", get)


@pytest.mark.parametrize("part", list(PRIVATE_PARTS))
def test_the_driver_has_the_private_part(part: str) -> None:
    """If this fails, the driver has changed: messages take its slower way until omniq_nats.protocol is adapted."""

    async def ask() -> bool:
        return PRIVATE_PARTS[part](Client())

    assert asyncio.run(ask()), part


def test_the_driver_has_what_keeps_secrets_from_servers_that_do_not_encrypt() -> None:
    """If this fails, tls:// is refused with this driver until omniq_nats.connecting is adapted."""
    assert hasattr(Client, "_connect_command"), "Client._connect_command gives the line that tells who we are"
    assert hasattr(Client(), "_server_info"), "Client._server_info is what the server said of itself"


def test_the_driver_has_what_keeps_a_refusal_readable() -> None:
    """If this fails, some refusals are told as a connection that broke until omniq_nats.connecting is adapted."""
    for part in ("_connect_to_server", "_process_connect_init"):
        assert hasattr(Client, part), f"Client.{part} is a step of making a connection"


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in HIDDEN.items() for name in names], ids=str
)
async def test_all_goes_on_without_a_private_part(
    nats_server: NatsServer,
    owner: type,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "omniq.nats")
    hide(monkeypatch, owner, name)
    await a_task_gets_through(fresh(nats_server.url))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "messages take a slower way" in caplog.text
    assert name in caplog.text


@pytest.mark.usefixtures("_asked_anew")
async def test_nothing_is_lost_without_any_private_part_though_the_server_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, names in HIDDEN.items():
        for name in names:
            hide(monkeypatch, owner, name)
    with NatsServer(tmp_path) as server:
        load = Load(fresh(server.url))
        async with load.running():
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await load.reached(30)
        await load.settle()


@pytest.mark.usefixtures("_asked_anew")
async def test_without_private_parts_a_refusal_is_an_error_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, Client, "_transport")
    with NatsServer(tmp_path, ['authorization { user: "me", password: "secret" }']) as server:
        assert "cannot be reached" in await refusal(server.url)
        async with opened(fresh(server.url.replace("//", "//me:secret@"))) as storage:
            assert await storage.enqueue([task()])


async def test_a_driver_that_cannot_be_kept_from_telling_secrets_is_not_used_for_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    papers = Papers(tmp_path)
    with NatsServer(tmp_path, [papers.block()]) as server:
        url = fresh(f"tls://{HOST}:{server.port}", tls_ca=str(papers.ca))
        hide(monkeypatch, Client, "_server_info")
        with pytest.raises(ConfigurationError, match="cannot be kept from telling secrets"):
            await make(url).open()
