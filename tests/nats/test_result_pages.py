"""Results of a batch share a page; each is read alone."""

from __future__ import annotations

import json

from omniq.storage.validation import is_corrupt
from omniq.task import Succeeded, TaskState
from omniq.testing import await_until
from omniq_nats.results import read_page
from omniq_nats.transport import Write
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer


async def test_a_result_that_cannot_be_read_hides_no_other_of_its_page(nats_server: NatsServer) -> None:
    url = fresh(nats_server.url)
    async with opened(url) as storage:
        ids = [one.id for one in await storage.enqueue([task() for _ in range(3)])]
        tasks = await storage.claim({"work": 3}, worker="w", lease=600)
        await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in tasks])
        assert storage._opened is not None
        store, transport = storage._opened.state_store, storage._opened.transport

        async def is_on_its_page() -> bool:
            # A change of the queue takes from its state what is on pages by then.
            await storage.pause("work")
            await storage.resume("work")
            return not (await store.read(["work"]))["work"].pending

        await await_until(is_on_its_page)
        (page,) = await transport.last_all(transport.settings.names.results_of("work"))
        number = next(number for number, (task_id, _, _) in read_page(page).end_records.items() if task_id == ids[1])
        content = json.loads(page.data)
        next(row for row in content[2] if row[0] == number)[2][1] = "no delivery"
        await transport.publish(Write(page.subject, json.dumps(content).encode(), expected=page.seq))
    async with opened(url) as storage:
        first, damaged, last = await storage.get(ids)
        assert [one and one.state for one in (first, last)] == [TaskState.SUCCEEDED] * 2
        assert damaged is not None
        assert is_corrupt(damaged)
