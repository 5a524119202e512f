"""Schedules as real workers keep them, beside others that cannot read them, and on a clock that goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from omniq import Every, Schedule, TaskQueue
from omniq.plugins import default_plugins
from omniq.testing import ManualClock, await_until
from omniq.testing.trials import memory_storage
from omniq_local.memory.storage import MemoryStorage

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEY, OTHER = "0123456789abcdef-the-right-one", "another-key-another-key"


def on(clock: ManualClock) -> TaskQueue:
    queue = TaskQueue(memory_storage(clock, default_plugins()), signing_key=KEY)
    queue.task(name="tick")(lambda: None)
    return queue


async def only(queue: TaskQueue) -> Schedule:
    (schedule,) = await queue.aschedules()
    return schedule


async def test_a_worker_with_another_key_takes_no_run_from_the_one_that_can_fire() -> None:
    clock = ManualClock(NOON)
    queue = on(clock)
    wrong = TaskQueue("memory://", signing_key=OTHER)
    wrong.connections = queue.connections
    async with queue:
        await queue.aschedule(queue.functions["tick"].call(), Every(60), id="tick", misfire="all")
        async with wrong.worker(queues=["elsewhere"]), queue.worker():
            for minute in range(1, 21):
                clock.advance(60)
                tick = NOON + timedelta(minutes=minute)
                await await_until(lambda: has_run(queue, tick), what=f"the run of {tick}")  # noqa: B023  # waited for
        assert (await only(queue)).revision == 21


async def has_run(queue: TaskQueue, tick: datetime) -> bool:
    return (await only(queue)).last_run == tick


async def test_a_worker_that_starts_after_a_wrong_look_at_the_clock_fires_in_time() -> None:
    clock = ManualClock(NOON)
    queue = on(clock)
    async with queue:
        await queue.aschedule(queue.functions["tick"].call(), Every(60), id="tick")
        async with queue.worker():
            clock.set(NOON + timedelta(days=10))
            await await_until(lambda: has_run(queue, NOON + timedelta(days=10)), what="the wrong run")
            clock.set(NOON + timedelta(minutes=2, seconds=1))
        async with queue.worker():

            async def is_right() -> bool:
                return (await only(queue)).next_run == NOON + timedelta(minutes=3)

            await await_until(is_right, what="the right next run")
            clock.advance(60)
            await await_until(lambda: has_run(queue, NOON + timedelta(minutes=3)), what="the run in time")


async def test_a_task_that_ends_a_wait_begins_before_schedules_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is a question to the store, and nobody waits for it but a schedule."""
    asked: list[str] = []
    claim, look, wait = MemoryStorage.claim, MemoryStorage.due_schedules, MemoryStorage.wait_for_work

    async def slow_claim(*args: Any, **kwargs: Any) -> Any:
        claimed = await claim(*args, **kwargs)
        await asyncio.sleep(0.05)  # what makes it slow
        asked.append("claimed")
        return claimed

    def noting(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            asked.append(what)
            return method(*args, **kwargs)

        return noted

    monkeypatch.setattr("omniq._worker.scheduler.BUSY_LOOK", 600)  # it looks when it is told to, and not by itself
    monkeypatch.setattr(MemoryStorage, "claim", slow_claim)
    monkeypatch.setattr(MemoryStorage, "due_schedules", noting("looks at schedules", look))
    monkeypatch.setattr(MemoryStorage, "wait_for_work", noting("waits", wait))
    async with on(ManualClock(NOON)) as queue, queue.worker():
        await await_until(lambda: asked[-1:] == ["waits"] and "looks at schedules" in asked, what="an idle worker")
        asked.clear()
        await queue.functions["tick"].aenqueue()
        await await_until(lambda: "looks at schedules" in asked, what="the look at schedules")
        assert asked[0] == "claimed"
