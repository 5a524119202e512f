"""The file storage: the contract's methods, each a job for the folder."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, TypeVar

from omniq.flow import NewFlow
from omniq.schedule import Schedule
from omniq.storage import (
    Capability,
    Enqueued,
    Finding,
    Lease,
    LeaseState,
    QueueStats,
    StorageConfig,
    StorageLimits,
    StoredWorker,
    TaskPage,
    TaskQuery,
)
from omniq.storage.limits import Line
from omniq.storage.paging import read_cursor
from omniq.storage.transactional import FlowsAndLimits
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState
from omniq_local.files import claiming, control, finishing, limits, maintenance, reading, schedules
from omniq_local.files.doctor import check, diagnose
from omniq_local.files.enqueueing import enqueue
from omniq_local.files.folder import Folder
from omniq_local.files.settings import read_settings
from omniq_local.files.waiting import Waiting
from omniq_local.shared_storage import SharedStorage

__all__ = ["FileStorage"]

R = TypeVar("R")

LARGE = 100
"""So many tasks are worked on by a thread of ours rather than on the event loop's."""


class FileStorage(FlowsAndLimits, SharedStorage[Folder, Waiting]):
    """A storage in a folder: a file for each task, shared by any number of processes on one machine.

    :param config: ``file:///abs/folder``. Options: ``fsync=never`` (default; survives the death of every process) or
        ``always`` (survives that of the machine, too); ``lock_timeout``, seconds to wait for other processes, 5 unless
        given.
    :param clock: returns the time in seconds since the epoch; must be the same for all users of the folder.
    :raises ConfigurationError: if the URL cannot be used.
    """

    capabilities: Set[Capability] = frozenset(
        {Capability.DURABLE, Capability.NOTIFICATIONS, Capability.SHARED_BETWEEN_PROCESSES}
    )

    limits = StorageLimits(flow_step=300, flows=True, task_limits=True)

    def __init__(self, config: StorageConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = Folder(read_settings(config), clock)
        super().__init__(config, self._folder, Waiting)

    async def _run(self, verb: Callable[..., R], *values: Any, write: bool = True, wakes: bool = False) -> R:
        return await self._opened().run(lambda transaction: verb(transaction.flows, *values), small=False)

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        return await self._opened().run(partial(enqueue, tasks, flow=flow), small=len(tasks) <= LARGE)

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        if not self._is_open:
            return None
        return self._folder.run_blocking(partial(enqueue, tasks))

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        asked = claiming.Claim(demand=demand, worker=worker, lease=lease, limit=limit)
        total = sum(demand.values()) if limit is None else limit
        return await self._opened().run(partial(claiming.claim, asked), small=total <= LARGE)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        return await self._opened().run(partial(finishing.finish, outcomes), small=len(outcomes) <= LARGE)

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        return await self._opened().run(
            partial(finishing.heartbeat, worker, leases, lease, about), small=len(leases) <= LARGE
        )

    async def recover(self, limit: int) -> list[StoredTask]:
        return await self._opened().run(partial(maintenance.recover, limit), small=limit <= LARGE)

    # Reading

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        return await self._opened().run(partial(reading.get, ids), small=len(ids) <= LARGE)

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        before = read_cursor(cursor, self._config.redacted, None)
        return await self._opened().run(partial(reading.list_tasks, query, before), small=False)

    async def stats(self) -> list[QueueStats]:
        return await self._opened().run(reading.stats, small=False)

    async def workers(self) -> list[StoredWorker]:
        return await self._opened().run(reading.workers, small=False)

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().run(partial(control.cancel, ids), small=len(ids) <= LARGE)

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().run(partial(control.retry, ids), small=len(ids) <= LARGE)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().run(partial(control.run_now, ids), small=len(ids) <= LARGE)

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().run(partial(control.delete, ids), small=len(ids) <= LARGE)

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        folder = self._opened()
        last = await folder.run(lambda transaction: transaction.sequence)
        removed = 0
        while step := await folder.run(partial(control.purge_step, queue, state, last), small=False):
            removed += step
        return removed

    async def pause(self, queue: str) -> bool:
        return await self._opened().run(partial(control.pause, queue))

    async def resume(self, queue: str) -> bool:
        return await self._opened().run(partial(control.resume, queue))

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        await self._opened().run(partial(finishing.set_progress, updates), small=len(updates) <= LARGE)

    # Schedules

    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        return await self._opened().run(partial(schedules.put_schedule, schedule, expected_revision))

    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        return await self._opened().run(partial(schedules.get_schedules, ids))

    async def delete_schedule(self, schedule_id: str) -> bool:
        return await self._opened().run(partial(schedules.delete_schedule, schedule_id))

    async def due_schedules(self, limit: int) -> list[Schedule]:
        return await self._opened().run(partial(schedules.due_schedules, limit))

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        return await self._opened().run(partial(schedules.fire, schedule, tasks), small=len(tasks) <= LARGE)

    # Upkeep

    async def prune(self, limit: int) -> int:
        return await self._opened().run(partial(maintenance.prune, limit), small=False)

    async def lost_lines(self, lines: Sequence[Line]) -> list[StoredTask]:
        return await self._opened().run(partial(limits.lost_lines, lines), small=False)

    async def namespaces(self) -> list[str]:
        root = self._folder.settings.root
        found = await self._on_a_thread(lambda: glob.glob("*/control", root_dir=root))
        return [os.path.dirname(path) for path in found]

    async def check(self, limit: int = 100) -> list[Finding]:
        found = await super().check(limit)
        return found + await self._opened().run(partial(check, limit - len(found)), small=False)

    async def diagnose(self) -> list[Finding]:
        return await self._opened().run(partial(diagnose, self._folder.settings), small=False)
