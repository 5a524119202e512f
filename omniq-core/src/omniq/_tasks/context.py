"""What a running task knows of itself: ``current_task()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from omniq._runtime import signals
from omniq.errors import ConfigurationError, LeaseLost
from omniq.storage.durations import duration
from omniq.storage.transactions import CallerTransaction
from omniq.task import Attempt, Progress, Succeeded, Task

if TYPE_CHECKING:
    from omniq._tasks.functions import TaskCall, TaskFunction
    from omniq._tasks.handle import SyncTaskHandle, TaskHandle
    from omniq._tasks.payloads import Admitted, Codec

__all__ = ["CurrentTask", "FailSignal", "RetrySignal", "TaskSignal", "current_task", "running"]


R = TypeVar("R")

LONGEST_NOTE = 10_000
"""Characters of a note of progress."""


class TaskSignal(BaseException):
    """Ends an attempt from inside the task.

    Not an ``Exception``: a task's own ``except Exception`` must not swallow it.
    """


class RetrySignal(TaskSignal):
    """The task asked to run again."""

    def __init__(self, delay: float | None, message: str) -> None:
        super().__init__(message)
        self.delay = delay


class FailSignal(TaskSignal):
    """The task asked to fail for good."""


class CurrentTask:
    """The task that is running here.

    The object can be used from any thread: a task hands it to the threads that it starts.
    """

    __slots__ = (
        "_codec",
        "_forks",
        "_function",
        "_given",
        "_on_progress",
        "_spawned",
        "_stop",
        "awaited",
        "completed",
        "join",
        "state",
        "stop_seen",
    )

    def __init__(
        self,
        task: Task | Admitted,
        function: TaskFunction[Any, Any],
        codec: Codec,
        on_progress: Callable[[Task, Progress], None] | None = None,
    ) -> None:
        self._forks = signals.forks
        self._given = task
        self._function = function
        self._codec = codec
        self._on_progress = on_progress
        self.join: Callable[[object], CallerTransaction] | None = None
        """How the store takes part in a transaction of the task's own; the worker's to set."""
        self.state: Any = None
        """What the queue's lifespan yielded in this process; None: it has none, or yielded nothing."""
        self.awaited: set[str] = set()
        """The ids of the tasks whose results it waits for at the moment."""
        self._spawned = 0
        self.completed = False
        """Whether the task has recorded its success in a transaction of its own, committed or not."""
        self._stop = False
        self.stop_seen = False
        """Whether the task has read :attr:`cancelled` as True: what it returns afterwards is no result."""

    @property
    def _task(self) -> Task:
        given = self._given
        return given if isinstance(given, Task) else given.task

    @property
    def cancelled(self) -> bool:
        """Whether the task was asked to stop: cancelled, timed out, its lease lost, or the worker shutting down.

        A task on a thread polls it. One that has read True and returns ends as cancelled (or goes back to its queue,
        where the worker shut down).
        """
        if self._stop:
            self.stop_seen = True
        return self._stop

    @property
    def is_forked(self) -> bool:
        """Whether this is a process that the task has forked, of which the worker knows nothing."""
        return self._forks != signals.forks

    def ask_to_stop(self) -> None:
        """Make :attr:`cancelled` True; the worker's call."""
        self._stop = True

    @property
    def id(self) -> str:
        """The task's id, such as to make its effects idempotent."""
        return self._task.id

    @property
    def name(self) -> str:
        """The registered name of the function."""
        return self._task.name

    @property
    def queue(self) -> str:
        """The queue that the task came from."""
        return self._task.queue

    @property
    def scheduled_for(self) -> datetime | None:
        """The fire time of the schedule's run that this task is, whenever it runs; None if no schedule made it.

        Of many runs that were missed and are made up, each has its own. A run out of turn (``trigger_schedule``) has
        none.
        """
        return self._task.scheduled_for

    @property
    def attempt(self) -> int:
        """Which attempt this is, counted from 1."""
        return self._task.attempt

    @property
    def max_retries(self) -> int:
        """How often the task may run again after its first attempt."""
        return self._task.max_retries

    @property
    def headers(self) -> Mapping[str, str]:
        """What travels beside the arguments, see ``using(headers=…)``."""
        return self._task.headers

    @property
    def history(self) -> tuple[Attempt, ...]:
        """The latest ten attempts before this one, the oldest first, see :attr:`omniq.Task.history`."""
        return self._task.history

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the task has come. Returns at once; the latest word is stored within about a second.

        :param done: how much is done.
        :param total: of how much; None if that is not known.
        :param note: what is being done, for a person to read; at most 10,000 characters.
        :raises ValueError: if a number is negative or not finite, ``done`` is larger than ``total``, or the note is too
            long.
        :raises RuntimeError: in a process that the task has forked.
        """
        if self.is_forked:
            raise RuntimeError(
                "progress() was called in a process that the task has forked, of which the worker knows nothing: send "
                "the numbers to the task's own process, such as by a multiprocessing.Queue, and call it there"
            )
        if not isinstance(note, str):
            raise TypeError(f"progress: note must be text, not a {type(note).__name__}")
        if len(note) > LONGEST_NOTE:
            raise ValueError(f"progress: note has {len(note):,} characters, and the limit is {LONGEST_NOTE:,}")
        for label, value in (("done", done), ("total", total)):
            if value is not None and (not math.isfinite(value) or value < 0):
                raise ValueError(f"progress: {label} must be zero or more, not {value!r}")
        if total is not None and done > total:
            raise ValueError(f"progress: done ({done!r}) is larger than total ({total!r})")
        self.note(Progress(done=done, total=total, note=note))

    def note(self, progress: Progress) -> None:
        """Pass on a word of progress; the worker's call.

        :param progress: what the worker stores with its next heartbeat.
        """
        if self._on_progress is not None:
            self._on_progress(self._task, progress)

    def complete_in(self, connection: object, result: Any = None) -> None:
        """Record the task's success in your own database transaction, on the task's own store.

        The effects that you have in this transaction and the task's completion are then committed together, or not at
        all: also when the worker is killed, or was stopped and has lost its lease. Call it last, then commit, then
        return. If the transaction is not committed, the task runs again, as after an error.

        :param connection: of the database that the queue is in, with the transaction open: a ``sqlite3`` or
            ``psycopg`` connection, or SQLAlchemy's or Django's over one.
        :param result: the task's result, of the type that the function is annotated to return; what it does return
            plays no part then.
        :raises LeaseLost: if the task is not this worker's any more: let it roll the transaction back.
        :raises SerializationError: if the result cannot be encoded; names the path to it.
        :raises TypeError: if the connection is of an asynchronous driver: take :meth:`acomplete_in`.
        :raises ConfigurationError: if the task's store takes part in no transactions, or it runs where there is none.
        """
        transaction = self._joined(connection)
        if transaction.is_async:
            raise TypeError("this connection is asynchronous: write `await current_task().acomplete_in(connection, …)`")
        self._note_completion(transaction.finish(self._succeeded(result)))

    async def acomplete_in(self, connection: object, result: Any = None) -> None:
        """Complete the task in a coroutine; see :meth:`complete_in`. The driver may be synchronous or asynchronous."""
        transaction = self._joined(connection)
        self._note_completion(await transaction.afinish(self._succeeded(result)))

    def _joined(self, connection: object) -> CallerTransaction:
        if self.join is None:
            raise ConfigurationError(
                "a task can complete itself only beside its worker, and so not with executor='process'"
            )
        return self.join(connection)

    def _succeeded(self, result: Any) -> Succeeded:
        return self._codec.success(self._given, result, self._function.definition.types[1])

    def _note_completion(self, accepted: bool) -> None:
        if not accepted:
            raise LeaseLost(self._given.id)
        self.completed = True

    def spawn(self, call: TaskCall[R]) -> SyncTaskHandle[R]:
        """Add a call to the flow that this task belongs to: all that waits for this task waits for that one, too.

        An attempt that runs again adds no second one: the calls of each attempt are told apart by their order. In a
        coroutine use :meth:`aspawn`.

        :param call: what ``function.call(…)`` returned; it needs no results of others.
        :return: a handle of its task.
        :raises ValueError: if this task belongs to no flow.
        :raises FlowClosed: if the flow was cancelled, or what waits for this task does so no longer.
        """
        return self._function.owner.flows.spawn(call, self._task, self._next_number())

    async def aspawn(self, call: TaskCall[R]) -> TaskHandle[R]:
        """Add a call to the flow that this task belongs to; see :meth:`spawn`.

        :param call: what ``function.call(…)`` returned.
        :return: a handle of its task.
        """
        return await self._function.owner.flows.aspawn(call, self._task, self._next_number())

    def _next_number(self) -> int:
        self._spawned += 1
        return self._spawned

    def retry(self, delay: float | timedelta | None = None, message: str = "the task asked to run again") -> NoReturn:
        """End this attempt and run the task again. Counts as an attempt; with none left the task fails.

        :param delay: seconds (or a timedelta) to wait; None: as the task's retry policy says.
        :param message: kept as the attempt's error.
        """
        raise RetrySignal(None if delay is None else duration(delay, "delay"), message)

    def fail(self, message: str = "the task asked to fail") -> NoReturn:
        """End the task as failed, whatever retries are left.

        :param message: kept as the task's error.
        """
        raise FailSignal(message)


running: ContextVar[CurrentTask] = ContextVar("omniq_current_task")


def current_task() -> CurrentTask:
    """Return the task that is running here: in the task's own thread or coroutine, and where its context is copied to.

    Coroutines that the task starts have its context, and so has ``asyncio.to_thread``. Threads that it starts with
    ``threading.Thread`` or a ``ThreadPoolExecutor`` do not: call this before, and hand them the object; or have them
    run ``contextvars.copy_context().run``.

    :raises RuntimeError: outside a task, and in such a thread.
    """
    try:
        return running.get()
    except LookupError:
        raise RuntimeError(
            "current_task() was called outside a running task; a thread that a task starts does not know of it "
            "(unless by asyncio.to_thread): call current_task() before, and hand the object to the thread"
        ) from None
