"""A task's record as plain values (int, float, str, bytes, None), for a store that keeps them in columns or as JSON.

Points in time are whole microseconds since the epoch, so that they come back exactly.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from omniq.errors import CorruptRecord
from omniq.flow import GateState, StoredFlow, StoredGate
from omniq.limit import Lane, Limited, StoredLine
from omniq.storage.corrupt_records import corrupt, salvaged
from omniq.storage.escaping import shown
from omniq.storage.records import dump_error, dump_progress, load_error, load_progress
from omniq.storage.states import later
from omniq.storage.times import LATEST, from_micros, optional_micros, optional_moment, to_micros
from omniq.storage.validation import UNREADABLE, check_task
from omniq.storage.values import Salvaged
from omniq.task import Feed, LimitedTask, StoredTask, TaskState

__all__ = [
    "CHANGING",
    "FIXED",
    "STATES",
    "STATE_NUMBERS",
    "changing_values",
    "drop_at",
    "dump_flow",
    "dump_gate",
    "dump_lane",
    "dump_line",
    "fixed_values",
    "load_flow",
    "load_gate",
    "load_lane",
    "load_line",
    "salvaged_of",
    "task_of",
]

STATE_NUMBERS = {state: number for number, state in enumerate(TaskState)}
"""The number that stands for each state: 0 blocked, 1 scheduled, 2 ready, 3 running, 4 succeeded, 5 failed, and 6
cancelled."""
STATES = {number: state for state, number in STATE_NUMBERS.items()}
"""And the state of each number."""

FIXED = (
    "id",
    "queue",
    "name",
    "body",
    "priority",
    "max_retries",
    "created_at",
    "unique",
    "tags",
    "result_ttl",
    "flow",
    "behind",
    "feeds",
    "opening_delay",
    "key",
    "limit",
    "first_at",
)
"""The fields that never change once a task is stored, in the order of :func:`fixed_values`."""

CHANGING = (
    "state",
    "attempt",
    "delivery",
    "run_at",
    "started_at",
    "finished_at",
    "expires_at",
    "lease_until",
    "worker",
    "error",
    "progress",
    "cancel_requested",
    "attempt_log",
    "result_payload",
)
"""The other fields, in the order of :func:`changing_values`."""


def drop_at(task: StoredTask) -> int | None:
    """Return until when the record of a task is kept, in microseconds since the epoch.

    None if it has not ended, and if it belongs to a flow: then the flow says.
    """
    return (
        None
        if task.finished_at is None or task.flow is not None
        else to_micros(later(task.finished_at, task.result_ttl))
    )


def fixed_values(task: StoredTask) -> tuple[Any, ...]:
    """Return the values of :data:`FIXED`.

    :raises ValueError: if the task could not be read again.
    """
    try:
        check_task(task)
    except ValueError as error:
        raise ValueError(f"task {shown(task.id)} cannot be stored: {error}") from error
    return (
        task.id,
        task.queue,
        task.name,
        task.body,
        task.priority,
        task.max_retries,
        to_micros(task.created_at),
        task.unique,
        json.dumps(task.tags) if task.tags else None,
        float(task.result_ttl),
        task.flow,
        task.behind,
        json.dumps([[feed.gate, feed.needs_success] for feed in task.feeds]) if task.feeds else None,
        task.opening_delay,
        task.key,
        task.limit,
        optional_micros(task.first_at),
    )


def changing_values(task: StoredTask) -> tuple[Any, ...]:
    """Return the values of :data:`CHANGING`."""
    return (
        STATE_NUMBERS[task.state],
        task.attempt,
        task.delivery,
        to_micros(task.run_at),
        optional_micros(task.started_at),
        optional_micros(task.finished_at),
        optional_micros(task.expires_at),
        optional_micros(task.lease_until),
        task.worker,
        None if task.error is None else dump_error(task.error),
        None if task.progress is None else dump_progress(task.progress),
        int(task.cancel_requested),
        task.attempt_log or None,
        task.result_payload,
    )


def task_of(fixed: Sequence[Any], changing: Sequence[Any], place: str = "") -> StoredTask:
    """Make a task of its values.

    :param fixed: the values of :data:`FIXED`; a body of None (not read) becomes an empty one.
    :param changing: the values of :data:`CHANGING`.
    :param place: where they stand, for the error.
    :raises CorruptRecord: if they are not what they should be.
    """
    task_id: Any = fixed[0] if fixed else None
    try:
        # Names and keyword arguments, as each task of a claim or a listing comes by here: tables take twice the time.
        _, queue, name, body, priority, max_retries, created_at, unique, tags, result_ttl, *place_in_flow = fixed
        flow, behind, feeds, opening_delay, task_key, limit, first_at = place_in_flow
        (
            state,
            attempt,
            delivery,
            run_at,
            started_at,
            finished_at,
            expires_at,
            lease_until,
            worker,
            error,
            progress,
            cancel,
            attempt_log,
            result,
        ) = changing
        cancelled: Any = cancel if cancel is None else bool(cancel)  # None is refused by check_task
        task = StoredTask(
            id=task_id,
            queue=queue,
            name=name,
            body=b"" if body is None else _bytes(body),
            priority=priority,
            max_retries=max_retries,
            created_at=from_micros(created_at),
            unique=unique,
            tags=() if tags is None else _tags(tags),
            result_ttl=result_ttl,
            flow=flow,
            behind=behind,
            feeds=() if feeds is None else _feeds(feeds),
            opening_delay=opening_delay,
            state=STATES[state],
            attempt=attempt,
            delivery=delivery,
            run_at=from_micros(run_at),
            started_at=optional_moment(started_at),
            finished_at=optional_moment(finished_at),
            expires_at=optional_moment(expires_at),
            lease_until=optional_moment(lease_until),
            worker=worker,
            error=None if error is None else load_error(error),
            progress=None if progress is None else load_progress(progress),
            cancel_requested=cancelled,
            attempt_log="" if attempt_log is None else attempt_log,
            result_payload=None if result is None else _bytes(result),
        )
        limited = _limited(task_key, limit, first_at)
        return check_task(task if limited is None else LimitedTask(**vars(task), limited=limited))
    except UNREADABLE as problem:
        raise corrupt("task", task_id, problem, place=place) from problem


def _bytes(value: Any) -> bytes:
    # Not bytes(value), which makes a billion zeros of a number.
    return value if type(value) is bytes else bytes(memoryview(value))


def _limited(key: str | None, limit: str | None, first_at: int | None) -> Limited | None:
    if key is None and limit is None and first_at is None:
        return None
    return Limited(key, limit, optional_moment(first_at))


def _tags(text: str) -> tuple[str, ...]:
    tags = json.loads(text)
    if not isinstance(tags, list):
        raise ValueError(f"its tags are no list: {text:.100}")
    return tuple(tags)


def _feeds(text: str) -> tuple[Feed, ...]:
    return tuple(Feed(gate, needs_success) for gate, needs_success in json.loads(text))


def salvaged_of(problem: CorruptRecord, task_id: object, fixed: Sequence[Any], changing: Sequence[Any]) -> Salvaged:
    """Return what is shown in place of a task whose values cannot be read.

    :param problem: what :func:`task_of` raised.
    :param task_id: by which it was found.
    :param fixed: the values of :data:`FIXED`, or what there is of them.
    :param changing: the values of :data:`CHANGING`, or what there is of them.
    """
    known = dict(zip(FIXED, fixed, strict=False)) | dict(zip(CHANGING, changing, strict=False))
    for name in _TIMES & known.keys():
        known[name] = from_micros(known[name]) if type(known[name]) is int and 0 <= known[name] <= LATEST else None
    feeds = known.get("feeds")
    with contextlib.suppress(*UNREADABLE):
        known["feeds"] = () if feeds is None else _feeds(feeds)
    with contextlib.suppress(*UNREADABLE):
        known["limited"] = _limited(known.get("key"), known.get("limit"), known.get("first_at"))
    return salvaged(problem, task_id, {name: known[name] for name in _SHOWN & known.keys()})


_TIMES = frozenset({"created_at", "run_at", "started_at", "finished_at"})
_SHOWN = (
    _TIMES
    | {"queue", "name", "body", "priority", "attempt", "delivery", "worker", "result_payload"}
    | {"flow", "behind", "feeds", "limited"}
)
"""What can be shown of a task that cannot be read, and in which gates its end counts."""


def dump_flow(flow: StoredFlow) -> str:
    """Return a flow as text."""
    times = [optional_micros(moment) for moment in (flow.created_at, flow.hold_until, flow.finished_at, flow.audit_at)]
    numbers = [flow.live, flow.held, flow.result_ttl, flow.cancelled, flow.cancelling, flow.retrying, flow.doubtful]
    return json.dumps([flow.id, flow.unique, times, numbers, list(flow.agenda)], separators=(",", ":"))


def load_flow(text: str | bytes, flow_id: str) -> StoredFlow:
    """Return the flow of a text.

    :raises CorruptRecord: if it cannot be read, or is that of another flow.
    """
    try:
        own_id, unique, (created_at, hold_until, finished_at, audit_at), numbers, agenda = json.loads(text)
        live, held, result_ttl, cancelled, cancelling, retrying, doubtful = numbers
        if own_id != flow_id:
            raise ValueError(f"its record is that of flow {own_id!r}")
        if type(live) is not int or type(held) is not int or not all(type(n) is int for n in agenda):
            raise ValueError("its numbers are no numbers")
        return StoredFlow(
            id=own_id,
            unique=unique,
            created_at=from_micros(created_at),
            result_ttl=float(result_ttl),
            live=live,
            held=held,
            hold_until=optional_moment(hold_until),
            finished_at=optional_moment(finished_at),
            cancelled=bool(cancelled),
            cancelling=bool(cancelling),
            retrying=bool(retrying),
            audit_at=optional_moment(audit_at),
            doubtful=bool(doubtful),
            agenda=dict.fromkeys(agenda),
        )
    except UNREADABLE as problem:
        raise corrupt("flow", flow_id, problem) from problem


def dump_gate(gate: StoredGate) -> str:
    """Return a gate as text."""
    values = [gate.n, gate.rank, gate.unmet, gate.failed, gate.holds, gate.state, gate.error, gate.revives]
    return json.dumps(values, separators=(",", ":"))


def load_gate(text: str | bytes, flow_id: str, n: int) -> StoredGate:
    """Return the gate of a text.

    :raises CorruptRecord: if it cannot be read, or is another gate.
    """
    try:
        own_n, rank, unmet, failed, holds, state, error, revives = json.loads(text)
        if own_n != n or not all(type(number) is int for number in (unmet, failed, holds)):
            raise ValueError(f"{text!r:.100} in place of a gate")
        return StoredGate(
            n=n,
            rank=rank,
            unmet=unmet,
            failed=failed,
            holds=holds,
            state=GateState(state),
            error=error,
            revives=bool(revives),
        )
    except UNREADABLE as problem:
        raise corrupt("flow", flow_id, f"gate {n}: {problem}") from problem


def dump_lane(lane: Lane) -> str:
    """Return a lane as text."""
    return json.dumps([lane.queue, lane.vtime, lane.plain_vtime, lane.waking], separators=(",", ":"))


def load_lane(text: str | bytes, queue: str) -> Lane:
    """Return the lane of a text.

    :raises CorruptRecord: if it cannot be read, or is that of another queue.
    """
    try:
        own, vtime, plain_vtime, waking = json.loads(text)
        if own != queue or not type(vtime) is type(plain_vtime) is int:
            raise ValueError(f"{text!r:.100} in place of a lane")
        return Lane(queue=own, vtime=vtime, plain_vtime=plain_vtime, waking=bool(waking))
    except UNREADABLE as problem:
        raise corrupt("lane", queue, problem) from problem


def dump_line(line: StoredLine) -> str:
    """Return a line as text."""
    names = [line.queue, line.key, line.limit, line.place]
    return json.dumps([*names, line.priority, line.vtime, line.until, line.is_alarm], separators=(",", ":"))


def load_line(text: str | bytes, line_id: str) -> StoredLine:
    """Return the line of a text.

    :raises CorruptRecord: if it cannot be read, or is another line.
    """
    try:
        queue, key, limit, place, priority, vtime, until, is_alarm = json.loads(text)
        line = StoredLine(
            queue=queue,
            key=key,
            limit=limit,
            place=place,
            priority=priority,
            vtime=vtime,
            until=until,
            is_alarm=bool(is_alarm),
        )
        if line.id != line_id or not all(type(number) is int for number in (priority, vtime, until)):
            raise ValueError(f"{text!r:.100} in place of a line")
        return line
    except UNREADABLE as problem:
        raise corrupt("line", line_id, problem) from problem
