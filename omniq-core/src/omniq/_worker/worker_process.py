"""A process whose business is one worker: it ends when the worker does, and neither before nor long after.

Code of tasks shares the process. What raises ``SystemExit`` in a coroutine of its own, or stops the loop, ends the
task's work and not the worker's. Threads, children and coroutines that tasks leave behind keep no process alive; nor
does a task that blocks the event loop, once the worker was told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from omniq._runtime.signals import STOP_AT_ONCE, STOP_SIGNALS, is_urgent, listening
from omniq._runtime.threads import DaemonExecutor
from omniq._worker.loop_monitor import LoopMonitor
from omniq.storage.escaping import Lines, get_logger

__all__ = ["exit_within", "run_as_process"]

_log = get_logger("omniq.worker")

R = TypeVar("R")

_STOPPED = "stopped before Future completed"
"""What asyncio and uvloop say of a loop on which ``stop()`` was called."""
EXIT_SECONDS = 5.0
"""For so long a process goes on whose worker has stopped, or should have, until it is ended."""
RESPONSE_SECONDS = 5.0
"""A loop that takes longer to run what was handed to it is blocked."""
SOON = 1.0
"""Seconds in which a loop that is not blocked has begun to do what a signal asks for."""
CLEANUP_SECONDS = 2.0
"""For coroutines that tasks left behind, once they were cancelled."""


def run_as_process(work: Callable[[], Coroutine[Any, Any, R]], *, grace: float, supervised: bool = False) -> R:
    """Run a worker's coroutine as :func:`asyncio.run` would, whatever tasks do to the process.

    :param work: makes the coroutine, which handles the signals.
    :param grace: seconds that tasks get to end after the first signal. A process whose loop is blocked is ended soon
        after it, and soon after a second signal.
    :param supervised: whether a supervisor passes signals on, see :meth:`omniq.Worker.run`.
    :raises SystemExit: with another code than 0, if that ended it.
    """
    loop = asyncio.new_event_loop()
    try:
        asyncio.set_event_loop(loop)
        loop.set_default_executor(DaemonExecutor())
        main = loop.create_task(work())
        with _ended_when_blocked(loop, grace, supervised=supervised):
            try:
                return _run(loop, main)
            except BaseException as error:
                _say_why(error)
                raise
            finally:
                _clean_up(loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _run(loop: asyncio.AbstractEventLoop, main: asyncio.Task[R]) -> R:
    while True:
        try:
            return loop.run_until_complete(main)
        except (SystemExit, KeyboardInterrupt, RuntimeError) as error:
            # What a task's own coroutine or callback raises passes through the loop; so does the end of loop.stop().
            # The loop is unharmed, and what awaits that coroutine gets the error as well.
            if main.done() or _is_ctrl_c(error) or (isinstance(error, RuntimeError) and _STOPPED not in str(error)):
                raise
            _log.error(
                "%s in a coroutine or callback of a task would have ended the worker, which goes on:\n%s",
                type(error).__name__,
                Lines("".join(traceback.format_exception(error)).rstrip()),
            )


def _is_ctrl_c(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _say_why(error: BaseException) -> None:
    if isinstance(error, Exception) or _is_ctrl_c(error):
        return  # the caller tells of it
    _log.error("the worker ends against its will: %s", type(error).__name__, exc_info=error)
    if isinstance(error, SystemExit) and not error.code:
        raise SystemExit(1) from error


def _clean_up(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    with contextlib.suppress(BaseException):  # of theirs, for which no caller waits any more
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=CLEANUP_SECONDS))
        loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), CLEANUP_SECONDS))


@contextlib.contextmanager
def _ended_when_blocked(loop: asyncio.AbstractEventLoop, grace: float, *, supervised: bool) -> Iterator[None]:
    """End the process if the loop does not respond although the worker was told to stop long enough ago."""
    told: SimpleQueue[signal.Signals | None] = SimpleQueue()  # the one queue that a signal handler may put into
    thread = threading.Thread(
        target=_watch, args=(LoopMonitor(loop), grace, supervised, told), name="omniq-exit-watch", daemon=True
    )
    thread.start()
    numbers = (*STOP_SIGNALS, *STOP_AT_ONCE) if supervised else STOP_SIGNALS
    try:
        # It stops no worker: one that comes before the worker handles signals is kept for it.
        with listening(numbers, told.put, watches=True):
            yield
    finally:
        told.put(None)


def _watch(monitor: LoopMonitor, grace: float, supervised: bool, told: SimpleQueue[signal.Signals | None]) -> None:
    deadline: float | None = None
    while True:
        try:
            number = told.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            if not monitor.responds(RESPONSE_SECONDS):
                _log.error(
                    "the event loop is blocked and the worker cannot stop; ending the process. What it held runs "
                    "again when the leases have run out. The loop is here:\n%s",
                    Lines(monitor.where()),
                )
                _end_process(1)
            deadline = time.monotonic() + SOON
            continue
        if number is None:
            return
        urgent = is_urgent(number, again=deadline is not None, supervised=supervised)
        if not urgent and not monitor.responds(SOON):
            _log.warning(
                "%s: the event loop is blocked, so the worker cannot stop now. A second signal ends the process",
                number.name,
            )
        soon = time.monotonic() + (SOON if urgent else grace + SOON)
        deadline = soon if deadline is None else min(deadline, soon)


def exit_within(seconds: float, code: int) -> None:
    """End this process if it has not ended by itself after so many seconds, whatever tasks left behind."""

    def wait() -> None:
        time.sleep(seconds)
        left = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
        children = multiprocessing.active_children()
        _log.warning("ending the process without what tasks left behind: %s", ", ".join([*left, *map(repr, children)]))
        for child in children:
            child.kill()
        _end_process(code)

    threading.Thread(target=wait, name="omniq-exit", daemon=True).start()


def _end_process(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)
