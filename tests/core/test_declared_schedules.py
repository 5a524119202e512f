"""Schedules that are declared in code: several for a function, with arguments, each of the app that declares it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
from attrs import evolve, frozen

from omniq import At, Cron, Every, PayloadRejected, Schedule, TaskQueue, Trigger, current_task
from omniq.testing import ManualClock, Trial

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
KEY = "0123456789abcdef-the-right-one"


@pytest.fixture
def shop(omniq_clock: ManualClock, omniq_trial: Callable[[TaskQueue], Trial]) -> Trial:
    omniq_clock.set(NOON)
    return omniq_trial(TaskQueue("memory://", signing_key=KEY))


def start(shop: Trial, app: str = "shop:queue") -> None:
    """Do what a worker of an app does with the declared schedules when it starts."""
    shop.queue.run(shop.queue.stored_schedules.reconcile(app))


def stored(shop: Trial) -> dict[str, Schedule]:
    return {schedule.id: schedule for schedule in shop.queue.schedules()}


def put(shop: Trial, schedule: Schedule) -> None:
    async def put() -> None:
        await (await shop.queue.connections.current()).storage.put_schedule(schedule)

    shop.queue.run(put())


# Declaring


def test_a_function_has_several_schedules_each_with_its_arguments_and_options(shop: Trial) -> None:
    ran: list[tuple[str, int]] = []
    end = NOON + timedelta(hours=3)

    @shop.queue.scheduled(Every(600), args=["often"], id="often", overlap="skip", jitter=5, end=end)
    @shop.queue.scheduled(Every(3600), args=["hourly"], kwargs={"depth": 2}, misfire="all")
    @shop.queue.task(schedule=[Cron("30 12 * * *"), Cron("45 12 * * *")])
    def crawl(site: str = "default", *, depth: int = 1) -> None:
        ran.append((site, depth))

    name = crawl.name
    start(shop)
    assert set(stored(shop)) == {name, f"{name} 2", f"{name} 3", "often"}
    often = stored(shop)["often"]
    assert (often.overlap, often.jitter, often.end, often.declared) == ("skip", 5.0, end, True)
    assert stored(shop)[f"{name} 3"].misfire == "all"
    shop.run_for(3605)

    assert sorted(ran) == [("default", 1)] * 2 + [("hourly", 2)] + [("often", 1)] * 6


@pytest.mark.parametrize("order", ["above", "below", "alone"])
def test_scheduled_stands_above_or_below_task_or_alone(shop: Trial, order: str) -> None:
    def clean(days: int) -> None: ...

    scheduled = shop.queue.scheduled(Every(60), args=[3], id="clean")
    match order:
        case "above":
            task = scheduled(shop.queue.task(name="clean", priority=5)(clean))
        case "below":
            task = shop.queue.task(name=f"{clean.__module__}.{clean.__qualname__}", priority=5)(scheduled(clean))
        case _:
            task = scheduled(clean)
    start(shop)

    schedule = stored(shop)["clean"]
    assert schedule.task.name == task.name
    assert schedule.task.priority == (0 if order == "alone" else 5)
    assert schedule.task.body.endswith(b"[[3],{}]")


@pytest.mark.parametrize(
    ("trigger", "mend"),
    [
        ("*/5 * * * *", r"write Cron\('\*/5 \* \* \* \*'\)"),
        (60, r"write Every\(60\)"),
        (timedelta(hours=1), r"such as Every\(60\)"),
        (NOON, "write At"),
        (["@daily"], r"write Cron\('@daily'\)"),
    ],
)
def test_what_is_no_trigger_is_refused_where_it_is_declared(shop: Trial, trigger: object, mend: str) -> None:
    with pytest.raises(TypeError, match=mend):
        shop.queue.task(schedule=trigger)  # type: ignore[call-overload]  # that is the mistake


def test_what_cannot_be_declared_is_refused_there(shop: Trial) -> None:
    @shop.queue.task
    def clean(days: int) -> None: ...

    with pytest.raises(TypeError, match="missing a required argument"):
        shop.queue.scheduled(Every(60))(clean)
    with pytest.raises(TypeError, match=r"write \['3'\]"):
        shop.queue.scheduled(Every(60), args="3")
    with pytest.raises(ValueError, match="overlap must be one of"):
        shop.queue.scheduled(Every(60), overlap="never")
    shop.queue.scheduled(Every(60), args=[3], id="clean")(clean)
    with pytest.raises(ValueError, match="'clean' is declared already"):
        shop.queue.scheduled(Every(90), args=[4], id="clean")(clean)
    with pytest.raises(ValueError, match="no task of this queue"):
        TaskQueue("memory://").scheduled(Every(60), args=[3])(clean)
    assert list(shop.queue.declared) == ["clean"]


def test_a_module_that_is_loaded_again_declares_its_schedules_anew(shop: Trial) -> None:
    source = """
@queue.scheduled(Every(60), id="two")
@queue.task(schedule=Every(30), name="clean")
def clean(): ...
"""
    module = {"queue": shop.queue, "Every": Every, "__name__": "shop"}
    exec(compile(source, "shop.py", "exec"), module)
    exec(compile(source.replace("30", "45"), "shop.py", "exec"), module)

    assert {name: declared.trigger for name, declared in shop.queue.declared.items()} == {
        "clean": Every(45),
        "two": Every(60),
    }


# Workers that start


def test_a_worker_of_another_app_removes_no_schedule_and_one_of_the_same_says_so(
    shop: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "omniq.scheduler")
    shop.queue.task(name="nightly", schedule=Every(60))(lambda: None)
    shop.queue.task(name="shared", schedule=Every(60))(lambda: None)
    start(shop, "gallery.worker:queue")
    assert "schedules declared by gallery.worker:queue: added: nightly, shared" in caplog.text
    nightly = shop.queue.declared.pop("nightly")

    start(shop, "gallery.mail:queue")
    assert set(stored(shop)) == {"nightly", "shared"}
    assert stored(shop)["shared"].apps == ("gallery.worker:queue", "gallery.mail:queue")
    assert "removed" not in caplog.text

    shop.queue.declared["nightly"] = evolve(nightly, trigger=Every(90))
    start(shop, "gallery.worker:queue")
    assert "schedules declared by gallery.worker:queue: changed: nightly" in caplog.text

    shop.queue.declared.clear()
    start(shop, "gallery.worker:queue")
    assert set(stored(shop)) == {"shared"}
    assert "removed: nightly; left to other apps: shared" in caplog.text
    start(shop, "gallery.mail:queue")
    assert stored(shop) == {}


def test_a_worker_that_starts_again_changes_nothing(shop: Trial, caplog: pytest.LogCaptureFixture) -> None:
    shop.queue.scheduled(Every(60), id="clean", jitter=3, end=NOON + 9 * MINUTE)(shop.queue.task(lambda: None))
    start(shop)
    shop.run_for(60)
    shop.queue.pause_schedule("clean")
    before = stored(shop)
    caplog.set_level(logging.INFO, "omniq.scheduler")
    caplog.clear()

    start(shop)

    assert stored(shop) == before
    assert caplog.text == ""


@frozen
class RunOut(Trigger):
    """A plugin's trigger that has run out."""

    kind: ClassVar[str] = "run out"

    def next_after(self, moment: datetime) -> datetime | None:
        return None


@frozen
class Broken(RunOut):
    kind: ClassVar[str] = "broken"

    def next_after(self, moment: datetime) -> datetime | None:
        raise ZeroDivisionError("no such season")


def test_a_declared_trigger_that_has_run_out_or_is_broken_keeps_no_worker_from_starting(
    shop: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    shop.queue.task(name="over", schedule=RunOut())(lambda: None)
    shop.queue.task(name="broken", schedule=Broken())(lambda: None)
    shop.queue.task(name="fine", schedule=Every(60))(lambda: None)

    start(shop)

    assert {name: schedule.next_run for name, schedule in stored(shop).items()} == {
        "fine": NOON + MINUTE,
        "over": None,
    }
    assert "schedule over has no run any more" in caplog.text
    assert "schedule broken is not stored as it is declared: no such season" in caplog.text


def test_a_worker_with_another_key_leaves_declared_schedules_to_those_that_can_read_them(
    shop: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    shop.queue.task(name="clean", schedule=Every(60))(lambda: None)
    start(shop)
    before = stored(shop)
    other = TaskQueue("memory://", signing_key="another-key-another-key")
    other.task(name="clean", schedule=Every(60))(lambda: None)
    other.connections = shop.queue.connections

    other.run(other.stored_schedules.reconcile("shop:queue"))

    assert stored(shop) == before
    assert "signed with a key that is not among this queue's" in caplog.text
    with pytest.raises(PayloadRejected, match="replace=True"):
        other.schedule(other.functions["clean"].call(), Every(60), id="clean")
    assert stored(shop) == before


# Stored in start-up code


def test_storing_what_is_stored_already_changes_nothing(shop: Trial) -> None:
    queue = shop.queue
    clean = queue.task(name="clean")(lambda days=1: None)
    queue.schedule(clean.call(3), Every(60), id="clean", overlap="skip", misfire="all")
    queue.schedule(clean.call(), At(NOON), id="once")
    shop.run_for(60)
    queue.trigger_schedule("clean")
    queue.pause_schedule("clean")
    shop.clock.advance(600)
    before = stored(shop)

    again = queue.schedule(clean.call(3), Every(60), id="clean", overlap="skip", misfire="all")
    queue.schedule(clean.call(), At(NOON), id="once")

    assert stored(shop) == before
    assert again == before["clean"]


def test_what_is_changed_keeps_its_pause_and_its_history_unless_it_is_replaced(shop: Trial) -> None:
    queue = shop.queue
    clean = queue.task(name="clean")(lambda days=1: None)
    queue.schedule(clean.call(3), Every(60), id="clean")
    shop.run_for(90)
    queue.pause_schedule("clean")
    before = stored(shop)["clean"]

    queue.schedule(clean.call(4), Every(60), id="clean")
    changed = stored(shop)["clean"]
    assert changed.task.body.endswith(b"[[4],{}]")
    assert (changed.paused, changed.next_run, changed.last_run) == (True, before.next_run, before.last_run)
    assert changed.last_task == before.last_task
    queue.schedule(clean.call(4), Every(3600), id="clean")
    assert stored(shop)["clean"].next_run == NOON + 60 * MINUTE
    assert stored(shop)["clean"].paused

    queue.schedule(clean.call(4), Every(3600), id="clean", replace=True)
    anew = stored(shop)["clean"]
    assert (anew.paused, anew.last_run, anew.last_task) == (False, None, None)


def test_storing_again_what_has_ended_is_no_error(shop: Trial) -> None:
    call = shop.queue.task(name="clean")(lambda: None).call()
    shop.queue.schedule(call, Every(60), id="clean", end=NOON + 2 * MINUTE)
    shop.run_for(600)

    assert shop.queue.schedule(call, Every(60), id="clean", end=NOON + 2 * MINUTE).next_run is None


# The tick that a task is for


def test_a_task_knows_the_tick_that_it_is_for(shop: Trial) -> None:
    seen: list[tuple[int, datetime | None]] = []

    @shop.queue.task(max_retries=1)
    def report(number: int) -> None:
        seen.append((number, current_task().scheduled_for))
        if len(seen) == 1:
            current_task().retry(delay=1)

    shop.queue.schedule(report.call(1), Every(3600), id="hourly", misfire="all", jitter=2)
    shop.clock.advance(timedelta(hours=72, minutes=30))
    shop.run_for(5)

    ticks = [NOON + timedelta(hours=hour) for hour in range(1, 73)]
    assert seen[0] in seen[1:], "a retry is for the same tick"
    assert sorted(moment for _, moment in seen[1:] if moment is not None) == ticks
    seen.clear()
    shop.queue.trigger_schedule("hourly")
    report.enqueue(2)
    shop.drain()
    assert seen == [(1, None), (2, None)]
