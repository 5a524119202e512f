"""The application of the fault tests: run as real processes, workers and producers, that note what they do.

``python -m tests.faults.apps worker '{"lease": 0.5}'`` runs a worker with these options until it is stopped or killed;
``python -m tests.faults.apps produce PRODUCER_OPTIONS`` enqueues. The store is named by ``OMNIQ_URL``, the folder of
the history by ``HISTORY``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import evolve

from omniq import Ended, Fixed, StorageUnavailable, TaskGroup, TaskQueue, current_task, hookimpl
from omniq._client import flows
from omniq.plugins import Plugins
from omniq.task import Task, TaskError
from tests.faults.history import History

history = History(Path(os.environ.get("HISTORY", ".")))


class Witness:
    """Notes what the workers of this process learn of their tasks."""

    @hookimpl
    def omniq_worker_started(self, worker: str) -> None:
        history.note("worker started", worker=worker)

    @hookimpl
    def omniq_worker_stopped(self, worker: str) -> None:
        history.note("worker stopped", worker=worker)

    @hookimpl
    def omniq_task_started(self, task: Task) -> None:
        # A process that stood still since the claim may begin after another one has.
        late = task.lease_until is None or datetime.now(UTC) >= task.lease_until
        claimed = None if task.started_at is None else task.started_at.timestamp()
        history.note("started", task.id, task.delivery, attempt=task.attempt, late=late, key=task.key, claimed=claimed)

    @hookimpl
    def omniq_task_succeeded(self, task: Task) -> None:
        history.note("accepted", task.id, task.delivery, how="succeeded")

    @hookimpl
    def omniq_task_failed(self, task: Task, error: TaskError) -> None:
        history.note("accepted", task.id, task.delivery, how="failed", error=error.type)

    @hookimpl
    def omniq_task_retrying(self, task: Task) -> None:
        history.note("accepted", task.id, task.delivery, how="retrying")

    @hookimpl
    def omniq_task_cancelled(self, task: Task) -> None:
        history.note("accepted", task.id, task.delivery, how="cancelled")

    @hookimpl
    def omniq_task_recovered(self, task: Task) -> None:
        history.note("recovered", task.id, task.delivery, state=str(task.state))


class NoteRejections(logging.Handler):
    """Notes completions that the store rejected: what the log says of them is part of what is tested."""

    def emit(self, record: logging.LogRecord) -> None:
        if "rejected the late completion" in record.getMessage() and isinstance(record.args, tuple):
            history.note("rejected", str(record.args[0]), int(str(record.args[2])))


def _plugins() -> Plugins:
    plugins = Plugins()
    plugins.register(Witness(), name="witness")
    return plugins


queue = TaskQueue(plugins=_plugins(), max_retries=20, retry=Fixed(0.05))


def _ran(**details: Any) -> str:
    """Note that this run of the task came to its end, and give the result that only this run can have."""
    nonce = f"{os.getpid()}-{secrets.token_hex(4)}"
    history.note("ran", current_task().id, nonce=nonce, attempt=current_task().attempt, **details)
    return nonce


@queue.task
async def coroutine(seconds: float = 0.0) -> str:
    await asyncio.sleep(seconds)  # as long as the test says
    return _ran()


@queue.task
def thread(seconds: float = 0.0) -> str:
    time.sleep(seconds)  # as long as the test says
    return _ran()


@queue.task
async def hold_coroutine(flag: str) -> str:
    """End once a file is there; another attempt than the first ends at once."""
    while current_task().attempt == 1 and not os.path.exists(flag):  # noqa: ASYNC110, ASYNC240  # no event crosses processes
        await asyncio.sleep(0.005)  # no event crosses processes
    return _ran()


@queue.task
def hold_thread(flag: str) -> str:
    while current_task().attempt == 1 and not os.path.exists(flag):
        time.sleep(0.005)  # no event crosses processes
    return _ran()


@queue.task
def hold_each(flag: str) -> str:
    """End once a file of this very attempt is there."""
    while not os.path.exists(f"{flag}-{current_task().attempt}"):
        time.sleep(0.005)  # no event crosses processes
    return _ran()


@queue.task
async def stubborn(flag: str) -> str:
    """Hold on through every cancellation."""
    while current_task().attempt == 1 and not os.path.exists(flag):  # noqa: ASYNC240  # no event crosses processes
        try:
            await asyncio.sleep(0.005)  # no event crosses processes
        except asyncio.CancelledError:
            history.note("swallowed a cancellation", current_task().id)
    return _ran()


@queue.task
async def block_loop(seconds: float) -> str:
    time.sleep(seconds)  # noqa: ASYNC251  # the mistake that is tested
    return _ran()


@queue.task
async def kill_own_process(times: int) -> str:
    if current_task().attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return _ran()


@queue.task(max_retries=2)
def exit_hard() -> None:
    os._exit(7)


@queue.task
async def again(delay: float) -> str:
    """Run again once, after a while."""
    if current_task().attempt == 1:
        current_task().retry(delay)
    return _ran()


@queue.task
async def serve(seconds: float) -> str:
    """Note when it stops running, however it does: as long as it runs it holds a slot of its limits."""
    try:
        await asyncio.sleep(seconds)  # as long as the test says
    finally:
        history.note("stopped", current_task().id)
    return _ran()


# Of flows: each notes what it was given of the tasks before it.


@queue.task
async def step(inputs: list[str]) -> str:
    await asyncio.sleep(0.001)  # others run meanwhile
    return _ran(inputs=inputs)


@queue.task
def heed(ends: list[Ended[str]]) -> str:
    """Run whatever has become of the tasks before."""
    return _ran(inputs=[_said(end) for end in ends])


@queue.task(max_retries=0)
async def break_step(inputs: list[str]) -> str:
    raise ValueError(_ran(inputs=inputs))


@queue.task(max_retries=0)
def break_heed(ends: list[Ended[str]]) -> str:
    raise ValueError(_ran(inputs=[_said(end) for end in ends]))


def _said(end: Ended[str]) -> str:
    if end.ok:
        return end.value()
    return "" if end.error is None else end.error.type


def build(size: int, part: int, hold: float) -> None:
    """Enqueue a flow in parts: one task, many that take its result, and one that takes all of theirs.

    :param size: how many.
    :param part: tasks that the store takes at once, at most.
    :param hold: seconds for which an unfinished flow waits for its next part.
    """
    storage = queue.connections.blocking()
    setattr(type(storage), "limits", evolve(storage.limits, atomic_tasks=part))  # noqa: B010  # a property of some
    flows.HOLD_SECONDS = hold
    first = step.call([])
    handle = queue.enqueue_flow(TaskGroup([step.call([first.output]) for _ in range(size)]).then(step))
    history.note("enqueued", handle.id)


def produce(
    count: int,
    *,
    batch: int = 1,
    unique: int = 0,
    seconds: float = 0.002,
    first: int = 0,
    until: str | None = None,
    pause: float = 0.0,
) -> None:
    """Enqueue tasks, noting before each what will be tried and after it what came of it.

    :param count: how many batches.
    :param batch: tasks in each.
    :param unique: if not 0, the tasks share so many unique keys.
    :param seconds: how long each task takes.
    :param first: the number of the first batch.
    :param until: a file at whose appearance to end, although there are batches left.
    :param pause: seconds after each batch.
    """
    for number in range(first, first + count):
        if until is not None and os.path.exists(until):
            return
        tags = [f"batch-{number}"]
        calls = []
        for index in range(batch):
            task = (coroutine, thread)[index % 2]
            key = f"key-{(number + index) % unique}" if unique else None
            calls.append(task.using(tags=tags, unique=key).call(seconds))
        history.note("enqueueing", batch=number)
        try:
            handles = queue.enqueue_many(calls) if batch > 1 else [queue.submit(calls[0])]
        except Exception as error:
            history.note("refused", batch=number, error=repr(error), unavailable=isinstance(error, StorageUnavailable))
        else:
            for handle in handles:
                # Also a store that had to ask again, and found its own task, has acknowledged it.
                if handle.created or not unique:
                    history.note("enqueued", handle.id, batch=number)
        time.sleep(pause)  # as long as the test says


def main(command: str, options: dict[str, Any]) -> None:
    """Be the process that the arguments say."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("omniq.worker").addHandler(NoteRejections())
    if command == "worker":
        queue.run_worker(**options)
    elif command == "build":
        with queue:
            build(**options)
    elif command == "produce":
        with queue:
            produce(**options)
        history.note("produced")
    else:
        raise SystemExit(f"what is {command!r}?")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
