"""What every worker does for the store now and then: take back what dead workers held, drop what is past its time."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable

from omniq._worker.attempt import about
from omniq._worker.metrics import RECOVERED, Metrics
from omniq.errors import StorageError
from omniq.plugins import Plugins
from omniq.storage import Storage
from omniq.storage.body import as_task
from omniq.storage.escaping import get_logger
from omniq.storage.outages import Outage
from omniq.task import TaskState

__all__ = ["Maintenance"]

_log = get_logger("omniq.worker")

STEP = 200
"""Tasks recovered or pruned in one call, so that each stays short."""
PRUNE_EVERY = 60.0
"""Seconds between two rounds of pruning."""
RECORD_FIRST = 6.0
"""Seconds after an interruption before tasks are taken back: longer than any worker pauses that has outcomes to record
(``completer.LONGEST_PAUSE``)."""


class Maintenance:
    """Recovers and prunes.

    :param storage: the worker's open storage.
    :param worker: the worker's id.
    :param plugins: whose event hooks are told.
    :param metrics: counts what was taken back; None: nothing does.
    :param every: seconds between two looks for tasks whose worker died, give or take a quarter.
    :param on_loss: called when the store has lost what it held.
    """

    def __init__(
        self,
        storage: Storage,
        worker: str,
        plugins: Plugins,
        metrics: Metrics | None = None,
        *,
        every: float,
        on_loss: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._storage = storage
        self._worker = worker
        self._metrics = metrics
        self._every = every
        self._on_loss = on_loss
        self._losses = storage.losses
        self._outage = Outage(
            _log,
            f"worker {worker} cannot look for tasks of dead workers",
            f"worker {worker} looks for tasks of dead workers again",
        )
        self._recovered = plugins.event("omniq_task_recovered")
        self._not_before = 0.0

    def note_heartbeats(self, through: bool) -> None:
        """Take back no task while heartbeats do not get through, nor right after that.

        What other workers hold was cut off from the store, too: what has ended meanwhile is recorded first, although
        its lease has run out.
        """
        if not through:
            self._not_before = math.inf
        elif self._not_before == math.inf:
            self._not_before = asyncio.get_running_loop().time() + RECORD_FIRST

    async def run(self) -> None:
        """Go on until cancelled."""
        loop = asyncio.get_running_loop()
        prune_at = loop.time() + PRUNE_EVERY * random.random()
        while True:
            try:
                if loop.time() >= self._not_before:
                    await self.recover()
                await self._see_to_losses()
                if loop.time() >= prune_at:
                    await self.prune()
                    prune_at = loop.time() + PRUNE_EVERY
                self._outage.succeeded()
            except StorageError as error:
                self._outage.failed(error)
            # Not in step with the other workers, who look for the same tasks.
            await asyncio.sleep(self._every * random.uniform(0.75, 1.25))

    async def _see_to_losses(self) -> None:
        losses = self._storage.losses
        if losses != self._losses and self._on_loss is not None:
            await self._on_loss()
        self._losses = losses

    async def recover(self) -> None:
        """Take back every task whose lease has run out."""
        while True:
            tasks = await self._storage.recover(STEP)
            for task in tasks:
                fate = "runs again" if task.state is TaskState.READY else f"ends as {task.state}"
                _log.warning(
                    "task %s (%s) was lost by worker %s in attempt %d of %d and %s",
                    task.id,
                    task.name,
                    task.worker,
                    task.attempt,
                    task.max_retries + 1,
                    fate,
                    extra=about(task),
                )
                if self._metrics is not None:
                    self._metrics.count(task, RECOVERED)
                if self._recovered is not None:
                    self._recovered(task=as_task(task), worker=self._worker)
            if len(tasks) < STEP:
                return

    async def prune(self) -> None:
        """Remove every ended task whose time is over."""
        removed = STEP
        while removed >= STEP:
            removed = await self._storage.prune(STEP)
