"""Flows, their gates and the lists of their tasks, as they are stored.

A flow is one message, which each change of it replaces: that is what makes of any number of changes one after the
other. Its gates are on pages of their own, and where its tasks are is told by rosters, one for each call that added
some; both change only together with the flow's own message.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from omniq.errors import CorruptRecord
from omniq.flow import GateState, StoredFlow, StoredGate
from omniq.storage.corrupt_records import corrupt
from omniq.storage.rows import dump_flow, dump_gate, load_flow, load_gate
from omniq.storage.validation import UNREADABLE, is_text
from omniq.task import TaskState
from omniq_nats.names import split_batch
from omniq_nats.results import EndRecord
from omniq_nats.task_batches import TaskBatch
from omniq_nats.transport import Stored

__all__ = [
    "GATES",
    "FlowRecord",
    "GatePage",
    "RosterRow",
    "encode_flow",
    "encode_gates",
    "encode_roster",
    "is_blocked",
    "is_blocked_at",
    "read_flow",
    "read_gates",
    "read_roster",
]

VERSION = 1
GATES = 64
"""Gates on one page: those of the numbers that follow one another."""


@define(eq=False)
class FlowRecord:
    """What is stored of a flow, but for its gates and the places of its tasks."""

    flow: StoredFlow
    seq: int = 0
    """Of the message; 0: there is none yet."""
    last: int = 0
    """Of the latest message on either of the flow's subjects."""
    strays: tuple[int, ...] = ()
    """Messages of what it was before it ended, or went on, on the other of them."""
    word: int = 0
    """The message that says that it has ended; 0: there is none."""
    recent: list[str] = field(factory=list)
    """The names of the latest changes."""
    blocked: dict[str, int] = field(factory=dict)
    """By queue: how many of its tasks are blocked."""
    rosters: int = 0
    """How many there are."""
    pages: list[int] = field(factory=list)
    """The numbers of the pages of gates."""
    has_word: bool = False
    """Whether the word that it has ended is stored behind it."""


@define(eq=False)
class GatePage:
    """Some gates of a flow."""

    gates: dict[int, StoredGate] = field(factory=dict)
    places: dict[int, int] = field(factory=dict)
    """By gate: the rank up to which its tasks were released, or have ended as it broke."""


@frozen
class RosterRow:
    """Where some tasks of a flow are."""

    queue: str
    batch: str
    seq: int
    """Of the batch."""
    size: int
    behind: tuple[int | None, ...]
    """The gate of each."""


def encode_flow(record: FlowRecord) -> bytes:
    """Return the body of a flow's message."""
    told = [VERSION, dump_flow(record.flow), record.recent, record.blocked, record.rosters, record.pages]
    return json.dumps(told, separators=(",", ":")).encode()


def read_flow(flow_id: str, found: Sequence[Stored]) -> FlowRecord | None:
    """Read a flow.

    :param found: what there is on its subjects; the later counts, but for the word that it has ended.
    :return: None if there is nothing.
    :raises CorruptRecord: if it cannot be read.
    """
    told = sorted((one for one in found if one.data), key=lambda one: one.seq)
    if not told:
        return None
    stored = told[-1]
    try:
        version, text, recent, blocked, rosters, pages = json.loads(stored.data)
        if version != VERSION:
            raise ValueError(f"it is of version {version!r:.20}, and this omniq-nats knows {VERSION}")
        numbers = [rosters, *pages, *blocked.values()]
        if not all(type(number) is int and number >= 0 for number in numbers) or not all(map(is_text, recent)):
            raise ValueError("a number or a name is none")
        return FlowRecord(
            load_flow(text, flow_id),
            stored.seq,
            max(one.seq for one in found),
            tuple(one.seq for one in told[:-1]),
            max((one.seq for one in found if not one.data), default=0),
            recent,
            blocked,
            rosters,
            pages,
        )
    except UNREADABLE as error:
        raise corrupt("flow", flow_id, error, place=f"message {stored.seq} on {stored.subject}") from error


def is_blocked(page: GatePage, n: int, rank: int, end_record: EndRecord | None) -> bool:
    """Return whether a task that neither runs nor waits in the state of its queue, and has not ended, is blocked.

    Otherwise it was released, and waits on an overflow page.

    :param page: has the gate that it is behind.
    :param n: the gate's number.
    :param rank: the task's.
    :param end_record: the task's, if it has one.
    """
    gate = page.gates.get(n)
    if gate is None or gate.state is not GateState.OPEN:
        return True
    return rank >= page.places.get(n, 0) and (end_record is None or end_record.state is TaskState.BLOCKED)


def is_blocked_at(
    pages: Mapping[tuple[str, int], GatePage], batch: TaskBatch, index: int, end_record: EndRecord | None
) -> bool:
    """Return whether a task at a place is blocked, as :func:`is_blocked`.

    :param pages: of gates, by the ids of their flows and their numbers; of one that is not there all gates are shut.
    """
    behind = batch.ties[index][0] if batch.ties else None
    if behind is None or batch.flow is None:
        return True
    page = pages.get((batch.flow, behind // GATES))
    return page is None or is_blocked(page, behind, batch.rank(index), end_record)


def encode_gates(page: GatePage) -> bytes:
    """Return the body of the message of some gates: a line for each."""
    lines = [f"{page.places.get(n, 0)} {dump_gate(gate)}" for n, gate in sorted(page.gates.items())]
    return "\n".join(lines).encode()


def read_gates(flow_id: str, stored: Stored) -> GatePage:
    """Read some gates.

    :raises CorruptRecord: if one of them cannot be read.
    """
    page = GatePage()
    try:
        for line in stored.data.split(b"\n"):
            place, _, text = line.partition(b" ")
            n = int(text[1 : text.index(b",")])
            page.gates[n] = load_gate(text, flow_id, n)
            page.places[n] = int(place)
    except CorruptRecord:
        raise
    except UNREADABLE as error:
        raise corrupt("flow", flow_id, error, place=f"message {stored.seq} on {stored.subject}") from error
    return page


def encode_roster(rows: Iterable[tuple[str, str, int, Sequence[int | None]]]) -> bytes:
    """Return the body of a roster.

    :param rows: queue, name of the batch, how many messages lie between it and the roster, and the gate of each task.
    """
    told = [[queue, batch, back, len(behind), _packed(behind)] for queue, batch, back, behind in rows]
    return json.dumps(told, separators=(",", ":")).encode()


def _packed(behind: Sequence[int | None]) -> int | list[int | None] | None:
    return behind[0] if len(set(behind)) == 1 else list(behind)


def read_roster(flow_id: str, stored: Stored) -> list[RosterRow]:
    """Read a roster.

    :raises CorruptRecord: if it cannot be read.
    """
    try:
        return [_row(stored.seq, *row) for row in json.loads(stored.data)]
    except UNREADABLE as error:
        raise corrupt("flow", flow_id, error, place=f"message {stored.seq} on {stored.subject}") from error


def _row(seq: int, queue: Any, batch: Any, back: Any, size: Any, behind: Any) -> RosterRow:
    gates = tuple(behind) if isinstance(behind, list) else (behind,) * size
    split_batch(batch)
    if not (is_text(queue) and type(back) is int and type(size) is int and len(gates) == size > 0):
        raise ValueError("it does not say where tasks are")
    return RosterRow(queue, batch, seq - back, size, gates)
