"""Where the store of a fault test is, and what must be known of each kind of store to break it and to judge it."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from omniq.plugins import default_plugins
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.testing import wait_until
from tests.faults import traces
from tests.servers.base import Server
from tests.servers.proxy import Proxy
from tests.servers.starting import KINDS, make_server

__all__ = [
    "LOCAL",
    "SERVERS",
    "FileStage",
    "ServerStage",
    "Servers",
    "SqliteStage",
    "Stage",
    "hold_flows",
    "seed_of_this_run",
]

LOCAL = ("sqlite", "file")
"""The stores without a server."""
SERVERS = KINDS
"""The stores with one."""
IMPATIENT: Mapping[str, Mapping[str, str]] = {
    "redis": {"timeout": "2", "connect_timeout": "2", "retry_for": "3"},
    "postgres": {"timeout": "3"},
    "nats": {"timeout": "2"},
}
"""Options with which clients learn within seconds that a server does not answer, so that tests need not wait long."""


_URLS: Mapping[str, str] = {
    "sqlite": "sqlite:///jobs.db",
    "file": "file:///jobs",
    "redis": "redis://127.0.0.1/0",
    "postgres": "postgresql://127.0.0.1/omniq",
    "nats": "nats://127.0.0.1",
}
"""Of a store of each kind that is never opened."""


def hold_flows(*kinds: Any) -> list[Any]:
    """Return those of some kinds of stores, with or without marks, that hold flows."""
    plugins = default_plugins()
    names = [kind if isinstance(kind, str) else kind.values[0] for kind in kinds]
    limits = [plugins.open_storage(parse_url(_URLS[name])).limits for name in names]
    return [kind for kind, one in zip(kinds, limits, strict=True) if one.flows]


def seed_of_this_run() -> int:
    """Return the seed of everything that a test does at random, and print it: how to repeat a failure."""
    seed = int(os.environ.get("OMNIQ_SEED", time.time_ns() % 1_000_000))
    print(f"OMNIQ_SEED={seed}")
    return seed


class Stage(ABC):
    """One store, for one test.

    :param url: of the store, by the way that nothing disturbs.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def disturbed_url(self) -> str:
        """The store's URL by the way that is disturbed, if this test disturbs one."""
        return self.url

    def can_be_written(self) -> bool:
        """Say whether nobody keeps the others from writing at the moment."""
        return True

    @abstractmethod
    def leftovers(self) -> dict[str, int]:
        """Return what the store still holds once every task was removed and every worker has ended (I8).

        :return: how many rows, keys, messages or files, by where they are.
        """


class SqliteStage(Stage):
    """A database.

    :param folder: where.
    :param options: of the URL.
    """

    def __init__(self, folder: Path, options: str = "") -> None:
        self.database = folder / "jobs.db"
        super().__init__(f"sqlite:///{self.database}{options}")

    def can_be_written(self) -> bool:
        # A process that is stopped within a commit holds SQLite's lock.
        connection = sqlite3.connect(self.database, timeout=0.5, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError:
            return False
        finally:
            connection.close()
        return True

    def leftovers(self) -> dict[str, int]:
        return traces.of_sqlite(self.database)


class FileStage(Stage):
    """A folder.

    :param folder: where.
    """

    def __init__(self, folder: Path) -> None:
        self.store = folder / "jobs"
        super().__init__(f"file://{self.store}")

    def can_be_written(self) -> bool:
        # The same of the store's own lock.
        return traces.is_unlocked(self.store / "omniq" / "lock")

    def leftovers(self) -> dict[str, int]:
        return traces.of_files(self.store / "omniq")


class ServerStage(Stage):
    """A namespace of its own on a server, reached directly and through a proxy.

    :param kind: ``redis``, ``postgres`` or ``nats``.
    :param server: one that was started before.
    :param proxy: to that server.
    """

    def __init__(self, kind: str, server: Server, proxy: Proxy) -> None:
        self.kind = kind
        self.server = server
        self.proxy = proxy
        self.namespace = f"faults-{new_id()[-12:]}"
        if server.process is None or server.process.poll() is not None:  # a test that failed has left it dead
            server.kill()
            self.start_server()
        super().__init__(self.url_of())

    @property
    def disturbed_url(self) -> str:
        return self.disturbed_url_of()

    def url_of(self, part: str = "", *, patient: bool = False) -> str:
        """Return the URL of another namespace of this test.

        :param patient: with the timeouts that users get who say nothing.
        """
        options = {} if patient else IMPATIENT[self.kind]
        query = urlencode({"namespace": f"{self.namespace}{part and '-'}{part}", **options})
        return f"{self.server.url}{'&' if '?' in self.server.url else '?'}{query}"

    def disturbed_url_of(self, part: str = "", *, patient: bool = False) -> str:
        """Return the same by way of the proxy."""
        return self.url_of(part, patient=patient).replace(f":{self.server.port}", f":{self.proxy.port}", 1)

    def start_server(self) -> None:
        """Start the server again, on the data that it had."""
        self.server.start()

    def suspend_server(self) -> None:
        """Stop the server in the middle of whatever it does, and return once all of its processes stand still."""
        self.server.suspend()
        wait_until(lambda: set(_states(self.server)) == {"T"}, what="the server to stand still")

    def leftovers(self) -> dict[str, int]:
        return traces.OF_SERVERS[self.kind](self.server.url, self.namespace)


def _states(server: Server) -> Iterator[str]:
    """Yield the states of a server's process and of its children."""
    assert server.process is not None
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if server.process.pid in (int(stat.parent.name), int(parent)):
                yield state


class Servers:
    """The servers of one test process: one of a kind, started when it is first asked for.

    :param make_folder: gives a new folder by name.
    """

    def __init__(self, make_folder: Callable[[str], Path]) -> None:
        self._make_folder = make_folder
        self._servers: dict[str, Server] = {}
        self._started = contextlib.ExitStack()

    def get(self, kind: str) -> Server:
        """Return a server that runs."""
        server = self._servers.get(kind)
        if server is None:
            server = make_server(kind, self._make_folder(kind))
            self._servers[kind] = self._started.enter_context(server)
        return server

    def close(self) -> None:
        """End all of them."""
        self._started.close()
