"""Results of a batch share a page; each is read alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from omniq.storage import Storage
from omniq.storage.corrupt_records import is_corrupt
from omniq.task import Succeeded, TaskState
from omniq.testing import await_until
from omniq_nats.results import read_page
from omniq_nats.storage import NatsStorage
from omniq_nats.transport import Stored, Write
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer

STATE, DELIVERY = 0, 1
"""Where these stand in an end record."""


async def _succeed(storage: NatsStorage, number: int) -> None:
    """Claim so many tasks and finish them; return once their results are on their page."""
    tasks = await storage.claim({"work": number}, worker="w", lease=600)
    assert len(tasks) == number
    await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in tasks])
    assert storage._opened is not None
    store = storage._opened.state_store

    async def is_on_its_page() -> bool:
        # A change of the queue takes from its state what is on pages by then.
        await storage.pause("work")
        await storage.resume("work")
        return not (await store.read(["work"]))["work"].pending

    await await_until(is_on_its_page)


async def _page(storage: NatsStorage) -> Stored:
    assert storage._opened is not None
    transport = storage._opened.transport
    (page,) = await transport.last_all(transport.settings.names.results_of("work"))
    return page


async def _row(storage: NatsStorage, task_id: str) -> Any:
    """Return what is stored of how a task ended."""
    return next(row for row in json.loads((await _page(storage)).data)[2] if row[1] == task_id)


async def _damage(storage: NatsStorage, task_id: str, place: int = DELIVERY, value: str = "no delivery") -> None:
    page = await _page(storage)
    assert any(known == task_id for known, _, _ in read_page(page).end_records.values())
    content = json.loads(page.data)
    next(row for row in content[2] if row[1] == task_id)[2][place] = value
    assert storage._opened is not None
    await storage._opened.transport.publish(Write(page.subject, json.dumps(content).encode(), expected=page.seq))


async def _is_shown_damaged(storage: Storage, task_id: str) -> bool:
    (shown,) = await storage.get([task_id])
    return shown is not None and is_corrupt(shown)


async def test_a_result_that_cannot_be_read_hides_no_other_of_its_page(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        ids = [one.id for one in await storage.enqueue([task() for _ in range(3)])]
        await _succeed(storage, 3)
        await _damage(storage, ids[1])
    async with opened(url) as storage:
        first, _, last = await storage.get(ids)
        assert [one and one.state for one in (first, last)] == [TaskState.SUCCEEDED] * 2
        assert await _is_shown_damaged(storage, ids[1])


async def test_a_result_that_cannot_be_read_is_removed_only_when_it_is_meant(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        ids = [one.id for one in await storage.enqueue([task() for _ in range(3)])]
        await _succeed(storage, 3)
        await _damage(storage, ids[1])
        assert await storage.prune(10) == 0
        assert await storage.purge("work", TaskState.FAILED) == 0
        assert await storage.purge("work", TaskState.SUCCEEDED) == 2
        assert await _is_shown_damaged(storage, ids[1])
        assert await storage.purge("work") == 1
        assert await storage.get(ids) == [None] * 3


@pytest.mark.parametrize(("place", "value"), [(DELIVERY, "no delivery"), (STATE, TaskState.FAILED)])
async def test_a_queue_goes_on_after_a_damaged_result_is_deleted(
    nats_server: NatsServer, place: int, value: str
) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        ids = [one.id for one in await storage.enqueue([task() for _ in range(3)])]
        await _succeed(storage, 3)
        await _damage(storage, ids[1], place, value)
        assert await storage.delete([ids[1]]) == [True]
    async with opened(url) as storage:
        assert await storage.check() == []
        (stats,) = await storage.stats()
        assert stats.counts[TaskState.SUCCEEDED] >= 2
        assert stats.counts[TaskState.FAILED] == 0
        (added,) = await storage.enqueue([task()])
        assert [one.id for one in await storage.claim({"work": 1}, worker="w", lease=600)] == [added.id]


async def test_a_damaged_result_stays_as_it_is_while_others_of_its_page_come_and_go(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        ids = [one.id for one in await storage.enqueue([task() for _ in range(3)])]
        await _succeed(storage, 2)
        await _damage(storage, ids[1])
        damaged = await _row(storage, ids[1])
        await _succeed(storage, 1)
        assert await _row(storage, ids[2])
        assert await _row(storage, ids[1]) == damaged
        assert await storage.delete([ids[0]]) == [True]
        assert await _row(storage, ids[1]) == damaged
        assert await storage.retry([ids[1]]) == [False]
        assert await storage.claim({"work": 1}, worker="w", lease=600) == []
    async with opened(url) as storage:
        assert await _is_shown_damaged(storage, ids[1])
