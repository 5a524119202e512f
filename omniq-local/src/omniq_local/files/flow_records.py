"""The files of flows: one of each flow, one of up to fifty of its gates, and a folder of names of its tasks.

A task of a flow has one name more than others, in a folder of its flow, which tells the gate that it stands behind and
its state. So what is behind a gate, and how far a flow has come, is told by names alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from attrs import define, field

from omniq.errors import CorruptRecord
from omniq.flow import StoredFlow, StoredGate
from omniq.storage.corrupt_records import corrupt
from omniq.storage.rows import dump_flow, dump_gate, load_flow, load_gate
from omniq.storage.states import due_at
from omniq.storage.times import to_micros
from omniq.storage.validation import UNREADABLE
from omniq_local.files.encoding import dump_json
from omniq_local.files.journal import LAST_SEQUENCE
from omniq_local.files.names import flow_path, gates_path, members_folder, text_of, time_key, token
from omniq_local.files.queues import DUE, KEPT
from omniq_local.files.tree import NO_FILE, Tree

__all__ = ["FlowRecord", "GatesFile", "gate_problems", "read_flow"]


@define(eq=False)
class FlowRecord:
    """One flow as it is in its file, or shall be."""

    flow: StoredFlow
    sequence: int
    """Its number among all tasks and flows, so that no two of them have one place in any order."""
    parts: set[int] = field(factory=set)
    """The files of its gates that there are."""
    folders: set[tuple[int, int]] = field(factory=set)
    """The folders of its tasks: part and block of each."""

    raw: bytes | None = None
    """The file as it is; None if there is none."""
    was: tuple[str, str] = ("", "")
    """The folder and the key by which the flow is found as one that is due; empty if it is not in the store yet."""
    aim: tuple[str, str] = ("", "")
    """The same as the change under way is to make them."""
    was_live: bool = False
    """Whether it had not ended before this change."""
    removed: bool = False

    @property
    def token(self) -> str:
        """The part of its files' names that stands for it."""
        return token(self.flow.id)

    @property
    def home(self) -> str:
        """Where its file is."""
        return flow_path(self.token)

    def stand(self) -> tuple[str, str]:
        """Return the folder and the key by which it is found as one that is due."""
        due = due_at(self.flow)
        if due is None:
            return "", ""
        return DUE if self.flow.finished_at is None else KEPT, time_key(max(to_micros(due), 0), self.sequence)

    def dump(self) -> bytes:
        """Return the file."""
        return dump_json(
            {
                "flow": json.loads(dump_flow(self.flow)),
                "sequence": self.sequence,
                "parts": sorted(self.parts),
                "folders": sorted(self.folders),
            }
        )

    def gate_files(self) -> list[str]:
        """Return the paths of the files of its gates."""
        return [gates_path(self.token, part) for part in sorted(self.parts)]

    def member_folders(self, part: int | None = None) -> list[str]:
        """Return the folders of its tasks.

        :param part: only those of tasks that stand behind the gates of this file; None: all.
        """
        return [members_folder(self.token, one, block) for one, block in sorted(self.folders) if part in (None, one)]


def read_flow(tree: Tree, path: str, flow_id: str | None = None) -> FlowRecord | None:
    """Return the flow in a file; None if there is none.

    :param flow_id: by which it was found; None: by the file's name.
    :raises CorruptRecord: if it cannot be read, or is of another flow.
    """
    name = flow_id or text_of(path.rpartition("/")[2].removesuffix(".json"))
    try:
        data = tree.read(path)
        text = json.loads(data)
        flow = load_flow(json.dumps(text["flow"]), name or text["flow"][0])
        record = FlowRecord(flow=flow, sequence=text["sequence"], raw=data)
        record.parts = {_number(part) for part in text["parts"]}
        record.folders = {(_number(part), _number(block)) for part, block in text["folders"]}
        if record.home != path or not 0 < _number(record.sequence) <= LAST_SEQUENCE:
            raise ValueError("it is not the file of its flow")
        record.was = record.aim = record.stand()
        record.was_live = flow.finished_at is None
    except FileNotFoundError:
        return None
    except CorruptRecord as error:
        raise corrupt("flow", name or path, str(error), place=f"{tree.base}/{path}") from error
    except UNREADABLE as error:
        raise corrupt("flow", name or path, error, place=f"{tree.base}/{path}") from error
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise corrupt("flow", name or path, "it is no regular file", place=f"{tree.base}/{path}") from error
    return record


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.100} in place of a number")
    return value


class GatesFile:
    """Up to fifty gates of one flow: a line of JSON for each.

    :param raw: the file as it is; None if there is none.
    :param is_there: whether what it says counts.
    """

    def __init__(self, raw: bytes | None, *, is_there: bool = True) -> None:
        self.raw = raw
        self._lines: dict[int, bytes] = {}
        self.problems: list[str] = []
        """What is wrong with lines that are none of a gate."""
        for line in raw.splitlines() if raw is not None and is_there else ():
            number = line[1:].partition(b",")[0]
            if line.startswith(b"[") and number.isdigit() and len(number) < 11:
                self._lines[int(number)] = line
            else:
                self.problems.append(f"{line!r:.100} in place of a gate")

    def numbers(self) -> Iterable[int]:
        """Return the numbers of the gates that are there."""
        return self._lines.keys()

    def load(self, flow_id: str, n: int) -> StoredGate | None:
        """Return a gate; None if it is not there.

        :raises CorruptRecord: if it cannot be read.
        """
        line = self._lines.get(n)
        return None if line is None else load_gate(line, flow_id, n)

    def put(self, gate: StoredGate) -> None:
        """Add a gate, or replace the one with its number."""
        self._lines[gate.n] = dump_gate(gate).encode()

    def dump(self) -> bytes:
        """Return the file."""
        return b"".join([line + b"\n" for _, line in sorted(self._lines.items())])


def gate_problems(tree: Tree, record: FlowRecord) -> Iterable[CorruptRecord]:
    """Yield what is wrong with each gate of a flow that cannot be read."""
    for path in record.gate_files():
        place = f"{tree.base}/{path}"
        try:
            file = GatesFile(tree.read(path))
        except OSError as error:
            yield corrupt("flow", record.flow.id, error, place=place)
            continue
        yield from (corrupt("flow", record.flow.id, problem, place=place) for problem in file.problems)
        for n in file.numbers():
            try:
                file.load(record.flow.id, n)
            except CorruptRecord as error:
                yield corrupt("flow", record.flow.id, str(error), place=place)
