"""An attacker who can publish whatever they like into a NATS store: it harms nothing but what they have written.

They use NATS' own client, and nothing of OmniQ's but its subjects.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from omniq import TaskQueue, TaskState
from omniq.errors import CorruptRecord
from omniq.storage import Lease, LeaseState, Storage
from omniq.storage.ids import new_id
from omniq.task import Cancelled, Failed, NewTask, Outcome, Released, Retry, Succeeded, TaskError
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

    def purge(self, subject: str) -> None:
        """Remove a message."""
        self.messages.do(self.purge_subject(subject))

    async def purge_subject(self, subject: str) -> None:
        await (await self.messages.stream()).purge_stream(self.names.stream, subject=subject)

    def spoil_state(self, queue: str, data: bytes | None) -> None:
        """Store something in place of a queue's record; None: remove it."""
        subject = self.names.queue_state(queue)
        if data is None:
            self.purge(subject)
        else:
            self.publish(subject, data)

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


def new_task(task_id: str, **options: Any) -> NewTask:
    return NewTask(id=task_id, queue="work", name="f", body=b"[]", max_retries=3, **options)


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


NEWER = b'{"v":99}'
TORN = [b"", b"\xff\x00", b"{}", b'{"v":2}', b"[" * 100_000]
QUEUE_OF_ALL = ("done", "failed", "waits", "later", "cancelled", "again", "retried", "runs", "ready")


@pytest.mark.parametrize("data", [*TORN, NEWER])
def test_the_record_of_a_queue_that_cannot_be_read_stops_no_other_queue(
    attack: Attack, queue: TaskQueue, data: bytes
) -> None:
    double = queue.functions["double"]
    double.using(queue="other").enqueue(0)
    # Its subject is not the one of any queue's record, though it reads as that of the queue that is to go on.
    attack.publish(attack.names.queue_state("default").replace("default", "=64efault"), data)
    attack.publish(attack.names.queue_state("other"), data)
    attack.publish(attack.names.queue_state("unheard of"), data)

    async def are_named(storage: Storage) -> None:
        found = [finding.message for finding in await storage.check()]
        for name in ("'other'", "'unheard of'", "'=64efault'"):
            (message,) = [message for message in found if f"queue {name}" in message]
            assert ("update it" if data == NEWER else "makes it anew") in message

    attack.storage(are_named)
    with working(attack):
        assert double.enqueue(4).result(timeout=60) == 8
    assert [stats.counts[TaskState.SUCCEEDED] for stats in queue.stats() if stats.queue == "default"] == [1]


def test_the_record_of_a_queue_that_a_newer_version_wrote_is_not_replaced(attack: Attack, queue: TaskQueue) -> None:
    task_id = queue.functions["double"].using(queue="other").enqueue(4).id
    subject = attack.names.queue_state("other")
    attack.publish(subject, NEWER)

    async def stands_still(storage: Storage) -> None:
        assert await storage.recover(10) == []
        assert await storage.claim({"other": 5}, worker="w", lease=9) == []
        with pytest.raises(CorruptRecord, match=r"queue 'other'.*purge that subject"):
            await storage.pause("other")

    async def goes_on(storage: Storage) -> None:
        assert [task.id for task in await storage.claim({"other": 5}, worker="w", lease=9)] == [task_id]

    attack.storage(stands_still)
    attack.purge(subject)
    attack.storage(goes_on)


@pytest.mark.parametrize("data", [*TORN, None])
def test_the_record_of_a_queue_that_cannot_be_read_is_made_anew_from_its_tasks(
    attack: Attack, data: bytes | None
) -> None:
    later = datetime(2101, 1, 1, tzinfo=UTC)
    error = TaskError(type="E", message="of attempt 1")

    async def use(storage: Storage) -> None:
        await storage.enqueue([NewTask(id="unfit", queue="work", name="f", body=b"[]")])
        assert await storage.delete(["unfit"]) == [True]
        ids = [name for name in QUEUE_OF_ALL if name != "later"]
        # One that ended among those of one message, and one that has a message to itself.
        await storage.enqueue([new_task(name) for name in ids if name != "done"])
        await storage.enqueue([new_task("done"), new_task("removed"), new_task("later", run_at=later)])
        claimed = {task.id: task for task in await storage.claim({"work": 10}, worker="w", lease=60)}
        assert len(claimed) == len(ids) + 1
        await storage.enqueue([new_task("untouched"), new_task("untouched, too")])
        told: dict[str, Outcome] = {
            "done": Succeeded(id="done", delivery=1, result=b"of the first"),
            "removed": Succeeded(id="removed", delivery=1, result=b""),
            "failed": Failed(id="failed", delivery=1, error=error),
            "waits": Retry(id="waits", delivery=1, error=error, delay=3600.0),
            "again": Retry(id="again", delivery=1, error=error, delay=0.0),
            "retried": Cancelled(id="retried", delivery=1),
            "cancelled": Cancelled(id="cancelled", delivery=1),
            "ready": Released(id="ready", delivery=1),
        }
        assert all(await storage.finish(list(told.values())))
        assert await storage.retry(["retried"]) == [True]
        assert await storage.delete(["removed"]) == [True]

    async def is_as_it_was(storage: Storage) -> None:
        # Of what is removed by its record, a claim or the end of a task, one that comes too late is refused.
        late = Succeeded(id="runs", delivery=1, result=b"of one that was forgotten")
        assert await storage.finish([late]) == [False]
        assert await storage.heartbeat("w", [Lease("runs", 1)], 60) == [LeaseState.LOST]
        assert await storage.check() == []
        (stats,) = await storage.stats()
        ended = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED
        assert [stats.counts[state] for state in ended] == [1, 1, 1]
        assert (stats.counts[TaskState.SCHEDULED], stats.counts[TaskState.READY]) == (2, 6)
        claimed = await storage.claim({"work": 20}, worker="w", lease=60)
        names = {"again", "retried", "runs", "ready", "untouched", "untouched, too"}
        assert {task.id for task in claimed} == names
        assert all(task.delivery > 1 for task in claimed)
        again = next(task for task in claimed if task.id == "again")
        assert (again.attempt, again.error) == (2, error)
        shown = {name: task for name, task in zip(QUEUE_OF_ALL, await storage.get(QUEUE_OF_ALL), strict=True) if task}
        assert shown.keys() == set(QUEUE_OF_ALL)
        states = {name: shown[name].state for name in ("done", "failed", "cancelled", "waits", "later")}
        assert list(states.values()) == [*ended, TaskState.SCHEDULED, TaskState.SCHEDULED]
        assert (shown["done"].result_payload, shown["failed"].error) == (b"of the first", error)
        assert (shown["waits"].attempt, shown["waits"].error) == (1, error)
        assert await storage.get(["removed", "unfit"]) == [None, None]
        assert await storage.finish([late]) == [False]
        ends = [Succeeded(id=task.id, delivery=task.delivery, result=b"") for task in claimed]
        assert await storage.finish(ends) == [True] * len(ends)
        assert await storage.claim({"work": 20}, worker="w", lease=60) == []

    attack.storage(use)
    attack.spoil_state("work", data)
    attack.storage(is_as_it_was)


def test_a_queue_whose_record_is_made_anew_keeps_its_pause_and_its_producers(attack: Attack) -> None:
    async def check(storage: Storage) -> None:
        await storage.enqueue([new_task("first")])
        (first,) = await storage.claim({"work": 1}, worker="w", lease=60)
        assert await storage.finish([Succeeded(id="first", delivery=first.delivery, result=b"")]) == [True]
        assert await storage.delete(["first"]) == [True]
        assert await storage.pause("work")
        await asyncio.to_thread(attack.spoil_state, "work", b"torn")
        # The producer knows that claims look for its tasks where it stores them: they do.
        assert [one.created for one in await storage.enqueue([new_task("second")])] == [True]
        assert await storage.claim({"work": 1}, worker="w", lease=60) == []
        assert await storage.resume("work")
        await asyncio.to_thread(attack.spoil_state, "work", b"torn again")
        assert [task.id for task in await storage.claim({"work": 1}, worker="w", lease=60)] == ["second"]

    attack.storage(check)


def test_of_a_queues_record_a_line_that_cannot_be_read_costs_no_other_task_its_lease(attack: Attack) -> None:
    async def check(storage: Storage) -> None:
        ids = ["one", "two", "three"]
        await storage.enqueue([new_task(name) for name in ids])
        assert len(await storage.claim({"work": 3}, worker="w", lease=60)) == 3

        async def tear() -> None:
            record = await attack.messages.last(attack.names.queue_state("work"))
            lines = record.data.split(b"\n")
            torn = [b"two [" if line.startswith(b"two ") else line for line in lines]
            assert torn != lines
            await (await attack.messages.stream()).publish(record.subject, b"\n".join(torn))

        await asyncio.to_thread(attack.messages.do, tear())
        leases = [Lease(name, 1) for name in ids]
        assert await storage.heartbeat("w", leases, 60) == [LeaseState.HELD, LeaseState.LOST, LeaseState.HELD]
        (again,) = await storage.claim({"work": 3}, worker="w", lease=60)
        assert (again.id, again.delivery > 1) == ("two", True)

    attack.storage(check)


@pytest.mark.parametrize("data", [b"torn", b"[[],[],[]]", None])
def test_waiting_tasks_of_a_page_that_cannot_be_read_are_not_lost(attack: Attack, data: bytes | None) -> None:
    ids = [f"task {number}" for number in range(100)]

    async def store(storage: Storage) -> None:
        await storage.enqueue([new_task(name, run_at=timedelta(seconds=1)) for name in ids])
        await storage.stats()
        await storage.recover(1)

    async def tear() -> None:
        page = await attack.messages.last(attack.names.overflow)
        assert page is not None
        if data is None:
            await attack.purge_subject(page.subject)
        else:
            await (await attack.messages.stream()).publish(page.subject, data)

    async def all_run(storage: Storage) -> None:
        found = [finding.message for finding in await storage.check()]
        assert data is None or any("waiting tasks" in message and "makes it anew" in message for message in found)
        claimed: set[str] = set()
        deadline = time.monotonic() + 30
        while len(claimed) < len(ids):
            assert time.monotonic() < deadline, f"only {len(claimed)} came"
            some = [task.id for task in await storage.claim({"work": 30}, worker="w", lease=60)]
            assert not claimed.intersection(some)
            claimed.update(some)
            if not some:
                await storage.wait_for_work(["work"], 0.2)
        assert claimed == set(ids)

    attack.storage(store)
    attack.messages.do(tear())
    attack.storage(all_run)


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
