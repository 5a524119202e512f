"""Keeps a worker's leases alive, from a thread with a loop and a connection of its own.

A task that blocks the worker's event loop therefore keeps its lease, and a slow call of the worker's delays no
heartbeat.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence

from omniq._runtime.connections import Connection
from omniq._worker.loop_monitor import LoopMonitor
from omniq.storage import Lease, LeaseState, Storage
from omniq.storage.escaping import get_logger
from omniq.storage.outages import Outage

__all__ = ["Heartbeat"]

_log = get_logger("omniq.worker")

TELL_EVERY = 10
"""So many heartbeats from one to the next that says what the worker is: it is far longer than the others."""
FAREWELL = 2.0
"""Seconds that a store that does not answer gets for the last heartbeat, and to disconnect."""


class Heartbeat:
    """Renews what a worker holds, every third of a lease.

    :param storage: an unopened storage for this thread alone.
    :param worker: the worker's id.
    :param lease: seconds that a lease holds.
    :param about: returns what the worker tells about itself; called on the heartbeat's thread.
    :param held: returns the leases that the worker holds now; called on the heartbeat's thread.
    :param on_news: told, on the heartbeat's thread, of leases that were lost or whose task is to be cancelled.
    :param on_change: told, on the heartbeat's thread, whether the latest heartbeat got through: of the first one, and
        whenever that is not as it was before.
    :param on_silence: called, on the heartbeat's thread, when no heartbeat has got through for so long that the
        leases are about to run out.
    :param on_beat: told, on the heartbeat's thread, of each heartbeat: for how many seconds it was under way, and
        why it did not get through; None: not told.
    :param is_deaf: whether the worker has not been able to claim for long. It signs off for as long, so that a probe
        does not take it for one that works.
    :param monitor: looks, at each heartbeat, whether the worker's loop is blocked.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        worker: str,
        lease: float,
        about: Callable[[], str],
        held: Callable[[], list[Lease]],
        on_news: Callable[[Sequence[tuple[Lease, LeaseState]]], None],
        on_change: Callable[[bool], None],
        on_silence: Callable[[], None],
        on_beat: Callable[..., None] | None,
        is_deaf: Callable[[], bool],
        monitor: LoopMonitor,
    ) -> None:
        self._storage = storage
        self._worker = worker
        self._lease = lease
        self._about = about
        self._beats = 0
        """How many have got through since the store may have forgotten what the worker is."""
        self._held = held
        self._on_news = on_news
        self._on_change = on_change
        self._on_silence = on_silence
        self._on_beat = on_beat
        self.through_at: float | None = None
        """When the latest one got through, by the monotonic clock; None: none has."""
        self._is_deaf = is_deaf
        self._monitor = monitor
        self._outage = Outage(
            _log,
            f"worker {worker} cannot send heartbeats, and claims nothing without them",
            f"worker {worker} sends heartbeats again",
        )
        self._thread = threading.Thread(target=self._run, name="omniq-heartbeat", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False
        self._wake: asyncio.Event | None = None
        self._patience: asyncio.Timeout | None = None
        """Of the heartbeat that is under way."""

    def start(self) -> None:
        """Begin. The first heartbeat goes out at once."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the worker signed off and the thread ended."""
        self._stopping = True
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(self._hurry)

    def _hurry(self) -> None:
        if self._wake is not None:
            self._wake.set()
        if self._patience is not None:
            now = asyncio.get_running_loop().time()
            self._patience.reschedule(min(self._patience.when() or now, now + FAREWELL))

    def join(self) -> None:
        """Block until the thread has ended, for a few seconds at most: signing off is a courtesy."""
        self._thread.join(timeout=2 * FAREWELL)

    def _run(self) -> None:
        try:
            asyncio.run(self._beat_until_stopped())
        except Exception:
            _log.exception("the heartbeat of worker %s broke; its leases will run out", self._worker)
            self._on_silence()

    async def _beat_until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        connection = Connection(self._loop, self._storage)
        interval = self._lease / 3
        last = time.monotonic()
        silent = False
        told: bool | None = None
        try:
            while not self._stopping:
                began = time.monotonic()
                self._monitor.look()
                give_up = last + self._lease - interval / 2
                # No beat outlasts the moment at which the leases must be given up; but if that has passed, as after the
                # process was suspended, only the store can say what is lost.
                through = await self._beat(connection, min(interval, give_up - began) if began < give_up else interval)
                if through is not told:
                    told = through
                    self._on_change(through)
                if through:
                    last, silent = began, False
                elif not silent and time.monotonic() >= give_up:
                    silent = True
                    self._on_silence()
                # After a failure sooner, and not in step with every other worker that lost the same server.
                pause = interval if last == began else interval * random.uniform(0.1, 0.3)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), max(0.0, began + pause - time.monotonic()))
            if told:
                with contextlib.suppress(Exception):  # the lease would run out as well
                    async with asyncio.timeout(FAREWELL):
                        await self._storage.heartbeat(self._worker, [], 0)
        finally:
            await connection.close()

    async def _beat(self, connection: Connection, patience: float) -> bool:
        leases = self._held()
        began = time.monotonic()
        try:
            async with asyncio.timeout(patience) as self._patience:
                # What outlasts the patience of one beat is there for the next.
                await connection.ready()
                about = None if self._beats % TELL_EVERY else self._about()
                states = await self._storage.heartbeat(self._worker, leases, self._lease, about)
                self._beats += 1
                if self._is_deaf():
                    await self._storage.heartbeat(self._worker, [], 0)
                    self._beats = 0
        except Exception as error:  # whatever the store raises, the next beat may get through
            self._beats = 0
            self._outage.failed(
                error if str(error) else f"no answer within a third of a lease ({type(error).__name__})"
            )
            self._tell(began, error)
            return False
        finally:
            self._patience = None
        self.through_at = time.monotonic()
        self._outage.succeeded()
        self._tell(began, None)
        news = [(lease, state) for lease, state in zip(leases, states, strict=True) if state is not LeaseState.HELD]
        if news:
            self._on_news(news)
        return True

    def _tell(self, began: float, error: Exception | None) -> None:
        if self._on_beat is not None:
            self._on_beat(seconds=time.monotonic() - began, error=error)
