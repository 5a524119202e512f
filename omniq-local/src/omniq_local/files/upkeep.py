"""What has to be done now and then: tasks of dead workers, tasks that expired, results whose time is over."""

from __future__ import annotations

import json
from itertools import islice

from omniq.task import StoredTask, TaskState
from omniq_local.files.change import Change
from omniq_local.files.claiming import due
from omniq_local.files.finishing import forget_worker
from omniq_local.files.finishing import recover as take_back
from omniq_local.files.queues import EXPIRING
from omniq_local.files.records import ENDED, Record
from omniq_local.files.times import read_time

__all__ = ["live_workers", "prune", "recover"]

RUNNING = TaskState.RUNNING.value


def recover(limit: int, change: Change) -> list[StoredTask]:
    """See :meth:`~omniq.storage.Storage.recover`."""
    queues = [change.queue(name) for name in change.folder.queue_names()]
    for queue in queues:
        change.folder.tidy(queue.shelves[RUNNING])
        change.folder.tidy(queue.shelves[EXPIRING])
    lost: list[Record] = []
    for queue in queues:
        for record in islice(due(queue, RUNNING, change), limit - len(lost)):
            take_back(record, change)
            lost.append(record)
    left = limit - len(lost)
    for queue in queues:
        for record in islice(due(queue, EXPIRING, change), left):
            change.end(record, TaskState.CANCELLED)
            left -= 1
    return [record.task() for record in lost]


def prune(limit: int, change: Change) -> int:
    """See :meth:`~omniq.storage.Storage.prune`."""
    queues = [change.queue(name) for name in change.folder.queue_names()]
    for queue in queues:
        if queue.is_empty:
            change.folder.tidy_away(queue)
            continue
        for state in ENDED:
            change.folder.tidy(queue.shelves[state.value])
    removed = 0
    for queue in queues:
        for state in ENDED:
            for record in islice(due(queue, state.value, change), limit - removed):
                change.remove(record)
                removed += 1
    _bury(change)
    return removed


def _bury(change: Change) -> None:
    """Remove the files of workers that have not been heard of for long."""
    for worker, _, until in _workers(change):
        if until <= change.now:
            forget_worker(worker, change)


def _workers(change: Change) -> list[tuple[str, int, int]]:
    tree = change.folder.tree
    found = []
    for name in sorted(tree.names("workers")):
        path = f"workers/{name}"
        try:
            worker = json.loads(tree.read(path))
            found.append((worker["worker"], read_time(worker["seen_at"]), read_time(worker["until"])))
        except (ValueError, TypeError, LookupError, OSError, RecursionError) as error:
            change.folder.set_aside(path, f"no worker's file: {error}")
    return found


def live_workers(change: Change) -> dict[str, int]:
    """Give the workers heard of within their lease, and when that was."""
    return {worker: seen_at for worker, seen_at, until in _workers(change) if until > change.now}
