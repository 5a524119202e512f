"""What the verbs of flows ask about tasks within one transaction.

What is written is sent together with the next question, or with the end of the transaction, and what changes alike is
one statement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import evolve

from omniq.storage.limit_transitions import is_lined
from omniq.storage.records import dump_error
from omniq.storage.states import changed_task, holds_key
from omniq.task import StoredTask, TaskState
from omniq_postgres import binary_params
from omniq_postgres.blocking_steps import Ask
from omniq_postgres.encoding import (
    BLOCKED,
    LINED,
    NUMBER_OF,
    READY,
    RUNNING,
    STATE_OF,
    key_of,
    limit_columns,
    make_task,
    number_of,
    past_columns,
    record_columns,
)
from omniq_postgres.enqueueing import FEW
from omniq_postgres.operations import Context, Query, Rows

__all__ = ["FlowTasks", "more_ahead"]

ALL = 2**62
LONGEST_AHEAD = 1000


class FlowTasks:
    """A transaction that reads and writes tasks."""

    def __init__(self, context: Context) -> None:
        self.first: list[Query] = []
        """What begins the transaction."""
        self._context = context
        self._news = context.news
        self._ask: Ask = _not_begun
        self._writes: list[Query] = []
        self._stored: dict[str, tuple[int, str]] = {}
        """Of each task that was read or written, its state as a number and its queue."""
        self._unsaved: dict[str, tuple[int, StoredTask]] = {}
        """What is to become of tasks, and the state in which each is stored."""
        self._ahead = _Ahead()
        self._counts: Counter[tuple[str, int]] = Counter()

    now: datetime
    """Known once a flow was opened, or the limits were locked."""

    # Statements

    def _rows(self, name: str, *parameters: Any, prepare: bool = True, lead: Sequence[Query] = ()) -> Rows:
        return self._asked(self._context.query(name, *parameters, prepare=prepare), lead)

    def _asked(self, query: Query, lead: Sequence[Query]) -> Rows:
        self._save()
        before, self.first, self._writes = (*self.first, *self._writes), [], []
        return self._ask(evolve(query, lead=(*before, *lead)))

    def _write(self, name: str, *parameters: Any, prepare: bool = True) -> None:
        self._writes.append(self._context.query(name, *parameters, prepare=prepare))

    def ask(self, name: str, *parameters: Any) -> Rows:
        """Run a statement within the transaction, and return its rows."""
        return self._rows(name, *parameters)

    def look_at_clock(self) -> None:
        """Learn what time it is, where no flow is opened."""
        ((self.now,),) = self._rows("reading.now")

    # Tasks

    def _tasks(self, rows: Rows) -> list[StoredTask]:
        tasks = []
        for row in rows:
            self._stored[row[0]] = READY if row[5] == LINED else row[5], row[1]
            tasks.append(make_task(row))
        return tasks

    def load(self, ids: Iterable[str]) -> dict[str, StoredTask]:
        given = binary_params.uuids(list(dict.fromkeys(ids)))
        rows = self._rows("flows.load_ended", given, lead=[self._context.query("flows.load_live", given)])
        return {task.id: task for task in self._tasks(rows)}

    def holders(self, keys: Iterable[str]) -> dict[str, str]:
        wanted = {key_of(key): key for key in keys}
        rows = self._rows("flows.holders", binary_params.texts(list(wanted))) if wanted else []
        return {wanted[key]: task_id for key, task_id in rows}

    def members(
        self, flow_id: str, behind: int | None, states: Sequence[TaskState], limit: int | None
    ) -> list[StoredTask]:
        if behind is not None and tuple(states) == (TaskState.BLOCKED,):
            return self._blocked(flow_id, behind, ALL if limit is None else limit)
        numbers = sorted(NUMBER_OF[state] for state in states)
        parts = {
            "flows.live_members": [
                *(number for number in numbers if number < RUNNING),
                *([LINED] if READY in numbers else []),
            ],
            "flows.running_members": [number for number in numbers if number == RUNNING],
            "flows.ended_members": [number for number in numbers if number > RUNNING],
        }
        *lead, last = [
            self._context.query(
                name,
                binary_params.uuid(flow_id),
                None if behind is None else binary_params.bigint(behind),
                binary_params.smallints(wanted),
                binary_params.bigint(ALL if limit is None else limit),
            )
            for name, wanted in parts.items()
            if wanted
        ]
        rows = self._asked(last, lead)
        if lead:
            rows.sort(key=lambda row: int(row[-1]))
        return self._tasks(rows if limit is None else rows[:limit])

    def _blocked(self, flow_id: str, behind: int, limit: int) -> list[StoredTask]:
        known = self._ahead.behind(flow_id, behind)
        if known is None:
            more = self._ahead.more_tasks()
            most = max(limit, more)
            rows = self._rows(
                "flows.blocked_members",
                binary_params.uuid(flow_id),
                binary_params.bigint(behind),
                binary_params.bigint(ALL if more else behind),
                binary_params.bigint(most),
            )
            tasks = self._tasks(rows)
            if more:
                self._ahead.note(flow_id, behind, tasks, whole=len(tasks) < most)
            known = [task for task in tasks if not more or task.behind in (behind, None)]
        return [task for task in known if self._stored[task.id][0] == BLOCKED][:limit]

    def count_members(self, flow_id: str) -> Mapping[TaskState, int]:
        counts: Counter[TaskState] = Counter()
        for number, tasks in self._rows("flows.count_members", binary_params.uuid(flow_id)):
            if number == LINED or number in STATE_OF:
                counts[TaskState.READY if number == LINED else STATE_OF[number]] += tasks
        return counts

    def lags(self, ids: Sequence[str]) -> bool:
        """Return whether ends of tasks of some flows are not counted yet."""
        ((found,),) = self._rows("flows.uncounted", binary_params.uuids(ids))
        return bool(found)

    def insert(self, tasks: Sequence[StoredTask]) -> None:
        if not tasks:
            return
        self._save()  # what ends makes room for a key
        self._ahead.forget()
        if self._context.joined:
            # Their lines are not touched, see LimitTasks: they go into them with the next claim.
            tasks = [
                changed_task(task, state=TaskState.SCHEDULED) if number_of(task) == LINED else task for task in tasks
            ]
        columns, limits = record_columns(tasks), limit_columns(tasks)
        if all(task.created_at == self.now and not task.state.is_final for task in tasks):
            now = binary_params.timestamp(self.now)
            self._write("flows.insert", now, *columns, *limits, prepare=len(tasks) <= FEW)
        else:
            self._write("flows.adopt", *columns, *past_columns(tasks), *limits, prepare=False)
        for task in tasks:
            self._enter(task, NUMBER_OF[task.state], task.queue)

    def save(self, tasks: Sequence[StoredTask]) -> None:
        for task in tasks:
            before, queue = self._stored[task.id]
            if before > RUNNING and task.state.is_final:
                continue  # one that cannot be read
            if task.state is TaskState.BLOCKED:
                self._ahead.forget()
            if task.id in self._unsaved:
                self._save()
            self._unsaved[task.id] = before, task
            self._counts[queue, before] -= 1
            self._enter(task, NUMBER_OF[task.state], queue)

    def _save(self) -> None:
        """Write what has become of tasks: what changes alike in one statement."""
        moved, started, ended, revived = [], [], [], []
        for before, task in self._unsaved.values():
            if before > RUNNING:
                revived.append(task)
            elif before == READY and task.state is TaskState.RUNNING:
                started.append(task)
            elif task.state.is_final:
                ended.append(task)
            else:
                moved.append(task)
        self._unsaved.clear()
        self._save_moved(moved)
        self._save_started(started)
        self._save_ended(ended)
        self._save_revived(revived)

    def _enter(self, task: StoredTask, state: int, queue: str) -> None:
        self._stored[task.id] = state, queue
        self._counts[queue, state] += 1
        if task.state.is_final:
            self._news.ended.append(task.id)
        elif task.state is TaskState.READY and not is_lined(task):
            self._news.ready(queue)
        elif task.state is TaskState.SCHEDULED:
            self._news.ready(queue, (task.run_at - self.now).total_seconds())

    def _save_moved(self, tasks: Sequence[StoredTask]) -> None:
        if tasks:
            self._write(
                "flows.move",
                binary_params.uuids([task.id for task in tasks]),
                binary_params.smallints([number_of(task) for task in tasks]),
                binary_params.timestamps([task.run_at for task in tasks]),
                binary_params.booleans([task.cancel_requested for task in tasks]),
            )

    def _save_started(self, tasks: Sequence[StoredTask]) -> None:
        if tasks:
            until = tasks[0].lease_until  # of one claim: it is the same for all
            self._write(
                "limits.start",
                binary_params.text(tasks[0].worker or ""),
                binary_params.timestamp(self.now),
                None if until is None else binary_params.timestamp(until),
                binary_params.uuids([task.id for task in tasks]),
                binary_params.integers([task.attempt for task in tasks]),
                binary_params.integers([task.delivery for task in tasks]),
            )

    def _save_ended(self, tasks: Sequence[StoredTask]) -> None:
        if tasks:
            self._write(
                "flows.end",
                binary_params.timestamp(self.now),
                binary_params.uuids([task.id for task in tasks]),
                binary_params.smallints([NUMBER_OF[task.state] for task in tasks]),
                binary_params.texts([_error_of(task) for task in tasks]),
            )

    def _save_revived(self, tasks: Sequence[StoredTask]) -> None:
        if tasks:
            self._write(
                "flows.revive",
                binary_params.uuids([task.id for task in tasks]),
                binary_params.smallints([number_of(task) for task in tasks]),
                binary_params.timestamps([task.run_at for task in tasks]),
                binary_params.timestamps([task.expires_at for task in tasks]),
                binary_params.texts([_error_of(task) for task in tasks]),
                binary_params.texts([key_of(task.unique) if holds_key(task) else None for task in tasks]),
                *limit_columns(tasks),
            )

    def remove(self, ids: Sequence[str]) -> None:
        self._save()
        self._ahead.forget()
        if ids:
            self._write("flows.remove", binary_params.uuids(ids))
        for task_id in ids:
            state, queue = self._stored.pop(task_id)
            self._counts[queue, state] -= 1
            self._news.ended.append(task_id)

    def _count(self) -> None:
        """Write how the numbers of tasks in each state have changed."""
        changes: dict[str, list[int]] = {}
        for (queue, state), step in self._counts.items():
            if step and state in STATE_OF:
                changes.setdefault(queue, [0] * len(STATE_OF))[state] += step
        if changes:
            columns = [binary_params.integers(list(column)) for column in zip(*changes.values(), strict=True)]
            self._write("flows.count", *columns, binary_params.texts(list(changes)))
        self._counts.clear()


def more_ahead(before: int) -> int:
    """Return how many rows to read ahead in a step of a cascade.

    :param before: how many were in the step before.
    """
    return min(max(16, 8 * before), LONGEST_AHEAD)


class _Ahead:
    """What is read of a flow before it is asked for: nothing at first, and the more the longer a cascade goes on.

    Each link of a long chain has a gate and a task behind it: without this each would take round trips of its own.
    """

    def __init__(self) -> None:
        self._flow = ""
        self._from = self._until = 0
        self._tasks: dict[int, list[StoredTask]] = {}
        self._more = 0

    def more_tasks(self) -> int:
        """Return how many tasks to read, those behind later gates included; 0: only what is asked for."""
        more, self._more = self._more, more_ahead(self._more)
        return more

    def note(self, flow_id: str, behind: int, tasks: Sequence[StoredTask], *, whole: bool) -> None:
        """Take note of blocked tasks in the order of their gates.

        :param whole: whether there are no others behind this gate and later ones.
        """
        self.forget()
        for task in tasks:
            if task.behind is None:
                return  # it cannot be read, nor where it stands
            self._tasks.setdefault(task.behind, []).append(task)
        last = max(self._tasks, default=behind)
        self._flow, self._from, self._until = flow_id, behind, ALL if whole else last

    def behind(self, flow_id: str, gate: int) -> list[StoredTask] | None:
        """Return all that were blocked behind a gate; None: that is not known."""
        return self._tasks.get(gate, []) if flow_id == self._flow and self._from <= gate < self._until else None

    def forget(self) -> None:
        """Know nothing any more, as there may be others."""
        self._flow, self._tasks = "", {}


def _not_begun(query: Query) -> Rows:
    raise AssertionError("nothing is asked before the transaction has begun")


def _error_of(task: StoredTask) -> str | None:
    return None if task.error is None else dump_error(task.error)
