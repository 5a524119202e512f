"""What ``omniq stats --watch`` shows beyond the numbers of a moment: how fast tasks come and end, and who runs what."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from attrs import frozen

from omniq._client.queue import TaskQueue
from omniq.cli.app import store_of
from omniq.cli.columns import Column, Table
from omniq.cli.terminal import Screen
from omniq.cli.wording import plural, rough_duration
from omniq.errors import StorageError
from omniq.limit import LimitUsage
from omniq.storage import QueueStats, StoredWorker
from omniq.storage.outages import error_text
from omniq.task import StoredTask, TaskState

__all__ = ["Frame", "Look", "look", "nobody_works", "worker_lines"]

MOST_LOOKED_UP = 200
"""So many running tasks are looked up at most; a thousand of them need not be named one by one."""


@frozen(kw_only=True)
class Look:
    """What was seen at one moment."""

    at: float
    """By the monotonic clock here."""
    now: datetime
    """By the store's clock."""
    stats: Sequence[QueueStats]
    usage: Sequence[LimitUsage] = ()
    """How limits stand."""
    workers: Sequence[StoredWorker]
    running: Mapping[str, StoredTask]
    """The tasks that workers run, by id; not all of them where there are very many."""
    trouble: str = ""
    """Why workers and what they run cannot be read, if so: a store can hold anything."""


async def look(queue: TaskQueue) -> Look:
    """Read what one frame needs.

    :raises StorageError: if it cannot be read.
    """
    storage = await store_of(queue)
    stats = await storage.stats()
    workers: Sequence[StoredWorker] = ()
    tasks: Sequence[StoredTask | None] = ()
    trouble = ""
    try:
        workers = await storage.workers()
        ids = [task_id for worker in workers for task_id in worker.running][:MOST_LOOKED_UP]
        tasks = await storage.get(ids) if ids else ()
    except StorageError:
        raise
    except Exception as error:
        trouble = error_text(error)
    return Look(
        at=time.monotonic(),
        now=await storage.now(),
        stats=stats,
        usage=await queue.alimit_usage(),
        workers=workers,
        running={task.id: task for task in tasks if task is not None},
        trouble=trouble,
    )


class Frame:
    """What is shown at one moment.

    :param looked: what was seen.
    :param before: what was seen the time before; None: this is the first.
    """

    def __init__(self, looked: Look, before: Look | None) -> None:
        self.looked = looked
        self._seconds = 0.0 if before is None else looked.at - before.at
        self._come = _differences(before, looked, TaskState)
        self._ended = _differences(before, looked, [state for state in TaskState if state.is_final])

    def incoming(self, queue: str) -> str:
        """Return how many more tasks a queue has than before, per second."""
        return self._rate(self._come, queue)

    def ending(self, queue: str) -> str:
        """Return how many more tasks of a queue have ended than before, per second."""
        return self._rate(self._ended, queue)

    def _rate(self, numbers: Mapping[str, int], queue: str) -> str:
        if self._seconds <= 0:
            return "-"
        # What was removed meanwhile shows as if it had not come; less than nothing it cannot be.
        rate = max(numbers.get(queue, 0), 0) / self._seconds
        return f"{rate:,.0f}" if rate >= 100 or rate == 0 else f"{rate:.1f}"


def _differences(before: Look | None, after: Look, states: Iterable[TaskState]) -> dict[str, int]:
    counted = list(states)

    def totals(looked: Look) -> dict[str, int]:
        return {one.queue: sum(one.counts.get(state, 0) for state in counted) for one in looked.stats}

    old = totals(before) if before is not None else {}
    return {queue: total - old.get(queue, 0) for queue, total in totals(after).items()}


def nobody_works(waiting: int, screen: Screen) -> str:
    """Return the line that says that no worker is alive.

    :param waiting: how many tasks are ready.
    """
    if waiting:
        return screen.styled(f"no worker is alive to run {plural(waiting, 'ready task')}", "red")
    return screen.styled("no worker is alive", "dim")


def worker_lines(looked: Look, screen: Screen) -> list[str]:
    """Return a line for each worker that is alive: how many tasks it runs, for how long, and which."""
    if looked.trouble:
        return [screen.styled(f"what workers run cannot be read: {looked.trouble}", "red")]
    if not looked.workers:
        waiting = sum(queue.counts.get(TaskState.READY, 0) for queue in looked.stats)
        return [nobody_works(waiting, screen)]
    times = "×" if screen.can_show("×") else "x"
    columns = [
        Column[StoredWorker](title="worker", cell=lambda worker: worker.id, least=16, keep_end=True),
        Column[StoredWorker](title="tasks", cell=lambda worker: f"{len(worker.running):,}", right=True),
        Column[StoredWorker](title="longest", cell=lambda worker: _longest(worker, looked), right=True, rank=1),
        Column[StoredWorker](title="which", cell=lambda worker: _which(worker, looked, times), least=12),
    ]
    return Table(columns, screen).lines(looked.workers)


def _longest(worker: StoredWorker, looked: Look) -> str:
    tasks = [looked.running[task_id] for task_id in worker.running if task_id in looked.running]
    started = [task.started_at for task in tasks if task.started_at is not None]
    return rough_duration((looked.now - min(started)).total_seconds()) if started else "-"


def _which(worker: StoredWorker, looked: Look, times: str) -> str:
    names = Counter(looked.running[task_id].name for task_id in worker.running if task_id in looked.running)
    parts = [f"{name} {times}{number}" if number > 1 else name for name, number in names.most_common()]
    if names.total() < len(worker.running):
        parts.append("…")
    return ", ".join(parts) or "-"
