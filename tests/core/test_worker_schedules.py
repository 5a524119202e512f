"""Schedules as real workers keep them, beside others that cannot read them, and on a clock that goes wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from omniq import Every, Schedule, TaskQueue
from omniq.plugins import default_plugins
from omniq.testing import ManualClock, await_until
from omniq.testing.trials import memory_storage

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
