"""The verbs of flows, over the primitives of the change that each is."""

from __future__ import annotations

from collections.abc import Sequence

from omniq.flow import Flow
from omniq.storage import Adoption, flow_transitions, transitions
from omniq.task import StoredTask
from omniq_local.files.queues import DUE
from omniq_local.files.transaction import Transaction

__all__ = ["adopt", "cancel_flow", "get_flows", "release_hold", "retry_flow", "settle", "settle_first"]


def adopt(tasks: Sequence[StoredTask], records: Sequence[Flow], transaction: Transaction) -> list[Adoption]:
    """Store records of another store, of flows or not; see :meth:`~omniq.storage.Storage.adopt`."""
    return transitions.adopt(transaction.flows, tasks, records)


def release_hold(flow_id: str, gate: int, transaction: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.release_hold`."""
    return flow_transitions.release_hold(transaction.flows, flow_id, gate)


def get_flows(ids: Sequence[str], transaction: Transaction) -> list[Flow | None]:
    """See :meth:`~omniq.storage.Storage.get_flows`."""
    return flow_transitions.get_flows(transaction.flows, ids)


def cancel_flow(flow_id: str, transaction: Transaction) -> bool:
    """See :meth:`~omniq.storage.Storage.cancel_flow`."""
    return flow_transitions.cancel_flow(transaction.flows, flow_id)


def retry_flow(flow_id: str, transaction: Transaction) -> int:
    """See :meth:`~omniq.storage.Storage.retry_flow`."""
    return flow_transitions.retry_flow(transaction.flows, flow_id)


def settle(limit: int, transaction: Transaction) -> int:
    """See :meth:`~omniq.storage.Storage.settle`."""
    if not transaction.folder.flows().has_due(DUE, transaction.now):
        return 0
    return flow_transitions.settle(transaction.flows, limit)


SETTLED = 300
"""The most steps that a claim does first: each is a record of its own to write, where others take a row."""


def settle_first(transaction: Transaction) -> None:
    """Do what is to be done about flows, as a change of its own, within one that has changed nothing so far."""
    if transaction.folder.flows().has_due(DUE, transaction.now):
        transaction.folder.within(transaction, lambda inner: settle(SETTLED, inner))
