"""Records of another store, as they go to the script ``adopt``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

from omniq.flow import Flow, Gate, GateState
from omniq.storage import Adoption
from omniq.storage.records import dump_error, dump_progress
from omniq.storage.times import span
from omniq.storage.validation import check_text
from omniq.task import StoredTask, TaskState
from omniq_redis.encoding import stored_words
from omniq_redis.flows import LONGEST_RANK
from omniq_redis.members import LARGEST_GATE
from omniq_redis.scripts import arguments_of
from omniq_redis.times import microseconds

__all__ = ["ANSWERS", "pack_records"]

ANSWERS = {
    "s": Adoption.STORED,
    "p": Adoption.PRESENT,
    "k": Adoption.KEY_TAKEN,
    "n": Adoption.NO_FLOW,
}
"""What each letter says that the script returns."""
_STATES = {GateState.SHUT: b"s", GateState.OPEN: b"o", GateState.BROKEN: b"b"}
_LETTERS = {
    TaskState.BLOCKED: b"b",
    TaskState.SUCCEEDED: b"s",
    TaskState.FAILED: b"f",
    TaskState.CANCELLED: b"c",
}
"""Of a past; w: it waits."""
_PAST = Struct(">cQIIQQQ?H")
_LENGTHS = Struct(">II")
_GATE = Struct(">IcqqIHI")


def pack_records(tasks: Sequence[StoredTask], flows: Sequence[Flow]) -> tuple[bytes, int]:
    """Write the arguments of ``adopt``.

    :return: the arguments, and how many they are.
    :raises ValueError: if one of the records cannot be stored.
    """
    words = [b"%d" % len(flows)]
    for flow in flows:
        words += _flow_words(flow)
    for task in tasks:
        words += (task.id.encode(), stored_words(task), _past(task))
    return arguments_of(words), len(words)


def _flow_words(flow: Flow) -> Iterable[bytes]:
    check_text(flow.id, "id of a flow")
    live = sum(number for state, number in flow.counts.items() if not state.is_final)
    ended = [flow.counts.get(state, 0) for state in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)]
    hold_until = 0 if flow.hold_until is None else microseconds(flow.hold_until)
    finished = 0 if flow.finished_at is None else microseconds(flow.finished_at)
    numbers = (microseconds(flow.created_at), span(flow.result_ttl), live, *ended, hold_until, finished, flow.cancelled)
    return (
        flow.id.encode(),
        b"" if flow.unique is None else b"k" + check_text(flow.unique, "unique key").encode(),
        b" ".join([b"%d" % number for number in numbers]),
        b"".join([_gate(gate) for gate in flow.gates]),
    )


def _gate(gate: Gate) -> bytes:
    rank, error = check_text(gate.rank, "rank of a gate").encode(), gate.error.encode(errors="replace")
    if not 0 <= gate.n <= LARGEST_GATE or len(rank) > LONGEST_RANK:
        raise ValueError(f"gate {gate.n} cannot be stored: its number or its rank is too large")
    state = _STATES[gate.state]
    return _GATE.pack(gate.n, state, gate.unmet, gate.failed, gate.holds, len(rank), len(error)) + rank + error


def _past(task: StoredTask) -> bytes:
    """Return what has become of a task; nothing if it is as it was enqueued."""
    is_as_new = not (task.delivery or task.attempt or task.error or task.attempt_log or task.state.is_final)
    if is_as_new and (task.behind is None or task.state is TaskState.BLOCKED):
        return b""
    worker = b"" if task.worker is None else task.worker.encode()
    error = "" if task.error is None else dump_error(task.error)
    told = (f"{error}\n{task.attempt_log}" if task.attempt_log else error).encode()
    progress = b"" if task.progress is None else dump_progress(task.progress).encode()
    head = _PAST.pack(
        _LETTERS.get(task.state, b"w"),
        0 if task.finished_at is None else microseconds(task.finished_at),
        task.delivery,
        task.attempt,
        0 if task.started_at is None else microseconds(task.started_at),
        microseconds(task.run_at),
        0 if task.expires_at is None else microseconds(task.expires_at),
        task.cancel_requested,
        len(worker),
    )
    return head + worker + _LENGTHS.pack(len(told), len(progress)) + told + progress + (task.result_payload or b"")
