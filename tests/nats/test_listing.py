"""Lists look at no more than they are to."""

from __future__ import annotations

from datetime import timedelta

import pytest

from omniq.storage import TaskQuery
from omniq_nats import listing
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer


async def test_tasks_of_another_name_count_as_looked_at(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await storage.enqueue([task() for _ in range(5)])
        page = await storage.list_tasks(TaskQuery(name="nothing", look_at=2))
        assert page.tasks == ()
        assert page.cursor is not None
        page = await storage.list_tasks(TaskQuery(name="nothing", look_at=5))
        assert (page.tasks, page.cursor) == ((), None)


async def test_what_was_enqueued_before_a_time_is_found_wherever_it_is(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CLOCK_SLACK", timedelta(0))
    monkeypatch.setattr(listing, "PLACES", 1)
    async with opened(fresh(nats_server.url)) as storage:
        ids = []
        for _ in range(12):
            (answer,) = await storage.enqueue([task()])
            ids.append(answer.id)
        times = [one.created_at for one in await storage.get(ids) if one is not None]
        for place, moment in enumerate(times):
            page = await storage.list_tasks(TaskQuery(enqueued_before=moment))
            assert [one.id for one in page] == ids[: times.index(moment)][::-1], place
