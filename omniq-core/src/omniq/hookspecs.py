"""The hooks: how a distribution adds storages, serializers, retry policies and triggers, and who is told of events.

A plugin is a module (or object) named by an entry point of group ``omniq`` whose functions carry ``@omniq.hookimpl``::

    # pyproject.toml
    [project.entry-points.omniq]
    mystore = "omniq_mystore.plugin"

    # omniq_mystore/plugin.py
    import omniq

    @omniq.hookimpl
    def omniq_storages():
        return {"mystore": "omniq_mystore.storage:MyStorage"}

The making hooks give names and, for each, the thing itself or ``"module:attribute"``, which is imported only when that
name is used: a plugin module imports nothing heavy. The hooks around something are generators, which run up to their
``yield`` before and from there on afterwards, on the same thread and in the same context. The event hooks are called in
the process where the event happens, on whatever thread or loop that is. Both must be quick. One that raises is logged
and changes nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

import pluggy

from omniq.retry import RetryPolicy
from omniq.schedule import Schedule, Trigger
from omniq.serialization import Serializer
from omniq.storage import Enqueued, StorageFactory
from omniq.task import Ending, NewTask, Outcome, Task, TaskError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AROUND_HOOKS", "EVENT_HOOKS", "hookimpl", "hookspec"]

hookspec = pluggy.HookspecMarker("omniq")
hookimpl = pluggy.HookimplMarker("omniq")


@hookspec
def omniq_storages() -> Mapping[str, StorageFactory | str]:  # type: ignore[empty-body]  # a hookspec has no body
    """Return the URL schemes that this plugin opens: ``{scheme: factory or "module:attribute"}``."""


@hookspec
def omniq_serializers() -> Mapping[str, Serializer | str]:  # type: ignore[empty-body]  # a hookspec has no body
    """Return the serializers that this plugin brings: ``{name: serializer or "module:attribute"}``."""


@hookspec
def omniq_retry_policies() -> Mapping[str, type[RetryPolicy] | str]:  # type: ignore[empty-body]  # a hookspec has no body
    """Return the retry policies that this plugin brings: ``{kind: class or "module:attribute"}``."""


@hookspec
def omniq_triggers() -> Mapping[str, type[Trigger] | str]:  # type: ignore[empty-body]  # a hookspec has no body
    """Return the schedule triggers that this plugin brings: ``{kind: class or "module:attribute"}``."""


@hookspec
def omniq_commands() -> Mapping[str, tuple[object, str]]:  # type: ignore[empty-body]  # a hookspec has no body
    """Return the commands that this plugin adds to ``omniq``: ``{name: (command or "module:attribute", summary)}``.

    A command is a module or an object with two functions: ``configure(parser)`` adds arguments to an
    ``argparse.ArgumentParser``, and ``run(options)`` does the work and returns the exit code.
    """


@hookspec
def omniq_around_task(task: Task, worker: str) -> Generator[None, Ending, None]:  # type: ignore[empty-body]  # likewise
    """Stand around one attempt, where its function runs: on the event loop, the task's thread or in its child process.

    It is entered before the arguments are decoded. Its ``yield`` gives how the attempt ended, before that is recorded.
    In a child process that is killed, by a timeout say, it is not left.
    """


@hookspec
def omniq_around_enqueue(  # type: ignore[empty-body]  # likewise
    tasks: Sequence[NewTask],
) -> Generator[Sequence[Mapping[str, str]] | None, Sequence[Enqueued], None]:
    """Stand around one call that enqueues tasks, in the caller's context; or around the firing of a schedule.

    It yields headers to add, a mapping for each task, or None; its ``yield`` gives what the store answered for each. A
    header that the task has already is kept. Where nothing was stored, the ``yield`` raises why.
    """


@hookspec
def omniq_task_enqueued(task: NewTask) -> None:
    """A task was stored. Called in the producer, after the store acknowledged it."""


@hookspec
def omniq_task_started(task: Task, worker: str) -> None:
    """A worker is about to call the task's function."""


@hookspec
def omniq_task_succeeded(task: Task, worker: str, seconds: float) -> None:
    """A task's function returned and the store accepted its result. ``seconds``: how long the attempt ran."""


@hookspec
def omniq_task_failed(task: Task, worker: str, seconds: float, error: TaskError) -> None:
    """A task failed for good and the store accepted it."""


@hookspec
def omniq_task_retrying(task: Task, worker: str, seconds: float, error: TaskError, delay: float) -> None:
    """An attempt failed; the task runs again in ``delay`` seconds."""


@hookspec
def omniq_task_cancelled(task: Task, worker: str, seconds: float) -> None:
    """A running task was cancelled and stopped."""


@hookspec
def omniq_task_recovered(task: Task, worker: str) -> None:
    """``worker`` took back a task whose own worker was lost; ``task`` as it is now: ready or failed with WorkerLost."""


@hookspec
def omniq_task_rejected(task: Task, worker: str, reason: str) -> None:
    """A worker did not read a task: of a serializer it does not accept, too large, unsigned or altered.

    The task fails with ``PayloadRejected``, and ``omniq_task_failed`` is called as well once the store has that.
    """


@hookspec
def omniq_task_released(task: Task, worker: str, seconds: float, delay: float, error: TaskError | None) -> None:
    """A task went back to its queue, and this attempt does not count: the worker stops, or cannot run it.

    ``delay``: seconds until it is ready again. ``error``: why this worker cannot run it; None if it could.
    """


@hookspec
def omniq_lease_lost(task: Task, worker: str) -> None:
    """A running task is not this worker's any more, such as after an outage: what it still does is not recorded."""


@hookspec
def omniq_outcome_refused(task: Task, worker: str, outcome: Outcome) -> None:
    """The store refused how a task ended, as its lease had been lost: it runs, or has run, elsewhere."""


@hookspec
def omniq_schedule_fired(schedule: Schedule, tasks: Sequence[NewTask], worker: str) -> None:
    """A worker fired a schedule. ``schedule``: as it is afterwards; ``tasks``: those that were stored.

    ``omniq_task_enqueued`` is called for each of them before.
    """


@hookspec
def omniq_schedule_rejected(schedule: Schedule, worker: str, reason: str) -> None:
    """A worker did not fire a schedule that is unsigned or altered. It looks, and tells of it, again in a minute."""


@hookspec
def omniq_worker_started(worker: str, queues: Sequence[str]) -> None:
    """A worker begins to claim tasks."""


@hookspec
def omniq_worker_stopped(worker: str) -> None:
    """A worker has stopped; nothing of it runs any more."""


@hookspec
def omniq_worker_heartbeat(worker: str, seconds: float, error: Exception | None) -> None:
    """A worker has renewed its leases, or could not. Called on a thread of its own, which must not be held up.

    ``seconds``: how long the store took to answer. ``error``: why the heartbeat did not get through; None if it did.
    """


@hookspec
def omniq_action_taken(action: str, targets: Sequence[str], done: int, actor: str | None) -> None:
    """Tasks, a queue or a schedule were acted on through a queue's methods, such as ``cancel``. Called in that process.

    ``action``: the method's name, without the ``a`` of a coroutine; ``targets``: the ids or names that it was given;
    ``done``: for how many things it took effect; ``actor``: who, if that was said with ``omniq.acting_as``.
    """


AROUND_HOOKS = ("omniq_around_task", "omniq_around_enqueue")
EVENT_HOOKS = (
    "omniq_task_enqueued",
    "omniq_task_started",
    "omniq_task_succeeded",
    "omniq_task_failed",
    "omniq_task_retrying",
    "omniq_task_cancelled",
    "omniq_task_recovered",
    "omniq_task_rejected",
    "omniq_task_released",
    "omniq_lease_lost",
    "omniq_outcome_refused",
    "omniq_schedule_fired",
    "omniq_schedule_rejected",
    "omniq_worker_started",
    "omniq_worker_stopped",
    "omniq_worker_heartbeat",
    "omniq_action_taken",
)
