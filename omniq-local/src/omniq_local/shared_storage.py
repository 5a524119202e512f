"""The life of a storage on what all storages of a process on one file or folder share: its connections and threads."""

from __future__ import annotations

import asyncio
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from datetime import datetime
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

from omniq.errors import StorageUnavailable
from omniq.storage import Storage, StorageConfig
from omniq.storage.times import from_micros
from omniq_local.io_threads import on_io_thread

__all__ = ["Shared", "SharedStorage"]

T = TypeVar("T")


class Shared(ABC):
    """What is open on one file or folder, for any number of users. Nothing is open until :meth:`open`.

    :param clock: returns the time in seconds since the epoch.
    """

    generation = 0
    """Counts the forks: what was opened under another number is the parent's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def _without_users(self) -> None:
        """Begin anew, as nothing is open."""
        self._guard = threading.RLock()  # a finalizer may come in the middle of anything
        self._users = 0

    def now(self) -> int:
        """Return the store's clock, in microseconds since the epoch."""
        return int(self.clock() * 1_000_000)

    def open(self) -> None:
        """Open for one more user; blocks.

        :raises SchemaMismatch: if the file or folder holds something else, or was written by another version.
        :raises StorageUnavailable: if it cannot be used.
        """
        with self._guard:
            if self._users == 0:
                self._open()
            self._users += 1

    def close(self, generation: int) -> None:
        """Do without one user, and close after the last; blocks.

        :param generation: under which this user opened.
        """
        with self._guard:
            if generation != self.generation or self._users == 0:
                return
            self._users -= 1
            if self._users == 0:
                self._end()

    @abstractmethod
    def _open(self) -> None:
        """Open for the first user."""

    @abstractmethod
    def _end(self) -> None:
        """Close after the last user."""


class Waits(Protocol):
    """The waits of one storage."""

    async def for_work(self, queues: Sequence[str], timeout: float) -> None:
        """See :meth:`~omniq.storage.Storage.wait_for_work`."""
        ...

    async def for_end(self, ids: Sequence[str], timeout: float) -> set[str]:
        """See :meth:`~omniq.storage.Storage.wait_finished`."""
        ...

    def close(self) -> None:
        """End all waits, and stop listening."""
        ...


S = TypeVar("S", bound=Shared)
W = TypeVar("W", bound=Waits)


class SharedStorage(Storage, Generic[S, W]):
    """A storage that is one user of what others share with it.

    :param config: where the store is.
    :param shared: what is open there.
    :param new_waiting: makes the waits of one storage.
    """

    def __init__(self, config: StorageConfig, shared: S, new_waiting: Callable[[S], W]) -> None:
        self._config = config
        self._shared = shared
        self._new_waiting = new_waiting
        self._thread_name = f"omniq-{config.scheme}-open"
        self._close_up()

    def _close_up(self) -> None:
        self._generation = -1
        self._waiting: W | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._config!r})"

    def sibling(self) -> Self:
        twin = copy(self)
        twin._close_up()
        return twin

    async def open(self) -> None:
        if self._is_open:
            return
        shared = self._shared
        await self._on_a_thread(shared.open, undo=partial(shared.close, shared.generation))
        self._generation = shared.generation
        self._waiting = self._new_waiting(shared)
        # For those who forget to close.
        self._finalizer = weakref.finalize(self, _abandon, shared, shared.generation, self._waiting, self._thread_name)

    async def close(self) -> None:
        if self._finalizer is None:
            return
        generation, waiting = self._generation, self._waiting
        self._finalizer.detach()
        self._close_up()
        if waiting is not None and generation == self._shared.generation:
            waiting.close()
            await self._on_a_thread(partial(self._shared.close, generation))

    @property
    def _is_open(self) -> bool:
        return self._generation == self._shared.generation

    def _opened(self) -> S:
        if self._generation != self._shared.generation:
            raise StorageUnavailable(f"{self._config.redacted} is not open in this process: call open() first")
        return self._shared

    def _waits(self) -> W:
        self._opened()
        assert self._waiting is not None
        return self._waiting

    async def now(self) -> datetime:
        return from_micros(self._opened().now())

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        await self._waits().for_work(queues, timeout)

    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        return await self._waits().for_end(ids, timeout)

    async def _on_a_thread(self, work: Callable[[], T], undo: Callable[[], object] | None = None) -> T:
        """Do what blocks without holding up the loop, also while the loop is ending.

        :param work: what to do.
        :param undo: done afterwards if it is done, but no caller waits for it any more.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def take_back() -> None:
            if undo is not None:
                threading.Thread(target=undo, name=self._thread_name).start()

        def settle(result: T | None, error: BaseException | None) -> None:
            if future.done():
                if error is None:
                    take_back()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # T itself may be Optional; without an error it is T

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except BaseException as caught:
                error = caught
            try:
                loop.call_soon_threadsafe(settle, result, error)
            except RuntimeError:  # the loop was closed meanwhile
                if error is None and undo is not None:
                    undo()

        threading.Thread(target=run, name=self._thread_name, daemon=True).start()
        try:
            return await future
        except asyncio.CancelledError:
            # It may come after the result, before the caller goes on.
            if future.done() and not future.cancelled() and future.exception() is None:
                take_back()
            raise


def _abandon(shared: Shared, generation: int, waiting: Waits, thread_name: str) -> None:
    if generation != shared.generation:
        return
    waiting.close()
    if on_io_thread():
        # It may hold what closing waits for.
        threading.Thread(target=shared.close, args=(generation,), name=thread_name).start()
    else:
        shared.close(generation)
