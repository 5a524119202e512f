"""Plain files doing the least that a queue of one file a task must write: nothing is flushed to the disk.

A task is written under another name and renamed, so that nobody reads half of it. A claim renames it once more; its end
writes a result in the same way and removes it.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from tests.bench.contenders.contender import Contender, Setting, polling

__all__ = ["RawFile"]


class RawFile(Contender):
    """Three folders: tasks, those that were claimed, results."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._tasks, self._claimed, self._results = (setting.folder / name for name in ("tasks", "claimed", "results"))
        for folder in (self._tasks, self._claimed, self._results):
            folder.mkdir(exist_ok=True)

    def enqueue(self, number: int) -> None:
        _write(self._tasks / f"{number:012}", json.dumps([[number], {}]))

    async def stored(self) -> int:
        return len(os.listdir(self._results))

    def worker(self) -> AbstractAsyncContextManager[object]:
        return polling(self._step, pause=0.001)

    def _step(self) -> bool:
        names = sorted(name for name in os.listdir(self._tasks) if name.isdecimal())
        for name in names:
            claimed = self._claimed / name
            os.rename(self._tasks / name, claimed)
            (number,), _ = json.loads(claimed.read_text())
            self.marks.began(number)
            _write(self._results / name, json.dumps(number))
            os.unlink(claimed)
        return bool(names)


def _write(file: Path, text: str) -> None:
    half = f"{file}.tmp"
    with open(half, "w", encoding="utf-8") as opened:
        opened.write(text)
    os.rename(half, file)
