"""A queue's schedules: made, changed and triggered at run time, and kept in step with those declared in code."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import evolve, field, frozen

from omniq._client.limits import Limits
from omniq._runtime.sync import sync
from omniq._tasks.functions import TaskCall, TaskFunction
from omniq._tasks.handle import TaskHandle
from omniq._tasks.options import Duration
from omniq._tasks.payloads import Codec
from omniq._tasks.policies import decode_value, encode_value
from omniq._worker.firing import first_run, next_run, task_of_run
from omniq._worker.scheduler import fire, live_tasks, note_holder
from omniq.errors import InvalidTrigger, OmniQError, ScheduleNotFound, StorageUnavailable
from omniq.plugins import Plugins
from omniq.schedule import Misfire, Overlap, Schedule, Trigger
from omniq.storage import Enqueued, Storage
from omniq.storage.durations import aware, duration
from omniq.storage.escaping import get_logger, shown
from omniq.task import NewTask

if TYPE_CHECKING:
    from omniq._client.queue_flows import QueueFlows

__all__ = ["DeclaredSchedule", "ScheduleOptions", "Timetable", "check_schedule_id", "check_trigger"]

_log = get_logger("omniq.scheduler")

C = TypeVar("C", Misfire, Overlap)

LONGEST_ID = 300
TRIES = 20
"""How often a change is tried again when the schedule was changed meanwhile."""
MOST_LIVE = 100
"""How many live tasks of earlier runs a schedule names, for ``overlap="skip"``."""


def check_schedule_id(schedule_id: object) -> str:
    """Return a schedule's id if it can be one.

    :raises TypeError: if it is no string.
    :raises ValueError: if it is empty, too long, or has characters that cannot be shown.
    """
    if not isinstance(schedule_id, str):
        raise TypeError(f"a schedule's id must be a string, not {schedule_id!r}")
    if not 0 < len(schedule_id) <= LONGEST_ID or not schedule_id.isprintable():
        raise ValueError(f"a schedule's id must have 1 to {LONGEST_ID} printable characters, not {schedule_id!r}")
    return schedule_id


def check_trigger(trigger: object) -> Trigger:
    """Return a trigger if it is one.

    :raises TypeError: if it is none; the message says what to write.
    """
    if isinstance(trigger, Trigger):
        return trigger
    match trigger:
        case str():
            mend = f"write Cron({trigger!r})"
        case int() | float():
            mend = f"write Every({trigger!r})"
        case datetime():
            mend = "write At(...)"
        case _:
            mend = "such as Every(60), Cron('0 9 * * *') or At(...)"
    raise TypeError(f"a schedule's trigger must be a Trigger, not {trigger!r}; {mend}")


def _choice(kind: type[C], value: str, name: str) -> C:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, map(str, kind)))}, not {value!r}") from None


def _misfire(value: str) -> Misfire:
    return _choice(Misfire, value, "misfire")


def _overlap(value: str) -> Overlap:
    return _choice(Overlap, value, "overlap")


def _jitter(value: Duration) -> float:
    return duration(value, "jitter")


def _start(value: datetime | None) -> datetime | None:
    return None if value is None else aware(value, "start")


def _end(value: datetime | None) -> datetime | None:
    return None if value is None else aware(value, "end")


@frozen(kw_only=True)
class ScheduleOptions:
    """What else can be said of a schedule than its call and its trigger. Every field is checked on construction."""

    misfire: Misfire = field(default=Misfire.LATEST, converter=_misfire)
    overlap: Overlap = field(default=Overlap.ALLOW, converter=_overlap)
    jitter: float = field(default=0.0, converter=_jitter)
    start: datetime | None = field(default=None, converter=_start)
    end: datetime | None = field(default=None, converter=_end)

    def __attrs_post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.end < self.start:
            raise InvalidTrigger(f"a schedule ends ({self.end}) before it starts ({self.start})")


@frozen(kw_only=True)
class DeclaredSchedule:
    """A schedule as it was declared in code."""

    id: str = field(converter=check_schedule_id)
    call: TaskCall[Any]
    trigger: Trigger = field(converter=check_trigger)
    options: ScheduleOptions = ScheduleOptions()

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.call, TaskCall):
            raise TypeError(f"{self.call!r} is no call of a task; write function.call(…), which does not run it yet")


class Timetable(Limits):
    """The scheduling half of a :class:`~omniq.TaskQueue`."""

    plugins: Plugins
    codec: Codec
    functions: dict[str, TaskFunction[Any, Any]]
    declared: dict[str, DeclaredSchedule]

    @property
    @abstractmethod
    def flows(self) -> QueueFlows: ...

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

        :param call: what to enqueue at each run, as ``function.call(…)`` gave it; with all calls that it needs, if any:
            then a run is a task named ``flow:`` and the function, which stores the flow.
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
            made = await self._made(given, storage)
            found = [] if replace else await storage.get_schedules([id])
            if found:
                self.codec.admit_replacing(found[0])
                made = _updated(found[0], made)
                if made == found[0]:
                    return made
            if made.next_run is None and not (found and _same_rhythm(found[0], made)):
                raise _never(made, trigger)
            expected = None if replace else made.revision
            if (stored := await storage.put_schedule(made, expected)) is not None:
                self._acted("schedule", id, True)
                return stored
        raise _contended(id)

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

        return self._acted("pause_schedule", schedule_id, await self._change(schedule_id, paused))

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

        return self._acted("resume_schedule", schedule_id, await self._change(schedule_id, resumed))

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
            schedule = await _found(storage, schedule_id)
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
        raise _contended(schedule_id)

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

    async def areconcile_schedules(self, app: str | None = None) -> None:
        """Make the stored schedules and limits that were declared in code equal to the code's, as workers do at start.

        A declared schedule belongs to each app that declares it, and is removed when the last of them no longer does.
        Schedules made at run time are left alone.

        :param app: the app whose code this is: the ``module:attribute`` that a worker was started with; None: the name
            of this program's main module.
        """
        app = _program() if app is None else app
        storage = await self._storage()
        await self._reconcile_limits(storage, app)
        told: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
        for declared in self.declared.values():
            try:
                what = await self._store_declared(storage, declared, app)
            except StorageUnavailable:
                raise
            except Exception as error:  # a trigger is foreign code; a broken one must not keep a worker from starting
                _log.error("schedule %s is not stored as it is declared: %s", shown(declared.id), error)
            else:
                told.setdefault(what, []).append(declared.id)
        for schedule in await storage.get_schedules():
            if schedule.declared and app in schedule.apps and schedule.id not in self.declared:
                told.setdefault(await self._drop_declared(storage, schedule, app), []).append(schedule.id)
        changes = [f"{what}: {', '.join(map(shown, ids))}" for what, ids in told.items() if what and ids]
        if changes:
            _log.info("schedules declared by %s: %s", app, "; ".join(changes))

    async def _store_declared(self, storage: Storage, declared: DeclaredSchedule, app: str) -> str:
        """Store a declared schedule, and say in a word what that changed; nothing if nothing."""
        for _ in range(TRIES):
            made = evolve(await self._made(declared, storage), declared=True, apps=(app,))
            found = await storage.get_schedules([declared.id])
            if not found:
                if made.next_run is None:
                    _log.warning("schedule %s has no run any more: %r", shown(made.id), declared.trigger)
                if await storage.put_schedule(made, 0) is not None:
                    return "added"
                continue
            (old,) = found
            if not old.declared:
                _log.warning(
                    "schedule %s was made at run time and stays as it is; the one that is declared needs another id",
                    shown(old.id),
                )
                return ""
            self.codec.admit_replacing(old)
            updated = evolve(_updated(old, made), apps=tuple(dict.fromkeys((*old.apps, app))))
            if updated == old:
                return ""
            if await storage.put_schedule(updated, old.revision) is not None:
                return "" if evolve(updated, apps=old.apps) == old else "changed"
        raise _contended(declared.id)

    async def _drop_declared(self, storage: Storage, schedule: Schedule, app: str) -> str:
        if schedule.apps == (app,):
            return "removed" if await storage.delete_schedule(schedule.id) else ""

        def left(found: Schedule, _: datetime) -> Schedule:
            return evolve(found, apps=tuple(name for name in found.apps if name != app))

        await self._change(schedule.id, left)
        return "left to other apps"

    async def _made(self, given: DeclaredSchedule, storage: Storage) -> Schedule:
        options = given.options
        schedule = Schedule(
            id=given.id,
            task=self.flows.order_of_runs(given.call, storage),
            trigger=encode_value(given.trigger),
            next_run=None,
            misfire=options.misfire,
            overlap=options.overlap,
            jitter=options.jitter,
            start=options.start,
            end=options.end,
        )
        first = first_run(schedule, given.trigger, await storage.now())
        return self.codec.sign_schedule(evolve(schedule, next_run=first))

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
    if not found or found[0].id != schedule_id:
        raise ScheduleNotFound(schedule_id)
    return found[0]


def _contended(schedule_id: str) -> StorageUnavailable:
    return StorageUnavailable(f"schedule {schedule_id!r} was changed by others {TRIES} times in a row; try again")


def _never(schedule: Schedule, trigger: Trigger) -> InvalidTrigger:
    bounds = []
    if schedule.start is not None:
        bounds.append(f"after its start ({schedule.start})")
    if schedule.end is not None:
        bounds.append(f"before its end ({schedule.end})")
    where = f" {' and '.join(bounds)}" if bounds else ""
    return InvalidTrigger(f"schedule {schedule.id!r} would never fire: {trigger!r} has no time{where}")


def _same_rhythm(old: Schedule, new: Schedule) -> bool:
    return (old.trigger, old.start, old.end) == (new.trigger, new.start, new.end)


def _updated(old: Schedule, new: Schedule) -> Schedule:
    """Return what is stored with what is said of it now: of what has happened to it nothing is lost."""
    return evolve(
        new,
        task=evolve(new.task, id=old.task.id),
        next_run=old.next_run if _same_rhythm(old, new) else new.next_run,
        paused=old.paused,
        last_run=old.last_run,
        last_task=old.last_task,
        live_tasks=old.live_tasks,
        revision=old.revision,
    )


def _program() -> str:
    """Return the name of this program's main module."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    return Path(getattr(main, "__file__", None) or sys.argv[0] or "python").stem
