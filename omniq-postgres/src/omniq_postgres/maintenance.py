"""Recover, prune and fold: what dead workers left, results that are past their time, and counters to be summed up."""

from __future__ import annotations

from omniq.errors import CorruptRecord
from omniq.storage.attempts import LONGEST_LOG
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.task import StoredTask
from omniq_postgres import binary_params
from omniq_postgres.claiming import expire
from omniq_postgres.dead_tuples import Age
from omniq_postgres.encoding import task_of
from omniq_postgres.flow_tx import count_ends_of
from omniq_postgres.flows import SETTLED, settle
from omniq_postgres.flows import prune as prune_flows
from omniq_postgres.limit_tasks import SOON
from omniq_postgres.limits import advance
from omniq_postgres.limits import prune as prune_limits
from omniq_postgres.operations import Context, Steps

__all__ = ["FOLDED", "fold", "prune", "recover"]

_log = get_logger("omniq.postgres")

FOREVER = 1e10
"""Seconds."""
FOLDED = 5000
"""So many changes of the counters are summed up in one step."""


def recover(limit: int, reached: Age, context: Context) -> Steps[list[StoredTask]]:
    """Take back tasks; see :meth:`~omniq.storage.Storage.recover`.

    :param reached: how far this storage's recoveries have come.
    """
    age = reached.begin()
    most, longest = binary_params.integer(limit), binary_params.integer(LONGEST_LOG)
    rows = yield context.query("maintenance.recover", most, binary_params.float8(min(age, FOREVER)), longest)
    # Each row begins with whether there are tasks that expired, whether there are leases that are none, whether gates
    # have opened or broken, and how long ago the latest of the leases ran out.
    expired, astray, gates, youngest = rows[0][:4]
    reached.end(age, youngest)
    if astray:
        yield context.query("maintenance.astray")
        more = yield context.query("maintenance.recover", most, binary_params.float8(FOREVER), longest)
        rows = [*rows, *more]
    tasks = []
    for row in rows:
        try:
            if row[4] is not None:
                tasks.append(task_of(row[4:]))
        except CorruptRecord as problem:
            log_once(_log, problem)  # it has ended, or does so when it is claimed
    for task in tasks:
        # What has ended has freed a slot, of which only a look can tell whether it is waited for.
        context.news.ready(task.queue, 0.0 if task.finished_at is None else SOON)
        if task.finished_at is not None:
            context.news.ended.append(task.id)
    yield from advance({task.queue for task in tasks if task.limited is not None}, context)
    yield from count_ends_of({task.flow for task in tasks if task.flow and task.finished_at}, context)
    if expired and len(tasks) < limit:
        yield from expire(limit - len(tasks), context)
    if gates:
        yield from settle(SETTLED, context)
    return tasks


def prune(limit: int, reached: Age, context: Context) -> Steps[int]:
    """Remove what is over; see :meth:`~omniq.storage.Storage.prune`.

    :param reached: how far this storage's prunes have come.
    """
    age = reached.begin()
    rows = yield context.query(
        "maintenance.prune", binary_params.integer(limit), binary_params.float8(min(age, FOREVER))
    )
    reached.end(age, min((row[1] for row in rows), default=None))
    context.news.ended += [row[0] for row in rows]
    removed = len(rows) + (yield from prune_flows(limit - len(rows), context))
    yield from prune_limits(context)
    yield context.query("maintenance.dead_workers")
    yield from fold(context)
    yield context.query("maintenance.empty_counters")
    return removed


def fold(context: Context) -> Steps[int]:
    """Sum up changes of the counters.

    :return: how many changes.
    """
    ((number,),) = yield context.query("maintenance.fold", binary_params.integer(FOLDED))
    return int(number)
