"""A queue's schedules: made, changed and triggered at run time, and kept in step with those declared in code."""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attrs import evolve

from omniq._client.declared import DeclaredSchedule, ScheduleOptions
from omniq._client.limits import Limits
from omniq._client.stored_schedules import (
    TRIES,
    StoredSchedules,
    contended,
    found_schedule,
    same_rhythm,
    updated_schedule,
)
from omniq._runtime.sync import sync
from omniq._tasks.functions import TaskCall, TaskFunction
from omniq._tasks.handle import TaskHandle
from omniq._tasks.options import Duration
from omniq._tasks.payloads import Codec
from omniq._tasks.policies import decode_value
from omniq._worker.firing import next_run, task_of_run
from omniq._worker.scheduler import fire, live_tasks, note_holder
from omniq.errors import InvalidTrigger, OmniQError
from omniq.plugins import Plugins
from omniq.schedule import Misfire, Overlap, Schedule, Trigger
from omniq.storage import Enqueued
from omniq.storage.escaping import get_logger
from omniq.task import NewTask

if TYPE_CHECKING:
    from omniq._client.queue_flows import QueueFlows

__all__ = ["Timetable"]

_log = get_logger("omniq.scheduler")

MOST_LIVE = 100
"""How many live tasks of earlier runs a schedule names, for ``overlap="skip"``."""


class Timetable(Limits):
    """The scheduling half of a :class:`~omniq.TaskQueue`."""

    plugins: Plugins
    codec: Codec
    functions: dict[str, TaskFunction[Any, Any]]
    declared: dict[str, DeclaredSchedule]

    @property
    @abstractmethod
    def flows(self) -> QueueFlows: ...

    @cached_property
    def stored_schedules(self) -> StoredSchedules:
        """The part of it that makes and changes what is stored."""
        return StoredSchedules(self)

    async def aschedule(
        self,
        call: TaskCall[Any],
        trigger: Trigger,
        *,
        id: str,  # noqa: A002  # the name that users know from everywhere else
        misfire: Misfire | str = Misfire.LATEST,
        overlap: Overlap | str = Overlap.ALLOW,
        jitter: Duration = 0.0,
        start: datetime | None = None,
        end: datetime | None = None,
        replace: bool = False,
    ) -> Schedule:
        """Store a schedule, so that the one with this id says what is given here.

        What is stored already in the same words stays as it is; so a program may call this whenever it starts. Of one
        that is changed, the pause, the last run and what may still be running of it are kept, and its next run where
        the trigger, ``start`` and ``end`` are the same.

        :param call: what to enqueue at each run, as ``function.call(…)`` returned it; with all calls that it needs, if
            any: then a run is a task named ``flow:`` and the function, which stores the flow.
        :param trigger: when: ``Every(…)``, ``Cron(…)``, ``At(…)``, or a plugin's.
        :param id: the schedule's name, by which it is changed and found.
        :param misfire: what to do with runs that were missed: ``"latest"``: one for all of them; ``"all"``: one for
            each; ``"skip"``: none.
        :param overlap: ``"skip"`` leaves a run out while a task of an earlier one is live.
        :param jitter: seconds (or a timedelta) by which each run may be put off at random.
        :param start: an aware datetime before which nothing runs.
        :param end: an aware datetime after which nothing runs.
        :param replace: start anew, as if nothing were stored under the id.
        :return: the schedule as stored.
        :raises InvalidTrigger: if it would never fire.
        :raises ConfigurationError: if the call needs others, and the queue's store holds no flows.
        :raises ValueError: if the calls wait for each other in a circle.
        :raises PayloadRejected: if the one that is stored was signed with a key that this queue does not have, unless
            it is to be replaced.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        options = ScheduleOptions(misfire=misfire, overlap=overlap, jitter=jitter, start=start, end=end)
        given = DeclaredSchedule(id=id, call=call, trigger=trigger, options=options)
        storage = await self._storage()
        for _ in range(TRIES):
            made = await self.stored_schedules.made(given, storage)
            found = [] if replace else await storage.get_schedules([id])
            if found:
                self.codec.admit_replacing(found[0])
                made = updated_schedule(found[0], made)
                if made == found[0]:
                    return made
            if made.next_run is None and not (found and same_rhythm(found[0], made)):
                raise _never(made, trigger)
            expected = None if replace else made.revision
            if (stored := await storage.put_schedule(made, expected)) is not None:
                self._acted("schedule", id, True)
                return stored
        raise contended(id)

    schedule = sync(aschedule)

    async def aschedules(self) -> list[Schedule]:
        """Return every schedule, by id."""
        return await (await self._storage()).get_schedules()

    schedules = sync(aschedules)

    async def apause_schedule(self, schedule_id: str) -> bool:
        """Keep a schedule from firing until it is resumed.

        :return: False if it was paused already.
        :raises ScheduleNotFound: if it is not in the store.
        """

        def paused(schedule: Schedule, now: datetime) -> Schedule | None:
            return None if schedule.paused else evolve(schedule, paused=True)

        return self._acted("pause_schedule", schedule_id, await self.stored_schedules.change(schedule_id, paused))

    pause_schedule = sync(apause_schedule)

    async def aresume_schedule(self, schedule_id: str) -> bool:
        """Let a paused schedule fire again, in its old rhythm. Runs that fell into the pause are not made up.

        :return: False if it was not paused.
        :raises ScheduleNotFound: if it is not in the store.
        :raises PayloadRejected: if it is unsigned or altered, and its trigger would have to be read.
        """

        def resumed(schedule: Schedule, now: datetime) -> Schedule | None:
            if not schedule.paused:
                return None
            following = schedule.next_run
            try:
                self.codec.admit_schedule(schedule)
                following = next_run(schedule, self._trigger(schedule), now)
            except OmniQError:
                # What is still to come needs no reading, and what comes after it cannot be told here.
                if following is None or following <= now:
                    raise
            return evolve(schedule, paused=False, next_run=following)

        return self._acted("resume_schedule", schedule_id, await self.stored_schedules.change(schedule_id, resumed))

    resume_schedule = sync(aresume_schedule)

    async def atrigger_schedule(self, schedule_id: str) -> TaskHandle[Any]:
        """Enqueue a schedule's task now, whatever its trigger says. Its rhythm goes on as before.

        :return: a handle of the task, which of a flow is the one that stores it, and returns the id of the flow's last
            task; where a live task has the unique key of the schedule's call, of that one, with
            ``created`` False.
        :raises ScheduleNotFound: if it is not in the store.
        :raises PayloadRejected: if it is unsigned or altered.
        """
        storage = await self._storage()
        task: NewTask | None = None
        for _ in range(TRIES):
            schedule = await found_schedule(storage, schedule_id)
            if task is not None and schedule.last_task == task.id:
                self._acted("trigger_schedule", schedule_id, True)  # it was the answer that was lost
                return self._handle_of_run(task, Enqueued(task.id, True))
            self.codec.admit_schedule(schedule)
            task = task or task_of_run(schedule, None, await storage.now())
            live = await live_tasks(storage, schedule) if schedule.overlap is Overlap.SKIP else []
            fired = evolve(schedule, last_task=task.id, live_tasks=tuple(live[-MOST_LIVE:]))
            _, stored = await fire(storage, self.codec, fired, [task])
            if stored is not None:
                await note_holder(storage, fired, stored)
                self._acted("trigger_schedule", schedule_id, stored[0].created)
                return self._handle_of_run(task, stored[0])
        raise contended(schedule_id)

    trigger_schedule = sync(atrigger_schedule)

    async def adelete_schedule(self, schedule_id: str) -> bool:
        """Remove a schedule. Tasks that it enqueued stay.

        :return: whether it was there.
        """
        deleted = await (await self._storage()).delete_schedule(schedule_id)
        return self._acted("delete_schedule", schedule_id, deleted)

    delete_schedule = sync(adelete_schedule)

    @abstractmethod
    def _handle_of_run(self, task: NewTask, stored: Enqueued) -> TaskHandle[Any]: ...

    def _trigger(self, schedule: Schedule) -> Trigger:
        return decode_value(schedule.trigger, self.plugins.trigger)


def _never(schedule: Schedule, trigger: Trigger) -> InvalidTrigger:
    bounds = []
    if schedule.start is not None:
        bounds.append(f"after its start ({schedule.start})")
    if schedule.end is not None:
        bounds.append(f"before its end ({schedule.end})")
    where = f" {' and '.join(bounds)}" if bounds else ""
    return InvalidTrigger(f"schedule {schedule.id!r} would never fire: {trigger!r} has no time{where}")
