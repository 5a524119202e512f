"""Claiming: the first files of the ready folder become running ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from attrs import frozen

from omniq.storage.flow_transitions import settle
from omniq.storage.limit_transitions import claim_lines
from omniq.storage.times import from_micros
from omniq.task import StoredTask, TaskState
from omniq_local.files.queues import DUE, Queue
from omniq_local.files.records import Record
from omniq_local.files.times import after
from omniq_local.files.transaction import Transaction

__all__ = ["Claim", "claim", "due", "settle_first", "time_of"]

PROMOTED = 500
"""Scheduled tasks that are made ready in one go."""
PROMOTIONS = 4
"""How often that is done for one claim: where more are due at once, the next claim goes on."""
SETTLED = 300
"""The most steps that a claim does first: each is a record of its own to write, where others take a row."""
SCHEDULED, READY = TaskState.SCHEDULED.value, TaskState.READY.value


@frozen(kw_only=True)
class Claim:
    """What a worker asks for."""

    demand: Mapping[str, int]
    worker: str
    lease: float
    limit: int | None


def time_of(name: str) -> int:
    """Return the time that a file's name begins with."""
    return int(name[:18])


def due(queue: Queue, state: str, transaction: Transaction) -> Iterator[Record]:
    """Take the tasks of a folder that is ordered by time, as long as their time has come."""
    state_folder = queue.state_folders[state]
    while queue.counts[state] > 0 and (name := state_folder.peek()) is not None and time_of(name) <= transaction.now:
        state_folder.pop()
        record = transaction.fetch_named(queue, state, name)
        if record is not None:
            yield record


def settle_first(transaction: Transaction) -> None:
    """Do what is to be done about flows, as a change of its own, within one that has changed nothing so far."""
    if transaction.folder.flows().has_due(DUE, transaction.now):
        transaction.folder.within(transaction, lambda inner: settle(inner.flows, SETTLED))


def claim(asked: Claim, transaction: Transaction) -> list[StoredTask]:
    """See :meth:`~omniq.storage.Storage.claim`."""
    settle_first(transaction)
    queues = []
    for name in asked.demand:
        queue = transaction.queue(name)
        if not queue.paused:
            _prepare(queue, transaction)
            queues.append(queue)
    left = sum(asked.demand.values()) if asked.limit is None else asked.limit
    until = after(transaction.now, asked.lease)
    claimed: list[Record] = []
    for queue in queues:
        wanted = min(asked.demand[queue.name], left - len(claimed))
        if transaction.folder.has_limits and transaction.folder.limits().has_lane(queue.name):
            claimed += _take_from_lines(queue, wanted, asked.worker, until, transaction)
            continue
        for record in _take(queue, wanted, transaction):
            transaction.start(record, asked.worker, until)
            claimed.append(record)
            transaction.ready[queue.name] -= 1
    return [record.task() for record in claimed]


def _take_from_lines(queue: Queue, wanted: int, worker: str, until: int, transaction: Transaction) -> list[Record]:
    claimed: list[Record] = []

    def save(tasks: Sequence[StoredTask]) -> None:
        for task in tasks:
            record = transaction.fetch(task.id)
            assert record is not None
            transaction.flows.take_away(record)
            if task.state is TaskState.RUNNING:
                transaction.start(record, worker, until)
                transaction.flows.start(record)
                claimed.append(record)
            else:
                transaction.end(record, task.state, task.error)

    claim_lines(transaction.flows, queue.name, wanted, worker, from_micros(until), save)
    return claimed


def _prepare(queue: Queue, transaction: Transaction) -> None:
    """Make ready what is due, each step a change of its own."""
    state_folder = queue.state_folders[SCHEDULED]
    for _ in range(PROMOTIONS):
        if not queue.counts[SCHEDULED] or (name := state_folder.peek()) is None or time_of(name) > transaction.now:
            break
        transaction.folder.within(transaction, lambda inner: _promote(queue, inner))
        transaction.folder.tidy(state_folder)
    transaction.folder.tidy(queue.state_folders[READY])


def _promote(queue: Queue, transaction: Transaction) -> None:
    for record in islice(due(queue, SCHEDULED, transaction), PROMOTED):
        record.state = TaskState.READY
        transaction.touch(record)


def _take(queue: Queue, limit: int, transaction: Transaction) -> Iterator[Record]:
    state_folder = queue.state_folders[READY]
    taken, looked_again = 0, False
    while limit > 0 and queue.counts[READY] > taken:
        name = state_folder.peek()
        if name is None:
            if looked_again:
                # The files were taken away from outside; they are not to be looked for any more.
                queue.counts[READY] = taken
                transaction.mark(queue)
                break
            looked_again = True
            state_folder.forget_names()
            continue
        state_folder.pop()
        record = transaction.fetch_named(queue, READY, name)
        if record is None:
            continue
        taken += 1
        if record.expires_at is not None and record.expires_at <= transaction.now:
            transaction.end(record, TaskState.CANCELLED)
            continue
        limit -= 1
        yield record
