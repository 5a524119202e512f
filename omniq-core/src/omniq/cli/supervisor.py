"""``omniq worker --processes N``: keeps N worker processes running until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence

from omniq._runtime.signals import STOP_AT_ONCE, STOP_SIGNALS, call_on_signal
from omniq.cli.parent_watch import ParentWatch
from omniq.cli.reports import Reports
from omniq.storage.escaping import get_logger

__all__ = ["Supervisor", "how_it_ended"]

_log = get_logger("omniq.supervisor")

FIRST_PAUSE = 0.5
"""Seconds before a process that died is started again; twice as long after each further death, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 30.0
LONG_ENOUGH = 10.0
"""A process that lived for so many seconds was well: its death counts as a first one again."""
PATIENCE = 10.0
"""Seconds beyond what was granted until a process that does not end is killed."""

ORDERLY = frozenset({0, 130, *(-number for number in (*STOP_SIGNALS, *STOP_AT_ONCE))})
"""Exit codes of a process that was told to stop. By the signal itself: it had not begun to work."""


def how_it_ended(code: int) -> str:
    """Say in words what an exit code of a subprocess means."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class Supervisor:
    """Starts worker processes and starts them again when they die.

    :param command: returns what to run, from the file descriptor by which a child learns that its parent has ended and,
        if there are :attr:`reports`, the one to which it writes them.
    :param processes: how many.
    :param grace: seconds that a process may take to stop.
    :param drain: whether a process that ends in order is not started again: it has nothing left to do.
    """

    def __init__(
        self, command: Callable[..., Sequence[str]], *, processes: int, grace: float, drain: bool = False
    ) -> None:
        self.reports: Reports | None = None
        """Reads what the processes report; None: they report nothing."""
        self._drain = drain
        self._command = command
        self._count = processes
        self._grace = grace
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._signal = signal.SIGTERM

    @property
    def is_stopping(self) -> bool:
        """Whether a signal has told it to stop."""
        return self._stopping.is_set()

    async def run(self) -> int:
        """Work until SIGTERM or SIGINT has come and every process has ended. A second signal stops them at once.

        :return: the exit code: 0 if all ended in order.
        """
        parent_watch = ParentWatch()
        try:
            with call_on_signal(STOP_SIGNALS, self._on_signal):
                codes = await asyncio.gather(*(self._keep(slot + 1, parent_watch) for slot in range(self._count)))
        finally:
            parent_watch.close()
        _log.info("all worker processes have ended")
        return 0 if all(code in ORDERLY for code in codes) else 1

    async def _keep(self, slot: int, parent_watch: ParentWatch) -> int:
        pause = FIRST_PAUSE
        code = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once(slot, parent_watch)
            if self._stopping.is_set() or (self._drain and code == 0):
                break
            if time.monotonic() - began >= LONG_ENOUGH:
                pause = FIRST_PAUSE
            _log.warning("worker process %d %s; another one starts in %.1f s", slot, how_it_ended(code), pause)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            code = 0
        return code

    async def _run_once(self, slot: int, parent_watch: ParentWatch) -> int:
        try:
            process = await self._start(parent_watch)
        except OSError as error:  # no memory, too many processes: that may pass
            _log.error("worker process %d could not be started: %s", slot, error)
            return 1
        self._running[slot] = process
        _log.info("worker process %d started (pid %d)", slot, process.pid)
        if self._stopping.is_set():
            self._send(process, self._signal)
        code = await process.wait()
        del self._running[slot]
        if self._stopping.is_set():
            level = logging.INFO if code in ORDERLY else logging.ERROR
            _log.log(level, "worker process %d (pid %d) %s", slot, process.pid, how_it_ended(code))
        return code

    async def _start(self, parent_watch: ParentWatch) -> asyncio.subprocess.Process:
        ends = [parent_watch.child_end]
        if self.reports is not None:
            ends.append(self.reports.open())
        try:
            # In a process group of its own: Ctrl-C at the terminal comes from us alone, or it would count twice.
            return await asyncio.create_subprocess_exec(
                *self._command(*ends),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=ends,
                process_group=0,
            )
        finally:
            for end in ends[1:]:
                os.close(end)

    def _on_signal(self, number: signal.Signals) -> None:
        again = self._stopping.is_set()
        self._stopping.set()
        # A signal to the whole group reaches the workers twice, from its sender and from here. So they take the second
        # one for the first, and need another word for "at once".
        self._signal = next(iter(STOP_AT_ONCE)) if again else number
        what = "stopping them at once" if again else f"they finish what they run, for {self._grace:g} s at most"
        _log.info("%s: passed on to %d worker processes; %s", number.name, len(self._running), what)
        for process in self._running.values():
            self._send(process, self._signal)
        patience = PATIENCE if again else self._grace + PATIENCE
        asyncio.get_running_loop().call_later(patience, self._kill_all)

    def _kill_all(self) -> None:
        for slot, process in self._running.items():
            _log.error("worker process %d (pid %d) does not stop; killing it", slot, process.pid)
            self._send(process, signal.SIGKILL)

    @staticmethod
    def _send(process: asyncio.subprocess.Process, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
