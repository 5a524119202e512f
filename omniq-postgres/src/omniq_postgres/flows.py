"""Flows: stored, settled, cancelled, retried and read; :mod:`omniq.storage.flow_transitions` says what that means.

The statement that ends a flow's task, whichever it is, marks the end as uncounted. The same call counts it in its next
step, under the lock of the flow. A transaction that opens a flow counts what is marked there first, so none sees or
changes a flow that lags behind; what a process leaves that dies in between, the next claim counts. So no statement that
ends tasks waits for a flow, and a transaction of the caller's, which may stay open for long, holds none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from psycopg.errors import UniqueViolation

from omniq.errors import CorruptRecord
from omniq.flow import Flow, NewFlow
from omniq.storage import Adoption, Enqueued, flow_transitions, transitions
from omniq.storage.corrupt_records import unreadable
from omniq.storage.rows import load_flow, load_gate
from omniq.task import NewTask, StoredTask
from omniq_postgres import binary_params
from omniq_postgres.flow_tx import TRIES, FlowTx, read_only, transaction
from omniq_postgres.operations import Context, Steps

__all__ = [
    "SETTLED",
    "adopt",
    "belong_to_flows",
    "cancel_flow",
    "check",
    "delete",
    "enqueue",
    "get_flows",
    "has_limits",
    "prune",
    "release_hold",
    "retry",
    "retry_flow",
    "settle",
]

R = TypeVar("R")

SETTLED = 1000
"""Tasks that one transaction moves at most."""


def belong_to_flows(tasks: Iterable[NewTask], flow: NewFlow | None) -> bool:
    """Return whether :func:`enqueue` is to store them, for a flow or for their limits."""
    return flow is not None or any(task.flow is not None or has_limits(task) for task in tasks)


def has_limits(task: NewTask) -> bool:
    """Return whether a task has a key, a named limit or a debounce."""
    return task.key is not None or task.limit is not None or task.debounce is not None


def enqueue(tasks: Sequence[NewTask], flow: NewFlow | None, context: Context) -> Steps[list[Enqueued]]:
    """Store tasks of a flow, or with limits; see :meth:`~omniq.storage.Storage.enqueue`."""
    flows = {task.flow for task in tasks if task.flow is not None} | ({flow.id} if flow is not None else set())
    for name in flows:
        binary_params.new_id(name)
    limited = [task for task in tasks if has_limits(task)]
    for task in limited:
        binary_params.new_id(task.id)

    def work(tx: FlowTx) -> list[Enqueued]:
        tx.open(flows)  # locked before the tasks, as everywhere
        if limited:
            tx.store_first(tasks)
        return transitions.enqueue(tx, tasks, flow)

    return (yield from _repeated(work, context, TRIES if limited and not context.joined else 1))


def _repeated(work: Callable[[FlowTx], R], context: Context, tries: int) -> Steps[R]:
    """Do something in a transaction, again if another one meanwhile stored a task with the same id or key."""
    while True:
        try:
            return (yield from transaction(work, context))
        except UniqueViolation:
            if (tries := tries - 1) <= 0:
                raise


def adopt(tasks: Sequence[StoredTask], records: Sequence[Flow], context: Context) -> Steps[list[Adoption]]:
    """Store records of another store, of flows or not; see :meth:`~omniq.storage.Storage.adopt`."""

    def work(tx: FlowTx) -> list[Adoption]:
        tx.look_at_clock()
        return transitions.adopt(tx, tasks, records)

    return (yield from _repeated(work, context, TRIES))


def release_hold(flow_id: str, gate: int, context: Context) -> Steps[bool]:
    """Take away a hold; see :meth:`~omniq.storage.Storage.release_hold`."""
    return (yield from transaction(lambda tx: flow_transitions.release_hold(tx, flow_id, gate), context))


def cancel_flow(flow_id: str, context: Context) -> Steps[bool]:
    """Cancel a flow; see :meth:`~omniq.storage.Storage.cancel_flow`."""
    return (yield from transaction(lambda tx: flow_transitions.cancel_flow(tx, flow_id), context))


def retry_flow(flow_id: str, context: Context) -> Steps[int]:
    """Retry a flow; see :meth:`~omniq.storage.Storage.retry_flow`."""
    return (yield from transaction(lambda tx: flow_transitions.retry_flow(tx, flow_id), context))


def go_on(flow_id: str, context: Context) -> Steps[bool]:
    """Do a step of what is left to do in a flow; tell whether there was something.

    Unlike :func:`settle` it waits for who is at it: a flow that others have locked has something left, too.
    """

    def work(tx: FlowTx) -> bool:
        flow = tx.flows([flow_id]).get(flow_id)
        if flow is None or not flow.is_due:
            return False
        flow_transitions.FlowStep(tx, flow).close()
        return True

    return (yield from transaction(work, context))


def get_flows(ids: Sequence[str], context: Context) -> Steps[list[Flow | None]]:
    """Return flows; see :meth:`~omniq.storage.Storage.get_flows`."""

    def read(tx: FlowTx) -> list[Flow | None] | None:
        return None if tx.lags(ids) else flow_transitions.get_flows(tx, ids)

    found = yield from read_only(read, context)
    if found is None:
        found = yield from transaction(lambda tx: flow_transitions.get_flows(tx, ids), context)
    return found


def settle(limit: int, context: Context) -> Steps[int]:
    """Do what is left to do; see :meth:`~omniq.storage.Storage.settle`."""
    if limit <= 0:
        return 0
    # The client that is to count them may be at it: then there is nothing to wait for but that.
    left = [row[0] for row in (yield context.query("flows.left"))]
    if left:
        yield from transaction(lambda tx: tx.open(left), context)
    return (yield from transaction(lambda tx: flow_transitions.settle(tx, min(limit, SETTLED)), context))


def retry(ids: Sequence[str], flows: Collection[str], context: Context) -> Steps[list[bool]]:
    """Retry tasks of flows, or with limits; see :meth:`~omniq.storage.Storage.retry`.

    :param flows: which they are of: locked before any of their tasks, as everywhere. One without a name is none.
    """

    def work(tx: FlowTx) -> list[bool]:
        tx.open(flows)
        tx.revive_first(ids)
        return transitions.retry(tx, ids)

    return (yield from _repeated(work, context, TRIES))


def delete(ids: Sequence[str], flows: Iterable[str], context: Context) -> Steps[list[bool]]:
    """Remove tasks of flows; see :func:`retry` and :meth:`~omniq.storage.Storage.delete`."""

    def work(tx: FlowTx) -> list[bool]:
        tx.open(flows)
        return transitions.delete(tx, ids)

    return (yield from transaction(work, context))


def prune(limit: int, context: Context) -> Steps[int]:
    """Remove flows whose ``result_ttl`` is over, with their tasks; see :meth:`~omniq.storage.Storage.prune`."""
    ((found,),) = yield context.query("flows.over")
    if limit <= 0 or not found:
        return 0
    return (yield from transaction(lambda tx: flow_transitions.prune_flows(tx, limit), context))


def check(context: Context) -> Steps[list[CorruptRecord]]:
    """Return what is wrong with flows and gates, see :meth:`~omniq.storage.Storage.check`."""
    flows = yield context.query("flows.records")
    gates = yield context.query("flows.gate_records")
    return [
        *unreadable(flows, lambda row: load_flow(row[1], row[0])),
        *unreadable(gates, lambda row: load_gate(row[2], row[0], row[1])),
    ]
