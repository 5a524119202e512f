"""What every actor of a fault test did, written down so that it survives the actor, and what must hold of it.

Each process appends to a file of its own; a line is one write, so a process that is killed leaves whole lines. The
moments are of the system's monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from omniq import Task, TaskQueue

__all__ = ["Event", "History", "all_tasks", "check", "check_unique"]


@frozen(kw_only=True)
class Event:
    """One thing that one process did."""

    at: int
    """Nanoseconds of the monotonic clock."""
    pid: int
    what: str
    task: str = ""
    """The task's id."""
    token: int = 0
    """The fencing token of the delivery."""
    details: dict[str, Any] = field(factory=dict)


class History:
    """The files of one test.

    :param folder: where they are; every actor is given the same.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._events: list[Event] = []
        self._read: dict[Path, int] = {}  # how many bytes of each file, as tests look again and again

    def note(self, what: str, task: str = "", token: int = 0, **details: Any) -> None:
        """Append an event of this process."""
        event = {
            "at": time.monotonic_ns(),
            "pid": os.getpid(),
            "what": what,
            "task": task,
            "token": token,
            "details": details,
        }
        file = os.open(self._folder / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, json.dumps(event).encode() + b"\n")
        finally:
            os.close(file)

    def events(self, *what: str, pid: int | None = None, task: str | None = None) -> list[Event]:
        """Return the events of all processes, the earliest first.

        :param what: only these; none: all.
        :param pid: only of this process.
        :param task: only of this task.
        """
        for file in self._folder.glob("*.jsonl"):
            with file.open("rb") as lines:
                lines.seek(self._read.get(file, 0))
                # A reader may see the first part of a line that is being written; it is whole when its end is there.
                whole, end, _ = lines.read().rpartition(b"\n")
            self._events += [Event(**json.loads(line)) for line in whole.splitlines()]
            self._read[file] = self._read.get(file, 0) + len(whole) + len(end)
        self._events.sort(key=lambda event: event.at)
        return [
            event
            for event in self._events
            if (not what or event.what in what)
            and (pid is None or event.pid == pid)
            and (task is None or event.task == task)
        ]


def check(history: History, queue: TaskQueue, *, answers_were_lost: bool = False) -> None:
    """Check what must hold once everything has drained, whatever was done to the workers and producers.

    :param answers_were_lost: whether the store may have accepted what its client was then told is refused, since it
        had to ask again: a lost answer and the answer to its repetition are the same to a worker.
    """
    acknowledged = {event.task for event in history.events("enqueued")}
    tasks = all_tasks(queue)
    _nothing_acknowledged_is_lost(acknowledged, tasks)
    _everything_drained(tasks.values())
    by_task: dict[str, list[Event]] = defaultdict(list)
    for event in history.events("started", "ran", "accepted", "rejected"):
        by_task[event.task].append(event)
    for task_id, events in by_task.items():
        _one_completion_is_accepted(task_id, events)
        _tokens_strictly_increase(task_id, events)
        if task_id in tasks:
            _no_stale_result_is_visible(tasks[task_id], events, answers_were_lost)


def all_tasks(queue: TaskQueue) -> dict[str, Task]:
    """Return every task in the store, by id."""
    tasks: dict[str, Task] = {}
    cursor = None
    while True:
        page = queue.tasks(limit=1000, cursor=cursor)
        tasks.update((task.id, task) for task in page)
        cursor = page.cursor
        if cursor is None:
            return tasks


def _nothing_acknowledged_is_lost(acknowledged: set[str], tasks: dict[str, Task]) -> None:
    lost = acknowledged - set(tasks)
    assert not lost, f"I1: acknowledged, and not in the store: {lost}"


def _everything_drained(tasks: Iterable[Task]) -> None:
    left = {task.id: str(task.state) for task in tasks if not task.state.is_final}
    assert not left, f"I7: not ended: {left}"


def _one_completion_is_accepted(task_id: str, events: Sequence[Event]) -> None:
    final = [event for event in events if event.what == "accepted" and event.details["how"] != "retrying"]
    assert len(final) <= 1, f"I2: task {task_id} was completed {len(final)} times: {events}"
    twice = [
        n for n in Counter((e.what, e.token) for e in events if e.what in ("accepted", "rejected")).values() if n > 1
    ]
    assert not twice, f"I2: a delivery of task {task_id} was answered more than once: {events}"


def _tokens_strictly_increase(task_id: str, events: Sequence[Event]) -> None:
    started = [event for event in events if event.what == "started"]
    tokens = [event.token for event in started]
    assert len(tokens) == len(set(tokens)), f"I3: task {task_id} was started twice under one token: {tokens}"
    # What starts after its first lease may start after the next delivery: then its completion must not be accepted.
    in_time = [event.token for event in started if not event.details["late"]]
    assert in_time == sorted(in_time), f"I3: the tokens of task {task_id} are {tokens}"
    for event in events:
        if event.what == "accepted" and event.details["how"] != "retrying":
            assert event.token == max(tokens, default=event.token), f"I3: a stale completion was accepted: {events}"


def _no_stale_result_is_visible(task: Task, events: Sequence[Event], answers_were_lost: bool) -> None:
    if task.state != "succeeded":
        return
    ran = [event for event in events if event.what == "ran" and event.details["nonce"] == task.result]
    assert len(ran) == 1, f"I4: the result {task.result!r} of task {task.id} is of none of its runs: {events}"
    for event in events:
        if event.what == "accepted" and event.details["how"] == "succeeded":
            assert event.pid == ran[0].pid, f"I4: the result of task {task.id} is not of the run that was accepted"
        if event.what == "rejected" and not (answers_were_lost and event.token == task.delivery):
            assert event.token < task.delivery or event.pid != ran[0].pid, (
                f"I4: a rejected result of {task.id} is visible"
            )


def check_unique(tasks: Iterable[Task]) -> None:
    """Check that of the tasks with one key each was stored only after the one before it had ended (I5)."""
    by_key: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        if task.unique is not None:
            by_key[task.unique].append(task)
    for key, same in by_key.items():
        same.sort(key=lambda task: task.created_at)
        for earlier, later in itertools.pairwise(same):
            assert earlier.finished_at is not None, f"I5: {earlier.id} of key {key!r} lives beside {later.id}"
            assert earlier.finished_at <= later.created_at, (
                f"I5: {earlier.id} and {later.id} of key {key!r} overlap: one was stored at {later.created_at}, the "
                f"other ended at {earlier.finished_at}"
            )
