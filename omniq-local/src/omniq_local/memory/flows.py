"""The flows of a memory store: their gates, their tasks by state, and which of them have something to be done."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from datetime import datetime

from attrs import evolve

from omniq.flow import StoredFlow, StoredGate
from omniq.storage.states import due_at
from omniq.task import StoredTask, TaskState
from omniq_local.memory.records import Record

__all__ = ["Flows"]

_Place = tuple[int | None, TaskState]
"""A gate (None: any, or none) and the state of the tasks behind it."""


class Flows:
    """The part of a store that keeps them: primitives of a transaction, used under the store's lock."""

    now: datetime

    def __init__(self) -> None:
        super().__init__()
        self._flows: dict[str, StoredFlow] = {}
        self._gates: dict[str, dict[int, StoredGate]] = {}
        self._members: dict[str, dict[_Place, dict[int, Record]]] = {}
        self._keys: dict[str, str] = {}
        self._due: dict[bool, dict[str, datetime]] = {False: {}, True: {}}
        """By whether they have ended: when something is to be done about them."""

    # Tasks

    def enter_flow(self, record: Record) -> None:
        """Note where a task of a flow stands."""
        for place in _places(record.task):
            self._of(record).setdefault(place, {})[record.sequence] = record

    def leave_flow(self, record: Record) -> None:
        members = self._of(record)
        for place in _places(record.task):
            members[place].pop(record.sequence, None)
            if not members[place]:
                del members[place]

    def _of(self, record: Record) -> dict[_Place, dict[int, Record]]:
        assert record.task.flow is not None
        return self._members.setdefault(record.task.flow, {})

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        places = self._members.get(flow_id, {})
        found: dict[int, Record] = {}
        for state in states:
            found.update(places.get((behind, state), {}))
        order = sorted(found) if limit is None else heapq.nsmallest(limit, found)
        return [found[sequence].task for sequence in order]

    def count_members(self, flow_id: str) -> dict[TaskState, int]:
        counts: dict[TaskState, int] = defaultdict(int)
        for (behind, state), records in self._members.get(flow_id, {}).items():
            if behind is None:
                counts[state] += len(records)
        return counts

    # Flows and gates

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        # Copies, so that a step that is refused half-way has changed nothing.
        found = [self._flows[flow_id] for flow_id in ids if flow_id in self._flows]
        return {flow.id: evolve(flow, agenda=dict(flow.agenda)) for flow in found}

    def save_flow(self, flow: StoredFlow) -> None:
        self._flows[flow.id] = flow
        self._gates.setdefault(flow.id, {})
        ended = flow.finished_at is not None
        if flow.unique is not None:
            if not ended:
                self._keys[flow.unique] = flow.id
            elif self._keys.get(flow.unique) == flow.id:
                del self._keys[flow.unique]
        self._due[not ended].pop(flow.id, None)
        at = due_at(flow)
        if at is None:
            self._due[ended].pop(flow.id, None)
        else:
            self._due[ended][flow.id] = at

    def remove_flow(self, flow_id: str) -> None:
        del self._flows[flow_id], self._gates[flow_id]
        self._members.pop(flow_id, None)
        for due in self._due.values():
            due.pop(flow_id, None)

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        gates = self._gates.get(flow_id, {})
        wanted = sorted(gates) if numbers is None else [n for n in numbers if n in gates]
        return {n: copy(gates[n]) for n in wanted}

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        self._gates.setdefault(flow_id, {}).update({gate.n: gate for gate in gates})

    def flow_of_key(self, key: str) -> str | None:
        return self._keys.get(key)

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        due = self._due[ended]
        if not due:
            return []
        return [one for at, one in heapq.nsmallest(limit, ((at, one) for one, at in due.items() if at <= self.now))]


def _places(task: StoredTask) -> tuple[_Place, ...]:
    whole: _Place = None, task.state
    return (whole,) if task.behind is None else (whole, (task.behind, task.state))
