"""A dashboard of a queue in memory, and what asks it things without a browser."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import httpx

from omniq import TaskQueue
from omniq.dashboard import EVERYTHING, Dashboard, Permission, Visitor

__all__ = ["SAME_ORIGIN", "Client", "client_of"]

_TOKEN = re.compile(r'name="form_token" value="([^"]+)"')
SAME_ORIGIN = {"sec-fetch-site": "same-origin"}


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
