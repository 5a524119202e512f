"""The steps that the kit's scenarios are made of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from omniq.schedule import Schedule
from omniq.storage import Adoption, QueueStats, Storage, TaskQuery
from omniq.storage.ids import new_id
from omniq.task import Cancelled, Failed, NewTask, Outcome, Released, Retry, StoredTask, Succeeded, TaskError, TaskState
from omniq.testing.waiting import await_until

__all__ = [
    "BOOM",
    "FAR",
    "HELD",
    "OUTCOMES",
    "PROMPT",
    "SHORT",
    "add",
    "counts",
    "lapsed",
    "later",
    "moved",
    "new_schedule",
    "new_task",
    "outcome",
    "passed",
    "record",
    "states",
    "take",
    "take_expiring",
    "take_lapsed",
]

HELD = 300.0
"""Seconds: a lease that does not run out while a test lasts."""
SHORT = 0.25
"""Seconds: a time that a test waits out."""
PROMPT = 20.0
"""Seconds after which what should have happened at once is given up."""
FAR = datetime(2101, 7, 8, 9, 10, 11, 121314, tzinfo=UTC)
"""A time that does not come, exact to the microsecond."""
BOOM = TaskError(type="ValueError", message="no „luck“ today ☂", traceback='Traceback …\n  File "ünit.py", line 1\n')

OUTCOMES = ("succeeded", "failed", "cancelled", "retry", "retry later", "released", "released later")
"""Names of all ways in which a delivery can end, for :func:`outcome`."""


def new_task(**options: Any) -> NewTask:
    """Return a task to enqueue, of queue ``work`` unless another is named.

    :param options: fields of :class:`NewTask`.
    """
    return NewTask(**{"id": new_id(), "queue": "work", "name": "kit.task", "body": b"[]", **options})


def new_schedule(schedule_id: str, **options: Any) -> Schedule:
    """Return a schedule that is not due."""
    fields = {"id": schedule_id, "task": new_task(), "trigger": '["every", {"seconds": 60}]', "next_run": FAR}
    return Schedule(**{**fields, **options})


def outcome(kind: str, task: StoredTask) -> Outcome:
    """Return an outcome of one of the :data:`OUTCOMES` for a task as it was claimed."""
    held: dict[str, Any] = {"id": task.id, "delivery": task.delivery}
    match kind:
        case "succeeded":
            return Succeeded(**held, result=f"result of delivery {task.delivery}".encode())
        case "failed":
            return Failed(**held, error=BOOM)
        case "cancelled":
            return Cancelled(**held)
        case "retry" | "retry later":
            return Retry(**held, delay=0 if kind == "retry" else 3600, error=BOOM)
        case "released" | "released later":
            return Released(**held, delay=0 if kind == "released" else 3600)
    raise ValueError(kind)


async def add(store: Storage, *tasks: NewTask, **options: Any) -> list[str]:
    """Enqueue tasks, or one of the given fields, and give their ids; each must be new to the store."""
    tasks = tasks or (new_task(**options),)
    answers = await store.enqueue(tasks)
    assert [(answer.id, answer.created) for answer in answers] == [(task.id, True) for task in tasks]
    return [task.id for task in tasks]


async def take(store: Storage, limit: int = 1, *, queue: str = "work", lease: float = HELD) -> list[StoredTask]:
    """Claim tasks of one queue as worker ``w``."""
    return await store.claim({queue: limit}, worker="w", lease=lease)


async def take_lapsed(store: Storage, limit: int = 1, *, queue: str = "work") -> list[StoredTask]:
    """Claim tasks of one queue and wait until the leases have run out."""
    tasks = await take(store, limit, queue=queue, lease=0.05)
    await lapsed(store, tasks)
    return tasks


async def take_expiring(store: Storage) -> StoredTask:
    """Enqueue a task that expires soon, and claim it before it does, however slow the machine is."""
    for seconds in (0.5, 2, 8, 32):
        await add(store, expires=timedelta(seconds=seconds))
        if claimed := await take(store):
            return claimed[0]
        await store.recover(10)  # ends what has expired
    raise AssertionError(f"no task was claimed within {seconds} s of its enqueueing")


async def lapsed(store: Storage, tasks: Sequence[StoredTask]) -> None:
    """Wait until the leases of some tasks, as claimed, have run out."""
    for task in tasks:
        assert task.lease_until is not None
        await passed(store, task.lease_until)


async def passed(store: Storage, moment: datetime | None) -> None:
    """Wait until a moment is past by the store's clock."""
    assert moment is not None

    async def is_past() -> bool:
        return await store.now() > moment

    ahead = (moment - await store.now()).total_seconds()
    await await_until(is_past, ahead + 60, f"the store's clock to pass {moment}")


async def later(store: Storage, seconds: float) -> None:
    """Wait until the store's clock has gone on by some seconds."""
    await passed(store, await store.now() + timedelta(seconds=seconds))


async def record(store: Storage, task_id: str) -> StoredTask:
    """Return the record of a task that must be there."""
    (task,) = await store.get([task_id])
    assert task is not None, f"task {task_id} is gone"
    assert task.id == task_id
    return task


async def states(store: Storage, ids: Sequence[str]) -> list[TaskState | None]:
    """Return the states of tasks, None for one that is not there."""
    return [None if task is None else task.state for task in await store.get(ids)]


async def counts(store: Storage, queue: str = "work") -> dict[TaskState, int]:
    """Return the counts of a queue, those that are not zero."""
    stats: dict[str, QueueStats] = {stat.queue: stat for stat in await store.stats()}
    return {state: count for state, count in stats[queue].counts.items() if count} if queue in stats else {}


async def moved(source: Storage, target: Storage, *, size: int = 100) -> list[Adoption]:
    """Have a store adopt all flows and tasks of another.

    :param size: how many tasks of a call.
    :return: what became of each, the flows first, and the tasks in the order of enqueueing.
    """
    tasks: list[StoredTask] = []
    cursor: str | None = None
    while True:
        page = await source.list_tasks(TaskQuery(limit=size), cursor)
        tasks[:0] = reversed(page.tasks)
        if (cursor := page.cursor) is None:
            break
    ids = list(dict.fromkeys(task.flow for task in tasks if task.flow is not None))
    flows = [flow for flow in (await source.get_flows(ids) if ids else []) if flow is not None]
    answers = await target.adopt([], flows) if flows else []
    for begin in range(0, len(tasks), size):
        answers += await target.adopt(tasks[begin : begin + size])
    return answers
