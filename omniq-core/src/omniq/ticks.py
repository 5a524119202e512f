"""What a due schedule has to do: which of its fire times run, and which comes next. Pure, but for ids and jitter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from attrs import evolve

from omniq.ids import new_id
from omniq.schedule import Misfire, Overlap, Schedule, Trigger
from omniq.task import NewTask

__all__ = ["STEP", "advance", "task_of_run"]

LATE = 30.0
"""Seconds by which a run may be late without being a misfire: a busy or changing scheduler must not skip a tick."""
STEP = 50
"""The most runs that are made up in one step under ``misfire="all"``."""


def task_of_run(schedule: Schedule, tick: datetime | None) -> NewTask:
    """Give the task of one run.

    :param schedule: whose task to enqueue.
    :param tick: the run's fire time; None: now, without jitter.
    """
    start = schedule.task.run_at
    if tick is not None and schedule.jitter > 0:
        start = tick + timedelta(seconds=random.uniform(0, schedule.jitter))
    return evolve(schedule.task, id=new_id(), run_at=start)


def advance(
    schedule: Schedule, trigger: Trigger, now: datetime, *, last_run_is_live: bool
) -> tuple[Schedule, list[NewTask]]:
    """Work out what a due schedule's scheduler has to do. Pure, but for the new ids and the jitter.

    :param schedule: as stored, with a ``next_run`` that has come.
    :param trigger: the schedule's trigger.
    :param now: the store's clock.
    :param last_run_is_live: whether the task of the last run has not ended yet.
    :return: the schedule to store, and the tasks to enqueue in the same step.
    """
    ticks, following = _ticks(schedule, trigger, now)
    runs = _chosen(schedule.misfire, ticks, now)
    if schedule.overlap is Overlap.SKIP:
        # Runs made up at once would overlap with each other as well.
        runs = [] if last_run_is_live else runs[-1:]
    tasks = [task_of_run(schedule, tick) for tick in runs]
    advanced = evolve(schedule, next_run=following)
    if runs:
        advanced = evolve(advanced, last_run=runs[-1], last_task=tasks[-1].id)
    return advanced, tasks


def _ticks(schedule: Schedule, trigger: Trigger, now: datetime) -> tuple[list[datetime], datetime | None]:
    """Give the fire times that have come, and the first that has not; as far as one step goes."""
    assert schedule.next_run is not None
    ticks = [schedule.next_run]
    following = _next(schedule, trigger, schedule.next_run)
    if schedule.misfire is Misfire.ALL:
        while following is not None and following <= now and len(ticks) < STEP:
            ticks.append(following)
            following = _next(schedule, trigger, following)
        return ticks, following
    # After a long outage there may be millions of missed ticks, of which the latest alone counts: not walked one by
    # one.
    if following is not None and following <= now:
        latest = _latest(schedule, trigger, following, now)
        return [latest], _next(schedule, trigger, latest)
    return ticks, following


def _latest(schedule: Schedule, trigger: Trigger, tick: datetime, now: datetime) -> datetime:
    """Give the last fire time that is not later than now, given one that is not."""
    # Look back from now over spans that grow until a fire time stands in them, then walk from there.
    span = timedelta(seconds=1)
    while now - span > tick:
        candidate = _next(schedule, trigger, now - span)
        if candidate is not None and candidate <= now:
            tick = candidate
            break
        span *= 2
    while (following := _next(schedule, trigger, tick)) is not None and following <= now:
        tick = following
    return tick


def _next(schedule: Schedule, trigger: Trigger, moment: datetime) -> datetime | None:
    following = trigger.next_after(moment)
    if following is None or (schedule.end is not None and following > schedule.end):
        return None
    return following


def _chosen(misfire: Misfire, ticks: Sequence[datetime], now: datetime) -> list[datetime]:
    if misfire is Misfire.ALL:
        return list(ticks)
    latest = ticks[-1]
    if misfire is Misfire.SKIP and (now - latest).total_seconds() > LATE:
        return []
    return [latest]
