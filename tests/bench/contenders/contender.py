"""What a measurement asks of a contender: the same few steps of every product.

Adapters run in the environment of their product, where nothing of OmniQ's is installed: so they take the standard
library and their product, which they import by name when they are made.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.marks import Marks

__all__ = ["Contender", "Setting", "polling"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one measurement gives to its contender."""

    store: str
    """``memory``, ``sqlite`` or ``file``."""
    kind: str
    """What its tasks are: ``async`` functions, ``plain`` ones, or such as ``hold`` their slot for good."""
    folder: Path
    """Where its files go, if it has any."""
    marks: Marks
    batch: int = 0
    """For the plain client: how many tasks a transaction."""

    @property
    def file(self) -> Path:
        """The database of a measurement on SQLite."""
        return self.folder / "bench.db"


class Contender(ABC):
    """One product on one store, at the settings that its documentation gives for speed.

    Its task takes a number, notes with ``marks.began(number)`` that it runs, and returns the number.
    """

    runs_as_sent = False
    """Whether a task runs as soon as it is handed over, so that a queue of it cannot be filled first."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.marks = setting.marks

    @abstractmethod
    def enqueue(self, number: int) -> Any:
        """Hand over one task, and return when it is stored. For the products that have synchronous callers."""

    async def aenqueue(self, number: int) -> Any:
        """Hand over one task from a coroutine, in the way that the product has for it."""
        return self.enqueue(number)

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        """Hand over many tasks, by the product's bulk call where it has one."""
        for number in numbers:
            self.enqueue(number)

    @abstractmethod
    async def stored(self) -> int:
        """Give how many tasks have ended, with their results stored where the product stores results."""

    async def result(self, handed_over: Any) -> Any:
        """Wait for the result of what :meth:`aenqueue` returned."""
        raise NotImplementedError

    @abstractmethod
    def worker(self) -> AbstractAsyncContextManager[object]:
        """Run a worker while the context lasts."""

    async def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Disconnect."""


@asynccontextmanager
async def polling(step: Callable[[], bool], pause: float) -> AsyncIterator[None]:
    """Run a worker of a product that has none: a thread that takes a task after the other.

    :param step: does the next task, or some; whether there was one.
    :param pause: seconds to sleep when there was none.
    """
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if not step():
                stop.wait(pause)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        await asyncio.to_thread(thread.join)
