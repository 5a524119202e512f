"""The primitives of a transaction over what was read of queues and flows, for :mod:`omniq.storage.transitions`.

Tasks are without their bodies here. Nothing of what was read is changed: what is saved lies above it, until
:mod:`omniq_nats.flow_changes` makes messages of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from datetime import datetime

from attrs import evolve

from omniq.flow import StoredFlow, StoredGate
from omniq.limit import PLAIN, StoredLine
from omniq.schedule import Schedule
from omniq.storage.corrupt_records import salvaged
from omniq.storage.limit_transitions import ELIGIBLE
from omniq.storage.primitives import NoLimits
from omniq.storage.states import due_at
from omniq.task import StoredTask, TaskState
from omniq_nats.flow_records import GATES
from omniq_nats.flow_snapshot import Missing, Snapshot
from omniq_nats.flow_tasks import FlowTasks, Held
from omniq_nats.names import Names
from omniq_nats.results import EndRecord
from omniq_nats.task_lookup import Place, Torn
from omniq_nats.times import from_micros
from omniq_nats.transport import Write

__all__ = ["FlowTx"]

BLOCKED, READY, SCHEDULED, RUNNING = TaskState.BLOCKED, TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING
CANCELLED = TaskState.CANCELLED


class FlowTx(NoLimits):
    """One transaction over a snapshot.

    :param snapshot: what was read.
    :param names: of the namespace.
    :param now: the servers' time, in microseconds.
    :param fresh: whether tasks that are to be stored are taken to be new without a look; the servers refuse what is
        not.
    """

    def __init__(self, snapshot: Snapshot, names: Names, now: int, *, fresh: bool = False) -> None:
        self.micros = now
        self.now: datetime = from_micros(now)
        self.snapshot = snapshot
        self.was_fresh = False
        """Whether a task was taken to be new."""
        self.tasks = FlowTasks(snapshot, names, now)
        self.saved: dict[str, StoredTask] = {}
        self.removed: set[str] = set()
        self.inserted: dict[str, StoredTask] = {}
        self.changed_flows: dict[str, StoredFlow] = {}
        self.changed_gates: dict[str, dict[int, StoredGate]] = {}
        self.removed_flows: set[str] = set()
        self.postponed: dict[str, set[int]] = {}
        """By flow: gates behind which tasks of this very step have still to be moved."""
        self.expiring: Sequence[str] = ()
        """The ids of tasks that may have expired."""
        self.pasts: Mapping[str, EndRecord] | None = None
        """By id: what had become of the tasks that are inserted, if they come from another store."""
        self.also: Sequence[Write] = ()
        """Messages that belong to the step."""
        self._unseen: dict[str, set[int | None]] = {}
        """By flow: what this very step has looked for among tasks that it inserts: None, all that can be cancelled;
        a gate, those that ended as it broke. The step after this one looks again."""
        self._fresh = fresh

    # Lines follow from the states of queues: nothing of them is kept beside

    def line(self, line_id: str) -> StoredLine | None:
        return StoredLine(queue="", key=None, limit=None, place=ELIGIBLE, priority=2**63)

    # Tasks

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        found: dict[str, StoredTask] = {}
        missing = Missing()
        for task_id in dict.fromkeys(ids):
            if task_id in self.removed:
                continue
            known = self.saved.get(task_id) or self.inserted.get(task_id)
            if known is None and self._fresh:
                self.was_fresh = True
                continue
            try:
                known = known or self._loaded(task_id)
            except Missing as one:
                missing.add(one)
            if known is not None:
                found[task_id] = known
        if missing:
            raise missing
        return found

    def _loaded(self, task_id: str) -> StoredTask | None:
        place = self._place_of(task_id)
        if place is None:
            return None
        if isinstance(place, Torn):
            return salvaged(place.problem, task_id, {"queue": place.queue})
        held = self.tasks.at(*place)
        return None if held is None else self.tasks.record(held)

    def _place_of(self, task_id: str) -> Place | Torn | None:
        for queue, queue_state in self.snapshot.queue_states.items():
            entry = queue_state.running.get(task_id) or queue_state.waiting.get(task_id)
            if entry is not None:
                batch = self.snapshot.batch(queue, entry.batch, entry.seq)
                return None if batch is None or entry.index >= len(batch) else (batch, entry.index)
        if task_id not in self.snapshot.places:
            raise Missing(ids={task_id})
        return self.snapshot.places[task_id]

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        self.inserted.update((task.id, task) for task in tasks)

    def save(self, tasks: Sequence[StoredTask]) -> None:
        self.saved.update((task.id, task) for task in tasks)

    def remove(self, ids: Sequence[str]) -> None:
        self.removed.update(ids)

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        wanted = set(keys)
        if not wanted <= self.snapshot.keys.keys():
            raise Missing(keys=wanted)
        found = {key: self.snapshot.keys[key][0] for key in wanted}
        return {key: holder for key, holder in found.items() if holder is not None}

    def paused(self) -> set[str]:
        return set()

    def promote(self, queue: str, limit: int) -> Sequence[StoredTask]:
        raise NotImplementedError

    def ready(self, queue: str, limit: int, line: str = PLAIN) -> list[StoredTask]:
        raise NotImplementedError

    def lapsed(self, limit: int) -> list[StoredTask]:
        found: list[StoredTask] = []
        missing = Missing()
        for queue, queue_state in self.snapshot.queue_states.items():
            for entry in queue_state.running.values():
                if entry.flow is None or entry.until is None or entry.until > self.micros or len(found) >= limit:
                    continue
                try:
                    batch = self.snapshot.batch(queue, entry.batch, entry.seq)
                    held = None if batch is None else self.tasks.at(batch, entry.index)
                except Missing as one:
                    missing.add(one)
                    continue
                if held is not None:
                    found.append(self.tasks.record(held))
        if missing:
            raise missing
        return found

    def expired(self, limit: int) -> list[StoredTask]:
        tasks = self.load(self.expiring).values()
        waiting = [task for task in tasks if task.state in (READY, SCHEDULED)]
        return [task for task in waiting if task.expires_at is not None and task.expires_at <= self.now][:limit]

    def in_states(self, queue: str, states: Sequence[TaskState], limit: int) -> list[StoredTask]:
        raise NotImplementedError

    def dropped(self, limit: int) -> list[StoredTask]:
        return []

    # Flows

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        found: dict[str, StoredFlow] = {}
        missing = Missing()
        for flow_id in ids:
            if flow_id in self.removed_flows:
                continue
            try:
                record = self.snapshot.flow(flow_id)
            except Missing as one:
                missing.add(one)
                continue
            flow = self.changed_flows.get(flow_id) or (None if record is None else record.flow)
            if flow is not None:
                found[flow_id] = evolve(flow, agenda=dict(flow.agenda))
        if missing:
            raise missing
        return found

    def save_flow(self, flow: StoredFlow) -> None:
        unseen = self._unseen.get(flow.id, set())
        for n in {*self.postponed.get(flow.id, ()), *unseen}:
            if n is not None:
                flow.agenda[n] = None
        flow.cancelling = flow.cancelling or (flow.cancelled and None in unseen)
        self.changed_flows[flow.id] = flow

    def remove_flow(self, flow_id: str) -> None:
        self.removed_flows.add(flow_id)

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        record = self.snapshot.flow(flow_id)
        pages = [] if record is None else record.pages
        there = set(pages)
        changed = self.changed_gates.get(flow_id, {})
        wanted = None if numbers is None else list(numbers)
        found: dict[int, StoredGate] = {}
        missing = Missing()
        for page in pages if wanted is None else sorted({n // GATES for n in wanted} & there):
            try:
                found.update(self.snapshot.gate_page(flow_id, page).gates)
            except Missing as one:
                missing.add(one)
        if missing:
            raise missing
        found.update(changed)
        return {n: copy(found[n]) for n in (sorted(found) if wanted is None else wanted) if n in found}

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        changed = self.changed_gates.setdefault(flow_id, {})
        for gate in gates:
            changed[gate.n] = copy(gate)
            if gate.n in self._unseen.get(flow_id, ()):
                changed[gate.n].revives = True

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        if self.pasts is not None and (BLOCKED if behind is None else CANCELLED) in states:
            mine = [task for task in self.inserted.values() if task.flow == flow_id and task.state in states]
            if any(behind in (None, task.behind) for task in mine):
                self._unseen.setdefault(flow_id, set()).add(behind)
        if behind is not None and BLOCKED in states:
            if any(task.flow == flow_id and task.behind == behind for task in self.inserted.values()):
                # Where they are is known only once they are stored: the step after this one moves them.
                self.postponed.setdefault(flow_id, set()).add(behind)
            place = self._place(flow_id, behind) if tuple(states) == (BLOCKED,) else 0
        else:
            place = 0
        found: list[StoredTask] = []
        missing = Missing()
        for batch, index in self._walk(flow_id, behind, place):
            # One of which it is not known yet takes a place, so that no more is read than is needed.
            if limit is not None and len(found) + len(missing.results) >= limit:
                break
            try:
                held = self.tasks.at(batch, index)
                task = self._in_states(held, states)
            except Missing as one:
                missing.add(one)
                continue
            if task is not None:
                found.append(task)
        if missing:
            raise missing
        return found

    def _in_states(self, held: Held | None, states: Sequence[TaskState]) -> StoredTask | None:
        """Return a task as this transaction has left it, if it is in one of some states."""
        if held is None or held.id in self.removed:
            return None
        saved = self.saved.get(held.id)
        if saved is not None:
            return saved if saved.state in states else None
        return self.tasks.record(held) if held.state in states else None

    def count_members(self, flow_id: str) -> Mapping[TaskState, int]:
        counts: Counter[TaskState] = Counter()
        missing = Missing()
        for batch, index in self._walk(flow_id, None, 0):
            try:
                held = self.tasks.at(batch, index)
            except Missing as one:
                missing.add(one)
                continue
            if held is not None and held.id not in self.removed:
                counts[self.saved[held.id].state if held.id in self.saved else held.state] += 1
        if missing:
            raise missing
        for task in self.inserted.values():
            if task.flow == flow_id:
                # One that the next step is to move is on its way.
                counts[READY if task.behind in self.postponed.get(flow_id, ()) else task.state] += 1
        return counts

    def _place(self, flow_id: str, n: int) -> int:
        record = self.snapshot.flow(flow_id)
        if record is None or n // GATES not in record.pages:
            return 0
        return self.snapshot.gate_page(flow_id, n // GATES).places.get(n, 0)

    def _walk(self, flow_id: str, behind: int | None, place: int) -> Iterator[Place]:
        """Yield the places of tasks of a flow in the order of enqueueing."""
        missing = Missing()
        places: list[Place] = []
        record = self.snapshot.flow(flow_id)
        for row in () if record is None else self.snapshot.rows(record, behind):
            try:
                batch = self.snapshot.batch(row.queue, row.batch, row.seq)
            except Missing as one:
                if not missing.batches and behind is not None and record is not None:
                    missing.add(self.snapshot.ahead(record, row))
                missing.add(one)
                continue
            if batch is None or batch.problem is not None or batch.flow != flow_id or len(batch) != row.size:
                continue
            if batch.queue not in self.snapshot.queue_states:
                missing.queues.add(batch.queue)
            places += [
                (batch, index)
                for index in range(row.size)
                if behind in (None, row.behind[index]) and batch.rank(index) >= place
            ]
        if missing:
            raise missing
        places.sort(key=lambda one: one[0].rank(one[1]))
        yield from places

    def flow_of_key(self, key: str) -> str | None:
        if key not in self.snapshot.flow_keys:
            raise Missing(flow_keys={key})
        holder, _ = self.snapshot.flow_keys[key]
        if holder is None:
            return None
        record = self.snapshot.flow(holder)
        return holder if record is not None and record.flow.finished_at is None and record.flow.unique == key else None

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        due = []
        for flow_id, record in self.snapshot.flows.items():
            if flow_id in self.removed_flows:
                continue
            flow = self.changed_flows.get(flow_id) or (None if record is None else record.flow)
            at = None if flow is None else due_at(flow)
            if flow is None or (flow.finished_at is not None) is not ended or at is None or at > self.now:
                continue
            # What a step has put off to the next is not due in this one.
            if not (self.postponed.get(flow_id) and set(flow.agenda) <= self.postponed[flow_id]):
                due.append((at, flow_id))
        return [flow_id for _, flow_id in sorted(due)[:limit]]

    # The rest of a transaction is not asked for

    def seen(self, worker: str, lease: float, about: str | None) -> None:
        raise NotImplementedError

    def revision(self, schedule_id: str) -> int | None:
        raise NotImplementedError

    def schedule(self, schedule_id: str) -> Schedule | None:
        raise NotImplementedError

    def store_schedule(self, schedule: Schedule) -> None:
        raise NotImplementedError

    def remove_schedule(self, schedule_id: str) -> None:
        raise NotImplementedError

    def revision_floor(self) -> int:
        raise NotImplementedError

    def raise_revision_floor(self, revision: int) -> None:
        raise NotImplementedError
