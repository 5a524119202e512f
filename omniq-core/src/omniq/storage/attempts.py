"""The attempts of a task that are over, as a text that stores keep and do not read, and back.

The *attempt log*: a line of JSON for each attempt, the oldest first. A worker writes it anew with an outcome; of an
attempt that no worker ends, :meth:`omniq.storage.Storage.recover` appends the line. An attempt that succeeded has none:
the record of its task says all of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from omniq.storage.times import optional_micros, optional_moment, to_micros
from omniq.task import Attempt, AttemptOutcome, StoredTask, TaskError, TaskState

__all__ = ["LONGEST_LOG", "MOST_ATTEMPTS", "appended", "history_of", "log_with", "lost_line", "with_lost_line"]

MOST_ATTEMPTS = 10
"""Attempts in a task's history."""
LONGEST_LOG = 131_072
"""Characters of an attempt log."""
LONGEST_MESSAGE = 1_000
LONGEST_TRACEBACK = 10_000
_LONGEST_LINE = LONGEST_LOG // MOST_ATTEMPTS


def log_with(log: str, attempt: Attempt) -> str:
    """Return an attempt log with one more attempt; the oldest go."""
    lines = log.split("\n") if log else []
    return "\n".join([*lines[1 - MOST_ATTEMPTS :], _line(attempt)])


def _line(attempt: Attempt) -> str:
    times = map(optional_micros, (attempt.started_at, attempt.ended_at))
    head = [attempt.attempt, attempt.outcome, attempt.worker, *times]
    if attempt.error is None:
        return json.dumps(head)
    kind, message = attempt.error.type[:LONGEST_MESSAGE], attempt.error.message[:LONGEST_MESSAGE]
    # The end says where it happened.
    traceback = attempt.error.traceback[-LONGEST_TRACEBACK:]
    line = json.dumps([*head, kind, message, traceback])
    if len(line) > _LONGEST_LINE:
        # In JSON a character may take twelve.
        line = json.dumps([*head, kind[:100], message[:300], traceback[-500:]])
    return line


def lost_line(attempt: int, worker: str | None, started: int | None, ended: int) -> str:
    """Return the line of an attempt whose lease ran out.

    :param started: when it began, in microseconds since the epoch.
    :param ended: when it was recovered.
    """
    return json.dumps([attempt, AttemptOutcome.LOST, worker, started, ended])


def with_lost_line(task: StoredTask, now: datetime) -> str:
    """Return the attempt log of a running task whose lease has run out.

    :param now: the store's clock.
    """
    line = lost_line(task.attempt, task.worker, optional_micros(task.started_at), to_micros(now))
    return appended(task.attempt_log, line)


def appended(log: str, line: str) -> str:
    """Return an attempt log with one more line, the end of it if it is too long."""
    return f"{log}\n{line}"[-LONGEST_LOG:] if log else line


def history_of(task: StoredTask) -> tuple[Attempt, ...]:
    """Return the latest attempts of a task that are over, the oldest first; what cannot be read is left out."""
    lines = task.attempt_log.split("\n")[-MOST_ATTEMPTS:] if task.attempt_log else ()
    attempts = [attempt for attempt in map(_attempt, lines) if attempt is not None]
    if _is_unlogged(task, attempts):
        attempts.append(
            Attempt(
                attempt=task.attempt,
                worker=task.worker,
                started_at=task.started_at,
                ended_at=task.finished_at,
                outcome=AttemptOutcome(task.state.value),
                error=task.error,
            )
        )
    return tuple(attempts[-MOST_ATTEMPTS:])


def _is_unlogged(task: StoredTask, attempts: Sequence[Attempt]) -> bool:
    """Return whether the record alone tells of the last attempt: of a success, or of a failure that the store found."""
    if task.state is not TaskState.FAILED:
        return task.state is TaskState.SUCCEEDED
    # What cannot be read is ended before it is attempted.
    is_read = task.error is not None and task.error.type != "CorruptRecord"
    return is_read and task.attempt > 0 and (not attempts or attempts[-1].started_at != task.started_at)


def _attempt(line: str) -> Attempt | None:
    try:
        number, outcome, worker, started, ended, *error = json.loads(line)
        if not (type(number) is int and (worker is None or isinstance(worker, str))):
            return None
        return Attempt(
            attempt=number,
            worker=worker,
            started_at=optional_moment(started),
            ended_at=optional_moment(ended),
            outcome=AttemptOutcome(outcome),
            error=_lost(worker) if outcome == AttemptOutcome.LOST else _error(*error),
        )
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _lost(worker: str | None) -> TaskError:
    return TaskError(type="WorkerLost", message=f"worker {worker} died or lost its lease")


def _error(*parts: Any) -> TaskError | None:
    if not parts:
        return None
    kind, message, traceback = parts
    if not all(isinstance(part, str) for part in parts):
        raise TypeError("its error is none")
    return TaskError(type=kind, message=message, traceback=traceback)
