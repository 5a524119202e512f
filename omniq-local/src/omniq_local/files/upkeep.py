"""What has to be done now and then: tasks of dead workers, tasks that expired, results whose time is over."""

from __future__ import annotations

import json
from itertools import islice

from omniq.errors import CorruptRecord
from omniq.escaping import get_logger
from omniq.storage.validation import UNREADABLE, check_text, corrupt, log_once
from omniq.task import StoredTask, TaskState
from omniq_local.files.change import Change
from omniq_local.files.claiming import due
from omniq_local.files.finishing import forget_worker
from omniq_local.files.finishing import recover as take_back
from omniq_local.files.names import worker_path
from omniq_local.files.queues import EXPIRING
from omniq_local.files.records import ENDED, Record
from omniq_local.files.times import read_time
from omniq_local.files.tree import Tree

__all__ = ["live_workers", "prune", "read_worker", "recover"]

_log = get_logger("omniq.files")

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
    found = []
    for name in sorted(change.folder.tree.names("workers")):
        try:
            found.append(read_worker(change.folder.tree, f"workers/{name}"))
        except CorruptRecord as error:
            log_once(_log, error)
    return found


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


def live_workers(change: Change) -> dict[str, int]:
    """Give the workers heard of within their lease, and when that was."""
    return {worker: seen_at for worker, seen_at, until in _workers(change) if until > change.now}
