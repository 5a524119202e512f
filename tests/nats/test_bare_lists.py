"""Large bodies and results are kept apart from what a bare list shows, and the servers do not send them to it."""

from __future__ import annotations

import pytest

from omniq.storage import TaskQuery
from omniq.task import Failed, Omitted, StoredTask, Succeeded, TaskError, TaskState
from omniq_nats.storage import NatsStorage
from omniq_nats.task_batches import LARGE_BODY
from omniq_nats.transport import Transport
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer
from tests.servers.proxy import Proxy, _Pass

SIZE, NUMBER = 900_000, 20
LARGE = b"x" * (LARGE_BODY + 1)


class Counter(_Pass):
    """Passes everything on, and counts what the server answers."""

    def __init__(self) -> None:
        self.answered = 0

    async def carry(self, link: object, data: bytes, *, answer: bool) -> None:
        self.answered += len(data) if answer else 0
        await super().carry(link, data, answer=answer)  # type: ignore[arg-type]  # as a mode is given it


def transport_of(storage: NatsStorage) -> Transport:
    assert storage._opened is not None
    return storage._opened.transport


async def bodies(storage: NatsStorage) -> list[str]:
    """Return the subjects of all bodies that are kept apart."""
    transport = transport_of(storage)
    return [one.subject for one in await transport.last_all(transport.settings.names.bodies)]


@pytest.mark.parametrize("states", [None, [TaskState.SUCCEEDED]])
async def test_a_bare_page_of_large_tasks_is_small(nats_server: NatsServer, states: list[TaskState] | None) -> None:
    large = b"x" * SIZE
    url = fresh(nats_server.url)
    with Proxy(nats_server.port) as proxy:
        async with opened(url) as storage:
            await storage.enqueue([task(body=large) for _ in range(NUMBER)])
            tasks = await storage.claim({"work": NUMBER}, worker="w", lease=600)
            assert [one.body for one in tasks] == [large] * NUMBER
            await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=large) for one in tasks])
        async with opened(url.replace(f":{nats_server.port}", f":{proxy.port}")) as storage:
            proxy.mode = counter = Counter()
            page = await storage.list_tasks(TaskQuery(bare=True, states=states))
            assert [one.omitted for one in page] == [Omitted(body=SIZE, result=SIZE)] * NUMBER
            assert counter.answered < 1_000_000, "of 36 MB"


async def test_a_bare_page_tells_why_a_task_failed_and_how_long_the_traceback_is(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        errors = [
            TaskError(type="ValueError", message="short", traceback="é" * 10_000),
            TaskError(type="ValueError", message="m" * 10_000, traceback="t" * 10_000),
        ]
        await storage.enqueue([task(body=LARGE), task()])
        tasks = await storage.claim({"work": 2}, worker="w", lease=600)
        told = [Failed(id=one.id, delivery=one.delivery, error=error) for one, error in zip(tasks, errors, strict=True)]
        assert await storage.finish(told) == [True, True]
        found = await storage.list_tasks(TaskQuery(bare=True, states=[TaskState.FAILED]))
        by_id = {one.id: one for one in found}
        for one, error, size in zip(tasks, errors, [20_000, 10_000], strict=True):
            shown = by_id[one.id]
            assert shown.error == TaskError(type=error.type, message=error.message)
            assert shown.omitted == Omitted(body=len(one.body), traceback=size)
        assert {one.id: one.error for one in await storage.list_tasks(TaskQuery())} == dict(
            zip([one.id for one in tasks], errors, strict=True)
        )


@pytest.mark.parametrize("together", [True, False])
async def test_large_tasks_among_small_ones_are_claimed_in_order_and_listed(
    nats_server: NatsServer, together: bool
) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        tasks = [task(body=LARGE if number % 3 == 1 else b"%d" % number) for number in range(12)]
        if together:
            await storage.enqueue(tasks)
        else:
            for one in tasks:
                await storage.enqueue([one])
        ids = [one.id for one in tasks]
        listed: list[StoredTask] = []
        cursor = None
        while len(listed) < len(tasks):
            page = await storage.list_tasks(TaskQuery(limit=5), cursor)
            listed, cursor = [*listed, *page], page.cursor
        assert cursor is None
        assert [(one.id, one.body) for one in listed] == [(one.id, one.body) for one in reversed(tasks)]
        claimed = await storage.claim({"work": 12}, worker="w", lease=600)
        assert [(one.id, one.body) for one in claimed] == [(one.id, one.body) for one in tasks]
        assert [one and one.body for one in await storage.get(ids)] == [one.body for one in tasks]


async def test_the_body_of_a_task_goes_with_it(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        tasks = [task(body=LARGE) for _ in range(3)]
        await storage.enqueue(tasks)
        assert len(await bodies(storage)) == 3
        assert await storage.delete([tasks[0].id]) == [True]
        assert len(await bodies(storage)) == 2
        # One that is enqueued again under its id has its own body.
        await storage.enqueue([task(id=tasks[0].id, body=LARGE + b"again")])
        (again,) = await storage.get([tasks[0].id])
        assert again is not None
        assert again.body == LARGE + b"again"
        assert await storage.purge("work") == 3
        assert await bodies(storage) == []


async def test_a_task_whose_body_is_gone_fails_and_says_so(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        lost, kept = task(body=LARGE), task(body=LARGE)
        await storage.enqueue([lost, kept])
        transport = transport_of(storage)
        await transport.purge(transport.settings.names.body(lost.id))
        # A call that meets it among others hands out these.
        assert [one.id for one in await storage.claim({"work": 2}, worker="w", lease=600)] == [kept.id]
        found, other = await storage.get([lost.id, kept.id])
        assert found is not None
        assert found.state is TaskState.FAILED
        assert found.error is not None
        assert "its body is not there" in found.error.message
        assert other is not None
        assert other.body == LARGE


async def test_a_page_of_large_results_is_whole_though_the_servers_send_it_in_parts(nats_server: NatsServer) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await storage.enqueue([task(body=LARGE) for _ in range(12)])
        tasks = await storage.claim({"work": 12}, worker="w", lease=600)
        results = {one.id: b"%d" % number * SIZE for number, one in enumerate(tasks[:10])}
        await storage.finish(
            [Succeeded(id=one.id, delivery=one.delivery, result=results[one.id]) for one in tasks[:10]]
        )
        found = await storage.get([one.id for one in tasks])
        assert [one and one.result_payload for one in found] == [*results.values(), None, None]
