"""Makes what is kept of flows agree with their tasks again, as part of the repair of a store.

The files of tasks say which are live and what they feed. How many each gate still waits for, and whether its time has
come, follows from them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from attrs import define, field

from omniq.errors import CorruptRecord
from omniq.flow import GateState, StoredFlow, StoredGate
from omniq.storage.escaping import get_logger
from omniq.storage.times import LATEST, from_micros
from omniq.task import TaskState
from omniq_local.files.flow_records import FlowRecord, GatesFile, read_flow
from omniq_local.files.names import (
    MEMBERS_IN_A_FOLDER,
    flow_key_path,
    gates_path,
    home_path,
    parse_entry,
    parse_member,
    part_of,
)
from omniq_local.files.queues import DUE, KEPT, FlowLine
from omniq_local.files.records import ENDED, Record
from omniq_local.files.tree import Tree

__all__ = ["FlowRepair"]

_log = get_logger("omniq.files")

_LOST = "it failed, or was lost, as the machine went down"


@define
class _Found:
    """What the tasks of a flow say of it."""

    live: int = 0
    created: int = LATEST
    """When the first was enqueued."""
    ended: int = 0
    """When the last of those that have ended did."""
    result_ttl: float = 0.0
    folders: set[tuple[int, int]] = field(factory=set)
    fed: set[int] = field(factory=set)
    """The gates that they feed."""
    unmet: Counter[int] = field(factory=Counter)
    failed: Counter[int] = field(factory=Counter)
    behind: set[int] = field(factory=set)
    """The gates that they stand behind."""
    blocked: set[int] = field(factory=set)
    """The gates that some still wait for."""


class FlowRepair:
    """The repair of all flows of a store.

    :param tree: the namespace's files.
    :param generation: of the store after it.
    :param set_aside: moves a file aside that is torn, or none of ours.
    """

    def __init__(self, tree: Tree, generation: int, set_aside: Callable[[str], None]) -> None:
        self._tree = tree
        self._set_aside = set_aside
        self._found: defaultdict[str, _Found] = defaultdict(_Found)
        self._names: set[str] = set()
        self._homes: set[str] = set()
        self._line = FlowLine(tree, set_aside)
        self._line.counts = dict.fromkeys((DUE, KEPT), 0)
        for state_folder in self._line.state_folders.values():
            state_folder.epoch = generation

    def keep(self, record: Record) -> str:
        """Note a task of a flow; return where it is found by that."""
        order = record.order
        assert order.flow is not None
        found, is_live = self._found[order.flow], record.state not in ENDED
        found.live += is_live
        found.created = min(found.created, record.created_at)
        found.result_ttl = max(found.result_ttl, order.result_ttl)
        found.ended = max(found.ended, record.finished_at or 0)
        found.folders.add((part_of(order.behind), record.sequence // MEMBERS_IN_A_FOLDER))
        for feed in order.feeds:
            found.fed.add(feed.gate)
            found.unmet[feed.gate] += is_live
            found.failed[feed.gate] += feed.needs_success and record.state in (TaskState.FAILED, TaskState.CANCELLED)
        if order.behind is not None:
            found.behind.add(order.behind)
            if record.state is TaskState.BLOCKED:
                found.blocked.add(order.behind)
        self._homes.add(record.home)
        path = record.by_flow(record.state)
        self._names.add(path)
        return path

    def run(self, sequence: int) -> int:
        """Repair them; return the largest sequence number.

        :param sequence: the largest of a task.
        """
        for path in list(self._tree.walk("flows/keys")):
            self._tree.remove(path)
        for path in list(self._tree.walk("flows/ids")):
            try:
                record = read_flow(self._tree, path)
            except CorruptRecord:
                record = None
            if record is None:
                self._set_aside(path)
                continue
            sequence = max(sequence, record.sequence)
            self._keep_flow(record, self._found.pop(record.flow.id, _Found()))
        for flow_id, found in self._found.items():
            _log.warning("%s: flow %s is lost; it is made anew of its tasks", self._tree.base, flow_id)
            sequence += 1
            flow = StoredFlow(id=flow_id, created_at=from_micros(found.created), result_ttl=found.result_ttl)
            flow.audit_at = flow.created_at
            self._keep_flow(FlowRecord(flow=flow, sequence=sequence), found)
        for place in ("gates", "members", DUE, KEPT):
            for path in list(self._tree.walk(f"flows/{place}")):
                if path not in self._names:
                    self._drop(path)
        self._tree.replace(self._line.path, self._line.dump(), cut=True)
        return sequence

    def _keep_flow(self, record: FlowRecord, found: _Found) -> None:
        flow = record.flow
        files = self._gates(record, found.fed | found.behind)
        gates = [gate for file in files.values() for n in file.numbers() if (gate := _load(file, flow.id, n))]
        lost = (found.fed | found.behind).difference([gate.n for gate in gates])
        # One that nothing feeds and behind which something waits was held, and is not to open before its time.
        gates += [StoredGate(n=n, rank="", failed=int(n in found.blocked - found.fed)) for n in lost]
        for gate in gates:
            if gate.state is not GateState.OPEN:
                gate.unmet = gate.holds + found.unmet[gate.n]
                gate.failed = max(gate.failed, found.failed[gate.n])
            if gate.state is GateState.SHUT and (gate.failed or not gate.unmet):
                gate.state = GateState.BROKEN if gate.failed else GateState.OPEN
                gate.error = gate.error or (_LOST if gate.failed else "")
            if gate.state is not GateState.SHUT and gate.n in found.blocked:
                flow.agenda[gate.n] = None
            files[part_of(gate.n)].put(gate)
        flow.live, flow.held = found.live, sum(gate.holds for gate in gates)
        if flow.held and flow.hold_until is None:
            flow.hold_until = flow.created_at  # how long its builder has cannot be told any more
        if not flow.is_over:
            flow.finished_at = None
        elif flow.finished_at is None:
            flow.finished_at = max(flow.created_at, from_micros(found.ended))
        record.folders = found.folders
        record.parts = set(files)
        for part, file in files.items():
            path = gates_path(record.token, part)
            self._names.add(path)
            if (content := file.dump()) != file.raw:
                self._tree.replace(path, content, cut=True)
        self._find(record)

    def _gates(self, record: FlowRecord, named: Iterable[int]) -> dict[int, GatesFile]:
        files = {}
        for part in sorted(record.parts | {part_of(n) for n in named}):
            try:
                raw = self._tree.read(gates_path(record.token, part))
            except OSError:
                raw = None
            files[part] = GatesFile(raw)
        return files

    def _find(self, record: FlowRecord) -> None:
        """Write a flow down, and have it be found by all that it is found by."""
        self._tree.replace(record.home, record.dump(), cut=True)
        self._homes.add(record.home)
        shelf, key = record.stand()
        if key:
            state_folder = self._line.state_folders[shelf]
            path = state_folder.file(key, record.token)
            self._link(record.home, path)
            self._names.add(path)
            self._line.counts[shelf] += 1
            state_folder.stretch(key)
        if record.flow.unique is not None and record.flow.finished_at is None:
            self._link(record.home, flow_key_path(record.flow.unique))

    def _link(self, home: str, path: str) -> None:
        if not self._tree.is_same(home, path):
            self._tree.link(home, path)

    def _drop(self, path: str) -> None:
        """Remove a name that a file no longer has; a file without any other name is moved aside."""
        place, name = path.split("/")[1], path.rpartition("/")[2]
        home = ""
        if place == "members" and (member := parse_member(name)) is not None:
            home = home_path(member.sequence, member.id_token)
        elif place in (DUE, KEPT) and (entry := parse_entry(name)) is not None:
            home = self._line.state_folders[place].home_of(entry)
        if home in self._homes or self._tree.names_of(path) > 1:
            self._tree.remove(path)
        else:
            self._set_aside(path)


def _load(file: GatesFile, flow_id: str, n: int) -> StoredGate | None:
    try:
        return file.load(flow_id, n)
    except CorruptRecord as problem:
        _log.warning("%s", problem)
        return None
