"""How a task ended, as it is kept; and the pages that keep it for all tasks of a batch."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from json.encoder import encode_basestring_ascii as _quoted  # as JSONEncoder.encode does for a text, without it
from typing import Any

from attrs import define, evolve, field, frozen

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt, corrupt_error
from omniq.storage.validation import UNREADABLE, is_text
from omniq.task import StoredTask, TaskError, TaskState
from omniq_nats.names import APART, LARGE, SHARED, SHEET, SHEET_SPAN, SINGLE, split_batch, token
from omniq_nats.times import is_moment, micros
from omniq_nats.transport import Stored

__all__ = [
    "INLINE",
    "LISTED",
    "MOST_TASKS",
    "ROOM",
    "EndRecord",
    "ResultPage",
    "inline_of",
    "kept_record",
    "new_page",
    "number_on_page",
    "page_to_write",
    "past_of",
    "read_end_record",
    "read_page",
    "torn_fate",
]


MOST_TASKS = 128
"""So many tasks at most are in one batch, and on its page of results."""
INLINE = 2048
"""Bytes: larger results, errors and attempt logs are kept in messages of their own."""
ROW = 150
"""Bytes of an end record but for these, about."""
ROOM = 4096
"""Bytes of a message for what surrounds them."""


def inline_of(max_payload: int) -> int:
    """Return how many bytes an end record may have in it; larger ones are kept apart.

    :param max_payload: bytes of the largest message: a page of results may be that of so many tasks.
    """
    return min(INLINE, (max_payload - ROOM) // MOST_TASKS - ROW)


LISTED = frozenset({TaskState.FAILED, TaskState.CANCELLED})
"""Tasks that ended so are listed apart, as they are few."""


@frozen(kw_only=True, slots=False)  # with slots the first look at a cached property takes as long as its text
class EndRecord:
    """What became of a task in the end, or, of one that waits for a retry, what its attempts have left."""

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
    attempt_log: str = field(default="", repr=False)
    blob: str | None = None
    """The name of the message that holds result, error and attempt log, where they are too large to lie here."""
    sizes: tuple[int | None, int] | None = None
    """Where there is such a message: how many bytes the result has in it (None: there is none), and the traceback. The
    rest of the error is here, too, then. None: there was no room for that, or there is no such message."""
    version: int = 0
    """Counts the changes of the queue: of two end records of one task the later counts."""
    is_torn: bool = False
    """Whether it stands for one that cannot be read; not part of the record."""

    def row(self) -> list[Any]:
        """Return it for JSON."""
        return [
            self.state,
            self.delivery,
            self.attempt,
            self.worker,
            self.started,
            self.finished,
            self.run_at,
            self.keeps_expiry,
            _parts(self.error),
            _packed(self.result),
            self.blob if self.sizes is None else [self.blob, *self.sizes],
            self.version,
            *([self.attempt_log] if self.attempt_log else ()),
        ]

    @cached_property
    def text(self) -> str:
        """It as JSON: a queue state and a page of results have it."""
        if self.error is not None or self.blob is not None:
            return _encode(self.row())
        # Put together by hand, which takes half of the time: each task that ends has one.
        log = f",{_quoted(self.attempt_log)}" if self.attempt_log else ""
        worker = "null" if self.worker is None else _quoted(self.worker)
        packed = _packed(self.result)
        result = _quoted(packed) if type(packed) is str else _encode(packed)
        return (
            f'["{self.state}",{self.delivery},{self.attempt},{worker},{_written(self.started)},'
            f"{self.finished},{self.run_at},{_FLAGS[self.keeps_expiry]},null,{result},null,"
            f"{self.version}{log}]"
        )

    @property
    def has_left(self) -> bool:
        """Whether there is an error or an attempt log; or may be, apart."""
        return self.error is not None or self.blob is not None or bool(self.attempt_log)

    @property
    def size(self) -> int:
        """About how many bytes its error, result and attempt log take."""
        error = self.error
        return (
            len(self.result or b"")
            + (0 if error is None else len(error.type) + len(error.message) + len(error.traceback))
            + len(self.attempt_log)
        )

    def is_large(self, inline: int) -> bool:
        """Return whether these take more bytes in JSON than a number of them."""
        size = self.size
        # In JSON a byte may take six.
        if size == 0 or size * 6 <= inline:
            return False
        return size > inline or len(_encode([_parts(self.error), _packed(self.result), self.attempt_log])) > inline

    def fitted(self, limit: int) -> EndRecord:
        """Return it with as much of the end of its attempt log as there is room for.

        :param limit: bytes of error, result and attempt log.
        """
        over = self.size - limit
        return self if over <= 0 or not self.attempt_log else evolve(self, attempt_log=self.attempt_log[over:])

    def apart(self, name: str, inline: int) -> tuple[EndRecord, bytes]:
        """Return it without what is large, and that as the body of a message of its own.

        :param name: of that message.
        :param inline: bytes that are not large.
        """
        log = self.attempt_log.encode(errors="replace")
        head = json.dumps([_parts(self.error), self.result is not None, len(log)]).encode()
        body = head + b"\n" + log + (self.result or b"")
        error, traceback = self.error, "" if self.error is None else self.error.traceback
        if error is not None:
            error = evolve(error, traceback="")
        sizes = None if self.result is None else len(self.result), len(traceback.encode(errors="replace"))
        if error is not None and len(_encode(_parts(error))) > inline:
            return evolve(self, error=None, result=None, attempt_log="", blob=name, sizes=None), body
        return evolve(self, error=error, result=None, attempt_log="", blob=name, sizes=sizes), body

    def whole(self, body: bytes) -> EndRecord:
        """Return it with what was kept apart."""
        try:
            head, _, rest = body.partition(b"\n")
            error, has_result, length = json.loads(head)
            log, result = rest[:length].decode(), rest[length:] if has_result else None
            return evolve(self, error=_error(error), result=result, attempt_log=log, blob=None, sizes=None)
        except UNREADABLE as wrong:
            return torn_fate(corrupt("result", self.blob, wrong))


_encode = json.JSONEncoder(separators=(",", ":")).encode
_FLAGS = {False: "false", True: "true"}


def _written(number: int | None) -> str:
    return "null" if number is None else str(number)


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


def _parts(error: TaskError | None) -> list[str] | None:
    return None if error is None else [error.type, error.message, error.traceback]


def _error(row: list[str] | None) -> TaskError | None:
    if row is None:
        return None
    kind, message, traceback = row
    if not type(kind) is type(message) is type(traceback) is str:
        raise ValueError("its error is none")
    return TaskError(type=kind, message=message, traceback=traceback)


def kept_record(delivery: int, error: TaskError | None, attempt_log: str, result: bytes | None = None) -> EndRecord:
    """Return an end record for what is to be kept of a delivery; the rest of it plays no part."""
    return EndRecord(
        state=TaskState.FAILED,
        delivery=delivery,
        attempt=0,
        worker=None,
        started=None,
        finished=0,
        run_at=0,
        error=error,
        result=result,
        attempt_log=attempt_log,
    )


def torn_fate(problem: CorruptRecord) -> EndRecord:
    """Return what is shown of how a task ended where that cannot be read."""
    return EndRecord(
        state=TaskState.FAILED,
        delivery=0,
        attempt=0,
        worker=None,
        started=None,
        finished=0,
        run_at=0,
        error=corrupt_error(problem),
        is_torn=True,
    )


def read_end_record(row: list[Any]) -> EndRecord:
    """Read what :meth:`EndRecord.row` returned.

    :raises ValueError: if it is not that; or another of the errors of values that are not what they should be.
    """
    blob, *sizes = row[10] if type(row[10]) is list else [row[10]]
    end_record = EndRecord(
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
        blob=blob,
        sizes=(sizes[0], sizes[1]) if sizes else None,
        version=row[11],
        attempt_log=row[12] if len(row) > 12 else "",
    )
    started: Any = row[4]
    times = [row[5], row[6], *([] if started is None else [started])]
    counts = [row[1], row[2], row[11], *(size for size in sizes if size is not None)]
    if (
        all(type(count) is int and 0 <= count < 2**63 for count in counts)
        and all(is_moment(time) and time >= 0 for time in times)
        and type(row[7]) is bool
        and type(end_record.attempt_log) is str
        and (end_record.worker is None or is_text(end_record.worker))
        and (end_record.blob is None or is_text(end_record.blob))
    ):
        return end_record
    raise ValueError("what it says of how a task ended is of a wrong type or out of range")


def number_on_page(batch: str, seq: int, index: int) -> int:
    """Return by which number a task is found on its page of results.

    :param batch: the name of its batch.
    :param seq: and the sequence of that.
    :param index: its number in it.
    """
    return index if split_batch(batch)[1] == SHARED else seq


@define(eq=False)
class ResultPage:
    """How the tasks of one batch ended, or those of several neighbours that are batches of one task each."""

    seq: int
    """Of the message; 0: there is none yet."""
    batch: int
    """The sequence of the batch; of several, the number of their span."""
    size: int
    """How many tasks the batch has; 0: it is a page of several batches."""
    end_records: dict[int, tuple[str, EndRecord, str]] = field(factory=dict)
    """By :func:`number_on_page`: the task's id, its end record, and the kind of its batch."""
    gone: set[int] = field(factory=set)
    """The numbers of those that were removed."""
    _rows: dict[int, str] = field(factory=dict, init=False)
    """What was written of them: a page is written several times, as its tasks end one after the other. Of a row that
    cannot be read it is what is stored, and stays so."""
    problem: CorruptRecord | None = None
    """Why what is stored cannot be read; nothing is on it then."""

    def note(self, number: int, task_id: str, end_record: EndRecord, batch: str) -> bool:
        """Take note of an end record, unless a later one is known or the task was removed; say whether it was."""
        known = self.end_records.get(number)
        if number in self.gone or (known is not None and known[1].version >= end_record.version):
            return False
        self.end_records[number] = task_id, end_record, split_batch(batch)[1]
        self._rows.pop(number, None)
        return True

    def keep_unread(self, number: int, task_id: str, kind: str, row: Any, problem: CorruptRecord) -> None:
        """Keep an end record that cannot be read as it is stored, until there is a later one of the task.

        :param kind: of the task's batch.
        :param row: what is stored.
        :param problem: why it cannot be read.
        """
        self.end_records[number] = task_id, torn_fate(problem), kind
        self._rows[number] = _encode([number, task_id, row, kind])

    def state_of(self, number: int) -> TaskState | None:
        """Return the state that it tells of a task; None: it tells nothing."""
        known = self.end_records.get(number)
        return None if known is None else known[1].state

    def forget(self, number: int) -> EndRecord | None:
        """Take note that a task was removed; give its end record."""
        self.gone.add(number)
        self._rows.pop(number, None)
        known = self.end_records.pop(number, None)
        return None if known is None else known[1]

    def is_of(self, batch: str, seq: int) -> bool:
        """Say whether it tells of a batch's tasks, rather than of those of an earlier one of that name."""
        return self.batch == (seq if split_batch(batch)[1] == SHARED else seq // SHEET_SPAN)

    @property
    def is_spent(self) -> bool:
        """Whether it tells of no task, and need tell of none any more."""
        return len(self.gone) >= self.size if self.size else not self.end_records

    def places(self, name: str) -> Iterator[tuple[str, int, int, str, EndRecord]]:
        """Return the name of the batch, its sequence, the number in it, the id and the end record of each task.

        :param name: of the page.
        """
        line, kind, _ = split_batch(name)
        for number, (task_id, end_record, of_kind) in self.end_records.items():
            if kind == SHEET:
                yield f"{line}-{of_kind}-{token(task_id)}", number, 0, task_id, end_record
            else:
                yield name, self.batch, number, task_id, end_record

    def encode(self) -> bytes:
        """Return the body of the message."""
        rows = self._rows
        for number, (task_id, end_record, kind) in self.end_records.items():
            if number not in rows:
                rows[number] = f"[{number},{_quoted(task_id)},{end_record.text},{_quoted(kind)}]"
        return f"[{self.batch},{self.size},[{','.join(rows.values())}],{_encode(sorted(self.gone))}]".encode()


def new_page(batch: str, seq: int, size: int) -> ResultPage:
    """Return a page for the tasks of a batch, on which nothing is yet."""
    if split_batch(batch)[1] == SHARED:
        return ResultPage(0, seq, size)
    return ResultPage(0, seq // SHEET_SPAN, 0)


def read_page(stored: Stored, wanted: Collection[int] | None = None) -> ResultPage:
    """Read a page of results; of one, or of an end record on it, that cannot be read it is said why.

    :param wanted: the numbers of the tasks that are asked for; the others are left out. None: all are read.
    """
    place = f"message {stored.seq} on {stored.subject}"
    try:
        batch, size, end_records, gone = json.loads(stored.data)
        if wanted is not None:
            # One of a hundred tasks, mostly: to read all of them would take most of the time that a result takes.
            end_records = [row for row in end_records if row[0] in wanted]
        numbers = [batch, size, *gone, *(row[0] for row in end_records)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a number of a task is none")
        if not all(is_text(task_id) and kind in (SINGLE, LARGE, APART, SHARED) for _, task_id, _, kind in end_records):
            raise ValueError("what it says of a task is of a wrong type")
        page = ResultPage(seq=stored.seq, batch=batch, size=size, gone=set(gone))
        for number, task_id, row, kind in end_records:
            try:
                end_record = read_end_record(row)
            except UNREADABLE as error:
                page.keep_unread(number, task_id, kind, row, corrupt("result", task_id, error, place=place))
            else:
                page.end_records[number] = task_id, end_record, kind
        return page
    except UNREADABLE as error:
        return ResultPage(stored.seq, 0, 0, problem=corrupt("result", None, error, place=place))


def page_to_write(stored: Sequence[Stored], batch: str, seq: int, size: int) -> ResultPage:
    """Return the page for the tasks of a batch, such that what is stored can be replaced by it.

    :param stored: what is stored, if anything is: of what cannot be read nothing is kept.
    """
    page = read_page(stored[0]) if stored else new_page(batch, seq, size)
    if page.problem is not None:
        page = evolve(new_page(batch, seq, size), seq=page.seq)
    return page


def past_of(task: StoredTask) -> EndRecord:
    """Return what had become of a task, as its batch tells it."""
    state = task.state if task.state.is_final or task.state is TaskState.BLOCKED else TaskState.SCHEDULED
    return EndRecord(
        state=state,
        delivery=task.delivery,
        attempt=task.attempt,
        worker=task.worker,
        started=None if task.started_at is None else micros(task.started_at),
        finished=0 if task.finished_at is None else micros(task.finished_at),
        run_at=micros(task.run_at),
        error=task.error,
        result=task.result_payload,
        attempt_log=task.attempt_log,
    )
