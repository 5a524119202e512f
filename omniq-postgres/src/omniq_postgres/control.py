"""Cancel, retry, run now, delete, purge, pause, resume: what people do to tasks and queues."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from omniq.task import TaskState
from omniq_postgres import binary_params
from omniq_postgres.encoding import KEPT_OF_KEY, LINED, LONGEST_KEY, NUMBER_OF, READY, RUNNING, STATE_OF
from omniq_postgres.flow_tx import count_ends_of
from omniq_postgres.limits import advance
from omniq_postgres.operations import Context, Steps

__all__ = ["cancel", "delete", "doomed", "last", "pause", "resume", "retry", "run_now"]

PURGED = 2000
"""Tasks removed in one transaction, so that none is long."""


def cancel(ids: Sequence[str], context: Context) -> Steps[tuple[list[bool], list[str]]]:
    """Cancel tasks; see :meth:`~omniq.storage.Storage.cancel`.

    :return: for each whether it was live; and those that another transaction has locked, which are to be tried again.
    """
    rows = yield context.query("control.cancel", binary_params.uuids(list(dict.fromkeys(ids))))
    ran: dict[str, bool | None] = {task_id: was_running for task_id, was_running, _ in rows}
    flows = {flow for _, was_running, flow in rows if was_running is False and flow is not None}
    results = []
    for task_id in ids:
        results.append(task_id in ran)
        if ran.get(task_id) is False:
            # Named twice: by the second time it has ended.
            context.news.ended.append(task_id)
            del ran[task_id]
    yield from count_ends_of(flows, context)
    return results, [task_id for task_id, was_running in ran.items() if was_running is None]


def retry(ids: Sequence[str], context: Context) -> Steps[tuple[set[str], Mapping[str, str]]]:
    """Make ended tasks ready; see :meth:`~omniq.storage.Storage.retry`.

    :return: those that were made ready; and those of flows with their flows, which is to be done by
        :func:`omniq_postgres.flows.retry`.
    """
    rows = yield context.query(
        "control.retry",
        binary_params.uuids(list(dict.fromkeys(ids))),
        binary_params.integer(LONGEST_KEY),
        binary_params.integer(KEPT_OF_KEY),
    )
    for _, queue, _ in rows:
        if queue is not None:
            context.news.ready(queue)
    return _apart((task_id, flow) for task_id, _, flow in rows)


def _apart(rows: Iterable[tuple[str, str | None]]) -> tuple[set[str], dict[str, str]]:
    """Tell those that are of no flow from those that are of one."""
    plain: set[str] = set()
    members = {}
    for task_id, flow in rows:
        if flow is None:
            plain.add(task_id)
        else:
            members[task_id] = flow
    return plain, members


def run_now(ids: Sequence[str], context: Context) -> Steps[list[bool]]:
    """Make scheduled tasks ready; see :meth:`~omniq.storage.Storage.run_now`."""
    ready = {}
    for task_id, queue in (yield context.query("control.run_now", binary_params.uuids(list(dict.fromkeys(ids))))):
        ready[task_id] = queue
        context.news.ready(queue)
    return [ready.pop(task_id, None) is not None for task_id in ids]


def delete(ids: Sequence[str], context: Context) -> Steps[tuple[set[str], Mapping[str, str]]]:
    """Remove tasks; see :meth:`~omniq.storage.Storage.delete`.

    :return: as :func:`retry`; the rest is for :func:`omniq_postgres.flows.delete`.
    """
    gone, members = _apart((yield context.query("control.delete", binary_params.uuids(sorted(set(ids))))))
    context.news.ended += gone
    return gone, members


def last(context: Context) -> Steps[int]:
    """Return the number of the latest task."""
    ((number,),) = yield context.query("control.last")
    return int(number)


def doomed(queue: str, state: TaskState | None, until: int, context: Context) -> Steps[list[str]]:
    """Return some tasks of a queue that are not running; see :meth:`~omniq.storage.Storage.purge`.

    :param until: the latest task to remove, so that the end is reached though others be enqueued meanwhile.
    """
    # What is due is ready, though its record does not say so yet.
    lined = yield context.query("claim.promote", binary_params.texts([queue]), binary_params.integer(PURGED))
    yield from advance((row[0] for row in lined), context)
    found: list[str] = []
    numbers = list(STATE_OF) if state is None else [NUMBER_OF[state]]
    for number in [*numbers, LINED] if READY in numbers else numbers:
        room = PURGED - len(found)
        if room <= 0 or number == RUNNING:
            continue
        rows = yield context.query(
            f"control.doomed_{'waiting' if number < RUNNING else 'ended'}",
            binary_params.text(queue),
            binary_params.integer(number),
            binary_params.bigint(until),
            binary_params.integer(room),
            prepare=False,
        )
        found += [row[0] for row in rows]
    return found


def pause(queue: str, context: Context) -> Steps[bool]:
    """Pause a queue; see :meth:`~omniq.storage.Storage.pause`."""
    return bool((yield context.query("control.pause", binary_params.text(queue))))


def resume(queue: str, context: Context) -> Steps[bool]:
    """Resume a queue; see :meth:`~omniq.storage.Storage.resume`."""
    resumed = bool((yield context.query("control.resume", binary_params.text(queue))))
    if resumed:
        context.news.ready(queue)
    return resumed
