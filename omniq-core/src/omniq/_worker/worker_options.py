"""What a worker is asked for, and what it needs of its queue."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypedDict

from omniq._runtime.connections import Connections
from omniq._tasks.functions import TaskFunction
from omniq._tasks.options import Duration
from omniq._tasks.payloads import Codec
from omniq._worker.resources import ResourceOwner
from omniq.plugins import Plugins
from omniq.storage.durations import duration

__all__ = ["WorkerHost", "WorkerOptions", "available_cores", "positive_duration"]


class ScheduleReconciler(Protocol):
    """Keeps the stored schedules in step with the declared ones."""

    async def reconcile(self, app: str | None = None) -> None: ...


class WorkerHost(ResourceOwner, Protocol):
    """What a worker needs of its queue."""

    url: str
    codec: Codec
    connections: Connections
    plugins: Plugins
    runnable: Mapping[str, TaskFunction[Any, Any]]

    @property
    def stored_schedules(self) -> ScheduleReconciler: ...


class WorkerOptions(TypedDict, total=False):
    """The options of a worker, see :class:`Worker`."""

    queues: Iterable[str] | Mapping[str, int] | None
    concurrency: int
    threads: int | None
    processes: int | None
    process_tasks: int | None
    process_memory: int | None
    lease: Duration
    grace: Duration
    scheduler: bool
    recover_every: Duration | None
    drain: bool
    app: str | None
    labels: Mapping[str, str] | None


def available_cores() -> int:
    """Return how many cores this process may use."""
    # In a container they are fewer than the machine has.
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def positive_duration(value: Duration, name: str) -> float:
    """Return a duration in seconds that is more than zero.

    :raises ValueError: if it is not; names the option.
    """
    seconds = duration(value, name)
    if seconds == 0:
        raise ValueError(f"{name} must be more than zero seconds")
    return seconds
