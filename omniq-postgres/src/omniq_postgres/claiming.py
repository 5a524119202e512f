"""Claim: ready tasks into running ones, under a lease."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from attrs import evolve, frozen

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt_error
from omniq.storage.escaping import get_logger
from omniq.task import Failed, Outcome, StoredTask
from omniq_postgres import binary_params, limits
from omniq_postgres.dead_tuples import Frontier
from omniq_postgres.encoding import claimed_task
from omniq_postgres.finishing import finish
from omniq_postgres.flow_tx import count_ends_of
from omniq_postgres.flows import SETTLED, settle
from omniq_postgres.operations import Context, Query, Rows, Steps

__all__ = ["Claim", "claim", "expire"]

_log = get_logger("omniq.postgres")

PROMOTED = 1000
"""So many tasks of each queue that are due are made ready in one claim, or twice as many as are asked for."""
EXPIRED = 1000
"""So many tasks that expired are ended in one step."""
EXPIRED_STEPS = 10

GATES, LANES = 2, 4
"""What the statement says where gates have opened or broken, and where a queue has a limit or lines."""

SLOW, SLOW_EACH = 0.01, 0.0001
"""Seconds, and seconds for each task: a claim that takes longer may have to step over many dead rows."""
MANY_DEAD = 20_000
"""Dead rows."""
ASK_EVERY = 1.0
"""Seconds between questions whether there are so many."""
PINNED_FOR = 10.0
"""Seconds for which they are taken to be there."""


@frozen(kw_only=True)
class Claim:
    """What a worker asks for."""

    demand: Mapping[str, int]
    worker: str
    lease: float
    limit: int


def claim(asked: Claim, frontier: Frontier, context: Context) -> Steps[list[StoredTask]]:
    """Claim tasks; see :meth:`~omniq.storage.Storage.claim`."""
    tasks: list[StoredTask] = []
    if frontier.may_claim_on():
        rows = yield from _claim_onward(asked, frontier, tasks, context)
        frontier.found_nothing = not rows and not tasks
    else:
        began = time.monotonic()
        statement = "claim.settling" if frontier.looks_at_flows() else "claim.claim"
        rows = yield from _claim_first(asked, statement, frontier, tasks, context)
        frontier.claims.done(began)
        if frontier.claims.took > SLOW + SLOW_EACH * len(rows):
            with _keeping(rows or tasks):
                yield from _look_for_dead_tuples(frontier, context)
    is_mixed = bool(tasks and rows)
    readable: Rows = []
    unreadable: list[Outcome] = []
    for row in rows:
        try:
            tasks.append(claimed_task(row, asked.worker))
        except CorruptRecord as problem:
            _log.error("%s; it ends as failed, with its row kept", problem)
            unreadable.append(Failed(id=row[1], delivery=row[7], error=corrupt_error(problem)))
        else:
            readable.append(row)
    if is_mixed:
        places = {queue: place for place, queue in enumerate(asked.demand)}
        tasks.sort(key=lambda task: places[task.queue])
    if frontier.pinned_until:
        frontier.advance(readable)
    if unreadable:
        try:
            yield from finish(unreadable, context)
        except psycopg.Error as error:
            # They are ended when their lease has run out. The others are claimed, and must not be lost.
            _log.warning("tasks that cannot be read could not be ended: %s", error)
    return tasks


@contextmanager
def _keeping(claimed: object) -> Iterator[None]:
    """Pass by a failure if something is claimed already: it would be lost until its lease has run out."""
    try:
        yield
    except psycopg.Error as error:
        if not claimed:
            raise
        _log.warning("a claim has brought less than it could: %s", error)


def _claim_first(
    asked: Claim, statement: str, frontier: Frontier, tasks: list[StoredTask], context: Context
) -> Steps[Rows]:
    """Claim tasks from the beginning of each queue.

    :param tasks: where those of queues that have limits are added, in the place of a row.
    """
    rows = yield _claim_query(statement, asked, False, context)
    found = rows[0][0]
    lanes: set[str] = set()
    if found & ~LANES:
        # Mostly nothing is due or expired: so that is looked for with the claim, and not before each.
        lanes = yield from _clear(found, asked, context)
    if found & LANES and len(asked.demand) == 1:
        lanes.update(asked.demand)
    if found & LANES or lanes:
        return (yield from _claim_each(asked, lanes, frontier, tasks, context))
    if found:
        rows = yield _claim_query("claim.claim", asked, True, context)
        if rows[0][0] & LANES:
            return (yield from _claim_each(asked, lanes, frontier, tasks, context))
    frontier.lanes.difference_update(asked.demand)
    return rows if rows[0][1] is not None else []


def _claim_query(statement: str, asked: Claim, is_clear: bool, context: Context) -> Query:
    return context.query(
        statement,
        binary_params.texts(list(asked.demand)),
        binary_params.integers([min(max(number, 0), asked.limit) for number in asked.demand.values()]),
        binary_params.bigint(asked.limit),
        binary_params.text(asked.worker),
        binary_params.span(asked.lease),
        binary_params.integer(int(is_clear)),
    )


def _claim_each(
    asked: Claim, lanes: set[str], frontier: Frontier, tasks: list[StoredTask], context: Context
) -> Steps[Rows]:
    """Claim tasks queue by queue, as some of them have limits or lines.

    :param lanes: those of which that is known.
    """
    claimed: Rows = []
    for queue, wanted in asked.demand.items():
        room = min(wanted, asked.limit - len(claimed) - len(tasks))
        if room <= 0:
            continue
        with _keeping(claimed or tasks):
            if queue not in lanes:
                rows = yield _claim_query("claim.claim", evolve(asked, demand={queue: room}, limit=room), True, context)
                if not rows[0][0] & LANES:
                    frontier.lanes.discard(queue)
                    claimed += rows if rows[0][1] is not None else []
                    continue
            frontier.lanes.add(queue)
            tasks += yield from limits.claim(queue, room, asked.worker, asked.lease, context)
    return claimed


def _clear(obstacle: int, asked: Claim, context: Context) -> Steps[set[str]]:
    """Do what must be done before a claim.

    :return: queues in which tasks are due that stand in lines.
    """
    # Bounded, so that no claim is long; those expired that are left are passed over.
    for _ in range(EXPIRED_STEPS):
        if (yield from expire(EXPIRED, context)) < EXPIRED:
            break
    if obstacle & GATES:
        yield from settle(SETTLED, context)
    queues = binary_params.texts(list(asked.demand))
    rows = yield context.query("claim.promote", queues, binary_params.integer(max(PROMOTED, 2 * asked.limit)))
    return {row[0] for row in rows}


def _claim_onward(asked: Claim, frontier: Frontier, tasks: list[StoredTask], context: Context) -> Steps[Rows]:
    claimed: Rows = []
    for queue, wanted in asked.demand.items():
        marks = sorted(frontier.marks.get(queue, {}).items(), reverse=True)
        room = min(wanted, asked.limit - len(claimed) - len(tasks))
        if room <= 0:
            continue
        with _keeping(claimed or tasks):
            if queue in frontier.lanes:
                # Its tasks are found by their lines, and not by going past dead rows.
                tasks += yield from limits.claim(queue, room, asked.worker, asked.lease, context)
            elif marks:
                claimed += yield context.query(
                    "claim.onward",
                    binary_params.text(queue),
                    binary_params.smallints([priority for priority, _ in marks]),
                    binary_params.bigint(room),
                    binary_params.text(asked.worker),
                    binary_params.span(asked.lease),
                    binary_params.timestamps([run_at for _, (run_at, _) in marks]),
                    binary_params.bigints([seq for _, (_, seq) in marks]),
                )
    return claimed


def _look_for_dead_tuples(frontier: Frontier, context: Context) -> Steps[None]:
    now = time.monotonic()
    if now - frontier.asked_at < ASK_EVERY:
        return
    frontier.asked_at = now
    ((dead,),) = yield context.query("claim.dead")
    if dead > MANY_DEAD:
        frontier.pinned_until = now + PINNED_FOR
    elif frontier.pinned_until:
        frontier.pinned_until = 0.0
        frontier.marks.clear()


def expire(limit: int, context: Context) -> Steps[int]:
    """End tasks whose ``expires_at`` has come before they began.

    :param limit: how many at most.
    :return: how many.
    """
    rows = yield context.query("maintenance.expire", binary_params.integer(limit))
    context.news.ended += [row[0] for row in rows]
    yield from count_ends_of({row[1] for row in rows if row[1] is not None}, context)
    return len(rows)
