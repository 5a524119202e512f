"""What a task is: what a producer hands over, the record that a store keeps, and the ways it can end.

Everything here is a frozen value. Nothing in this module does any I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypeVar
from uuid import UUID

from attrs import evolve, field, frozen

from omniq.limit import Debounce, Limited

__all__ = [
    "Attempt",
    "AttemptOutcome",
    "Cancelled",
    "Ending",
    "Failed",
    "Feed",
    "LimitedTask",
    "NewTask",
    "Omitted",
    "Outcome",
    "Progress",
    "Reference",
    "Released",
    "Retry",
    "StoredTask",
    "Succeeded",
    "Task",
    "TaskDecoder",
    "TaskError",
    "TaskState",
    "When",
    "record_of",
]

T = TypeVar("T", bound="NewTask | StoredTask")

When: TypeAlias = datetime | timedelta
"""A point in time: an aware datetime, or a timedelta counted from the *store's* now.

A producer's clock may be wrong, so "in 60 seconds" travels to the store as 60 seconds and becomes a point in time
there.
"""


class TaskState(StrEnum):
    """Where a task stands. The three last states are final."""

    BLOCKED = "blocked"
    """It waits for other tasks of its flow."""
    SCHEDULED = "scheduled"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether a task in this state has ended."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


@frozen
class Reference:
    """One place of a task's arguments that the results of other tasks of its flow take when it runs."""

    path: tuple[str | int, ...]
    """``args`` and an index, or ``kwargs`` and a name; and the index or key within that argument, if it is a list,
    tuple or dict of which the place is an item."""
    kind: str
    """``output`` or ``outcome`` of one task, or ``outputs`` or ``outcomes`` of any number, as a list."""
    runs: tuple[tuple[str, int], ...]
    """The tasks: an id, and how many with ids that follow one another begin with it."""

    @property
    def ids(self) -> list[str]:
        """The ids of the tasks, in order."""
        return [one for first, count in self.runs for one in _following(first, count)]


def _following(first: str, count: int) -> list[str]:
    if count == 1:
        return [first]
    number = UUID(first).int
    return [str(UUID(int=number + step)) for step in range(count)]


@frozen
class Feed:
    """One gate of a flow that counts the end of a task."""

    gate: int
    """The gate's number within the flow."""
    needs_success: bool = True
    """Whether the gate breaks if the task ends in any way but success."""


@frozen(kw_only=True)
class TaskError:
    """Why an attempt failed, as text, so that it can be read where the error's class does not exist."""

    type: str
    """The error's class: ``ValueError``, ``httpx.ReadTimeout``; Python's and OmniQ's own without their module."""
    message: str
    """``str()`` of the error."""
    traceback: str = ""
    """The worker's traceback, or empty where there is none (a worker that died leaves none)."""


@frozen(kw_only=True)
class Progress:
    """How far a running task says it has come."""

    done: float
    total: float | None = None
    note: str = ""


@frozen(kw_only=True)
class Omitted:
    """How large are the parts of a task that a bare list leaves out, in bytes."""

    body: int = 0
    """The arguments, and how to run them."""
    result: int | None = None
    """None: there is none."""
    traceback: int = 0
    """As UTF-8."""


class AttemptOutcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    RETRY = "retry"
    """It failed, and the task was to run again."""
    FAILED = "failed"
    """It failed, and so did the task."""
    CANCELLED = "cancelled"
    """The task was asked to stop, and did."""
    LOST = "lost"
    """Its worker died, or lost its lease."""


@frozen(kw_only=True)
class Attempt:
    """One attempt of a task that is over, see :attr:`Task.history`."""

    attempt: int
    """Its number, counted from 1; ``retry`` by hand begins anew."""
    worker: str | None
    """The worker's id."""
    started_at: datetime | None
    ended_at: datetime | None
    """By the store's clock, about. Of an attempt that was lost: when that was noticed."""
    outcome: AttemptOutcome
    error: TaskError | None = None
    """With what it failed: the message's first 1,000 characters, and the traceback's last 10,000."""


# Kept in a dictionary rather than in slots: attrs fills a frozen class of this size twice as fast that way.
@frozen(kw_only=True, slots=False)
class NewTask:
    """What a producer hands to a store. It never changes once it is stored."""

    id: str
    """UUIDv7 text. Chosen by the producer, so that enqueueing twice after a lost answer stores it once."""
    queue: str
    name: str
    """The registered name of the function to run."""
    body: bytes = field(repr=False)
    """The arguments and how to run them, see :mod:`omniq.storage.body`. A store returns it unchanged."""
    priority: int = 0
    """−100…100; larger is claimed first."""
    max_retries: int = 3
    """How often it may run again after its first attempt."""
    run_at: When | None = None
    """When it may start; None: at once."""
    expires: When | None = None
    """When it is no longer worth starting; None: never."""
    unique: str | None = None
    """At most one live (not ended) task has this key."""
    tags: tuple[str, ...] = ()
    result_ttl: float = 86400.0
    """Seconds that the record and its result are kept after the end. Of a flow's task the flow's own counts."""
    flow: str | None = None
    """The flow that it belongs to, see :mod:`omniq.flow`."""
    behind: int | None = None
    """The gate of the flow that must open before it may start; None: it waits for none."""
    feeds: tuple[Feed, ...] = ()
    """The gates of the flow that count its end."""
    key: str | None = None
    """Whose task it is within its queue, for the limit of the queue, see :mod:`omniq.limit`."""
    limit: str | None = None
    """The named limit that it shares with tasks of any queue."""
    debounce: Debounce | None = None
    """Whether it takes the place of one that waits with the same key, which is then its ``unique`` key; ``run_at``
    plays no part."""


@frozen(kw_only=True, slots=False)
class StoredTask:
    """The record of a task as a store has it: what the producer handed over and what has become of it.

    All datetimes are aware, in UTC, and read from the store's clock.
    """

    id: str
    """UUIDv7 text."""
    queue: str
    name: str
    body: bytes = field(repr=False)
    """As it was enqueued."""
    priority: int = 0
    state: TaskState = TaskState.READY
    attempt: int = 0
    """How many attempts were begun; 1 while the first runs. An attempt that was given back unstarted does not count."""
    delivery: int = 0
    """The fencing token: how many times the task was claimed. Only the holder of the latest can finish it."""
    max_retries: int = 3
    created_at: datetime
    run_at: datetime
    """When it was, or will be, ready to start."""
    started_at: datetime | None = None
    """When the latest attempt began."""
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    lease_until: datetime | None = None
    """Until when the worker's claim holds unless it is renewed; None unless running."""
    worker: str | None = None
    """The worker of the latest attempt."""
    unique: str | None = None
    tags: tuple[str, ...] = ()
    result_ttl: float = 86400.0
    flow: str | None = None
    behind: int | None = None
    feeds: tuple[Feed, ...] = ()
    opening_delay: float | None = None
    """Of a task behind a gate: seconds from the gate's opening until it may start; None: :attr:`run_at` says when."""
    error: TaskError | None = None
    """The latest attempt's error; kept while the task waits for its next attempt, and while that runs. Of a task that
    was put back because its worker could not run it: why."""
    progress: Progress | None = None
    cancel_requested: bool = False
    """Whether a running task was asked to stop."""
    result_payload: bytes | None = field(default=None, repr=False)
    """The encoded result of a task that succeeded."""
    attempt_log: str = field(default="", repr=False)
    """What is kept of attempts that are over, see :mod:`omniq.storage.attempts`: a text that no store reads."""
    omitted: Omitted | None = None
    """What was left out where tasks were listed bare (the body is empty then, the result None, the traceback and the
    attempt log empty); None: nothing, this is the whole record."""

    # A field of a class of its own, as Python gives a record of 30 fields a table of names of its own.
    limited: ClassVar[Limited | None] = None
    """:attr:`key`, :attr:`limit` and :attr:`first_at`; None: it has none of them."""

    @property
    def key(self) -> str | None:
        """Whose task it is within its queue; None: it has none."""
        return None if self.limited is None else self.limited.key

    @property
    def limit(self) -> str | None:
        """The named limit that it shares with tasks of any queue; None: none."""
        return None if self.limited is None else self.limited.limit

    @property
    def first_at(self) -> datetime | None:
        """Of a debounced task: when the first of those was enqueued that took each other's places."""
        return None if self.limited is None else self.limited.first_at

    def bare(self, body: int | None = None, result: int | None = None, traceback: int | None = None) -> Self:
        """Return this record as a bare list has it, see :attr:`omitted`.

        :param body: the size of the body, if that and the result were not read.
        :param result: and that of the result.
        :param traceback: and that of the traceback, if it was not read either.
        """
        if self.omitted is not None:
            return self
        error = self.error
        text = "" if error is None else error.traceback
        if body is None:
            body, result = len(self.body), None if self.result_payload is None else len(self.result_payload)
        return evolve(
            self,
            body=b"",
            result_payload=None,
            attempt_log="",
            error=None if error is None else evolve(error, traceback=""),
            omitted=Omitted(
                body=body,
                result=result,
                traceback=len(text.encode(errors="replace")) if traceback is None else traceback,
            ),
        )


@frozen(kw_only=True, slots=False)
class LimitedTask(StoredTask):
    """The record of a task that has a key, a named limit or a debounce."""

    limited: Limited | None = None  # type: ignore[misc]  # a class variable of those that have none of them


def record_of(cls: type[T], fields: dict[str, Any]) -> T:
    """Return a record made of a dictionary, which becomes its own: in half the time that the constructor takes.

    For what makes thousands a second, such as a claim.

    :param fields: the values of all fields of the class, also of those that have a default.
    """
    record = _new(cls)
    _set(record, "__dict__", fields)
    return record


_new, _set = object.__new__, object.__setattr__


class TaskDecoder(Protocol):
    """Reads the encoded parts of a task. A queue gives its own to every task that it returns."""

    def arguments(self, task: Task) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Decode a task's arguments.

        :param task: the record.
        :return: the positional and the keyword arguments.
        """

    def retry_policy(self, task: Task) -> Any:
        """Decode a task's retry policy.

        :param task: the record.
        :return: the policy; None if the task has none.
        """

    def result(self, task: Task) -> Any:
        """Decode a task's result.

        :param task: the record.
        :return: what the function returned.
        """


@frozen(kw_only=True, slots=False)
class Task(LimitedTask):
    """The record of a task as its owner sees it: what the store has, and what is in the body.

    :func:`omniq.storage.body.as_task` makes it; no store does.
    """

    serializer: str = "json"
    """The name of the serializer that encoded the arguments, and that encodes the result.

    This and what follows are in the body: of a task that was listed bare they are not known, and empty.
    """
    payload: bytes = field(default=b"", repr=False)
    """The encoded arguments."""
    retry_spec: str = ""
    """The encoded retry policy, see :attr:`retry`; empty: the function's own, known to the worker alone."""
    timeout: float | None = None
    """Seconds that one attempt may take."""
    is_async: bool = False
    headers: Mapping[str, str] = field(factory=dict)
    """What travels beside the arguments, such as a correlation id; the task's code and plugins read it."""
    scheduled_for: datetime | None = None
    """The fire time that a schedule's run is for; None if no schedule enqueued it, or it was triggered by hand."""
    references: tuple[Reference, ...] = ()
    """Of a task of a flow: the places of its arguments that hold None until it runs, and then others' results."""
    history: tuple[Attempt, ...] = field(default=(), repr=False)
    """The latest ten attempts that are over, the oldest first. An attempt that was put back is none."""
    _decoder: TaskDecoder | None = field(default=None, repr=False, eq=False)

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments, decoded now.

        :raises PayloadRejected: if they must not be decoded: unsigned, altered, or of a serializer not accepted.
        :raises SerializationError: if they cannot be decoded.
        :raises RuntimeError: if the task was listed bare.
        """
        return self._decode().arguments(self)[0]

    @property
    def kwargs(self) -> Mapping[str, Any]:
        """The keyword arguments, decoded now.

        :raises PayloadRejected: if they must not be decoded: unsigned, altered, or of a serializer not accepted.
        :raises SerializationError: if they cannot be decoded.
        """
        return self._decode().arguments(self)[1]

    @property
    def retry(self) -> Any:
        """The :class:`~omniq.RetryPolicy` of this task; None if only the function's worker knows it."""
        return self._decode().retry_policy(self)

    @property
    def result(self) -> Any:
        """The result of a task that succeeded, decoded now; None for any other.

        :raises PayloadRejected: if it must not be decoded: unsigned, altered, or of a serializer not accepted.
        :raises SerializationError: if it cannot be decoded.
        """
        return self._decode().result(self)

    def _decode(self) -> TaskDecoder:
        if self.omitted is not None:
            raise RuntimeError(f"this Task was listed bare; read the whole of it with queue.get({self.id!r})")
        if self._decoder is None:
            raise RuntimeError(
                "this Task has no queue that could decode it; read it through a TaskQueue "
                "(queue.get, queue.tasks, handle.task)"
            )
        return self._decoder


@frozen(kw_only=True)
class Outcome:
    """How one delivery of a task ended. The store accepts it only from the holder of the lease."""

    id: str
    delivery: int
    """The fencing token of the claim that this answers."""


@frozen(kw_only=True)
class Succeeded(Outcome):
    """The function returned."""

    result: bytes
    """The encoded return value."""


@frozen(kw_only=True)
class Failed(Outcome):
    """The task failed for good: no retries left, or not an error to retry."""

    error: TaskError
    attempt_log: str = field(default="", repr=False)
    """Takes the place of the task's: that of the claim, and this attempt. Empty: the task's stays."""


@frozen(kw_only=True)
class Retry(Outcome):
    """The attempt failed and the task shall run again."""

    delay: float
    """Seconds from the store's now until it is ready again."""
    error: TaskError | None = None
    attempt_log: str = field(default="", repr=False)
    """Takes the place of the task's: that of the claim, and this attempt. Empty: the task's stays."""


@frozen(kw_only=True)
class Released(Outcome):
    """The task was given back unstarted; the attempt does not count."""

    delay: float = 0.0
    """Seconds from the store's now until it is ready again; 0 puts it back to its old place in the queue."""
    error: TaskError | None = None
    """Why this worker cannot run it, which replaces the latest attempt's error; None: that error is kept."""


@frozen(kw_only=True)
class Cancelled(Outcome):
    """The task was asked to stop and did."""

    attempt_log: str = field(default="", repr=False)
    """Takes the place of the task's: that of the claim, and this attempt. Empty: the task's stays."""


@frozen(kw_only=True)
class Ending:
    """How one attempt ended where its function ran: what the hook ``omniq_around_task`` is given."""

    outcome: Outcome
    """What will be recorded."""
    error: BaseException | None
    """What the function raised; None if it returned or asked to retry or fail. Also why its arguments or its result
    could not be decoded or encoded; of a coroutine that was interrupted its ``CancelledError``."""
    seconds: float
    """How long it took to decode the arguments, call the function and encode its result; never the wait for the store's
    answer."""
    taken: bool
    """False: a timeout decided before; this ending plays no part."""
