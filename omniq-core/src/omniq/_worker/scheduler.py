"""From due schedules to tasks. Every worker can be the scheduler; of any number exactly one fires each tick.

The task of a run and the advance of ``next_run`` are one step in the store, guarded by the schedule's revision:
the second to do so, be it by an hour, changes nothing. No run depends on how an earlier one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence

from attrs import evolve

from omniq._tasks.enqueueing import enqueueing
from omniq._tasks.payloads import Codec
from omniq._tasks.policies import decode_value
from omniq._tasks.scheduled_flows import flow_of_run, is_flow_run
from omniq._worker.firing import MOST_MADE_UP, advance, brought_nearer, without_excess
from omniq.errors import OmniQError, PayloadRejected, StorageError, StorageUnavailable
from omniq.plugins import Plugins
from omniq.schedule import Overlap, Schedule
from omniq.storage import Enqueued, Storage
from omniq.storage.escaping import get_logger, shown
from omniq.storage.outages import Outage
from omniq.task import NewTask

__all__ = ["Scheduler", "fire", "live_tasks", "note_holder"]

_log = get_logger("omniq.scheduler")

BATCH = 50
"""Schedules read in one look at the store, beside those that this look has met already."""
BUSY_LOOK = 1.0
"""Seconds between two looks while the worker is busy, so that nothing wakes it when a schedule is due."""
IDLE_LOOK = 30.0
"""Seconds between two looks while the worker waits for work, which ends when a schedule is due."""
PACE_SECONDS = 0.5
"""Seconds between two steps in which missed runs are made up, so that tasks of others come in between."""
REVIEW_SECONDS = 60.0
"""Seconds between two reviews of the schedules that are not due."""
REVIEW_SHARE = 500.0
"""With many schedules a review takes longer: it is to take no more than one part in so many of a worker's time."""
_DECIDES = ("trigger", "task", "misfire", "overlap", "jitter", "start", "end")
"""The fields of a schedule that decide whether it can fire here."""
SET_ASIDE_SECONDS = 60.0
"""For so long a schedule that cannot fire here is left to other workers."""


class Scheduler:
    """Fires due schedules.

    :param storage: the worker's open storage.
    :param plugins: where the triggers' classes are looked up.
    :param codec: checks the schedules' signatures and signs their tasks.
    :param is_waiting: says whether the worker waits for work at the moment.
    :param tell: tells of an event, given its hook and what it is about.
    """

    def __init__(
        self,
        storage: Storage,
        plugins: Plugins,
        codec: Codec,
        *,
        is_waiting: Callable[[], bool],
        tell: Callable[..., None] | None = None,
    ) -> None:
        self._storage = storage
        self._plugins = plugins
        self._codec = codec
        self._is_waiting = is_waiting
        self._tell = tell
        self._outage = Outage(_log, "schedules cannot fire", "schedules fire again")
        self._look = asyncio.Event()
        self._aside: dict[str, tuple[Schedule, float]] = {}
        """By id: a schedule that cannot fire here, and until when it is left alone."""
        self._review_at = 0.0
        """When to look again at schedules that are not due, by the monotonic clock."""

    def look(self) -> None:
        """Make it look at the store now: the worker's wait for work ended, perhaps because a schedule is due."""
        self._look.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._look.clear()
            backlog = 0
            try:
                if time.monotonic() >= self._review_at:
                    await self.review()
                backlog = await self.fire_due()
                self._outage.succeeded()
            except StorageError as error:
                self._outage.failed(error)
            if backlog:
                await asyncio.sleep(PACE_SECONDS)
                continue
            pause = IDLE_LOOK if self._is_waiting() else BUSY_LOOK
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(pause * random.uniform(0.9, 1.1)):
                    await self._look.wait()

    async def fire_due(self) -> int:
        """Fire every schedule that is due, each once: a backlog of some must not keep the others from firing.

        :return: how many are still due, as they have more runs to make up.
        """
        met: set[str] = set()
        due_again: set[str] = set()
        backlog = 0
        while True:
            limit = BATCH + len(due_again)
            due = await self._storage.due_schedules(limit)
            for schedule in due:
                if schedule.id in met:
                    due_again.add(schedule.id)
                else:
                    met.add(schedule.id)
                    backlog += not self._is_aside(schedule) and await self._fire(schedule)
            if len(due) < limit:
                now = time.monotonic()
                self._aside = {name: entry for name, entry in self._aside.items() if now < entry[1]}
                return backlog

    async def _fire(self, schedule: Schedule) -> bool:
        """Fire a schedule, and say whether more of its runs are due."""
        try:
            return await self._fire_now(schedule)
        except StorageUnavailable:
            raise
        except Exception as error:  # a trigger is foreign code; one that is broken must not keep the others from firing
            self._set_aside(schedule, error)
            return False

    async def _fire_now(self, schedule: Schedule) -> bool:
        self._codec.admit_schedule(schedule)
        trigger = decode_value(schedule.trigger, self._plugins.trigger)
        live = schedule.overlap is Overlap.SKIP and bool(await live_tasks(self._storage, schedule))
        now = await self._storage.now()
        missed = schedule.next_run
        schedule = without_excess(schedule, trigger, now)
        if schedule.next_run != missed:
            _log.warning(
                "schedule %s missed more than %d runs since %s; those before %s are left out",
                schedule.id,
                MOST_MADE_UP,
                missed,
                schedule.next_run,
            )
        advanced, runs = advance(schedule, trigger, now, last_run_is_live=live)
        # Under the key that signs now, should it have been signed with one that only verifies by now.
        advanced = self._codec.sign_schedule(advanced)
        tasks, stored = await fire(self._storage, self._codec, advanced, runs)
        if stored is None:
            return False
        await note_holder(self._storage, advanced, stored)
        self._aside.pop(schedule.id, None)
        created = created_of(tasks, stored)
        _log.info("schedule %s fired %d tasks; next run %s", schedule.id, len(created), advanced.next_run)
        if self._tell is not None:
            self._tell("omniq_schedule_fired", schedule=advanced, tasks=created)
        return advanced.next_run is not None and advanced.next_run <= now

    # What a wrong clock leaves behind

    async def review(self) -> None:
        """Bring nearer the next runs that one wrong look at the clock has put too far ahead, be it by years.

        Such a schedule is not due, so nothing else would ever look at it.
        """
        began = time.monotonic()
        schedules = await self._storage.get_schedules()
        now = await self._storage.now()
        for schedule in schedules:
            if schedule.paused or self._is_aside(schedule):
                continue
            try:
                self._codec.admit_schedule(schedule)
                trigger = decode_value(schedule.trigger, self._plugins.trigger)
                nearer = brought_nearer(schedule, trigger, now)
            except Exception:  # it is told of when it is due
                continue
            if nearer is not None and await self._storage.put_schedule(nearer, schedule.revision) is not None:
                _log.warning(
                    "schedule %s was to run next at %s, which a wrong clock must have said; it runs next at %s",
                    schedule.id,
                    schedule.next_run,
                    nearer.next_run,
                )
        now_at = time.monotonic()
        self._review_at = now_at + max(REVIEW_SECONDS, REVIEW_SHARE * (now_at - began)) * random.uniform(0.9, 1.1)

    # What cannot fire here

    def _is_aside(self, schedule: Schedule) -> bool:
        seen, until = self._aside.get(schedule.id, (None, 0.0))
        if seen is None or time.monotonic() >= until:
            return False
        # As long as it says the same: that others fire it does not make it readable.
        return all(getattr(seen, name) == getattr(schedule, name) for name in _DECIDES)

    def _set_aside(self, schedule: Schedule, error: Exception) -> None:
        # Another worker may know the trigger, or the key: nothing that is stored changes because this one does not. And
        # it must not be looked at a hundred times a second.
        told = str(error) if isinstance(error, OmniQError) else f"{type(error).__name__}: {error}"
        _log.error("schedule %s cannot fire here: %s; looking again in a minute", shown(schedule.id), told)
        if isinstance(error, PayloadRejected) and self._tell is not None:
            self._tell("omniq_schedule_rejected", schedule=schedule, reason=told)
        self._aside[schedule.id] = schedule, time.monotonic() + SET_ASIDE_SECONDS


async def fire(
    storage: Storage, codec: Codec, fired: Schedule, runs: Sequence[NewTask]
) -> tuple[Sequence[NewTask], Sequence[Enqueued] | None]:
    """Store the tasks of a schedule's runs together with what the schedule says afterwards.

    :param codec: signs the tasks.
    :param runs: the tasks.
    :return: the tasks as they were stored, and what the store answered: None if the schedule was changed meanwhile.
    """
    tasks: Sequence[NewTask] = [codec.sign(run) for run in runs]
    around = codec.plugins.around_enqueue
    if around is None or not tasks:
        stored = await storage.fire(fired, tasks)
    else:
        with enqueueing(around, codec, tasks) as entered:
            tasks = entered.tasks
            entered.stored = stored = await storage.fire(fired, tasks)
    enqueued = codec.plugins.event("omniq_task_enqueued")
    if enqueued is not None and stored is not None:
        for task in created_of(tasks, stored):
            enqueued(task=task)
    return tasks, stored


def created_of(tasks: Sequence[NewTask], stored: Sequence[Enqueued]) -> list[NewTask]:
    """Return those of some tasks that were stored: not those whose ``unique`` key a live task had."""
    return [task for task, entry in zip(tasks, stored, strict=True) if entry.created]


async def live_tasks(storage: Storage, schedule: Schedule) -> list[str]:
    """Return the ids of a schedule's runs that have not ended, as far as the schedule knows them."""
    known = [*schedule.live_tasks, *([] if schedule.last_task is None else [schedule.last_task])]
    if not known:
        return []
    live = {task.id for task in await storage.get(known) if task is not None and not task.state.is_final}
    if is_flow_run(schedule.task.name):
        flows = await storage.get_flows([flow_of_run(run) for run in known])
        live |= {run for run, flow in zip(known, flows, strict=True) if flow is not None and flow.finished_at is None}
    return [run for run in known if run in live]


async def note_holder(storage: Storage, fired: Schedule, stored: Sequence[Enqueued]) -> None:
    """Have a schedule name the task that has the unique key of its latest run, if that run was not stored for it.

    :param fired: as :meth:`~omniq.storage.Storage.fire` was given it.
    :param stored: what it returned.
    """
    if stored and stored[-1].id != fired.last_task:
        changed = evolve(fired, last_task=stored[-1].id)
        await storage.put_schedule(changed, expected_revision=fired.revision + 1)
