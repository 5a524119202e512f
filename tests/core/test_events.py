"""The event hooks: who is told of what, where, and that a hook which fails changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from omniq import Fixed, TaskFailed, TaskState, current_task, hookimpl
from omniq.hookspecs import EVENT_HOOKS
from omniq.plugins import Plugins
from omniq.schedule import Schedule
from omniq.task import NewTask, StoredTask, Task, TaskError
from omniq.testing import await_until, wait_until
from tests.core.running import MakeQueue, working


class Listener:
    """Notes every event, and then fails if it is told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.heard: list[tuple[str, Mapping[str, Any]]] = []
        self.failure = failure

    def note(self, event: str, **details: Any) -> None:
        self.heard.append((event, details))
        if self.failure is not None:
            raise self.failure

    def of(self, event: str) -> list[Mapping[str, Any]]:
        return [details for name, details in list(self.heard) if name == event]

    def names(self) -> list[str]:
        return [name for name, _ in list(self.heard)]

    @hookimpl
    def omniq_task_enqueued(self, task: NewTask) -> None:
        self.note("enqueued", task=task)

    @hookimpl
    def omniq_task_started(self, task: Task, worker: str) -> None:
        self.note("started", task=task, worker=worker)

    @hookimpl
    def omniq_task_succeeded(self, task: Task, worker: str, seconds: float) -> None:
        self.note("succeeded", task=task, worker=worker, seconds=seconds)

    @hookimpl
    def omniq_task_failed(self, task: Task, worker: str, seconds: float, error: TaskError) -> None:
        self.note("failed", task=task, worker=worker, seconds=seconds, error=error)

    @hookimpl
    def omniq_task_retrying(self, task: Task, worker: str, seconds: float, error: TaskError, delay: float) -> None:
        self.note("retrying", task=task, worker=worker, seconds=seconds, error=error, delay=delay)

    @hookimpl
    def omniq_task_cancelled(self, task: Task, worker: str, seconds: float) -> None:
        self.note("cancelled", task=task, worker=worker, seconds=seconds)

    @hookimpl
    def omniq_task_recovered(self, task: Task, worker: str) -> None:
        self.note("recovered", task=task, worker=worker)

    @hookimpl
    def omniq_task_rejected(self, task: Task, worker: str, reason: str) -> None:
        self.note("rejected", task=task, worker=worker, reason=reason)

    @hookimpl
    def omniq_schedule_rejected(self, schedule: Schedule, worker: str, reason: str) -> None:
        self.note("schedule rejected", schedule=schedule, worker=worker, reason=reason)

    @hookimpl
    def omniq_worker_started(self, worker: str, queues: Sequence[str]) -> None:
        self.note("worker started", worker=worker, queues=queues)

    @hookimpl
    def omniq_worker_stopped(self, worker: str) -> None:
        self.note("worker stopped", worker=worker)


@pytest.fixture(params=["quiet", "failing"])
def listener(request: pytest.FixtureRequest) -> Listener:
    return Listener(ZeroDivisionError("in the hook") if request.param == "failing" else None)


@pytest.fixture
def plugins(listener: Listener) -> Plugins:
    plugins = Plugins()
    plugins.register(listener, name="listener")
    return plugins


def test_every_event_is_listened_to_here() -> None:
    assert {name for name in vars(Listener) if name.startswith("omniq_")} == set(EVENT_HOOKS)


def test_whoever_listens_is_told_of_a_tasks_way(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task(max_retries=1, retry=Fixed(0))
    async def work(n: int) -> int:
        await asyncio.sleep(0.01)
        if current_task().attempt == 1 or n == 0:
            raise ValueError(f"not {n}")
        return n

    good, bad = queue.enqueue_many([work.call(1), work.call(0)])
    assert [details["task"].id for details in listener.of("enqueued")] == [good.id, bad.id]

    with working(queue, queues=["default"]) as worker:
        assert good.result(30) == 1
        with pytest.raises(TaskFailed, match="not 0"):
            bad.result(30)
        wait_until(lambda: listener.of("succeeded") and listener.of("failed"))

    assert {details["worker"] for name, details in listener.heard if name != "enqueued"} == {worker.id}
    assert listener.of("worker started")[0]["queues"] == ("default",)
    assert listener.names()[-1] == "worker stopped"
    assert sorted(details["task"].id for details in listener.of("started")) == sorted([good.id, bad.id] * 2)
    assert [details["task"].attempt for details in listener.of("started")] == [1, 1, 2, 2]
    assert {details["task"].id for details in listener.of("retrying")} == {good.id, bad.id}
    retrying = listener.of("retrying")[0]
    assert (retrying["error"].type, retrying["delay"]) == ("ValueError", 0)
    assert retrying["seconds"] >= 0.01
    (succeeded,) = listener.of("succeeded")
    assert succeeded["task"].id == good.id
    assert succeeded["seconds"] >= 0.01
    (failed,) = listener.of("failed")
    assert failed["task"].id == bad.id
    assert failed["error"].message == "not 0"
    complaints = [record for record in caplog.records if "in the hook" in (record.exc_text or "")]
    assert bool(complaints) == (listener.failure is not None)
    assert all(record.levelno == logging.ERROR for record in complaints)


@pytest.mark.parametrize("form", ["one", "one in a coroutine", "many"])
def test_the_producer_hears_of_each_task_once_it_is_stored(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener, form: str
) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task(unique="only")
    def note() -> None: ...

    def enqueue() -> str:
        if form == "one":
            return note.enqueue().id
        if form == "many":
            return queue.enqueue_many([note.call()])[0].id
        return asyncio.run(note.aenqueue()).id

    task_id = enqueue()
    assert enqueue() == task_id  # the second was not stored

    assert [details["task"].id for details in listener.of("enqueued")] == [task_id]


async def test_whoever_listens_is_told_of_a_cancelled_task(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener
) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task
    async def hold() -> None:
        await asyncio.Event().wait()

    handle = await hold.aenqueue()
    async with queue.worker(lease=1.5):
        await await_until(lambda: listener.of("started"))
        await handle.acancel()
        await await_until(lambda: listener.of("cancelled"))

    (cancelled,) = listener.of("cancelled")
    assert cancelled["task"].id == handle.id
    assert cancelled["seconds"] > 0


async def test_whoever_listens_is_told_of_a_task_that_was_taken_back(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener
) -> None:
    queue, dead = make_queue(plugins=plugins), make_queue()

    @queue.task
    async def note() -> None: ...

    handle = await note.aenqueue()
    storage = (await dead.connections.current()).storage
    (task,) = await storage.claim({"default": 1}, worker="the dead one", lease=0.01)
    await await_until(_lapsed(storage, task))

    async with queue.worker(recover_every=0.05) as worker:
        await handle.aresult(30)
        await await_until(lambda: listener.of("recovered"))

    (recovered,) = listener.of("recovered")
    assert recovered["worker"] == worker.id
    assert (recovered["task"].id, recovered["task"].worker) == (handle.id, "the dead one")
    assert recovered["task"].state is TaskState.READY
    await dead.aclose()


def _lapsed(storage: Any, task: StoredTask) -> Any:
    async def lapsed() -> bool:
        now = await storage.now()
        return bool(task.lease_until is not None and now > task.lease_until)

    return lapsed


def test_whoever_listens_is_told_of_an_unknown_task_that_failed(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniq._worker.releasing.PUT_BACK_LIMIT", 0)
    producer, consumer = make_queue(), make_queue(plugins=plugins)

    @producer.task
    def unknown() -> None: ...

    handle = unknown.enqueue()
    with working(consumer):
        wait_until(lambda: listener.of("failed"))

    (failed,) = listener.of("failed")
    assert failed["task"].id == handle.id
    assert "UnknownTask" in failed["error"].type
    assert listener.of("started") == []
