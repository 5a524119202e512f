"""What the tests of export and import have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest
from attrs import evolve

from omniq._client.moving import Moved, export_from, import_into
from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.testing.contract.adopting import of_all_kinds
from omniq.testing.contract.flows import end_one, fan_in, member, new_flow
from omniq.testing.contract.steps import FAR, new_schedule, new_task

__all__ = ["bring", "export", "fill", "opened", "without_first"]


@asynccontextmanager
async def opened(*urls: str) -> AsyncIterator[list[Storage]]:
    """Open storages; without URLs two in memory."""
    async with AsyncExitStack() as stack:
        storages = []
        for url in urls or (f"memory://{new_id()}", f"memory://{new_id()}"):
            storage = default_plugins().open_storage(parse_url(url))
            await storage.open()
            stack.push_async_callback(storage.close)
            storages.append(storage)
        yield storages


async def fill(store: Storage) -> None:
    """Store something of everything that can be moved."""
    await of_all_kinds(store)
    flow = new_flow(2, unique="nightly")
    tasks = [member(flow, feeds=[0]), member(flow, feeds=[0]), member(flow, 0, [1]), member(flow, 1)]
    await store.enqueue([evolve(task, queue="flows") for task in tasks], flow)
    await end_one(store, queue="flows")
    failed, _, _ = await fan_in(store, queue="others", last_queue="others")
    await end_one(store, "failed", queue="others")
    await store.settle(1000)
    assert failed.gates
    await store.pause("retry")
    await store.pause("an empty one")
    await store.put_schedule(new_schedule("one", paused=True, declared=True, apps=("shop:queue",), last_run=FAR))
    await store.put_schedule(new_schedule("two", task=new_task(run_at=timedelta(seconds=3), body=bytes(range(256)))))


async def export(store: Storage, **options: bool) -> list[bytes]:
    """Return the lines of an export."""
    texts: list[str] = []
    await export_from(store, "here", texts.append, texts.append, **{"as_ready": False, **options})
    return "".join(texts).encode().splitlines(keepends=True)


async def bring(store: Storage, lines: Iterable[bytes], refuse: Callable[[str], object] = pytest.fail) -> Moved:
    """Import lines, all of which are to be stored unless they are there."""
    return await import_into(store, lines, refuse, partial=False)


def without_first(lines: Sequence[bytes]) -> list[bytes]:
    """Return what two exports of the same have in common: not when they were made."""
    return list(lines[1:])
