"""Limits as an application uses them: declared in code, named when tasks are enqueued, and changed at run time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from omniq import ConfigurationError, Debounce, Limit, Rate, TaskCancelled, TaskQueue
from omniq.storage import Storage, StorageLimits
from omniq.storage.ids import new_id
from omniq.task import TaskState
from omniq_local.memory.storage import MemoryStorage


@pytest.fixture
def queue() -> TaskQueue:
    return TaskQueue(f"memory://{new_id()}")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Limit(queue="q"), "limits nothing"),
        (lambda: Limit(queue="q", concurrency=0), "pause it"),
        (lambda: Limit(queue="q", name="n", concurrency=1), "not both"),
        (lambda: Limit(name="n", per_key=Limit(concurrency=1)), "belong to the limit of a queue"),
        (lambda: Limit(queue="q", per_key=Limit(queue="r", concurrency=1)), "per_key"),
        (lambda: Limit(queue="q", weights={"a": 0}), "weight of key 'a'"),
        (
            lambda: Limit(queue="q", rate=10),  # type: ignore[arg-type]  # that is the test
            "Rate\\(100, per=60\\)",
        ),
        (lambda: Rate(0), "count"),
        (lambda: Rate(1, per=0), "per"),
        (lambda: Debounce("", wait=1), "key"),
        (lambda: Debounce("k", wait=-1), "wait"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_where_it_is_written(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_declared_is_stored_by_a_worker_and_removed_when_it_is_declared_no_more(
    queue: TaskQueue, caplog: pytest.LogCaptureFixture
) -> None:
    declared = queue.limit("mail", concurrency=5, per_key=Limit(concurrency=2), weights={"big": 4})
    queue.limit(name="api", rate=Rate(10))
    with pytest.raises(ValueError, match="declared already"):
        queue.limit("mail", concurrency=6)

    async def scenario() -> None:
        await queue.stored_schedules.reconcile("app:queue")
        first = await queue.alimits()
        await queue.stored_schedules.reconcile("app:queue")
        assert await queue.alimits() == first
        assert [(one.id, one.declared, one.app) for one in first] == [
            ("name:api", True, "app:queue"),
            ("queue:mail", True, "app:queue"),
        ]
        assert first[1].per_key == declared.per_key

        # What was set at run time stays, and that it differs is said.
        await queue.aput_limit(Limit(queue="mail", concurrency=9))
        with caplog.at_level(logging.WARNING):
            await queue.stored_schedules.reconcile("app:queue")
        assert "set at run time" in caplog.text
        assert [one.concurrency for one in await queue.alimits()] == [None, 9]
        assert await queue.aunlimit("mail") is True
        await queue.stored_schedules.reconcile("app:queue")
        assert [one.concurrency for one in await queue.alimits()] == [None, 5]

        del queue.declared_limits["name:api"]
        await queue.stored_schedules.reconcile("another:queue")  # its own code declares it no more than before
        await queue.stored_schedules.reconcile("app:queue")
        assert [one.id for one in await queue.alimits()] == ["queue:mail"]

    asyncio.run(scenario())


def test_apps_that_declare_a_limit_not_alike_are_told(queue: TaskQueue, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        for app, most in (("one:queue", 1), ("two:queue", 2)):
            queue.declared_limits.clear()
            queue.limit("mail", concurrency=most)
            with caplog.at_level(logging.WARNING):
                await queue.stored_schedules.reconcile(app)
        assert [one.concurrency for one in await queue.alimits()] == [2]

    asyncio.run(scenario())

    assert "one:queue and by two:queue" in caplog.text


def test_a_worker_keeps_within_the_limit_of_each_key(queue: TaskQueue) -> None:
    queue.limit("default", per_key=Limit(concurrency=1))
    running: list[str] = []
    peaks: list[int] = []

    @queue.task
    async def send(tenant: str) -> None:
        running.append(tenant)
        peaks.append(running.count(tenant))
        await asyncio.sleep(0)  # others run meanwhile
        running.remove(tenant)

    async def scenario() -> None:
        handles = [await send.using(key=f"t{n % 3}").aenqueue(f"t{n % 3}") for n in range(12)]
        async with queue.worker(concurrency=8):
            for handle in handles:
                await handle

    asyncio.run(scenario())

    assert peaks == [1] * 12


def test_of_debounced_calls_the_last_one_runs(queue: TaskQueue) -> None:
    @queue.task
    def index(text: str) -> str:
        return text

    async def scenario() -> None:
        calls = [await index.using(debounce=Debounce("page-1", wait=0.2)).aenqueue(text) for text in "abc"]
        async with queue.worker():
            assert await calls[-1] == "c"
        states = [(await call.atask()).state for call in calls]
        assert states == [TaskState.CANCELLED, TaskState.CANCELLED, TaskState.SUCCEEDED]
        error = (await calls[0].atask()).error
        assert error is not None
        assert error.type == "Superseded"
        assert calls[1].id in error.message
        with pytest.raises(TaskCancelled, match=f"was cancelled, as task {calls[1].id} .* took its place"):
            await calls[0]

    asyncio.run(scenario())


def test_what_cannot_be_given_together_is_refused(queue: TaskQueue) -> None:
    @queue.task
    def index() -> None: ...

    with pytest.raises(ValueError, match="either debounce or unique"):
        index.using(debounce=Debounce("k", wait=1), unique="k")
    with pytest.raises(TypeError, match="Debounce"):
        index.using(debounce="k")  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(TypeError, match="key must be a string"):
        index.using(key=7)  # type: ignore[arg-type]  # the mistake that is tested


class Unlimited(MemoryStorage):
    limits = StorageLimits(flows=True)

    put_limit = Storage.put_limit
    get_limits = Storage.get_limits


@pytest.mark.parametrize("options", [{"key": "a"}, {"limit": "a"}, {"debounce": Debounce("a", wait=1)}], ids=str)
def test_a_store_without_limits_refuses_by_name_what_needs_them(queue: TaskQueue, options: dict[str, Any]) -> None:
    from omniq.storage.urls import parse_url

    plain = TaskQueue(Unlimited(parse_url("memory://", None)))

    @plain.task
    def index() -> None: ...

    with pytest.raises(ConfigurationError, match="Unlimited holds no limits"):
        index.using(**options).enqueue()
    with pytest.raises(ConfigurationError, match="Unlimited holds no limits"):
        plain.limits()
    index.enqueue()
    plain.close()
