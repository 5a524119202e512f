"""The server sends neither bodies nor results to a bare list."""

from __future__ import annotations

import asyncio

import pytest

from omniq.storage import TaskQuery
from omniq.task import Succeeded, TaskState
from tests.postgres.support import new_task, opened
from tests.servers.postgres import PostgresServer
from tests.servers.proxy import Proxy, _Pass

SIZE, NUMBER = 900_000, 20


class Counter(_Pass):
    """Passes everything on, and counts what the server answers."""

    def __init__(self) -> None:
        self.answered = 0

    async def carry(self, link: object, data: bytes, *, answer: bool) -> None:
        self.answered += len(data) if answer else 0
        await super().carry(link, data, answer=answer)  # type: ignore[arg-type]  # as a mode is given it


@pytest.mark.parametrize("states", [None, [TaskState.SUCCEEDED]])
def test_a_bare_page_of_large_tasks_is_small(
    server: PostgresServer, storage_url: str, states: list[TaskState] | None
) -> None:
    async def scenario(proxied: str, proxy: Proxy) -> None:
        large = b"x" * SIZE
        async with opened(storage_url) as store:
            await store.enqueue([new_task(body=large) for _ in range(NUMBER)])
            tasks = await store.claim({"q": NUMBER}, worker="w", lease=600)
            await store.finish([Succeeded(id=task.id, delivery=task.delivery, result=large) for task in tasks])
        async with opened(proxied) as store:
            proxy.mode = counter = Counter()
            page = await store.list_tasks(TaskQuery(bare=True, states=states))
            assert [(task.omitted.body, task.omitted.result) for task in page if task.omitted] == [
                (SIZE, SIZE)
            ] * NUMBER
            assert counter.answered < 1_000_000, "of 36 MB"

    with Proxy(server.port) as proxy:
        asyncio.run(scenario(storage_url.replace(f":{server.port}", f":{proxy.port}"), proxy))
