"""What a measurement asks of a contender: the same few steps of every product.

Adapters run in the environment of their product, where nothing of OmniQ's is installed: so they take the standard
library and their product, which they import by name when they are made.
"""

from __future__ import annotations

import asyncio
import os
import resource
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.marks import Marks

__all__ = ["AsyncContender", "Contender", "Setting", "polling"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one measurement gives to its contender."""

    store: str
    """``memory``, ``sqlite``, ``file``, ``redis``, ``postgres`` or ``nats``."""
    kind: str
    """What its tasks are: ``async`` functions, ``plain`` ones, or such as ``hold`` their slot for good."""
    folder: Path
    """Where its files go, if it has any."""
    marks: Marks
    batch: int = 0
    """For the plain client: how many tasks a transaction."""
    url: str = ""
    """Of the server, with a database of this measurement's own where it has such."""
    name: str = ""
    """For what this measurement makes on the server; no other measurement has it."""

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

    starts_late = False
    """Whether its worker is a program of its own, so that drains are timed from their first task on."""
    stops_by_itself = True
    """Whether its worker can be stopped in order, and soon; if not, its process is left at once."""

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

    async def group(self, numbers: Sequence[int], callback: int) -> None:
        """Hand over many tasks, and one that runs once they have all succeeded and takes nothing of them."""
        raise NotImplementedError

    async def enqueue_keyed(self, numbers: Sequence[int], keys: int) -> None:
        """Hand over many tasks of so many tenants in turn, of which two of each may run at a time."""
        raise NotImplementedError

    @abstractmethod
    async def stored(self) -> int:
        """Return how many tasks have ended, with their results stored where the product stores results."""

    async def result(self, handed_over: Any) -> Any:
        """Wait for the result of what :meth:`aenqueue` returned."""
        raise NotImplementedError

    @abstractmethod
    def worker(self) -> AbstractAsyncContextManager[object]:
        """Run a worker while the context lasts."""

    def pids(self) -> Sequence[int]:
        """Return the processes of a worker that :meth:`worker` runs."""
        return [os.getpid()]

    def seconds_of_cpu(self) -> float:
        """Return how long those have kept a core busy."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    async def connected(self) -> None:  # noqa: B027  # most connect when they are made, or at their first call
        """Connect unless it is connected, and make what the product needs on its server."""

    async def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Disconnect."""


class AsyncContender(Contender):
    """A product that only coroutines can hand tasks to."""

    AT_ONCE = 100
    """How many are handed over at the same time where there is no bulk call."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._connecting = asyncio.Lock()
        self._is_connected = False

    async def connect(self) -> None:  # some connect at their first call
        """Connect, and make what the product needs on the server."""

    async def connected(self) -> None:
        if not self._is_connected:
            async with self._connecting:
                if not self._is_connected:
                    await self.connect()
                    self._is_connected = True

    def enqueue(self, number: int) -> Any:
        raise NotImplementedError

    @abstractmethod
    async def aenqueue(self, number: int) -> Any: ...

    async def enqueue_many(self, numbers: Sequence[int]) -> None:
        await self.connected()
        for start in range(0, len(numbers), self.AT_ONCE):
            await asyncio.gather(*[self.aenqueue(number) for number in numbers[start : start + self.AT_ONCE]])


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
