"""What has to be done now and then: tasks of dead workers, tasks that expired, results whose time is over."""

from __future__ import annotations

import json
from itertools import islice

from omniq.storage.corrupt_records import corrupt, readable
from omniq.storage.escaping import get_logger
from omniq.storage.flow_transitions import prune_flows
from omniq.storage.validation import UNREADABLE, check_text
from omniq.task import StoredTask, TaskState
from omniq_local.files import limits
from omniq_local.files.claiming import due, settle_first
from omniq_local.files.finishing import forget_worker
from omniq_local.files.finishing import recover as take_back
from omniq_local.files.names import worker_path
from omniq_local.files.queues import DUE, EXPIRING, KEPT
from omniq_local.files.records import ENDED, LINED, Record
from omniq_local.files.times import read_time
from omniq_local.files.transaction import Transaction
from omniq_local.files.tree import Tree

__all__ = ["live_workers", "prune", "read_worker", "recover"]

_log = get_logger("omniq.files")

RUNNING = TaskState.RUNNING.value
_LEFT_IN_ANY_ORDER = (LINED, *(state.value for state in (TaskState.BLOCKED, TaskState.RUNNING, *ENDED)))


def recover(limit: int, transaction: Transaction) -> list[StoredTask]:
    """See :meth:`~omniq.storage.Storage.recover`."""
    settle_first(transaction)
    transaction.folder.tidy(transaction.folder.flows().state_folders[DUE])
    queues = [transaction.queue(name) for name in transaction.folder.queue_names()]
    for queue in queues:
        transaction.folder.tidy(queue.state_folders[RUNNING])
        transaction.folder.tidy(queue.state_folders[EXPIRING])
    lost: list[Record] = []
    for queue in queues:
        for record in islice(due(queue, RUNNING, transaction), limit - len(lost)):
            take_back(record, transaction)
            lost.append(record)
    left = limit - len(lost)
    for queue in queues:
        for record in islice(due(queue, EXPIRING, transaction), left):
            transaction.end(record, TaskState.CANCELLED)
            left -= 1
    return [record.task() for record in lost]


def prune(limit: int, transaction: Transaction) -> int:
    """See :meth:`~omniq.storage.Storage.prune`."""
    queues = [transaction.queue(name) for name in transaction.folder.queue_names()]
    for queue in queues:
        if queue.is_empty:
            transaction.folder.tidy_away(queue)
            continue
        for state in ENDED:
            transaction.folder.tidy(queue.state_folders[state.value])
        for shelf in _LEFT_IN_ANY_ORDER:
            transaction.folder.thin_out(queue.state_folders[shelf])
    if transaction.folder.has_limits:
        transaction.folder.thin_out_lines()
    transaction.folder.tidy(transaction.folder.flows().state_folders[KEPT])
    removed = 0
    for queue in queues:
        for state in ENDED:
            for record in islice(due(queue, state.value, transaction), limit - removed):
                transaction.remove(record)
                removed += 1
    if removed < limit and transaction.folder.flows().has_due(KEPT, transaction.now):
        removed += prune_flows(transaction.flows, limit - removed)
    limits.prune(limit, transaction)
    _bury(transaction)
    return removed


def _bury(transaction: Transaction) -> None:
    """Remove the files of workers that have not been heard of for long."""
    for worker, _, until in _workers(transaction):
        if until <= transaction.now:
            forget_worker(worker, transaction)


def _workers(transaction: Transaction) -> list[tuple[str, int, int]]:
    tree = transaction.folder.tree
    return list(readable(sorted(tree.names("workers")), lambda name: read_worker(tree, f"workers/{name}"), _log))


def read_worker(tree: Tree, path: str) -> tuple[str, int, int]:
    """Return a worker's id, when it was heard of, and until when that holds.

    :raises CorruptRecord: if its file cannot be read.
    """
    try:
        text = json.loads(tree.read(path))
        worker = check_text(text["worker"], "id")
        if worker_path(worker) != path:
            raise ValueError(f"it is another worker, {worker!r}")
        return worker, read_time(text["seen_at"]), read_time(text["until"])
    except (OSError, *UNREADABLE) as error:
        raise corrupt("worker", path, error, place=f"{tree.base}/{path}") from error


def live_workers(transaction: Transaction) -> dict[str, int]:
    """Return the workers heard of within their lease, and when that was."""
    return {worker: seen_at for worker, seen_at, until in _workers(transaction) if until > transaction.now}
