"""litequeue: a bare queue on SQLite (WAL, NORMAL). It has no worker and no results: a loop pops and marks as done."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders.contender import Contender, Setting, polling

__all__ = ["LiteQueue"]


class LiteQueue(Contender):
    """litequeue with the shortest loop that works through it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.queue: Any = importlib.import_module("litequeue").LiteQueue(str(setting.file), timeout=30)

    def enqueue(self, number: int) -> Any:
        return self.queue.put(str(number))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        with self.queue.transaction():
            for number in numbers:
                self.queue.put(str(number))

    async def stored(self) -> int:
        (count,) = self.queue.conn.execute("SELECT count(*) FROM Queue WHERE status = 2").fetchone()
        return int(count)

    def worker(self) -> AbstractAsyncContextManager[object]:
        return polling(self._step, pause=0.001)

    def _step(self) -> bool:
        message = self.queue.pop()
        if message is None:
            return False
        self.marks.began(int(message.data))
        self.queue.done(message.message_id)
        return True
