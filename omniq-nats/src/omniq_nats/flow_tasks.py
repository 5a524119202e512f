"""Tasks as they were read for a step of flows: how each stands, and its record without its body."""

from __future__ import annotations

from attrs import define

from omniq.task import StoredTask, TaskState
from omniq_nats.claiming import live_task
from omniq_nats.entries import Entry, entry_in_overflow, entry_of
from omniq_nats.flow_records import GATES, is_blocked
from omniq_nats.flow_snapshot import Missing, Snapshot
from omniq_nats.names import Names
from omniq_nats.queue_state import REMOVED_AHEAD
from omniq_nats.reading import ended_task
from omniq_nats.results import EndRecord
from omniq_nats.task_batches import TaskBatch, to_task

__all__ = ["FlowTasks", "Held"]

BLOCKED, READY, SCHEDULED, RUNNING = TaskState.BLOCKED, TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING


@define(eq=False)
class Held:
    """A task as it was read, and how it stands."""

    batch: TaskBatch
    index: int
    state: TaskState
    how: str
    """``running``, ``waiting``, ``overflow``, ``ready`` (in a line that claims come to), ``blocked`` or ``ended``."""
    entry: Entry | None = None
    """Of one that has not ended, but where nothing has happened to it yet."""
    end_record: EndRecord | None = None

    @property
    def id(self) -> str:
        task_id: str = self.batch.rows[self.index][0]
        return task_id

    @property
    def place(self) -> tuple[int, int]:
        return self.batch.seq, self.index

    @property
    def rank(self) -> int:
        return self.batch.rank(self.index)

    def task(self, known: EndRecord | None) -> StoredTask:
        """Return its record, without its body.

        :param known: the end record with what is kept apart of it.
        """
        if self.how == "ended":
            assert known is not None
            return ended_task(self.batch, self.index, known, bare=True)
        if self.entry is None:
            return to_task(self.batch, self.index, state=self.state, bare=True)
        return live_task(self.batch, self.entry, self.state, known, bare=True)


class FlowTasks:
    """The tasks of a snapshot.

    :param snapshot: what was read.
    :param names: of the namespace.
    :param now: the servers' time, in microseconds.
    """

    def __init__(self, snapshot: Snapshot, names: Names, now: int) -> None:
        self.held: dict[str, Held] = {}
        """Those whose records were asked for, by their ids."""
        self._snapshot = snapshot
        self._names = names
        self._now = now
        self._at: dict[tuple[int, int], Held | None] = {}
        self._records: dict[str, StoredTask] = {}

    def record(self, held: Held) -> StoredTask:
        """Return the record of a task.

        :raises Missing: if something of it was not read.
        """
        task = self._records.get(held.id)
        if task is None:
            end_record = held.end_record
            # The reason why one was cancelled is looked at; all else of one that has ended is left as it is.
            if end_record is not None and held.state not in (TaskState.SUCCEEDED, TaskState.FAILED):
                end_record = self._whole(end_record, held.id)
            task = self._records[held.id] = held.task(end_record)
            self.held[held.id] = held
        return task

    def original(self, held: Held) -> StoredTask:
        """Return a task as it was read."""
        return self._records[held.id]

    def at(self, batch: TaskBatch, index: int) -> Held | None:
        """Return how the task at a place stands; None if it was removed."""
        place = batch.seq, index
        if place not in self._at:
            self._at[place] = self._read(batch, index)
        return self._at[place]

    def _read(self, batch: TaskBatch, index: int) -> Held | None:
        queue_state = self._snapshot.queue_state(batch.queue)
        if (batch.seq, index) in queue_state.tombstones:
            return None
        entry = queue_state.live(batch.rows[index][0], batch.seq, index)
        if entry is not None:
            known, _ = self._snapshot.end_record(queue_state, batch, index) if entry.has_error else (None, False)
            if entry.until is not None:
                return Held(batch, index, RUNNING, "running", entry, known)
            return Held(batch, index, READY if entry.at <= self._now else SCHEDULED, "waiting", entry, known)
        if queue_state.is_ahead(batch.line, batch.seq, index):
            why = queue_state.left_out(batch.line, batch.seq, index)
            past = batch.past(index)
            if why is None and past is not None and past.state.is_final:
                return Held(batch, index, past.state, "ended", None, past)
            if why is None:
                entry = None if past is None else entry_of(batch, index)
                state = READY if batch.run_at(index) <= self._now else SCHEDULED
                return Held(batch, index, state, "ready", entry, past)
            if why == REMOVED_AHEAD:
                return None
        end_record, is_gone = self._snapshot.end_record(queue_state, batch, index)
        if is_gone:
            return None
        if end_record is not None and end_record.state.is_final:
            return Held(batch, index, end_record.state, "ended", None, end_record)
        if batch.may_be_blocked(index) and self._is_blocked(batch, index, end_record):
            return Held(batch, index, BLOCKED, "blocked", entry_in_overflow(batch, index, end_record), end_record)
        if not queue_state.overflow:
            return None
        entry = entry_in_overflow(batch, index, end_record)
        return Held(batch, index, READY if entry.at <= self._now else SCHEDULED, "overflow", entry, end_record)

    def _whole(self, end_record: EndRecord, task_id: str) -> EndRecord:
        if end_record.blob is None:
            return end_record
        subject = self._names.blob(task_id, end_record.blob)
        if subject not in self._snapshot.blobs:
            raise Missing(blobs={subject})
        return end_record.whole(self._snapshot.blobs[subject])

    def _is_blocked(self, batch: TaskBatch, index: int, end_record: EndRecord | None) -> bool:
        behind = batch.ties[index][0] if batch.ties else None
        if behind is None or batch.flow is None:
            return True
        page = self._snapshot.gate_page(batch.flow, behind // GATES)
        return is_blocked(page, behind, batch.rank(index), end_record)
