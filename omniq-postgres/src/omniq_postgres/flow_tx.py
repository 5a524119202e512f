"""The primitives of a transaction about flows, over which :mod:`omniq.storage.flow_transitions` does the verbs.

One round trip locks flows and reads what is needed of them, and mostly the next one writes and commits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import psycopg

from omniq.errors import CorruptRecord
from omniq.flow import StoredFlow, StoredGate
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.flow_transitions import count_ends
from omniq.storage.primitives import FlowTransaction, LineTransaction
from omniq.storage.rows import dump_flow, dump_gate, load_flow, load_gate
from omniq.storage.states import due_at
from omniq_postgres import binary_params
from omniq_postgres.blocking_steps import Ask, in_steps
from omniq_postgres.encoding import counted_task, key_of
from omniq_postgres.enqueueing import FEW
from omniq_postgres.errors import Remedy, remedy_for
from omniq_postgres.flow_tasks import FlowTasks, more_ahead
from omniq_postgres.limit_tasks import LimitTasks
from omniq_postgres.operations import Context, Rows, Steps

__all__ = ["TRIES", "FlowTx", "count_ends_of", "read_only", "transaction"]

R = TypeVar("R")

_log = get_logger("omniq.postgres")

GATES = 50
"""Gates for each flow that are read with it, as one of few gates is what nearly all are."""
TRIES = 3


def transaction(work: Callable[[FlowTx], R], context: Context) -> Steps[R]:
    """Do something to flows in one transaction: one of its own, or the caller's.

    :param work: given the transaction's primitives.
    """
    tx = FlowTx(context)
    if not context.joined:
        tx.first = [context.query("flows.begin"), context.query("flows.patience")]
    try:
        return (yield from in_steps(lambda ask: tx.run(ask, work)))
    except GeneratorExit:
        raise
    except BaseException:
        if not context.joined:
            yield from _rolled_back(context)
        raise


def read_only(work: Callable[[FlowTx], R], context: Context) -> Steps[R]:
    """Read of flows what was committed at one moment, without locking anything."""
    if context.joined:
        raise AssertionError("nothing is read in a transaction of the caller's")
    tx = FlowTx(context, locks=False)
    tx.first = [context.query("flows.read_only")]
    try:
        return (yield from in_steps(lambda ask: tx.run(ask, work)))
    except GeneratorExit:
        raise
    except BaseException:
        yield from _rolled_back(context)
        raise


def count_ends_of(flows: Iterable[str], context: Context, unsure: Sequence[str] = ()) -> Steps[None]:
    """Count the ends of tasks of some flows, and do what follows from them, right after they have ended.

    Those of a transaction of the caller's are counted once it is committed, by the next call that reads the flow:
    until then it holds the lock of no flow.

    :param unsure: tasks that ended earlier, if at all; perhaps they are not counted.
    """
    ids = set(flows)
    if context.joined or not (ids or unsure):
        return
    for _ in range(TRIES):
        try:
            if unsure:
                ids |= {row[0] for row in (yield context.query("flows.left_of", binary_params.uuids(unsure)))}
            if ids:
                yield from transaction(partial(FlowTx.open, ids=ids), context)
        except psycopg.Error as error:
            # The tasks have ended, and the caller must be told so. The next claim counts them.
            if remedy_for(error) is not Remedy.REPEAT:
                return
        else:
            return


def _rolled_back(context: Context) -> Steps[None]:
    with contextlib.suppress(psycopg.Error):  # the connection is lost, and the transaction with it
        yield context.query("flows.rollback")


class FlowTx(LimitTasks, FlowTasks, FlowTransaction, LineTransaction):
    """The primitives.

    :param locks: whether it locks the flows that it opens. Ends of their tasks that are not counted yet then are, so
        that nothing here ever acts upon gates that lag behind.
    """

    def __init__(self, context: Context, *, locks: bool = True) -> None:
        super().__init__(context, locks=locks)
        self._bodies: dict[str, str | None] = {}
        """Of the flows that were opened; None: there is no such flow."""
        self._gates: dict[tuple[str, int], str | None] = {}
        self._more_gates = 0
        self._known_whole: set[str] = set()
        """The flows of which all gates are known."""

    def run(self, ask: Ask, work: Callable[[FlowTx], R]) -> R:
        """Do something, and end the transaction."""
        self._ask = ask
        result = work(self)
        self._save()
        self._count()
        self._tell()
        if not self._context.joined:
            self._rows("flows.commit")
        elif self._writes:
            last = self._writes.pop()
            self._asked(last, [])
        return result

    # Flows

    def open(self, ids: Iterable[str]) -> None:
        """Read flows that are going to be asked for, locked in the order of their ids, and count what is uncounted."""
        wanted = sorted({flow_id for flow_id in ids if binary_params.is_id(flow_id)} - self._bodies.keys())
        if not wanted:
            return
        query, given = self._context.query, binary_params.uuids(wanted)
        lead = [query("reading.now"), query("flows.bodies", given)]
        if self._locks:
            lead = [query("flows.lock", given), *lead, query("flows.take", given)]
        most = GATES * len(wanted)
        rows = self._rows("flows.first_gates", given, binary_params.integer(most), lead=lead)
        self._bodies.update(dict.fromkeys(wanted))
        ends: Rows = []
        gates = 0
        for row in rows:
            if len(row) == 1:
                self.now = row[0]
            elif row[0] == "body":
                self._bodies[row[1]] = row[2]
            elif row[0] == "gate":
                self._gates[row[1], row[2]] = row[3]
                gates += 1
            elif row[0] == "end":
                ends.append(row)
        if gates < most:
            self._known_whole.update(wanted)
        if ends:
            count_ends(self, [counted_task(row[1:]) for row in ends])

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        wanted = list(ids)
        self.open(wanted)
        found = {}
        for flow_id in wanted:
            body = self._bodies.get(flow_id)
            try:
                if body is not None:
                    found[flow_id] = load_flow(body, flow_id)
            except CorruptRecord as problem:
                log_once(_log, problem)
        return found

    def save_flow(self, flow: StoredFlow) -> None:
        due, ended, body = due_at(flow), flow.finished_at is not None, dump_flow(flow)
        key = None if ended else key_of(flow.unique)
        self._write(
            "flows.add" if self._bodies.get(flow.id) is None else "flows.save",
            binary_params.new_id(flow.id),
            None if due is None else binary_params.timestamp(due),
            binary_params.boolean(ended),
            None if key is None else binary_params.text(key),
            binary_params.text(body),
        )
        self._bodies[flow.id] = body
        if flow.is_due:
            self._news.ready("")  # any worker's next claim goes on with it

    def remove_flow(self, flow_id: str) -> None:
        self._write("flows.remove_flow", binary_params.uuid(flow_id))
        self._bodies[flow_id] = None

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        whole = flow_id in self._known_whole
        if numbers is None:
            if not whole:
                self._read_gates(self._rows("flows.all_gates", binary_params.uuids([flow_id])))
                self._known_whole.add(flow_id)
            wanted = [n for flow, n in self._gates if flow == flow_id]
        else:
            wanted = list(dict.fromkeys(numbers))
            missing = [] if whole else [n for n in wanted if (flow_id, n) not in self._gates]
            if missing:
                self._gates.update(dict.fromkeys((flow_id, n) for n in missing))
                flow, given = binary_params.uuid(flow_id), binary_params.bigints(missing)
                last, more = binary_params.bigint(max(missing)), binary_params.bigint(self._more_gates)
                self._more_gates = more_ahead(self._more_gates)
                self._read_gates(self._rows("flows.gates", flow, given, last, more))
        found = {}
        for n in wanted:
            body = self._gates.get((flow_id, n))
            try:
                if body is not None:
                    found[n] = load_gate(body, flow_id, n)
            except CorruptRecord as problem:
                log_once(_log, problem)
        return found

    def _read_gates(self, rows: Rows) -> None:
        for flow_id, n, body in rows:
            self._gates.setdefault((flow_id, n), None)
            if self._gates[flow_id, n] is None:
                self._gates[flow_id, n] = body

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        parts: dict[str, list[tuple[int, str]]] = {}
        for gate in gates:
            body = dump_gate(gate)
            is_new = self._gates.get((flow_id, gate.n)) is None
            parts.setdefault("flows.add_gates" if is_new else "flows.save_gates", []).append((gate.n, body))
            self._gates[flow_id, gate.n] = body
        for name, rows in parts.items():
            numbers, bodies = (
                binary_params.bigints([n for n, _ in rows]),
                binary_params.texts([body for _, body in rows]),
            )
            self._write(name, binary_params.uuid(flow_id), numbers, bodies, prepare=len(rows) <= FEW)

    def flow_of_key(self, key: str) -> str | None:
        rows = self._rows("flows.of_key", binary_params.text(key_of(key) or ""))
        return str(rows[0][0]) if rows else None

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        found = []
        for flow_id, body in self._rows("flows.due", binary_params.boolean(ended), binary_params.integer(limit)):
            try:
                found.append(load_flow(body, flow_id).id)
            except CorruptRecord as problem:
                log_once(_log, problem)
                self._write("flows.put_off", binary_params.uuid(flow_id))
        return found
