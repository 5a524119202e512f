"""The thread on which a storage's transactions run, each tried again until it is done, cannot be, or takes too long."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from omniq.errors import StorageUnavailable
from omniq.storage.corrupt_records import log_once
from omniq.storage.escaping import get_logger
from omniq.storage.simple.backend import Backend

__all__ = ["IoThread"]

_log = get_logger("omniq.storage")

R = TypeVar("R")


class IoThread:
    """A thread with a connection of its own, which does one transaction after the other.

    :param wake: called after a change that others may wait for.
    """

    def __init__(self, backend: Backend, wake: Callable[[], None]) -> None:
        self._backend = backend
        self._wake = wake
        self._connection: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"omniq-{backend.config.scheme}")

    async def run(self, verb: Callable[[Any], R], write: bool, wakes: bool) -> R:
        # From here, as a call that is behind others in a store that is away would else wait for the time of each.
        deadline = time.monotonic() + self._backend.timeout
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._patiently, deadline, verb, write, wakes)

    def _patiently(self, deadline: float, verb: Callable[[Any], R], write: bool, wakes: bool) -> R:
        if time.monotonic() > deadline:
            backend = self._backend
            raise StorageUnavailable(f"{backend.config.redacted}: not begun within {backend.timeout:g} s")
        pause = 0.02
        while True:
            committing = [False]
            try:
                return self._once(verb, write, wakes, committing)
            except BaseException as error:
                self.drop()
                fault = self._backend.fault(error)
                if fault is None:
                    raise
                passes = isinstance(fault, StorageUnavailable) and not committing[0]
                if not passes or time.monotonic() + pause > deadline:
                    raise fault from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 1.0)

    def _once(self, verb: Callable[[Any], R], write: bool, wakes: bool, committing: list[bool]) -> R:
        backend = self._backend
        if self._connection is None:
            self._connection = backend.connect()
        with backend.transaction(self._connection, write) as tx:
            result = verb(tx)
            problems, changed = tx.problems, wakes and tx.changed
            if changed:
                backend.announce(tx)
            committing[0] = write
        if changed:
            self._wake()
        for problem in problems:
            log_once(_log, problem, backend.config.redacted)
        return result

    def drop(self) -> None:
        connection, self._connection = self._connection, None
        self._backend.drop(connection)

    def close(self) -> Future[None]:
        """Close the connection and end the thread, once it has done what was asked of it; return when that is done."""
        closed: Future[None] = Future()
        try:
            closed = self._thread.submit(self.drop)
        except RuntimeError:  # the interpreter ends
            closed.set_result(None)
        self._thread.shutdown(wait=False)
        return closed
