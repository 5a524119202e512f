"""The SQLite storage: the contract's methods, each a job for the database."""

from __future__ import annotations

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
    flow_transitions,
    transitions,
)
from omniq.storage.corrupt_records import finding
from omniq.storage.paging import LARGEST_PLACE, read_cursor
from omniq.storage.transactional import FlowsAndLimits
from omniq.storage.transactions import CallerTransaction
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState
from omniq_local.shared_storage import SharedStorage
from omniq_local.sqlite import claiming, control, finishing, flows, joining, limits, maintenance, reading, schedules
from omniq_local.sqlite.database import Database
from omniq_local.sqlite.doctor import diagnose
from omniq_local.sqlite.enqueueing import enqueue
from omniq_local.sqlite.listing import list_tasks
from omniq_local.sqlite.settings import read_settings
from omniq_local.sqlite.waiting import Waiting

__all__ = ["SQLiteStorage"]

R = TypeVar("R")

LARGE = 1000
"""So many tasks are worked on by a thread of ours rather than on the event loop's."""
LARGE_VERBS = (flow_transitions.retry_flow, transitions.adopt)
"""Verbs that may be of any number of tasks."""

MOST_BYTES = 999_000_000
"""SQLite takes a billion for a row."""


class SQLiteStorage(FlowsAndLimits, SharedStorage[Database, Waiting]):
    """A storage in an SQLite file, shared by any number of processes on one machine.

    :param config: ``sqlite:///rel.db`` or ``sqlite:////abs.db``. Options: ``synchronous=normal`` (default; survives
        the death of every process) or ``full`` (survives that of the machine, too); ``busy_timeout``, seconds to wait
        for other processes that write, 5 unless given; ``foreign=allow`` to create tables in another program's
        database.
    :param clock: returns the time in seconds since the epoch; must be the same for all users of the file.
    :raises ConfigurationError: if the URL cannot be used.
    """

    capabilities: Set[Capability] = frozenset(
        {
            Capability.DURABLE,
            Capability.NOTIFICATIONS,
            Capability.SHARED_BETWEEN_PROCESSES,
            Capability.TRANSACTIONS,
        }
    )
    limits = StorageLimits(flow_step=2_500, body=MOST_BYTES, flows=True, task_limits=True)

    def __init__(self, config: StorageConfig, *, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(read_settings(config), clock)
        super().__init__(config, self._database, Waiting)

    async def _run(self, verb: Callable[..., R], *values: Any, write: bool = True, wakes: bool = False) -> R:
        database = self._opened()
        if write:
            return await database.write(partial(limits.run, verb, values), small=verb not in LARGE_VERBS)
        return await database.read(partial(limits.look, verb, values, database.sql, database.now()))

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        database = self._opened()
        if flow is None and len(tasks) == 1 and database.insert(tasks[0]):
            return [Enqueued(tasks[0].id, True)]
        return await database.write(partial(enqueue, tasks, flow=flow), small=len(tasks) <= LARGE)

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        if not self._is_open:
            return None
        if len(tasks) == 1 and self._database.insert(tasks[0]):
            return [Enqueued(tasks[0].id, True)]
        return self._database.write_blocking(partial(enqueue, tasks))

    def join(self, connection: object) -> CallerTransaction:
        return joining.join(connection, self._opened())

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        database, waiting = self._opened(), self._waits()
        total = sum(demand.values()) if limit is None else limit
        waiter = waiting.kept_token
        asked = claiming.Claim(demand=demand, worker=worker, lease=lease, limit=limit, waiter=waiter)
        picked = await database.write(partial(claiming.claim, asked), small=total <= LARGE)
        if not picked.rows and not picked.tasks:
            return []
        waiting.forget_kept(waiter)
        claimed = claiming.read(picked, asked)
        if claimed.unreadable:
            await database.write(partial(claiming.end_corrupt, claimed.unreadable))
        return claimed.tasks

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        return await self._opened().write(partial(finishing.finish, outcomes), small=len(outcomes) <= LARGE)

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        return await self._opened().beat(partial(finishing.heartbeat, worker, leases, lease, about))

    async def recover(self, limit: int) -> list[StoredTask]:
        return await self._opened().write(partial(maintenance.recover, limit), small=limit <= LARGE)

    # Reading

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        database = self._opened()
        job = partial(reading.get, ids, database.sql)
        if len(ids) <= 10:
            return database.quick.read(job)
        return await database.read(job)

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        before = read_cursor(cursor, self._config.redacted, LARGEST_PLACE)
        database = self._opened()
        return await database.read(partial(list_tasks, query, before, database.sql))

    async def stats(self) -> list[QueueStats]:
        database = self._opened()
        return await database.read(partial(reading.stats, database.sql, database.now()))

    async def workers(self) -> list[StoredWorker]:
        database = self._opened()
        return await database.read(partial(reading.workers, database.sql, database.now()))

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().write(partial(control.cancel, ids), small=len(ids) <= LARGE)

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().write(partial(control.retry, ids), small=len(ids) <= 100)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().write(partial(control.run_now, ids), small=len(ids) <= 100)

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().write(partial(control.delete, ids), small=len(ids) <= LARGE)

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        database = self._opened()
        last = await database.write(control.last_seq)
        removed = 0
        while step := await database.write(partial(control.purge_step, queue, state, last), small=False):
            removed += step
        return removed

    async def pause(self, queue: str) -> bool:
        return await self._opened().write(partial(control.pause, queue))

    async def resume(self, queue: str) -> bool:
        return await self._opened().write(partial(control.resume, queue))

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        await self._opened().write(partial(finishing.set_progress, updates))

    # Schedules

    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        return await self._opened().write(partial(schedules.put_schedule, schedule, expected_revision))

    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        database = self._opened()
        return await database.read(partial(schedules.get_schedules, ids, database.sql))

    async def delete_schedule(self, schedule_id: str) -> bool:
        return await self._opened().write(partial(schedules.delete_schedule, schedule_id))

    async def due_schedules(self, limit: int) -> list[Schedule]:
        database = self._opened()
        return database.quick.read(partial(schedules.due_schedules, limit, database.now(), database.sql))

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        return await self._opened().write(partial(schedules.fire, schedule, tasks), small=len(tasks) <= LARGE)

    # Upkeep

    async def prune(self, limit: int) -> int:
        return await self._opened().write(partial(maintenance.prune, limit), small=limit <= LARGE)

    async def namespaces(self) -> list[str]:
        return await self._opened().read(reading.namespaces)

    async def check(self, limit: int = 100) -> list[Finding]:
        database = self._opened()
        others = await database.read(partial(reading.check, database.sql, database.now()))
        unreadable = await database.read(partial(schedules.check_schedules, database.sql))
        of_flows = await database.read(partial(flows.check_flows, database.sql))
        of_limits = await database.read(partial(limits.check_limits, database.sql, database.now()))
        found = [finding(problem) for problem in (*unreadable, *of_flows, *of_limits, *others)]
        return [*found, *await super().check(limit)][:limit]

    async def diagnose(self) -> list[Finding]:
        database = self._opened()
        return await database.read(partial(diagnose, database.settings))
