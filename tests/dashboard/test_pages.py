"""What pages show, as a browser gets it: why a task does not run, flows as pictures, and very many queues."""

from __future__ import annotations

import re

from omniq import Limit, TaskQueue, each
from tests.dashboard.support import client_of


async def test_a_task_that_waits_says_why(queue: TaskQueue) -> None:
    @queue.task(name="send", queue="mail")
    async def send() -> None: ...

    await queue.aput_limit(Limit(queue="mail", concurrency=1))
    first, second = await send.aenqueue(), await send.aenqueue()
    async with client_of(queue) as client:
        assert "o worker is alive" in (await client.get("/task", params={"id": first.id})).text
        storage = (await queue.connections.current()).storage
        assert len(await storage.claim({"mail": 9}, worker="w", lease=60)) == 1
        told = (await client.get("/task", params={"id": second.id})).text
        assert "is at its concurrency: 1 of at most 1 run" in told


async def test_a_flow_is_a_picture_of_boxes_that_lead_to_its_tasks(queue: TaskQueue) -> None:
    @queue.task(name="count")
    async def count(n: int) -> int:
        return n

    @queue.task(name="add")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    handle = await queue.aenqueue_flow(each(count, range(7)).then(add))
    storage = (await queue.connections.current()).storage
    assert len(await storage.claim({"default": 2}, worker="w", lease=60)) == 2
    flow = (await queue.arecord(handle.id)).flow
    async with client_of(queue) as client:
        for path, own in ((f"/flow?id={flow}", 0), (f"/task?id={handle.id}", 1)):
            picture = (await client.get(path)).text.partition('<svg class="flow"')[2].partition("</svg>")[0]
            assert picture.count('class="edge"') == 1
            assert "<title>count: 2 running, 5 ready</title>" in picture
            assert "<title>add: 1 blocked</title>" in picture
            assert picture.count('class="box own"') == own
            for link in re.findall(r'<a href="([^"]+)"', picture):
                assert (await client.get(link)).status_code == 200


async def test_a_thousand_queues_are_shown_a_hundred_at_a_time(queue: TaskQueue) -> None:
    @queue.task(name="job")
    async def job() -> None: ...

    calls = [job.using(queue=f"tenant-{n:04}").call() for n in range(1_000)]
    await queue.aenqueue_many([*calls, *calls[700:701]])
    async with client_of(queue) as client:
        overview = (await client.get("/")).text
        assert overview.count("<tr data-key=") == 10
        assert "All 1,000 queues" in overview
        first = (await client.get("/queues")).text
        assert re.findall(r'<tr data-key="([^"]+)">', first) == [f"tenant-{n:04}" for n in range(100)]
        last = (await client.get("/queues?page=10")).text
        assert re.findall(r'<tr data-key="([^"]+)">', last) == [f"tenant-{n:04}" for n in range(900, 1_000)]
        busiest = (await client.get("/queues?sort=ready")).text
        assert re.findall(r'<tr data-key="([^"]+)">', busiest)[:2] == ["tenant-0700", "tenant-0000"]
        assert (await client.get("/queues?q=-07")).text.count("<tr data-key=") == 100
