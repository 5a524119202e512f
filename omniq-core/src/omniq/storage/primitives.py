"""The primitives of a transaction, over which the verbs of the contract are written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from omniq.errors import CorruptRecord
from omniq.flow import StoredFlow, StoredGate
from omniq.limit import PLAIN, Lane, Limit, Scope, StoredLine
from omniq.schedule import Schedule
from omniq.storage.values import StoredWorker, TaskQuery
from omniq.task import StoredTask, TaskState

__all__ = [
    "ClaimTransaction",
    "FlowTransaction",
    "LimitTransaction",
    "LineTransaction",
    "NoLimits",
    "Transaction",
    "Tx",
    "read_unlisted",
]


class LimitTransaction(Protocol):
    """What limits ask of a store within one transaction, see :mod:`~omniq.storage.limit_transitions`.

    A store that holds no limits has none of them: it is given no tasks that would need them.
    """

    now: datetime
    """The store's clock, aware and in UTC; the same throughout the transaction."""

    @abstractmethod
    def lock_limits(self) -> None:
        """Be the only transaction that uses any of these primitives, until this one ends; called before each use.

        A store that has one writer at a time, and a transaction that only reads, have nothing to do.
        """

    @abstractmethod
    def lanes(self, queues: Iterable[str] | None) -> dict[str, Lane]:
        """Return the lanes of queues, without those that have none; None: of all queues. Called without the lock."""

    @abstractmethod
    def save_lane(self, lane: Lane) -> None:
        """Add the lane of a queue, or replace it; wakes those who wait for work in the queue."""

    @abstractmethod
    def remove_lane(self, queue: str) -> None:
        """Remove the lane of a queue."""

    @abstractmethod
    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        """Return the stored limits by their ids, without those that are not there; None: all.

        In place of one that cannot be read stands an :class:`~omniq.limit.UnreadableLimit`.
        """

    @abstractmethod
    def store_limit(self, limit: Limit) -> None:
        """Add a limit, or replace the one with its id."""

    @abstractmethod
    def remove_limit(self, limit_id: str) -> None:
        """Remove a limit that is there."""

    @abstractmethod
    def line(self, line_id: str) -> StoredLine | None:
        """Return a line, or an alarm, by its id."""

    @abstractmethod
    def lines(self, queue: str, place: str, limit: int, until: int | None = None) -> list[StoredLine]:
        """Return the first lines of a queue at a place.

        Those that are asleep, alarms with them, in the order of ``until``; all others by larger priority, then smaller
        ``vtime``.

        :param until: of those that are asleep only those whose ``until`` is no later.
        """

    @abstractmethod
    def lines_of_key(self, queue: str, key: str) -> list[StoredLine]:
        """Return all lines of a key of a queue."""

    @abstractmethod
    def queues_at(self, place: str) -> list[str]:
        """Return the queues that have a line at a place."""

    @abstractmethod
    def has_lines(self, queue: str) -> bool:
        """Return whether a queue has lines that are not idle."""

    @abstractmethod
    def save_line(self, line: StoredLine) -> None:
        """Add a line, or replace the one with its id; an eligible one wakes those who wait for work in its queue."""

    @abstractmethod
    def remove_line(self, line: StoredLine) -> None:
        """Remove a line, or an alarm."""

    @abstractmethod
    def running(self, scope: Scope) -> int:
        """Return how many tasks of a scope are running."""

    @abstractmethod
    def bucket(self, scope: Scope) -> int:
        """Return when the rate of a scope is at rest, in microseconds since the epoch; 0 if nothing is stored."""

    @abstractmethod
    def save_bucket(self, scope: Scope, at_rest: int) -> None:
        """Store when the rate of a scope is at rest."""

    @abstractmethod
    def drop_buckets(self, until: int, limit: int) -> None:
        """Remove what :meth:`save_bucket` stored of rates that are at rest by a time, so many at most."""


class FlowTransaction(Protocol):
    """What the verbs of flows ask of a store within one transaction. Reads see the transaction's own writes.

    A task that any of these returns is locked until the transaction ends, or the transaction is the only one that
    writes: no other changes it meanwhile.

    In place of a task that cannot be read they return a :class:`~omniq.storage.values.Salvaged` one, by the id by
    which it was found. To save that ends it: it is found as failed from then on, and of what is stored the error and
    the times of its end are written, nothing else.
    """

    now: datetime
    """The store's clock, aware and in UTC; the same throughout the transaction."""

    @abstractmethod
    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        """Return tasks by their ids, without those that are not there. Their bodies and results may be left out."""

    @abstractmethod
    def insert(self, tasks: Sequence[StoredTask]) -> None:
        """Add tasks as they stand, in any state but running, behind all others in the order of enqueueing."""

    @abstractmethod
    def save(self, tasks: Sequence[StoredTask]) -> None:
        """Replace what can change of tasks that another primitive returned before."""

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> None:
        """Remove tasks that :meth:`load` returned before, with all that belongs to them."""

    @abstractmethod
    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the id of the task that has not ended for each unique key that one has."""

    @abstractmethod
    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        """Return flows by their ids, without those that are not there or cannot be read; locked in order of the ids."""

    @abstractmethod
    def save_flow(self, flow: StoredFlow) -> None:
        """Add a flow, or replace the one with its id; its gates stay.

        It is found by :meth:`flow_of_key` until it has ended, and by :meth:`due_flows` as
        :func:`~omniq.storage.states.due_at` says.
        """

    @abstractmethod
    def remove_flow(self, flow_id: str) -> None:
        """Remove a flow that is there, with its gates."""

    @abstractmethod
    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        """Return gates of a flow by their numbers, without those that are not there; without numbers all of them."""

    @abstractmethod
    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        """Add gates, or replace those with their numbers."""

    @abstractmethod
    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        """Return tasks of a flow in these states, in the order of enqueueing. Bodies and results may be left out.

        :param behind: only those behind this gate; None: all, with those that are behind none.
        """

    @abstractmethod
    def count_members(self, flow_id: str) -> Mapping[TaskState, int]:
        """Return how many tasks of a flow are in each state; 0 may be left out."""

    @abstractmethod
    def flow_of_key(self, key: str) -> str | None:
        """Return the id of the flow that has not ended and has a unique key."""

    @abstractmethod
    def due_flows(self, ended: bool, limit: int) -> list[str]:
        """Return flows that are due and have ended, or are due and have not, the longest due first.

        When a flow is due says :func:`~omniq.storage.states.due_at`.
        """


class LineTransaction(LimitTransaction, Protocol):
    """What claims of queues with lanes, and the verbs of limits, ask of a store within one transaction."""

    @abstractmethod
    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        """Return the first ready tasks of a line of a queue with their bodies, in the order of the claim.

        :param line: the id of a line, see :func:`omniq.limit.line_id`. Its tasks are locked as those that
            :meth:`~FlowTransaction.load` returns are, and none is passed over; of the plain line those that others have
            locked may be.
        """

    @abstractmethod
    def revision_floor(self) -> int:
        """Return what was last given to :meth:`raise_revision_floor`, or more; 0 if nothing was."""

    @abstractmethod
    def raise_revision_floor(self, revision: int) -> None:
        """Remember a number from which the revisions of new limits and schedules go on."""


class ClaimTransaction(FlowTransaction, LineTransaction, Protocol):
    """What a claim asks of a store within one transaction."""

    @abstractmethod
    def paused(self) -> set[str]:
        """Return the queues that are paused."""

    @abstractmethod
    def promote(self, queue: str, limit: int) -> Sequence[StoredTask]:
        """Make scheduled tasks of a queue ready whose ``run_at`` has come, the earliest first.

        :return: those of them that have a key or a named limit, as they stand now.
        """


class Transaction(ClaimTransaction, Protocol):
    """What all verbs ask of a store within one transaction."""

    @abstractmethod
    def lapsed(self, limit: int) -> list[StoredTask]:
        """Return running tasks whose lease has run out, the longest ago first, with their bodies."""

    @abstractmethod
    def expired(self, limit: int) -> list[StoredTask]:
        """Return scheduled and ready tasks whose ``expires_at`` has come."""

    @abstractmethod
    def in_states(self, queue: str, states: Sequence[TaskState], limit: int) -> list[StoredTask]:
        """Return tasks of a queue in these states, in any order. Their bodies and results may be left out."""

    @abstractmethod
    def dropped(self, limit: int) -> list[StoredTask]:
        """Return tasks of no flow that have ended and whose ``result_ttl`` is over, the longest ago first.

        Their bodies and results may be left out.
        """

    @abstractmethod
    def seen(self, worker: str, lease: float, about: str | None) -> None:
        """Note that a worker is alive, for so many seconds from now; 0 signs it off.

        :param about: what the worker tells about itself; None: what is stored stays. Signing off removes it.
        """

    @abstractmethod
    def revision(self, schedule_id: str) -> int | None:
        """Return the revision of a schedule; 0 if it cannot be told, None if there is no such schedule."""

    @abstractmethod
    def schedule(self, schedule_id: str) -> Schedule | None:
        """Return a schedule; None if it is not there, or cannot be read."""

    @abstractmethod
    def store_schedule(self, schedule: Schedule) -> None:
        """Add a schedule, or replace the one with its id, whatever is stored of that."""

    @abstractmethod
    def remove_schedule(self, schedule_id: str) -> None:
        """Remove a schedule that is there, without reading it."""


class Tx(Transaction, Protocol):
    """What a whole storage asks of a store within one transaction: that of the verbs, and what is read or done in bulk.

    See :class:`~omniq.storage.transactional.TransactionalStorage`.
    """

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


def read_unlisted(tx: Tx) -> None:
    """Read what no page shows of what every store keeps, for :meth:`Tx.verify`."""
    tx.schedules()
    tx.workers()
    tx.paused()
    tx.counts()
    tx.lanes(None)
    tx.task_limits(None)


class NoLimits:
    """The primitives of a store that holds no limits, and so has no tasks in lines: nothing of them is stored."""

    def lock_limits(self) -> None:
        pass

    def lanes(self, queues: Iterable[str] | None) -> dict[str, Lane]:
        return {}

    def save_lane(self, lane: Lane) -> None:
        raise NotImplementedError

    def remove_lane(self, queue: str) -> None:
        raise NotImplementedError

    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        return {}

    def store_limit(self, limit: Limit) -> None:
        raise NotImplementedError

    def remove_limit(self, limit_id: str) -> None:
        raise NotImplementedError

    def line(self, line_id: str) -> StoredLine | None:
        return None

    def lines(self, queue: str, place: str, limit: int, until: int | None = None) -> list[StoredLine]:
        return []

    def lines_of_key(self, queue: str, key: str) -> list[StoredLine]:
        return []

    def queues_at(self, place: str) -> list[str]:
        return []

    def has_lines(self, queue: str) -> bool:
        return False

    def save_line(self, line: StoredLine) -> None:
        raise NotImplementedError

    def remove_line(self, line: StoredLine) -> None:
        raise NotImplementedError

    def running(self, scope: Scope) -> int:
        raise NotImplementedError

    def bucket(self, scope: Scope) -> int:
        return 0

    def save_bucket(self, scope: Scope, at_rest: int) -> None:
        raise NotImplementedError

    def drop_buckets(self, until: int, limit: int) -> None:
        pass
