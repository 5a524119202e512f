"""What a server says about itself while a measurement goes on: how much it was asked, how much it holds.

Runs in the environment of the contender. What it asks itself is not counted.
"""

from __future__ import annotations

import importlib
import json
import urllib.request
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tests.bench.job import Job
from tests.bench.resp import Connection

__all__ = ["Probe"]

QUIET = 0.2
"""Seconds without another line after which there are no more."""


class Probe:
    """A look at the server of a measurement.

    :param job: the measurement.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._monitor: Connection | None = None
        self._before = 0

    def begin(self) -> None:
        """Count requests from now on."""
        if self._job.store == "redis":
            # The server's own counters hold what scripts do as well.
            self._monitor = Connection(self._job.url)
            self._monitor.ask("MONITOR")
        self._before = self._count()

    def requests(self) -> int:
        """Return how many there were since then: commands from clients, transactions of this database, or messages."""
        if self._monitor is not None:
            with self._monitor as monitor:
                return sum(b" lua] " not in line for line in monitor.lines(QUIET))
        return self._count() - self._before

    def _count(self) -> int:
        if self._job.store == "postgres":
            return _transactions(self._job.url)
        if self._job.store == "nats":
            with urllib.request.urlopen(f"{self._job.monitor}/varz") as answer:
                return int(json.load(answer)["in_msgs"])
        return 0

    def bytes_held(self) -> int:
        """Return how much memory the server has in use; 0 where it does not keep all in memory."""
        if self._job.store != "redis":
            return 0
        with Connection(self._job.url) as connection:
            return int(connection.info("memory")["used_memory"])


def _transactions(url: str) -> int:
    psycopg: Any = importlib.import_module("psycopg")
    parts = urlsplit(url)
    with psycopg.connect(urlunsplit(parts._replace(path="/postgres"))) as connection:
        (count,) = connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", (parts.path.strip("/"),)
        ).fetchone()
        return int(count)
