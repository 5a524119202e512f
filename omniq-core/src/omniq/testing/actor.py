"""A process that acts on a store and writes down what it does, for tests that kill it.

``OMNIQ_URL=… python -m omniq.testing.actor ROLE HISTORY [--options]``; the role is ``produce``, ``work``,
``fire`` or ``everything``.
Each line of the history is with the operating system before the next step begins, so it survives the process. With
``--die-at EVENT:N`` the process kills itself (SIGKILL) when it has written the N-th line of that event; with
``--die-at EVENT:N:SECONDS`` so many seconds later, most likely in the middle of the step that follows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from attrs import evolve

from omniq.errors import StorageUnavailable
from omniq.plugins import default_plugins
from omniq.schedule import Schedule
from omniq.storage import Lease, Storage
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Outcome, Progress, Released, Retry, StoredTask, Succeeded, TaskState

__all__ = ["History", "drain", "everything", "fire", "main", "produce", "read_history", "work"]

KEYS = ("key 1", "key 2", "key 3")
SCHEDULE = "kit.schedule"
SIDE_QUEUE = "paused now and then"


class History:
    """What one actor did, a line of JSON for each event.

    :param path: the file to append to.
    :param die_at: ``EVENT:N`` or ``EVENT:N:SECONDS``, see the module; None: live.
    """

    def __init__(self, path: Path, die_at: str | None = None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._written: Counter[str] = Counter()
        self._death: tuple[str, int, float] | None = None
        if die_at is not None:
            event, number, *seconds = die_at.split(":")
            self._death = event, int(number), float(seconds[0]) if seconds else 0.0

    def write(self, event: str, **fields: Any) -> None:
        """Append an event; die if this is the one to die at."""
        os.write(self._file, json.dumps({"event": event, **fields}).encode() + b"\n")
        self._written[event] += 1
        if self._death is not None and self._death[:2] == (event, self._written[event]):
            self._die(self._death[2])

    def _die(self, seconds: float) -> None:
        if seconds <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

        def later() -> None:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=later, daemon=True).start()

    def close(self) -> None:
        os.close(self._file)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the events of a history; a last line that death cut short is left out."""
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines]


async def produce(
    storage: Storage,
    history: History,
    *,
    queue: str,
    batches: int | None,
    size: int,
    pause: float = 0.0,
    on_request: bool = False,
    seed: int = 0,
) -> None:
    """Enqueue batches of tasks, the last of each with one of a few unique keys.

    :param batches: how many; None: until killed.
    :param size: the largest number of tasks in a batch.
    :param pause: seconds between two batches.
    :param on_request: whether to read a line of the standard input before each batch.
    """
    rng = random.Random(seed)
    for _ in itertools.count() if batches is None else range(batches):
        if on_request:
            await asyncio.to_thread(sys.stdin.readline)
        tasks = [
            NewTask(
                id=new_id(),
                queue=queue,
                name="kit.task",
                body=bytes(rng.choice((0, 10, 5000))),
                priority=rng.randint(-1, 1),
                max_retries=1_000_000,
            )
            for _ in range(rng.randint(1, size))
        ]
        if size > 1:
            tasks.append(evolve(tasks[0], id=new_id(), unique=rng.choice(KEYS)))
        history.write("enqueueing", ids=[task.id for task in tasks if task.unique is None])
        answers = await storage.enqueue(tasks)
        history.write("enqueued", ids=[answer.id for answer in answers if answer.created])
        await asyncio.sleep(pause)


async def work(
    storage: Storage,
    history: History,
    *,
    queue: str,
    lease: float,
    limit: int = 5,
    on_request: bool = False,
    seed: int = 0,
) -> None:
    """Claim and finish tasks, and recover those of the dead, until nothing live is left in the queue.

    Every outcome tells its delivery; some first deliveries are retried or released.

    :param lease: seconds.
    :param limit: how many to claim at once.
    :param on_request: whether to send no heartbeat but read a line of the standard input before each finish.
    """
    rng = random.Random(seed)
    worker = f"process {os.getpid()}"
    while True:
        for task in await storage.recover(50):
            history.write("recovered", items=[[task.id, task.delivery]])
        claimed = await storage.claim({queue: rng.randint(1, limit)}, worker=worker, lease=lease)
        if not claimed:
            if not await _is_live(storage, queue):
                await storage.heartbeat(worker, [], 0)
                return
            await storage.wait_for_work([queue], 0.1)
            continue
        items = [[task.id, task.delivery] for task in claimed]
        history.write("claimed", items=items)
        if on_request:
            await asyncio.to_thread(sys.stdin.readline)
        else:
            await storage.heartbeat(worker, [Lease(task.id, task.delivery) for task in claimed], lease)
        outcomes = [_outcome(task, rng) for task in claimed]
        history.write("finishing", items=items)
        answers = await storage.finish(outcomes)
        kinds = [type(outcome).__name__ for outcome in outcomes]
        history.write("finished", items=[[*item, *rest] for item, *rest in zip(items, kinds, answers, strict=True)])


def _outcome(task: StoredTask, rng: random.Random) -> Outcome:
    if task.delivery == 1 and rng.random() < 0.1:
        kind = rng.choice((Retry, Released))
        return kind(id=task.id, delivery=task.delivery, delay=rng.choice((0.0, 0.02)))
    return Succeeded(id=task.id, delivery=task.delivery, result=b"%d" % task.delivery)


async def _is_live(storage: Storage, queue: str) -> bool:
    for stats in await storage.stats():
        if stats.queue == queue:
            return any(count for state, count in stats.counts.items() if not TaskState(state).is_final)
    return False


async def drain(storage: Storage, history: History, *, queue: str) -> None:
    """Finish everything that is live in a queue, whichever worker holds it now."""
    await work(storage, history, queue=queue, lease=30, limit=100)


async def fire(storage: Storage, history: History, *, queue: str) -> None:
    """Fire whatever schedule is due, its next run a second after the last, until all have come to their ends.

    :param queue: of the tasks of the runs; the body of each is the time that it is of.
    """
    while due := await storage.due_schedules(5):
        for schedule in due:
            assert schedule.next_run is not None
            assert schedule.end is not None
            body = schedule.next_run.isoformat().encode()
            task = evolve(schedule.task, id=new_id(), queue=queue, body=body, unique=None)
            following = schedule.next_run + timedelta(seconds=1) if schedule.next_run < schedule.end else None
            history.write("firing", id=task.id, revision=schedule.revision)
            fired = await storage.fire(evolve(schedule, next_run=following, last_task=task.id), [task])
            history.write("fired", id=task.id, revision=schedule.revision, fired=fired is not None)


async def everything(storage: Storage, history: History, *, queue: str, lease: float) -> None:
    """Do every verb that changes something, again and again, until killed.

    :param lease: seconds.
    """
    worker = f"process {os.getpid()}"
    while True:
        tasks = [NewTask(id=new_id(), queue=queue, name="kit.task", body=b"[]", max_retries=9) for _ in range(4)]
        ids = [task.id for task in tasks]
        schedule = Schedule(id=SCHEDULE, task=tasks[0], trigger="{}", next_run=datetime.now(UTC))
        claimed: list[StoredTask] = []
        with contextlib.suppress(StorageUnavailable):  # a client stood still for too long
            await storage.enqueue([*tasks, *(evolve(tasks[0], id=new_id(), unique=key) for key in KEYS)])
            claimed = await storage.claim({queue: 5}, worker=worker, lease=lease)
            held = [Lease(task.id, task.delivery) for task in claimed]
            await storage.set_progress({one: Progress(done=1) for one in held})
            await storage.heartbeat(worker, held, lease)
            await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=b"") for one in held])
            await storage.cancel(ids)
            await storage.retry(ids)
            await storage.recover(5)
            await storage.pause(SIDE_QUEUE)
            await storage.resume(SIDE_QUEUE)
            stored = await storage.put_schedule(schedule)
            if stored is not None:
                await storage.fire(stored, [evolve(tasks[0], id=new_id())])
            await storage.delete_schedule(SCHEDULE)
            await storage.delete(ids)
            await storage.purge(queue, TaskState.SUCCEEDED)
            await storage.prune(5)
        history.write("round")


async def _act(options: argparse.Namespace) -> None:
    storage = default_plugins().open_storage(parse_url(os.environ["OMNIQ_URL"]))
    history = History(options.history, options.die_at)
    history.write("started", pid=os.getpid())
    await storage.open()
    history.write("opened")
    queue, seed = options.queue, options.seed
    try:
        if options.role == "produce":
            await produce(
                storage,
                history,
                queue=queue,
                batches=options.batches or None,
                size=options.size,
                pause=options.pause,
                on_request=options.on_request,
                seed=seed,
            )
        elif options.role == "work":
            await work(storage, history, queue=queue, lease=options.lease, on_request=options.on_request, seed=seed)
        elif options.role == "everything":
            await everything(storage, history, queue=queue, lease=options.lease)
        else:
            await fire(storage, history, queue=queue)
    finally:
        await storage.close()
    history.write("closed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Act as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m omniq.testing.actor", description="Acts on the store OMNIQ_URL.")
    parser.add_argument("role", choices=["produce", "work", "fire", "everything"])
    parser.add_argument("history", type=Path, help="the file to append to")
    parser.add_argument("--queue", default="work")
    parser.add_argument("--die-at", help="EVENT:N[:SECONDS]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batches", type=int, default=0, help="0: until killed")
    parser.add_argument("--size", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--on-request", type=bool, default=False, help="read a line before each batch or finish")
    parser.add_argument("--lease", type=float, default=0.4)
    asyncio.run(_act(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
