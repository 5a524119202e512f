"""Finish, heartbeat and progress: what only the holder of a lease may do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from omniq.storage import Lease, LeaseState
from omniq.storage.records import dump_error, dump_progress
from omniq.storage.times import span
from omniq.task import Cancelled, Failed, Outcome, Progress, Released, Retry, Succeeded
from omniq_local.sqlite import flows, limits
from omniq_local.sqlite.encoding import CANCELLED, FAILED, READY, RUNNING, SCHEDULED, SUCCEEDED
from omniq_local.sqlite.limits import Left
from omniq_local.sqlite.transaction import End, Transaction

__all__ = ["finish", "heartbeat", "set_progress"]


def _held(tx: Transaction, ids: Sequence[str]) -> dict[str, list[Any]]:
    """Return id, seq, queue, state, delivery, cancel, flow and line of the tasks that are there, by id."""
    return {found[0]: found for found in tx.value("finish.held", json.dumps(ids))}


def finish(outcomes: Sequence[Outcome], tx: Transaction) -> list[bool]:
    """Record outcomes within a transaction; see :meth:`~omniq.storage.Storage.finish`."""
    tx.fold()
    held = _held(tx, [outcome.id for outcome in outcomes])
    accepted = []
    ended: list[End] = []
    back: list[tuple[Any, ...]] = []
    left: list[Left] = []
    has_lanes = tx.has_lanes
    for outcome in outcomes:
        found = held.get(outcome.id)
        if found is None or found[3] != RUNNING or found[4] != outcome.delivery:
            accepted.append(False)
            continue
        accepted.append(True)
        task_id, seq, queue, _, _, cancel, flow, line = found
        if has_lanes or line is not None:
            left.append(Left(seq, queue, line is not None, isinstance(outcome, Released)))
        found[3] = None  # one outcome for each delivery, also within a batch
        row = (seq, task_id, queue, RUNNING, flow)
        match outcome:
            case Succeeded(result=result):
                ended.append((row, SUCCEEDED, result, None, None))
            case Failed(error=error):
                ended.append((row, FAILED, None, dump_error(error), outcome.attempt_log or None))
            case Cancelled():
                ended.append((row, CANCELLED, None, None, outcome.attempt_log or None))
            case Retry() | Released():
                state, run_at = (RUNNING, None) if cancel else _given_back(outcome, queue, tx)
                released = isinstance(outcome, Released)
                told = None if outcome.error is None else dump_error(outcome.error)
                log = None if isinstance(outcome, Released) else outcome.attempt_log or None
                back.append((seq, state, run_at, released, released and told is None, told, log))
                if cancel:
                    ended.append((row, CANCELLED, None, None, None))
            case _:
                raise TypeError(f"not an outcome that a store knows: {outcome!r}")
    if back:
        tx.batch("finish.give_back", back)
    if ended:
        flows.conclude(ended, tx)
    if left:
        limits.follow(left, tx)
    return accepted


def _given_back(outcome: Retry | Released, queue: str, tx: Transaction) -> tuple[int, int | None]:
    """Return the state in which a task waits again, and since or until when; None: its old place."""
    later = outcome.delay > 0
    state = SCHEDULED if later else READY
    tx.count(queue, RUNNING, -1)
    tx.count(queue, state, 1)
    if later:
        run_at = tx.now + span(outcome.delay)
        tx.will_be_ready(queue, run_at)
        return state, run_at
    tx.made_ready(queue)
    return state, tx.stamp if isinstance(outcome, Retry) else None


def heartbeat(
    worker: str, leases: Sequence[Lease], lease: float, about: str | None, tx: Transaction
) -> list[LeaseState]:
    """Extend leases within a transaction; see :meth:`~omniq.storage.Storage.heartbeat`."""
    until = tx.now + span(lease)
    if lease > 0:
        tx.run("finish.seen", worker, tx.now, until, about)
    else:
        tx.run("finish.sign_off", worker)
    if not leases:
        return []
    held = _held(tx, [entry.id for entry in leases])
    states = []
    extended = []
    for entry in leases:
        found = held.get(entry.id)
        if found is None or found[3] != RUNNING or found[4] != entry.delivery:
            states.append(LeaseState.LOST)
            continue
        states.append(LeaseState.CANCEL_REQUESTED if found[5] else LeaseState.HELD)
        extended.append(found[1])
    if extended:
        tx.run("finish.extend", until, span(lease), json.dumps(extended))
        tx.rows += len(extended)
    return states


def set_progress(updates: Mapping[Lease, Progress], tx: Transaction) -> None:
    """Note progress within a transaction; see :meth:`~omniq.storage.Storage.set_progress`."""
    tx.batch(
        "finish.note_progress",
        [(lease.id, lease.delivery, dump_progress(progress)) for lease, progress in updates.items()],
    )
