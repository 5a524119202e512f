"""What a due schedule has to do: which of its fire times run, and which comes next. Pure, but for ids and jitter."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from attrs import evolve

from omniq.errors import InvalidTrigger
from omniq.schedule import Misfire, Overlap, Schedule, Trigger
from omniq.storage.body import with_header
from omniq.storage.ids import new_id
from omniq.task import NewTask

__all__ = [
    "MOST_MADE_UP",
    "STEP",
    "advance",
    "brought_nearer",
    "first_run",
    "next_run",
    "task_of_run",
    "without_excess",
]

LATE = 30.0
"""Seconds by which a run may be late without being a misfire: a busy or changing scheduler must not skip a tick."""
AHEAD = 600.0
"""Seconds by which a next run may be further ahead than its trigger says: by so much clocks are put right at times."""
STEP = 50
"""The most runs that are made up in one step under ``misfire="all"``."""
MOST_MADE_UP = 1000
"""The most runs that are made up at all: the latest. A forged schedule can have a next run decades ago."""
_INSTANT = timedelta(microseconds=1)


def first_run(schedule: Schedule, trigger: Trigger, now: datetime) -> datetime | None:
    """Return the first fire time of a schedule that is stored now; None if it never fires.

    A trigger of one fixed time may have passed; it fires nevertheless, but not before ``start`` or after ``end``.
    """
    found = trigger.first(now)
    if found is None or _between(schedule, found):
        return found
    return next_run(schedule, trigger, now)


def next_run(schedule: Schedule, trigger: Trigger, moment: datetime) -> datetime | None:
    """Return the first fire time after a moment that lies between the schedule's ``start`` and ``end``.

    :raises InvalidTrigger: if the trigger does not return a later time, which would be asked without end.
    """
    if schedule.start is not None:
        # A run at the very moment of the start counts.
        moment = max(moment, schedule.start - _INSTANT)
    found = trigger.next_after(moment)
    if found is None:
        return None
    if found.tzinfo is None or found <= moment:
        raise InvalidTrigger(f"{trigger!r} says that {found!r} is its next time after {moment!r}")
    return found if _between(schedule, found) else None


def _between(schedule: Schedule, moment: datetime) -> bool:
    return (schedule.start is None or moment >= schedule.start) and (schedule.end is None or moment <= schedule.end)


def task_of_run(schedule: Schedule, tick: datetime | None, now: datetime) -> NewTask:
    """Return the task of one run.

    :param schedule: whose task to enqueue.
    :param tick: the run's fire time; None: a run out of turn, without jitter.
    :param now: the store's clock, from which a delay of the call counts.
    """
    task = evolve(schedule.task, id=new_id())
    if tick is None:
        return task
    task = evolve(task, body=with_header(task.body, scheduled_for=tick))
    if schedule.jitter == 0:
        return task
    put_off = tick + timedelta(seconds=random.uniform(0, schedule.jitter))
    if schedule.end is not None:
        put_off = min(put_off, schedule.end)
    match task.run_at:
        case timedelta() as delay:
            put_off = max(put_off, now) + delay
        case datetime() as run_at:
            put_off = max(put_off, run_at)
    return evolve(task, run_at=put_off)


def advance(
    schedule: Schedule, trigger: Trigger, now: datetime, *, last_run_is_live: bool
) -> tuple[Schedule, list[NewTask]]:
    """Work out what a due schedule's scheduler has to do. Pure, but for the new ids and the jitter.

    :param schedule: as stored, with a ``next_run`` that has come.
    :param trigger: the schedule's trigger.
    :param now: the store's clock.
    :param last_run_is_live: whether a task of an earlier run has not ended yet.
    :return: the schedule to store, and the tasks to enqueue in the same step.
    :raises InvalidTrigger: if the trigger does not return a later time.
    """
    if schedule.end is not None and (now - schedule.end).total_seconds() > LATE:
        return evolve(schedule, next_run=None), []
    ticks, following = _ticks(schedule, trigger, now)
    runs = _chosen(schedule.misfire, ticks, now)
    if schedule.overlap is Overlap.SKIP:
        # Runs made up at once would overlap with each other as well.
        runs = [] if last_run_is_live else runs[-1:]
    tasks = [task_of_run(schedule, tick, now) for tick in runs]
    advanced = evolve(schedule, next_run=following)
    if runs:
        advanced = evolve(advanced, last_run=runs[-1], last_task=tasks[-1].id, live_tasks=())
    return advanced, tasks


def _ticks(schedule: Schedule, trigger: Trigger, now: datetime) -> tuple[list[datetime], datetime | None]:
    """Return the fire times that have come, and the first that has not; as far as one step goes."""
    tick = schedule.next_run
    assert tick is not None
    if not _between(schedule, tick):
        tick = next_run(schedule, trigger, tick)
        if tick is None or tick > now:
            return [], tick
    following = next_run(schedule, trigger, tick)
    if following is None or following > now:
        return [tick], following
    if schedule.misfire is not Misfire.ALL:
        latest = _latest(schedule, trigger, tick, now)
        return [latest], next_run(schedule, trigger, latest)
    ticks = [tick]
    while following is not None and following <= now and len(ticks) < STEP:
        ticks.append(following)
        following = next_run(schedule, trigger, following)
    return ticks, following


def without_excess(schedule: Schedule, trigger: Trigger, now: datetime) -> Schedule:
    """Return a due schedule of whose missed runs no more than the latest :data:`MOST_MADE_UP` are made up.

    Of a rhythm that is very uneven it may be fewer.
    """
    tick = schedule.next_run
    if schedule.misfire is not Misfire.ALL or tick is None:
        return schedule
    if sum(1 for _ in _following(schedule, trigger, tick, now, MOST_MADE_UP)) < MOST_MADE_UP:
        return schedule
    span = now - tick
    window = min(timedelta(seconds=1), span)
    while (
        window < span and sum(1 for _ in _following(schedule, trigger, now - window, now, MOST_MADE_UP)) < MOST_MADE_UP
    ):
        window = min(2 * window, span)
    # An even rhythm has at most twice as many in it as in the half of it, which has not too many.
    ticks = list(_following(schedule, trigger, now - window, now, 3 * MOST_MADE_UP))
    if len(ticks) == 3 * MOST_MADE_UP:
        ticks = list(_following(schedule, trigger, now - window / 2, now, MOST_MADE_UP))
    return evolve(schedule, next_run=ticks[-MOST_MADE_UP:][0] if ticks else _latest(schedule, trigger, tick, now))


def _following(schedule: Schedule, trigger: Trigger, moment: datetime, now: datetime, most: int) -> Iterator[datetime]:
    """Yield the fire times that are later than a moment and have come, so many at most."""
    for _ in range(most):
        tick = next_run(schedule, trigger, moment)
        if tick is None or tick > now:
            return
        yield tick
        moment = tick


def brought_nearer(schedule: Schedule, trigger: Trigger, now: datetime) -> Schedule | None:
    """Return a schedule whose next run a wrong clock has put too far ahead with the one that its trigger says.

    :param now: the store's clock, right again.
    :return: None if the next run is as it should be, or nearly: where a clock is put back a little, no tick runs twice.
    """
    slack = timedelta(seconds=AHEAD)
    if schedule.next_run is not None and schedule.next_run <= now + slack:
        return None
    expected = next_run(schedule, trigger, now + slack)
    if expected is None or (schedule.next_run is not None and schedule.next_run <= expected):
        return None
    last = schedule.last_run
    since = last if last is not None and now < last <= now + slack else now
    return evolve(schedule, next_run=next_run(schedule, trigger, since))


def _latest(schedule: Schedule, trigger: Trigger, tick: datetime, now: datetime) -> datetime:
    """Return the last fire time that is not later than now, given one after which there is another."""
    # After a long outage there may be millions of missed ticks, of which the latest alone counts. The next one after a
    # moment is never earlier for a later moment, so it is found by halving: in some fifty questions, however many.
    before, after = tick, now
    while after - before > _INSTANT:
        middle = before + (after - before) // 2
        found = next_run(schedule, trigger, middle)
        if found is None or found > now:
            after = middle
        else:
            before, tick = middle, found
    return tick


def _chosen(misfire: Misfire, ticks: Sequence[datetime], now: datetime) -> list[datetime]:
    if misfire is Misfire.ALL or not ticks:
        return list(ticks)
    latest = ticks[-1]
    if misfire is Misfire.SKIP and (now - latest).total_seconds() > LATE:
        return []
    return [latest]
