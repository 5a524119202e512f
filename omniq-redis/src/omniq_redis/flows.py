"""Flows, as they go to the scripts and come back; ``lua/parts/flows.lua`` says how they are kept."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omniq.errors import FlowClosed
from omniq.flow import Flow, Gate, GateState, NewFlow, NewGate
from omniq.storage import Enqueued
from omniq.storage.corrupt_records import corrupt
from omniq.storage.times import from_micros, span
from omniq.storage.validation import UNREADABLE, check_text
from omniq.task import NewTask, TaskState
from omniq_redis.batches import pack_tasks, pairs, read_stored
from omniq_redis.decoding import id_of
from omniq_redis.members import LARGEST_GATE
from omniq_redis.scripts import arguments_of

__all__ = ["FLOW_STEP", "LONGEST_RANK", "flow_of", "pack_flow", "read_flow", "stored_flow"]

STATES = {b"s": GateState.SHUT, b"o": GateState.OPEN, b"b": GateState.BROKEN}
WORDS = 6
"""Arguments of ``enqueue_flow`` before those of the tasks."""
LONGEST_RANK = 0xFFFF
FLOW_STEP = 12_000
"""A group of 10,000, or 2,000 links of a chain: the server does nothing else for a tenth of a second at most.

Much more in one script would take more than its part of the time: Lua looks each text up among those that it has, by a
hash of some of the bytes, which is the same for many links of a chain.
"""
_GATE = struct.Struct(">IBH")


def flow_of(tasks: Iterable[NewTask], flow: NewFlow | None) -> str | None:
    """Return the id of the flow to which a call adds; None: to none.

    :raises ValueError: if there are several, or a task is not of the flow that is given.
    """
    named = {task.flow for task in tasks}
    if flow is not None:
        if named - {None, flow.id}:
            raise ValueError(f"one call adds to one flow, not to {len((named | {flow.id}) - {None})}")
        if None in named:
            raise ValueError(f"one of the tasks is not of the flow {flow.id!r} with which it is enqueued")
        return flow.id
    named.discard(None)
    if len(named) > 1:
        raise ValueError(f"one call adds to one flow, not to {len(named)}")
    return named.pop() if named else None


def pack_flow(tasks: Sequence[NewTask], flow_id: str, flow: NewFlow | None) -> tuple[bytes, int]:
    """Write the arguments of ``enqueue_flow``.

    :return: the arguments, and how many they are.
    :raises ValueError: if one of the tasks or gates cannot be stored.
    """
    check_text(flow_id, "id of a flow")
    if flow is None:
        words = [flow_id.encode(), b"", b"", b"0", b"0", b""]
    else:
        if flow.unique is not None:
            check_text(flow.unique, "unique key")
        words = [
            flow_id.encode(),
            b"1",
            b"" if flow.unique is None else b"k" + flow.unique.encode(),
            b"%d" % span(flow.hold_ttl),
            b"%d" % span(flow.result_ttl),
            b"".join([_packed_gate(gate) for gate in flow.gates]),
        ]
    return arguments_of(words) + pack_tasks(tasks), WORDS + 3 * len(tasks)


def _packed_gate(gate: NewGate) -> bytes:
    check_text(gate.rank, "rank of a gate")
    rank = gate.rank.encode()
    if not 0 <= gate.n <= LARGEST_GATE or len(rank) > LONGEST_RANK:
        raise ValueError(f"gate {gate.n} cannot be stored: its number or its rank is too large")
    return _GATE.pack(gate.n, gate.hold, len(rank)) + rank


def read_flow(tasks: Sequence[NewTask], flow_id: str, answer: Sequence[Any]) -> list[Enqueued]:
    """Read what became of new tasks of a flow.

    :raises ValueError: if the rules about flows refuse one.
    :raises FlowClosed: if it comes too late.
    """
    kind, *told = answer

    def refused() -> str:
        task = tasks[int(told[0])]
        return f"task {task.id} ({task.name})"

    match kind:
        case b"ok":
            return read_stored(tasks, told)
        case b"held":
            return [Enqueued(id_of(told[0]), False) for _ in tasks]
        case b"unknown":
            raise ValueError(f"there is no flow {flow_id!r} in this store to which a task could be added")
        case b"gate":
            raise ValueError(f"flow {flow_id} has no gate {told[1]}, which {refused()} names")
        case b"rank":
            raise ValueError(
                f"{refused()} would stand behind gate {told[1]} and feed gate {told[2]}, which does not rank after "
                "it: a flow has no cycles"
            )
        case b"closed":
            raise FlowClosed(
                f"gate {told[1]} of flow {flow_id} is {STATES[told[2]]}; {refused()} can no longer be one of those "
                "that it waits for"
            )
        case b"lost":
            raise FlowClosed(f"flow {flow_id} has ended, and another has its unique key; nothing can be added to it")
    raise FlowClosed(f"flow {flow_id} was cancelled; nothing can be added to it")


def stored_flow(flow_id: str, found: Sequence[Any]) -> Flow | None:
    """Make a flow of what is stored of it; None if that is nothing.

    :param found: its fields, the number of its blocked tasks, and that of its scheduled ones.
    :raises CorruptRecord: if that cannot be done.
    """
    fields: Mapping[bytes, bytes] = dict(pairs(found[0]))
    if not fields:
        return None
    try:
        return _flow(flow_id, fields, found[1], found[2])
    except UNREADABLE as problem:
        raise corrupt("flow", flow_id, problem, place=f"key f:{flow_id}") from problem


def _flow(flow_id: str, fields: Mapping[bytes, bytes], blocked: int, scheduled: int) -> Flow:
    def number(name: bytes) -> int:
        return int(fields.get(name, b"0"))

    running = number(b"r")
    unique = fields.get(b"unique")
    finished, hold_until = number(b"finished"), number(b"hold_until")
    counts = {
        TaskState.BLOCKED: blocked,
        TaskState.SCHEDULED: scheduled,
        TaskState.READY: number(b"live") - blocked - scheduled - running,
        TaskState.RUNNING: running,
        TaskState.SUCCEEDED: number(b"s"),
        TaskState.FAILED: number(b"f"),
        TaskState.CANCELLED: number(b"c"),
    }
    gates = (_gate(int(name[1:]), text) for name, text in fields.items() if name[1:].isdigit() and name[:1] == b"g")
    return Flow(
        id=flow_id,
        unique=None if unique is None else unique.decode(),
        created_at=from_micros(int(fields[b"created"])),
        finished_at=from_micros(finished) if finished else None,
        cancelled=number(b"cancelled") > 0,
        hold_until=from_micros(hold_until) if hold_until else None,
        counts={state: max(count, 0) for state, count in counts.items()},
        gates=tuple(sorted(gates, key=lambda gate: gate.n)),
        result_ttl=number(b"ttl") / 1e6,
    )


def _gate(n: int, text: bytes) -> Gate:
    state, unmet, failed, holds, _, length, rest = text.split(b" ", 6)
    size = int(length)
    return Gate(
        n=n,
        rank=rest[:size].decode(),
        state=STATES[state],
        unmet=int(unmet),
        failed=int(failed),
        error=rest[size:].decode(errors="replace"),
        holds=int(holds),
    )
