"""What is stored of schedules: made, changed, and kept in step with those that a program declares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve

from omniq._client.declared import DeclaredSchedule
from omniq._client.limits import reconcile_limits
from omniq._tasks.policies import encode_value
from omniq._worker.firing import first_run
from omniq.errors import ScheduleNotFound, StorageUnavailable
from omniq.schedule import Schedule
from omniq.storage import Storage
from omniq.storage.escaping import get_logger, shown

if TYPE_CHECKING:
    from omniq._client.schedules import Timetable

__all__ = ["TRIES", "StoredSchedules", "contended", "found_schedule", "same_rhythm", "updated_schedule"]

_log = get_logger("omniq.scheduler")

TRIES = 20
"""How often a change is tried again when the schedule was changed meanwhile."""


class StoredSchedules:
    """The part of a :class:`~omniq.TaskQueue` that makes and changes stored schedules.

    :param queue: the queue, which encodes and signs.
    """

    def __init__(self, queue: Timetable) -> None:
        self._queue = queue

    async def reconcile(self, app: str | None = None) -> None:
        """Make the stored schedules and limits that were declared in code equal to the code's, as workers do at start.

        A declared schedule belongs to each app that declares it, and is removed when the last of them no longer does.
        Schedules made at run time are left alone.

        :param app: the app whose code this is: the ``module:attribute`` that a worker was started with; None: the name
            of this program's main module.
        """
        app = _program() if app is None else app
        storage = (await self._queue.connections.current()).storage
        await reconcile_limits(self._queue, storage, app)
        told: dict[str, list[str]] = {"added": [], "changed": [], "removed": []}
        for declared in self._queue.declared.values():
            try:
                what = await self._store_declared(storage, declared, app)
            except StorageUnavailable:
                raise
            except Exception as error:  # a trigger is foreign code; a broken one must not keep a worker from starting
                _log.error("schedule %s is not stored as it is declared: %s", shown(declared.id), error)
            else:
                told.setdefault(what, []).append(declared.id)
        for schedule in await storage.get_schedules():
            if schedule.declared and app in schedule.apps and schedule.id not in self._queue.declared:
                told.setdefault(await self._drop_declared(storage, schedule, app), []).append(schedule.id)
        changes = [f"{what}: {', '.join(map(shown, ids))}" for what, ids in told.items() if what and ids]
        if changes:
            _log.info("schedules declared by %s: %s", app, "; ".join(changes))

    async def _store_declared(self, storage: Storage, declared: DeclaredSchedule, app: str) -> str:
        """Store a declared schedule, and say in a word what that changed; nothing if nothing."""
        for _ in range(TRIES):
            made = evolve(await self.made(declared, storage), declared=True, apps=(app,))
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
            self._queue.codec.admit_replacing(old)
            updated = evolve(updated_schedule(old, made), apps=tuple(dict.fromkeys((*old.apps, app))))
            if updated == old:
                return ""
            if await storage.put_schedule(updated, old.revision) is not None:
                return "" if evolve(updated, apps=old.apps) == old else "changed"
        raise contended(declared.id)

    async def _drop_declared(self, storage: Storage, schedule: Schedule, app: str) -> str:
        if schedule.apps == (app,):
            return "removed" if await storage.delete_schedule(schedule.id) else ""

        def left(found: Schedule, _: datetime) -> Schedule:
            return evolve(found, apps=tuple(name for name in found.apps if name != app))

        await self.change(schedule.id, left)
        return "left to other apps"

    async def made(self, given: DeclaredSchedule, storage: Storage) -> Schedule:
        """Return what is to be stored for what a program says of a schedule.

        :param storage: where it is to be stored.
        """
        options = given.options
        schedule = Schedule(
            id=given.id,
            task=self._queue.flows.order_of_runs(given.call, storage),
            trigger=encode_value(given.trigger),
            next_run=None,
            misfire=options.misfire,
            overlap=options.overlap,
            jitter=options.jitter,
            start=options.start,
            end=options.end,
        )
        first = first_run(schedule, given.trigger, await storage.now())
        return self._queue.codec.sign_schedule(evolve(schedule, next_run=first))

    async def change(self, schedule_id: str, change: Callable[[Schedule, datetime], Schedule | None]) -> bool:
        """Change a stored schedule, and try again where others change it meanwhile.

        :param change: returns what a schedule becomes at a time; None: it stays as it is.
        :return: whether it was changed.
        :raises ScheduleNotFound: if it is not in the store.
        """
        storage = (await self._queue.connections.current()).storage
        for _ in range(TRIES):
            schedule = await found_schedule(storage, schedule_id)
            changed = change(schedule, await storage.now())
            if changed is None:
                return False
            if await storage.put_schedule(changed, expected_revision=schedule.revision) is not None:
                return True
        raise contended(schedule_id)


async def found_schedule(storage: Storage, schedule_id: str) -> Schedule:
    """Return a stored schedule.

    :raises ScheduleNotFound: if it is not in the store.
    """
    found = await storage.get_schedules([schedule_id])
    if not found or found[0].id != schedule_id:
        raise ScheduleNotFound(schedule_id)
    return found[0]


def contended(schedule_id: str) -> StorageUnavailable:
    """Return the error that others changed a schedule again and again."""
    return StorageUnavailable(f"schedule {schedule_id!r} was changed by others {TRIES} times in a row; try again")


def same_rhythm(old: Schedule, new: Schedule) -> bool:
    """Return whether two schedules fire at the same times."""
    return (old.trigger, old.start, old.end) == (new.trigger, new.start, new.end)


def updated_schedule(old: Schedule, new: Schedule) -> Schedule:
    """Return what is stored with what is said of it now: of what has happened to it nothing is lost."""
    return evolve(
        new,
        task=evolve(new.task, id=old.task.id),
        next_run=old.next_run if same_rhythm(old, new) else new.next_run,
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
