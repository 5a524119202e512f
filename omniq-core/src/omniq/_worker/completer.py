"""What a worker holds: claimed tasks whose outcome the store has not accepted yet, and the outcomes' way there."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from attrs import evolve

from omniq._runtime.batching import Batcher
from omniq._worker.attempt import Attempt, Interruption, about
from omniq._worker.metrics import CANCELLED, FAILED, RELEASED, RETRIED, SUCCEEDED, Metrics
from omniq.errors import NotCommitted, PayloadRejected, StorageUnavailable
from omniq.plugins import Plugins
from omniq.storage import Lease, Storage
from omniq.storage.attempts import log_with
from omniq.storage.escaping import Lines, get_logger, printable_lines
from omniq.storage.failpoints import failpoint
from omniq.storage.outages import Outage
from omniq.task import Attempt as PastAttempt
from omniq.task import (
    AttemptOutcome,
    Cancelled,
    Failed,
    Outcome,
    Progress,
    Released,
    Retry,
    StoredTask,
    Succeeded,
    Task,
    TaskError,
    TaskState,
)

__all__ = ["Completer"]

_log = get_logger("omniq.worker")
_task_log = get_logger("omniq.task")

S = TypeVar("S")

LONGEST_PAUSE = 5.0
"""Seconds between two tries to record outcomes, at most."""
PROGRESS_EVERY = 0.5
"""Seconds between two writes of progress, however often tasks speak of it."""


class Completer:
    """The attempts of one worker, from claim to accepted outcome. Belongs to the worker's loop.

    :param storage: the worker's open storage.
    :param worker: the worker's id.
    :param plugins: whose event hooks are told.
    :param metrics: counts how attempts end; None: nothing does.
    """

    def __init__(self, storage: Storage, worker: str, plugins: Plugins, metrics: Metrics | None = None) -> None:
        self._storage = storage
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._held: dict[tuple[str, int], Attempt] = {}
        self._join = storage.join
        self._outage, self._outage_after_completions = (
            Outage(
                _log,
                f"worker {worker} cannot record how its tasks ended{of_which}",
                f"worker {worker} records again how its tasks ended{of_which}",
            )
            for of_which in ("", " that completed themselves")
        )
        self._outcomes: Batcher[Outcome, bool] = Batcher(
            partial(self._finish, self._outage), answered=self._count_successes
        )
        # Apart from the others: where such a transaction was left open, the store may wait for its end.
        self._after_completions: Batcher[Outcome, bool] = Batcher(
            partial(self._finish, self._outage_after_completions), answered=self._count_successes
        )
        self._looks: Batcher[str, StoredTask | None] = Batcher(self._look, answered=self._count_successes)
        self._no_progress = Outage(
            _log, f"worker {worker} cannot record progress", f"worker {worker} records progress again"
        )
        self._progress: dict[Lease, Progress] = {}
        self._progress_task: asyncio.Task[None] | None = None
        self._give_up = False
        self._on_empty: asyncio.Future[None] | None = None
        self._metrics = metrics
        if metrics is not None:
            metrics.held = lambda: self.attempts
        self._successes: list[Attempt] = []
        self.completed = 0
        """How many attempts have ended here."""
        self.rejected = 0
        """How many outcomes the store refused because the lease was lost."""
        self._succeeded = plugins.event("omniq_task_succeeded")
        self._failed = plugins.event("omniq_task_failed")
        self._retrying = plugins.event("omniq_task_retrying")
        self._cancelled = plugins.event("omniq_task_cancelled")
        self._released = plugins.event("omniq_task_released")
        self._outcome_refused = plugins.event("omniq_outcome_refused")

    def __len__(self) -> int:
        return len(self._held)

    @property
    def records(self) -> bool:
        """Whether the store takes outcomes, as far as the latest try showed.

        Those of tasks that completed themselves do not count: one transaction that was left open holds up no others.
        """
        return not self._outage.seconds

    @property
    def attempts(self) -> list[Attempt]:
        """Everything held. Callable from any thread."""
        return list(self._held.copy().values())

    def leases(self) -> list[Lease]:
        """Return the leases of everything held. Callable from any thread."""
        return [Lease(*key) for key in self._held.copy()]

    def get(self, lease: Lease) -> Attempt | None:
        """Return the attempt under a lease of which there is news.

        None if there is none, or if it has completed itself: the news that its lease is gone is that of its success.
        """
        attempt = self._held.get((lease.id, lease.delivery))
        return None if attempt is None or attempt.context.completed else attempt

    def add(self, attempt: Attempt) -> None:
        """Take an attempt into custody: from now on its lease is renewed."""
        given = attempt.given
        self._held[given.id, given.delivery] = attempt
        attempt.context.join = self._join

    def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Send an attempt's outcome to the store; the lease is held until the store has answered."""
        self.completed += 1
        if not attempt.ended_at:
            attempt.note_end()
        if type(outcome) is not Succeeded:  # of which nothing is logged, and for which the task is not made
            outcome = _logged(attempt.task, outcome, attempt.held_seconds)
        if attempt.context.completed:
            self._after_completions.put(outcome, self._answered)
        elif attempt.interruption is Interruption.LEASE_LOST and isinstance(outcome, Released):
            self._drop(attempt)
            self._count(attempt, None)
        else:
            self._outcomes.put(outcome, self._answered)

    def refuse(self, task: Task, outcome: Outcome) -> None:
        """Send the outcome of a task that was never held, such as one whose function is unknown."""
        self._outcomes.put(_logged(task, outcome, 0.0), partial(self._refused, task))

    def give_up_waiting(self) -> None:
        """Stop repeating what the store does not answer: the worker must end now."""
        self._give_up = True

    async def drain(self, timeout: float) -> None:
        """Return when every outcome handed over has been answered.

        :param timeout: seconds after which those that have not been are given up.
        """
        until = self._loop.time() + timeout
        for batcher in (self._outcomes, self._after_completions, self._looks):
            await batcher.drain(max(0.0, until - self._loop.time()))
        if self._progress_task is not None:
            self._progress_task.cancel()

    async def _finish(self, outage: Outage, outcomes: Sequence[Outcome]) -> Sequence[bool]:
        failpoint("worker.before-finish")
        answers = await self._patiently(partial(self._storage.finish, outcomes), outage)
        failpoint("worker.after-finish")
        return answers

    async def _look(self, ids: Sequence[str]) -> Sequence[StoredTask | None]:
        return await self._patiently(partial(self._storage.get, ids), self._outage_after_completions)

    async def _patiently(self, call: Callable[[], Awaitable[S]], outage: Outage) -> S:
        pause = 0.05
        while True:
            try:
                answer = await call()
            except StorageUnavailable as error:
                # The work is done, and only its record is missing: worth more patience than anything else here.
                if self._give_up:
                    raise
                outage.failed(error)
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                outage.succeeded()
                return answer

    def _looked(
        self, attempt: Attempt, outcome: Outcome, _: str, record: StoredTask | None, error: BaseException | None
    ) -> None:
        """Tell how an attempt ended whose outcome was refused, by the record of its task."""
        task = attempt.task
        if error is not None:
            self._answered(outcome, None, error)
        elif not attempt.context.completed:
            if record is not None and _stands_in(record, outcome):
                self._answered(outcome, True, None)
            else:
                self._rejected(attempt, outcome)
        elif record is None or (record.state is TaskState.SUCCEEDED and record.delivery == task.delivery):
            # A task that was running a moment ago and is not there has ended, and been removed since.
            self._drop(attempt)
            afterwards = getattr(outcome, "error", None)
            if afterwards is None or afterwards.type != NotCommitted.__name__:
                _task_log.info(
                    "task %s (%s) had completed itself; how it ended afterwards is not recorded: %s",
                    task.id,
                    task.name,
                    afterwards.message if afterwards else type(outcome).__name__,
                    extra=about(task),
                )
            self._tell(attempt, Succeeded(id=task.id, delivery=task.delivery, result=b""))
        else:
            self._rejected(attempt, outcome)

    def _answered(self, outcome: Outcome, accepted: bool | None, error: BaseException | None) -> None:
        attempt = self._held.get((outcome.id, outcome.delivery))
        if attempt is None:
            return  # a worker in haste put it back twice, and the first answer has told how it ended
        if accepted is False:
            # The usual end of a task that completed itself: what it did is committed. Of any other either the lease was
            # lost, or the store's answer to an earlier try, which did record it.
            self._looks.put(outcome.id, partial(self._looked, attempt, outcome))
            return
        self._drop(attempt)
        if error is not None:
            self._count(attempt, None)
            task = attempt.task
            _log.error(
                "the outcome of task %s (%s) could not be recorded; it runs again when its lease has run out: %s",
                task.id,
                task.name,
                error,
                extra=about(task),
            )
        else:
            self._tell(attempt, outcome)

    def _rejected(self, attempt: Attempt, outcome: Outcome) -> None:
        task = attempt.task
        self._drop(attempt)
        self._count(attempt, None)
        self.rejected += 1
        _log.warning(
            "the store rejected the late completion of task %s (%s, delivery %d): its lease was lost",
            task.id,
            task.name,
            task.delivery,
            extra=about(task),
        )
        _call(self._outcome_refused, {"task": task, "worker": self._worker}, outcome=outcome)

    def _refused(self, task: Task, outcome: Outcome, accepted: bool | None, error: BaseException | None) -> None:
        if error is not None:
            _log.error(
                "the outcome of task %s (%s) could not be recorded: %s", task.id, task.name, error, extra=about(task)
            )
        elif accepted and isinstance(outcome, Released):
            if self._metrics is not None:
                self._metrics.count(task, RELEASED)
            self._tell_released({"task": task, "worker": self._worker, "seconds": 0.0}, outcome)
        elif accepted and isinstance(outcome, Failed):
            if self._metrics is not None:
                self._metrics.count(task, FAILED)
            if outcome.error.type != PayloadRejected.__name__:  # which was told when it was found
                _task_log.error(
                    "task %s (%s) failed: %s: %s",
                    task.id,
                    task.name,
                    outcome.error.type,
                    outcome.error.message,
                    extra=about(task),
                )
            _call(self._failed, {"task": task, "worker": self._worker, "seconds": 0.0}, error=outcome.error)

    def _drop(self, attempt: Attempt) -> None:
        self._held.pop((attempt.given.id, attempt.given.delivery), None)
        if not self._held and self._on_empty is not None and not self._on_empty.done():
            self._on_empty.set_result(None)

    async def empty(self) -> None:
        """Return when nothing is held any more."""
        while self._held:
            self._on_empty = self._loop.create_future()
            await self._on_empty

    def _count(self, attempt: Attempt, counter: int | None) -> None:
        if self._metrics is not None:
            self._metrics.count_end(attempt, counter)

    def _count_successes(self) -> None:
        successes, self._successes = self._successes, []
        if successes and self._metrics is not None:
            self._metrics.count_ends(successes, SUCCEEDED)

    def _tell(self, attempt: Attempt, outcome: Outcome) -> None:
        if type(outcome) is Succeeded:
            if self._metrics is not None:
                self._successes.append(attempt)  # counted with the others of its batch
            if self._succeeded is None and not _task_log.isEnabledFor(logging.INFO):
                return  # by far the most frequent end: it costs nothing where no plugin listens
        else:
            self._count(attempt, _COUNTERS.get(type(outcome)))
        task = attempt.task
        if type(outcome) is Succeeded:
            if _task_log.isEnabledFor(logging.INFO):
                _task_log.info(
                    "task %s (%s) succeeded in %.3f s", task.id, task.name, attempt.seconds, extra=about(task)
                )
            if self._succeeded is not None:
                self._succeeded(task=task, worker=self._worker, seconds=attempt.seconds)
            return
        common = {"task": task, "worker": self._worker, "seconds": attempt.seconds}
        match outcome:
            case Failed(error=error):
                _log_failure(task, error, attempt.error)
                _call(self._failed, common, error=error)
            case Retry(error=error, delay=delay) if error is not None:
                _task_log.warning(
                    "task %s (%s) failed in attempt %d of %d, runs again in %.1f s: %s: %s",
                    task.id,
                    task.name,
                    task.attempt,
                    task.max_retries + 1,
                    delay,
                    error.type,
                    error.message,
                    extra=about(task),
                )
                _call(self._retrying, common, error=error, delay=delay)
            case Cancelled():
                _task_log.info("task %s (%s) was cancelled", task.id, task.name, extra=about(task))
                _call(self._cancelled, common)
            case Released():
                self._tell_released(common, outcome)
            case _:
                _say_put_back(task, Released(id=task.id, delivery=task.delivery))

    def _tell_released(self, common: dict[str, Any], outcome: Released) -> None:
        _say_put_back(common["task"], outcome)
        _call(self._released, common, delay=outcome.delay, error=outcome.error)

    # Progress

    def note_progress(self, task: Task, progress: Progress) -> None:
        """Remember the latest word of a task; it is written soon. Callable from any thread."""
        first = not self._progress
        self._progress[Lease(task.id, task.delivery)] = progress
        if first:
            self._loop.call_soon_threadsafe(self._start_progress)

    def _start_progress(self) -> None:
        if self._progress_task is None or self._progress_task.done():
            self._progress_task = self._loop.create_task(self._write_progress())

    async def _write_progress(self) -> None:
        while self._progress:
            updates = {}
            while self._progress:
                lease, progress = self._progress.popitem()
                updates[lease] = progress
            try:
                await self._storage.set_progress(updates)
                self._no_progress.succeeded()
            except Exception as error:  # a missing note of progress must not cost the task
                self._no_progress.failed(error)
            await asyncio.sleep(PROGRESS_EVERY)


def _logged(task: Task, outcome: Outcome, seconds: float) -> Outcome:
    """Return an outcome with the task's attempt log after it; of a success, or a task put back, as it is.

    :param seconds: for how long the worker had the task.
    """
    if not isinstance(outcome, Failed | Retry | Cancelled):
        return outcome
    error = None if isinstance(outcome, Cancelled) else outcome.error
    over = PastAttempt(
        attempt=task.attempt,
        worker=task.worker,
        started_at=task.started_at,
        # By the store's clock, which the claim told, not by this machine's.
        ended_at=None if task.started_at is None else task.started_at + timedelta(seconds=seconds),
        outcome=_CALLED[type(outcome)],
        error=error,
    )
    return evolve(outcome, attempt_log=log_with(task.attempt_log, over))


_COUNTERS = {Failed: FAILED, Retry: RETRIED, Cancelled: CANCELLED, Released: RELEASED}
_CALLED = {Failed: AttemptOutcome.FAILED, Retry: AttemptOutcome.RETRY, Cancelled: AttemptOutcome.CANCELLED}


def _stands_in(record: StoredTask, outcome: Outcome) -> bool:
    """Say whether a record holds what an outcome told: only the holder of a delivery can have told it."""
    if record.delivery != outcome.delivery:
        return False
    match outcome:
        case Succeeded(result=result):
            return record.state is TaskState.SUCCEEDED and record.result_payload == result
        case Failed(error=error):
            return record.state is TaskState.FAILED and record.error == error
        case Retry(error=error):
            # Recovered tasks are ready, too, but with an error of their own.
            return (
                error is not None and record.state in (TaskState.SCHEDULED, TaskState.READY) and record.error == error
            )
        case Cancelled():
            return record.state is TaskState.CANCELLED
    return False


def _log_failure(task: Task, error: TaskError, raised: BaseException | None) -> None:
    """Log that a task has failed for good: with the exception itself, where it was raised in this process."""
    told = (task.id, task.name, error.type, error.message)
    if raised is None or raised.__traceback__ is None:
        _task_log.error("task %s (%s) failed: %s: %s\n%s", *told, Lines(error.traceback), extra=about(task))
    elif _task_log.isEnabledFor(logging.ERROR):
        file, line, function, _ = _task_log.findCaller()
        record = _task_log.makeRecord(
            _task_log.name,
            logging.ERROR,
            file,
            line,
            "task %s (%s) failed: %s: %s",
            told,
            (type(raised), raised, raised.__traceback__),
            function,
            about(task),
        )
        # What a formatter shows of it: as it is stored, without frames of ours, and escaped.
        record.exc_text = printable_lines(error.traceback.rstrip("\n"))
        _task_log.handle(record)


def _say_put_back(task: Task, outcome: Released) -> None:
    if outcome.error is None:
        _task_log.info("task %s (%s) went back to its queue", task.id, task.name, extra=about(task))
        return
    _log.warning(
        "task %s (%s) goes back for %.0f s: %s",
        task.id,
        task.name,
        outcome.delay,
        outcome.error.message,
        extra=about(task),
    )


def _call(event: Callable[..., None] | None, common: dict[str, Any], **more: Any) -> None:
    if event is not None:
        event(**common, **more)
