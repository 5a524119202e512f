"""The PostgreSQL storage: the contract's methods, each a job for the database."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from copy import copy
from datetime import datetime
from functools import partial
from typing import Any, Self

import psycopg

from omniq.errors import StorageUnavailable
from omniq.flow import Flow, NewFlow
from omniq.limit import Limit, LimitUsage, Scope
from omniq.schedule import Schedule
from omniq.storage import (
    Adoption,
    Capability,
    Enqueued,
    Finding,
    Lease,
    LeaseState,
    QueueStats,
    Storage,
    StorageConfig,
    StorageLimits,
    StoredWorker,
    TaskPage,
    TaskQuery,
)
from omniq.storage.corrupt_records import finding
from omniq.storage.limits import Line
from omniq.storage.migrations import Migrated, Migration
from omniq.storage.paging import LARGEST_PLACE, read_cursor
from omniq.storage.transactions import CallerTransaction
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState
from omniq_postgres import (
    claiming,
    control,
    doctor,
    finishing,
    flows,
    limits,
    maintenance,
    migrating,
    reading,
    schedules,
)
from omniq_postgres.connecting import Connector, discard
from omniq_postgres.encoding import columns_of
from omniq_postgres.enqueueing import store
from omniq_postgres.flows import adopt
from omniq_postgres.joining import join
from omniq_postgres.operations import Steps
from omniq_postgres.session import Session
from omniq_postgres.settings import read_settings
from omniq_postgres.statements import Statements
from omniq_postgres.waiting import LOOK_AFTER

__all__ = ["PostgresStorage"]

RELUCTANCE = 0.02
"""Seconds between looks at a task that another transaction has locked."""


MOST_BYTES = 1_000_000_000
"""PostgreSQL takes a gibibyte for a value, and for a message to it."""


class PostgresStorage(Storage, Migrated):
    """A storage in a PostgreSQL database, shared by any number of machines.

    :param config: ``postgresql://user:password@host:port/database``. Options: ``schema`` (omniq), ``migrate=off`` to
        leave the tables alone, ``connections`` (4) that a storage opens at most, ``timeout`` (20) seconds after which
        a call gives up, ``pooler=transaction`` behind a proxy that pools by transaction (found out by itself), and
        whatever libpq understands (``sslmode``, ``target_session_attrs`` …).
    :raises ConfigurationError: if the URL cannot be used.
    """

    capabilities: Set[Capability] = frozenset(
        {
            Capability.DURABLE,
            Capability.NOTIFICATIONS,
            Capability.SHARED_BETWEEN_MACHINES,
            Capability.SHARED_BETWEEN_PROCESSES,
            Capability.TRANSACTIONS,
        }
    )

    @property
    def limits(self) -> StorageLimits:
        """The server gives up a client that does not take its answer after the time that a call has."""
        timeout = self._settings.timeout
        return StorageLimits(
            flow_step=5_000,
            lost_wakeup=LOOK_AFTER[1],
            body=MOST_BYTES,
            stalled_client=timeout,
            flows=True,
            task_limits=True,
        )

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._settings = read_settings(config)
        self._connector = Connector(self._settings)
        self._statements = Statements(self._settings.names)
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"PostgresStorage({self._config!r})"

    # Life

    def sibling(self) -> Self:
        twin = copy(self)
        twin._session = None
        return twin

    async def open(self) -> None:
        if self._session is not None and self._session.is_mine:
            return
        session = Session(self._connector, self._statements)
        try:
            await session.open()
        except BaseException:
            await session.close()
            raise
        self._session = session
        # For those who forget to close.
        session.finalizer = weakref.finalize(self, session.abandon)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.is_mine:
            await session.close()

    def _opened(self) -> Session:
        session = self._session
        if session is None or session.pid != os.getpid():
            raise StorageUnavailable(f"{self._settings.shown} is not open in this process: call open() first")
        return session

    async def migrations(self) -> list[Migration]:
        return await self._on_a_connection(migrating.migrations)

    async def migrate(self) -> list[Migration]:
        return await self._on_a_connection(migrating.migrate)

    async def _on_a_connection(self, work: Any) -> list[Migration]:
        try:
            connection = await self._connector.connect()
            try:
                found: list[Migration] = await work(connection, self._settings)
            finally:
                discard(connection)
        except psycopg.Error as error:
            raise self._connector.translated(error) from error
        return found

    async def now(self) -> datetime:
        return await self._opened().run(reading.now)

    def join(self, connection: object) -> CallerTransaction:
        return join(connection, self._settings, self._statements)

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        if not tasks and flow is None:
            return []
        session = self._opened()
        if flows.belong_to_flows(tasks, flow):
            return await session.run(partial(flows.enqueue, tasks, flow))
        if len(tasks) == 1 or any(task.unique is not None for task in tasks):
            # Which may have to wait for another transaction to end, and keeps no other call waiting with it.
            return await session.run(partial(store, tasks))
        # Packed while the server works on the call before, and sent after it: tasks keep the order of the calls.
        columns = columns_of(tasks)
        async with session.bulk:
            return await session.run(partial(store, tasks, columns=columns))

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        session = self._session
        if session is None or not session.sync_client.is_open:
            return None
        if not tasks:
            return []
        if flows.belong_to_flows(tasks, None):
            return session.sync_client.run(partial(flows.enqueue, tasks, None))
        return session.sync_client.run(partial(store, tasks))

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        session = self._opened()
        total = sum(demand.values()) if limit is None else limit
        if not demand:
            return []
        asked = claiming.Claim(demand=demand, worker=worker, lease=lease, limit=max(0, total))
        return await session.run(partial(claiming.claim, asked, session.frontier))

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        if not outcomes:
            return []
        return await self._opened().run(partial(finishing.finish, outcomes))

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        return await self._opened().run(partial(finishing.heartbeat, worker, leases, lease, about))

    async def recover(self, limit: int) -> list[StoredTask]:
        session = self._opened()
        return await session.run(partial(maintenance.recover, limit, session.recovered))

    # Waiting

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        await self._opened().waiting.for_work(queues, timeout)

    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        return await self._opened().waiting.for_end(ids, timeout)

    # Reading

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        return await self._opened().run(partial(reading.get, ids)) if ids else []

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        before = read_cursor(cursor, self._config.redacted, LARGEST_PLACE)
        return await self._opened().run(partial(reading.list_tasks, query, before))

    async def stats(self) -> list[QueueStats]:
        return await self._opened().run(reading.stats)

    async def workers(self) -> list[StoredWorker]:
        return await self._opened().run(reading.workers)

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        session = self._opened()
        if not ids:
            return []
        give_up = time.monotonic() + self._settings.timeout
        answers, locked = await session.run(partial(control.cancel, ids))
        while locked:
            if time.monotonic() > give_up:
                raise StorageUnavailable(
                    f"{self._settings.shown}: an open transaction holds task {locked[0]}; nothing can be asked of it"
                )
            await asyncio.sleep(RELUCTANCE)
            _, locked = await session.run(partial(control.cancel, locked))
        return answers

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        return await self._each(control.retry, flows.retry, ids)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        return await self._opened().run(partial(control.run_now, ids)) if ids else []

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        return await self._each(control.delete, flows.delete, ids)

    async def _each(
        self, change: Callable[..., Steps[tuple[set[str], Mapping[str, str]]]], in_flows: Any, ids: Sequence[str]
    ) -> list[bool]:
        """Change tasks, those of flows apart from the others: each of both is a step of its own."""
        session = self._opened()
        if not ids:
            return []
        changed, members = await session.run(partial(change, ids))
        if members:
            answers = await session.run(partial(in_flows, list(members), set(members.values())))
            changed |= {task_id for task_id, answer in zip(members, answers, strict=True) if answer}
        results = []
        for task_id in ids:
            results.append(task_id in changed)
            changed.discard(task_id)
        return results

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        session = self._opened()
        last = await session.run(control.last)
        removed = 0
        while doomed := await session.run(partial(control.doomed, queue, state, last)):
            step = sum(await self.delete(doomed))
            if not step:
                break
            removed += step
        return removed

    async def pause(self, queue: str) -> bool:
        return await self._opened().run(partial(control.pause, queue))

    async def resume(self, queue: str) -> bool:
        return await self._opened().run(partial(control.resume, queue))

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        if updates:
            await self._opened().run(partial(finishing.set_progress, updates))

    # Flows

    async def release_hold(self, flow_id: str, gate: int) -> bool:
        return await self._opened().run(partial(flows.release_hold, flow_id, gate))

    async def get_flows(self, ids: Sequence[str]) -> list[Flow | None]:
        return await self._opened().run(partial(flows.get_flows, ids)) if ids else []

    async def cancel_flow(self, flow_id: str) -> bool:
        return await self._opened().run(partial(flows.cancel_flow, flow_id))

    async def retry_flow(self, flow_id: str) -> int:
        session = self._opened()
        count = await session.run(partial(flows.retry_flow, flow_id))
        # Workers that settle the flow meanwhile hide it from a settle here; who waits now would find the old ends.
        while await session.run(partial(flows.go_on, flow_id)):
            pass
        return count

    async def settle(self, limit: int) -> int:
        return await self._opened().run(partial(flows.settle, limit))

    # Limits

    async def put_limit(self, limit: Limit, expected_revision: int | None = None) -> Limit | None:
        return await self._opened().run(partial(limits.put_limit, limit, expected_revision))

    async def get_limits(self, ids: Sequence[str] | None = None) -> list[Limit]:
        return await self._opened().run(partial(limits.get_limits, ids))

    async def get_limit_usage(self, scopes: Sequence[Scope] | None = None) -> list[LimitUsage]:
        return await self._opened().run(partial(limits.get_limit_usage, scopes))

    async def delete_limit(self, limit_id: str) -> bool:
        return await self._opened().run(partial(limits.delete_limit, limit_id))

    async def lost_lines(self, lines: Sequence[Line]) -> list[StoredTask]:
        return await self._opened().run(partial(limits.lost_lines, lines))

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
        return await self._opened().run(partial(schedules.fire, schedule, tasks))

    # Upkeep

    async def prune(self, limit: int) -> int:
        session = self._opened()
        return await session.run(partial(maintenance.prune, limit, session.pruned))

    async def namespaces(self) -> list[str]:
        return await self._opened().run(reading.namespaces)

    async def check(self, limit: int = 100) -> list[Finding]:
        session = self._opened()
        problems = [
            record
            for look in (reading.check, schedules.check, flows.check, limits.check)
            for record in await session.run(look)
        ]
        return [*map(finding, problems), *await super().check(limit)][:limit]

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
        return await self._opened().run(partial(adopt, tasks, flows)) if tasks or flows else []

    async def diagnose(self) -> list[Finding]:
        return await doctor.diagnose(self._opened(), self._settings, self._connector)
