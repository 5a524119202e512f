"""The Redis storage: the contract's methods, each a script on the server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from copy import copy
from datetime import datetime
from typing import Any, Self, TypeVar

from attrs import evolve

from omniq.errors import CorruptRecord, StorageUnavailable
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
from omniq.storage.corrupt_records import finding, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.limits import Line
from omniq.storage.records import dump_progress, dump_schedule
from omniq.storage.times import from_micros, span
from omniq.storage.validation import check_adoptable
from omniq.task import (
    NewTask,
    Outcome,
    Progress,
    StoredTask,
    TaskState,
)
from omniq_redis import decoding
from omniq_redis.adopting import ANSWERS, pack_records
from omniq_redis.batches import MOST_TASKS, check_size, pack_outcomes, pack_tasks, pairs, read_claimed, read_stored
from omniq_redis.checking import find_unreadable, name_problem, read_worker
from omniq_redis.client import Client, Memory
from omniq_redis.connecting import Connector
from omniq_redis.doctor import diagnose, warn
from omniq_redis.encoding import is_simple, order_words
from omniq_redis.flows import FLOW_STEP, flow_of, pack_flow, read_flow, stored_flow
from omniq_redis.limits import limits_of, line_words, pack_limit, scope_words, usage_of
from omniq_redis.reading import list_tasks, read_cursor
from omniq_redis.schedules import next_run_of, schedules_of
from omniq_redis.settings import read_settings
from omniq_redis.sync_client import Pool
from omniq_redis.waiting import Waiting

__all__ = ["RedisStorage"]

_log = get_logger("omniq.redis")

T = TypeVar("T")

MOST_SCANS = 200
"""So many steps over the keys of a server, each of about a thousand, are taken to find its namespaces."""
STEP = 500
"""Tasks deleted or purged by one script, so that no step holds up the server for long."""
COUNTED = (
    TaskState.SCHEDULED,
    TaskState.READY,
    TaskState.RUNNING,
    TaskState.SUCCEEDED,
    TaskState.FAILED,
    TaskState.CANCELLED,
    TaskState.BLOCKED,
)
LEASES = {ord("h"): LeaseState.HELD, ord("c"): LeaseState.CANCEL_REQUESTED, ord("l"): LeaseState.LOST}
YES = ord("1")
MOST_BYTES = 510_000_000
"""The server takes 512 MiB for a word."""


class RedisStorage(Storage):
    """A storage on a Redis or Valkey server, shared by any number of machines.

    :param config: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``; the options
        are those of :class:`omniq_redis.settings.Settings`.
    :param connection: more arguments for redis-py's connections, such as ``credential_provider``.
    :raises ConfigurationError: if the URL cannot be used.
    """

    capabilities: Set[Capability] = frozenset(
        {
            Capability.DURABLE,
            Capability.NOTIFICATIONS,
            Capability.SHARED_BETWEEN_MACHINES,
            Capability.SHARED_BETWEEN_PROCESSES,
        }
    )
    limits = StorageLimits(
        atomic_tasks=MOST_TASKS,
        atomic_unique_tasks=MOST_TASKS,
        flow_step=FLOW_STEP,
        body=MOST_BYTES,
        stalled_client=0,
        flows=True,
        task_limits=True,
    )

    def __init__(self, config: StorageConfig, *, connection: Mapping[str, Any] | None = None) -> None:
        self._config = config
        self._settings = read_settings(config, connection)
        self._memory = Memory(self._settings.shown)
        self._prepare()

    def _prepare(self) -> None:
        self._connector = Connector(self._settings)
        self._client: Client | None = None
        self._waiting: Waiting | None = None
        self._pool: Pool | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"RedisStorage({self._config!r})"

    @property
    def losses(self) -> int:
        return self._memory.losses

    # Life

    def sibling(self) -> Self:
        twin = copy(self)
        twin._prepare()
        return twin

    async def open(self) -> None:
        if self._client is not None and self._pid == os.getpid():
            return
        client = Client(self._settings, self._connector, self._memory)
        try:
            await client.open()
        except BaseException:
            client.close()
            raise
        self._client = client
        self._waiting = Waiting(client)
        client.on_connected = self._waiting.move
        self._pool = Pool(self._settings, self._connector)
        self._pid = os.getpid()

    async def close(self) -> None:
        client, waiting, pool = self._client, self._waiting, self._pool
        self._client = self._waiting = self._pool = None
        if client is None or waiting is None or pool is None or self._pid != os.getpid():
            return
        pool.close()
        if client.loop is asyncio.get_running_loop():
            await waiting.close()
        else:
            # The loop that it belonged to is gone, and with it the answers to whatever we might say.
            waiting.abandon()
        client.close()

    def _opened(self) -> Client:
        if self._client is None or self._pid != os.getpid():
            raise StorageUnavailable(f"{self._settings.shown} is not open in this process: call open() first")
        return self._client

    def _waits(self) -> Waiting:
        self._opened()
        assert self._waiting is not None
        return self._waiting

    async def now(self) -> datetime:
        return from_micros(await self._opened().run("now"))

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        client = self._opened()
        flow_id = flow_of(tasks, flow)
        if not tasks and flow is None:
            return []
        check_size(tasks)
        if flow_id is not None:
            return read_flow(tasks, flow_id, await client.run_packed("enqueue_flow", *pack_flow(tasks, flow_id, flow)))
        if len(tasks) == 1 and is_simple(tasks[0]):
            created = await client.run_packed("enqueue_one", pack_tasks(tasks), 3)
            return [Enqueued(tasks[0].id, created == 1)]
        refused = await client.run_packed("enqueue", pack_tasks(tasks), 3 * len(tasks))
        return read_stored(tasks, refused)

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        pool = self._pool
        if pool is None or self._pid != os.getpid():
            return None
        if not tasks:
            return []
        check_size(tasks)
        flow_id = flow_of(tasks, None)
        if flow_id is not None:
            return read_flow(tasks, flow_id, pool.run("enqueue_flow", *pack_flow(tasks, flow_id, None)))
        if len(tasks) == 1 and is_simple(tasks[0]):
            created = pool.run("enqueue_one", pack_tasks(tasks), 3)
            return [Enqueued(tasks[0].id, created == 1)]
        return read_stored(tasks, pool.run("enqueue", pack_tasks(tasks), 3 * len(tasks)))

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        client = self._opened()
        total = sum(demand.values()) if limit is None else limit
        if not demand:
            return []
        name = self._waits().take_name()
        words: list[bytes | int | str] = [worker, span(lease), total, name]
        for queue, wanted in demand.items():
            words += (queue, wanted)
        found = await client.run("claim", words)
        tasks, unreadable = read_claimed(found, worker, span(lease))
        if unreadable:
            await self.finish(unreadable)
        return tasks

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        client = self._opened()
        if not outcomes:
            return []
        answers = await client.run_packed("finish", pack_outcomes(outcomes), 3 * len(outcomes))
        return [answer == YES for answer in answers]

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        words: list[bytes | int | str] = [worker, span(lease)]
        for held in leases:
            words += (held.id, held.delivery)
        if about is not None:
            words.append(about)
        client = self._opened()
        states = [LEASES[state] for state in await client.run("heartbeat", words)]
        if lease > 0:
            if not self._memory.has_warned:
                self._memory.has_warned = True
                await warn(client)
            await client.check()
        return states

    async def recover(self, limit: int) -> list[StoredTask]:
        client = self._opened()
        while (state := await client.run("restore")) == 1:
            pass
        if state == 2:
            # When a schedule is due stands beside it, too, and in words that only clients read.
            for schedule in await self.get_schedules():
                await self.put_schedule(schedule, schedule.revision)
        found = await client.run("recover", [limit])
        count = (len(found) - 1) // 5
        tasks = self._tasks_of([decoding.id_of(task_id) for task_id in found[1 + 4 * count :]], found)
        return [task for task in tasks if task is not None]

    # Waiting

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        await self._waits().for_work(queues, timeout)

    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        return await self._waits().for_end(ids, timeout)

    # Reading

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        client = self._opened()
        if not ids:
            return []
        return self._tasks_of(ids, await client.run("get", ids))

    def _tasks_of(self, ids: Sequence[str], found: Sequence[Any]) -> list[StoredTask | None]:
        return [decoding.task_or_stand_in(ids[i], found[4 * i + 1 : 4 * i + 5], found[0]) for i in range(len(ids))]

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        before = read_cursor(cursor, self._settings.shown)
        return await list_tasks(self._opened(), query, before)

    async def stats(self) -> list[QueueStats]:
        found = await self._opened().run("stats")
        stats = [
            QueueStats(
                queue=name,
                counts=dict.fromkeys(TaskState, 0) | dict(zip(COUNTED, row[2:9], strict=True)),
                paused=bool(row[1]),
                oldest_ready=None if row[9] < 0 else row[9] / 1e6,
            )
            for row in found
            if (name := self._text(row[0], "queue")) is not None
        ]
        return sorted(stats, key=lambda stat: stat.queue)

    def _text(self, word: bytes, kind: str) -> str | None:
        """Return a name that the server returned; None if it is none, which the log then tells once."""
        problem = name_problem(word, kind)
        if problem is None:
            return word.decode()
        log_once(_log, problem, self._settings.shown)
        return None

    async def workers(self) -> list[StoredWorker]:
        workers, owners, told = await self._opened().run("workers")
        running: dict[bytes, list[str]] = {}
        for task_id, owner in pairs(owners):
            if name_problem(task_id, "task") is None:
                running.setdefault(owner, []).append(task_id.decode())
        about = dict(pairs(told))
        found = (read_worker(name, seen, running.get(name, ()), about.get(name)) for name, seen in pairs(workers))
        return sorted(self._readable(found), key=lambda info: info.id)

    def _readable(self, found: Iterable[T | CorruptRecord]) -> list[T]:
        """Return the records that can be read, and log each of the others once."""
        readable = []
        for one in found:
            if isinstance(one, CorruptRecord):
                log_once(_log, one, self._settings.shown)
            else:
                readable.append(one)
        return readable

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        return await self._decide("cancel", ids)

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        return await self._decide("retry", ids)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        return await self._decide("run_now", ids)

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        return await self._decide("delete", ids)

    async def _decide(self, verb: str, ids: Sequence[str]) -> list[bool]:
        client = self._opened()
        answers: list[bool] = []
        for at in range(0, len(ids), STEP):
            answers += [answer == YES for answer in await client.run(verb, ids[at : at + STEP])]
        return answers

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        states = [one for one in COUNTED if one is not TaskState.RUNNING and state in (None, one)]
        client = self._opened()
        if not states:
            return 0
        removed, left = await client.run("purge", [queue, STEP, *states])
        # What others enqueue meanwhile is not to keep us here.
        steps = left // STEP + 2
        while left and steps:
            step, left = await client.run("purge", [queue, STEP, *states])
            removed += step
            steps -= 1
        return int(removed)

    async def pause(self, queue: str) -> bool:
        return bool(await self._opened().run("pause", [queue]))

    async def resume(self, queue: str) -> bool:
        return bool(await self._opened().run("resume", [queue]))

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        client = self._opened()
        words: list[bytes | int | str] = []
        for lease, progress in updates.items():
            words += (lease.id, lease.delivery, dump_progress(progress))
        if words:
            await client.run("progress", words)

    # Flows

    async def release_hold(self, flow_id: str, gate: int) -> bool:
        return bool(await self._opened().run("release_hold", [flow_id, gate]))

    async def get_flows(self, ids: Sequence[str]) -> list[Flow | None]:
        client = self._opened()
        found = await client.run("get_flows", ids) if ids else ()
        return [self._flow(flow_id, fields) for flow_id, fields in zip(ids, found, strict=True)]

    def _flow(self, flow_id: str, fields: Sequence[Any]) -> Flow | None:
        try:
            return stored_flow(flow_id, fields)
        except CorruptRecord as problem:
            log_once(_log, problem, self._settings.shown)
            return None

    async def cancel_flow(self, flow_id: str) -> bool:
        return bool(await self._opened().run("cancel_flow", [flow_id]))

    async def retry_flow(self, flow_id: str) -> int:
        return int(await self._opened().run("retry_flow", [flow_id]))

    async def settle(self, limit: int) -> int:
        return int(await self._opened().run("settle", [limit]))

    # Limits

    async def put_limit(self, limit: Limit, expected_revision: int | None = None) -> Limit | None:
        client = self._opened()
        revision = await client.run("put_limit", pack_limit(limit, expected_revision))
        if not revision and expected_revision == 0 and (found := await self._unreadable_limit(limit.id)):
            revision = await client.run("put_limit", pack_limit(limit, found))
        return evolve(limit, revision=revision) if revision else None

    async def _unreadable_limit(self, limit_id: str) -> int:
        """Return the revision of a limit that cannot be read, which counts as absent; 0 if there is none."""
        _, (stored,), _ = found = await self._opened().run("get_limits", [limit_id])
        if stored is None or any(limit.revision for limit in limits_of(found, [])):
            return 0
        return int.from_bytes(stored[:8], "big")

    async def get_limits(self, ids: Sequence[str] | None = None) -> list[Limit]:
        client = self._opened()
        if ids is not None and not ids:
            return []
        problems: list[CorruptRecord] = []
        found = limits_of(await client.run("get_limits", ids or ()), problems)
        for problem in problems:
            log_once(_log, problem, self._settings.shown)
        return found if ids else sorted(found, key=lambda limit: limit.id)

    async def get_limit_usage(self, scopes: Sequence[Scope] | None = None) -> list[LimitUsage]:
        client = self._opened()
        if scopes is None:
            scopes = [Scope(limit.queue, name=limit.name) for limit in await self.get_limits()]
        found = await client.run("limit_usage", scope_words(scopes)) if scopes else ()
        return [usage_of(scope, told) for scope, told in zip(scopes, found, strict=True)]

    async def delete_limit(self, limit_id: str) -> bool:
        return bool(await self._opened().run("delete_limit", [limit_id]))

    async def lost_lines(self, lines: Sequence[Line]) -> list[StoredTask]:
        found = await self._opened().run("lost_lines", [word for line in lines for word in line_words(*line)])
        tasks = await self.get([decoding.id_of(word) for word in found])
        return [task for task in tasks if task is not None]

    # Schedules

    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        expected = b"" if expected_revision is None else b"%d" % expected_revision
        words: list[bytes | int | str] = [schedule.id, next_run_of(schedule), dump_schedule(schedule), expected]
        revision = await self._opened().run("put_schedule", words)
        if not revision and expected_revision == 0 and (found := await self._unreadable_revision(schedule.id)):
            revision = await self._opened().run("put_schedule", [*words[:3], found])
        return evolve(schedule, revision=revision) if revision else None

    async def _unreadable_revision(self, schedule_id: str) -> int:
        """Return the revision of a schedule that cannot be read, which counts as absent; 0 if there is none."""
        _, (stored,) = found = await self._opened().run("get_schedules", [schedule_id])
        if any(isinstance(schedule, Schedule) for schedule in schedules_of(found)) or stored is None:
            return 0
        return int.from_bytes(stored[:8], "big")

    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        client = self._opened()
        if ids is not None and not ids:
            return []
        found = self._readable(schedules_of(await client.run("get_schedules", ids or ())))
        return found if ids else sorted(found, key=lambda schedule: schedule.id)

    async def delete_schedule(self, schedule_id: str) -> bool:
        return bool(await self._opened().run("delete_schedule", [schedule_id]))

    async def due_schedules(self, limit: int) -> list[Schedule]:
        due: list[Schedule] = []
        passed = 0
        while len(due) < limit:
            # What cannot be read does not stand before what can.
            found = await self._opened().run("due_schedules", [limit, passed])
            due += self._readable(schedules_of(found))
            passed += len(found[0])
            if len(found[0]) < limit:
                break
        return due[:limit]

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        check_size(tasks)
        words: list[bytes | int | str] = [schedule.id, next_run_of(schedule), dump_schedule(schedule)]
        words.append(schedule.revision)
        for task in tasks:
            words += order_words(task)
        refused = await self._opened().run("fire", words)
        return None if refused is None else read_stored(tasks, refused)

    # Upkeep

    async def prune(self, limit: int) -> int:
        await self.get_limits()  # logs those that cannot be read: claims meet them on the server, which logs nothing
        return int(await self._opened().run("prune", [limit]))

    async def namespaces(self) -> list[str]:
        client = self._opened()
        found: set[str] = set()
        cursor = b"0"
        for _ in range(MOST_SCANS):
            cursor, keys = await client.ask(b"SCAN", cursor, b"MATCH", b"{*}:meta", b"COUNT", b"1000")
            found.update(key.decode(errors="replace")[1:].partition("}")[0] for key in keys)
            if cursor == b"0":
                break
        return sorted(found)

    async def check(self, limit: int = 100) -> list[Finding]:
        found = await super().check(limit)
        problems = await find_unreadable(self._opened())
        return [*found, *map(finding, problems)][:limit]

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
        check_adoptable(tasks)
        client = self._opened()
        if not tasks and not flows:
            return []
        answers = await client.run_packed("adopt", *pack_records(tasks, flows))
        return [ANSWERS[letter] for letter in answers.decode()]

    async def diagnose(self) -> list[Finding]:
        return await diagnose(self._opened())
