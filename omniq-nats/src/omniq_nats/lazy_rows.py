"""The running tasks and end records of a queue state: each a line of its own that is read when it is asked for.

A change concerns a few of them. All others go from one version of the queue state into the next as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any

from omniq.storage.corrupt_records import corrupt
from omniq.storage.validation import UNREADABLE
from omniq_nats.entries import Entry, check_slot
from omniq_nats.names import split_batch, token, untoken
from omniq_nats.results import EndRecord, read_end_record

__all__ = ["Pending", "Running", "read_pending"]


class Pending:
    """An end record that is not on its page of results yet, of a task at a place.

    :param task_id: the task's.
    :param version: of the end record.
    :param since: when the task ended.
    :param row: batch, number in it, its sequence, its size, its ttl; or the JSON of that and the end record.
    :param end record: None: it is in the JSON.
    """

    __slots__ = ("_end_record", "_json", "_line", "_row", "id", "since", "version")

    def __init__(
        self, task_id: str, version: int, since: int, row: list[Any] | bytes, end_record: EndRecord | None = None
    ) -> None:
        self.id = task_id
        self.version = version
        self.since = since
        self._json = row if isinstance(row, bytes) else None
        self._row = None if isinstance(row, bytes) else row
        self._end_record = end_record
        self._line: bytes | None = None

    @classmethod
    def of(cls, entry: Entry, end_record: EndRecord) -> Pending:
        """Make it for a task that has ended."""
        row = [entry.batch, entry.index, entry.seq, entry.size, entry.ttl]
        return cls(entry.id, end_record.version, end_record.finished, row, end_record)

    @property
    def row(self) -> list[Any]:
        """What the line says of it."""
        if self._row is None:
            assert self._json is not None
            try:
                self._row = _checked(json.loads(self._json))
            except UNREADABLE as error:
                raise corrupt("result", self.id, error, place="a line of its queue's record") from error
        return self._row

    @property
    def end_record(self) -> EndRecord:
        """How the task ended."""
        if self._end_record is None:
            try:
                self._end_record = read_end_record(self.row[5])
            except UNREADABLE as error:
                raise corrupt("result", self.id, error, place="a line of its queue's record") from error
        return self._end_record

    @property
    def unread(self) -> bytes | None:
        """What was stored of it; None: it was read since, or is not stored yet."""
        return self._json if self._end_record is None else None

    @property
    def batch(self) -> str:
        """The name of the task's batch."""
        name: str = self.row[0]
        return name

    @property
    def index(self) -> int:
        """The number of the task in its batch."""
        index: int = self.row[1]
        return index

    @property
    def seq(self) -> int:
        """The sequence of the batch."""
        seq: int = self.row[2]
        return seq

    @property
    def size(self) -> int:
        """How many tasks the batch has."""
        size: int = self.row[3]
        return size

    @property
    def ttl(self) -> float:
        """For how many seconds the end record is kept."""
        ttl: float = self.row[4]
        return ttl

    def line(self) -> bytes:
        """Return it as a line."""
        if self._line is None:
            if self._json is None:
                assert self._end_record is not None
                batch, index, seq, size, ttl = self.row
                text = self._end_record.text
                self._json = f"[{_encode(batch)},{index},{seq},{size},{ttl!r},{text}]".encode()
            self._line = b"%s %d %d %s" % (token(self.id).encode(), self.version, self.since, self._json)
        return self._line


def read_pending(lines: Iterable[bytes]) -> dict[str, Pending]:
    """Read end records by the ids of their tasks."""
    found = {}
    for line in lines:
        name, version, since, row = line.split(b" ", 3)
        task_id = untoken(name.decode())
        found[task_id] = Pending(task_id, int(version), int(since), row)
    return found


def _checked(row: list[Any]) -> list[Any]:
    """Return what a line says of an end record, without that, if it is as it must be."""
    batch, index, seq, size, ttl, _ = row
    split_batch(batch)
    numbers_are_right = all(type(number) is int and 0 <= number < 2**63 for number in (index, seq, size))
    if not (numbers_are_right and type(ttl) is float and 0 <= ttl < math.inf):
        raise ValueError("what it says of how a task ended is of a wrong type or out of range")
    return row


class Running(MutableMapping[str, Entry]):
    """Running tasks by their ids.

    :param lines: as they were stored.
    """

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        self._lines: dict[str, bytes | None] = {}
        """None: it has to be written."""
        self._entries: dict[str, Entry] = {}
        """Those that were asked for, and may have been changed."""
        self._signs: dict[str, tuple[Any, ...]] = {}
        """Of those: all that may change while a task runs, as the line has it."""
        for line in lines:
            self._lines[untoken(line[: line.index(b" ")].decode())] = line

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._lines

    def __getitem__(self, task_id: str) -> Entry:
        entry = self._entries.get(task_id)
        if entry is None:
            line = self._lines[task_id]
            assert line is not None
            entry = self._entries[task_id] = _read_entry(task_id, line)
            self._signs[task_id] = _sign(entry)
        return entry

    def unread(self) -> list[tuple[str, bytes]]:
        """Return the ids and lines of those that were stored and not read since."""
        return [
            (task_id, line)
            for task_id, line in self._lines.items()
            if line is not None and task_id not in self._entries
        ]

    def get(self, task_id: str, default: Any = None) -> Any:
        """Return one, or what is given for it if there is none."""
        return self[task_id] if task_id in self._lines else default

    def __setitem__(self, task_id: str, entry: Entry) -> None:
        self._lines[task_id] = None
        self._entries[task_id] = entry

    def __delitem__(self, task_id: str) -> None:
        del self._lines[task_id]
        self._entries.pop(task_id, None)

    def lines(self) -> list[bytes]:
        """Return them as lines."""
        for task_id, entry in self._entries.items():
            sign = _sign(entry)
            if self._lines[task_id] is None or self._signs.get(task_id) != sign:
                self._lines[task_id] = _write_entry(entry)
                self._signs[task_id] = sign
        return [line for line in self._lines.values() if line is not None]


def _sign(entry: Entry) -> tuple[Any, ...]:
    return entry.until, entry.cancel, entry.progress


def _write_entry(entry: Entry) -> bytes:
    name = token(entry.id)
    # The batch of a single task is named after it.
    batch = entry.batch.removesuffix(name) if entry.batch.endswith(f"-{name}") else entry.batch
    # Put together by hand, which takes a third of the time: each claim writes a line for each task.
    expires = "null" if entry.expires is None else entry.expires
    row = (
        f"{name} [{_encode(batch)},{entry.index},{entry.seq},{entry.size},{entry.ttl!r},{entry.rank},{entry.priority},"
        f"{entry.at},{entry.max_retries},{expires},{_FLAGS[entry.expired_order]},{entry.attempt},{entry.delivery},"
        f"{_encode(entry.worker)},{entry.started},{entry.until}"
    )
    rest = [entry.has_error, entry.has_fate, entry.cancel, entry.progress, entry.flow, entry.limited]
    while rest and not rest[-1]:
        del rest[-1]  # as it is where nothing else is said
    return (f"{row},{_encode(rest)[1:]}" if rest else f"{row}]").encode()


def _read_entry(task_id: str, line: bytes) -> Entry:
    try:
        row = json.loads(line[line.index(b" ") + 1 :])
        batch = row[0] + token(task_id) if row[0].endswith("-") else row[0]
        entry = Entry(task_id, batch, *row[1:])
        check_slot(entry)
    except UNREADABLE as error:
        raise corrupt("task", task_id, error, place="a line of its queue's record") from error
    return entry


_FLAGS = {False: "false", True: "true"}
_encode = json.JSONEncoder(separators=(",", ":")).encode
