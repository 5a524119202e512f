"""Firing as several workers do it: none keeps another, and no schedule another, from firing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve

from omniq import At, Every, InvalidTrigger, Misfire, Schedule, TaskQueue
from omniq._tasks.functions import TaskCall
from omniq._worker.scheduler import Scheduler
from omniq.testing import ManualClock, Trial

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
KEY = "0123456789abcdef-the-right-one"


@pytest.fixture
def shop(omniq_clock: ManualClock, omniq_trial: Callable[[TaskQueue], Trial]) -> Trial:
    omniq_clock.set(NOON)
    shop = omniq_trial(TaskQueue("memory://", signing_key=KEY))
    shop.queue.task(name="clean")(lambda: None)
    return shop


def fire_once(shop: Trial, *, key: str = KEY) -> int:
    """Have a scheduler of its own look once, as that of another worker; return how many are still due."""
    codec = TaskQueue("memory://", signing_key=key).codec

    async def look() -> int:
        storage = (await shop.queue.connections.current()).storage
        return await Scheduler(storage, shop.queue.plugins, codec, is_waiting=lambda: False).fire_due()

    return shop.queue.run(look())


def stored(shop: Trial, schedule: Schedule) -> None:
    async def put() -> None:
        storage = (await shop.queue.connections.current()).storage
        await storage.put_schedule(schedule)

    shop.queue.run(put())


def of(shop: Trial, schedule_id: str) -> Schedule:
    (found,) = [schedule for schedule in shop.queue.schedules() if schedule.id == schedule_id]
    return found


def call(shop: Trial, unique: str | None = None) -> TaskCall[Any]:
    return shop.queue.functions["clean"].using(unique=unique).call()


@pytest.mark.parametrize("why", ["another key", "no plugin", "a broken trigger"])
def test_a_scheduler_that_cannot_read_a_schedule_changes_nothing_and_fires_the_others(shop: Trial, why: str) -> None:
    queue = shop.queue
    for number in range(60):
        queue.schedule(call(shop), Every(60), id=f"unreadable {number:02}")
    for schedule in queue.schedules():
        kind = {"another key": schedule.trigger, "no plugin": '{"kind":"of a plugin"}', "a broken trigger": "]"}[why]
        stored(shop, queue.codec.sign_schedule(evolve(schedule, trigger=kind)))
    other_key = "another-key-another-key" if why == "another key" else KEY
    before = {schedule.id: schedule for schedule in queue.schedules()}
    shop.clock.advance(90)
    codec = TaskQueue("memory://", signing_key=other_key).codec
    own = queue.schedule(call(shop), Every(3600), id="own")
    stored(shop, codec.sign_schedule(evolve(own, next_run=NOON + 2 * MINUTE)))
    shop.clock.advance(90)

    fire_once(shop, key=other_key)

    after = {schedule.id: schedule for schedule in queue.schedules()}
    assert after.pop("own").last_run == NOON + 2 * MINUTE
    assert after == before


def test_a_schedule_that_cannot_fire_is_looked_at_again_and_told_of_only_now_and_then(
    shop: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    shop.queue.schedule(call(shop), Every(60), id="unreadable")
    stored(shop, evolve(of(shop, "unreadable"), trigger='{"kind":"of a plugin"}'))
    shop.clock.advance(90)

    async def look() -> None:
        storage = (await shop.queue.connections.current()).storage
        scheduler = Scheduler(storage, shop.queue.plugins, shop.queue.codec, is_waiting=lambda: False)
        for _ in range(5):
            await scheduler.fire_due()
            (schedule,) = await storage.get_schedules()
            assert schedule.next_run is not None
            await storage.fire(evolve(schedule, next_run=schedule.next_run + 2 * MINUTE), [])
            await scheduler.fire_due()
            shop.clock.advance(120)

    shop.queue.run(look())

    assert caplog.text.count("cannot fire here") == 1


def test_a_backlog_of_many_keeps_no_other_schedule_from_firing(shop: Trial) -> None:
    for number in range(70):
        shop.queue.schedule(call(shop), Every(1), id=f"backlog {number:02}", misfire="all")
    shop.clock.advance(3000)
    shop.queue.schedule(call(shop), At(NOON + timedelta(seconds=3001)), id="other")
    shop.clock.advance(2)

    assert fire_once(shop) == 70

    assert of(shop, "other").last_run == NOON + timedelta(seconds=3001)


def test_overlap_skip_sees_the_run_before_a_triggered_one(shop: Trial) -> None:
    shop.queue.schedule(call(shop), Every(60), id="clean", overlap="skip")
    shop.clock.advance(60)
    fire_once(shop)
    first = of(shop, "clean").last_task
    triggered = shop.queue.trigger_schedule("clean")
    assert triggered.cancel()  # the triggered one has ended, the first has not
    shop.clock.advance(60)

    fire_once(shop)

    assert of(shop, "clean").last_run == NOON + MINUTE
    assert first is not None
    shop.queue.cancel(first)
    shop.clock.advance(60)
    fire_once(shop)
    assert of(shop, "clean").last_run == NOON + 3 * MINUTE


def test_a_run_whose_unique_key_is_taken_leads_to_the_task_that_has_it(shop: Trial) -> None:
    call_with_key = call(shop, unique="key")
    holder = shop.queue.functions["clean"].using(unique="key").enqueue()
    shop.queue.schedule(call_with_key, Every(60), id="clean")

    triggered = shop.queue.trigger_schedule("clean")

    assert (triggered.id, triggered.created) == (holder.id, False)
    assert of(shop, "clean").last_task == holder.id
    shop.clock.advance(60)
    fire_once(shop)
    assert (of(shop, "clean").last_run, of(shop, "clean").last_task) == (NOON + MINUTE, holder.id)
    assert len(list(shop.queue.tasks())) == 1


def test_a_time_that_fell_into_a_pause_is_not_made_up(shop: Trial) -> None:
    shop.queue.schedule(call(shop), At(NOON + MINUTE), id="once")
    shop.queue.pause_schedule("once")
    shop.clock.advance(600)

    assert shop.queue.resume_schedule("once")

    assert of(shop, "once").next_run is None
    assert shop.run_for(600) == 0


def review(shop: Trial, *, key: str = KEY) -> None:
    """Have a scheduler review the schedules, as each does when its worker starts and now and then."""
    codec = TaskQueue("memory://", signing_key=key).codec

    async def look() -> None:
        storage = (await shop.queue.connections.current()).storage
        await Scheduler(storage, shop.queue.plugins, codec, is_waiting=lambda: False).review()

    shop.queue.run(look())


@pytest.mark.parametrize("misfire", list(Misfire), ids=str)
def test_one_wrong_look_at_the_clock_silences_no_schedule(shop: Trial, misfire: Misfire) -> None:
    queue, end = shop.queue, NOON + timedelta(days=5)
    queue.schedule(call(shop), Every(60), id="a minute", misfire=misfire)
    queue.schedule(call(shop), Every(60), id="until an end", misfire=misfire, end=end)
    queue.schedule(call(shop), At(NOON + timedelta(days=2)), id="once", misfire=misfire)
    queue.schedule(call(shop), Every(60), id="later", start=NOON + timedelta(days=20))
    queue.schedule(call(shop), Every(60), id="paused")
    queue.pause_schedule("paused")
    shop.clock.advance(timedelta(days=10))
    while fire_once(shop) and of(shop, "a minute").next_run < NOON + timedelta(days=9):  # type: ignore[operator]  # it has one
        pass
    shop.clock.set(NOON + 4 * MINUTE)
    before = {schedule.id: schedule for schedule in queue.schedules()}

    review(shop, key="another-key-another-key")
    assert {schedule.id: schedule for schedule in queue.schedules()} == before
    review(shop)

    after = {schedule.id: schedule.next_run for schedule in queue.schedules()}
    assert after == {
        "a minute": NOON + 5 * MINUTE,
        "until an end": NOON + 5 * MINUTE,
        "once": NOON + timedelta(days=2),
        "later": NOON + timedelta(days=20),
        "paused": NOON + MINUTE,
    }
    shop.clock.advance(60)
    fire_once(shop)
    assert of(shop, "a minute").last_run == NOON + 5 * MINUTE


def test_resuming_heals_what_a_wrong_clock_left_behind(shop: Trial) -> None:
    shop.queue.schedule(call(shop), Every(60), id="clean")
    shop.clock.advance(timedelta(days=10))
    fire_once(shop)
    shop.clock.set(NOON)

    shop.queue.pause_schedule("clean")
    shop.queue.resume_schedule("clean")

    assert of(shop, "clean").next_run == NOON + MINUTE


def test_a_clock_that_is_put_back_a_little_makes_no_tick_run_twice(shop: Trial) -> None:
    shop.queue.schedule(call(shop), Every(60), id="clean")
    shop.clock.advance(601)
    fire_once(shop)
    shop.clock.set(NOON + MINUTE)

    review(shop)

    assert of(shop, "clean").next_run == NOON + 11 * MINUTE


def test_a_fixed_time_before_the_start_is_refused(shop: Trial) -> None:
    with pytest.raises(InvalidTrigger, match=r"would never fire.*after its start"):
        shop.queue.schedule(call(shop), At(NOON + MINUTE), id="once", start=NOON + 2 * MINUTE)
