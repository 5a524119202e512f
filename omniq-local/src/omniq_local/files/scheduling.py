"""Schedules, each a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.storage import Enqueued
from omniq.storage.validation import UNREADABLE, check_schedule, corrupt, log_once
from omniq.task import NewTask, When
from omniq_local.files.change import Change
from omniq_local.files.names import schedule_path, text_of
from omniq_local.files.producing import enqueue
from omniq_local.files.records import dump_json, dump_order, load_order
from omniq_local.files.times import micros, moment, read_time, show_time

__all__ = ["bad_schedules", "delete_schedule", "due_schedules", "fire", "get_schedules", "outlook", "put_schedule"]

_log = get_logger("omniq.files")

_TIMES = ("next_run", "start", "end", "last_run")


def _all(change: Change) -> dict[str, Schedule]:
    folder = change.folder
    if folder.schedules is None:
        found, bad = {}, []
        for name in folder.tree.names("schedules"):
            path = f"schedules/{name}"
            try:
                schedule = check_schedule(_load(json.loads(folder.tree.read(path))))
                if schedule_path(schedule.id) != path:
                    raise ValueError(f"it is another schedule, {schedule.id!r}")
            except (OSError, *UNREADABLE) as error:
                schedule_id = text_of(name.removesuffix(".json"))
                problem = corrupt("schedule", schedule_id or path, error, place=f"{folder.base}/{path}")
                log_once(_log, problem)
                bad.append(problem)
            else:
                found[schedule.id] = schedule
        folder.schedules, folder.bad_schedules = found, bad
    return folder.schedules


def bad_schedules(change: Change) -> list[CorruptRecord]:
    """Return what is wrong with each schedule that cannot be read."""
    change.folder.schedules = None
    _all(change)
    return change.folder.bad_schedules


def put_schedule(schedule: Schedule, expected_revision: int | None, change: Change) -> Schedule | None:
    """See :meth:`~omniq.storage.Storage.put_schedule`."""
    known = _all(change)
    stored = known.get(schedule.id)
    revision = 0 if stored is None else stored.revision
    if expected_revision is not None and expected_revision != revision:
        return None
    # No schedule has changed more often than all of them together: what begins with their count has never been.
    return _store(evolve(schedule, revision=(revision or change.folder.control.schedules) + 1), change)


def _store(schedule: Schedule, change: Change) -> Schedule:
    path = schedule_path(schedule.id)
    content = _dump(schedule)
    change.writes.append(("write", path, content, change.content(path)))
    # As it will be read again: datetimes in UTC.
    kept = _load(json.loads(content))
    _all(change)[schedule.id] = kept
    change.schedules_changed = True
    return kept


def get_schedules(ids: Sequence[str] | None, change: Change) -> list[Schedule]:
    """See :meth:`~omniq.storage.Storage.get_schedules`."""
    known = _all(change)
    return [known[each] for each in (sorted(known) if ids is None else ids) if each in known]


def delete_schedule(schedule_id: str, change: Change) -> bool:
    """See :meth:`~omniq.storage.Storage.delete_schedule`."""
    path = schedule_path(schedule_id)
    # One that cannot be read is there, too.
    if _all(change).pop(schedule_id, None) is None and not change.folder.tree.exists(path):
        return False
    change.folder.bad_schedules = [bad for bad in change.folder.bad_schedules if bad.name != schedule_id]
    change.writes.append(("remove", path))
    change.schedules_changed = True
    return True


def due_schedules(limit: int, change: Change) -> list[Schedule]:
    """See :meth:`~omniq.storage.Storage.due_schedules`."""
    now = moment(change.now)
    due = [(at, each.id) for each in _all(change).values() if (at := each.next_run) and not each.paused and at <= now]
    return [_all(change)[schedule_id] for _, schedule_id in sorted(due)[:limit]]


def outlook(change: Change) -> tuple[frozenset[tuple[str, int]], int | None]:
    """Return the schedules that are due, id and revision, and when the next of the others will be; None: never."""
    planned = [(micros(each.next_run), each) for each in _all(change).values() if each.next_run and not each.paused]
    due = frozenset((each.id, each.revision) for at, each in planned if at <= change.now)
    return due, min((at for at, _ in planned if at > change.now), default=None)


def fire(schedule: Schedule, tasks: Sequence[NewTask], change: Change) -> list[Enqueued] | None:
    """See :meth:`~omniq.storage.Storage.fire`."""
    stored = _all(change).get(schedule.id)
    if stored is None or stored.revision != schedule.revision:
        return None
    enqueued = enqueue(tasks, change)
    _store(evolve(schedule, revision=schedule.revision + 1), change)
    return enqueued


# As JSON


def _dump(schedule: Schedule) -> bytes:
    task = schedule.task
    text: dict[str, Any] = {
        "id": schedule.id,
        "revision": schedule.revision,
        "trigger": schedule.trigger,
        "misfire": schedule.misfire.value,
        "overlap": schedule.overlap.value,
        "jitter": schedule.jitter,
        "paused": schedule.paused,
        "declared": schedule.declared,
        "last_task": schedule.last_task,
        "apps": schedule.apps,
        "live_tasks": schedule.live_tasks,
    }
    for name in _TIMES:
        at = getattr(schedule, name)
        text[name] = None if at is None else show_time(micros(at))
    text["task"] = {**dump_order(task), "run_at": _show_when(task.run_at), "expires": _show_when(task.expires)}
    return dump_json(text)


def _load(text: dict[str, Any]) -> Schedule:
    order = text["task"]
    times = {name: None if text[name] is None else moment(read_time(text[name])) for name in _TIMES}
    return Schedule(
        id=text["id"],
        revision=text["revision"],
        trigger=text["trigger"],
        misfire=Misfire(text["misfire"]),
        overlap=Overlap(text["overlap"]),
        jitter=text["jitter"],
        paused=text["paused"],
        declared=text["declared"],
        last_task=text["last_task"],
        apps=tuple(text.get("apps", ())),
        live_tasks=tuple(text.get("live_tasks", ())),
        task=evolve(load_order(order), run_at=_read_when(order["run_at"]), expires=_read_when(order["expires"])),
        **times,
    )


def _show_when(when: When | None) -> str | dict[str, int] | None:
    if when is None:
        return None
    if isinstance(when, timedelta):
        return {"microseconds": when // timedelta(microseconds=1)}
    return show_time(micros(when))


def _read_when(value: str | dict[str, int] | None) -> When | None:
    if value is None:
        return None
    return timedelta(microseconds=value["microseconds"]) if isinstance(value, dict) else moment(read_time(value))
