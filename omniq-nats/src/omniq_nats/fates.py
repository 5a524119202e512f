"""How a task ended, as it is kept; and the pages that keep it for all tasks of a home."""

from __future__ import annotations

import base64
import json
from typing import Any

from attrs import define, evolve, field, frozen

from omniq.errors import CorruptRecord
from omniq.task import TaskError, TaskState
from omniq_nats.link import Stored

__all__ = ["Fate", "ResultPage", "read_page"]


@frozen(kw_only=True)
class Fate:
    """What became of a task in the end, or, of one that waits for a retry, the error of its latest attempt."""

    state: TaskState
    delivery: int
    attempt: int
    worker: str | None
    started: int | None
    finished: int
    run_at: int
    keeps_expiry: bool = True
    error: TaskError | None = None
    result: bytes | None = field(default=None, repr=False)
    blob: str | None = None
    """The name of the message that holds result and error, where they are too large to lie here."""
    version: int = 0
    """Counts the changes of the queue: of two fates of one task the later counts."""

    def row(self) -> list[Any]:
        """Give it for JSON."""
        error = None if self.error is None else [self.error.type, self.error.message, self.error.traceback]
        return [
            self.state,
            self.delivery,
            self.attempt,
            self.worker,
            self.started,
            self.finished,
            self.run_at,
            self.keeps_expiry,
            error,
            _packed(self.result),
            self.blob,
            self.version,
        ]

    @property
    def size(self) -> int:
        """About how many bytes its error and result take."""
        error = self.error
        return len(self.result or b"") + (
            0 if error is None else len(error.type) + len(error.message) + len(error.traceback)
        )

    def apart(self, name: str) -> tuple[Fate, bytes]:
        """Give it without what is large, and that as the body of a message of its own.

        :param name: of that message.
        """
        error = None if self.error is None else [self.error.type, self.error.message, self.error.traceback]
        head = json.dumps([error, self.result is not None]).encode()
        return evolve(self, error=None, result=None, blob=name), head + b"\n" + (self.result or b"")

    def whole(self, body: bytes) -> Fate:
        """Give it with what was kept apart."""
        head, _, result = body.partition(b"\n")
        error, has_result = json.loads(head)
        return evolve(self, error=_error(error), result=result if has_result else None, blob=None)


def _packed(result: bytes | None) -> str | list[str] | None:
    if result is None:
        return None
    try:
        return result.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(result).decode()]


def _unpacked(packed: str | list[str] | None) -> bytes | None:
    if packed is None:
        return None
    return packed.encode() if isinstance(packed, str) else base64.b64decode(packed[0])


def _error(row: list[str] | None) -> TaskError | None:
    return None if row is None else TaskError(type=row[0], message=row[1], traceback=row[2])


def read_fate(row: list[Any]) -> Fate:
    """Read what :meth:`Fate.row` gave."""
    return Fate(
        state=TaskState(row[0]),
        delivery=row[1],
        attempt=row[2],
        worker=row[3],
        started=row[4],
        finished=row[5],
        run_at=row[6],
        keeps_expiry=row[7],
        error=_error(row[8]),
        result=_unpacked(row[9]),
        blob=row[10],
        version=row[11],
    )


@define(eq=False)
class ResultPage:
    """How the tasks of one home ended, those that have."""

    seq: int
    """Of the message; 0: there is none yet."""
    home: int
    """The sequence of the home."""
    size: int
    """How many tasks the home has."""
    fates: dict[int, tuple[str, Fate]] = field(factory=dict)
    """By the number of the task: its id and its fate."""
    gone: set[int] = field(factory=set)
    """The numbers of those that were removed."""

    def note(self, index: int, task_id: str, fate: Fate) -> bool:
        """Take note of a fate, unless a later one is known or the task was removed; say whether it was."""
        known = self.fates.get(index)
        if index in self.gone or (known is not None and known[1].version >= fate.version):
            return False
        self.fates[index] = task_id, fate
        return True

    def forget(self, index: int) -> Fate | None:
        """Take note that a task was removed; give its fate."""
        self.gone.add(index)
        known = self.fates.pop(index, None)
        return None if known is None else known[1]

    @property
    def is_spent(self) -> bool:
        """Whether every task of the home was removed."""
        return len(self.gone) >= self.size

    def encode(self) -> bytes:
        """Give the body of the message."""
        fates = [[index, task_id, fate.row()] for index, (task_id, fate) in self.fates.items()]
        return json.dumps([self.home, self.size, fates, sorted(self.gone)], separators=(",", ":")).encode()


def read_page(stored: Stored) -> ResultPage:
    """Read a page of results.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        home, size, fates, gone = json.loads(stored.data)
        return ResultPage(
            seq=stored.seq,
            home=home,
            size=size,
            fates={index: (task_id, read_fate(row)) for index, task_id, row in fates},
            gone=set(gone),
        )
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CorruptRecord(f"the results on {stored.subject} cannot be read: {error}") from error
