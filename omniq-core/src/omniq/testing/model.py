"""What a storage does, as simply as it can be said: a dict of rows, read from end to end and sorted where that matters.

The model-based test holds every storage against it. It knows no clock: a row is due, expired or lapsed when it is told
so, and instead of times it counts the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field

from omniq.schedule import Schedule
from omniq.storage import Enqueued, Lease, LeaseState
from omniq.task import (
    Cancelled,
    Failed,
    NewTask,
    Outcome,
    Progress,
    Released,
    Retry,
    StoredTask,
    Succeeded,
    TaskError,
    TaskState,
)

__all__ = ["UNKNOWN", "Model", "Row"]

UNKNOWN: Any = object()
"""What the contract leaves open."""


@define
class Row:
    """What the model knows of a task."""

    order: NewTask
    sequence: int
    ready_since: int | None
    """The step at which it became ready; None: not yet."""
    state: TaskState
    perhaps_scheduled: bool = False
    """Whether it is due without having been promoted for certain: then a store may still call it scheduled."""
    attempt: int = 0
    delivery: int = 0
    worker: str | None = None
    error: TaskError | None = None
    progress: Progress | None = None
    result: bytes | None = None
    cancel_requested: bool = False
    lapsed: bool = False
    attempt_log: str = ""

    @property
    def place(self) -> tuple[int, int, int]:
        assert self.ready_since is not None
        return -self.order.priority, self.ready_since, self.sequence

    def differences(self, task: StoredTask) -> list[str]:
        """Say in what a record differs from this row, as far as the contract decides it."""
        order = self.order
        running, final = self.state is TaskState.RUNNING, self.state.is_final
        expected: dict[str, Any] = {
            "id": order.id,
            "queue": order.queue,
            "name": order.name,
            "body": order.body,
            "priority": order.priority,
            "max_retries": order.max_retries,
            "unique": order.unique,
            "tags": order.tags,
            "attempt": self.attempt,
            "delivery": self.delivery,
            "error": self.error,
            "progress": self.progress if running else UNKNOWN,
            "worker": self.worker if running else UNKNOWN,
            "cancel_requested": self.cancel_requested if running else UNKNOWN,
            "result_payload": self.result,
            "attempt_log": self.attempt_log,
        }
        lines = [
            f"{name} is {getattr(task, name)!r}, not {value!r}"
            for name, value in expected.items()
            if value is not UNKNOWN and getattr(task, name) != value
        ]
        if task.state is not self.state and not (self.perhaps_scheduled and task.state is TaskState.SCHEDULED):
            lines.append(f"state is {task.state}, not {self.state}")
        if (task.lease_until is not None) is not running:
            lines.append(f"lease_until is {task.lease_until} of a task that is {self.state}")
        if (task.finished_at is not None) is not final:
            lines.append(f"finished_at is {task.finished_at} of a task that is {self.state}")
        return lines


@define
class Model:
    """A store without a clock."""

    rows: dict[str, Row] = field(factory=dict)
    paused: set[str] = field(factory=set)
    schedules: dict[str, Schedule] = field(factory=dict)
    revisions: dict[str, int] = field(factory=dict)
    """The largest that each schedule's id has had, deleted or not."""
    step: int = 0
    sequence: int = 0

    def key_holder(self, key: str | None) -> str | None:
        for row in self.rows.values():
            if key is not None and row.order.unique == key and not row.state.is_final:
                return row.order.id
        return None

    def enqueue(self, tasks: Iterable[NewTask], *, ready: bool = True) -> list[Enqueued]:
        return [self._add(task, ready) for task in tasks]

    def _add(self, task: NewTask, ready: bool) -> Enqueued:
        if task.id in self.rows:
            return Enqueued(task.id, False)
        holder = self.key_holder(task.unique)
        if holder is not None:
            return Enqueued(holder, False)
        self.sequence += 1
        state = TaskState.READY if ready else TaskState.SCHEDULED
        self.rows[task.id] = Row(task, self.sequence, self.step if ready else None, state)
        return Enqueued(task.id, True)

    def comes_due(self, task_id: str) -> None:
        """A scheduled task's time has come just now."""
        row = self.rows[task_id]
        row.state, row.ready_since, row.perhaps_scheduled = TaskState.READY, self.step, True

    def ready(self, queue: str) -> list[Row]:
        """Return the ready tasks of a queue in the order in which they are claimed."""
        return sorted(self._of(queue, TaskState.READY), key=lambda row: row.place)

    def _of(self, queue: str, state: TaskState) -> list[Row]:
        return [row for row in self.rows.values() if row.order.queue == queue and row.state is state]

    def claim(self, demand: Mapping[str, int], worker: str, limit: int | None) -> list[str]:
        claimed: list[str] = []
        for queue, wanted in demand.items():
            if queue in self.paused:
                continue
            rows = self.ready(queue)
            for row in rows:
                row.perhaps_scheduled = False
            for row in rows[: wanted if limit is None else min(wanted, limit - len(claimed))]:
                row.state, row.worker, row.lapsed = TaskState.RUNNING, worker, False
                row.attempt += 1
                row.delivery += 1
                row.progress = None if row.progress is None else UNKNOWN
                claimed.append(row.order.id)
        return claimed

    def held(self, task_id: str, delivery: int) -> Row | None:
        row = self.rows.get(task_id)
        return row if row is not None and row.state is TaskState.RUNNING and row.delivery == delivery else None

    def finish(self, outcomes: Iterable[Outcome]) -> list[bool]:
        return [self._finish(outcome) for outcome in outcomes]

    def _finish(self, outcome: Outcome) -> bool:
        row = self.held(outcome.id, outcome.delivery)
        if row is None:
            return False
        if isinstance(outcome, Failed | Retry | Cancelled):
            row.attempt_log = outcome.attempt_log or row.attempt_log
        match outcome:
            case Succeeded():
                row.state, row.result, row.error = TaskState.SUCCEEDED, outcome.result, None
            case Failed():
                row.state, row.error = TaskState.FAILED, outcome.error
            case Cancelled():
                row.state = TaskState.CANCELLED
            case Retry():
                row.error = outcome.error
                self._again(row, outcome.delay, self.step)
            case Released():
                row.attempt -= 1
                row.error = outcome.error or row.error
                self._again(row, outcome.delay, row.ready_since)
        return True

    def _again(self, row: Row, delay: float, ready_since: int | None) -> None:
        if row.cancel_requested:
            row.state = TaskState.CANCELLED
        elif delay:
            row.state, row.ready_since = TaskState.SCHEDULED, None
        else:
            row.state, row.ready_since = TaskState.READY, ready_since

    def heartbeat(self, leases: Iterable[Lease]) -> list[LeaseState]:
        states = []
        for lease in leases:
            row = self.held(lease.id, lease.delivery)
            if row is None:
                states.append(LeaseState.LOST)
                continue
            row.lapsed = False
            states.append(LeaseState.CANCEL_REQUESTED if row.cancel_requested else LeaseState.HELD)
        return states

    @property
    def lapsed(self) -> set[str]:
        """The running tasks whose lease has run out."""
        return {task_id for task_id, row in self.rows.items() if row.state is TaskState.RUNNING and row.lapsed}

    def recover(self, ids: Iterable[str]) -> None:
        """Take back certain tasks; which of them a limited step takes is the store's choice."""
        for task_id in ids:
            row = self.rows[task_id]
            row.attempt_log = UNKNOWN  # one line longer, with times in it
            if row.cancel_requested:
                row.state = TaskState.CANCELLED
            elif row.attempt <= row.order.max_retries:
                row.state = TaskState.READY
            else:
                row.state, row.error = TaskState.FAILED, UNKNOWN

    def cancel(self, ids: Iterable[str]) -> list[bool]:
        answers = []
        for task_id in ids:
            row = self.rows.get(task_id)
            answers.append(row is not None and not row.state.is_final)
            if row is None or row.state.is_final:
                continue
            if row.state is TaskState.RUNNING:
                row.cancel_requested = True
            else:
                row.state, row.perhaps_scheduled = TaskState.CANCELLED, False
        return answers

    def retry(self, ids: Iterable[str]) -> list[bool]:
        answers = []
        for task_id in ids:
            row = self.rows.get(task_id)
            can = (
                row is not None
                and row.state in (TaskState.FAILED, TaskState.CANCELLED)
                and self.key_holder(row.order.unique) is None
            )
            answers.append(can)
            if row is not None and can:
                row.state, row.attempt, row.ready_since, row.cancel_requested = TaskState.READY, 0, self.step, False
        return answers

    def run_now(self, ids: Iterable[str]) -> list[bool]:
        answers = []
        for task_id in ids:
            row = self.rows.get(task_id)
            answers.append(row is not None and row.state is TaskState.SCHEDULED)
            if row is not None and row.state is TaskState.SCHEDULED:
                row.state, row.ready_since = TaskState.READY, self.step
        return answers

    def delete(self, ids: Iterable[str]) -> list[bool]:
        return [self._remove(task_id) for task_id in ids]

    def _remove(self, task_id: str) -> bool:
        row = self.rows.get(task_id)
        if row is None or row.state is TaskState.RUNNING:
            return False
        del self.rows[task_id]
        return True

    def purge(self, queue: str, state: TaskState | None) -> int:
        doomed = [
            task_id
            for task_id, row in self.rows.items()
            if row.order.queue == queue and (state is None or row.state is state)
        ]
        return sum(self._remove(task_id) for task_id in doomed)

    def pause(self, queue: str) -> bool:
        changed = queue not in self.paused
        self.paused.add(queue)
        return changed

    def resume(self, queue: str) -> bool:
        changed = queue in self.paused
        self.paused.discard(queue)
        return changed

    def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        for lease, progress in updates.items():
            row = self.held(lease.id, lease.delivery)
            if row is not None:
                row.progress = progress

    def revision(self, schedule_id: str) -> int:
        stored = self.schedules.get(schedule_id)
        return 0 if stored is None else stored.revision

    def put_schedule(
        self, schedule: Schedule, expected_revision: int | None, answer: Schedule | None = None
    ) -> Schedule | None:
        """Store a schedule.

        :param answer: what the store under test returned: a new schedule may have any revision that is larger than all
            that its id has had.
        """
        revision = self.revision(schedule.id)
        if expected_revision not in (None, revision):
            return None
        new = 1 + self.revisions.get(schedule.id, 0)
        if revision == 0 and answer is not None:
            new = max(new, answer.revision)
        self.revisions[schedule.id] = new
        kept = self.schedules[schedule.id] = evolve(schedule, revision=new)
        return kept

    def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        stored = self.schedules.get(schedule.id)
        if stored is None or stored.revision != schedule.revision:
            return None
        self.put_schedule(schedule, None)
        return self.enqueue(tasks)
