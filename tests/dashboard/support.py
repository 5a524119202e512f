"""Dashboards, in this process and in one of their own, and what asks them things without a browser."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from omniq import TaskQueue
from omniq.dashboard import EVERYTHING, Dashboard, Permission, Visitor
from omniq.storage.ids import new_id
from tests.servers.starting import make_server

__all__ = ["SAME_ORIGIN", "STORES", "Client", "client_of", "served", "url_on"]

STORES = [
    "memory",
    *(pytest.param(store, marks=pytest.mark.long) for store in ("sqlite", "files", "redis", "postgres", "nats")),
]

_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+")
_TOKEN = re.compile(r'name="form_token" value="([^"]+)"')
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


@contextlib.contextmanager
def url_on(store: str, folder: Path) -> Iterator[str]:
    """Yield the URL of a store that is empty.

    :param store: one of :data:`STORES`.
    """
    urls = {"memory": f"memory://{new_id()}", "sqlite": f"sqlite:///{folder}/jobs.db", "files": f"file://{folder}/jobs"}
    if store in urls:
        yield urls[store]
    else:
        with make_server(store, folder) as server:
            yield server.url


class Client(httpx.AsyncClient):
    """Asks a dashboard as a browser would: keeps its cookies, and sends forms from its own pages."""

    async def token(self) -> str:
        found = _TOKEN.search((await self.get("/queues")).text)
        if found is None:  # a page without a form has no token; the cookie is set all the same
            token = self.cookies.get("omniq_form")
            assert token is not None
            return token
        return found[1]

    async def send_form(
        self, path: str, fields: Mapping[str, Any], headers: Mapping[str, str] = SAME_ORIGIN
    ) -> httpx.Response:
        return await self.post(path, data={"form_token": await self.token(), **fields}, headers=headers)


def client_of(
    queue: TaskQueue, may: Collection[Permission | str] = EVERYTHING, *, app: Any = None, base: str = "http://localhost"
) -> Client:
    """Return a client of a dashboard of a queue, whose visitor has some permissions."""
    made = app or Dashboard(queue, access=lambda request: Visitor(name="ada", may=may))
    return Client(transport=httpx.ASGITransport(made), base_url=base)


@contextlib.contextmanager
def served(command: Sequence[str | Path], **options: Any) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Yield the process of a command that serves a dashboard, and a client that has come in with its token."""
    arguments = [*command, "--http", "127.0.0.1:0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout is not None
        try:
            found = next((found for line in process.stdout if (found := _ADDRESS.search(line))), None)
            assert found is not None
            base = found[0].partition("/?")[0]
            with httpx.Client(base_url=base, timeout=60, follow_redirects=True) as client:
                assert client.get(found[0]).status_code == 200
                yield process, client
        finally:
            if process.poll() is None:
                process.kill()
