"""The primitives of a transaction, over which the verbs of the contract are written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from omniq.flow import StoredFlow, StoredGate
from omniq.schedule import Schedule
from omniq.task import StoredTask, TaskState

__all__ = ["FlowTransaction", "Transaction"]


class FlowTransaction(Protocol):
    """What the verbs of flows ask of a store within one transaction. Reads see the transaction's own writes.

    A task that any of these returns is locked until the transaction ends, or the transaction is the only one that
    writes: no other changes it meanwhile.

    In place of a task that cannot be read they return a :class:`~omniq.storage.validation.Salvaged` one, by the id by
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


class Transaction(FlowTransaction, Protocol):
    """What all verbs ask of a store within one transaction."""

    @abstractmethod
    def paused(self) -> set[str]:
        """Return the queues that are paused."""

    @abstractmethod
    def promote(self, queue: str, limit: int) -> None:
        """Make scheduled tasks of a queue ready whose ``run_at`` has come, the earliest first."""

    @abstractmethod
    def ready(self, queue: str, limit: int) -> list[StoredTask]:
        """Return ready tasks of a queue with their bodies, in the order of the claim."""

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

    @abstractmethod
    def revision_floor(self) -> int:
        """Return what was last given to :meth:`raise_revision_floor`; 0 if nothing was."""

    @abstractmethod
    def raise_revision_floor(self, revision: int) -> None:
        """Remember a number from which the revisions of new schedules go on."""
