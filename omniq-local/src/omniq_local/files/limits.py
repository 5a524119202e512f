"""Limits: the primitives over which :mod:`omniq.storage.limit_transitions` says what becomes of them, and its verbs.

What is done is gathered, and becomes part of the change as the transaction asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, cast

from omniq.limit import PLAIN, Lane, Limit, Scope, StoredLine
from omniq.storage import limit_transitions
from omniq.storage.limit_transitions import ELIGIBLE
from omniq.storage.limits import Line
from omniq.storage.records import dump_limit
from omniq.storage.rows import dump_lane, dump_line
from omniq.storage.times import optional_micros, optional_moment
from omniq.storage.validation import UNREADABLE
from omniq.task import StoredTask, TaskState
from omniq_local.files.encoding import parse_record
from omniq_local.files.flow_tasks import FlowTasks
from omniq_local.files.limit_log import LANE, LIMIT, LINE, NOTHING, RATE, SLOT, LimitLog, entry
from omniq_local.files.names import limit_path, parse_entry
from omniq_local.files.queues import Queue
from omniq_local.files.records import LINED, Record

if TYPE_CHECKING:
    from omniq.storage.primitives import FlowTransaction
    from omniq_local.files.transaction import Transaction

__all__ = ["LimitSteps", "lost_lines", "outlook", "prune"]

READY, RUNNING, SCHEDULED = TaskState.READY, TaskState.RUNNING, TaskState.SCHEDULED


class LimitSteps(FlowTasks):
    """The limits, lines and rates of one change, and the tasks that stand in lines."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction)
        self._read_ready: dict[str, Record] = {}
        """Ready tasks that were read, by the names of their files."""

    @property
    def _limit_log(self) -> LimitLog:
        return self._folder.limits()

    def _note(self, kind: str, name: object, value: str) -> None:
        self._transaction.limit_changes[kind, json.dumps(name)] = entry(kind, name, value)

    # What is stored

    def lock_limits(self) -> None:
        """Do nothing: each change has the store to itself."""

    def lanes(self, queues: Iterable[str] | None) -> dict[str, Lane]:
        return self._limit_log.lanes(queues)

    def save_lane(self, lane: Lane) -> None:
        self._limit_log.save_lane(lane)
        self._note(LANE, lane.queue, dump_lane(lane))
        if lane.waking:
            self._transaction.woken.add(lane.queue)
        else:
            self._transaction.ready[lane.queue] += 1

    def remove_lane(self, queue: str) -> None:
        self._limit_log.remove_lane(queue)
        self._note(LANE, queue, NOTHING)

    def task_limits(self, ids: Iterable[str] | None) -> dict[str, Limit]:
        return self._limit_log.task_limits(ids)

    def store_limit(self, limit: Limit) -> None:
        self._limit_log.store_limit(limit)
        path = limit_path(limit.id)
        content = dump_limit(limit).encode()
        self._transaction.writes.append(("write", path, content, self._transaction.content(path)))
        self._note(LIMIT, limit.id, NOTHING)

    def remove_limit(self, limit_id: str) -> None:
        self._limit_log.remove_limit(limit_id)
        self._transaction.writes.append(("remove", limit_path(limit_id)))
        self._note(LIMIT, limit_id, NOTHING)

    def line(self, line_id: str) -> StoredLine | None:
        return self._limit_log.line(line_id)

    def lines(self, queue: str, place: str, limit: int, until: int | None = None) -> list[StoredLine]:
        return self._limit_log.lines(queue, place, limit, until)

    def lines_of_key(self, queue: str, key: str) -> list[StoredLine]:
        return self._limit_log.lines_of_key(queue, key)

    def queues_at(self, place: str) -> list[str]:
        return self._limit_log.queues_at(place)

    def has_lines(self, queue: str) -> bool:
        return self._limit_log.has_lines(queue)

    def save_line(self, line: StoredLine) -> None:
        self._limit_log.save_line(line)
        self._note(LINE, line.id, dump_line(line))
        if line.place == ELIGIBLE:
            self._transaction.ready[line.queue] += 1

    def remove_line(self, line: StoredLine) -> None:
        self._limit_log.remove_line(line)
        self._note(LINE, line.id, NOTHING)

    def bucket(self, scope: Scope) -> int:
        return self._limit_log.bucket(scope)

    def save_bucket(self, scope: Scope, at_rest: int) -> None:
        self._limit_log.save_bucket(scope, at_rest)
        self._note(RATE, scope, str(at_rest))

    def drop_buckets(self, until: int, limit: int) -> None:
        for scope, at_rest in self._limit_log.buckets():
            if at_rest <= until:
                self._limit_log.remove_bucket(scope)
                self._note(RATE, scope, NOTHING)

    def revision_floor(self) -> int:
        return self._folder.control.limits

    def raise_revision_floor(self, revision: int) -> None:
        """Do nothing: no revision is larger than the number of all changes."""

    # Slots

    def running(self, scope: Scope) -> int:
        if scope.queue is not None and scope.key is None:
            return self._transaction.running(scope.queue)
        return self._limit_log.running(scope)

    def _hold(self, record: Record) -> None:
        """Have a task hold its slots if it runs, and else none."""
        runs = record.state is RUNNING and not record.removed and record.line != PLAIN
        order = record.order
        if runs is not (order.id in self._limit_log.slots):
            place = (order.queue, order.key, order.limit) if runs else None
            self._limit_log.set_slot(order.id, place)
            self._note(SLOT, order.id, json.dumps(place))

    def check_slots(self) -> None:
        """Have no task hold slots that does not run any more: its file was taken away from outside."""
        step = limit_transitions.LimitStep(self)
        for task_id, (queue, key, name) in list(self._limit_log.slots.items()):
            record = self._transaction.fetch(task_id)
            if record is not None and record.state is RUNNING:
                continue
            self._limit_log.set_slot(task_id, None)
            self._note(SLOT, task_id, NOTHING)
            if key is not None:
                step.wake_key(queue, key)
            if name is not None:
                step.wake_name(name)

    # Tasks

    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        return [record.task() for record in islice(self._waiting(self._transaction.queue(queue), line), limit)]

    def _waiting(self, queue: Queue, line: str) -> Iterator[Record]:
        """Yield the ready tasks of a line as far as they are there, in order, and take none."""
        found = False
        for name in self._names(queue, line):
            record = self._read_ready.get(name)
            if record is None:
                record = self._fetch(queue, line, name)
                if record is None:
                    continue
                self._read_ready[name] = record
            if record.state is READY and not record.removed:
                found = True
                yield record
        if line == PLAIN and not found and queue.counts[READY.value] > self._transaction.left(queue.name):
            # The files were taken away from outside; they are not to be looked for any more.
            queue.counts[READY.value] = self._transaction.left(queue.name)
            self._transaction.mark(queue)

    def _names(self, queue: Queue, line: str) -> Iterator[str]:
        if line != PLAIN:
            yield from list(self._folder.line(line).upcoming())
            return
        if not queue.counts[READY.value]:
            return
        state_folder = queue.state_folders[READY.value]
        if state_folder.peek() is None:
            state_folder.forget_names()
        yield from state_folder.upcoming()

    def _fetch(self, queue: Queue, line: str, name: str) -> Record | None:
        """Return a task by its file's name in the folder of its line."""
        transaction = self._transaction
        found = parse_entry(name)
        assert found is not None
        if line == PLAIN:
            ready = transaction.fetch_named(queue, READY.value, name)
            if ready is None:
                queue.state_folders[READY.value].take_away(found.key, found.id_token)
            return ready
        folder = self._folder.line(line)
        path = folder.file(found.key, found.id_token)
        try:
            record = parse_record(self._tree.read(path), found.sequence, found.id_token)
            stands = record.line == line and record.order.queue == queue.name
            if stands and record.was is not None and record.was[:2] == (READY, found.key):
                return transaction.take_in(record)
        except FileNotFoundError:
            folder.take_away(found.key, found.id_token)
            return None
        except (OSError, *UNREADABLE):
            pass
        folder.take_away(found.key, found.id_token)
        # Its other name tells what is wrong with it.
        record_of_queue = transaction.fetch_named(queue, LINED, name)
        if record_of_queue is not None and record_of_queue.line == line:
            transaction.link_anew(record_of_queue.home, path)
        else:
            transaction.remove_name(path)
        return None

    def take_away(self, record: Record) -> None:
        """Note that a ready task is about to be something else."""
        if record.line == PLAIN:
            folder = self._transaction.queue(record.order.queue).state_folders[READY.value]
        else:
            folder = self._folder.line(record.line)
        folder.take_away(record.key, record.id_token)

    # What follows from a change

    def follow_tasks(self, records: Sequence[Record], released: Sequence[Record]) -> None:
        """Follow tasks that were stored or changed: their slots, their lines, and those that wait for what they held.

        :param released: those that were given back unstarted.
        """
        changed = []
        for record in records:
            self._hold(record)
            was = None if record.was is None else record.was[0]
            if was is RUNNING and was is not record.state and self._limit_log.has_lane(record.order.queue):
                self._transaction.ready[record.order.queue] += 1  # there is a slot for another
            if record.line != PLAIN and not record.removed and was is not record.state:
                changed.append(record.task())
        limit_transitions.moved(cast("FlowTransaction", self), changed)
        if released:
            limit_transitions.give_back(self, [record.task() for record in released])

    def start(self, record: Record) -> None:
        """Note that a task begins to run."""
        if record.line != PLAIN:
            self._hold(record)


def outlook(queue: Queue, due_at: int | None, transaction: Transaction) -> tuple[bool, int | None]:
    """Return whether a claim of a queue that has limits or lines may return something, and when that may change.

    :param due_at: when its next scheduled task is due, if it has one.
    """

    def work(_: str) -> tuple[bool, datetime | None]:
        is_there = queue.counts[READY.value] > 0 or (due_at is not None and due_at <= transaction.now)
        return is_there, optional_moment(due_at)

    is_there, at = limit_transitions.outlook(transaction.flows, [queue.name], work)
    return is_there, optional_micros(at)


def prune(limit: int, transaction: Transaction) -> None:
    """Forget lines that are idle, rates that are at rest, and slots of tasks that do not run any more."""
    if not transaction.folder.control.limits:
        return
    transaction.flows.check_slots()
    limit_transitions.prune_lines(transaction.flows, limit)


def lost_lines(lines: Sequence[Line], transaction: Transaction) -> list[StoredTask]:
    """See :meth:`~omniq.storage.Storage.lost_lines`."""
    return limit_transitions.lost_lines(transaction.flows, lines) if transaction.folder.has_limits else []
