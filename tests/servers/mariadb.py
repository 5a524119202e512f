"""MariaDB, started by the tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pymysql
import pytest
import trustme

from tests.servers.base import HOST, Server, find_binary

__all__ = ["MariaDbServer"]

FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/opt/homebrew/bin")
# The system gets what is written, and need not have it on the disk.
_QUICK = ("--innodb-flush-method=nosync", "--skip-innodb-doublewrite", "--skip-sync-frm")


class MariaDbServer(Server):
    """One MariaDB server that also speaks TLS. What it acknowledged survives its end, and not the machine's.

    Where there is no MariaDB, the test is skipped; in CI it fails.

    :param folder: for its data and its log.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        programs = [find_binary([name], FOLDERS) for name in ("mariadbd", "mariadb-install-db")]
        if None in programs:
            reason = "no MariaDB: install Debian's mariadb-server, or the like"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)  # on a laptop without the server
        self.program, self.installer = map(str, programs)
        self.ca = folder / "ca.pem"
        self._key = folder / "server.pem"
        self.data = folder / f"mariadb-{self.port}"
        # A server that starts removes temporary tables of whatever server from the folder for them.
        self._options = ["--no-defaults", f"--datadir={self.data}", f"--tmpdir={folder}"]
        if os.geteuid() == 0:
            self._options.append("--user=root")

    @property
    def url(self) -> str:
        return f"mysql://root@{HOST}:{self.port}"

    def command(self) -> list[str]:
        network = [f"--bind-address={HOST}", f"--port={self.port}"]
        # Relative to the data, as a socket's path must be short. Small, as the machine has other things to hold.
        files = ["--socket=mariadb.sock", f"--pid-file={self.data}/pid", "--innodb-buffer-pool-size=64M"]
        keys = [f"--ssl-cert={self._key}", f"--ssl-key={self._key}"]
        return [self.program, *self._options, *network, *files, *_QUICK, *keys]

    def start(self, timeout: float = 60) -> None:
        if not self.data.exists():
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self.ca))
            authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(self._key))
            normal = ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
            with self.log.open("ab") as log:
                subprocess.run(
                    [self.installer, *self._options, *normal],
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        super().start(timeout)

    def is_ready(self) -> bool:
        try:
            self.execute("SELECT 1")
        except pymysql.OperationalError:
            return False
        return True

    def execute(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements as the superuser; return the rows of the last."""
        connection = pymysql.connect(host=HOST, port=self.port, user="root", autocommit=True, connect_timeout=5)
        with connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())
