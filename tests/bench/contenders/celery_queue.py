"""Celery on Redis, broker and results: plain functions on eight threads, without gossip, mingling and heartbeat."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import Contender, Setting
from tests.bench.contenders.running import on_thread
from tests.bench.resp import Connection

__all__ = ["Celery"]


class Celery(Contender):
    """Celery."""

    stops_by_itself = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        celery: Any = importlib.import_module("celery")
        self.bulk, self.chord = celery.group, celery.chord
        self.app = celery.Celery("bench", broker=setting.url, backend=setting.url)
        # Its threads look for the application there.
        self.app.set_default()
        self.app.conf.update(
            worker_prefetch_multiplier=16,
            worker_hijack_root_logger=False,
            worker_send_task_events=False,
            task_send_sent_event=False,
        )
        began = self.marks.began

        def bench(number: int) -> int:
            began(number)
            return number

        self.task = self.app.task(bench, name="bench")

    def enqueue(self, number: int) -> Any:
        return self.task.delay(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), 1000):
            self.bulk(self.task.s(number) for number in numbers[start : start + 1000]).apply_async()

    async def group(self, numbers: Sequence[int], callback: int) -> None:
        self.chord([self.task.s(number) for number in numbers])(self.task.si(callback))

    async def stored(self) -> int:
        with Connection(self.setting.url) as connection:
            return connection.count("celery-task-meta-*")

    async def result(self, handed_over: Any) -> Any:
        return handed_over.get(timeout=10)

    def worker(self) -> AbstractAsyncContextManager[object]:
        worker = self.app.WorkController(
            pool="threads", concurrency=8, without_heartbeat=True, without_mingle=True, without_gossip=True
        )
        return on_thread(worker.start)
