"""From due schedules to tasks. Every worker can be the scheduler; of any number exactly one fires each tick.

The task of a run and the advance of ``next_run`` are one step in the store, guarded by the schedule's revision:
whoever comes second, be it by an hour, changes nothing. No run depends on how an earlier one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from datetime import timedelta

from attrs import evolve

from omniq.codec import Codec
from omniq.errors import OmniQError, PayloadRejected, StorageError
from omniq.outages import Outage
from omniq.plugins import Plugins
from omniq.policies import decode_value
from omniq.schedule import Overlap, Schedule
from omniq.signing import shown
from omniq.storage import Storage
from omniq.ticks import advance

__all__ = ["Scheduler"]

_log = logging.getLogger("omniq.scheduler")

STEP = 50
"""Schedules fired between two looks at the store."""
BUSY_LOOK = 1.0
"""Seconds between two looks while the worker is busy, so that nothing wakes it when a schedule is due."""
IDLE_LOOK = 30.0
"""Seconds between two looks while the worker waits for work, which ends when a schedule is due."""


class Scheduler:
    """Fires due schedules.

    :param storage: the worker's open storage.
    :param plugins: where the triggers' classes are looked up.
    :param codec: checks the schedules' signatures and signs their tasks.
    :param is_waiting: says whether the worker waits for work at the moment.
    :param on_rejected: tells of the event ``omniq_schedule_rejected``.
    """

    def __init__(
        self,
        storage: Storage,
        plugins: Plugins,
        codec: Codec,
        *,
        is_waiting: Callable[[], bool],
        on_rejected: Callable[..., None] | None = None,
    ) -> None:
        self._storage = storage
        self._plugins = plugins
        self._codec = codec
        self._is_waiting = is_waiting
        self._on_rejected = on_rejected
        self._outage = Outage(_log, "schedules cannot fire", "schedules fire again")
        self._look = asyncio.Event()

    def look(self) -> None:
        """Make it look at the store now: the worker's wait for work ended, perhaps because a schedule is due."""
        self._look.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            self._look.clear()
            try:
                while await self.fire_due() >= STEP:
                    pass
                self._outage.succeeded()
            except StorageError as error:
                self._outage.failed(error)
            pause = IDLE_LOOK if self._is_waiting() else BUSY_LOOK
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(pause * random.uniform(0.9, 1.1)):
                    await self._look.wait()

    async def fire_due(self) -> int:
        """Fire every schedule that is due, once.

        :return: how many were due.
        """
        due = await self._storage.due_schedules(STEP)
        for schedule in due:
            await self._fire(schedule)
        return len(due)

    async def _fire(self, schedule: Schedule) -> None:
        live = schedule.overlap is Overlap.SKIP and await self._is_live(schedule.last_task)
        now = await self._storage.now()
        try:
            self._codec.admit_schedule(schedule)
            trigger = decode_value(schedule.trigger, self._plugins.trigger)
            advanced, tasks = advance(schedule, trigger, now, last_run_is_live=live)
        except Exception as error:  # a trigger is foreign code; one that is broken must not keep the others from firing
            await self._set_aside(schedule, error)
            return
        # Under the key that signs now, should it have been signed with one that only verifies by now.
        if await self._storage.fire(self._codec.sign_schedule(advanced), [self._codec.sign(task) for task in tasks]):
            _log.info("schedule %s fired %d tasks; next run %s", schedule.id, len(tasks), advanced.next_run)

    async def _is_live(self, task_id: str | None) -> bool:
        if task_id is None:
            return False
        (task,) = await self._storage.get([task_id])
        return task is not None and not task.state.is_final

    async def _set_aside(self, schedule: Schedule, error: Exception) -> None:
        # Another worker may know the trigger, or the key; but if none does, the schedule must not be looked at a
        # hundred times a second.
        told = str(error) if isinstance(error, OmniQError) else f"{type(error).__name__}: {error}"
        _log.error("schedule %s cannot fire here: %s; looking again in a minute", shown(schedule.id), told)
        if isinstance(error, PayloadRejected) and self._on_rejected is not None:
            self._on_rejected("omniq_schedule_rejected", schedule=schedule, reason=told)
        later = await self._storage.now() + timedelta(minutes=1)
        await self._storage.fire(evolve(schedule, next_run=later), [])
