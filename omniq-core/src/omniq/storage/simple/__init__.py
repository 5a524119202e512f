"""A whole :class:`~omniq.storage.Storage` made of a connection, a transaction, and what an error of the driver means.

A backend derives from :class:`SimpleStorage`, says how to connect, begins a transaction with the primitives of
:class:`Tx` (:class:`~omniq.storage.SqlTx` and :class:`~omniq.storage.PairsTx` have them), and tells which of the
driver's errors pass. Threads, retries and waiting are here, the verbs in :mod:`omniq.storage.transactional`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

from omniq.errors import CorruptRecord, StorageUnavailable
from omniq.storage.corrupt_records import finding
from omniq.storage.primitives import Tx
from omniq.storage.simple.backend import Backend
from omniq.storage.simple.io_thread import IoThread
from omniq.storage.simple.joining import Joined
from omniq.storage.simple.waiting import WaiterTable, look_for_work
from omniq.storage.transactional import TransactionalStorage
from omniq.storage.transactions import CallerTransaction, driver_connection
from omniq.storage.values import Finding, StorageConfig

__all__ = ["SimpleStorage", "Tx"]

R = TypeVar("R")


class SimpleStorage(Backend, TransactionalStorage):
    """A storage whose verbs are :mod:`omniq.storage.transitions`, in a transaction of the backend's.

    One thread with a connection of its own writes, one reads. A transaction that fails with an error that passes is
    tried again until ``timeout`` seconds are over, but never once its commit was sent: it is not known then what became
    of it, and the caller decides.

    :param config: where the store is. A backend reads its own options from it.
    """

    def __init__(self, config: StorageConfig) -> None:
        super().__init__(config)
        self._waiters = WaiterTable(self)
        self._io_threads: dict[bool, IoThread] = {}

    # Life

    def sibling(self) -> Self:
        return type(self)(self.config)

    async def open(self) -> None:
        self._io_threads = {write: IoThread(self, self._waiters.wake) for write in (True, False)}
        try:
            await self._run(lambda tx: None)
        except BaseException:
            await self.close()
            raise
        self._waiters.open()

    async def close(self) -> None:
        io_threads, self._io_threads = self._io_threads, {}
        closing = [asyncio.wrap_future(io_thread.close()) for io_thread in io_threads.values()]
        await self._waiters.close()
        if closing:
            await asyncio.wait(closing)  # a cancellation stops this call alone

    async def _run(self, verb: Callable[..., R], *values: Any, write: bool = True, wakes: bool = False) -> R:
        if not self._io_threads:
            raise StorageUnavailable(f"{self.config.redacted} is not open")
        return await self._io_threads[write].run(lambda tx: verb(tx, *values), write, wakes)

    def join(self, connection: object) -> CallerTransaction:
        if not self.connection_types:
            return super().join(connection)
        own = driver_connection(connection)
        if not isinstance(own, self.connection_types):
            known = " or ".join(f"{one.__module__}.{one.__qualname__}" for one in self.connection_types)
            raise TypeError(f"{connection!r} is no connection that {self.config.scheme}:// knows; give it a {known}")
        return Joined(self, own)

    # Waiting

    async def _wait(self, look: Callable[[Tx], tuple[R, float]], timeout: float) -> R:
        return await self._waiters.wait(lambda: self._read(look), timeout)

    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        began: datetime | None = None

        def look(tx: Tx) -> tuple[bool, float]:
            nonlocal began
            began = began or tx.now
            return look_for_work(tx, set(queues), began)

        await self._wait(look, timeout)

    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        def look(tx: Tx) -> tuple[set[str], float]:
            tasks = tx.load(ids)
            return {one for one in ids if one not in tasks or tasks[one].state.is_final}, math.inf

        return await self._wait(look, timeout) if ids else set()

    # Maintenance

    async def check(self, limit: int = 100) -> list[Finding]:
        def look(tx: Tx) -> list[CorruptRecord]:
            tx.verify()
            return tx.problems

        found = [finding(problem) for problem in await self._read(look)]
        return list(dict.fromkeys([*found, *await super().check(limit)]))[:limit]

    async def diagnose(self) -> list[Finding]:
        return await self._read(self.findings)
