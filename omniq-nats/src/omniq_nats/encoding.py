"""Books and overflow pages as they are stored: JSON, in which what many tasks share is written once.

A queue state's JSON is its first line. What it tells of keys and named limits follows, then those that run and the end
records, see :mod:`omniq_nats.lazy_rows`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from omniq.storage.corrupt_records import corrupt
from omniq.storage.validation import UNREADABLE, is_text
from omniq_nats.entries import Entry, OverflowPage, Tombstone, check_slot
from omniq_nats.lanes import Lane
from omniq_nats.lazy_rows import Running, read_pending
from omniq_nats.names import group_in, is_line, split_batch
from omniq_nats.queue_state import ENDS, QueueState
from omniq_nats.times import is_moment
from omniq_nats.transport import Stored

__all__ = ["NewerVersion", "encode_entries", "encode_queue_state", "read_entries", "read_queue_state"]

VERSION = 3
WITH_LANE = 4
"""The version of a queue state that tells of limits: who does not know these must not replace it."""


class NewerVersion(ValueError):
    """A queue state is of a version that this omniq-nats does not know yet."""


class _Table:
    """Values that many entries share, written once."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self._numbers: dict[tuple[Any, ...], int] = {}

    def number(self, *row: Any) -> int:
        number = self._numbers.get(row)
        if number is None:
            number = self._numbers[row] = len(self.rows)
            self.rows.append(list(row))
        return number


class _EntryWriter:
    """Writes entries; what several of them share is written once."""

    def __init__(self) -> None:
        self.batches, self.grants = _Table(), _Table()

    def row(self, entry: Entry) -> list[Any]:
        return [
            entry.id,
            self.batches.number(entry.batch, entry.seq, entry.size, entry.ttl, entry.flow),
            entry.index,
            entry.rank,
            entry.priority,
            entry.at,
            entry.max_retries,
            entry.expires,
            entry.expired_order,
            entry.attempt,
            entry.delivery,
            self.grants.number(entry.worker, entry.started, entry.until),
            entry.has_error,
            entry.cancel,
            entry.progress,
            entry.has_fate,
            *([] if entry.limited is None else [entry.limited]),
        ]


def _check_head(told: dict[str, Any], lines: int) -> None:
    """Check all but the tasks that wait.

    :raises ValueError: if something is not what it must be; or another of the errors of such values.
    """
    numbers = [told["running"], told["changes"], told["floor"], *(told["ended"][state] for state in ENDS)]
    for line, (place, taken) in told["lines"].items():
        numbers += [place, taken]
        if not is_line(line):
            raise ValueError("a line is none")
    for line, rows in told["ahead"].items():
        for place, index, why in rows:
            numbers += [place, index]
            if line not in told["lines"] or type(why) is not str:
                raise ValueError("what claims are to leave out")
    for name, priority, at, rank, last_at, count, taken, expires, *is_lined in told["overflow"]:
        numbers += [rank, count, taken]
        if not (
            is_text(name)
            and type(priority) is int
            and is_moment(at)
            and is_moment(last_at)
            and (expires is None or is_moment(expires))
            and taken <= count
            and is_lined in ([], [True])
        ):
            raise ValueError("a shelf is none")
    for task_id, batch, index, place, size, ttl, since, unique in told["tombstones"]:
        numbers += [index, place, size, since]
        split_batch(batch)
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


def _read_entry(row: list[Any], batches: list[list[Any]], grants: list[list[Any]]) -> Entry:
    batch, grant = batches[row[1]], grants[row[11]]
    entry = Entry(
        id=row[0],
        batch=batch[0],
        seq=batch[1],
        size=batch[2],
        ttl=batch[3],
        flow=batch[4],
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
        limited=row[16] if len(row) > 16 else None,
    )
    check_slot(entry)
    return entry


def encode_entries(entries: Iterable[Entry]) -> bytes:
    """Return the body of the message that an overflow page is stored in."""
    writer = _EntryWriter()
    rows = [writer.row(entry) for entry in entries]
    told = [rows, writer.batches.rows, writer.grants.rows]
    return json.dumps(told, separators=(",", ":")).encode()


def read_entries(stored: Stored) -> list[Entry]:
    """Read an overflow page.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        rows, batches, grants = json.loads(stored.data)
        return [_read_entry(row, batches, grants) for row in rows]
    except UNREADABLE as error:
        place = f"message {stored.seq} on {stored.subject}"
        raise corrupt("waiting tasks", None, error, place=place) from error


def encode_queue_state(queue_state: QueueState) -> bytes:
    """Return the body of the message that a queue state is stored in."""
    writer = _EntryWriter()
    told: dict[str, Any] = {
        "v": VERSION if queue_state.lane is None else WITH_LANE,
        "queue": queue_state.queue,
        "changes": queue_state.changes,
        "recent": queue_state.recent,
        "paused": queue_state.paused,
        "floor": queue_state.floor,
        "lines": {line: place for line, place in queue_state.lines.items() if not group_in(line)},
        "running": len(queue_state.running),
        "waiting": [writer.row(entry) for entries in queue_state.back.values() for entry in entries],
        "homes": writer.batches.rows,
        "grants": writer.grants.rows,
        "overflow": [
            [one.name, one.priority, one.at, one.rank, one.last_at, one.count, one.taken, one.expires]
            + [True] * one.is_lined
            for one in queue_state.overflow
        ],
        "spent": queue_state.spent,
        "ahead": {line: [[*place, why] for place, why in places.items()] for line, places in queue_state.ahead.items()},
        "tombstones": [
            [one.id, one.batch, one.index, one.seq, one.size, one.ttl, one.since, one.unique]
            for one in queue_state.tombstones.values()
        ],
        "ended": queue_state.ended,
        "ttls": list(queue_state.ttls),
    }
    if queue_state.reserved is not None:
        told["reserved"] = queue_state.reserved
    limited: list[bytes] = []
    if queue_state.lane is not None:
        told["lane"] = queue_state.lane.row()
        limited = queue_state.lane.rows(queue_state.lines)
    head = json.dumps(told, separators=(",", ":")).encode()
    ends = [one.line() for one in queue_state.pending.values()]
    return b"\n".join([head, *limited, *queue_state.running.lines(), *ends])


def read_queue_state(queue: str, stored: Stored) -> QueueState:
    """Read a queue state. Its lines are read when they are asked for; see :meth:`QueueState.check`.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        head, *lines = stored.data.split(b"\n")
        told = json.loads(head)
        version = told["v"]
        if type(version) is int and version > WITH_LANE:
            raise NewerVersion(
                f"it is of version {version!r:.20}, and this omniq-nats knows {WITH_LANE}: update it; where no newer "
                "one was ever used, purge that subject of the stream: workers make the record anew from the tasks"
            )
        if version not in (VERSION, WITH_LANE):
            raise ValueError(f"it is of version {version!r:.20}, and this omniq-nats knows {WITH_LANE}")
        return _read_queue_state(queue, told, lines, stored.seq)
    except UNREADABLE as error:
        place = f"message {stored.seq} on {stored.subject}"
        raise corrupt("queue", queue, error, place=place) from error


def _read_reserved(told: Any) -> tuple[str, int] | None:
    if told is None:
        return None
    storage, until = told
    if not (is_text(storage) and is_moment(until)):
        raise ValueError("a reservation is none")
    return storage, until


def _read_queue_state(queue: str, told: dict[str, Any], lines: list[bytes], seq: int) -> QueueState:
    running: int = told["running"]
    if told["queue"] != queue:
        raise ValueError("it names another queue than its subject")
    lane = Lane.read(told["lane"], lines, told["lines"]) if "lane" in told else None
    _check_head(told, len(lines))
    batches, grants = told["homes"], told["grants"]

    queue_state = QueueState(
        queue=told["queue"],
        seq=seq,
        changes=told["changes"],
        recent=told["recent"],
        reserved=_read_reserved(told.get("reserved")),
        paused=told["paused"],
        floor=told["floor"],
        lines=told["lines"],
        ahead={line: {(row[0], row[1]): row[2] for row in rows} for line, rows in told["ahead"].items()},
        running=Running(lines[:running]),
        pending=read_pending(lines[running:]),
        overflow=[OverflowPage(*row) for row in told["overflow"]],
        spent=told["spent"],
        ended={state: told["ended"][state] for state in ENDS},
        ttls=dict.fromkeys(told["ttls"]),
        lane=lane,
    )
    # They were written in order.
    for row in told["waiting"]:
        waiting = _read_entry(row, batches, grants)
        queue_state.waiting[waiting.id] = waiting
        queue_state.back.setdefault(waiting.line, []).append(waiting)
    for row in told["tombstones"]:
        queue_state.doom(Tombstone(row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]))
    return queue_state
