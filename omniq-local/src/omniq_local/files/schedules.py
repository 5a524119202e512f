"""Schedules, each a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from attrs import evolve

from omniq.errors import CorruptRecord
from omniq.limit import Debounce
from omniq.schedule import Misfire, Overlap, Schedule
from omniq.storage import Enqueued
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.times import from_micros, to_micros
from omniq.storage.validation import UNREADABLE, check_schedule
from omniq.task import NewTask, When
from omniq_local.files.encoding import dump_json, dump_order, load_order
from omniq_local.files.enqueueing import enqueue
from omniq_local.files.names import schedule_path, text_of
from omniq_local.files.times import read_time, show_time
from omniq_local.files.transaction import Transaction

__all__ = ["bad_schedules", "delete_schedule", "due_schedules", "fire", "get_schedules", "outlook", "put_schedule"]

_log = get_logger("omniq.files")

_TIMES = ("next_run", "start", "end", "last_run")


def _all(transaction: Transaction) -> dict[str, Schedule]:
    folder = transaction.folder
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


def bad_schedules(transaction: Transaction) -> list[CorruptRecord]:
    """Return what is wrong with each schedule that cannot be read."""
    transaction.folder.schedules = None
    _all(transaction)
    return transaction.folder.bad_schedules


def put_schedule(schedule: Schedule, expected_revision: int | None, transaction: Transaction) -> Schedule | None:
    """See :meth:`~omniq.storage.Storage.put_schedule`."""
    known = _all(transaction)
    stored = known.get(schedule.id)
    revision = 0 if stored is None else stored.revision
    if expected_revision is not None and expected_revision != revision:
        return None
    # No schedule has changed more often than all of them together: what begins with their count has never been.
    return _store(evolve(schedule, revision=(revision or transaction.folder.control.schedules) + 1), transaction)


def _store(schedule: Schedule, transaction: Transaction) -> Schedule:
    path = schedule_path(schedule.id)
    content = _dump(schedule)
    transaction.writes.append(("write", path, content, transaction.content(path)))
    # As it will be read again: datetimes in UTC.
    kept = _load(json.loads(content))
    _all(transaction)[schedule.id] = kept
    transaction.schedules_changed = True
    return kept


def get_schedules(ids: Sequence[str] | None, transaction: Transaction) -> list[Schedule]:
    """See :meth:`~omniq.storage.Storage.get_schedules`."""
    known = _all(transaction)
    return [known[each] for each in (sorted(known) if ids is None else ids) if each in known]


def delete_schedule(schedule_id: str, transaction: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.delete_schedule`."""
    path = schedule_path(schedule_id)
    # One that cannot be read is there, too.
    if _all(transaction).pop(schedule_id, None) is None and not transaction.folder.tree.exists(path):
        return False
    transaction.folder.bad_schedules = [bad for bad in transaction.folder.bad_schedules if bad.name != schedule_id]
    transaction.writes.append(("remove", path))
    transaction.schedules_changed = True
    return True


def due_schedules(limit: int, transaction: Transaction) -> list[Schedule]:
    """See :meth:`~omniq.storage.Storage.due_schedules`."""
    now = from_micros(transaction.now)
    due = [
        (at, each.id) for each in _all(transaction).values() if (at := each.next_run) and not each.paused and at <= now
    ]
    return [_all(transaction)[schedule_id] for _, schedule_id in sorted(due)[:limit]]


def outlook(transaction: Transaction) -> tuple[frozenset[tuple[str, int]], int | None]:
    """Return the schedules that are due, id and revision, and when the next of the others will be; None: never."""
    planned = [
        (to_micros(each.next_run), each) for each in _all(transaction).values() if each.next_run and not each.paused
    ]
    due = frozenset((each.id, each.revision) for at, each in planned if at <= transaction.now)
    return due, min((at for at, _ in planned if at > transaction.now), default=None)


def fire(schedule: Schedule, tasks: Sequence[NewTask], transaction: Transaction) -> list[Enqueued] | None:
    """See :meth:`~omniq.storage.Storage.fire`."""
    stored = _all(transaction).get(schedule.id)
    if stored is None or stored.revision != schedule.revision:
        return None
    enqueued = enqueue(tasks, transaction)
    _store(evolve(schedule, revision=schedule.revision + 1), transaction)
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
        text[name] = None if at is None else show_time(to_micros(at))
    text["task"] = {**dump_order(task), "run_at": _show_when(task.run_at), "expires": _show_when(task.expires)}
    if task.debounce is not None:
        text["task"]["debounce"] = [task.debounce.key, task.debounce.wait, task.debounce.max_wait]
    return dump_json(text)


def _load(text: dict[str, Any]) -> Schedule:
    order = text["task"]
    times = {name: None if text[name] is None else from_micros(read_time(text[name])) for name in _TIMES}
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
        task=evolve(
            load_order(order),
            run_at=_read_when(order["run_at"]),
            expires=_read_when(order["expires"]),
            debounce=Debounce(*order["debounce"]) if "debounce" in order else None,
        ),
        **times,
    )


def _show_when(when: When | None) -> str | dict[str, int] | None:
    if when is None:
        return None
    if isinstance(when, timedelta):
        return {"microseconds": when // timedelta(microseconds=1)}
    return show_time(to_micros(when))


def _read_when(value: str | dict[str, int] | None) -> When | None:
    if value is None:
        return None
    return timedelta(microseconds=value["microseconds"]) if isinstance(value, dict) else from_micros(read_time(value))
