"""The web applications of docs/examples: a real web server, a real worker, one store between."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from attrs import frozen

from omniq.testing import wait_until
from tests.docs.pages import DOCS
from tests.fork_server import Popen

__all__ = ["EXAMPLES", "KINDS", "TIME", "Shop", "client_of", "environment", "opened", "started"]

EXAMPLES = DOCS / "examples"
TIME = 100.0
"""Seconds after which something hangs: the child process imports everything anew, on a machine that may be busy."""
KINDS = ["loop", "thread", "process"]
"""Where tasks of the shops run."""


@frozen
class Shop:
    """A shop that is open."""

    folder: Path
    client: httpx.Client
    worker: int
    """The process of the worker."""

    def order(self, kind: str, article: str, **headers: str) -> dict[str, Any]:
        """Order something, and return how the order ended.

        :param kind: one of :data:`KINDS`.
        """
        answer = self.client.post(f"/orders/{kind}", params={"article": article}, headers=headers)
        assert answer.status_code == 202
        return self.ended(answer.json()["id"])

    def ended(self, task_id: str) -> dict[str, Any]:
        """Return how an order ended."""

        def look() -> dict[str, Any] | None:
            order: dict[str, Any] = self.client.get(f"/orders/{task_id}").raise_for_status().json()
            return order if order["state"] in ("succeeded", "failed") else None

        order = wait_until(look, TIME, "the end of the order")
        assert order is not None
        return order

    @property
    def log(self) -> str:
        """What the worker has said."""
        return (self.folder / "worker.log").read_text(encoding="utf-8")


def environment(example: str, **more: str) -> dict[str, str]:
    """Return the environment of an example's processes."""
    foreign = ("OMNIQ", "SHOP", "DJANGO", "FLASK", "SENTRY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "PYTHONPATH": str(EXAMPLES / example), "PYTHONUNBUFFERED": "1", **more}


@contextmanager
def started(
    folder: Path, name: str, environ: dict[str, str], words: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m`` with some words, until the end of the block.

    :param folder: where it runs, and writes what it says: into a file ``NAME.log``.
    """
    with (folder / f"{name}.log").open("wb") as log:
        process = Popen([sys.executable, "-m", *words], cwd=folder, env=environ, stderr=log, stdout=log)
    try:
        yield process
        process.terminate()
        process.wait(TIME)
    finally:
        process.kill()
        process.wait()


def client_of(server: subprocess.Popen[bytes], log: Path) -> httpx.Client:
    """Return a client of a web server, when that has said where it listens."""

    def address() -> str | None:
        said = log.read_text(encoding="utf-8")
        assert server.poll() is None, said
        found = re.search(r"[Rr]unning on (http://127\.0\.0\.1:\d+)", said)
        return found and found[1]

    return httpx.Client(base_url=wait_until(address, TIME, "the web server") or "", timeout=TIME)


@contextmanager
def opened(
    example: str, folder: Path, *, worker: Sequence[str], server: Sequence[str], **environ: str
) -> Iterator[Shop]:
    """Have a shop open, and its worker end well when it closes.

    :param worker: the words behind ``python -m`` that start one.
    :param server: those that start the web server.
    """
    known = environment(example, **environ)
    with (
        started(folder, "worker", known, worker) as working,
        started(folder, "server", known, server) as serving,
        client_of(serving, folder / "server.log") as client,
    ):
        yield Shop(folder, client, working.pid)
    assert working.returncode == 0, (folder / "worker.log").read_text(encoding="utf-8")
