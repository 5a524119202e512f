"""mayu on Redis: plain functions on eight threads of one process, results for an hour."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from tests.bench.contenders import tasks
from tests.bench.contenders.contender import Setting
from tests.bench.contenders.running import Spawned
from tests.bench.resp import Connection

__all__ = ["Mayu"]


def _app(url: str) -> tuple[Any, Any]:
    mayu: Any = importlib.import_module("mayu")
    app = mayu.App(broker=url, result_ttl=3600)
    return app, {"async": app.task(name="abench")(tasks.abench), "plain": app.task(name="bench")(tasks.bench)}


# For its workers, which find the application here.
app = _app(os.environ[tasks.URL])[0] if tasks.URL in os.environ else None


class Mayu(Spawned):
    """mayu."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.app, made = _app(setting.url)
        self.task = made[setting.kind]

    def enqueue(self, number: int) -> Any:
        return self.task.send(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self.task.send(number)

    async def stored(self) -> int:
        with Connection(self.setting.url) as connection:
            return connection.count("mayu:result:*")

    async def result(self, handed_over: Any) -> Any:
        return handed_over.result(timeout=10)

    def worker(self) -> AbstractAsyncContextManager[object]:
        return self.spawn(
            "mayu", "worker", f"{__name__}:app", "--mode=thread", "--processes=1", "--threads=8", "--log-level=ERROR"
        )
