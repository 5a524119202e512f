"""A queue's schedules: made, changed and triggered at run time, and kept in step with those declared in code."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from attrs import evolve

from omniq.codec import Codec
from omniq.control import Control
from omniq.durations import aware, duration
from omniq.errors import InvalidTrigger, ScheduleNotFound, StorageUnavailable
from omniq.functions import TaskCall, TaskFunction
from omniq.handle import TaskHandle
from omniq.options import Duration
from omniq.plugins import Plugins
from omniq.policies import decode_value, encode_value
from omniq.schedule import Misfire, Overlap, Schedule, Trigger
from omniq.scheduler import live_tasks, note_holder
from omniq.storage import Enqueued, Storage
from omniq.task import NewTask
from omniq.ticks import first_run, next_run, task_of_run
from omniq.twins import sync

__all__ = ["Timetable"]

C = TypeVar("C", Misfire, Overlap)

LONGEST_ID = 300
TRIES = 20
"""How often a change is tried again when somebody else changed the schedule meanwhile."""
MOST_LIVE = 100
"""How many live tasks of earlier runs a schedule names, for ``overlap="skip"``."""


class Timetable(Control):
    """The scheduling half of a :class:`~omniq.TaskQueue`."""

    plugins: Plugins
    codec: Codec
    functions: dict[str, TaskFunction[Any, Any]]
    declared: dict[str, Trigger]

    @abstractmethod
    def order(self, call: TaskCall[Any]) -> NewTask: ...

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
    ) -> Schedule:
        """Store a schedule; one with the same id is replaced.

        :param call: what to enqueue at each run, as ``function.call(…)`` gave it.
        :param trigger: when: ``Every(…)``, ``Cron(…)``, ``At(…)``, or a plugin's.
        :param id: the schedule's name, by which it is changed and found.
        :param misfire: what to do with runs that were missed: ``"latest"``: one for all of them; ``"all"``: one for
            each; ``"skip"``: none.
        :param overlap: ``"skip"`` leaves a run out while the task of the one before is live.
        :param jitter: seconds (or a timedelta) by which each run may be put off at random.
        :param start: an aware datetime before which nothing runs.
        :param end: an aware datetime after which nothing runs.
        :return: the schedule as stored.
        :raises InvalidTrigger: if it would never fire.
        :raises SerializationError: if an argument cannot be encoded; names the path to it.
        """
        task = self.order(call)
        storage = await self._storage()
        schedule = _made(
            _check_id(id),
            task,
            trigger,
            now=await storage.now(),
            misfire=_choice(Misfire, misfire, "misfire"),
            overlap=_choice(Overlap, overlap, "overlap"),
            jitter=duration(jitter, "jitter"),
            start=None if start is None else aware(start, "start"),
            end=None if end is None else aware(end, "end"),
        )
        stored = await storage.put_schedule(self.codec.sign_schedule(schedule))
        assert stored is not None  # without an expected revision nothing can be in the way
        return stored

    schedule = sync(aschedule)

    async def aschedules(self) -> list[Schedule]:
        """Give every schedule, by id."""
        return await (await self._storage()).get_schedules()

    schedules = sync(aschedules)

    async def apause_schedule(self, schedule_id: str) -> bool:
        """Keep a schedule from firing until it is resumed.

        :return: False if it was paused already.
        :raises ScheduleNotFound: if it is not in the store.
        """

        def paused(schedule: Schedule, now: datetime) -> Schedule | None:
            return None if schedule.paused else evolve(schedule, paused=True)

        return await self._change(schedule_id, paused)

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
            if following is not None and following <= now:
                self.codec.admit_schedule(schedule)
                following = next_run(schedule, self._trigger(schedule), now)
            return evolve(schedule, paused=False, next_run=following)

        return await self._change(schedule_id, resumed)

    resume_schedule = sync(aresume_schedule)

    async def atrigger_schedule(self, schedule_id: str) -> TaskHandle[Any]:
        """Enqueue a schedule's task now, whatever its trigger says. Its rhythm goes on as before.

        :return: a handle of the task; where a live task has the unique key of the schedule's call, of that one, with
            ``created`` False.
        :raises ScheduleNotFound: if it is not in the store.
        :raises PayloadRejected: if it is unsigned or altered.
        """
        storage = await self._storage()
        task: NewTask | None = None
        for _ in range(TRIES):
            schedule = await _found(storage, schedule_id)
            if task is not None and schedule.last_task == task.id:
                return self._handle_of_run(task, Enqueued(task.id, True))  # it was the answer that was lost
            self.codec.admit_schedule(schedule)
            task = task or self.codec.sign(task_of_run(schedule, None, await storage.now()))
            live = await live_tasks(storage, schedule) if schedule.overlap is Overlap.SKIP else []
            fired = evolve(schedule, last_task=task.id, live_tasks=tuple(live[-MOST_LIVE:]))
            stored = await storage.fire(fired, [task])
            if stored is not None:
                await note_holder(storage, fired, stored)
                return self._handle_of_run(task, stored[0])
        raise _contended(schedule_id)

    trigger_schedule = sync(atrigger_schedule)

    async def adelete_schedule(self, schedule_id: str) -> bool:
        """Remove a schedule. Tasks that it enqueued stay.

        :return: whether it was there.
        """
        return await (await self._storage()).delete_schedule(schedule_id)

    delete_schedule = sync(adelete_schedule)

    @abstractmethod
    def _handle_of_run(self, task: NewTask, stored: Enqueued) -> TaskHandle[Any]: ...

    async def areconcile_schedules(self) -> None:
        """Make the stored schedules that were declared in code equal to the code's. A worker does this when it starts.

        Schedules made at run time are left alone.
        """
        storage = await self._storage()
        now = await storage.now()
        stored = {schedule.id: schedule for schedule in await storage.get_schedules()}
        for unsigned in _declared(self.declared, self.functions, self.order, now):
            schedule = self.codec.sign_schedule(unsigned)
            old = stored.get(schedule.id)
            if old is None:
                await storage.put_schedule(schedule, expected_revision=0)
            elif old.declared and not _same(old, schedule):
                kept = old.next_run if old.trigger == schedule.trigger else schedule.next_run
                await storage.put_schedule(
                    evolve(schedule, next_run=kept, paused=old.paused, last_run=old.last_run, last_task=old.last_task),
                    expected_revision=old.revision,
                )
        for schedule in stored.values():
            if schedule.declared and schedule.id not in self.declared:
                await storage.delete_schedule(schedule.id)

    async def _change(self, schedule_id: str, change: Callable[[Schedule, datetime], Schedule | None]) -> bool:
        storage = await self._storage()
        for _ in range(TRIES):
            schedule = await _found(storage, schedule_id)
            changed = change(schedule, await storage.now())
            if changed is None:
                return False
            if await storage.put_schedule(changed, expected_revision=schedule.revision) is not None:
                return True
        raise _contended(schedule_id)

    def _trigger(self, schedule: Schedule) -> Trigger:
        return decode_value(schedule.trigger, self.plugins.trigger)


async def _found(storage: Storage, schedule_id: str) -> Schedule:
    found = await storage.get_schedules([schedule_id])
    if not found:
        raise ScheduleNotFound(schedule_id)
    return found[0]


def _contended(schedule_id: str) -> StorageUnavailable:
    return StorageUnavailable(f"schedule {schedule_id!r} was changed by others {TRIES} times in a row; try again")


def _made(
    schedule_id: str,
    task: NewTask,
    trigger: Trigger,
    *,
    now: datetime,
    misfire: Misfire = Misfire.LATEST,
    overlap: Overlap = Overlap.ALLOW,
    jitter: float = 0.0,
    start: datetime | None = None,
    end: datetime | None = None,
    declared: bool = False,
) -> Schedule:
    if not isinstance(trigger, Trigger):
        raise TypeError(f"trigger must be a Trigger such as Every(60) or Cron('0 9 * * *'), not {trigger!r}")
    if start is not None and end is not None and end < start:
        raise InvalidTrigger(f"schedule {schedule_id!r} ends ({end}) before it starts ({start})")
    schedule = Schedule(
        id=schedule_id,
        task=task,
        trigger=encode_value(trigger),
        next_run=None,
        misfire=misfire,
        overlap=overlap,
        jitter=jitter,
        start=start,
        end=end,
        declared=declared,
    )
    first = first_run(schedule, trigger, now)
    if first is None:
        bounds = [f"after its start ({start})"] * (start is not None) + [f"before its end ({end})"] * (end is not None)
        raise InvalidTrigger(
            f"schedule {schedule_id!r} would never fire: {trigger!r} has no time {' and '.join(bounds)}".rstrip()
        )
    return evolve(schedule, next_run=first)


def _declared(
    triggers: Mapping[str, Trigger],
    functions: Mapping[str, TaskFunction[Any, Any]],
    order: Callable[[TaskCall[Any]], NewTask],
    now: datetime,
) -> list[Schedule]:
    return [
        _made(name, order(functions[name].call()), trigger, now=now, declared=True)
        for name, trigger in triggers.items()
    ]


def _same(old: Schedule, new: Schedule) -> bool:
    return old.trigger == new.trigger and evolve(old.task, id="") == evolve(new.task, id="")


def _check_id(schedule_id: object) -> str:
    if not isinstance(schedule_id, str):
        raise TypeError(f"a schedule's id must be a string, not {schedule_id!r}")
    if not 0 < len(schedule_id) <= LONGEST_ID or not schedule_id.isprintable():
        raise ValueError(f"a schedule's id must have 1 to {LONGEST_ID} printable characters, not {schedule_id!r}")
    return schedule_id


def _choice(kind: type[C], value: str, name: str) -> C:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, map(str, kind)))}, not {value!r}") from None
