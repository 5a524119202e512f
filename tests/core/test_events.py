"""The event hooks: who is told of what, where, and that a hook which fails changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from omniq import Every, Fixed, StorageUnavailable, TaskFailed, TaskState, acting_as, current_task, hookimpl
from omniq.hookspecs import EVENT_HOOKS
from omniq.plugins import Plugins
from omniq.schedule import Schedule
from omniq.task import Failed, NewTask, Outcome, StoredTask, Succeeded, Task, TaskError
from omniq.testing import await_until, wait_until
from tests.core.running import MakeQueue, working

LEASE = 3  # a heartbeat a second, of which two may be late on a loaded machine


class Listener:
    """Notes every event, and then fails if it is told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.heard: list[tuple[str, Mapping[str, Any]]] = []
        self.beats: list[tuple[str, float, Exception | None]] = []
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
    def omniq_task_released(
        self, task: Task, worker: str, seconds: float, delay: float, error: TaskError | None
    ) -> None:
        self.note("released", task=task, worker=worker, seconds=seconds, delay=delay, error=error)

    @hookimpl
    def omniq_lease_lost(self, task: Task, worker: str) -> None:
        self.note("lease lost", task=task, worker=worker)

    @hookimpl
    def omniq_outcome_refused(self, task: Task, worker: str, outcome: Outcome) -> None:
        self.note("outcome refused", task=task, worker=worker, outcome=outcome)

    @hookimpl
    def omniq_schedule_fired(self, schedule: Schedule, tasks: Sequence[NewTask], worker: str) -> None:
        self.note("schedule fired", schedule=schedule, tasks=tasks, worker=worker)

    @hookimpl
    def omniq_worker_heartbeat(self, worker: str, seconds: float, error: Exception | None) -> None:
        self.beats.append((worker, seconds, error))
        if self.failure is not None:
            raise self.failure

    @hookimpl
    def omniq_action_taken(self, action: str, targets: Sequence[str], done: int, actor: str | None) -> None:
        self.note("action", action=action, targets=targets, done=done, actor=actor)

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
        await asyncio.sleep(0.01)  # the seconds that are told
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
    async with queue.worker(lease=LEASE):
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


async def test_whoever_listens_is_told_of_a_task_that_went_back(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener
) -> None:
    queue, producer = make_queue(plugins=plugins), make_queue()

    @queue.task
    async def hold() -> None:
        await asyncio.Event().wait()

    @producer.task
    async def unknown() -> None: ...

    held, put_back = await hold.aenqueue(), await unknown.aenqueue()
    async with queue.worker(grace=0) as worker:
        await await_until(lambda: listener.of("started") and listener.of("released"))

    told = {details["task"].id: details for details in listener.of("released")}
    assert {details["worker"] for details in told.values()} == {worker.id}
    assert (told[held.id]["delay"], told[held.id]["error"]) == (0, None)
    assert told[held.id]["seconds"] > 0
    assert told[put_back.id]["delay"] > 0
    assert told[put_back.id]["error"].type == "UnknownTask"
    await producer.aclose()


async def test_whoever_listens_is_told_of_a_lease_that_was_lost_and_of_the_outcome_that_was_refused(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener
) -> None:
    queue = make_queue(plugins=plugins)
    over = asyncio.Event()

    @queue.task
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await over.wait()
        return "too late"

    handle = await stubborn.aenqueue()
    async with queue.worker(lease=LEASE) as worker:
        await await_until(lambda: listener.of("started"))
        storage = (await queue.connections.current()).storage
        (task,) = await storage.get([handle.id])
        assert task is not None
        # Somebody else ends this delivery: what this worker says of it afterwards comes too late.
        await storage.finish([Failed(id=task.id, delivery=task.delivery, error=TaskError(type="E", message="m"))])
        await await_until(lambda: listener.of("lease lost"))
        over.set()
        await await_until(lambda: listener.of("outcome refused"))

    assert {(d["task"].id, d["worker"]) for d in listener.of("lease lost")} == {(handle.id, worker.id)}
    (refused,) = listener.of("outcome refused")
    assert (refused["task"].id, refused["worker"]) == (handle.id, worker.id)
    assert isinstance(refused["outcome"], Succeeded)


async def test_whoever_listens_is_told_of_a_schedule_that_fired_and_of_its_task(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener
) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task(unique="one at a time")
    async def hold() -> None:
        await asyncio.Event().wait()

    await queue.aschedule(hold.call(), Every(0.05), id="often", misfire="all")
    async with queue.worker(grace=0) as worker:
        await await_until(lambda: len(listener.of("schedule fired")) > 1)

    first, second = listener.of("schedule fired")[:2]
    assert first["worker"] == worker.id
    assert first["schedule"].id == "often"
    assert first["schedule"].last_run is not None
    ids = [task.id for task in first["tasks"]]
    assert [details["task"].id for details in listener.of("enqueued")] == ids[:1]
    assert len(ids) == 1
    assert second["tasks"] == []  # its task was not stored: a live one has the key
    assert listener.names().index("enqueued") < listener.names().index("schedule fired")


async def test_whoever_listens_is_told_of_each_heartbeat_and_why_one_failed(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue(plugins=plugins)
    async with queue.worker(lease=LEASE) as worker:
        await await_until(lambda: listener.beats)

        async def fail(*_: Any) -> Any:
            raise StorageUnavailable("gone")

        with monkeypatch.context() as patched:
            patched.setattr(type(queue.connections.sibling()), "heartbeat", fail)
            await await_until(lambda: listener.beats[-1][2] is not None)
        await await_until(lambda: listener.beats[-1][2] is None)

    assert {name for name, _, _ in listener.beats} == {worker.id}
    assert all(seconds >= 0 for _, seconds, _ in listener.beats)
    assert "gone" in {str(error) for _, _, error in listener.beats}


@pytest.mark.parametrize("form", ["blocking", "in a coroutine"])
def test_whoever_listens_is_told_who_did_what(
    make_queue: MakeQueue, plugins: Plugins, listener: Listener, form: str
) -> None:
    queue = make_queue(plugins=plugins)

    @queue.task
    def note() -> None: ...

    first, second = queue.enqueue_many([note.call(), note.call()])
    steps: list[tuple[str, Sequence[Any], Mapping[str, Any]]] = [
        ("cancel", [first.id], {}),
        ("cancel", [first.id], {}),
        ("retry", [first.id], {}),
        ("run_now", [first.id], {}),
        ("delete", [first.id], {}),
        ("pause", ["default"], {}),
        ("resume", ["default"], {}),
        ("purge", ["default"], {}),
        ("schedule", [note.call(), Every(3600)], {"id": "hourly"}),
        ("pause_schedule", ["hourly"], {}),
        ("resume_schedule", ["hourly"], {}),
        ("trigger_schedule", ["hourly"], {}),
        ("delete_schedule", ["hourly"], {}),
    ]

    async def act() -> None:
        for method, arguments, options in steps:
            await getattr(queue, f"a{method}")(*arguments, **options)

    with acting_as("someone else"), acting_as("ada"):
        if form == "blocking":
            for method, arguments, options in steps:
                getattr(queue, method)(*arguments, **options)
        else:
            asyncio.run(act())
    queue.cancel(second.id)

    told = [(d["action"], *d["targets"], d["done"], d["actor"]) for d in listener.of("action")]
    targets = [*[first.id] * 5, *["default"] * 3, *["hourly"] * 5]
    done = [1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert told == [
        *((step[0], target, count, "ada") for step, target, count in zip(steps, targets, done, strict=True)),
        ("cancel", second.id, 0, None),  # it was purged; nobody said who asked
    ]


@pytest.mark.parametrize("actor", ["", "x" * 501, None, 7])
def test_an_actor_is_a_short_text(actor: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="the actor must"), acting_as(actor):
        pass
