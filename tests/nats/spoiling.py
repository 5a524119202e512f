"""How single messages of a store are read and written by their subjects: with NATS' own client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import nats
from nats.js.errors import NotFoundError

from omniq.testing.contract.spoiling import Value
from omniq_nats.names import Names

__all__ = ["SpoiledMessages"]

T = TypeVar("T")


def _limit(names: Names, limit_id: str) -> str:
    kind, _, name = limit_id.partition(":")
    return names.limit(name) if kind == "queue" else names.limit(name=name)


class SpoiledMessages:
    """Reads and writes the messages of a namespace, see :class:`omniq.testing.contract.Spoil`.

    Batches and pages of results must be of one task each: what is damaged is a message, with all that is in it.

    :param url: of the server.
    :param namespace: of the store.
    """

    def __init__(self, url: str, namespace: str) -> None:
        self.url = url
        self.names = Names(namespace)
        self._runner = asyncio.Runner()
        self._client: Any = None

    def close(self) -> None:
        """Disconnect."""
        self.do(self._close())
        self._runner.close()

    async def _close(self) -> None:
        if self._client is not None:
            await self._client.close()
            await asyncio.sleep(0)  # in the next turn of the loop its socket is closed

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something on the client's event loop."""
        return self._runner.run(work)

    def read(self, kind: str, name: str) -> Mapping[str, Value]:
        return self.do(self._read(kind, name))

    def write(self, kind: str, name: str, place: str, value: Value) -> bool:
        return isinstance(value, bytes) and self.do(self._write(kind, name, place, value))

    async def stream(self) -> Any:
        """Return what the messages are read and written with."""
        if self._client is None:
            self._client = await nats.connect(self.url)
        return self._client.jetstream()

    async def last(self, subject: str) -> Any:
        """Return the message on a subject, which may have wildcards; None if there is none."""
        try:
            return await (await self.stream()).get_last_msg(self.names.stream, subject)
        except NotFoundError:
            return None

    async def subjects(self, kind: str, name: str) -> Mapping[str, str]:
        """Return the subjects of a record's messages by their places."""
        names = self.names
        known: dict[str, Callable[[], dict[str, str]]] = {
            "schedule": lambda: {"message": names.schedule(name)},
            "worker": lambda: {"message": names.worker(name), "about": names.about(name)},
            "queue": lambda: {"message": names.queue_state(name)},
            "unique": lambda: {"message": names.key(name)},
            "limit": lambda: {"message": _limit(names, name)},
        }
        if kind in known:
            return known[kind]()
        batch = await self.last(names.anywhere(name)) if kind in ("task", "result") else None
        if batch is None:
            return {}
        if kind == "task":
            return {"message": batch.subject}
        queue, line, sort, token = batch.subject.rsplit(".", 4)[1:]
        ttl = json.loads(batch.data.partition(b"\n")[0])["ttl"]
        return {"message": names.results(queue, ttl, f"{line}-{sort}-{token}", batch.seq)}

    async def _read(self, kind: str, name: str) -> Mapping[str, Value]:
        found = {}
        for place, subject in (await self.subjects(kind, name)).items():
            message = await self.last(subject)
            if message is not None:
                found[place] = message.data
        return found

    async def _write(self, kind: str, name: str, place: str, value: bytes) -> bool:
        subjects = await self.subjects(kind, name)
        if place not in subjects:
            return False
        await (await self.stream()).publish(subjects[place], value)
        return True
