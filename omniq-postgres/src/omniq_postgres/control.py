"""Cancel, retry, run now, delete, purge, pause, resume: what people do to tasks and queues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omniq.task import TaskState
from omniq_postgres import binary_params
from omniq_postgres.encoding import (
    CANCELLED,
    FAILED,
    KEPT_OF_KEY,
    LONGEST_KEY,
    NUMBER_OF,
    READY,
    SCHEDULED,
    SUCCEEDED,
)
from omniq_postgres.operations import Context, Steps

__all__ = ["cancel", "delete", "last", "pause", "purge_step", "resume", "retry", "run_now"]

PURGED = 2000
"""Tasks removed in one transaction, so that none is long."""


def cancel(ids: Sequence[str], context: Context) -> Steps[tuple[list[bool], list[str]]]:
    """Cancel tasks; see :meth:`~omniq.storage.Storage.cancel`.

    :return: for each whether it was live; and those that another transaction has locked, which are to be tried again.
    """
    rows = yield context.query("control.cancel", binary_params.uuids(list(dict.fromkeys(ids))))
    ran: dict[str, bool | None] = dict(rows)
    results = []
    for task_id in ids:
        results.append(task_id in ran)
        if ran.get(task_id) is False:
            # Named twice: by the second time it has ended.
            context.news.ended.append(task_id)
            del ran[task_id]
    return results, [task_id for task_id, was_running in ran.items() if was_running is None]


def retry(ids: Sequence[str], context: Context) -> Steps[list[bool]]:
    """Make ended tasks ready; see :meth:`~omniq.storage.Storage.retry`."""
    rows = yield context.query(
        "control.retry",
        binary_params.uuids(list(dict.fromkeys(ids))),
        binary_params.integer(LONGEST_KEY),
        binary_params.integer(KEPT_OF_KEY),
    )
    return _made_ready(rows, ids, context)


def run_now(ids: Sequence[str], context: Context) -> Steps[list[bool]]:
    """Make scheduled tasks ready; see :meth:`~omniq.storage.Storage.run_now`."""
    rows = yield context.query("control.run_now", binary_params.uuids(list(dict.fromkeys(ids))))
    return _made_ready(rows, ids, context)


def _made_ready(rows: Iterable[tuple[str, str]], ids: Sequence[str], context: Context) -> list[bool]:
    ready = {}
    for task_id, queue in rows:
        ready[task_id] = queue
        context.news.ready(queue)
    return [ready.pop(task_id, None) is not None for task_id in ids]


def delete(ids: Sequence[str], context: Context) -> Steps[list[bool]]:
    """Remove tasks; see :meth:`~omniq.storage.Storage.delete`."""
    rows = yield context.query("control.delete", binary_params.uuids(sorted(set(ids))))
    gone = {row[0] for row in rows}
    context.news.ended += gone
    results = []
    for task_id in ids:
        results.append(task_id in gone)
        gone.discard(task_id)
    return results


def last(context: Context) -> Steps[int]:
    """Return the number of the latest task."""
    ((number,),) = yield context.query("control.last")
    return int(number)


def purge_step(queue: str, state: TaskState | None, until: int, context: Context) -> Steps[int]:
    """Remove some tasks of a queue that are not running; see :meth:`~omniq.storage.Storage.purge`.

    :param until: the latest task to remove, so that the end is reached though others be enqueued meanwhile.
    :return: how many; 0: there are no more.
    """
    # What is due is ready, though nobody has made it so yet.
    yield context.query("claim.promote", binary_params.texts([queue]), binary_params.integer(PURGED))
    doomed: list[str] = []
    for number in range(SCHEDULED, CANCELLED + 1) if state is None else [NUMBER_OF[state]]:
        room = PURGED - len(doomed)
        if room <= 0 or number not in (SCHEDULED, READY, SUCCEEDED, FAILED, CANCELLED):
            continue
        name = "waiting" if number in (SCHEDULED, READY) else "ended"
        rows = yield context.query(
            f"control.doomed_{name}",
            binary_params.text(queue),
            binary_params.integer(number),
            binary_params.bigint(until),
            binary_params.integer(room),
            prepare=False,
        )
        doomed += [row[0] for row in rows]
    if not doomed:
        return 0
    return sum((yield from delete(doomed, context)))


def pause(queue: str, context: Context) -> Steps[bool]:
    """Pause a queue; see :meth:`~omniq.storage.Storage.pause`."""
    return bool((yield context.query("control.pause", binary_params.text(queue))))


def resume(queue: str, context: Context) -> Steps[bool]:
    """Resume a queue; see :meth:`~omniq.storage.Storage.resume`."""
    resumed = bool((yield context.query("control.resume", binary_params.text(queue))))
    if resumed:
        context.news.ready(queue)
    return resumed
