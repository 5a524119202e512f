"""Books and shelves as they are stored: JSON, in which what many tasks share is written once.

A book's JSON is its first line; those that run and the fates follow, see :mod:`omniq_nats.lines`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from omniq.storage.validation import UNREADABLE, corrupt, is_text
from omniq_nats.book import ENDS, Book
from omniq_nats.lines import Running, read_pending
from omniq_nats.link import Stored
from omniq_nats.names import is_line, split_home
from omniq_nats.slots import Doomed, Shelf, Slot, check_slot
from omniq_nats.times import is_moment

__all__ = ["encode_book", "encode_slots", "read_book", "read_slots"]

VERSION = 2


class _Table:
    """Values that many slots share, written once."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}

    def number(self, *row: Any) -> int:
        number = self._numbers.get(row)
        if number is None:
            number = self._numbers[row] = len(self.rows)
            self.rows.append(list(row))
        return number


class _SlotWriter:
    """Writes slots; what several of them share is written once."""

    def __init__(self) -> None:
        self.homes, self.grants = _Table(), _Table()

    def row(self, slot: Slot) -> list[Any]:
        return [
            slot.id,
            self.homes.number(slot.home, slot.seq, slot.size, slot.ttl),
            slot.index,
            slot.rank,
            slot.priority,
            slot.at,
            slot.max_retries,
            slot.expires,
            slot.expired_order,
            slot.attempt,
            slot.delivery,
            self.grants.number(slot.worker, slot.started, slot.until),
            slot.has_error,
            slot.cancel,
            slot.progress,
            slot.has_fate,
        ]


def _check_head(told: dict[str, Any], lines: int) -> None:
    """Check all but the tasks that wait.

    :raises ValueError: if something is not what it must be; or another of the errors of such values.
    """
    numbers = [told["running"], told["changes"], *(told["ended"][state] for state in ENDS)]
    for line, (place, taken) in told["lines"].items():
        numbers += [place, taken]
        if not is_line(line):
            raise ValueError("a line is none")
    for line, rows in told["ahead"].items():
        for place, index, why in rows:
            numbers += [place, index]
            if line not in told["lines"] or type(why) is not str:
                raise ValueError("what claims are to leave out")
    for name, priority, at, rank, last_at, count, taken, expires in told["shelves"]:
        numbers += [rank, count, taken]
        if not (
            is_text(name)
            and type(priority) is int
            and is_moment(at)
            and is_moment(last_at)
            and (expires is None or is_moment(expires))
            and taken <= count
        ):
            raise ValueError("a shelf is none")
    for task_id, home, index, place, size, ttl, since, unique in told["doomed"]:
        numbers += [index, place, size, since]
        split_home(home)
        if not (is_text(task_id) and type(ttl) is float and (unique is None or is_text(unique))):
            raise ValueError("a task that was removed is none")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a number is none, or out of range")
    if told["running"] > lines or type(told["paused"]) is not bool:
        raise ValueError("it does not say how many tasks run, or whether it is paused")
    if not all(map(is_text, [*told["recent"], *told["spent"]])):
        raise ValueError("a name is none")
    if not all(type(ttl) is float and 0 <= ttl < math.inf for ttl in told["ttls"]):
        raise ValueError("for how long results are kept")


def _read_slot(row: list[Any], homes: list[list[Any]], grants: list[list[Any]]) -> Slot:
    home, grant = homes[row[1]], grants[row[11]]
    slot = Slot(
        id=row[0],
        home=home[0],
        seq=home[1],
        size=home[2],
        ttl=home[3],
        index=row[2],
        rank=row[3],
        priority=row[4],
        at=row[5],
        max_retries=row[6],
        expires=row[7],
        expired_order=row[8],
        attempt=row[9],
        delivery=row[10],
        worker=grant[0],
        started=grant[1],
        until=grant[2],
        has_error=row[12],
        cancel=row[13],
        progress=row[14],
        has_fate=row[15],
    )
    check_slot(slot)
    return slot


def encode_slots(slots: Iterable[Slot]) -> bytes:
    """Give the body of the message that a shelf is stored in."""
    writer = _SlotWriter()
    rows = [writer.row(slot) for slot in slots]
    told = [rows, writer.homes.rows, writer.grants.rows]
    return json.dumps(told, separators=(",", ":")).encode()


def read_slots(stored: Stored) -> list[Slot]:
    """Read a shelf.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        rows, homes, grants = json.loads(stored.data)
        return [_read_slot(row, homes, grants) for row in rows]
    except UNREADABLE as error:
        place = f"message {stored.seq} on {stored.subject}"
        raise corrupt("waiting tasks", None, error, place=place) from error


def encode_book(book: Book) -> bytes:
    """Give the body of the message that a book is stored in."""
    writer = _SlotWriter()
    told = {
        "v": VERSION,
        "queue": book.queue,
        "changes": book.changes,
        "recent": book.recent,
        "paused": book.paused,
        "lines": book.lines,
        "running": len(book.running),
        "waiting": [writer.row(slot) for _, slots in book.waiting_by_priority() for slot in slots],
        "homes": writer.homes.rows,
        "grants": writer.grants.rows,
        "shelves": [
            [one.name, one.priority, one.at, one.rank, one.last_at, one.count, one.taken, one.expires]
            for one in book.shelves
        ],
        "spent": book.spent,
        "ahead": {line: [[*place, why] for place, why in places.items()] for line, places in book.ahead.items()},
        "doomed": [
            [one.id, one.home, one.index, one.seq, one.size, one.ttl, one.since, one.unique]
            for one in book.doomed.values()
        ],
        "ended": book.ended,
        "ttls": list(book.ttls),
    }
    head = json.dumps(told, separators=(",", ":")).encode()
    return b"\n".join([head, *book.running.lines(), *[one.line() for one in book.pending.values()]])


def read_book(queue: str, stored: Stored) -> Book:
    """Read a book. Its lines are read when they are asked for; see :meth:`Book.check`.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        head, *lines = stored.data.split(b"\n")
        told = json.loads(head)
        if told["v"] != VERSION:
            raise ValueError(f"it is of version {told['v']!r:.20}, and this omniq-nats knows {VERSION}: update it")
        return _read_book(queue, told, lines, stored.seq)
    except UNREADABLE as error:
        place = f"message {stored.seq} on {stored.subject}"
        raise corrupt("queue", queue, error, place=place) from error


def _read_book(queue: str, told: dict[str, Any], lines: Sequence[bytes], seq: int) -> Book:
    running: int = told["running"]
    if told["queue"] != queue:
        raise ValueError("it names another queue than its subject")
    _check_head(told, len(lines))
    homes, grants = told["homes"], told["grants"]

    book = Book(
        queue=told["queue"],
        seq=seq,
        changes=told["changes"],
        recent=told["recent"],
        paused=told["paused"],
        lines=told["lines"],
        ahead={line: {(row[0], row[1]): row[2] for row in rows} for line, rows in told["ahead"].items()},
        running=Running(lines[:running]),
        pending=read_pending(lines[running:]),
        shelves=[Shelf(*row) for row in told["shelves"]],
        spent=told["spent"],
        ended={state: told["ended"][state] for state in ENDS},
        ttls=dict.fromkeys(told["ttls"]),
    )
    # They were written in order.
    for row in told["waiting"]:
        waiting = _read_slot(row, homes, grants)
        book.waiting[waiting.id] = waiting
        book.back.setdefault(waiting.priority, []).append(waiting)
    for row in told["doomed"]:
        book.doom(Doomed(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]))
    return book
