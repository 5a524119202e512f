"""The servers of a run, as the runner sees them: each is started when the first measurement needs it, and is new.

Every measurement has a place of its own there, which is removed after it: a database of Redis or PostgreSQL, streams
of NATS.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

from tests.servers.base import HOST, Server

__all__ = ["Hosts", "Place", "ServerMissing"]

DATABASES = 16
"""How many a Redis server has."""


class ServerMissing(Exception):
    """A server cannot be started; the text says why."""


@frozen
class Place:
    """Where one measurement keeps its tasks."""

    url: str
    name: str
    monitor: str = ""


class Host(ABC):
    """The server of one store."""

    server: Server

    @abstractmethod
    def version(self) -> str:
        """Return the server's name and version."""

    @abstractmethod
    def make(self, number: int) -> Place:
        """Make an empty place."""

    @abstractmethod
    def remove(self, place: Place) -> None:
        """Remove what was put there."""


class RedisHost(Host):
    """Redis, or else Valkey: without append-only file, with the snapshots of its default configuration."""

    def __init__(self, folder: Path) -> None:
        from tests.servers.redis import RedisServer

        self.server = self._redis = RedisServer(folder, config={"save": "3600 1 300 100 60 10000"})

    def version(self) -> str:
        told = self._redis.info("server")
        return f"Valkey {told['valkey_version']}" if "valkey_version" in told else f"Redis {told['redis_version']}"

    def make(self, number: int) -> Place:
        url = f"{self.server.url.removesuffix('/0')}/{number % DATABASES}"
        place = Place(url, f"bench{number:05}")
        self.remove(place)
        return place

    def remove(self, place: Place) -> None:
        from redis import Redis

        with Redis.from_url(place.url) as client:
            client.flushdb()


class PostgresHost(Host):
    """PostgreSQL as it comes, ``fsync`` on."""

    def __init__(self, folder: Path) -> None:
        from tests.servers.postgres import PostgresServer

        self.server = PostgresServer(folder)

    def version(self) -> str:
        (row,) = self._run("SHOW server_version")
        return f"PostgreSQL {str(row).split()[0]}"

    def make(self, number: int) -> Place:
        name = f"bench{number:05}"
        self._run(f"CREATE DATABASE {name}")
        address, _, _ = self.server.url.rpartition("/")
        return Place(f"{address}/{name}", name)

    def remove(self, place: Place) -> None:
        self._run(f"DROP DATABASE {place.name} WITH (FORCE)")

    def _run(self, statement: str) -> tuple[object, ...]:
        import psycopg

        with psycopg.connect(self.server.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return (cursor.fetchone() or ()) if cursor.description else ()


class NatsHost(Host):
    """nats-server with JetStream in files."""

    def __init__(self, folder: Path) -> None:
        from tests.servers.nats import NatsServer

        self.server = self._nats = NatsServer(folder)

    def version(self) -> str:
        return f"nats-server {self._nats.ask('varz')['version']}"

    def make(self, number: int) -> Place:
        return Place(self.server.url, f"bench{number:05}", f"http://{HOST}:{self._nats.monitor}")

    def remove(self, place: Place) -> None:
        asyncio.run(self._delete_streams(place.name))

    async def _delete_streams(self, name: str) -> None:
        import nats

        client = await nats.connect(self.server.url)
        try:
            jetstream = client.jetstream()
            for stream in await jetstream.streams_info():
                if name in str(stream.config):
                    await jetstream.delete_stream(str(stream.config.name))
        finally:
            await client.close()


class Hosts:
    """All servers of a run; they stop when the context ends."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="omniq-bench-servers-"))
        # A server may have to run as somebody else.
        self._folder.chmod(0o755)
        self._hosts: dict[str, Host] = {}
        self._made = 0

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, *error: object) -> None:
        for host in self._hosts.values():
            host.server.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, store: str) -> str:
        """Start the server of a store.

        :return: its name and version.
        :raises ServerMissing: if it cannot be started.
        """
        try:
            host = KINDS[store](self._folder)
            host.server.start()
            self._hosts[store] = host
            return host.version()
        # What skips a test where the program is missing is no Exception.
        except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:
            raise ServerMissing(str(error)) from error

    def make(self, store: str) -> Place | None:
        """Make an empty place for a measurement; None where the store needs no server."""
        if store not in self._hosts:
            return None
        self._made += 1
        return self._hosts[store].make(self._made)

    def remove(self, store: str, place: Place) -> None:
        """Remove what a measurement left. What cannot be removed at once is in nobody's way."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._hosts[store].remove(place)


KINDS: dict[str, Callable[[Path], Host]] = {"redis": RedisHost, "postgres": PostgresHost, "nats": NatsHost}
