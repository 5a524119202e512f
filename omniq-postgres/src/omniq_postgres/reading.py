"""Records, pages, counts and workers: everything that is read and nothing that is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from omniq.errors import CorruptRecord
from omniq.storage import QueueStats, StoredWorker, TaskPage, TaskQuery
from omniq.storage.corrupt_records import corrupt, log_once
from omniq.storage.escaping import get_logger
from omniq.storage.paging import CLOCK_SLACK, slackened
from omniq.storage.validation import UNREADABLE, check_worker
from omniq.task import StoredTask, TaskState
from omniq_postgres import binary_params
from omniq_postgres.encoding import LINED, NUMBER_OF, READY, RUNNING, STATE_OF, SUCCEEDED, bare_task, make_task
from omniq_postgres.operations import Context, Rows, Steps

__all__ = ["check", "get", "list_tasks", "namespaces", "now", "stats", "workers"]

MOST = 10**15
"""Tasks."""
NO_FLOW = "00000000-0000-0000-0000-000000000000"
"""In place of what cannot be the id of a flow."""

_log = get_logger("omniq.postgres")


def now(context: Context) -> Steps[datetime]:
    """Return the server's clock."""
    ((moment,),) = yield context.query("reading.now")
    assert isinstance(moment, datetime)
    return moment


def get(ids: Sequence[str], context: Context) -> Steps[list[StoredTask | None]]:
    """Return records; see :meth:`~omniq.storage.Storage.get`."""
    rows = yield context.query("reading.by_id", binary_params.uuids(list(dict.fromkeys(ids))))
    found = {row[0]: make_task(row) for row in rows}
    return [found.get(task_id) for task_id in ids]


def list_tasks(query: TaskQuery, before: int, context: Context) -> Steps[TaskPage[StoredTask]]:
    """Return a page; see :meth:`~omniq.storage.Storage.list_tasks`.

    :param before: the number of the last task of the page before.
    """
    lowest, stopped = 0, None
    if query.enqueued_after is not None:
        lowest = yield from _seq_of(slackened(query.enqueued_after, -CLOCK_SLACK), context)
    if query.enqueued_before is not None:
        before = min(before, (yield from _seq_of(slackened(query.enqueued_before, CLOCK_SLACK), context)))
    if query.look_at is not None:
        looked = yield from _looked_at(query, before, lowest, query.look_at + 1, context)
        if len(looked) > query.look_at:
            lowest = stopped = looked[query.look_at - 1]
    rows = yield from _latest(query, before, lowest, context)
    shown = rows[: query.limit]
    following = shown[-1][-1] if len(rows) > len(shown) > 0 else stopped
    tasks = tuple(map(bare_task if query.bare else make_task, shown))
    return TaskPage(tasks, None if following is None else str(following))


def _latest(query: TaskQuery, before: int, lowest: int, context: Context) -> Steps[Rows]:
    """Return the rows of a page, and one more where there is."""
    suffix = "_bare" if query.bare else ""
    limit = binary_params.bigint(query.limit + 1)
    since, until = query.enqueued_after, query.enqueued_before
    given = [
        binary_params.bigint(before),
        None if query.name is None else binary_params.text(query.name),
        None if query.tag is None else binary_params.text(query.tag),
    ]
    bounds = [
        binary_params.bigint(lowest),
        None if since is None else binary_params.timestamp(since),
        None if until is None else binary_params.timestamp(until),
    ]
    if query.queue is None and query.states is None and query.flow is None:
        if query.name is None and query.tag is None and since is None and until is None:
            return (yield context.query(f"reading.latest{suffix}", given[0], limit, bounds[0]))
        # Which index is the best depends on how rare what is asked for is.
        return (yield context.query(f"reading.list{suffix}", *given, limit, *bounds, prepare=False))
    given += [None if query.queue is None else binary_params.text(query.queue), limit]
    # Queue by queue and state by state: what is rare among many others is found by its index.
    rows: dict[int, tuple[Any, ...]] = {}
    for number in _numbers(query):
        statement = "reading.list_ended" if number >= SUCCEEDED else "reading.list_live"
        if number == RUNNING:
            statement = "reading.list_running"
        state = binary_params.integer(number)
        found = yield context.query(f"{statement}{suffix}", *given, state, *bounds, _flow_of(query), prepare=False)
        # One that has moved on between two of the queries is shown once.
        rows |= {int(row[-1]): row for row in found}
    return [rows[seq] for seq in sorted(rows, reverse=True)]


def _looked_at(query: TaskQuery, before: int, lowest: int, limit: int, context: Context) -> Steps[list[int]]:
    """Return the places of the latest tasks that are looked at for a page."""
    given = [binary_params.bigint(number) for number in (before, lowest, limit)]
    if query.queue is None and query.states is None and query.flow is None:
        rows = yield context.query("reading.looked_all", *given)
        return [int(seq) for (seq,) in rows]
    queue = None if query.queue is None else binary_params.text(query.queue)
    found: list[int] = []
    for number in _numbers(query):
        statement = "reading.looked_ended" if number >= SUCCEEDED else "reading.looked_live"
        state = binary_params.integer(number)
        rows = yield context.query(statement, *given, queue, state, _flow_of(query), prepare=False)
        found += [int(seq) for (seq,) in rows]
    return sorted(found, reverse=True)[:limit]


def _flow_of(query: TaskQuery) -> binary_params.Parameter | None:
    return None if query.flow is None else binary_params.uuid(query.flow) or binary_params.uuid(NO_FLOW)


def _numbers(query: TaskQuery) -> Sequence[int]:
    numbers = list(STATE_OF) if query.states is None else [NUMBER_OF[state] for state in query.states]
    return [*numbers, LINED] if READY in numbers else numbers


def _seq_of(moment: datetime, context: Context) -> Steps[int]:
    """Return the place from which on tasks were enqueued at a time or later, as far as the clock was not put back."""
    ((last,),) = yield context.query("reading.last_seq")
    low, high = 0, int(last) + 1
    while low < high:
        middle = (low + high) // 2
        rows = yield context.query("reading.first_at", binary_params.bigint(middle), binary_params.timestamp(moment))
        if rows and rows[0][0]:
            low = middle + 1
        else:
            high = middle
    return low


def stats(context: Context) -> Steps[list[QueueStats]]:
    """Count tasks; see :meth:`~omniq.storage.Storage.stats`."""
    rows = yield context.query("reading.stats")
    result = []
    for queue, *numbers, paused, oldest in sorted(rows, key=lambda row: str(row[0])):
        # A sum of what many append at once; it is never below nothing for longer than a moment. What no store can hold
        # is no count.
        counts = dict.fromkeys(TaskState, 0) | {
            STATE_OF[state]: number if 0 < number < MOST else 0 for state, number in enumerate(numbers)
        }
        if paused or any(counts.values()):
            waited = None if oldest is None or not counts[TaskState.READY] else max(0.0, oldest)
            result.append(QueueStats(queue=queue, counts=counts, paused=paused, oldest_ready=waited))
    return result


def namespaces(context: Context) -> Steps[list[str]]:
    """Return the namespaces; see :meth:`~omniq.storage.Storage.namespaces`."""
    rows = yield context.query("reading.namespaces")
    return [str(row[0]) for row in rows]


def workers(context: Context) -> Steps[list[StoredWorker]]:
    """Return the workers; see :meth:`~omniq.storage.Storage.workers`."""
    readable = []
    for worker in _workers((yield context.query("reading.workers"))):
        if isinstance(worker, CorruptRecord):
            log_once(_log, worker)
        else:
            readable.append(worker)
    return readable


def _workers(rows: Rows) -> Iterator[StoredWorker | CorruptRecord]:
    for worker, seen_at, running, about in rows:
        try:
            yield check_worker(StoredWorker(id=worker, seen_at=seen_at, running=tuple(running), about=about))
        except UNREADABLE as error:
            yield corrupt("worker", worker, error)


def check(context: Context) -> Steps[list[CorruptRecord]]:
    """Return what is wrong with workers and counters, see :meth:`~omniq.storage.Storage.check`."""
    workers = _workers((yield context.query("reading.workers")))
    found = [worker for worker in workers if isinstance(worker, CorruptRecord)]
    for queue, *numbers, _, _ in (yield context.query("reading.stats")):
        for state, number in enumerate(numbers):
            if abs(number) >= MOST:
                found.append(corrupt("queue", queue, f"{number} tasks are counted as {STATE_OF[state]}"))
    return found
