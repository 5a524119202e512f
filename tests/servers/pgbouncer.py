"""PgBouncer, started by the tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.servers.base import HOST, Server, find_binary
from tests.servers.postgres import PostgresServer, other_user

__all__ = ["PgBouncer"]


class PgBouncer(Server):
    """A proxy that gives a server connection for the time of one transaction, or of one connection of a client's.

    Where it is not installed, the test is skipped; in CI it fails.

    :param folder: for the log.
    :param behind: the server that it leads to.
    :param mode: ``transaction`` or ``session``.
    :param size: how many connections of the server it uses at most.
    :param more: more lines of its settings.
    """

    def __init__(
        self, folder: Path, behind: PostgresServer, *, mode: str = "transaction", size: int = 10, more: str = ""
    ) -> None:
        super().__init__(folder)
        found = find_binary(["pgbouncer"], ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"])
        if found is None:
            reason = "no pgbouncer: install it, such as by the system's package of that name"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)  # on a laptop without the program
        self.binary: Path = found
        self.behind = behind
        self.mode, self.size, self.more = mode, size, more
        self.user = other_user()
        self.settings = Path(tempfile.mkdtemp(prefix="omniq-pgbouncer-"))

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    def options(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user, "cwd": "/"}

    def command(self) -> list[str]:
        return [str(self.binary), "-q", str(self.settings / "pgbouncer.ini")]

    def start(self, timeout: float = 30) -> None:
        ini = self.settings / "pgbouncer.ini"
        ini.write_text(
            f"""
[databases]
postgres = host={HOST} port={self.behind.port} user=postgres dbname=postgres
[pgbouncer]
listen_addr = {HOST}
listen_port = {self.port}
unix_socket_dir =
auth_type = any
pool_mode = {self.mode}
default_pool_size = {self.size}
max_client_conn = 200
{self.more}
"""
        )
        if self.user is not None:
            shutil.chown(self.settings, self.user)
            shutil.chown(ini, self.user)
        super().start(timeout)

    def is_ready(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        shutil.rmtree(self.settings, ignore_errors=True)
