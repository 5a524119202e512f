"""What goes to the scripts a batch at a time, and what comes back."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

from omniq.errors import CorruptRecord
from omniq.storage import Enqueued
from omniq.storage.corrupt_records import corrupt_error
from omniq.storage.records import dump_error
from omniq.storage.times import from_micros, span
from omniq.task import Cancelled, Failed, NewTask, Outcome, Released, Retry, StoredTask, Succeeded, TaskError
from omniq_redis.decoding import claimed_task, id_of, next_delivery
from omniq_redis.encoding import order_words

__all__ = ["MOST_TASKS", "check_size", "pack_outcomes", "pack_tasks", "pairs", "read_claimed", "read_stored"]

MOST_TASKS = 300_000
"""In one call: a command of the server's has room for a million words."""
_OUTCOME = struct.Struct(">cIQ")


def check_size(tasks: Sequence[NewTask]) -> None:
    """Refuse a batch that is too large for one step.

    :raises ValueError: if it is.
    """
    if len(tasks) > MOST_TASKS:
        raise ValueError(
            f"{len(tasks):,} tasks are more than one step can store; send at most {MOST_TASKS:,} at a time"
        )


def pack_tasks(tasks: Iterable[NewTask]) -> bytes:
    """Write new tasks, three words for each."""
    pieces: list[bytes] = []
    for task in tasks:
        task_id, head, body = order_words(task)
        pieces.append(
            b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(task_id), task_id, len(head), head, len(body), body)
        )
    return b"".join(pieces)


def read_stored(tasks: Sequence[NewTask], refused: Sequence[Any]) -> list[Enqueued]:
    """Read what became of new tasks from the exceptions: positions, and the ids of those that are stored instead."""
    answers = [Enqueued(task.id, True) for task in tasks]
    for position, holder in pairs(refused):
        answers[position] = Enqueued(id_of(holder), False)
    return answers


def pack_outcomes(outcomes: Iterable[Outcome]) -> bytes:
    """Write outcomes, three words for each."""
    pieces: list[bytes] = []
    for outcome in outcomes:
        kind, delay, data = _said(outcome)
        task_id = outcome.id.encode("utf-8", "surrogateescape")
        head = _OUTCOME.pack(kind, outcome.delivery, delay)
        pieces.append(b"$%d\r\n%b\r\n$13\r\n%b\r\n$%d\r\n%b\r\n" % (len(task_id), task_id, head, len(data), data))
    return b"".join(pieces)


def _said(outcome: Outcome) -> tuple[bytes, int, bytes]:
    match outcome:
        case Succeeded(result=result):
            return b"s", 0, result
        case Failed(error=error):
            return b"f", 0, _left(error, outcome.attempt_log)
        case Cancelled():
            return b"c", 0, _left(None, outcome.attempt_log)
        case Retry(delay=delay, error=error):
            return b"r", span(delay), _left(error, outcome.attempt_log)
        case Released(delay=delay, error=error):
            return b"l", span(delay), _left(error)
    raise TypeError(f"not an outcome that a store knows: {outcome!r}")


def _left(error: TaskError | None, attempt_log: str = "") -> bytes:
    text = "" if error is None else dump_error(error)
    return (f"{text}\n{attempt_log}" if attempt_log else text).encode()


def read_claimed(found: Sequence[Any], worker: str, lease: int) -> tuple[list[StoredTask], list[Outcome]]:
    """Read what a claim returned.

    :param lease: in microseconds.
    :return: the tasks, and the outcomes of those that cannot be read.
    """
    now, until = from_micros(found[0]), from_micros(found[0] + lease)
    tasks: list[StoredTask] = []
    unreadable: list[Outcome] = []
    for at in range(1, len(found), 3):
        task_id = id_of(found[at])
        try:
            tasks.append(claimed_task(task_id, found[at + 1], found[at + 2], worker, now, until))
        except CorruptRecord as problem:
            delivery = next_delivery(found[at + 2])
            unreadable.append(Failed(id=task_id, delivery=delivery, error=corrupt_error(problem)))
    return tasks, unreadable


def pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    """Return what the server tells one after the other two by two."""
    return zip(flat[::2], flat[1::2], strict=True)
