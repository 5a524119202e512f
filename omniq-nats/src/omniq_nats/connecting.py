"""Connects to the servers: in the way that the URL says, or not at all, and says why not."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import nats.errors
from nats.aio.client import Client, Server

from omniq.errors import ConfigurationError, StorageUnavailable
from omniq.storage.escaping import get_logger
from omniq_nats.connect_errors import Listener, NotEncrypted, Reasons
from omniq_nats.protocol import WireClient, stream_of
from omniq_nats.settings import Settings

__all__ = ["dial"]

_log = get_logger("omniq.nats")

EXTRAS = {"nkeys": "nkeys", "nacl": "nkeys", "aiohttp": "websocket"}
"""Of each package that the client may lack, which extra of this distribution brings it."""


class _Client(WireClient):
    """The client, but one that tells no secrets to a server that does not encrypt though the URL says that it does.

    And it leaves no connections open behind itself.

    :param settings: of the store.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._ear: Listener | None = None
        self.has_checked = False
        """Whether it was asked what to say to a server, and could look whether that encrypts."""

    def _connect_command(self) -> bytes:
        # This says who we are. The client would do so in plain text if the server, or another that answers in its
        # place, does not ask for TLS.
        is_plain = not self._settings.servers[0].startswith("wss:") and not self._server_info.get("tls_required")
        if self._settings.encrypted and is_plain:
            raise NotEncrypted
        self.has_checked = True
        self._listen_in()
        return super()._connect_command()

    async def _connect_to_server(self, *arguments: Any, **named: Any) -> None:
        # To a server that was there, but did not let us in; the client forgets that connection.
        transport = getattr(self, "_transport", None)
        if transport:
            transport.close()
        await super()._connect_to_server(*arguments, **named)
        self._listen_in()

    def _listen_in(self) -> None:
        """Hear what the server says while the connection is made; with TLS there are two readers, one after another."""
        streams = stream_of(self)
        if streams is None or (self._ear is not None and self._ear.reader is streams[0]):
            return
        is_plain = self._ear is None
        self._listen_no_more()
        self._ear = Listener(streams[0], streams[1].get_extra_info("socket") if is_plain else None)

    def _listen_no_more(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            ear.close()

    async def _process_connect_init(self, *arguments: Any, **named: Any) -> None:
        try:
            await super()._process_connect_init(*arguments, **named)
        except (OSError, TimeoutError, nats.errors.Error) as error:
            said = None if self._ear is None else self._ear.refusal()
            if said is None:
                raise
            raise nats.errors.Error(f"nats: {said}") from error
        finally:
            self._listen_no_more()

    async def leave(self) -> None:
        """Give up a connection that did not come about."""
        with contextlib.suppress(Exception):
            await _within(1, self.close())
        transport = getattr(self, "_transport", None)
        if stream_of(self) is not None:
            return
        with contextlib.suppress(Exception):
            # The client forgets a WebSocket if it was given up in the middle of connecting.
            if transport:
                transport.close()
                async with asyncio.timeout(1):
                    await transport.wait_closed()


async def _within(seconds: float, work: Coroutine[Any, Any, None]) -> None:
    """Wait for something that the client does, but no longer than this.

    The client may take a cancellation for one more connection that failed, and go on: it is cancelled until it stops.

    :raises TimeoutError: if it takes longer.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
        if not done:
            raise TimeoutError
        await task
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=0.1)


async def dial(
    settings: Settings,
    *,
    reasons: Reasons,
    lost: Callable[[], Awaitable[None]],
    found: Callable[[], Awaitable[None]],
    failed: Callable[[Exception], None],
) -> WireClient:
    """Connect.

    :param reasons: keeps why attempts to connect fail, these and those of later, when the connection was lost.
    :param lost: called when the connection is lost, and when the client has given it up.
    :param found: called when it is there again.
    :param failed: called with each error that the client meets.
    :raises StorageUnavailable: if no server can be reached within the timeout, or it refuses us.
    :raises ConfigurationError: if the client lacks a package that the URL makes it need.
    """
    if settings.encrypted and not (hasattr(Client, "_connect_command") and hasattr(Client(), "_server_info")):
        raise _unchecked(settings)
    client = _Client(settings)

    async def on_error(error: Exception) -> None:
        reasons.add(error)
        _log.debug("%s: %s", settings.shown, error)
        failed(error)

    try:
        way = _way(settings)
        await _within(
            settings.timeout,
            client.connect(
                list(settings.servers),
                name=f"omniq {settings.names.namespace}",
                error_cb=on_error,
                disconnected_cb=lost,
                reconnected_cb=found,
                closed_cb=lost,
                max_reconnect_attempts=-1,
                connect_timeout=2,
                inbox_prefix=f"_INBOX.omniq-{settings.names.namespace}",
                # Not in step with the other clients that lost the same server.
                reconnect_time_wait=random.uniform(0.05, 0.25),  # type: ignore[arg-type]  # it takes any seconds
                ping_interval=5,
                pending_size=32 * 1024 * 1024,
                **way,
                **settings.login,
            ),
        )
    except ImportError as error:
        await client.leave()
        raise _lacking(settings, error) from error
    except (OSError, TimeoutError, nats.errors.Error, ValueError) as error:
        await client.leave()
        if not str(reasons):
            reasons.add(error)
        raise StorageUnavailable(f"{settings.shown} cannot be reached: {reasons}") from error
    if settings.encrypted and not client.has_checked:
        await client.leave()
        raise _unchecked(settings)
    return client


def _unchecked(settings: Settings) -> ConfigurationError:
    return ConfigurationError(
        f"{settings.shown}: this version of nats-py cannot be kept from telling secrets to a server that does not "
        "encrypt; install one that omniq-nats was tested with: pip install 'nats-py>=2.16,<2.17'"
    )


def _way(settings: Settings) -> dict[str, Any]:
    """Return the client's arguments for the way that the URL's scheme names."""
    schemes = {server.partition(":")[0] for server in settings.servers}
    if not schemes & {"ws", "wss"}:
        return {}
    # The client would not say before the time is up that it lacks this.
    importlib.import_module("aiohttp")

    def choose(servers: list[Server], info: dict[str, Any]) -> tuple[Server | None, float]:
        # A cluster's servers tell of each other, and the client takes their addresses for such as have no WebSocket.
        ours = [server for server in servers if server.uri.scheme in schemes]
        return random.choice(ours), random.uniform(0.05, 0.25)

    return {"reconnect_to_server_handler": choose}


def _lacking(settings: Settings, error: ImportError) -> ConfigurationError:
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    mend = f"pip install 'omniq-nats[{extra}]'" if extra else f"pip install {package}"
    return ConfigurationError(f"{settings.shown}: the NATS client needs the package {package} for that: {mend}")
