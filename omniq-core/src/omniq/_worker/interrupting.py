"""How a worker lets go of tasks: those that it has not started, those that it is told to stop, and all at its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping

from omniq._tasks.definitions import Executor
from omniq._worker.attempt import Attempt, Interruption, about
from omniq._worker.completer import Completer
from omniq._worker.executors import TaskExecutor
from omniq.storage import Lease, LeaseState
from omniq.storage.escaping import get_logger
from omniq.task import Released

__all__ = ["Interrupter"]

_log = get_logger("omniq.worker")


class Interrupter:
    """Puts back what waits, and interrupts what runs. Belongs to the worker's loop.

    :param completer: what the worker holds.
    :param executors: where it runs, or waits for a slot.
    :param on_lost: told of each attempt whose lease was lost.
    """

    def __init__(
        self,
        completer: Completer,
        executors: Mapping[Executor, TaskExecutor],
        on_lost: Callable[[Attempt], None],
    ) -> None:
        self._completer = completer
        self._executors = executors
        self._on_lost = on_lost

    def put_back(self, waited: float = 0.0) -> None:
        """Put back what has not been started.

        :param waited: only what has waited for longer than this many seconds.
        """
        for executor in self._executors.values():
            for attempt in executor.take_back(waited=waited):
                self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        self._completer.settle(attempt, Released(id=attempt.given.id, delivery=attempt.given.delivery))

    def heed(self, news: Iterable[tuple[Lease, LeaseState]]) -> None:
        """Act on what the store has said of leases: stop attempts whose task was cancelled, or whose lease is lost."""
        for lease, state in news:
            attempt = self._completer.get(lease)
            if attempt is None or attempt.settled:
                continue  # it has ended, and its outcome is on the way, or was the reason for the news
            if state is LeaseState.CANCEL_REQUESTED:
                attempt.interrupt(Interruption.CANCEL)
            elif attempt.interruption is not Interruption.LEASE_LOST:
                _log.warning(
                    "the lease of task %s (%s) was lost; what it still does here will not be recorded",
                    attempt.task.id,
                    attempt.task.name,
                    extra=about(attempt.task),
                )
                self._lose(attempt)

    def _lose(self, attempt: Attempt) -> None:
        attempt.interrupt(Interruption.LEASE_LOST)
        self._on_lost(attempt)

    def abandon_all(self) -> None:
        """Abandon everything that still runs, as its leases are about to run out."""
        # Of those that have ended the outcome is on its way, and may yet be the first to arrive.
        attempts = [attempt for attempt in self._completer.attempts if not attempt.settled]
        if attempts:
            _log.error("no heartbeat has got through; giving up %d tasks before their leases run out", len(attempts))
        for attempt in attempts:
            self._lose(attempt)

    async def interrupt_all(self, patience: float) -> None:
        """Interrupt everything that still runs, and put it back.

        :param patience: seconds that interrupted coroutines get to clean up.
        """
        left = [attempt for attempt in self._completer.attempts if not attempt.settled]
        if left:
            _log.warning("%d tasks did not end in time; they are interrupted and go back to their queues", len(left))
        for attempt in left:
            attempt.interrupt(Interruption.SHUTDOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._completer.empty()
        for attempt in self._completer.attempts:
            # What does not even heed its interruption goes back all the same; its lease would only keep others waiting.
            if not attempt.settled:
                attempt.settled = True
                self._release(attempt)
        for executor in self._executors.values():
            executor.disown()
