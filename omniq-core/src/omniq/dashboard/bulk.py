"""Actions on many tasks: what would be done, doing it step by step, and stopping it."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import define, field, frozen

from omniq._client.audit import acting_as
from omniq._client.queue import TaskQueue
from omniq._client.selection import CANCEL, DELETE, RETRY, RUN_NOW, Action, Selection, Step
from omniq.dashboard.access import Permission
from omniq.task import TaskState

__all__ = ["VERBS", "Bulk", "Job", "Verb"]

MOST_JOBS = 50
"""Of those that have ended, so many are remembered."""
TYPED_ABOVE = 1000
"""Of more tasks than this the number has to be typed."""


@frozen
class Verb:
    """Something that can be done to many tasks."""

    name: str
    """In addresses."""
    label: str
    past: str
    permission: Permission
    action: Action
    """In which states it can be done, and in which it is done where none was chosen."""
    steps: Callable[[Selection], AsyncIterator[Step]]

    @property
    def states(self) -> frozenset[TaskState]:
        """Those in which it can be done."""
        return self.action.states

    def chosen(self, states: frozenset[TaskState] | None) -> frozenset[TaskState]:
        """Return the states in which it is done."""
        return self.action.default if states is None else states & self.states


VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("cancel", "Cancel", "cancelled", Permission.CANCEL, CANCEL, Selection.acancel),
        Verb("retry", "Retry", "made ready again", Permission.RETRY, RETRY, Selection.aretry),
        Verb("run-now", "Run now", "made ready", Permission.RETRY, RUN_NOW, Selection.arun_now),
        Verb("delete", "Delete", "deleted", Permission.DELETE, DELETE, Selection.adelete),
        Verb("purge", "Purge", "removed", Permission.PURGE, DELETE, Selection.adelete),
    )
}


@define(eq=False)
class Job:
    """An action under way, or over."""

    id: str
    verb: Verb
    actor: str
    filters: str
    """Which tasks, in words."""
    expected: int
    began: datetime
    back: str
    """The page that it was started from."""
    done: int = 0
    skipped: int = 0
    by_state: Counter[TaskState] = field(factory=Counter)
    is_over: bool = False
    stopped: bool = False
    error: str = ""


class Bulk:
    """The actions of this process.

    :param queue: whose tasks.
    :param on_end: called when one is over.
    """

    def __init__(self, queue: TaskQueue, on_end: Callable[[Job], None]) -> None:
        self._queue = queue
        self._on_end = on_end
        self._jobs: dict[str, Job] = {}
        self._running: set[asyncio.Task[None]] = set()

    def get(self, job_id: str) -> Job | None:
        """Return an action; None if this process does not know it."""
        return self._jobs.get(job_id)

    def jobs(self) -> Sequence[Job]:
        """Return all that are known, the latest first."""
        return list(self._jobs.values())[::-1]

    def start(self, verb: Verb, selected: Mapping[str, Any], **fields: Any) -> Job:
        """Start an action, which goes on in the background.

        :param selected: the arguments of :meth:`.TaskQueue.select`.
        :param fields: of the :class:`Job`.
        """
        job = Job(id=secrets.token_hex(8), verb=verb, **fields)
        self._jobs[job.id] = job
        for old in [one for one in self._jobs.values() if one.is_over][:-MOST_JOBS]:
            del self._jobs[old.id]
        running = asyncio.create_task(self._run(job, self._queue.select(**selected)))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return job

    async def _run(self, job: Job, selection: Selection) -> None:
        try:
            with acting_as(job.actor):
                async for step in job.verb.steps(selection):
                    job.done += step.done
                    job.skipped += step.skipped
                    job.by_state.update(step.by_state)
                    if job.stopped:
                        break
        except Exception as error:  # of the store; what was done until then stays done, and is shown
            job.error = f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            job.stopped = True
            raise
        finally:
            job.is_over = True
            self._on_end(job)
