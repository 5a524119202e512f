"""Flows and their gates in SQL."""

from __future__ import annotations

from collections.abc import Iterable

from omniq.flow import StoredFlow, StoredGate
from omniq.storage.corrupt_records import sound
from omniq.storage.rows import dump_flow, dump_gate, load_flow, load_gate
from omniq.storage.sql.statements import SqlStatements, hashed
from omniq.storage.states import due_at
from omniq.storage.times import optional_micros, to_micros

__all__ = ["SqlFlows"]

GATES_AT_ONCE = 500
"""Gates that one query asks for: a statement takes a bounded number of parameters."""


class SqlFlows(SqlStatements):
    """Primitives for flows and their gates."""

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        where = f"id IN %s ORDER BY id{self._lock}"
        rows = self.rows(f"SELECT id, body FROM {{flow}} WHERE {where}", list(dict.fromkeys(ids)))
        found = sound(rows, load_flow, self.problems)
        self._there.update(("flow", flow_id) for flow_id in found)
        return found

    def save_flow(self, flow: StoredFlow) -> None:
        due = due_at(flow)
        values = (
            None if flow.unique is None or flow.finished_at is not None else hashed(flow.unique),
            int(flow.finished_at is not None),
            optional_micros(due),
            dump_flow(flow),
            flow.id,
        )
        # One that was not there when it was looked for may be by now: it must not be replaced unseen.
        if ("flow", flow.id) in self._there:
            self.change("UPDATE {flow} SET live_key = %s, ended = %s, due = %s, body = %s WHERE id = %s", *values)
        else:
            self.change("INSERT INTO {flow} (live_key, ended, due, body, id) VALUES (%s, %s, %s, %s, %s)", *values)
        self._there.add(("flow", flow.id))

    def remove_flow(self, flow_id: str) -> None:
        self.change("DELETE FROM {gate} WHERE flow = %s", flow_id)
        self.change("DELETE FROM {flow} WHERE id = %s", flow_id)

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        if numbers is None:
            rows = self.rows("SELECT n, body FROM {gate} WHERE flow = %s", flow_id)
        else:
            wanted = list(numbers)
            parts = [wanted[start : start + GATES_AT_ONCE] for start in range(0, len(wanted), GATES_AT_ONCE)]
            select = "SELECT n, body FROM {gate} WHERE flow = %s AND n IN %s"
            rows = [row for part in parts for row in self.rows(select, flow_id, part)]
        self._there.update(("gate", flow_id, n) for n, _ in rows)
        return sound(rows, lambda body, n: load_gate(body, flow_id, n), self.problems)

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        rows = [(dump_gate(gate), flow_id, gate.n) for gate in gates]
        there = [row for row in rows if ("gate", *row[1:]) in self._there]
        self.change_many("UPDATE {gate} SET body = %s WHERE flow = %s AND n = %s", there)
        new = [row for row in rows if ("gate", *row[1:]) not in self._there]
        self.change_many("INSERT INTO {gate} (body, flow, n) VALUES (%s, %s, %s)", new)
        self._there.update(("gate", *row[1:]) for row in new)

    def flow_of_key(self, key: str) -> str | None:
        found = self.rows("SELECT id FROM {flow} WHERE live_key = %s", hashed(key))
        return found[0][0] if found else None

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        where = "ended = %s AND due <= %s ORDER BY due LIMIT %s"
        rows = self.rows(f"SELECT id, body FROM {{flow}} WHERE {where}", int(ended), to_micros(self.now), limit)
        found = sound(rows, load_flow, self.problems)
        # What cannot be read must not stand before the others for ever.
        stray = [flow_id for flow_id, _ in rows if flow_id not in found]
        self.change("UPDATE {flow} SET due = NULL WHERE id IN %s", stray)
        return list(found)
