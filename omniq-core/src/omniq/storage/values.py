"""What the verbs of a store take and return, beside tasks, schedules and flows themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, Self, TypeVar

from attrs import Factory, field, frozen
from attrs.validators import ge
from attrs.validators import optional as or_none

from omniq.errors import ConfigurationError
from omniq.task import LimitedTask, StoredTask, TaskState

__all__ = [
    "Adoption",
    "Capability",
    "Count",
    "Enqueued",
    "Finding",
    "Lease",
    "LeaseState",
    "QueueStats",
    "Salvaged",
    "Severity",
    "StorageConfig",
    "StorageLimits",
    "StoredWorker",
    "TaskPage",
    "TaskQuery",
]

T = TypeVar("T", bound=StoredTask, covariant=True)  # noqa: PLC0105  # as short as the pages that name it


class Capability(StrEnum):
    """What a store can do beyond the contract, or promises about its surroundings."""

    TRANSACTIONS = "transactions"
    """Tasks can be enqueued and completed inside the caller's own database transaction."""
    NOTIFICATIONS = "notifications"
    """Waiting workers and callers are woken by the store rather than by their next look."""
    SHARED_BETWEEN_PROCESSES = "shared between processes"
    SHARED_BETWEEN_MACHINES = "shared between machines"
    DURABLE = "durable"
    """Tasks survive the end of every process that uses the store. Whether they survive that of its machine may depend
    on settings; :meth:`Storage.diagnose` says."""


@frozen(kw_only=True)
class StorageLimits:
    """How far a store goes in what the contract leaves to it. The defaults are those of a store without such limits."""

    atomic_tasks: int | None = None
    """How many tasks without ``unique`` keys one :meth:`Storage.enqueue` stores all or none; None: any number.

    Of more, parts of at least that many, in order, are each stored all or none, or :meth:`Storage.enqueue` refuses them
    all.
    """
    atomic_unique_tasks: int | None = None
    """The same where any of the tasks has a ``unique`` key."""
    flow_step: int | None = None
    """How much of a flow one :meth:`Storage.enqueue` should store, so that the step stays short; None: what
    :attr:`atomic_tasks` says.

    A task counts once for each gate that it feeds, and at least once; a new gate counts five times. A larger flow is
    stored in parts, and starts as the last of them is stored.
    """
    atomic_across_queues: bool = True
    """Whether a change of stored tasks (``claim``, ``finish``, ``heartbeat``, ``recover``, ``cancel``, ``retry``,
    ``run_now``, ``delete``) is one step. False: it is one for the tasks of each queue, and several for very many or
    large ones.
    """
    lost_wakeup: float = 2.0
    """Seconds after which a caller that waits asks the store itself, in case a notification was lost.

    0: none can be lost.
    """
    body: int | None = None
    """Bytes of the longest body of a task that can be stored for certain; None: memory and disk are the limit."""
    running_tasks: int | None = None
    """How many tasks of one queue can run at a time, about; None: any number."""
    active_keys: int | None = None
    """Of how many keys, or keys and named limits, one queue can hold tasks at a time, about; None: any number."""
    stalled_client: float | None = None
    """For how many seconds a client that stands still in the middle of a call (a stopped process, a machine that
    vanished) can hold up others; 0: it holds nothing that they need.

    None: until it goes on or ends. Meanwhile the calls of others that need what it holds raise
    :class:`~omniq.errors.StorageUnavailable`.
    """
    flows: bool = False
    """Whether it holds flows. If not, the methods about them raise :class:`~omniq.errors.ConfigurationError`."""
    task_limits: bool = False
    """Whether it holds limits, and tasks with a ``key``, a named ``limit`` or ``debounce``. If not, a queue refuses
    such tasks, and the methods about limits raise :class:`~omniq.errors.ConfigurationError`."""


@frozen
class Enqueued:
    """What became of one enqueued task."""

    id: str
    """The task's id; where a live task has the same ``unique`` key, the id of that one."""
    created: bool
    """False if the id was stored already, or if a live task has the same ``unique`` key."""


class Adoption(StrEnum):
    """What became of one record that a store was to adopt, see :meth:`Storage.adopt`."""

    STORED = "stored"
    PRESENT = "present"
    """Its id is stored already, whatever has become of it since; nothing was changed."""
    KEY_TAKEN = "key taken"
    """Not stored: it has not ended, and another task, or another flow, that has not ended has its unique key."""
    NO_FLOW = "no flow"
    """Not stored: the store does not have the flow that the task belongs to."""


@frozen
class Lease:
    """A worker's hold on one delivery of a task."""

    id: str
    delivery: int


class LeaseState(StrEnum):
    """What a heartbeat learns of a lease."""

    HELD = "held"
    """Extended."""
    LOST = "lost"
    """The task ended, was recovered, claimed by another, or deleted. Its outcome will not be accepted."""
    CANCEL_REQUESTED = "cancel requested"
    """Extended, and the task is to stop."""


def _as_set(states: Iterable[TaskState] | None) -> frozenset[TaskState] | None:
    return None if states is None else frozenset(states)


@frozen(kw_only=True)
class TaskQuery:
    """Which tasks to list, and how; None matches all."""

    queue: str | None = None
    state: TaskState | None = None
    """Only tasks in this state: short for ``states`` with one of them, which stores read."""
    states: frozenset[TaskState] | None = field(
        default=Factory(lambda query: None if query.state is None else (query.state,), takes_self=True),
        converter=_as_set,
    )
    """Only tasks in one of these states; any collection of them is taken."""
    name: str | None = None
    tag: str | None = None
    flow: str | None = None
    """Only tasks of this flow, on a store that holds flows."""
    enqueued_before: datetime | None = None
    """Only tasks whose ``created_at`` is earlier."""
    enqueued_after: datetime | None = None
    """Only tasks whose ``created_at`` is this or later."""
    bare: bool = False
    """Whether bodies, results and tracebacks are left out, see :attr:`omniq.task.StoredTask.omitted`. A store reads
    and sends as little of them as it can."""
    limit: int = field(default=100, validator=ge(1))
    """How many tasks on a page, 1 or more."""
    look_at: int | None = field(default=None, validator=or_none(ge(1)))
    """How many stored tasks are looked at for one page at most, 1 or more, whether they match or not; None: any number.

    A store that finds tasks by an index (of a queue, a state, ...) looks at those alone to which that leads.
    """

    def matches(self, task: StoredTask) -> bool:
        """Return whether a task is one of those asked for.

        :param task: as the store has it.
        """
        return (
            (self.queue is None or task.queue == self.queue)
            and (self.states is None or task.state in self.states)
            and (self.name is None or task.name == self.name)
            and (self.tag is None or self.tag in task.tags)
            and (self.flow is None or task.flow == self.flow)
            and (self.enqueued_before is None or task.created_at < self.enqueued_before)
            and (self.enqueued_after is None or task.created_at >= self.enqueued_after)
        )


@frozen
class TaskPage(Generic[T]):
    """One page of tasks, newest first. Iterable."""

    tasks: tuple[T, ...]
    cursor: str | None
    """Pass it to the next call to read the next page; None: this was the last.

    With :attr:`TaskQuery.look_at` a page can hold few tasks, or none, and not be the last.
    """

    def __iter__(self) -> Iterator[T]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


@frozen
class Count:
    """How many tasks match."""

    number: int
    at_least: bool = False
    """Whether there may be more: a limit ended the counting."""


@frozen(kw_only=True)
class QueueStats:
    """One queue in numbers."""

    queue: str
    counts: Mapping[Any, int]  # of TaskState; as one is a text, too, type checkers must accept counts["failed"]
    """Every state, zero included. A task that is due but not yet promoted may count as scheduled or as ready."""
    paused: bool = False
    oldest_ready: float | None = None
    """For how many seconds the oldest ready task has waited; None where none is ready."""


@frozen(kw_only=True)
class StoredWorker:
    """A worker that has been heard of within its lease, as a store keeps it."""

    id: str
    seen_at: datetime
    running: tuple[str, ...] = ()
    """The ids of the tasks that it holds."""
    about: str | None = None
    """What it last told about itself, see :meth:`Storage.heartbeat`; None if it told nothing."""


class Severity(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@frozen(kw_only=True)
class Finding:
    """One thing that ``omniq doctor`` has to say about a store."""

    severity: Severity
    subject: str
    """What was looked at, in a word or two."""
    message: str
    """What was found and, where something is wrong, how to repair it."""

    @classmethod
    def ok(cls, subject: str, message: str) -> Self:
        """Return a finding of something that is as it should be.

        :param subject: what was looked at.
        :param message: what was found.
        """
        return cls(severity=Severity.OK, subject=subject, message=message)

    @classmethod
    def warning(cls, subject: str, message: str) -> Self:
        """Return a finding of something that may go wrong; see :meth:`ok`."""
        return cls(severity=Severity.WARNING, subject=subject, message=message)

    @classmethod
    def error(cls, subject: str, message: str) -> Self:
        """Return a finding of something that is wrong; see :meth:`ok`."""
        return cls(severity=Severity.ERROR, subject=subject, message=message)


@frozen(kw_only=True)
class StorageConfig:
    """Where a store is, as read from its URL. Its text never shows the password."""

    scheme: str
    location: str
    """The URL without its query, as it was written: ``sqlite:///jobs.db``. The store decodes ``%20`` and the like in
    it.

    May hold credentials; show :attr:`redacted` instead.
    """
    namespace: str = "omniq"
    """1 to 40 ASCII letters, digits, hyphens and underscores, the first a letter or digit; case matters."""
    options: Mapping[str, str] = field(factory=dict)
    """The query string's parameters, decoded, without ``namespace``."""
    redacted: str = ""
    """The whole URL with its credentials and secret options hidden."""

    def __repr__(self) -> str:
        return f"StorageConfig({self.redacted!r}, namespace={self.namespace!r})"

    def check_options(self, known: Iterable[str]) -> None:
        """Refuse options that the storage does not know.

        :param known: the names of those it does.
        :raises ValueError: naming the unknown option and the known ones.
        """
        known = sorted(known)
        for name in self.options:
            if name not in known:
                known_text = ", ".join([*known, "namespace"])
                raise ValueError(f"{self.redacted}: unknown option {name!r}; {self.scheme}:// knows {known_text}")

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Return an option that is one of a few words, in lower case.

        :param name: the option's.
        :param choices: the words; the first is taken where the URL has no such option.
        :raises ConfigurationError: if it is another word.
        """
        value = self.options.get(name, choices[0]).lower()
        if value not in choices:
            raise ConfigurationError(f"{self.redacted}: {name} must be {' or '.join(choices)}, not {value!r}")
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """Return an option that is a number.

        :param name: the option's.
        :param default: what is taken where the URL has no such option.
        :param least: the smallest that can be used.
        :param most: the largest.
        :raises ConfigurationError: if it is no number, or out of range.
        """
        text = self.options.get(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise ConfigurationError(
                f"{self.redacted}: {name} must be a number from {least:g} to {most:g}, not {text!r}"
            )
        return value

    def count(self, name: str, default: int, most: int) -> int:
        """Return an option that is a number of things: a whole number of 1 or more.

        :param name: the option's.
        :param default: what is taken where the URL has no such option.
        :param most: the largest that can be used.
        :raises ConfigurationError: if it is no such number.
        """
        text = self.options.get(name)
        value = default if text is None else int(text) if text.isascii() and text.isdecimal() else 0
        if not 1 <= value <= most:
            raise ConfigurationError(f"{self.redacted}: {name} must be a whole number from 1 to {most}, not {text!r}")
        return value


@frozen(kw_only=True, slots=False)
class Salvaged(LimitedTask):
    """What stands for a task that cannot be read."""
