"""What was read for a step of flows: the transitions run over it at once, and say what is missing.

The meaning of a step is a plain function, which cannot wait for the servers. It begins with what is likely to be
needed; where it comes to something that was not read, that is read, and it begins anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from attrs import define, field

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq_nats.entries import Entry
from omniq_nats.flow_records import GATES, FlowRecord, GatePage, RosterRow, read_flow, read_gates, read_roster
from omniq_nats.names import BLOCKED_LINE
from omniq_nats.queue_state import QueueState
from omniq_nats.queue_state_store import QueueStateStore, holder_of
from omniq_nats.results import EndRecord, ResultPage, read_page
from omniq_nats.standing import find_holding
from omniq_nats.task_batches import TaskBatch
from omniq_nats.task_lookup import Place, Torn
from omniq_nats.transport import Stored

__all__ = ["Missing", "Rosters", "Snapshot"]

_log = get_logger("omniq.nats")

MOST_FLOWS = 200
MOST_ROSTERS = 2000
"""Of so many the places of their tasks are remembered."""
AHEAD = 500
"""Batches of a flow that are read together with one that is needed, at most."""


@define(eq=False)
class Missing(Exception):
    """Something that a step needs was not read."""

    queues: set[str] = field(factory=set)
    flows: set[str] = field(factory=set)
    gates: set[tuple[str, int]] = field(factory=set)
    """Pages of gates."""
    rosters: set[tuple[str, int]] = field(factory=set)
    batches: set[tuple[str, str, int]] = field(factory=set)
    """Queue, name and sequence."""
    results: set[str] = field(factory=set)
    """Subjects of pages of results."""
    blobs: set[str] = field(factory=set)
    """Subjects of results and errors that are kept apart."""
    ids: set[str] = field(factory=set)
    keys: set[str] = field(factory=set)
    """Unique keys of tasks."""
    flow_keys: set[str] = field(factory=set)

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in _KINDS)

    def add(self, other: Missing) -> None:
        """Miss what another misses, too."""
        for name in _KINDS:
            getattr(self, name).update(getattr(other, name))


_KINDS = ("queues", "flows", "gates", "rosters", "batches", "results", "blobs", "ids", "keys", "flow_keys")


class Rosters:
    """Rosters that were read: they never change."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, int], list[RosterRow]] = OrderedDict()
        self._by_gate: OrderedDict[object, tuple[int, dict[int | None, list[RosterRow]]]] = OrderedDict()

    def get(self, record: FlowRecord, number: int) -> list[RosterRow] | None:
        return self._known.get(((record.flow.id, record.flow.created_at), number))

    def by_gate(self, record: FlowRecord) -> dict[int | None, list[RosterRow]] | None:
        """Return where the tasks of a flow are by the gates that they are behind; None if not all of it was read.

        None as a gate stands for all.
        """
        key = record.flow.id, record.flow.created_at
        known = self._by_gate.get(key)
        if known is None or known[0] != record.rosters:
            found: dict[int | None, list[RosterRow]] = {None: []}
            for number in range(record.rosters):
                rows = self.get(record, number)
                if rows is None:
                    return None
                for row in rows:
                    found[None].append(row)
                    for behind in set(row.behind) - {None}:
                        found.setdefault(behind, []).append(row)
            known = self._by_gate[key] = record.rosters, found
            while len(self._by_gate) > MOST_FLOWS:
                self._by_gate.popitem(last=False)
        return known[1]

    def note(self, record: FlowRecord, number: int, rows: list[RosterRow]) -> None:
        self._known[(record.flow.id, record.flow.created_at), number] = rows
        while len(self._known) > MOST_ROSTERS:
            self._known.popitem(last=False)


class Snapshot:
    """What was read.

    :param state_store: of the storage.
    :param rosters: those that were read before.
    """

    def __init__(self, state_store: QueueStateStore, rosters: Rosters) -> None:
        self._state_store = state_store
        self._names = state_store.names
        self._rosters = rosters
        self.queue_states: dict[str, QueueState] = {}
        self.flows: dict[str, FlowRecord | None] = {}
        self.gates: dict[tuple[str, int], GatePage] = {}
        self.batches: dict[int, TaskBatch | None] = {}
        self.results: dict[str, ResultPage | None] = {}
        self.blobs: dict[str, bytes] = {}
        self.places: dict[str, Place | Torn | None] = {}
        self.keys: dict[str, tuple[str | None, int]] = {}
        """The live holder of each unique key, and the sequence of the message that says so."""
        self.flow_keys: dict[str, tuple[str | None, int]] = {}

    def rows(self, record: FlowRecord, behind: int | None) -> list[RosterRow]:
        """Return where tasks of a flow are.

        :param behind: only those behind this gate; None: all.
        :raises Missing: if it was not read.
        """
        found = self._rosters.by_gate(record)
        if found is None:
            unread = [number for number in range(record.rosters) if self._rosters.get(record, number) is None]
            raise Missing(rosters={(record.flow.id, number) for number in unread})
        return found.get(behind, [])

    def ahead(self, record: FlowRecord, row: RosterRow) -> Missing:
        """Return what is likely to be needed next, as the tasks at one place of a flow are: those that come after it.

        Of a chain that ends link by link each link would be asked for by itself.
        """
        rows = self.rows(record, None)
        start = bisect_left(rows, row.seq, key=lambda one: one.seq)
        there = rows[start : start + AHEAD]
        return Missing(batches={(one.queue, one.batch, one.seq) for one in there if one.seq not in self.batches})

    async def load(self, missing: Missing) -> None:
        """Read what is missing."""
        if missing.keys:
            await self._load_keys(missing.keys)
        if missing.ids:
            await self._load_places(missing.ids)
        await self._load_batches(missing.batches)
        missing.add(self._of_batches(missing.batches))
        # Nearly every flow has no more gates than one page, and who reads a flow asks for some of them next.
        missing.gates |= {(flow_id, 0) for flow_id in missing.flows}
        names = self._names
        # What is on pages of results is read with the states of the queues, or after them.
        subjects = [
            *map(names.queue_state, missing.queues),
            *map(names.either_flow, missing.flows),
            *(names.gates(*one) for one in missing.gates),
            *(names.roster(*one) for one in missing.rosters),
            *map(names.flow_key, missing.flow_keys),
            *missing.blobs,
            *missing.results,
        ]
        if not subjects:
            return
        found: defaultdict[str, list[Stored]] = defaultdict(list)
        for stored in await self._state_store.transport.last(subjects):
            found[stored.subject].append(stored)
        self._take(missing, found)

    def _take(self, missing: Missing, found: dict[str, list[Stored]]) -> None:
        names = self._names
        for queue in missing.queues:
            stored = found.get(names.queue_state(queue))
            self.queue_states[queue] = (
                self._state_store.book_of(queue, stored[0], whole=False) if stored else QueueState(queue)
            )
        for flow_id in missing.flows:
            both = [*found.get(names.flow(flow_id), ()), *found.get(names.ended_flow(flow_id), ())]
            self.flows[flow_id] = self._sound_flow(flow_id, both)
        for flow_id, page in missing.gates:
            stored = found.get(names.gates(flow_id, page))
            self.gates[flow_id, page] = GatePage()
            if stored:
                try:
                    self.gates[flow_id, page] = read_gates(flow_id, stored[0])
                except CorruptRecord as problem:
                    self._log(problem)
        for flow_id, number in missing.rosters:
            record = self.flows[flow_id]
            assert record is not None
            rows: list[RosterRow] = []
            for stored_roster in found.get(names.roster(flow_id, number), ()):
                try:
                    rows = read_roster(flow_id, stored_roster)
                except CorruptRecord as problem:
                    self._log(problem)
            self._rosters.note(record, number, rows)
        for key in missing.flow_keys:
            stored = found.get(names.flow_key(key))
            self.flow_keys[key] = (holder_of(stored[0].data), stored[0].seq) if stored else (None, 0)
        for subject in missing.blobs:
            self.blobs[subject] = found[subject][0].data if subject in found else b""
        for subject in missing.results:
            self.results[subject] = read_page(found[subject][0]) if subject in found else None

    def _sound_flow(self, flow_id: str, found: list[Stored]) -> FlowRecord | None:
        try:
            return read_flow(flow_id, found)
        except CorruptRecord as problem:
            self._log(problem)
            return None

    def _log(self, problem: CorruptRecord) -> None:
        log_once(_log, problem, self._state_store.transport.settings.shown)

    async def _load_places(self, ids: Iterable[str]) -> None:
        lookup = self._state_store.task_lookup
        wanted = sorted(ids)
        places, torn = await lookup.find(wanted)
        removed = await self._state_store.removed(list(places.values()))
        for task_id in wanted:
            place = places.get(task_id)
            if place is not None and (place[0].seq, place[1]) in removed:
                place = None
            self.places[task_id] = place or torn.get(task_id)

    async def _load_batches(self, wanted: Iterable[tuple[str, str, int]]) -> None:
        by_queue: defaultdict[str, list[Entry]] = defaultdict(list)
        for queue, name, seq in wanted:
            by_queue[queue].append(
                Entry("", name, index=0, seq=seq, size=0, ttl=0.0, rank=0, priority=0, at=0, max_retries=0)
            )
        for queue, entries in by_queue.items():
            found = await self._state_store.task_lookup.of_slots(queue, entries)
            for entry in entries:
                self.batches[entry.seq] = found.get(entry.seq)

    def _of_batches(self, batches: Iterable[tuple[str, str, int]]) -> Missing:
        """Return what belongs to batches of blocked tasks that were read: whether some have ended, and their gates."""
        missing = Missing()
        for queue, name, seq in batches:
            batch = self.batches.get(seq)
            record = None if batch is None or batch.flow is None else self.flows.get(batch.flow)
            if batch is None or record is None or batch.line != BLOCKED_LINE:
                continue
            subject = self._names.results(queue, batch.ttl, name, seq)
            if queue in self.queue_states and subject not in self.results:
                missing.results.add(subject)
            numbers = {gate for behind, feeds, _ in batch.ties for gate in (behind or 0, *(one.gate for one in feeds))}
            for page in {n // GATES for n in numbers}.intersection(record.pages):
                if (record.flow.id, page) not in self.gates:
                    missing.gates.add((record.flow.id, page))
        return missing

    async def _load_keys(self, keys: Iterable[str]) -> None:
        names = self._names
        subjects = {names.key(key): key for key in keys}
        found = {stored.subject: stored for stored in await self._state_store.transport.last(list(subjects))}
        holders = {subject: holder_of(stored.data) for subject, stored in found.items()}
        live = await find_holding(self._state_store, [holder for holder in holders.values() if holder is not None])
        for subject, key in subjects.items():
            holder = holders.get(subject)
            self.keys[key] = holder if holder in live else None, found[subject].seq if subject in found else 0

    # What is asked of it by the transitions, at once

    def queue_state(self, queue: str) -> QueueState:
        """Return the state of a queue.

        :raises Missing: if it was not read.
        """
        found = self.queue_states.get(queue)
        if found is None:
            raise Missing(queues={queue})
        if found.problem is not None:
            raise found.problem
        return found

    def flow(self, flow_id: str) -> FlowRecord | None:
        """Return a flow; None if there is none, or it cannot be read.

        :raises Missing: if it was not read.
        """
        if flow_id not in self.flows:
            raise Missing(flows={flow_id})
        return self.flows[flow_id]

    def gate_page(self, flow_id: str, page: int) -> GatePage:
        """Return some gates.

        :raises Missing: if they were not read.
        """
        if (flow_id, page) not in self.gates:
            raise Missing(gates={(flow_id, page)})
        return self.gates[flow_id, page]

    def batch(self, queue: str, name: str, seq: int) -> TaskBatch | None:
        """Return a batch; None if it is gone.

        :raises Missing: if it was not read.
        """
        if seq not in self.batches:
            raise Missing(batches={(queue, name, seq)})
        return self.batches[seq]

    def end_record(self, queue_state: QueueState, batch: TaskBatch, index: int) -> tuple[EndRecord | None, bool]:
        """Return the end record of a task, and whether it was removed.

        :raises Missing: if it was not read.
        """
        pages = self._results_of(queue_state, batch, index)
        gone: set[tuple[int, int]] = set()
        found = self._state_store.end_records_on(queue_state, [(batch, index)], pages, gone)
        return found.get((batch.seq, index)), (batch.seq, index) in gone

    def _results_of(self, queue_state: QueueState, batch: TaskBatch, index: int) -> dict[str, ResultPage]:
        one = queue_state.pending.get(batch.rows[index][0])
        if one is not None and (one.seq, one.index) == (batch.seq, index):
            return {}
        subject = self._names.results(queue_state.queue, batch.ttl, batch.name, batch.seq)
        if subject not in self.results:
            raise Missing(results={subject})
        page = self.results[subject]
        return {} if page is None else {subject: page}
