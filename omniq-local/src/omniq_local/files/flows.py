"""The flows of one change: the primitives over which :mod:`omniq.storage.flow_transitions` says what becomes of them.

A task that has no flow never comes here. What is done is gathered, and becomes part of the change as the transaction
asks for its actions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from omniq.errors import CorruptRecord
from omniq.flow import StoredFlow, StoredGate
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.flow_transitions import count_ends, doubt
from omniq.storage.validation import UNREADABLE
from omniq.task import StoredTask
from omniq_local.files.flow_records import FlowRecord, GatesFile, read_flow
from omniq_local.files.journal import Action
from omniq_local.files.limits import LimitSteps
from omniq_local.files.names import (
    Entry,
    flow_key_path,
    flow_path,
    gates_path,
    parse_entry,
    part_of,
    text_of,
    token,
)
from omniq_local.files.queues import DUE, KEPT

if TYPE_CHECKING:
    from omniq_local.files.transaction import Transaction

__all__ = ["Flows"]

_log = get_logger("omniq.files")


class Flows(LimitSteps):
    """The flows of one change, and the limits.

    :param transaction: the change.
    """

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction)
        self._saved: dict[str, FlowRecord] = {}
        self._gates: dict[tuple[str, int], GatesFile] = {}
        self._changed_gates: set[tuple[str, int]] = set()
        self._due: dict[str, Iterator[str]] = {}
        self.line_changed = False
        """Whether the line of all flows is another than before."""

    def follow(self, ends: Sequence[StoredTask], gone: Sequence[StoredTask]) -> None:
        """Do what follows from the ends of tasks, and from that some that cannot be read are gone."""
        if ends:
            count_ends(self, ends)
        if gone:
            doubt(self, gone)

    # Flows

    def _record(self, flow_id: str) -> FlowRecord | None:
        if flow_id not in self._records:
            self._records[flow_id] = self._read_flow(flow_path(token(flow_id)), flow_id)
        record = self._records[flow_id]
        return None if record is None or record.removed else record

    def _read_flow(self, path: str, flow_id: str | None) -> FlowRecord | None:
        try:
            return read_flow(self._tree, path, flow_id)
        except CorruptRecord as problem:
            log_once(_log, problem)
            return None

    def flows(self, ids: Iterable[str]) -> dict[str, StoredFlow]:
        found = {flow_id: self._record(flow_id) for flow_id in ids}
        return {flow_id: record.flow for flow_id, record in found.items() if record is not None}

    def save_flow(self, flow: StoredFlow) -> None:
        record = self._record(flow.id)
        if record is None:
            self._transaction.sequence += 1
            record = FlowRecord(flow=flow, sequence=self._transaction.sequence)
            record.raw = self._transaction.content(record.home)
            record.parts = {part for flow_id, part in self._changed_gates if flow_id == flow.id}
            record.folders = self._placed.pop(flow.id, set())
            self._records[flow.id] = record
        record.flow = flow
        self._saved[flow.id] = record

    def remove_flow(self, flow_id: str) -> None:
        record = self._record(flow_id)
        if record is not None:
            record.removed = True
            self._saved[flow_id] = record

    def flow_of_key(self, key: str) -> str | None:
        for saved in self._saved.values():
            if saved.flow.unique == key and saved.flow.finished_at is None and not saved.removed:
                return saved.flow.id
        try:
            flow_id = json.loads(self._transaction.content(flow_key_path(key)) or b"")["flow"][0]
        except UNREADABLE:
            return None
        flow = self.flows([flow_id]).get(flow_id) if isinstance(flow_id, str) else None
        return flow.id if flow is not None and flow.unique == key and flow.finished_at is None else None

    def due_flows(self, ended: bool, limit: int) -> list[str]:
        shelf = KEPT if ended else DUE
        if shelf not in self._due:
            self._due[shelf] = self._due_in(shelf)
        return list(islice(self._due[shelf], limit))

    def _due_in(self, shelf: str) -> Iterator[str]:
        """Yield the flows of a folder whose time has come, each once."""
        line = self._folder.flows()
        if not line.has_due(shelf, self._transaction.now):
            return
        for path in list(line.state_folders[shelf].until(self._transaction.now)):
            entry = parse_entry(path.rpartition("/")[2])
            assert entry is not None
            flow_id = self._found_at(shelf, path, entry)
            if flow_id is not None:
                yield flow_id

    def _found_at(self, shelf: str, path: str, entry: Entry) -> str | None:
        """Return the flow that a name leads to; None if it is not due there, or cannot be read."""
        flow_id = text_of(entry.id_token)
        if flow_id is None:
            found = self._read_flow(flow_path(entry.id_token), None)
            flow_id = None if found is None else found.flow.id
        record = None if flow_id is None else self._record(flow_id)
        if record is not None and record.was == (shelf, entry.key):
            now_at, key = record.stand()
            return record.flow.id if now_at == shelf and int(key[:18]) <= self._transaction.now else None
        self._folder.set_aside(path, "no flow that can be read is found there")
        line = self._folder.flows()
        self.line_changed = True
        line.state_folders[shelf].take_away(entry.key, entry.id_token)
        line.counts[shelf] = max(0, line.counts[shelf] - 1)
        return None

    # Gates

    def _file(self, flow_id: str, part: int) -> GatesFile:
        file = self._gates.get((flow_id, part))
        if file is None:
            # What is left of a flow that was there before is none of the gates of a new one.
            stored = self._record(flow_id)
            is_there = stored is not None and part in stored.parts
            file = GatesFile(self._transaction.content(gates_path(token(flow_id), part)), is_there=is_there)
            self._gates[flow_id, part] = file
        return file

    def gates(self, flow_id: str, numbers: Iterable[int] | None) -> dict[int, StoredGate]:
        if numbers is None:
            record = self._record(flow_id)
            parts = [] if record is None else sorted(record.parts)
            numbers = [n for part in parts for n in self._file(flow_id, part).numbers()]
        found = {}
        for n in numbers:
            try:
                gate = self._file(flow_id, part_of(n)).load(flow_id, n)
            except CorruptRecord as problem:
                log_once(_log, problem)
            else:
                if gate is not None:
                    found[n] = gate
        return found

    def save_gates(self, flow_id: str, gates: Iterable[StoredGate]) -> None:
        record = self._record(flow_id)
        for gate in gates:
            part = part_of(gate.n)
            self._file(flow_id, part).put(gate)
            self._changed_gates.add((flow_id, part))
            if record is not None:
                record.parts.add(part)

    # What is written

    def prepare(self) -> None:
        """Work out where flows are found as those that are due, and make room there."""
        for record in self._saved.values():
            record.aim = ("", "") if record.removed else record.stand()
            shelf, key = record.aim
            if key and record.aim != record.was:
                self._transaction.make_room_for(key, self._folder.flows().state_folders[shelf])

    def actions(self, made: list[Action], writes: list[Action], moves: list[Action], removals: list[Action]) -> None:
        """Add what is to be done, in the order in which these lists are done."""
        for flow_id, part in sorted(self._changed_gates):
            file, path = self._gates[flow_id, part], gates_path(token(flow_id), part)
            if not self._is_removed(flow_id):
                writes.append(("write", path, file.dump(), file.raw))
        for record in self._saved.values():
            self._key(record, made, removals)
            self._due_name(record, made, moves, removals)
            if record.removed:
                removals += [("remove", path) for path in (*record.gate_files(), record.home)]
                removals += [("clear", path) for path in record.member_folders()]
                self._transaction.layout_changed()
            elif record.raw is None:
                made.insert(0, ("create", record.home, record.dump()))
            elif (content := record.dump()) != record.raw:
                writes.append(("write", record.home, content, record.raw))

    def _is_removed(self, flow_id: str) -> bool:
        saved = self._saved.get(flow_id)
        return saved is not None and saved.removed

    def _key(self, record: FlowRecord, made: list[Action], removals: list[Action]) -> None:
        """Have a flow that has not ended be found by its unique key, and no other."""
        key, live = record.flow.unique, record.flow.finished_at is None and not record.removed
        if key is None or live is record.was_live:
            return
        path = flow_key_path(key)
        if not live:
            if self._tree.is_same(path, record.home):
                removals.append(("remove", path))
        elif self.flow_of_key(key) == record.flow.id:
            made.append(("link", record.home, path))

    def _due_name(self, record: FlowRecord, made: list[Action], moves: list[Action], removals: list[Action]) -> None:
        if record.aim == record.was:
            return
        line = self._folder.flows()
        self.line_changed = True
        (shelf, key), (old_shelf, old_key) = record.aim, record.was
        old = new = ""
        if old_key:
            old = line.state_folders[old_shelf].file(old_key, record.token)
            line.state_folders[old_shelf].take_away(old_key, record.token)
            line.counts[old_shelf] = max(0, line.counts[old_shelf] - 1)
        if key:
            new = self._transaction.put(line.state_folders[shelf], key, record.token)
            line.counts[shelf] += 1
            if shelf == DUE and int(key[:18]) <= self._transaction.now:
                self._transaction.follows = True
        if old and new:
            moves.append(("move", old, new, record.home))
        elif new:
            made.append(("link", record.home, new))
        elif old:
            removals.append(("remove", old))
