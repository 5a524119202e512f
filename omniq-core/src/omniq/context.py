"""What a running task knows of itself: ``current_task()``."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from datetime import timedelta
from typing import NoReturn

from omniq.durations import duration
from omniq.task import Progress, Task

__all__ = ["CurrentTask", "FailSignal", "RetrySignal", "TaskSignal", "current_task", "running"]


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
    """The task that is running here. Usable from the task's own thread or coroutine and from those that it starts."""

    __slots__ = ("_on_progress", "_stop", "_task", "stop_seen")

    def __init__(self, task: Task, on_progress: Callable[[Task, Progress], None] | None = None) -> None:
        self._task = task
        self._on_progress = on_progress
        self._stop = False
        self.stop_seen = False
        """Whether the task has read :attr:`cancelled` as True: what it returns afterwards is no result."""

    @property
    def cancelled(self) -> bool:
        """Whether the task was asked to stop: cancelled, timed out, its lease lost, or the worker shutting down.

        A task on a thread polls it. One that has read True and returns ends as cancelled (or goes back to its queue,
        where the worker shut down).
        """
        if self._stop:
            self.stop_seen = True
        return self._stop

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
    def attempt(self) -> int:
        """Which attempt this is, counted from 1."""
        return self._task.attempt

    @property
    def max_retries(self) -> int:
        """How often the task may run again after its first attempt."""
        return self._task.max_retries

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far the task has come. Returns at once; the latest word is stored within about a second.

        :param done: how much is done.
        :param total: of how much; None if that is not known.
        :param note: what is being done, for a person to read.
        :raises ValueError: if a number is negative or not finite, or ``done`` is larger than ``total``.
        """
        for label, value in (("done", done), ("total", total)):
            if value is not None and (not math.isfinite(value) or value < 0):
                raise ValueError(f"progress: {label} must be zero or more, not {value!r}")
        if total is not None and done > total:
            raise ValueError(f"progress: done ({done!r}) is larger than total ({total!r})")
        self.note(Progress(done=done, total=total, note=note))

    def note(self, progress: Progress) -> None:
        """Pass on a word of progress; the worker's call."""
        if self._on_progress is not None:
            self._on_progress(self._task, progress)

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
    """Give the task that is running here.

    :raises RuntimeError: outside a task.
    """
    try:
        return running.get()
    except LookupError:
        raise RuntimeError("current_task() was called outside a running task") from None
