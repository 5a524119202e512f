"""Flows: the verbs of :mod:`omniq.storage.flow_transitions`, over primitives of a transaction.

Tasks without a flow never come here. Of those with one, whatever does not concern the flow (claims, leases, the outcome
itself) is done by the same statements as for all others. What ends one goes through :func:`conclude`, or through
:func:`delete`, which count it in the same transaction.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omniq.errors import CorruptRecord
from omniq.flow import StoredFlow, StoredGate
from omniq.limit import line_id
from omniq.storage import flow_transitions, primitives, transitions
from omniq.storage.corrupt_records import log_once, unreadable
from omniq.storage.escaping import get_logger
from omniq.storage.limit_transitions import is_lined
from omniq.storage.records import dump_error
from omniq.storage.rows import drop_at, dump_flow, dump_gate, load_flow, load_gate
from omniq.storage.states import due_at
from omniq.storage.times import optional_micros, span, to_micros
from omniq.storage.transitions import SETTLED
from omniq.storage.values import Salvaged
from omniq.task import StoredTask, TaskState
from omniq_local.sqlite.connecting import storable
from omniq_local.sqlite.encoding import BODY_APART, NUMBER_OF, STATE_OF, dump_feeds, dump_options
from omniq_local.sqlite.lines import Lines
from omniq_local.sqlite.reading import make_task
from omniq_local.sqlite.statements import Statements
from omniq_local.sqlite.transaction import End, Row, Transaction

__all__ = [
    "SETTLED",
    "check_flows",
    "conclude",
    "delete",
    "prune",
    "retry",
    "settle",
]

_log = get_logger("omniq.sqlite")

_PLACE = re.compile(r"row [0-9]{1,18}")
ALL = -1
"""The limit of a query that has none."""


# The verbs


def conclude(rows: Sequence[End], tx: Transaction) -> None:
    """End tasks, and count those that belong to flows."""
    members = tx.conclude(rows)
    if members:
        steps = FlowTransaction(tx)
        flow_transitions.count_ends(steps, steps.by_seqs(members))


def delete(seqs: Sequence[int], tx: Transaction) -> None:
    """Remove tasks of flows that are not running; those that are live count as cancelled."""
    steps = FlowTransaction(tx)
    transitions.delete(steps, [task.id for task in steps.by_seqs(seqs)])


def retry(ids: Sequence[str], tx: Transaction) -> list[bool]:
    """Retry tasks of flows; see :meth:`~omniq.storage.Storage.retry`."""
    return transitions.retry(FlowTransaction(tx), ids)


def prune(limit: int, tx: Transaction) -> int:
    """Remove flows that are over, with their tasks; see :meth:`~omniq.storage.Storage.prune`."""
    return flow_transitions.prune_flows(FlowTransaction(tx), limit)


def settle(limit: int, tx: Transaction) -> int:
    """See :meth:`~omniq.storage.Storage.settle`."""
    tx.fold()
    return flow_transitions.settle(FlowTransaction(tx), limit)


def check_flows(sql: Statements, connection: sqlite3.Connection) -> list[CorruptRecord]:
    """Return what is wrong with flows and gates, see :meth:`~omniq.storage.Storage.check`."""
    flows = unreadable(connection.execute(sql["flows.all"]), lambda row: load_flow(row[1], row[0]))
    gates = unreadable(connection.execute(sql["flows.all_gates"]), lambda row: load_gate(row[2], row[0], row[1]))
    return [*flows, *gates]


# What they ask of a transaction


class FlowTransaction(Lines, primitives.FlowTransaction):
    """One transaction as the verbs of flows have it.

    :param tx: the transaction.
    """

    def __init__(self, tx: Transaction) -> None:
        super().__init__(tx)
        self._rows: dict[str, Row] = {}
        """Of each task that was read: what is stored of it."""

    # Tasks

    def _tasks(self, statement: str, *parameters: Any) -> list[StoredTask]:
        tasks = []
        for row in self._tx.all(statement, *parameters):
            task = make_task(row)
            seq, task_id, queue, state = row[0], row[1], row[2], row[5]
            self._rows[task.id] = (seq, storable(task_id), storable(queue), state, task.flow)
            tasks.append(task)
        return tasks

    def by_seqs(self, seqs: Sequence[int]) -> list[StoredTask]:
        """Return tasks by their places, without their bodies and results."""
        return self._tasks("flows.by_seqs", json.dumps(seqs))

    def seq_of(self, task: StoredTask) -> int:
        """Return the place of a task that was read."""
        return self._rows[task.id][0]

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        wanted = list(dict.fromkeys(ids))
        found = {task.id: task for task in self._tasks("flows.by_ids", json.dumps(wanted))}
        # One whose id is no text goes by its place.
        places = [int(one.split()[1]) for one in wanted if one not in found and _PLACE.fullmatch(one)]
        found |= {task.id: task for task in (self.by_seqs(places) if places else ()) if task.id in wanted}
        return found

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        tx = self._tx
        if not tasks:
            return
        first = tx.last_seq() + 1
        tx.batch("flows.insert", [self._columns(task) for task in tasks])
        tx.batch("enqueue.add_tag", [(tag, seq) for seq, task in enumerate(tasks, first) for tag in task.tags])
        for seq, task in enumerate(tasks, first):
            if len(task.body) > BODY_APART:
                tx.run("enqueue.add_body", seq, task.body)
            self._tell(task)
        tx.fold()

    def _columns(self, task: StoredTask) -> tuple[Any, ...]:
        stamp = self._tx.stamp
        return (
            task.id,
            task.queue,
            task.name,
            task.priority,
            NUMBER_OF[task.state],
            # That of a new one is not before that of the latest task, though the clock be put back.
            stamp if task.created_at == self.now else to_micros(task.created_at),
            stamp if task.run_at == self.now else to_micros(task.run_at),
            optional_micros(task.expires_at),
            dump_options(task.max_retries, task.tags, task.result_ttl),
            task.flow,
            task.behind,
            dump_feeds(task.feeds),
            task.opening_delay,
            task.body if len(task.body) <= BODY_APART else None,
            *_past(task),
            line_id(task.queue, task.key, task.limit) or None,
            task.key,
            task.limit,
            optional_micros(task.first_at),
        )

    def save(self, tasks: Sequence[StoredTask]) -> None:
        changes, unreadable = [], []
        ended: list[End] = []
        for task in tasks:
            row = seq, *known, before, flow = self._rows[task.id]
            after = NUMBER_OF[task.state]
            if flow is None and task.state.is_final:
                error = None if task.error is None else dump_error(task.error)
                ended.append((row, after, task.result_payload, error, task.attempt_log or None))
                self._rows[task.id] = (row[0], row[1], row[2], after, None)
                continue
            if isinstance(task, Salvaged):
                unreadable.append((seq, after, None, None if task.error is None else dump_error(task.error), None))
            else:
                changes.append((seq, after, *_changing(task)))
            task_id, queue = known
            self._tx.went(task_id, queue, before, after)
            self._rows[task.id] = (seq, task_id, queue, after, flow)
            self._tell(task)
        self._tx.conclude(ended)
        self._tx.batch("flows.save", changes)
        self._tx.batch("transaction.conclude", unreadable, self._tx.now, self._tx.now)

    def _tell(self, task: StoredTask) -> None:
        if task.state is TaskState.READY:
            if not is_lined(task):  # else its line tells
                self._tx.made_ready(task.queue)
        elif task.state is TaskState.SCHEDULED:
            self._tx.will_be_ready(task.queue, to_micros(task.run_at))

    def remove(self, ids: Sequence[str]) -> None:
        self._tx.forget([self._rows[task_id] for task_id in ids])

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        found = {key: self._tx.one("enqueue.holder", key) for key in keys}
        return {key: row[0] for key, row in found.items() if row is not None}

    # Flows

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        found = {}
        for flow_id, body in self._tx.all("flows.get", json.dumps(list(ids))):
            try:
                found[flow_id] = load_flow(body, flow_id)
            except CorruptRecord as problem:
                log_once(_log, problem)
        return found

    def save_flow(self, flow: StoredFlow) -> None:
        due, ended = due_at(flow), flow.finished_at is not None
        key = None if ended else flow.unique
        self._tx.run("flows.put", flow.id, key, int(ended), optional_micros(due), dump_flow(flow))
        self._tx.rows += 1
        if due is not None and due <= self.now and not ended:
            self._tx.agenda_is_left()

    def remove_flow(self, flow_id: str) -> None:
        self._tx.run("flows.drop_gates", flow_id)
        self._tx.run("flows.drop", flow_id)

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        if numbers is None:
            rows = self._tx.all("flows.gates", flow_id)
        else:
            rows = self._tx.all("flows.some_gates", flow_id, json.dumps(list(numbers)))
        found = {}
        for n, body in rows:
            try:
                found[n] = load_gate(body, flow_id, n)
            except CorruptRecord as problem:
                log_once(_log, problem)
        return found

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        self._tx.batch("flows.put_gates", [(flow_id, gate.n, dump_gate(gate)) for gate in gates])

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        numbers = [NUMBER_OF[state] for state in states]
        most = ALL if limit is None else limit
        if behind is None:
            return self._tasks("flows.members", flow_id, json.dumps(numbers), most)
        # One after the other: those of one state stand in the order of enqueueing, and no more are read than are taken.
        found: list[StoredTask] = []
        for number in numbers:
            found += self._tasks("flows.members_behind", flow_id, number, behind, most)
        found.sort(key=lambda task: self._rows[task.id][0])
        return found if limit is None else found[:limit]

    def count_members(self, flow_id: str) -> Mapping[TaskState, int]:
        return {STATE_OF[state]: n for state, n in self._tx.all("flows.count", flow_id) if state in STATE_OF}

    def flow_of_key(self, key: str) -> str | None:
        found = self._tx.one("flows.of_key", key)
        return None if found is None else found[0]

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        found = []
        for flow_id, body in self._tx.all("flows.due", int(ended), self._tx.now, limit):
            try:
                found.append(load_flow(body, flow_id).id)
            except CorruptRecord as problem:
                # It must not stand before the others for ever.
                log_once(_log, problem)
                self._tx.run("flows.never_due", flow_id)
        return found


def _past(task: StoredTask) -> tuple[Any, ...]:
    """Return what a task has behind it that was not enqueued just now, and what no task of a flow has."""
    return (
        task.delivery,
        task.attempt,
        1 if task.cancel_requested else None,
        optional_micros(task.started_at),
        optional_micros(task.finished_at),
        drop_at(task),
        None if task.flow is not None else span(task.result_ttl),
        task.worker,
        task.unique,
        None if task.error is None else dump_error(task.error),
        task.attempt_log or None,
        task.result_payload,
    )


def _changing(task: StoredTask) -> tuple[Any, ...]:
    return (
        to_micros(task.run_at),
        task.attempt,
        optional_micros(task.finished_at),
        optional_micros(task.expires_at),
        1 if task.cancel_requested else None,
        optional_micros(task.lease_until),
        None if task.error is None else dump_error(task.error),
    )
