"""``queue.explain``: each reason why a task is not running, met on a real queue; and what it makes of what it read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from omniq import (
    Every,
    Fixed,
    Limit,
    QueueStats,
    Rate,
    Reason,
    ReasonKind,
    Task,
    TaskNotFound,
    TaskQueue,
    TaskState,
    current_task,
)
from omniq._client.explain import explain
from omniq._worker.worker_info import WorkerAbout, WorkerInfo
from omniq.flow import Flow, Gate, GateState, NewFlow, NewGate
from omniq.storage.ids import new_id
from omniq.task import Feed, NewTask, StoredTask, Succeeded, TaskError
from omniq.testing import trial, wait_until
from tests.bodies import body_of
from tests.core.running import Gate as HeldBack
from tests.core.running import MakeQueue, working

NOWHERE = "0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e"


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{new_id()}" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


def kinds(reasons: list[Reason]) -> list[str]:
    return [reason.kind.value for reason in reasons]


def one(reasons: list[Reason], kind: str) -> Reason:
    (found,) = [reason for reason in reasons if reason.kind == kind]
    assert str(found) == found.text
    return found


def told(queue: TaskQueue) -> None:
    """Wait until a worker has told what it is."""
    wait_until(lambda: [worker for worker in queue.workers() if worker.about], what="the worker to tell what it is")


# On a real queue: without a worker


def test_a_task_that_has_ended_says_how_and_when_its_schedule_runs_next(queue: TaskQueue) -> None:
    @queue.task(max_retries=0)
    def burn(text: str) -> None:
        if text:
            raise ValueError(f"{text}\nand more")

    with trial(queue) as tried:
        failed, cancelled, expired = burn.enqueue("the cake"), burn.enqueue(""), burn.using(expires=5).enqueue("")
        cancelled.cancel()
        tried.clock.advance(6)
        queue.schedule(burn.call(""), Every(60), id="hourly")
        tried.run_for(61)

        (why,) = queue.explain(failed.id)
        assert why.text.endswith(" ago): ValueError: the cake")
        assert why.kind == "ended"
        assert why.fields["state"] == "failed"
        assert one(queue.explain(cancelled.id), "ended").fields["expired"] is False
        assert "it had not begun when it expired" in one(queue.explain(expired.id), "ended").text

        (schedule,) = queue.schedules()
        assert schedule.last_task is not None
        why = one(queue.explain(schedule.last_task), "ended")
        assert why.text.startswith("it ended as succeeded at ")
        assert "; the next run of its schedule 'hourly' is due at " in why.text
        assert (why.fields["schedule"], why.fields["next_run"]) == ("hourly", schedule.next_run)
        queue.pause_schedule("hourly")
        assert queue.explain(schedule.last_task)[0].text.endswith("; its schedule 'hourly' is paused")


def test_a_task_that_is_not_there_has_no_reasons(queue: TaskQueue) -> None:
    with pytest.raises(TaskNotFound, match=NOWHERE):
        queue.explain(NOWHERE)


def test_what_waits_for_its_time_says_until_when_and_why(queue: TaskQueue) -> None:
    @queue.task(retry=Fixed(60), max_retries=4)
    def burn(text: str) -> None:
        if text == "again":
            current_task().retry(delay=30)
        raise ValueError(text)

    with trial(queue) as tried:
        delayed, failing, asking = burn.using(delay=600).enqueue(""), burn.enqueue("hot"), burn.enqueue("again")
        tried.drain()
        now = tried.clock.now

        first, second = queue.explain(delayed.id)
        assert (first.kind, second.kind) == (ReasonKind.DELAYED, ReasonKind.NO_WORKER)
        assert first.fields["at"] == now + timedelta(minutes=10)
        assert first.text.endswith(" UTC (in 0:10:00)")
        first = queue.explain(failing.id)[0]
        assert first.text.startswith("it waits for retry 1 of 4 after ValueError: hot; it is due at ")
        assert (first.kind, first.fields["at"]) == ("retrying", now + timedelta(minutes=1))
        first = queue.explain(asking.id)[0]
        assert first.text.startswith("it waits for retry 1 of 4 after RetrySignal: the task asked to run again; ")


def test_what_no_worker_could_run_says_how_often_it_was_put_back(queue: TaskQueue, make_queue: MakeQueue) -> None:
    @queue.task(name="shop.send")
    def send() -> None: ...

    task_id = send.enqueue().id
    stranger = make_queue()
    seen: list[Reason] = []

    def is_put_back() -> bool:
        # It is claimed again before long, so the answer that says so is kept.
        seen[:] = stranger.explain(task_id)[:1]
        return kinds(seen) == ["put back"]

    with working(stranger):
        wait_until(is_put_back, what="the task to be put back")
        first = seen[0]
        assert first.fields["count"] >= 1
        assert "times, as no worker could run it (UnknownTask: no function is registered as 'shop.send'" in first.text


def test_without_a_worker_it_says_so_and_what_is_ahead_and_when_it_expires(queue: TaskQueue) -> None:
    @queue.task(queue="mail")
    def send() -> None: ...

    tasks = [send.using(expires=600).enqueue() for _ in range(3)]
    last = tasks[-1].id

    reasons = queue.explain(last)
    assert kinds(reasons) == ["no worker", "tasks ahead", "expires"]
    assert [reason.text for reason in reasons[:2]] == [
        "no worker is alive: start one with omniq worker",
        "up to 2 ready tasks of queue 'mail' are ahead of it",
    ]
    assert reasons[2].fields["at"] == tasks[-1].task().expires_at
    queue.pause("mail")
    reasons = queue.explain(last)
    assert kinds(reasons) == ["paused", "no worker", "tasks ahead", "expires"]
    assert reasons[0].text == "its queue 'mail' is paused: omniq queues resume lets it go on"


async def test_a_coroutine_asks_as_well(queue: TaskQueue) -> None:
    @queue.task
    def send() -> None: ...

    handle = await send.aenqueue()
    assert kinds(await queue.aexplain(handle.id)) == ["no worker"]


async def test_a_task_of_a_flow_names_those_that_it_waits_for() -> None:
    def task(**place: Any) -> NewTask:
        return NewTask(id=new_id(), queue="mail", name="send", body=body_of(), flow=flow.id, **place)

    flow = NewFlow(id=new_id(), gates=(NewGate(n=0, rank="0"),))
    inputs = [task(feeds=(Feed(0, True),)) for _ in range(2)]
    behind = task(behind=0)
    async with TaskQueue(f"memory://{new_id()}") as queue:
        storage = (await queue.connections.current()).storage
        await storage.enqueue([*inputs, behind], flow)
        blocked, no_worker = await queue.aexplain(behind.id)
        assert (blocked.kind, no_worker.kind) == ("blocked", "no worker")
        assert blocked.text.startswith("it waits for 2 unfinished tasks of its flow: '")
        assert (blocked.fields["flow"], blocked.fields["gate"], blocked.fields["unmet"]) == (flow.id, 0, 2)
        assert set(blocked.fields["tasks"]) == {one.id for one in inputs}
        (claimed,) = await storage.claim({"mail": 1}, worker="w", lease=600)
        await storage.finish([Succeeded(id=claimed.id, delivery=claimed.delivery, result=b"1")])
        blocked, _ = await queue.aexplain(behind.id)
        (left,) = {one.id for one in inputs} - {claimed.id}
        assert blocked.text == f"it waits for 1 unfinished task of its flow: {left!r}"


# On a real queue: with a worker that cannot run it


def test_a_queue_that_no_worker_serves_is_named_and_those_that_are(queue: TaskQueue) -> None:
    @queue.task(queue="mail")
    def send() -> None: ...

    task_id = send.enqueue().id
    with working(queue, queues=["reports", "default"]):
        told(queue)
        why = one(queue.explain(task_id), "queue not served")
    assert why.text == "no worker serves queue 'mail': those that are alive serve 'default', 'reports'"
    assert why.fields == {"queue": "mail", "queues_served": ["default", "reports"]}


def test_a_function_that_no_worker_knows_is_named_and_its_neighbour(queue: TaskQueue, make_queue: MakeQueue) -> None:
    @queue.task(name="shop.send_mail")
    def send() -> None: ...

    @queue.task(name="unlike-any")
    def other() -> None: ...

    newer = make_queue()

    @newer.task(name="shop.send_mails")
    def send_all() -> None: ...

    queue.pause("default")  # or the worker would claim them, and put them back
    known, unknown = send.enqueue().id, other.enqueue().id
    with working(newer):
        told(queue)
        why = one(queue.explain(known), "function unknown")
        assert why.text.endswith("knows function 'shop.send_mail': do they know it as 'shop.send_mails'?")
        assert why.fields == {"function": "shop.send_mail", "near": "shop.send_mails"}
        assert one(queue.explain(unknown), "function unknown").fields["near"] is None


def test_a_serializer_that_no_worker_accepts_is_named(make_queue: MakeQueue) -> None:
    pickling = make_queue(serializer="cloudpickle", signing_key="k" * 32)
    worker = make_queue(signing_key="k" * 32)
    for queue in (pickling, worker):
        queue.task(name="send")(lambda: None)
    pickling.pause("default")  # or the worker would claim the task, and reject it
    task_id = pickling.functions["send"].enqueue().id
    with working(worker):
        told(pickling)
        why = one(pickling.explain(task_id), "serializer not accepted")
    assert "accepts serializer 'cloudpickle': accepted are 'json'" in why.text
    assert why.fields == {"serializer": "cloudpickle", "accepted": ["json"]}


# On a real queue: with a worker that can run it


def test_a_worker_without_a_free_slot_and_the_queues_before_are_named(queue: TaskQueue, gate: HeldBack) -> None:
    @queue.task(queue="urgent")
    def hold() -> None:
        gate.wait()

    @queue.task(queue="mail")
    def send() -> None: ...

    with working(queue, queues=["urgent", "mail"], concurrency=1):
        told(queue)
        held = hold.enqueue()
        wait_until(lambda: gate.arrived == 1)
        task_id = send.enqueue().id
        why = queue.explain(task_id)
        assert kinds(why) == ["slots taken"]
        assert why[0].fields == {"executor": "thread", "slots": 1}
        hold.enqueue()
        why = queue.explain(task_id)
        assert kinds(why) == ["slots taken", "earlier queue"]
        assert why[1].text == "the workers for it serve other queues before 'mail', and there is work in 'urgent'"
        gate.open()
        held.result(30)


def test_slots_are_those_of_its_own_executor(queue: TaskQueue, gate: HeldBack) -> None:
    @queue.task
    def hold() -> None:
        gate.wait()

    with working(queue, concurrency=10, threads=1):
        told(queue)
        hold.enqueue()
        wait_until(lambda: gate.arrived == 1)
        second = hold.enqueue().id
        wait_until(lambda: kinds(queue.explain(second)) == ["slots taken"], what="the second to be held back")
        gate.open()


@pytest.fixture
def limited(make_queue: MakeQueue) -> TaskQueue:
    return make_queue(url=f"memory://{new_id()}")


@pytest.mark.parametrize(
    ("limit", "kind", "said"),
    [
        (Limit(queue="mail", concurrency=1), "queue limit", "queue 'mail' is at its concurrency: 1 of at most 1 run"),
        (
            Limit(queue="mail", per_key=Limit(concurrency=1)),
            "key limit",
            "key 'tenant-1' of queue 'mail' is at its concurrency: 1 of at most 1 run",
        ),
        (Limit(name="api", concurrency=1), "named limit", "limit 'api' is at its concurrency: 1 of at most 1 run"),
    ],
    ids=["queue", "key", "name"],
)
def test_a_task_that_a_concurrency_holds_back_names_the_limit(
    limited: TaskQueue, gate: HeldBack, limit: Limit, kind: str, said: str
) -> None:
    @limited.task(queue="mail")
    def hold() -> None:
        gate.wait()

    limited.put_limit(limit)
    with working(limited, concurrency=5):
        told(limited)
        call = hold.using(key="tenant-1", limit="api")
        call.enqueue()
        wait_until(lambda: gate.arrived == 1)
        held_back = call.enqueue()
        (why,) = limited.explain(held_back.id)
        assert (why.kind, why.text) == (kind, said)
        assert (why.fields["running"], why.fields["concurrency"], why.fields["next_start"]) == (1, 1, None)
        gate.open()
        held_back.result(30)


@pytest.mark.parametrize(
    ("place", "kind", "called"),
    [
        ({"queue": "mail"}, "queue limit", "queue 'mail'"),
        ({"queue": "mail", "per_key": Limit(rate=Rate(1, per=3600))}, "key limit", "key 'tenant-1' of queue 'mail'"),
        ({"name": "api"}, "named limit", "limit 'api'"),
    ],
    ids=["queue", "key", "name"],
)
def test_a_task_that_a_rate_holds_back_says_when_the_next_one_may_start(
    limited: TaskQueue, place: dict[str, Any], kind: str, called: str
) -> None:
    @limited.task(queue="mail")
    def send() -> None: ...

    rate = Rate(1, per=3600)
    limited.put_limit(Limit(**place) if "per_key" in place else Limit(rate=rate, **place))
    with working(limited):
        told(limited)
        call = send.using(key="tenant-1", limit="api")
        first = call.enqueue()
        first.result(30)
        (why,) = limited.explain(call.enqueue().id)
        started = first.task().started_at
        assert started is not None
        due = started + timedelta(hours=1)
        assert (why.kind, why.fields["next_start"]) == (kind, due)
        assert why.text.startswith(f"{called} is at its rate of 1 in 3600 s: the next one may start at {due:%Y-%m-%d}")


async def test_a_task_that_nothing_holds_back_is_next(queue: TaskQueue) -> None:
    @queue.task
    def send() -> None: ...

    handle = await send.aenqueue()
    storage = (await queue.connections.current()).storage
    await storage.heartbeat("one-that-told-nothing", [], 600)
    (why,) = await queue.aexplain(handle.id)
    assert (why.kind, why.text) == ("next", "nothing holds it back: a worker claims it next")


# On a real queue: running


def test_a_running_task_says_where_since_when_and_how_far_it_is(queue: TaskQueue, gate: HeldBack) -> None:
    @queue.task(timeout=600, max_retries=2)
    def count() -> None:
        current_task().progress(3, 10, "pages")
        gate.wait()

    with working(queue, lease=600) as worker:  # no heartbeat comes while the test looks
        handle = count.enqueue()
        wait_until(lambda: handle.task().progress, what="the progress to be stored")
        (why,) = queue.explain(handle.id)
        assert why.kind == "running"
        assert why.text.startswith(f"it runs on worker {worker.id} since ")
        assert ", attempt 1 of 3; it has done 3 of 10 (pages); 0:" in why.text
        fields = dict(why.fields)
        assert 0 < fields.pop("timeout_left") <= 600
        assert fields == {
            "worker": worker.id,
            "since": handle.task().started_at,
            "attempt": 1,
            "done": 3,
            "total": 10,
        }
        handle.cancel()
        why = one(queue.explain(handle.id), "cancel requested")
        assert why.text.endswith("a thread has to look: it goes on until it reads current_task().cancelled")
        gate.open()


def test_a_lease_that_is_over_says_by_when_the_task_is_taken_back(queue: TaskQueue) -> None:
    @queue.task
    async def send() -> None: ...

    async def claim() -> StoredTask:
        storage = (await queue.connections.current()).storage
        (task,) = await storage.claim({"default": 1}, worker="gone", lease=0.001)
        return task

    task_id = send.enqueue().id
    task = queue.run(claim())
    wait_until(lambda: len(queue.explain(task_id)) == 2, what="the lease to run out")
    why = one(queue.explain(task_id), "lease over")
    assert why.text.endswith("no worker is alive to take it back: start one with omniq worker")
    assert why.fields == {"worker": "gone", "since": task.lease_until, "by": None}

    with working(queue, queues=["other"], recover_every=6000):
        told(queue)
        wait_until(lambda: queue.get(task_id).state == "ready", what="the first round of maintenance")  # type: ignore[union-attr]  # it is there
        task = queue.run(claim())
        wait_until(lambda: len(queue.explain(task_id)) == 2, what="the lease to run out")
        why = one(queue.explain(task_id), "lease over")
    assert task.lease_until is not None
    assert why.fields["by"] == task.lease_until + timedelta(seconds=1.25 * 6000)
    assert why.text.endswith(" at the latest")


# Of values

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TASK = Task(id=NOWHERE, queue="mail", name="shop.send", body=b"", created_at=NOW, run_at=NOW)
ABOUT = WorkerAbout(
    hostname="blue",
    pid=7,
    started_at=NOW,
    versions={},
    queues=None,
    concurrency=100,
    slots={"loop": 100, "thread": 20, "process": 2},
    lease=30.0,
    recover_every=16.0,
    serializers=("json",),
    functions=("shop.resize", "shop.send"),
    function_count=2,
)


def worker(running: int = 0, **about: Any) -> WorkerInfo:
    ids = tuple(f"task-{number}" for number in range(running))
    return WorkerInfo(id="w", seen_at=NOW, running=ids, about=evolve(ABOUT, **about))


def numbers(queue: str, *, paused: bool = False, **counts: int) -> QueueStats:
    return QueueStats(queue=queue, counts={TaskState(name): n for name, n in counts.items()}, paused=paused)


STRANGER = WorkerInfo(id="stranger", seen_at=NOW)
ON_THREADS = {f"task-{number}": "thread" for number in range(20)}


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ({}, {"workers": [worker()]}, ["next"]),
        ({}, {"workers": [worker()], "stats": [numbers("mail", ready=1)]}, ["next"]),
        ({}, {"workers": [worker()], "stats": [numbers("mail", ready=2)]}, ["tasks ahead"]),
        # A scheduled task whose time has come is as good as ready; slots and order are no matter before.
        ({"state": TaskState.SCHEDULED}, {"workers": [worker()]}, ["next"]),
        (
            {"state": TaskState.SCHEDULED, "run_at": NOW + timedelta(1)},
            {"workers": [worker(100)], "stats": [numbers("mail", ready=9, paused=True)]},
            ["delayed", "paused"],
        ),
        # One worker that may be able to is enough; of one that told nothing anything may be true.
        ({}, {"workers": [worker(queues=("a",)), worker(queues={"mail": 2})]}, ["next"]),
        ({}, {"workers": [worker(queues=("a",)), STRANGER]}, ["next"]),
        ({}, {"workers": [worker(functions=("shop.resize",), function_count=700)]}, ["next"]),
        ({}, {"workers": [worker(queues=("a",)), worker(functions=(), function_count=0)]}, ["function unknown"]),
        ({"serializer": "cloudpickle"}, {"workers": [worker()]}, ["serializer not accepted"]),
        ({"name": "pickled:f"}, {"workers": [worker()]}, ["function unknown"]),
        (
            {"name": "pickled:f"},
            {"workers": [worker(functions=("pickled:", "pickled:async:"))]},
            ["next"],
        ),
        # Slots of the right executor.
        ({}, {"workers": [worker(20)], "executors": ON_THREADS}, ["slots taken"]),
        ({}, {"workers": [worker(19)], "executors": ON_THREADS}, ["next"]),
        ({}, {"workers": [worker(20), worker()], "executors": ON_THREADS}, ["next"]),
        ({}, {"workers": [worker(20), STRANGER], "executors": ON_THREADS}, ["next"]),
        ({"is_async": True}, {"workers": [worker(20)], "executors": ON_THREADS}, ["next"]),
        ({"is_async": True}, {"workers": [worker(100)]}, ["slots taken"]),
        (
            {},
            {
                "workers": [worker(2, process_functions=("shop.send",))],
                "executors": dict.fromkeys(ON_THREADS, "process"),
            },
            ["slots taken"],
        ),
        # Only what is before it in strict order, and of every worker for it.
        (
            {},
            {"workers": [worker(queues=("a", "mail", "b"))], "stats": [numbers("a", ready=1)]},
            ["earlier queue"],
        ),
        ({}, {"workers": [worker(queues=("a", "mail", "b"))], "stats": [numbers("b", ready=1)]}, ["next"]),
        ({}, {"workers": [worker(queues=("a", "mail"))], "stats": [numbers("a", ready=1, paused=True)]}, ["next"]),
        ({}, {"workers": [worker(queues={"a": 1, "mail": 1})], "stats": [numbers("a", ready=1)]}, ["next"]),
        (
            {},
            {"workers": [worker(queues=("a", "mail")), worker(queues=("mail", "a"))], "stats": [numbers("a", ready=1)]},
            ["next"],
        ),
        ({"expires_at": NOW}, {"workers": [worker()]}, ["next", "expires"]),
    ],
)
def test_what_is_made_of_a_waiting_task(task: Mapping[str, Any], given: dict[str, Any], expected: list[str]) -> None:
    assert kinds(explain(evolve(TASK, **task), **{"stats": (), **given}, now=NOW)) == expected


@pytest.mark.parametrize(
    ("flow", "said"),
    [
        ({}, "it waits for 7 unfinished tasks of its flow"),
        ({"hold_until": NOW}, "it waits for 7 unfinished tasks of its flow; the flow is still being built"),
        ({"cancelled": True}, "its flow is cancelled, and it ends as cancelled soon"),
        ({"state": GateState.OPEN}, "what it waited for has ended, and it follows soon"),
    ],
)
def test_what_is_made_of_a_flow(flow: dict[str, Any], said: str) -> None:
    gates = tuple(Gate(n=n, rank="", state=flow.get("state", GateState.SHUT), unmet=7 * n, failed=0) for n in (0, 1))
    stands = Flow(
        id="flow",
        unique=None,
        created_at=NOW,
        finished_at=None,
        cancelled="cancelled" in flow,
        hold_until=flow.get("hold_until"),
        counts={},
        gates=gates,
    )
    task = evolve(TASK, state=TaskState.BLOCKED, flow="flow", behind=1, run_at=NOW + timedelta(1))
    reasons = explain(task, stats=[numbers("mail", ready=9)], workers=[worker()], flows=[stands], now=NOW)
    assert kinds(reasons) == ["delayed", "blocked"]
    assert reasons[1].text == said


def test_a_long_error_and_many_queues_are_cut_short() -> None:
    error = TaskError(type="ValueError", message="x" * 1000)
    (why,) = explain(evolve(TASK, state=TaskState.FAILED, error=error), stats=(), workers=(), now=NOW)
    assert why.text.endswith("x…")
    assert len(why.text) < 300
    serves_others = worker(queues=tuple(f"q{number}" for number in range(9)))
    (why,) = explain(TASK, stats=(), workers=[serves_others], now=NOW)
    assert why.text.endswith("'q4' and 4 more")
    assert len(why.fields["queues_served"]) == 9


@pytest.mark.parametrize(
    ("process_functions", "is_async", "executor"),
    [((), False, "thread"), (("shop.send",), False, "process"), ((), True, "loop")],
)
def test_who_has_to_look_for_a_cancellation(process_functions: tuple[str, ...], is_async: bool, executor: str) -> None:
    task = evolve(TASK, state=TaskState.RUNNING, worker="w", cancel_requested=True, is_async=is_async)
    reasons = explain(task, stats=(), workers=[worker(process_functions=process_functions)], now=NOW)
    assert kinds(reasons) == ["running", "cancel requested"]
    assert reasons[1].fields == {"executor": executor}
    assert ("has to look" in reasons[1].text) == (executor == "thread")


def test_the_soonest_of_all_workers_takes_a_lapsed_task_back() -> None:
    lease_until = NOW - timedelta(seconds=1)
    task = evolve(
        TASK, state=TaskState.RUNNING, worker="w", lease_until=lease_until, attempt=1, timeout=5, started_at=NOW
    )
    workers = [worker(), worker(recover_every=8.0), STRANGER]
    assert explain(task, stats=(), workers=workers, now=NOW)[1].fields["by"] == lease_until + timedelta(seconds=10)
    assert explain(task, stats=(), workers=[STRANGER], now=NOW)[1].text.endswith("another worker takes it back soon")
    late = explain(task, stats=(), workers=workers, now=NOW + timedelta(seconds=5))
    assert late[0].text.endswith("; its timeout is over")
