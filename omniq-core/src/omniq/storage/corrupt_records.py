"""What takes the place of a record that cannot be read, see :mod:`omniq.storage.validation`.

Where it is to be shown, :func:`salvaged` makes a task of what is left of it; where it is passed over, :func:`log_once`
says so; and :func:`finding` is what ``omniq doctor`` has to say about it.
"""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from omniq.errors import CorruptRecord
from omniq.schedule import Schedule
from omniq.storage.base import Storage
from omniq.storage.escaping import shown_reason
from omniq.storage.records import load_schedule
from omniq.storage.validation import EARLIEST, UNREADABLE, check_schedule, is_text, quoted, right_fields
from omniq.storage.values import Finding, Salvaged, Severity
from omniq.task import StoredTask, TaskError, TaskState

__all__ = [
    "corrupt",
    "corrupt_error",
    "fetch",
    "finding",
    "is_corrupt",
    "log_once",
    "read_schedule",
    "readable",
    "salvaged",
    "sound",
    "unreadable",
]

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")


def corrupt(kind: str, name: object, problem: BaseException | str, *, place: str = "") -> CorruptRecord:
    """Return the error that says which record cannot be read, and why.

    :param kind: what it is: ``"task"``, ``"schedule"``, ``"worker"``, ``"queue"``, ``"unique key"``.
    :param name: its id or name, as far as that is known.
    :param problem: what is wrong with it.
    :param place: where it stands in the store, in the words of one who looks there: ``"row 7"``, ``"key omniq:h:…"``.
    """
    reason = shown_reason(problem)
    where = f" ({place})" if place else ""
    message = f"{kind} {quoted(name)}{where} cannot be read: {reason}"
    return CorruptRecord(
        message, kind=kind, name=name if isinstance(name, str) and is_text(name) else None, place=place
    )


def corrupt_error(problem: CorruptRecord) -> TaskError:
    """Return the error with which a task ends that cannot be read."""
    return TaskError(type="CorruptRecord", message=str(problem))


def is_corrupt(task: StoredTask) -> bool:
    """Return whether a task stands for a record that cannot be read, or ended because it could not be."""
    return task.error is not None and task.error.type == "CorruptRecord"


def salvaged(problem: CorruptRecord, task_id: object, fields: Mapping[str, object] | None = None) -> Salvaged:
    """Return what is shown in place of a task that cannot be read: one that failed.

    :param problem: what is wrong with it.
    :param task_id: the id by which it was found, and by which it can be deleted. Where that is no text, the place takes
        its part.
    :param fields: what is known of it, by the names of a :class:`~omniq.task.StoredTask`; may be anything, and what is
        of the wrong type or out of range is left out.
    """
    known: dict[str, Any] = {"queue": "", "name": "", "body": b"", "created_at": EARLIEST, "run_at": EARLIEST}
    known |= right_fields(fields or {})
    shown_id = task_id if is_text(task_id) else problem.place or str(problem)
    known.update(id=shown_id, state=TaskState.FAILED, lease_until=None, error=corrupt_error(problem))
    return Salvaged(**known)


def read_schedule(text: str | bytes, *, place: str = "", **known: Any) -> Schedule:
    """Return the schedule of a text that :func:`omniq.storage.records.dump_schedule` wrote.

    :param text: as it was read from a store.
    :param place: where, see :func:`corrupt`.
    :param known: fields that the store keeps apart from the text: these count.
    :raises CorruptRecord: if it cannot be read, or one of its fields is wrong.
    """
    try:
        return check_schedule(load_schedule(text, **known))
    except UNREADABLE as error:
        raise corrupt("schedule", known.get("id"), error, place=place) from error
    except CorruptRecord as error:
        raise corrupt("schedule", known.get("id"), error.__cause__ or error, place=place) from error


async def fetch(storage: Storage, task_id: str) -> StoredTask | None:
    """Return the record of a task; None if it is not in the store.

    A record that names another task is returned salvaged, whatever the store thinks of it.
    """
    (task,) = await storage.get([task_id])
    if task is None or task.id == task_id:
        return task
    return salvaged(corrupt("task", task_id, f"its record is that of task {quoted(task.id)}"), task_id)


def finding(problem: CorruptRecord) -> Finding:
    """Return what ``omniq doctor`` says of a record that cannot be read: its place, and the command that removes it."""
    remove = _REMOVE.get(problem.kind)
    mend = "" if remove is None or problem.name is None else f"; remove it with: {remove} {shlex.quote(problem.name)}"
    return Finding(severity=Severity.ERROR, subject=problem.kind or "record", message=f"{problem}{mend}")


_REMOVE = {"task": "omniq tasks delete", "schedule": "omniq schedules delete"}


_logged: set[tuple[str, str]] = set()
_logged_lock = threading.Lock()
_MOST_LOGGED = 1000


def readable(records: Iterable[T], read: Callable[[T], R], log: logging.Logger) -> Iterator[R]:
    """Yield what is read of records; one that cannot be read is logged once, and keeps no other from being yielded.

    :param read: raises :class:`~omniq.errors.CorruptRecord` for one that cannot be read.
    :param log: the logger of the backend.
    """
    for record in records:
        try:
            yield read(record)
        except CorruptRecord as problem:
            log_once(log, problem)


def sound(records: Iterable[tuple[K, T]], read: Callable[[T, K], R], problems: list[CorruptRecord]) -> dict[K, R]:
    """Return what is read of records, by their names.

    :param records: each with its name.
    :param read: takes a record and its name; raises :class:`~omniq.errors.CorruptRecord` for one that cannot be read.
    :param problems: gets what is wrong with those that cannot be read.
    """
    found = {}
    for name, record in records:
        try:
            found[name] = read(record, name)
        except CorruptRecord as problem:
            problems.append(problem)
    return found


def unreadable(records: Iterable[T], read: Callable[[T], object]) -> list[CorruptRecord]:
    """Return what is wrong with those of some records that cannot be read, see :func:`readable`."""
    problems = []
    for record in records:
        try:
            read(record)
        except CorruptRecord as problem:
            problems.append(problem)
    return problems


def log_once(log: logging.Logger, problem: CorruptRecord, store: str = "") -> None:
    """Log that a record is passed over, unless this process has logged it before. Callable from any thread.

    :param log: the logger of the backend.
    :param problem: which record, and why.
    :param store: the store's URL, redacted.
    """
    entry = store, str(problem)
    with _logged_lock:
        if entry in _logged or len(_logged) > _MOST_LOGGED:
            return
        _logged.add(entry)
        full = len(_logged) > _MOST_LOGGED
    where = f"{store}: " if store else ""
    if full:
        log.error("%smore records cannot be read; omniq doctor lists them", where)
    else:
        becomes_of_it = "" if problem.kind == "limit" else "it is passed over, and "
        log.error("%s%s; %somniq doctor lists it", where, problem, becomes_of_it)
