"""What a due schedule does: after an outage it neither storms nor skips in silence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve, field, frozen

from omniq import At, Cron, Every, InvalidTrigger, Misfire, Overlap, Schedule, Trigger
from omniq._tasks.policies import encode_value
from omniq._worker.firing import MOST_MADE_UP, STEP, advance, first_run, without_excess
from omniq.task import NewTask
from tests.bodies import body_of

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def due(trigger: Trigger, next_run: datetime, **changes: Any) -> Schedule:
    return Schedule(
        id="s",
        task=NewTask(id="template", queue="default", name="shop.clean", body=body_of()),
        trigger=encode_value(trigger),
        next_run=next_run,
        **changes,
    )


@frozen
class Counting(Every):
    """An interval that counts how often it is asked."""

    asked: list[datetime] = field(factory=list)

    def next_after(self, moment: datetime) -> datetime:
        self.asked.append(moment)
        return super().next_after(moment)


@frozen
class Asked(Cron):
    """A cron expression that counts how often it is asked."""

    asked: list[datetime] = field(factory=list, kw_only=True)

    def next_after(self, moment: datetime) -> datetime | None:
        self.asked.append(moment)
        return super().next_after(moment)


def test_a_run_on_time_gives_one_task_and_the_next_run() -> None:
    schedule = due(Every(60), NOON)

    after, tasks = advance(schedule, Every(60), NOON + timedelta(seconds=1), last_run_is_live=False)

    assert (after.next_run, after.last_run) == (NOON + MINUTE, NOON)
    assert [task.name for task in tasks] == ["shop.clean"]
    assert after.last_task == tasks[0].id != "template"


@pytest.mark.parametrize(("misfire", "runs"), [(Misfire.LATEST, 1), (Misfire.ALL, 6), (Misfire.SKIP, 0)], ids=str)
def test_after_an_outage_missed_runs_are_treated_as_the_policy_says(misfire: Misfire, runs: int) -> None:
    schedule = due(Every(60), NOON, misfire=misfire)
    now = NOON + timedelta(minutes=5, seconds=45)

    after, tasks = advance(schedule, Every(60), now, last_run_is_live=False)

    assert len(tasks) == runs
    assert len({task.id for task in tasks}) == runs
    assert after.next_run == NOON + 6 * MINUTE


def test_skip_still_fires_a_run_that_is_only_a_little_late() -> None:
    schedule = due(Every(60), NOON, misfire=Misfire.SKIP)

    after, tasks = advance(schedule, Every(60), NOON + timedelta(minutes=5, seconds=3), last_run_is_live=False)

    assert len(tasks) == 1
    assert after.last_run == NOON + 5 * MINUTE


@pytest.mark.parametrize("misfire", [Misfire.LATEST, Misfire.SKIP])
def test_ten_years_of_missed_seconds_are_not_walked_through_one_by_one(misfire: Misfire) -> None:
    trigger = Counting(1.0)
    now = NOON + timedelta(days=3650, milliseconds=500)

    after, tasks = advance(due(Every(1), NOON, misfire=misfire), trigger, now, last_run_is_live=False)

    assert len(tasks) == 1
    assert after.last_run == now - timedelta(milliseconds=500)
    assert after.next_run == now + timedelta(milliseconds=500)
    assert len(trigger.asked) < 100


def test_missed_runs_are_made_up_in_bounded_steps_and_none_is_left_out() -> None:
    trigger = Every(60)
    schedule = due(trigger, NOON, misfire=Misfire.ALL)
    now = NOON + 120 * MINUTE
    runs: list[int] = []

    while schedule.next_run is not None and schedule.next_run <= now:
        schedule, tasks = advance(schedule, trigger, now, last_run_is_live=False)
        runs.append(len(tasks))

    assert runs == [STEP, STEP, 121 - 2 * STEP]


def test_the_latest_missed_run_of_an_uneven_rhythm_is_found() -> None:
    trigger = Cron("0,7 3 * * *", tz="Europe/Berlin")
    schedule = due(trigger, trigger.next_after(NOON) or NOON)

    after, tasks = advance(schedule, trigger, NOON + timedelta(days=40), last_run_is_live=False)

    assert len(tasks) == 1
    assert after.last_run == datetime(2026, 7, 11, 1, 7, tzinfo=UTC)
    assert after.next_run == datetime(2026, 7, 12, 1, 0, tzinfo=UTC)


def test_overlap_skip_leaves_a_run_out_while_the_last_one_is_live_but_keeps_the_rhythm() -> None:
    schedule = due(Every(60), NOON, overlap=Overlap.SKIP, last_task="running", last_run=NOON - MINUTE)

    after, tasks = advance(schedule, Every(60), NOON, last_run_is_live=True)

    assert tasks == []
    assert after == evolve(schedule, next_run=NOON + MINUTE)


def test_runs_made_up_at_once_do_not_overlap_with_each_other() -> None:
    schedule = due(Every(60), NOON, misfire=Misfire.ALL, overlap=Overlap.SKIP)

    _, tasks = advance(schedule, Every(60), NOON + 5 * MINUTE, last_run_is_live=False)

    assert len(tasks) == 1


@pytest.mark.parametrize("misfire", list(Misfire), ids=str)
def test_nothing_runs_once_the_end_has_passed_not_even_what_was_missed_before_it(misfire: Misfire) -> None:
    schedule = due(Every(60), NOON, end=NOON + timedelta(seconds=90), misfire=misfire)

    after, tasks = advance(schedule, Every(60), NOON + 5 * MINUTE, last_run_is_live=False)

    assert (after.next_run, tasks) == (None, [])


@pytest.mark.parametrize("misfire", list(Misfire), ids=str)
def test_a_run_at_the_end_itself_is_not_lost_to_a_scheduler_that_is_a_little_late(misfire: Misfire) -> None:
    schedule = due(Every(60), NOON + MINUTE, end=NOON + MINUTE, misfire=misfire)

    after, tasks = advance(schedule, Every(60), NOON + MINUTE + timedelta(seconds=2), last_run_is_live=False)

    assert (after.next_run, after.last_run, len(tasks)) == (None, NOON + MINUTE, 1)


def test_a_stored_run_before_the_start_waits_for_the_start() -> None:
    schedule = due(Every(60), NOON, start=NOON + timedelta(seconds=150))

    after, tasks = advance(schedule, Every(60), NOON + MINUTE, last_run_is_live=False)

    assert (after.next_run, tasks) == (NOON + 3 * MINUTE, [])


@pytest.mark.parametrize(
    ("start", "end", "fires"),
    [
        (None, None, NOON),
        (NOON + MINUTE, None, None),
        (NOON, NOON, NOON),
        (None, NOON - MINUTE, None),
        (NOON - MINUTE, NOON + MINUTE, NOON),
    ],
)
def test_a_fixed_time_fires_between_start_and_end_only(
    start: datetime | None, end: datetime | None, fires: datetime | None
) -> None:
    assert first_run(due(At(NOON), NOON, start=start, end=end), At(NOON), NOON - 5 * MINUTE) == fires


@pytest.mark.parametrize("expr", ["* * * * *", "* * * 1 *", "0 0 29 2 *"])
def test_an_end_or_an_outage_of_years_costs_no_walk_through_the_runs(expr: str) -> None:
    cron = Asked(expr)
    now = NOON + timedelta(days=2000)

    ended, tasks = advance(due(cron, NOON, end=NOON + timedelta(days=205)), cron, now, last_run_is_live=False)
    assert (ended.next_run, tasks) == (None, [])
    after, _ = advance(due(cron, NOON), cron, now, last_run_is_live=False)

    assert after.last_run is not None
    assert cron.next_after(after.last_run) == after.next_run
    assert len(cron.asked) < 70


def test_a_trigger_that_does_not_go_on_is_refused_rather_than_asked_for_ever() -> None:
    class Stuck(Every):
        def next_after(self, moment: datetime) -> datetime:
            return moment

    with pytest.raises(InvalidTrigger, match="next time after"):
        advance(due(Stuck(60), NOON), Stuck(60), NOON, last_run_is_live=False)


@pytest.mark.parametrize(
    ("run_at", "earliest", "latest"),
    [
        (timedelta(seconds=100), 100, 120),
        (NOON + timedelta(seconds=300), 300, 300),
        (NOON - timedelta(seconds=300), 0, 20),
    ],
)
def test_jitter_keeps_the_delay_of_the_call(run_at: datetime | timedelta, earliest: float, latest: float) -> None:
    schedule = due(Every(60), NOON, jitter=20.0)
    schedule = evolve(schedule, task=evolve(schedule.task, run_at=run_at))

    _, (task,) = advance(schedule, Every(60), NOON, last_run_is_live=False)

    assert isinstance(task.run_at, datetime)
    assert earliest <= (task.run_at - NOON).total_seconds() <= latest


def test_jitter_puts_no_run_off_past_the_end() -> None:
    schedule = due(Every(60), NOON, jitter=3600.0, end=NOON + timedelta(seconds=1))

    starts = [advance(schedule, Every(60), NOON, last_run_is_live=False)[1][0].run_at for _ in range(20)]

    assert all(isinstance(start, datetime) and NOON <= start <= NOON + timedelta(seconds=1) for start in starts)


def test_jitter_puts_the_task_off_and_not_the_rhythm() -> None:
    schedule = due(Every(60), NOON, jitter=20.0)

    after, (task,) = advance(schedule, Every(60), NOON, last_run_is_live=False)

    assert isinstance(task.run_at, datetime)
    assert NOON <= task.run_at <= NOON + timedelta(seconds=20)
    assert after.next_run == NOON + MINUTE


@pytest.mark.parametrize(
    ("trigger", "since"),
    [
        (Every(1), datetime(1970, 1, 1, tzinfo=UTC)),
        (Every(1), datetime(1, 1, 2, tzinfo=UTC)),
        (Every(3600), datetime(1970, 1, 1, tzinfo=UTC)),
        (Cron("*/5 * * * *"), datetime(2020, 1, 1, tzinfo=UTC)),
    ],
)
def test_of_a_backlog_without_end_the_latest_thousand_runs_are_made_up(trigger: Trigger, since: datetime) -> None:
    schedule = due(trigger, since, misfire=Misfire.ALL)

    bounded = without_excess(schedule, trigger, NOON)

    runs, left = [], bounded
    while left.next_run is not None and left.next_run <= NOON:
        left, tasks = advance(left, trigger, NOON, last_run_is_live=False)
        runs += tasks
    assert len(runs) == MOST_MADE_UP
    assert left.last_run == NOON
    assert bounded == evolve(schedule, next_run=bounded.next_run)


def test_a_backlog_of_a_thousand_runs_is_made_up_whole() -> None:
    first = NOON - (MOST_MADE_UP - 1) * MINUTE
    assert without_excess(due(Every(60), first, misfire=Misfire.ALL), Every(60), NOON).next_run == first
    assert without_excess(due(Every(60), NOON, misfire=Misfire.ALL), Every(60), NOON).next_run == NOON


def test_of_an_uneven_rhythm_it_is_no_more() -> None:
    trigger = Cron("* * 1 * *")  # a day of minutes, and a month of nothing
    schedule = due(trigger, NOON - timedelta(days=3650), misfire=Misfire.ALL)
    for now in (NOON, NOON + timedelta(days=15)):
        bounded = without_excess(schedule, trigger, now)
        left, count = bounded, 0
        while left.next_run is not None and left.next_run <= now:
            left, tasks = advance(left, trigger, now, last_run_is_live=False)
            count += len(tasks)
        assert 0 < count <= MOST_MADE_UP


def test_other_policies_make_up_one_run_and_have_no_need_of_a_bound() -> None:
    schedule = due(Every(1), datetime(1970, 1, 1, tzinfo=UTC))
    assert without_excess(schedule, Every(1), NOON) is schedule
