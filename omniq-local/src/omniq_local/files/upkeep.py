"""What has to be done now and then: tasks of dead workers, tasks that expired, results whose time is over."""

from __future__ import annotations

import json
import os

from omniq.task import Task, TaskState
from omniq_local.files.change import Change
from omniq_local.files.claiming import due
from omniq_local.files.finishing import recover as take_back
from omniq_local.files.queues import EXPIRING, Queue
from omniq_local.files.records import ENDED, Record
from omniq_local.files.times import read_time

__all__ = ["live_workers", "prune", "recover"]

RUNNING = TaskState.RUNNING.value


def recover(limit: int, change: Change) -> list[Task]:
    """See :meth:`~omniq.storage.Storage.recover`."""
    queues = [change.queue(name) for name in change.folder.queue_names()]
    for queue in queues:
        change.folder.tidy(queue.shelves[RUNNING])
        change.folder.tidy(queue.shelves[EXPIRING])
    lost: list[Record] = []
    for queue in queues:
        if len(lost) < limit:
            for record in due(queue, RUNNING, change):
                take_back(record, change)
                lost.append(record)
                if len(lost) == limit:
                    break
    left = limit - len(lost)
    for queue in queues:
        if left > 0:
            for record in due(queue, EXPIRING, change):
                change.end(record, TaskState.CANCELLED)
                left -= 1
                if left == 0:
                    break
    return [record.task() for record in lost]


def prune(limit: int, change: Change) -> int:
    """See :meth:`~omniq.storage.Storage.prune`."""
    queues = [change.queue(name) for name in change.folder.queue_names()]
    for queue in queues:
        if queue.is_empty:
            _forget(queue, change)
            continue
        for state in ENDED:
            change.folder.tidy(queue.shelves[state.value])
    removed = 0
    for queue in queues:
        for state in ENDED:
            if removed < limit:
                for record in due(queue, state.value, change):
                    change.remove(record)
                    removed += 1
                    if removed == limit:
                        break
    _bury(change)
    return removed


def _forget(queue: Queue, change: Change) -> None:
    """Remove what is kept of a queue that has nothing."""
    change.folder.tidy_away(queue)


def _bury(change: Change) -> None:
    """Remove the files of workers that have not been heard of for long."""
    for path, _, until in _workers(change):
        if until <= change.now:
            change.writes.append(("remove", path))


def _workers(change: Change) -> list[tuple[str, dict[str, str], int]]:
    base = change.folder.base
    found = []
    for name in sorted(os.listdir(f"{base}/workers")):
        path = f"workers/{name}"
        try:
            with open(f"{base}/{path}", "rb") as file:
                worker = json.loads(file.read())
            found.append((path, worker, read_time(worker["until"])))
        except (ValueError, TypeError, LookupError, OSError) as error:
            change.folder.set_aside(path, f"no worker's file: {error}")
    return found


def live_workers(change: Change) -> dict[str, int]:
    """Give the workers heard of within their lease, and when that was."""
    return {
        worker["worker"]: read_time(worker["seen_at"]) for _, worker, until in _workers(change) if until > change.now
    }
