"""tarsk on Redis streams: one child process with its default of 100 slots, under its supervisor; results for an hour.

It has no blocking wait for a result: here a caller looks every millisecond (50 ms by default).
"""

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

__all__ = ["Tarsk"]

KINDS = {"async": "abench", "plain": "bench"}


def _app(url: str) -> tuple[Any, dict[str, Any]]:
    tarsk: Any = importlib.import_module("tarsk")
    app = tarsk.App(broker=url)
    return app, {kind: app.task(name=name, result_ttl=3600)(getattr(tasks, name)) for kind, name in KINDS.items()}


# For its workers, which find the application here.
app = _app(os.environ[tasks.URL])[0] if tasks.URL in os.environ else None


class Tarsk(Spawned):
    """tarsk."""

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
            return connection.count("tarsk:result:*")

    async def result(self, handed_over: Any) -> Any:
        return self.app.result(handed_over).get(poll=0.001)

    def worker(self) -> AbstractAsyncContextManager[object]:
        return self.spawn(
            "tarsk",
            "worker",
            f"--app={__name__}:app",
            f"--broker={self.setting.url}",
            "--children=1",
        )
