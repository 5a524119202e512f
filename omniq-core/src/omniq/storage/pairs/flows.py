"""Flows and their gates in pairs of bytes."""

from __future__ import annotations

from collections.abc import Iterable

from omniq.flow import StoredFlow, StoredGate
from omniq.storage.corrupt_records import sound
from omniq.storage.pairs.buffer import PairsBuffer
from omniq.storage.pairs.keys import key, number_in, text_of
from omniq.storage.rows import dump_flow, dump_gate, load_flow, load_gate
from omniq.storage.states import due_at
from omniq.storage.times import to_micros

__all__ = ["PairsFlows"]


class PairsFlows(PairsBuffer):
    """Primitives for flows and their gates."""

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        where = {flow_id: key("F", flow_id) for flow_id in ids}
        stored = self._get(where.values())
        found = [(flow_id, stored[at]) for flow_id, at in where.items() if at in stored]
        return sound(found, load_flow, self.problems)

    def _flow(self, flow_id: str | None) -> StoredFlow | None:
        return None if flow_id is None else self.flows([flow_id]).get(flow_id)

    def _flow_entries(self, flow: StoredFlow) -> dict[bytes, bytes]:
        """Return the keys under which a flow is found, besides its id."""
        found, name, due, ended = {}, flow.id.encode(), due_at(flow), flow.finished_at is not None
        if due is not None:
            found[key("H", int(ended), to_micros(due), flow.id)] = name
        if flow.unique is not None and not ended:
            found[key("K", flow.unique)] = name
        return found

    def save_flow(self, flow: StoredFlow) -> None:
        self._forget_flow(flow.id)
        self._write({key("F", flow.id): dump_flow(flow).encode(), **self._flow_entries(flow)})

    def _forget_flow(self, flow_id: str) -> None:
        old = self._flow(flow_id)
        self._write({}, [key("F", flow_id), *(() if old is None else self._flow_entries(old))])

    def remove_flow(self, flow_id: str) -> None:
        self._forget_flow(flow_id)
        self._write({}, [where for where, _ in list(self._entries_in(key("G", flow_id)))])

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        if numbers is None:
            values = dict(self._entries_in(key("G", flow_id)))
        else:
            values = self._get(key("G", flow_id, n) for n in numbers)
        stored = [(number_in(where, -8), value) for where, value in values.items()]
        return sound(stored, lambda value, n: load_gate(value, flow_id, n), self.problems)

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        values = {key("G", flow_id, gate.n): dump_gate(gate).encode() for gate in gates}
        if values:
            self._write(values)

    def flow_of_key(self, unique: str) -> str | None:
        value = self._one(key("K", unique))
        flow = None if value is None else self._flow(text_of(value))
        return flow.id if flow is not None and flow.unique == unique and flow.finished_at is None else None

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        found: list[str] = []
        stray = []
        for where, value in self._entries_in(key("H", int(ended)), key(to_micros(self.now) + 1)):
            flow = self._flow(text_of(value))
            if flow is None or where not in self._flow_entries(flow):
                stray.append(where)
                continue
            found.append(flow.id)
            if len(found) == limit:
                break
        if stray:
            self._write({}, stray)
        return found
