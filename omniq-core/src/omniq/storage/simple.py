"""A whole :class:`~omniq.storage.Storage` made of a connection, a transaction, and what an error of the driver means.

A backend derives from :class:`SimpleStorage`, says how to connect, begins a transaction with the primitives of
:class:`Tx` (:class:`~omniq.storage.SqlTx` and :class:`~omniq.storage.PairsTx` have them), and tells which of the
driver's errors pass. Threads, retries, waiting, paging and every verb of the contract are here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol, Self, TypeVar

from omniq.errors import CorruptRecord, StorageUnavailable
from omniq.flow import Flow, NewFlow
from omniq.limit import Limit, LimitUsage, Scope
from omniq.schedule import Schedule
from omniq.storage import flow_transitions, limit_transitions, transitions
from omniq.storage.base import Storage
from omniq.storage.escaping import get_logger
from omniq.storage.limits import Line, no_limits
from omniq.storage.outages import Outage
from omniq.storage.primitives import Transaction
from omniq.storage.transactions import CallerTransaction, driver_connection
from omniq.storage.validation import finding, log_once
from omniq.storage.values import (
    Adoption,
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
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState

__all__ = ["SimpleStorage", "Tx"]

_log = get_logger("omniq.storage")

R = TypeVar("R")

LOOK_SECONDS = 1.0
"""The longest time between two looks of a caller that waits: the contract allows one request a second."""
LISTEN_SECONDS = 0.5
"""For how long one call of ``listen`` may block, so that closing a storage does not take longer."""
PURGE_STEP = 1000
"""Tasks that one transaction of ``purge`` removes, so that it locks others out for a short time only."""


class Tx(Transaction, Protocol):
    """The primitives of a transaction: those of the verbs, and what is read or done in bulk."""

    changed: bool
    """Whether something was written that others may wait for; heartbeats are not."""
    problems: list[CorruptRecord]
    """What was found that cannot be read: it was salvaged, or passed over. The storage logs it."""

    @abstractmethod
    def verify(self) -> None:
        """Read all that :meth:`page` does not show, so that what cannot be read of it is in :attr:`problems`."""

    @abstractmethod
    def get(self, ids: Sequence[str]) -> dict[str, StoredTask]:
        """Return whole tasks, with their bodies and results."""

    @abstractmethod
    def page(self, query: TaskQuery, before: int | None) -> tuple[list[StoredTask], int | None]:
        """Return tasks that match, the latest enqueued first, and where the next page begins; None: this is the last.

        :param before: where this page begins, as a call before returned it.
        """

    @abstractmethod
    def counts(self) -> dict[str, dict[TaskState, int]]:
        """Return how many tasks each queue has in each state, without reading every task; 0 may be left out."""

    @abstractmethod
    def oldest_ready(self, queue: str) -> datetime | None:
        """Return the earliest ``run_at`` of the ready tasks of a queue."""

    @abstractmethod
    def has_work(self, queues: Sequence[str]) -> bool:
        """Return whether a task of the plain line of these queues is ready, or any scheduled for a time that has come.

        See :data:`omniq.limit.PLAIN`.
        """

    @abstractmethod
    def next_task(self, queues: Sequence[str]) -> datetime | None:
        """Return the earliest ``run_at`` of the scheduled tasks of these queues."""

    @abstractmethod
    def next_schedule(self, after: datetime) -> datetime | None:
        """Return the earliest ``next_run`` after a time, of the schedules that are not paused."""

    @abstractmethod
    def workers(self) -> list[StoredWorker]:
        """Return the workers that are alive, by id."""

    @abstractmethod
    def pause(self, queue: str) -> bool:
        """Pause a queue; return False if it was paused already."""

    @abstractmethod
    def resume(self, queue: str) -> bool:
        """Let a queue go on; return False if it was not paused."""

    @abstractmethod
    def forget_workers(self) -> None:
        """Remove workers that were not heard of within their leases."""

    @abstractmethod
    def schedules(self) -> list[Schedule]:
        """Return all schedules, in any order."""

    @abstractmethod
    def due(self, limit: int) -> list[Schedule]:
        """Return schedules that are not paused and whose ``next_run`` has come, the earliest first."""


class SimpleStorage(Storage):
    """A storage whose verbs are :mod:`omniq.storage.transitions`, in a transaction of the backend's.

    One thread with a connection of its own writes, one reads. A transaction that fails with an error that passes is
    tried again until ``timeout`` seconds are over, but never once its commit was sent: it is not known then what became
    of it, and the caller decides.

    :param config: where the store is. A backend reads its own options from it.
    """

    timeout = 20.0
    """Seconds after which a call that cannot be done raises :class:`~omniq.errors.StorageUnavailable`."""

    limits = StorageLimits(flows=True, task_limits=True)

    def __init__(self, config: StorageConfig) -> None:
        self.config = config
        self._key = type(self).__name__, config.location, config.namespace
        self._io_threads: dict[bool, _IoThread] = {}
        self._listener: threading.Thread | None = None
        self._closing = threading.Event()

    # What a backend says. All of it is called on threads of this storage, but for joined.

    @abstractmethod
    def connect(self) -> Any:
        """Return a new connection; create what the store needs, or check it. Safe from many processes at once."""

    def disconnect(self, connection: Any) -> None:
        """Close a connection.

        :param connection: one that :meth:`connect` made.
        """
        connection.close()

    @abstractmethod
    def transaction(self, connection: Any, write: bool) -> AbstractContextManager[Tx]:
        """Begin a transaction, commit it at the end, and roll it back after an error.

        Two transactions that write must not change one task at once: the second waits for the first, for the whole
        store (a lock that is taken here) or for each task that a primitive returns.

        :param connection: one that :meth:`connect` made.
        :param write: whether it may write.
        :return: a context manager of the primitives.
        """

    @abstractmethod
    def fault(self, error: BaseException) -> Exception | None:
        """Return what an error of the driver means.

        :param error: what was raised in a transaction.
        :return: a :class:`~omniq.errors.StorageUnavailable` if it passes and the transaction is worth another try;
            another error to raise instead, such as :class:`~omniq.errors.SchemaMismatch`; None if it is none of the
            driver's.
        """

    @abstractmethod
    def findings(self, tx: Any) -> list[Finding]:
        """Return what ``omniq doctor`` shows.

        :param tx: a transaction that only reads.
        """

    def announce(self, tx: Any) -> None:
        """Notify the other processes that :meth:`listen` of this transaction, once it is committed.

        :param tx: the transaction, before its commit.
        """

    def listen(self, connection: Any, seconds: float) -> bool:
        """Return True when another process announced a change, False when the time is over.

        A backend that has this and :meth:`announce` may claim ``Capability.NOTIFICATIONS``. It is called again and
        again, on a connection of its own.

        :param connection: one that :meth:`connect` made, of its own.
        :param seconds: how long to listen at most.
        """
        raise NotImplementedError

    connection_types: tuple[type, ...] = ()
    """The driver's classes of connections in whose transactions tasks can be enqueued, see :meth:`joined`."""

    def joined(self, connection: Any) -> AbstractContextManager[Tx]:
        """Return the primitives in the transaction of a caller's own connection, which nothing here commits.

        What they did must be undone if the block raises (a savepoint). A backend that has this and
        :attr:`connection_types` may claim ``Capability.TRANSACTIONS``.

        :param connection: the caller's.
        :raises ValueError: if the connection commits each statement by itself.
        """
        raise NotImplementedError

    # Life

    def sibling(self) -> Self:
        return type(self)(self.config)

    async def open(self) -> None:
        self._closing.clear()
        self._io_threads = {True: _IoThread(self), False: _IoThread(self)}
        try:
            await self._run(lambda tx: None)
        except BaseException:
            await self.close()
            raise
        if type(self).listen is not SimpleStorage.listen:
            name = f"omniq-{self.config.scheme}-listen"
            self._listener = threading.Thread(target=self._listen, name=name, daemon=True)
            self._listener.start()

    async def close(self) -> None:
        self._closing.set()
        io_threads, self._io_threads = self._io_threads, {}
        listener, self._listener = self._listener, None
        for io_thread in io_threads.values():
            await io_thread.close()
        if listener is not None:
            await asyncio.to_thread(listener.join)

    async def _run(self, verb: Callable[..., R], *values: Any, write: bool = True, wakes: bool = False) -> R:
        if not self._io_threads:
            raise StorageUnavailable(f"{self.config.redacted} is not open")
        return await self._io_threads[write].run(lambda tx: verb(tx, *values), write, wakes)

    async def _read(self, verb: Callable[[Tx], R]) -> R:
        return await self._run(verb, write=False)

    async def now(self) -> datetime:
        return await self._read(lambda tx: tx.now)

    # From producer to worker and back

    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        return await self._run(transitions.enqueue, tasks, flow, wakes=True)

    def join(self, connection: object) -> CallerTransaction:
        if not self.connection_types:
            return super().join(connection)
        own = driver_connection(connection)
        if not isinstance(own, self.connection_types):
            known = " or ".join(f"{one.__module__}.{one.__qualname__}" for one in self.connection_types)
            raise TypeError(f"{connection!r} is no connection that {self.config.scheme}:// knows; give it a {known}")
        return _Joined(self, own)

    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        return await self._run(transitions.claim, demand, worker, lease, limit, wakes=True)

    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        return await self._run(transitions.finish, outcomes, wakes=True)

    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        return await self._run(transitions.heartbeat, worker, leases, lease, about)

    async def recover(self, limit: int) -> list[StoredTask]:
        return await self._run(transitions.recover, limit, wakes=True)

    # Waiting

    def wake(self) -> None:
        """Let everybody in this process who waits on the same store look again. Callable from any thread."""
        with _waiting_lock:
            waiting = list(_waiting.get(self._key, ()))
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile
                loop.call_soon_threadsafe(event.set)

    def _listen(self) -> None:
        outage = Outage(
            _log, f"{self.config.redacted}: wake-ups are lost", f"{self.config.redacted}: wake-ups arrive again"
        )
        connection: Any = None
        while not self._closing.is_set():
            try:
                if connection is None:
                    connection = self.connect()
                    self.wake()  # what was announced before was not heard
                if self.listen(connection, LISTEN_SECONDS):
                    self.wake()
                outage.succeeded()
            except Exception as error:
                outage.failed(error)
                self._close(connection)
                connection = None
                self._closing.wait(1.0)
        self._close(connection)

    def _close(self, connection: Any) -> None:
        if connection is not None:
            with contextlib.suppress(Exception):
                self.disconnect(connection)

    async def _wait(self, look: Callable[[Tx], tuple[R, float]], timeout: float) -> R:
        """Look now, whenever something was changed, and now and then.

        :param look: returns what was found, and after how many seconds to look again at the latest.
        """
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        end, waiter = loop.time() + timeout, (loop, event)
        with _waiting_lock:
            _waiting.setdefault(self._key, set()).add(waiter)
        try:
            while True:
                event.clear()
                found, pause = await self._read(look)
                left = end - loop.time()
                if found or left <= 0:
                    return found
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.005, min(LOOK_SECONDS, pause, left))):
                        await event.wait()
        finally:
            with _waiting_lock:
                _waiting[self._key].discard(waiter)

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        began: datetime | None = None

        def look(tx: Tx) -> tuple[bool, float]:
            nonlocal began
            began = began or tx.now
            served = sorted(set(queues) - tx.paused())
            limited = list(tx.lanes(served))
            served = [queue for queue in served if queue not in limited]
            # A schedule that was due already when the wait began is no reason to return: perhaps no caller can fire it.
            schedule = tx.next_schedule(began)
            if tx.has_work(served) or tx.due_flows(False, 1) or (schedule is not None and schedule <= tx.now):
                return True, 0.0
            can_claim, next_start = limit_transitions.outlook(tx, limited, lambda one: _work(tx, one))
            if can_claim:
                return True, 0.0
            moments = [one for one in (schedule, tx.next_task(served), next_start) if one is not None]
            return False, min([(moment - tx.now).total_seconds() for moment in moments], default=LOOK_SECONDS)

        await self._wait(look, timeout)

    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        def look(tx: Tx) -> tuple[set[str], float]:
            tasks = tx.load(ids)
            return {one for one in ids if one not in tasks or tasks[one].state.is_final}, LOOK_SECONDS

        return await self._wait(look, timeout) if ids else set()

    # Reading

    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        found = await self._read(lambda tx: tx.get(ids))
        return [found.get(task_id) for task_id in ids]

    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 20):
            raise ValueError(f"{cursor!r} is not a cursor of {self.config.redacted}")
        before = None if cursor is None else int(cursor)
        tasks, following = await self._read(lambda tx: tx.page(query, before))
        return TaskPage(tuple(tasks), None if following is None else str(following))

    async def stats(self) -> list[QueueStats]:
        def look(tx: Tx) -> list[QueueStats]:
            counts, paused = tx.counts(), tx.paused()
            return [
                QueueStats(
                    queue=queue,
                    counts=dict.fromkeys(TaskState, 0) | counts.get(queue, {}),
                    paused=queue in paused,
                    oldest_ready=_age(tx.oldest_ready(queue), tx.now),
                )
                for queue in sorted(paused | {queue for queue, states in counts.items() if any(states.values())})
            ]

        return await self._read(look)

    async def workers(self) -> list[StoredWorker]:
        return await self._read(lambda tx: tx.workers())

    # Control

    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.cancel, ids, wakes=True)

    async def retry(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.retry, ids, wakes=True)

    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.run_now, ids, wakes=True)

    async def delete(self, ids: Sequence[str]) -> list[bool]:
        return await self._run(transitions.delete, ids, wakes=True)

    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        states = [one for one in TaskState if one is not TaskState.RUNNING and state in (None, one)]
        total = 0
        while True:
            removed: int = await self._run(transitions.purge, queue, states, PURGE_STEP, wakes=True)
            total += removed
            if removed < PURGE_STEP:
                return total

    async def pause(self, queue: str) -> bool:
        return await self._run(lambda tx: tx.pause(queue))

    async def resume(self, queue: str) -> bool:
        return await self._run(lambda tx: tx.resume(queue), wakes=True)

    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        await self._run(transitions.set_progress, updates)

    # Flows

    async def release_hold(self, flow_id: str, gate: int) -> bool:
        return await self._run(flow_transitions.release_hold, flow_id, gate, wakes=True)

    async def get_flows(self, ids: Sequence[str]) -> list[Flow | None]:
        return await self._read(lambda tx: flow_transitions.get_flows(tx, ids))

    async def cancel_flow(self, flow_id: str) -> bool:
        return await self._run(flow_transitions.cancel_flow, flow_id, wakes=True)

    async def retry_flow(self, flow_id: str) -> int:
        return await self._run(flow_transitions.retry_flow, flow_id, wakes=True)

    async def settle(self, limit: int) -> int:
        return await self._run(flow_transitions.settle, limit, wakes=True)

    # Limits

    async def put_limit(self, limit: Limit, expected_revision: int | None = None) -> Limit | None:
        if not self.limits.task_limits:
            raise no_limits(self)
        return await self._run(limit_transitions.put_limit, limit, expected_revision, wakes=True)

    async def get_limits(self, ids: Sequence[str] | None = None) -> list[Limit]:
        return await self._read(lambda tx: limit_transitions.get_limits(tx, ids))

    async def get_limit_usage(self, scopes: Sequence[Scope] | None = None) -> list[LimitUsage]:
        return await self._read(lambda tx: limit_transitions.get_usage(tx, scopes))

    async def delete_limit(self, limit_id: str) -> bool:
        return await self._run(limit_transitions.delete_limit, limit_id, wakes=True)

    async def lost_lines(self, lines: Sequence[Line]) -> list[StoredTask]:
        return await self._read(lambda tx: limit_transitions.lost_lines(tx, lines))

    # Schedules

    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        return await self._run(transitions.put_schedule, schedule, expected_revision, wakes=True)

    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        known = {schedule.id: schedule for schedule in await self._read(lambda tx: tx.schedules())}
        return [known[one] for one in (sorted(known) if ids is None else ids) if one in known]

    async def delete_schedule(self, schedule_id: str) -> bool:
        return await self._run(transitions.delete_schedule, schedule_id)

    async def due_schedules(self, limit: int) -> list[Schedule]:
        return await self._read(lambda tx: tx.due(limit))

    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        return await self._run(transitions.fire, schedule, tasks, wakes=True)

    # Maintenance

    async def prune(self, limit: int) -> int:
        def remove(tx: Tx) -> int:
            tx.forget_workers()
            return transitions.prune(tx, limit)

        return await self._run(remove, wakes=True)

    async def check(self, limit: int = 100) -> list[Finding]:
        def look(tx: Tx) -> list[CorruptRecord]:
            tx.verify()
            return tx.problems

        found = [finding(problem) for problem in await self._read(look)]
        return list(dict.fromkeys([*found, *await super().check(limit)]))[:limit]

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
        return await self._run(transitions.adopt, tasks, flows, wakes=True)

    async def diagnose(self) -> list[Finding]:
        return await self._read(self.findings)


def _work(tx: Tx, queue: str) -> tuple[bool, datetime | None]:
    return tx.has_work([queue]), tx.next_task([queue])


_Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Event]
_waiting: dict[tuple[str, str, str], set[_Waiter]] = {}
_waiting_lock = threading.Lock()


def _age(moment: datetime | None, now: datetime) -> float | None:
    return None if moment is None else max(0.0, (now - moment).total_seconds())


class _IoThread:
    """A thread with a connection of its own, which does one transaction after the other."""

    def __init__(self, storage: SimpleStorage) -> None:
        self._storage = storage
        self._connection: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"omniq-{storage.config.scheme}")

    async def run(self, verb: Callable[[Any], R], write: bool, wakes: bool) -> R:
        # From here, as a call that is behind others in a store that is away would else wait for the time of each.
        deadline = time.monotonic() + self._storage.timeout
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._patiently, deadline, verb, write, wakes)

    def _patiently(self, deadline: float, verb: Callable[[Any], R], write: bool, wakes: bool) -> R:
        if time.monotonic() > deadline:
            storage = self._storage
            raise StorageUnavailable(f"{storage.config.redacted}: not begun within {storage.timeout:g} s")
        pause = 0.02
        while True:
            committing = [False]
            try:
                return self._once(verb, write, wakes, committing)
            except BaseException as error:
                self.drop()
                fault = self._storage.fault(error)
                if fault is None:
                    raise
                passes = isinstance(fault, StorageUnavailable) and not committing[0]
                if not passes or time.monotonic() + pause > deadline:
                    raise fault from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 1.0)

    def _once(self, verb: Callable[[Any], R], write: bool, wakes: bool, committing: list[bool]) -> R:
        storage = self._storage
        if self._connection is None:
            self._connection = storage.connect()
        with storage.transaction(self._connection, write) as tx:
            result = verb(tx)
            problems, changed = tx.problems, wakes and tx.changed
            if changed:
                storage.announce(tx)
            committing[0] = write
        if changed:
            storage.wake()
        for problem in problems:
            log_once(_log, problem, storage.config.redacted)
        return result

    def drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                self._storage.disconnect(connection)

    async def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # the executor, or the loop's, has been shut down
            await asyncio.get_running_loop().run_in_executor(self._thread, self.drop)
        self._thread.shutdown(wait=False)


class _Joined(CallerTransaction):
    """Takes part in a transaction on a connection of the caller's."""

    def __init__(self, storage: SimpleStorage, connection: object) -> None:
        self._storage = storage
        self._connection = connection

    @contextlib.contextmanager
    def _tx(self) -> Iterator[Tx]:
        try:
            with self._storage.joined(self._connection) as tx:
                yield tx
                if tx.changed:
                    self._storage.announce(tx)
        except Exception as error:
            fault = self._storage.fault(error)
            if fault is None:
                raise
            raise fault from error

    def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return self.enqueue_flow(tasks, None)

    async def aenqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        return self.enqueue(tasks)

    def enqueue_flow(self, tasks: Sequence[NewTask], flow: NewFlow | None) -> list[Enqueued]:
        with self._tx() as tx:
            return transitions.enqueue(tx, tasks, flow)

    def finish(self, outcome: Outcome) -> bool:
        with self._tx() as tx:
            return transitions.finish(tx, [outcome])[0]

    async def afinish(self, outcome: Outcome) -> bool:
        return self.finish(outcome)
