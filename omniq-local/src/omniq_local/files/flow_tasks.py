"""The tasks of flows within one change: what the verbs of flows ask of them, and do to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from omniq.errors import CorruptRecord
from omniq.storage.corrupt_records import corrupt, salvaged
from omniq.storage.times import from_micros, to_micros
from omniq.storage.validation import UNREADABLE
from omniq.storage.values import Salvaged
from omniq.task import NewTask, StoredTask, TaskState
from omniq_local.files.encoding import id_in, parse_record, stand_in
from omniq_local.files.flow_records import FlowRecord
from omniq_local.files.members import Members
from omniq_local.files.names import MEMBERS_IN_A_FOLDER, Member, member_path, part_of, text_of, token
from omniq_local.files.records import ENDED, Record, new_record

if TYPE_CHECKING:
    from omniq_local.files.transaction import Transaction

__all__ = ["FlowTasks"]

_MOVING = (TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING)
_ORDER = (
    *("id", "queue", "name", "body", "priority", "max_retries", "unique", "tags", "result_ttl"),
    *("flow", "behind", "feeds", "key", "limit"),
)
"""The fields of a stored task that are its producer's."""


class FlowTasks:
    """The tasks of flows, as one change finds and leaves them.

    :param transaction: the change.
    """

    def __init__(self, transaction: Transaction) -> None:
        self.now = from_micros(transaction.now)
        self._transaction = transaction
        self._folder = transaction.folder
        self._tree = transaction.folder.tree
        self._records: dict[str, FlowRecord | None] = {}
        self._placed: dict[str, set[tuple[int, int]]] = {}
        """The folders that tasks are put into, of flows that are not stored yet."""
        self._members: dict[tuple[str, int], Members] = {}
        self._unreadable: dict[str, tuple[CorruptRecord, Member]] = {}
        self._dropped: set[int] = set()
        """The sequence numbers of those whose names are removed though they stay."""

    def _record(self, flow_id: str) -> FlowRecord | None:
        """Return a flow as this change leaves it; None if it is not there, or cannot be read."""
        raise NotImplementedError

    # Tasks

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        found = {task_id: self._transaction.fetch(task_id) for task_id in ids}
        return {task_id: record.task() for task_id, record in found.items() if record is not None}

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        found = {key: self._transaction.holder(key) for key in keys}
        return {key: holder for key, holder in found.items() if holder is not None}

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        for task in tasks:
            record = new_record(NewTask(**{name: getattr(task, name) for name in _ORDER}), self._transaction.now)
            record.opening_delay = task.opening_delay
            record.created_at = to_micros(task.created_at)
            record.first_at = None if task.first_at is None else to_micros(task.first_at)
            _change(record, task)
            self._transaction.add(record)
            if task.flow is not None:
                place = part_of(task.behind), record.sequence // MEMBERS_IN_A_FOLDER
                stored = self._record(task.flow)
                folders = self._placed.setdefault(task.flow, set()) if stored is None else stored.folders
                folders.add(place)
                self.moved(record)

    def save(self, tasks: Sequence[StoredTask]) -> None:
        for task in tasks:
            if isinstance(task, Salvaged):
                self._end_unreadable(task)
                continue
            record = self._transaction.fetch(task.id)
            assert record is not None
            was_live = record.state not in ENDED
            _change(record, task)
            self._transaction.touch(record)
            if was_live and record.state in ENDED:
                self._transaction.ended.append(task.id)
            self.moved(record)

    def moved(self, record: Record) -> None:
        """Note that a task has come, has another state, or is gone."""
        members = self._members.get((record.order.flow or "", part_of(record.order.behind)))
        if members is not None:
            if record.removed:
                members.discard(record.sequence)
            else:
                members.put(record.member())

    def forget(self, flow_id: str, member: Member) -> None:
        """Note that a name of a task is removed."""
        self._dropped.add(member.sequence)
        members = self._members.get((flow_id, part_of(member.behind)))
        if members is not None:
            members.discard(member.sequence)

    def remove(self, ids: Sequence[str]) -> None:
        for task_id in ids:
            record = None if task_id in self._unreadable else self._transaction.fetch(task_id)
            if record is None or record.stand_in is not None:
                self._transaction.erase(task_id)
            else:
                self._transaction.remove(record)

    # Members

    def _listed(self, flow_id: str, part: int) -> Members:
        """Return the names of tasks of a flow that stand behind the gates of one file."""
        members = self._members.get((flow_id, part))
        if members is None:
            record = self._record(flow_id)
            folders = [] if record is None else record.member_folders(part)
            members = self._members[flow_id, part] = Members(self._tree, folders, self._folder.set_aside)
            for touched in self._transaction.touched():
                if touched.order.flow == flow_id and part_of(touched.order.behind) == part:
                    self.moved(touched)
            for sequence in self._dropped:
                members.discard(sequence)
        return members

    def _parts(self, flow_id: str) -> list[int]:
        record = self._record(flow_id)
        return [] if record is None else sorted({part for part, _ in record.folders})

    def names(self, flow_id: str, states: Sequence[TaskState]) -> Iterator[tuple[str, Member]]:
        """Yield the paths by which tasks of a flow are found in some states, in any order."""
        flow_token = token(flow_id)
        for part in self._parts(flow_id):
            for member in self._listed(flow_id, part).in_states(None, states):
                yield member_path(flow_token, member), member

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        parts = self._parts(flow_id) if behind is None else [part_of(behind)]
        found = [member for part in parts for member in self._listed(flow_id, part).in_states(behind, states)]
        found.sort(key=lambda member: member.sequence)
        tasks = (self._read(flow_id, member) for member in found)
        return list(islice((task for task in tasks if task is not None), limit))

    def _read(self, flow_id: str, member: Member) -> StoredTask | None:
        """Return the task that a name leads to; None if that is not in this state of this flow, and loses the name."""
        record = self._transaction.known(member.sequence)
        if record is not None:
            return record.task()
        path, data = member_path(token(flow_id), member), b""
        try:
            data = self._tree.read(path)
            record = self._transaction.take_in(parse_record(data, member.sequence, member.id_token))
        except FileNotFoundError:
            pass
        except (OSError, *UNREADABLE) as error:
            task_id = text_of(member.id_token) or id_in(data, member.id_token)
            if task_id is not None:
                problem = corrupt("task", task_id, error, place=f"{self._tree.base}/{path}")
                fields = vars(stand_in(problem, data, task_id).task())
                self._unreadable[task_id] = problem, member
                return salvaged(problem, task_id, {**fields, "flow": flow_id, "behind": member.behind})
        if record is not None and record.order.flow == flow_id and record.member() == member:
            return record.task()
        # Another program has altered the task: its end has not been, or will not be, counted.
        stored = self._record(flow_id)
        if stored is not None:
            stored.flow.doubtful = True
        self._transaction.remove_name(path)
        self.forget(flow_id, member)
        return None

    def _end_unreadable(self, task: Salvaged) -> None:
        problem, member = self._unreadable.pop(task.id)
        self._transaction.end_unreadable(task.id, member.sequence, problem)

    def count_members(self, flow_id: str) -> dict[TaskState, int]:
        listed = [self._listed(flow_id, part) for part in self._parts(flow_id)]
        # By names, if one that seems to run, or to be about to, does: whether anything moves is what is asked of it.
        moving = (member for members in listed for member in members.in_states(None, _MOVING))
        any(self._read(flow_id, member) is not None for member in moving)
        return {state: sum(members.count(state) for members in listed) for state in TaskState}


def _change(record: Record, task: StoredTask) -> None:
    """Have a record say what a task says, as far as it can change."""
    record.state = task.state
    record.attempt = task.attempt
    record.delivery = task.delivery
    record.run_at = to_micros(task.run_at)
    record.started_at = None if task.started_at is None else to_micros(task.started_at)
    record.finished_at = None if task.finished_at is None else to_micros(task.finished_at)
    record.expires_at = None if task.expires_at is None else max(to_micros(task.expires_at), 0)
    record.lease_until = None if task.lease_until is None else to_micros(task.lease_until)
    record.worker = task.worker
    record.error = task.error
    record.progress = task.progress
    record.cancel_requested = task.cancel_requested
    record.result = task.result_payload
    record.attempt_log = task.attempt_log
