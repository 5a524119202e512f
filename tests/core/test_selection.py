"""``queue.select``: what is chosen, what is done to all of it, in steps, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from omniq import Selection, Step, StorageUnavailable, TaskQueue, TaskState, acting_as, hookimpl
from omniq.storage import Count
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import Failed, Outcome, StoredTask, Succeeded, TaskError
from omniq.testing import trial
from omniq_local.memory.storage import MemoryStorage
from tests.core.running import MakeQueue

NOWHERE = "0196f0c4-52a1-7c3e-9f0b-6d1a2b3c4d5e"
LATER = timedelta(days=1)

VERBS: dict[str, Callable[[Selection], Iterator[Step]]] = {
    "cancel": Selection.cancel,
    "retry": Selection.retry,
    "delete": Selection.delete,
    "run_now": Selection.run_now,
}


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{new_id()}" if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


def declare(queue: TaskQueue) -> Any:
    @queue.task(name="send", queue="mail", max_retries=0)
    def send(what: str = "") -> None:
        if what:
            raise ValueError(what)

    return send


async def claim(queue: TaskQueue) -> StoredTask:
    storage = (await queue.connections.current()).storage
    (task,) = await storage.claim({"mail": 1}, worker="w", lease=600)
    return task


def one_of_each(queue: TaskQueue) -> dict[str, str]:
    """Bring a task into each state, without a worker."""
    send = declare(queue)
    ids = {}
    for state in ("succeeded", "failed"):
        ids[state] = send.enqueue().id
        queue.run(end(queue, queue.run(claim(queue)), state))
    ids["running"] = send.enqueue().id
    queue.run(claim(queue))
    ids["cancelled"] = send.enqueue().id
    queue.cancel(ids["cancelled"])
    ids["ready"] = send.enqueue().id
    ids["scheduled"] = send.using(delay=LATER).enqueue().id
    return ids


async def end(queue: TaskQueue, task: StoredTask, state: str) -> None:
    storage = (await queue.connections.current()).storage
    outcome: Outcome = Succeeded(id=task.id, delivery=task.delivery, result=b"1")
    if state == "failed":
        outcome = Failed(id=task.id, delivery=task.delivery, error=TaskError(type="ValueError", message="hot"))
    assert await storage.finish([outcome]) == [True]


def states(queue: TaskQueue, ids: Sequence[str]) -> list[str | None]:
    return [None if (task := queue.get(task_id)) is None else task.state.value for task_id in ids]


# How many


def test_exactly_those_that_were_there_are_changed_whatever_is_enqueued_meanwhile(queue: TaskQueue) -> None:
    send = declare(queue)
    queue.enqueue_many([send.call() for _ in range(10_000)])
    selection = queue.select(queue="mail")
    assert selection.count() == Count(10_000)
    late, steps = queue.enqueue_many([send.call() for _ in range(60)]), []
    for step in selection.cancel():
        steps.append(step)
        late += queue.enqueue_many([send.call() for _ in range(2)])

    assert [(step.done, step.skipped, step.by_state) for step in steps] == [(500, 0, {"ready": 500})] * 20
    assert len(late) == 100
    (stats,) = queue.stats()
    assert (stats.counts[TaskState.CANCELLED], stats.counts[TaskState.READY]) == (10_000, 100)
    assert {task.id for task in queue.tasks(state="ready", limit=1000)} == {handle.id for handle in late}


def test_to_stop_leaves_whole_steps_and_nothing_is_done_before_the_first(queue: TaskQueue) -> None:
    send = declare(queue)
    queue.enqueue_many([send.call() for _ in range(1200)])
    steps = queue.select(queue="mail").delete()
    assert queue.stats()[0].counts[TaskState.READY] == 1200
    assert next(steps).done == 500
    del steps
    assert queue.stats()[0].counts[TaskState.READY] == 700
    assert [step.done for step in queue.select(queue="mail").delete()] == [500, 200]
    assert list(queue.select(queue="mail").delete()) == []


# What


@pytest.mark.parametrize(
    ("verb", "chosen", "changed"),
    [
        ("cancel", {}, {"scheduled": "cancelled", "ready": "cancelled", "running": "running"}),
        ("cancel", {"states": ["ready", "failed"]}, {"ready": "cancelled"}),
        ("retry", {}, {"failed": "ready"}),
        ("retry", {"states": ["cancelled", "failed"]}, {"failed": "ready", "cancelled": "ready"}),
        ("delete", {}, dict.fromkeys(["scheduled", "ready", "succeeded", "failed", "cancelled"])),
        ("run_now", {}, {"scheduled": "ready"}),
    ],
)
def test_each_action_is_for_tasks_in_some_states(
    queue: TaskQueue, verb: str, chosen: dict[str, Any], changed: dict[str, str | None]
) -> None:
    ids = one_of_each(queue)
    (step,) = VERBS[verb](queue.select(queue="mail", **chosen))

    assert (step.done, step.skipped, step.left) == (len(changed), 0, ())
    assert step.by_state == dict.fromkeys(changed, 1)
    assert states(queue, list(ids.values())) == [changed.get(state, state) for state in ids]
    assert queue.handle(ids["running"]).task().cancel_requested is ("running" in changed)


def test_filters_choose_and_all_of_them_must_match(queue: TaskQueue) -> None:
    send = declare(queue)

    @queue.task(name="other", queue="mail")
    def other() -> None: ...

    plain, tagged = send.enqueue(), send.using(tags=["order-17"], queue="post").enqueue()
    others = [other.using(tags=["order-17"]).enqueue(), other.enqueue()]
    then = others[1].task().created_at

    assert queue.select().count() == Count(4)
    assert queue.select(queue="mail").count() == Count(3)
    assert queue.select(name="send").count() == Count(2)
    assert queue.select(tag="order-17").count() == Count(2)
    assert queue.select(tag="order-17", queue="mail").count() == Count(1)
    assert queue.select(states=[TaskState.READY]).count() == Count(4)
    assert queue.select(states=["failed"]).count() == Count(0)
    assert queue.select(enqueued_before=then).count() == Count(3)
    assert queue.select().count(limit=2) == Count(2, at_least=True)
    assert queue.select(ids=[plain.id, tagged.id, NOWHERE]).count() == Count(2)
    assert queue.select(ids=[plain.id, tagged.id], queue="post").count() == Count(1)
    assert queue.select(ids=[plain.id, tagged.id, others[0].id]).count(limit=1) == Count(1, at_least=True)
    assert queue.select(ids=[]).count() == Count(0)
    assert [step.done for step in queue.select(tag="order-17", queue="mail").cancel()] == [1]
    assert others[0].task().state == "cancelled"


def test_those_that_are_named_are_changed_or_skipped_each_once(queue: TaskQueue) -> None:
    ids = one_of_each(queue)
    named = [ids["ready"], NOWHERE, NOWHERE, ids["failed"], ids["ready"], ids["running"]]
    (step,) = queue.select(ids=named).delete()
    assert (step.done, step.skipped, step.by_state) == (2, 2, {"ready": 1, "failed": 1})
    assert set(step.left) == {NOWHERE, ids["running"]}
    # Named ones are retried whichever way they ended.
    assert [step.done for step in queue.select(ids=[ids["cancelled"]]).retry()] == [1]
    (step,) = queue.select(ids=[NOWHERE]).cancel()
    assert (step.done, step.skipped) == (0, 1)
    many = [new_id() for _ in range(1100)]
    assert [step.skipped for step in queue.select(ids=many).cancel()] == [500, 500, 100]


def test_a_task_that_the_store_refuses_to_change_is_skipped_and_met_once(
    queue: TaskQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = declare(queue)
    for _ in range(3):
        send.using(unique="key").enqueue().cancel()
    monkeypatch.setattr("omniq._client.selection.STEP", 1)
    steps = list(islice(queue.select(states=["cancelled"]).retry(), 9))
    assert [(step.done, step.skipped, step.by_state) for step in steps] == [
        (1, 0, {"cancelled": 1}),
        (0, 1, {}),
        (0, 1, {}),
    ]
    assert states(queue, [task_id for step in steps for task_id in step.left]) == ["cancelled"] * 2


def test_what_is_there_at_the_very_moment_belongs_to_it() -> None:
    queue = TaskQueue("memory://")
    send = declare(queue)
    with trial(queue):  # whose clock stands still
        send.enqueue()
        selection = queue.select()
        assert selection.count() == Count(1)


def test_a_single_task_is_run_now(queue: TaskQueue) -> None:
    ids = one_of_each(queue)
    assert queue.run_now(ids["scheduled"])
    assert not queue.run_now(ids["scheduled"])
    assert states(queue, [ids["scheduled"]]) == ["ready"]


# Mistakes


@pytest.mark.parametrize(("verb", "state"), [("cancel", "failed"), ("retry", "ready"), ("delete", "running")])
def test_an_action_that_can_do_nothing_is_refused_at_once(queue: TaskQueue, verb: str, state: str) -> None:
    with pytest.raises(ValueError, match=f"{verb} does nothing to tasks that are {state}; choose such as are "):
        VERBS[verb](queue.select(states=[state]))


def test_texts_in_place_of_lists_and_unknown_states_are_refused(queue: TaskQueue) -> None:
    with pytest.raises(TypeError, match=r"ids must be a list of ids, not the string 'abc'; write \['abc'\]"):
        queue.select(ids="abc")
    with pytest.raises(TypeError, match="states must be several states, not 'ready'"):
        queue.select(states="ready")
    with pytest.raises(ValueError, match="there is no state 'raedy'"):
        queue.select(states=["raedy"])
    with pytest.raises(ValueError, match="limit must be 1 or more, or None, not 0"):
        queue.select().count(0)


# In coroutines


async def test_coroutines_iterate_over_the_steps_of_the_twins(queue: TaskQueue) -> None:
    send = declare(queue)
    await queue.aenqueue_many([send.using(delay=LATER).call() for _ in range(600)])
    selection = queue.select(states=["scheduled"])
    assert await selection.acount() == Count(600)
    assert [step.done async for step in selection.arun_now()] == [500, 100]
    assert [step.done async for step in queue.select().acancel()] == [500, 100]
    assert [step.done async for step in queue.select(states=["cancelled"]).aretry()] == [500, 100]
    assert [step.done async for step in queue.select().adelete()] == [500, 100]
    with pytest.raises(RuntimeError, match=r"async for step in ….acancel\(\)"):
        next(queue.select().cancel())


class Failing(MemoryStorage):
    """A memory storage whose ``cancel`` can be made to fail."""

    failing = False

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        if self.failing:
            raise StorageUnavailable("cut")
        return await super().cancel(ids)


async def test_a_step_that_failed_is_done_when_it_is_asked_for_again() -> None:
    storage = Failing(parse_url("memory://"))
    async with TaskQueue(storage) as queue:
        send = declare(queue)
        await queue.aenqueue_many([send.call() for _ in range(700)])
        steps = queue.select().acancel()
        Failing.failing = True
        try:
            with pytest.raises(StorageUnavailable):
                await anext(steps)
        finally:
            Failing.failing = False
        assert [step.done async for step in steps] == [500, 200]


# Who did it


def test_plugins_are_told_of_each_step_and_who_took_it(make_queue: MakeQueue) -> None:
    told: list[tuple[str, int, int, str | None]] = []

    class Audit:
        @hookimpl
        def omniq_action_taken(self, action: str, targets: Sequence[str], done: int, actor: str | None) -> None:
            told.append((action, len(targets), done, actor))

    queue = make_queue(plugins=[Audit()])
    send = declare(queue)
    queue.enqueue_many([send.using(delay=LATER).call() for _ in range(600)])
    with acting_as("ada"):
        for verb in ("run_now", "cancel"):
            assert sum(step.done for step in VERBS[verb](queue.select(queue="mail"))) == 600
    assert sum(step.done for step in queue.select(states=["cancelled"]).retry()) == 600
    assert queue.run_now(NOWHERE) is False
    assert told == [
        *[("run_now", 500, 500, "ada"), ("run_now", 100, 100, "ada")],
        *[("cancel", 500, 500, "ada"), ("cancel", 100, 100, "ada")],
        *[("retry", 500, 500, None), ("retry", 100, 100, None)],
        ("run_now", 1, 0, None),
    ]
