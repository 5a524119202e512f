"""How the demo goes, as the store and the workers' events tell it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

from omniq._client.queue import TaskQueue
from omniq.cli.demo.team import Member
from omniq.storage import Storage, TaskQuery
from omniq.task import FINAL_STATES, TaskState

__all__ = ["Events", "Snapshot", "held_by", "look", "signed_on"]


@frozen(kw_only=True)
class Snapshot:
    """One look."""

    ready: int
    running: int
    scheduled: int
    ended: int
    failed: int
    holding: dict[int, int]
    """Process id of a worker → how many tasks it runs."""
    retried: int
    recovered: int


class Events:
    """Reads what the workers write to their common file.

    :param path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self.retried = 0
        self.recovered: list[str] = []
        """Ids of tasks, once for each time that one was taken back."""
        self.last_error = ""

    def read(self) -> None:
        """Take in what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                self._take(json.loads(line))

    def _take(self, event: dict[str, str]) -> None:
        if event["event"] == "retrying":
            self.retried += 1
            self.last_error = event["error"]
        else:
            self.recovered.append(event["id"])


async def look(queue: TaskQueue, storage: Storage, members: Sequence[Member], events: Events) -> Snapshot:
    """Take a look at the store."""
    counts = dict.fromkeys(TaskState, 0)
    for stats in await queue.astats():
        for state, count in stats.counts.items():
            counts[state] += count
    workers = await storage.workers()
    events.read()
    return Snapshot(
        ready=counts[TaskState.READY],
        running=counts[TaskState.RUNNING],
        scheduled=counts[TaskState.SCHEDULED],
        ended=sum(counts[state] for state in FINAL_STATES),
        failed=counts[TaskState.FAILED],
        holding={
            member.pid: len(worker.running) for worker in workers for member in members if member.has_id(worker.id)
        },
        retried=events.retried,
        recovered=len(events.recovered),
    )


async def signed_on(storage: Storage, members: Sequence[Member]) -> bool:
    """Whether every one of these workers has said to the store that it is alive."""
    workers = await storage.workers()
    return all(any(member.has_id(worker.id) for worker in workers) for member in members)


async def held_by(storage: Storage, member: Member) -> set[str]:
    """Return the ids of the tasks that a worker runs; of a dead one: that it ran when it died."""
    held: set[str] = set()
    cursor: str | None = None
    while True:
        page = await storage.list_tasks(TaskQuery(states=[TaskState.RUNNING]), cursor)
        held.update(task.id for task in page.tasks if member.has_id(task.worker))
        cursor = page.cursor
        if cursor is None:
            return held
