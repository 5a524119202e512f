"""An attacker who can publish whatever they like into a NATS store: it harms nothing but what they have written.

They use NATS' own client, and nothing of OmniQ's but its subjects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from omniq import TaskQueue, TaskState
from omniq.errors import CorruptRecord
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.task import NewTask, Succeeded
from omniq_nats.names import Names
from omniq_nats.storage import NatsStorage
from omniq_nats.task_batches import VERSION
from tests.nats.spoiling import SpoiledMessages
from tests.nats.support import make
from tests.servers.nats import NatsServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        yield server


class Attack:
    """A queue, and somebody who can write to its stream.

    :param server: of the store.
    """

    def __init__(self, server: NatsServer) -> None:
        self.namespace = f"t{new_id()[-12:]}"
        self.url = f"{server.url}?namespace={self.namespace}"
        self.names = Names(self.namespace)
        self.messages = SpoiledMessages(server.url, self.namespace)

    def publish(self, subject: str, data: bytes) -> None:
        """Store a message, whatever is there."""

        async def publish() -> None:
            await (await self.messages.stream()).publish(subject, data)

        self.messages.do(publish())

    def copy(self, source: str, target: str) -> None:
        """Store what is on one subject on another one, too."""

        async def copy() -> None:
            message = await self.messages.last(source)
            await (await self.messages.stream()).publish(target, message.data)

        self.messages.do(copy())

    def order(self, task_id: str, line: str = "p0", **fields: Any) -> None:
        """Store a task with something of what is said of it changed."""
        row = {
            "id": task_id, "priority": 0, "run_at": None, "expires": None, "unique": None, "number": 0,
            "name": "double", "max_retries": 0, "tags": [], "size": 0, **fields,
        }  # fmt: skip
        batch = {"v": VERSION, "queue": "default", "at": 1, "ttl": 60.0, "behind": 0, "nonce": "n"}
        told = json.dumps({**batch, "tasks": [list(row.values())]})
        self.publish(self.names.batch("default", f"{line}-s-{task_id}"), told.encode() + b"\n")

    def storage(self, use: Callable[[Storage], Awaitable[None]]) -> None:
        """Do something with a storage on the store."""

        async def run() -> None:
            storage = make(self.url)
            await storage.open()
            try:
                await use(storage)
            finally:
                await storage.close()

        asyncio.run(run())


@pytest.fixture
def attack(server: NatsServer) -> Iterator[Attack]:
    attack = Attack(server)
    yield attack
    attack.messages.close()


def make_queue(url: str) -> TaskQueue:
    queue = TaskQueue(url)

    @queue.task(name="double", max_retries=0)
    def double(number: int) -> int:
        return 2 * number

    return queue


@pytest.fixture
def queue(attack: Attack) -> Iterator[TaskQueue]:
    with make_queue(attack.url) as queue:
        yield queue


@contextlib.contextmanager
def working(attack: Attack) -> Iterator[None]:
    """Run a worker of the same queue on a thread of its own."""
    stop = threading.Event()

    async def serve() -> None:
        async with make_queue(attack.url) as queue, queue.worker():
            await asyncio.to_thread(stop.wait)

    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(lambda: asyncio.run(serve()))
        try:
            yield
        finally:
            stop.set()
        worker.result()


def test_tasks_that_cannot_be_read_cost_no_other_its_run(attack: Attack, queue: TaskQueue) -> None:
    double = queue.functions["double"]
    handles = [double.enqueue(0), queue.enqueue_many([double.call(1), double.call(2)])[0]]
    attack.publish(attack.names.batch("default", "p0-s-nothing"), b"\xff")
    attack.publish(attack.names.batch("default", "p0-s-deep"), b"[" * 100_000)
    attack.publish(attack.names.batch("default", "p0-g-several"), b"{}")
    attack.order("past", run_at=10**30)
    attack.order("late", line="d", run_at=10**30)
    attack.order("expired", line="d", expires="x")
    attack.order("named", name=[])
    attack.order("larger", size=10**9)
    attack.order("called", id=handles[0].id)
    handles += [double.enqueue(3), *queue.enqueue_many([double.call(4), double.call(5)])]

    with working(attack):
        assert [handle.result(timeout=60) for handle in handles] == [0, 2, 6, 8, 10]

    bad = {"nothing", "deep", "past", "late", "expired", "named", "larger", "called"}
    shown = {task.id: task for task in queue.tasks()}
    assert bad < shown.keys()
    for name in bad:
        task = queue.get(name)
        assert task is not None
        assert task == shown[name]
        assert (task.state, task.error and task.error.type) == (TaskState.FAILED, "CorruptRecord")
        assert not queue.cancel(name)
        assert not queue.retry(name)

    async def are_named(storage: Storage) -> None:
        found = [finding.message for finding in await storage.check()]
        for name in bad:
            assert any(message.endswith(f"omniq tasks delete {name}") for message in found), (name, found)

    attack.storage(are_named)
    assert all(queue.delete(name) for name in bad)
    assert not any(queue.get(name) for name in bad)


def test_of_several_tasks_in_a_message_that_cannot_be_read_each_is_shown(attack: Attack, queue: TaskQueue) -> None:
    names, double = attack.names, queue.functions["double"]
    double.enqueue(0)
    attack.publish(names.batch("default", "p0-g-several"), b"torn")
    for number, name in enumerate(["one", "two"]):
        attack.publish(names.guard("default", "p0", name), f"p0-g-several {number}".encode())
    attack.publish(names.guard("default", "p0", "three"), b"\xff")

    with working(attack):
        assert double.enqueue(5).result(timeout=60) == 10
    bad = [task for task in queue.tasks() if task.state is TaskState.FAILED]
    assert sorted(task.id for task in bad) == ["one", "two"]
    for name in ("one", "two", "three"):
        task = queue.get(name)
        assert task is not None
        assert task.error is not None
        assert task.error.type == "CorruptRecord"

    async def is_taken(storage: Storage) -> None:
        (answer,) = await storage.enqueue([NewTask(id="one", queue="default", name="double", body=b"[]")])
        assert (answer.id, answer.created) == ("one", False)

    attack.storage(is_taken)
    assert all(queue.delete(name) for name in ("one", "two", "three"))
    assert not any(queue.get(name) for name in ("one", "two", "three"))


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"{}", b'{"v":99}', b"[" * 100_000])
def test_the_record_of_a_queue_that_cannot_be_read_stops_no_other_queue(
    attack: Attack, queue: TaskQueue, data: bytes
) -> None:
    double = queue.functions["double"]
    double.using(queue="other").enqueue(0)
    attack.publish(attack.names.queue_state("other"), data)
    attack.publish(attack.names.queue_state("unheard of"), data)

    with working(attack):
        assert double.enqueue(4).result(timeout=60) == 8
    assert [stats.queue for stats in queue.stats()] == ["default"]
    with pytest.raises(CorruptRecord, match="queue 'other'"):
        queue.pause("other")

    async def are_named(storage: Storage) -> None:
        found = [finding.message for finding in await storage.check()]
        assert any("queue 'other'" in message for message in found)
        assert any("queue 'unheard of'" in message for message in found)
        assert await storage.claim({"other": 5}, worker="w", lease=9) == []

    attack.storage(are_named)


def test_a_message_that_holds_another_task_gives_nothing_of_it_away(attack: Attack) -> None:
    async def scenario(storage: Storage) -> None:
        secret, mine = (NewTask(id=name, queue="work", name="f", body=b"[]") for name in ("secret", "mine"))
        await storage.enqueue([secret])
        (task,) = await storage.claim({"work": 1}, worker="w", lease=60)
        assert await storage.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"of the secret")]) == [True]
        await storage.enqueue([mine])

    async def check(storage: Storage) -> None:
        (mine,) = await storage.get(["mine"])
        assert mine is not None
        assert (mine.id, mine.state, mine.result_payload) == ("mine", TaskState.FAILED, None)
        assert await storage.cancel(["mine"]) == [False]
        assert await storage.retry(["mine"]) == [False]
        assert await storage.delete(["mine"]) == [True]
        (secret,) = await storage.get(["secret"])
        assert secret is not None
        assert secret.result_payload == b"of the secret"

    attack.storage(scenario)
    attack.copy(attack.names.anywhere("secret"), attack.names.batch("work", "p0-s-mine"))
    attack.storage(check)


def test_a_result_that_stands_where_anothers_should_be_is_not_taken_for_it(attack: Attack) -> None:
    async def scenario(storage: Storage) -> None:
        assert isinstance(storage, NatsStorage)
        assert storage._opened is not None
        ids = ["mine"]
        while True:
            await storage.enqueue([NewTask(id=ids[-1], queue="work", name="f", body=b"[]")])
            (task,) = await storage.claim({"work": 1}, worker="w", lease=60)
            assert await storage.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"mine")]) == [True]
            # It stands in its queue's record, too, until a change finds it on its page.
            if "mine" not in (await storage._opened.state_store.read(["work"]))["work"].pending:
                return
            ids.append(new_id())

    async def check(storage: Storage) -> None:
        (task,) = await storage.get(["mine"])
        assert task is not None
        assert (task.state, task.error and task.error.type, task.result_payload) == (
            TaskState.FAILED,
            "CorruptRecord",
            None,
        )

    attack.storage(scenario)

    async def rename() -> None:
        page = await attack.messages.last(attack.names.results_of("work"))
        changed = page.data.replace(b'"mine"', b'"yours"', 1)
        assert changed != page.data
        await (await attack.messages.stream()).publish(page.subject, changed)

    attack.messages.do(rename())
    attack.storage(check)
