"""A deque, a dict and JSON: the least that a queue in memory must do."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager

from tests.bench.contenders.contender import Contender, Setting, polling

__all__ = ["RawMemory"]


class RawMemory(Contender):
    """``collections.deque``."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._queue: deque[tuple[int, str]] = deque()
        self._results: dict[int, str] = {}

    def enqueue(self, number: int) -> None:
        self._queue.append((number, json.dumps([[number], {}])))

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        self._queue.extend((number, json.dumps([[number], {}])) for number in numbers)

    async def stored(self) -> int:
        return len(self._results)

    def worker(self) -> AbstractAsyncContextManager[object]:
        return polling(self._step, pause=0.001)

    def _step(self) -> bool:
        queue, results, began = self._queue, self._results, self.marks.began
        for _ in range(min(len(queue), 100)):
            task, payload = queue.popleft()
            (number,), _ = json.loads(payload)
            began(number)
            results[task] = json.dumps(number)
        return bool(queue)
