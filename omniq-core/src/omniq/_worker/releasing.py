"""Tasks that this worker cannot run but another may: a newer one knows the function, or takes its arguments.

They are put back, each time with a longer delay, a bounded number of times. The count is kept with the task in the
store, in the text of the error that says why it was put back: what counts is how often a worker could not run the task,
and not how often it was put back for other reasons, such as a worker whose slots were all taken or that stopped.
"""

from __future__ import annotations

import re

from omniq.errors import ArgumentsMismatch, UnknownTask
from omniq.retry import Exponential
from omniq.task import Failed, Released, Task, TaskError

__all__ = ["PUT_BACK_LIMIT", "put_back", "times_put_back"]

PUT_BACK_LIMIT = 20
"""How often such a task is put back before it fails: for about half an hour of deployment."""

_BACKOFF = Exponential(delay=1, factor=2, max_delay=120, jitter=0.1)
_COUNT = re.compile(r"; put back (\d{1,9}) of \d+ times\Z")
_LONGEST_REASON = 2_000

_MENDS = {
    "UnknownTask": "Check that the worker imports the module that declares it, then retry the task",
    "ArgumentsMismatch": "Bring the worker and the program that enqueued the task to one version, then retry the task",
}


def times_put_back(error: TaskError | None) -> int:
    """Return how often a task was put back because its worker could not run it.

    :param error: the task's error, which holds the count.
    """
    found = None if error is None else _COUNT.search(error.message)
    return int(found[1]) if found else 0


def put_back(task: Task, error: UnknownTask | ArgumentsMismatch) -> Released | Failed:
    """Return the outcome of a task that this worker cannot run.

    :param task: as claimed: its error holds the count.
    :param error: why not.
    :return: back to its queue, with a delay, and the count in its error; or failure if that was done often enough.
    """
    kind = type(error).__name__
    reason = str(error).encode("utf-8", "backslashreplace").decode()
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[:_LONGEST_REASON]}…"
    count = times_put_back(task.error)
    if count >= PUT_BACK_LIMIT:
        # Not in the words of a count: a task that is retried starts anew.
        message = f"{reason}; the task went back {count} times. {_MENDS[kind]}"
        return Failed(id=task.id, delivery=task.delivery, error=TaskError(type=kind, message=message))
    return Released(
        id=task.id,
        delivery=task.delivery,
        delay=_BACKOFF.next_delay(count + 1, error),
        error=TaskError(type=kind, message=f"{reason}; put back {count + 1} of {PUT_BACK_LIMIT} times"),
    )
