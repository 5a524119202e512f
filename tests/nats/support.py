"""What the tests of this folder share: storages by URL, and a load that notes what it was told."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from omniq.errors import StorageUnavailable
from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.storage.ids import new_id
from omniq.storage.urls import parse_url
from omniq.task import NewTask, Succeeded, TaskState
from omniq.testing import await_until
from omniq_nats.storage import NatsStorage

__all__ = ["Load", "fresh", "make", "opened", "task"]


def fresh(url: str, **options: str) -> str:
    """Return a URL with a namespace of its own."""
    options = {"namespace": f"t{new_id()[-12:]}", **options}
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{url}{'&' if '?' in url else '?'}{query}"


def make(url: str) -> NatsStorage:
    """Return an unopened storage."""
    storage = default_plugins().open_storage(parse_url(url))
    assert isinstance(storage, NatsStorage)
    return storage


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[NatsStorage]:
    """Yield an open storage, and close it."""
    storage = make(url)
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


def task(**fields: Any) -> NewTask:
    """Return a task to enqueue."""
    return NewTask(**{"id": new_id(), "queue": "work", "name": "test.task", "body": b"[]", **fields})


class Load:
    """Producers and workers that go on whatever happens, and note what the store told them.

    :param url: of the store.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.acknowledged: set[str] = set()
        self.accepted: Counter[str] = Counter()
        self.failures: list[StorageUnavailable] = []
        self._stopped = asyncio.Event()

    async def produce(self) -> None:
        """Enqueue until told to stop, one task and several by turns."""
        async with opened(self.url) as storage:
            number = 0
            while not self._stopped.is_set():
                number += 1
                tasks = [task(max_retries=1000) for _ in range(1 if number % 2 else 7)]
                await self._insist(self._enqueue(storage, tasks))

    async def _enqueue(self, storage: Storage, tasks: list[NewTask]) -> None:
        answers = await storage.enqueue(tasks)
        self.acknowledged.update(answer.id for answer in answers)

    async def work(self, worker: str) -> None:
        """Claim, finish and recover until told to stop."""
        async with opened(self.url) as storage:
            while not self._stopped.is_set():
                await self._insist(self._work(storage, worker))

    async def _work(self, storage: Storage, worker: str) -> None:
        claimed = await storage.claim({"work": 20}, worker=worker, lease=2.0)
        answers = await storage.finish([Succeeded(id=one.id, delivery=one.delivery, result=b"1") for one in claimed])
        self.accepted.update(one.id for one, answer in zip(claimed, answers, strict=True) if answer)
        await storage.recover(100)

    async def _insist(self, step: Any) -> None:
        try:
            await step
        except StorageUnavailable as failure:
            self.failures.append(failure)
            await asyncio.sleep(0.01)  # so that the loop does not spin

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have two producers and two workers at it."""
        async with asyncio.TaskGroup() as group:
            for number in range(2):
                group.create_task(self.produce())
                group.create_task(self.work(f"worker {number}"))
            await self.reached(50)
            try:
                yield
            finally:
                self._stopped.set()

    async def reached(self, number: int) -> None:
        """Return when so many more tasks were enqueued and finished."""
        wanted = len(self.acknowledged) + number, len(self.accepted) + number

        async def done() -> bool:
            return len(self.acknowledged) >= wanted[0] and len(self.accepted) >= wanted[1]

        await await_until(done, 60, f"{number} more tasks to be done; {self.failures[-3:]}")

    async def settle(self) -> None:
        """Work off what is left, and compare what the store holds with what it told."""
        async with opened(self.url) as storage:

            async def is_done() -> bool:
                await self._work(storage, "the last worker")
                stats = {stat.queue: stat.counts for stat in await storage.stats()}
                live = (TaskState.READY, TaskState.SCHEDULED, TaskState.RUNNING)
                return not any(stats["work"][state] for state in live)

            await await_until(is_done, 60, "everything to be worked off")
            ids = sorted(self.acknowledged)
            found = [record and record.state for record in await storage.get(ids)]
            assert Counter(found) == Counter({TaskState.SUCCEEDED: len(ids)}), "acknowledged tasks are lost"
            counts: Mapping[TaskState, int] = (await storage.stats())[0].counts
            assert counts[TaskState.SUCCEEDED] >= len(ids)
        assert [task_id for task_id, times in self.accepted.items() if times > 1] == [], "two outcomes were accepted"
