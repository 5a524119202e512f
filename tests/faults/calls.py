"""Every call that changes a store, each with what must be there before it, for tests that lose its answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from attrs import frozen

from omniq.schedule import Schedule
from omniq.storage import Lease, Storage, TaskQuery
from omniq.task import (
    FINAL_STATES,
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
from omniq.testing import await_until

__all__ = ["CALLS", "Call", "differences", "image"]

QUEUES = ("first", "second")
LEASE = 300.0
LIVE = frozenset(TaskState) - FINAL_STATES
LONG_AGO = datetime(2024, 2, 29, 12, tzinfo=UTC)
ERROR = TaskError(type="ValueError", message="broken", traceback="somewhere")


def _id(number: int) -> str:
    return f"018f3c5e-7000-7000-8000-{number:012d}"


def _task(number: int, **options: Any) -> NewTask:
    return NewTask(**{"id": _id(number), "queue": "first", "name": "kit", "body": b"[]", **options})


def _schedule(**options: Any) -> Schedule:
    defaults = {"id": "nightly", "task": _task(90), "trigger": "at noon", "next_run": LONG_AGO}
    return Schedule(**{**defaults, **options})


@frozen
class Call:
    """One call on a storage that changes it."""

    name: str
    call: Callable[[Storage], Awaitable[Any]]
    """Gives its answer, without what no two stores have in common."""
    prepare: Callable[[Storage], Awaitable[object]]
    """Is called first, by a way on which nothing is lost."""

    def __str__(self) -> str:
        return self.name


async def _nothing(storage: Storage) -> None:
    pass


async def _six_tasks(storage: Storage) -> None:
    """Three ready ones, a scheduled one, and two in another queue, one of them with a unique key."""
    await storage.enqueue(
        [
            _task(1),
            _task(2, priority=5, tags=("tag",)),
            _task(3, max_retries=0),
            _task(4, run_at=timedelta(hours=1)),
            _task(5, queue="second"),
            _task(6, queue="second", unique="key"),
        ]
    )


async def _claimed(storage: Storage, lease: float = LEASE) -> list[StoredTask]:
    return await storage.claim(dict.fromkeys(QUEUES, 10), worker="worker", lease=lease)


async def _five_running(storage: Storage) -> None:
    await _six_tasks(storage)
    await _claimed(storage)


async def _five_lapsed(storage: Storage) -> None:
    await _six_tasks(storage)
    claimed = await _claimed(storage, 0.05)
    await storage.cancel([_id(5)])
    until = max(task.lease_until for task in claimed if task.lease_until is not None)

    async def is_over() -> bool:
        return await storage.now() > until

    await await_until(is_over, what="the end of the leases")


async def _some_ended(storage: Storage) -> None:
    await _five_running(storage)
    await storage.finish(
        [
            Succeeded(id=_id(1), delivery=1, result=b"1"),
            Failed(id=_id(2), delivery=1, error=ERROR),
            Cancelled(id=_id(6), delivery=1),
        ]
    )


async def _some_past_their_time(storage: Storage) -> None:
    await storage.enqueue([_task(1, result_ttl=0.0), _task(2, result_ttl=0.0), _task(3)])
    await _claimed(storage)
    await storage.finish([Succeeded(id=_id(number), delivery=1, result=b"1") for number in (1, 2)])
    now = await storage.now()

    async def is_later() -> bool:
        return await storage.now() > now

    await await_until(is_later, what="the end of the results' time")


async def _enqueue(storage: Storage) -> Any:
    return await storage.enqueue(
        [
            _task(1),
            _task(2, priority=5, unique="key", tags=("tag", "other")),
            _task(3, queue="second", run_at=timedelta(hours=1)),
            _task(4, queue="second"),
            _task(5, unique="key"),
        ]
    )


async def _enqueue_one(storage: Storage) -> Any:
    return await storage.enqueue([_task(1)])


async def _claim(storage: Storage) -> Any:
    return [(task.id, task.delivery, task.attempt, task.worker) for task in await _claimed(storage)]


OUTCOMES: Sequence[Outcome] = (
    Succeeded(id=_id(1), delivery=1, result=b"1"),
    Failed(id=_id(2), delivery=1, error=ERROR),
    Retry(id=_id(3), delivery=1, delay=0.0, error=ERROR),
    Released(id=_id(5), delivery=1),
    Cancelled(id=_id(6), delivery=1),
)


async def _finish(storage: Storage) -> Any:
    return await storage.finish(OUTCOMES)


async def _finish_one(storage: Storage) -> Any:
    return await storage.finish(OUTCOMES[:1])


async def _finish_for_later(storage: Storage) -> Any:
    return await storage.finish([Retry(id=_id(1), delivery=1, delay=3600.0, error=ERROR)])


async def _heartbeat(storage: Storage) -> Any:
    return await storage.heartbeat("worker", [Lease(_id(number), 1) for number in (1, 2, 3, 4)], LEASE)


async def _recover(storage: Storage) -> Any:
    return sorted((task.id, task.state, task.attempt, task.delivery) for task in await storage.recover(100))


async def _cancel_running(storage: Storage) -> None:
    await _some_ended(storage)
    await storage.cancel([_id(5)])


async def _fire(storage: Storage) -> Any:
    (stored,) = await storage.get_schedules(["nightly"])
    # As it was read before the first time, also when this is repeated.
    revision = stored.revision - (stored.last_task is not None)
    after = _schedule(
        revision=revision, next_run=LONG_AGO + timedelta(days=1), last_run=LONG_AGO, last_task=_id(91), task=stored.task
    )
    return await storage.fire(after, [_task(91), _task(92, queue="second")])


async def _put(storage: Storage) -> Any:
    return await storage.put_schedule(_schedule(), 0) is not None


async def _replace(storage: Storage) -> Any:
    (before,) = await storage.get_schedules(["nightly"])
    revision = before.revision - before.paused
    stored = await storage.put_schedule(_schedule(trigger="at midnight", paused=True), revision)
    return None if stored is None else stored.revision - revision


CALLS = (
    Call("enqueue", _enqueue, _nothing),
    Call("enqueue one", _enqueue_one, _nothing),
    Call("claim", _claim, _six_tasks),
    Call("finish", _finish, _five_running),
    Call("finish one", _finish_one, _five_running),
    Call("finish for later", _finish_for_later, _five_running),
    Call("heartbeat", _heartbeat, _five_running),
    Call("recover", _recover, _five_lapsed),
    Call("cancel", lambda storage: storage.cancel([_id(n) for n in range(1, 8)]), _some_ended),
    Call("cancel waiting ones", lambda storage: storage.cancel([_id(n) for n in range(1, 8)]), _six_tasks),
    Call("retry", lambda storage: storage.retry([_id(n) for n in range(1, 8)]), _cancel_running),
    Call("delete", lambda storage: storage.delete([_id(n) for n in range(1, 8)]), _some_ended),
    Call("purge", lambda storage: storage.purge("first"), _some_ended),
    Call("pause", lambda storage: storage.pause("first"), _six_tasks),
    Call("resume", lambda storage: storage.resume("first"), lambda storage: storage.pause("first")),
    Call(
        "set progress",
        lambda storage: storage.set_progress({Lease(_id(1), 1): Progress(done=1, total=2, note="half")}),
        _five_running,
    ),
    Call("put a new schedule", _put, _nothing),
    Call("replace a schedule", _replace, _put),
    Call("delete a schedule", lambda storage: storage.delete_schedule("nightly"), _put),
    Call("fire", _fire, _put),
    Call("prune", lambda storage: storage.prune(100), _some_past_their_time),
)


async def image(storage: Storage) -> dict[str, Any]:
    """Return all that can be seen of a store, but for its times, and for what can be seen by going on with it.

    It claims what is left and ends it.
    """
    await storage.prune(100)
    seen: dict[str, Any] = await _picture(storage)
    for queue in QUEUES:
        await storage.resume(queue)
    claimed = await storage.claim(dict.fromkeys(QUEUES, 100), worker="last", lease=LEASE)
    seen["claimed in the end"] = [(task.queue, task.id, task.attempt, task.delivery) for task in claimed]
    seen["finished in the end"] = await storage.finish(
        [Succeeded(id=task.id, delivery=task.delivery, result=b"2") for task in claimed]
    )
    seen["free keys"] = [
        answer.created
        for answer in await storage.enqueue([_task(80, queue="third", unique="key", run_at=timedelta(hours=1))])
    ]
    seen["afterwards"] = await _picture(storage)
    return seen


def differences(seen: Any, expected: Any, where: str = "") -> list[str]:
    """Say in what two images differ, one line for each place."""
    if isinstance(seen, Mapping) and isinstance(expected, Mapping):
        keys = [*expected, *(key for key in seen if key not in expected)]
        pairs = [(f"{where}.{key}", seen.get(key), expected.get(key)) for key in keys]
    elif isinstance(seen, list) and isinstance(expected, list) and len(seen) == len(expected):
        pairs = [(f"{where}[{at}]", one, other) for at, (one, other) in enumerate(zip(seen, expected, strict=True))]
    else:
        return [] if seen == expected else [f"{where.lstrip('.')} is {seen!r} instead of {expected!r}"]
    return [line for place, one, other in pairs for line in differences(one, other, place)]


async def _picture(storage: Storage) -> dict[str, Any]:
    tasks: list[StoredTask] = []
    cursor: str | None = None
    while True:
        page = await storage.list_tasks(TaskQuery(limit=3), cursor)
        tasks += page.tasks
        cursor = page.cursor
        if cursor is None:
            break
    listed = [await _ids(storage, TaskQuery(states=[state])) for state in TaskState]
    return {
        "tasks": [_row(task) for task in tasks],
        "read by id": [None if task is None else _row(task) for task in await storage.get([_id(n) for n in range(9)])],
        "by state": dict(zip(map(str, TaskState), listed, strict=True)),
        "by tag": await _ids(storage, TaskQuery(tag="tag")),
        "stats": {
            stats.queue: (stats.paused, {str(state): count for state, count in stats.counts.items() if count})
            for stats in await storage.stats()
        },
        "schedules": [
            (one.id, one.trigger, one.next_run, one.last_run, one.last_task, one.paused)
            for one in await storage.get_schedules()
        ],
        "due": [one.id for one in await storage.due_schedules(100)],
        "workers": {worker.id: sorted(worker.running) for worker in await storage.workers()},
    }


async def _ids(storage: Storage, query: TaskQuery) -> list[str]:
    return [task.id for task in await storage.list_tasks(query)]


def _row(task: StoredTask) -> dict[str, Any]:
    running = task.state is TaskState.RUNNING
    return {
        "id": task.id,
        "queue": task.queue,
        "state": str(task.state),
        "attempt": task.attempt,
        "delivery": task.delivery,
        "priority": task.priority,
        "tags": task.tags,
        "unique": task.unique,
        # Whether it is still there after a retry from outside is left open.
        "error": task.error if task.state is TaskState.FAILED or (task.state in LIVE and task.attempt) else None,
        "result": task.result_payload,
        "worker": task.worker if running else None,
        "progress": task.progress if running else None,
        "is to stop": running and task.cancel_requested,
        "has a lease": task.lease_until is not None,
        "has an end": task.finished_at is not None,
    }
