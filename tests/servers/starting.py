"""Servers by the name of their kind, with the settings under which they keep what they have acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers.base import Server

__all__ = ["KINDS", "MOSTLY_LONG", "make_server"]

KINDS = ("redis", "postgres", "nats")
MOSTLY_LONG = [KINDS[0], *(pytest.param(kind, marks=pytest.mark.long) for kind in KINDS[1:])]
"""The same for tests that cost much: every day on the server that costs least, on the others in the long run."""


def make_server(kind: str, folder: Path) -> Server:
    """Return a server that is not started yet.

    :param kind: one of :data:`KINDS`.
    :param folder: for its data and its log.
    """
    # Each brings its driver with it.
    match kind:
        case "redis":
            from tests.servers.redis import RedisServer

            return RedisServer(folder, appendonly=True, appendfsync="always")
        case "postgres":
            from tests.servers.postgres import PostgresServer

            return PostgresServer(folder)
        case "nats":
            from tests.servers.nats import NatsServer

            return NatsServer(folder)
    raise ValueError(f"no server is called {kind!r}; there are {', '.join(KINDS)}")
