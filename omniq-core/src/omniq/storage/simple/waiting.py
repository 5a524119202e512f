"""Who waits for changes of a store: woken by this process, and by what the backend hears of others."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from omniq.storage import limit_transitions
from omniq.storage.escaping import get_logger
from omniq.storage.outages import Outage
from omniq.storage.primitives import Tx
from omniq.storage.simple.backend import Backend

__all__ = ["WaiterTable", "look_for_work"]

_log = get_logger("omniq.storage")

R = TypeVar("R")

LOOK_SECONDS = 1.0
"""The longest time between two looks of a caller that waits: the contract allows one request a second."""
LISTEN_SECONDS = 0.5
"""For how long one call of ``listen`` may block, so that closing a storage does not take longer."""

_Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Event]
_waiting: dict[tuple[str, str, str], set[_Waiter]] = {}
_waiting_lock = threading.Lock()


class WaiterTable:
    """Those in this process who wait on one store, and the thread that listens for what other processes announce."""

    def __init__(self, backend: Backend) -> None:
        config = backend.config
        self._backend = backend
        self._key = type(backend).__name__, config.location, config.namespace
        self._listener: threading.Thread | None = None
        self._closing = threading.Event()

    def open(self) -> None:
        if type(self._backend).listen is Backend.listen:
            return
        self._closing.clear()
        name = f"omniq-{self._backend.config.scheme}-listen"
        self._listener = threading.Thread(target=self._listen, name=name, daemon=True)
        self._listener.start()

    async def close(self) -> None:
        self._closing.set()
        listener, self._listener = self._listener, None
        if listener is not None:
            await asyncio.to_thread(listener.join)

    def wake(self) -> None:
        """Let all that wait on the store in this process look again. Callable from any thread."""
        with _waiting_lock:
            waiting = list(_waiting.get(self._key, ()))
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile
                loop.call_soon_threadsafe(event.set)

    async def wait(self, look: Callable[[], Awaitable[tuple[R, float]]], timeout: float) -> R:
        """Look now, whenever something was changed, and now and then.

        :param look: returns what was found, and after how many seconds to look again at the latest.
        """
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        end, waiter = loop.time() + timeout, (loop, event)
        with _waiting_lock:
            _waiting.setdefault(self._key, set()).add(waiter)
        try:
            while True:
                event.clear()
                found, pause = await look()
                left = end - loop.time()
                if found or left <= 0:
                    return found
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.005, min(LOOK_SECONDS, pause, left))):
                        await event.wait()
        finally:
            with _waiting_lock:
                _waiting[self._key].discard(waiter)

    def _listen(self) -> None:
        where = self._backend.config.redacted
        outage = Outage(_log, f"{where}: wake-ups are lost", f"{where}: wake-ups arrive again")
        connection: Any = None
        while not self._closing.is_set():
            try:
                if connection is None:
                    connection = self._backend.connect()
                    self.wake()  # what was announced before was not heard
                if self._backend.listen(connection, LISTEN_SECONDS):
                    self.wake()
                outage.succeeded()
            except Exception as error:
                outage.failed(error)
                self._backend.drop(connection)
                connection = None
                self._closing.wait(1.0)
        self._backend.drop(connection)


def look_for_work(tx: Tx, queues: set[str], began: datetime) -> tuple[bool, float]:
    """Return whether queues have work, or a schedule has come since a wait began, and when to look again.

    :return: what was found, and after how many seconds to look again at the latest.
    """
    served = sorted(queues - tx.paused())
    limited = list(tx.lanes(served))
    served = [queue for queue in served if queue not in limited]
    # A schedule that was due already when the wait began is no reason to return: perhaps no caller can fire it.
    schedule = tx.next_schedule(began)
    if tx.has_work(served) or tx.due_flows(False, 1) or (schedule is not None and schedule <= tx.now):
        return True, 0.0
    can_claim, next_start = limit_transitions.outlook(
        tx, limited, lambda queue: (tx.has_work([queue]), tx.next_task([queue]))
    )
    if can_claim:
        return True, 0.0
    moments = [one for one in (schedule, tx.next_task(served), next_start) if one is not None]
    return False, min([(moment - tx.now).total_seconds() for moment in moments], default=math.inf)
