"""Schedules as a queue's user makes and changes them: at run time, in code, and wrongly."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from attrs import evolve

from omniq import At, Every, InvalidTrigger, ScheduleNotFound, TaskQueue, Trigger
from omniq.testing import ManualClock, Trial, trial

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def shop(omniq_clock: ManualClock, omniq_trial: Callable[[TaskQueue], Trial]) -> Trial:
    omniq_clock.set(NOON)
    return omniq_trial(TaskQueue("memory://"))


def test_a_schedule_is_paused_resumed_in_its_rhythm_triggered_and_deleted(shop: Trial) -> None:
    runs: list[datetime] = []

    @shop.queue.task
    def clean() -> None:
        runs.append(shop.clock.now)

    queue = shop.queue
    queue.schedule(clean.call(), Every(60), id="clean")
    shop.run_for(90)
    assert queue.pause_schedule("clean")
    assert not queue.pause_schedule("clean")
    shop.run_for(100)
    assert queue.resume_schedule("clean")
    shop.run_for(50)
    assert [(moment - NOON).total_seconds() for moment in runs] == [60, 240]

    handle = queue.trigger_schedule("clean")
    shop.drain()
    assert handle.task().state == "succeeded"
    assert queue.delete_schedule("clean")
    assert not queue.delete_schedule("clean")
    assert queue.schedules() == []


def test_the_same_id_replaces(shop: Trial) -> None:
    @shop.queue.task
    def clean() -> None: ...

    shop.queue.schedule(clean.call(), Every(60), id="clean")
    shop.queue.schedule(clean.call(), Every(7200), id="clean")

    (schedule,) = shop.queue.schedules()
    assert schedule.next_run == NOON + timedelta(hours=2)
    assert schedule.revision == 2


@pytest.mark.parametrize(("misfire", "runs"), [("latest", 1), ("skip", 0)])
def test_a_time_in_the_past_runs_at_once_unless_misfires_are_skipped(shop: Trial, misfire: str, runs: int) -> None:
    @shop.queue.task
    def once() -> None: ...

    shop.queue.schedule(once.call(), At(NOON - DAY), id="once", misfire=misfire)

    assert shop.run_for(DAY) == runs


def test_declared_schedules_follow_the_code_and_others_are_left_alone() -> None:
    def declared(**options: Trigger) -> TaskQueue:
        queue = TaskQueue("memory://declared")
        for name, trigger in options.items():

            @queue.task(name=name, schedule=trigger)
            def work() -> None: ...

        return queue

    with trial(declared(kept=Every(60), changed=Every(60), removed=Every(60)), clock=ManualClock(NOON)) as before:
        queue = before.queue
        by_hand = queue.functions["kept"].call()
        queue.schedule(by_hand, Every(5), id="by hand")
        before.run_for(1)
        assert {schedule.id for schedule in queue.schedules()} == {"by hand", "changed", "kept", "removed"}
        del queue.declared["removed"]
        queue.declared["changed"] = evolve(queue.declared["changed"], trigger=Every(30))
        before.run_for(1)
        assert {schedule.id: schedule.trigger.count("30.0") for schedule in queue.schedules()} == {
            "by hand": 0,
            "changed": 1,
            "kept": 0,
        }


def test_what_cannot_be_a_schedule_is_refused_and_named(shop: Trial) -> None:
    @shop.queue.task
    def clean() -> None: ...

    queue, call = shop.queue, clean.call()
    with pytest.raises(InvalidTrigger, match="before it starts"):
        queue.schedule(call, Every(60), id="s", start=NOON + DAY, end=NOON)
    with pytest.raises(InvalidTrigger, match="would never fire"):
        queue.schedule(call, Every(DAY), id="s", end=NOON + timedelta(seconds=1))
    with pytest.raises(ValueError, match="misfire must be one of"):
        queue.schedule(call, Every(60), id="s", misfire="sometimes")
    with pytest.raises(ValueError, match="schedule's id"):
        queue.schedule(call, Every(60), id="")
    with pytest.raises(TypeError, match="trigger must be"):
        queue.schedule(call, 60, id="s")  # type: ignore[arg-type]  # that is the mistake
    for change in (queue.pause_schedule, queue.resume_schedule, queue.trigger_schedule):
        with pytest.raises(ScheduleNotFound, match="nobody"):
            change("nobody")
    assert queue.schedules() == []


def test_a_task_that_needs_arguments_cannot_be_declared_with_a_schedule() -> None:
    queue = TaskQueue("memory://")

    with pytest.raises(TypeError, match="missing a required argument"):

        @queue.task(schedule=Every(60))
        def greet(name: str) -> None: ...
