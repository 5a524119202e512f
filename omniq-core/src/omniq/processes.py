"""Where CPU-bound tasks run: one child process a slot, each driven by a thread of the worker's.

A child takes one task at a time, already claimed, and answers with its outcome. It can be killed: that is how a timeout
and a cancellation work here, and a task that takes its process down fails alone. Children are replaced after a number
of tasks or above a size in memory, so that what leaks in a task does not add up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from operator import attrgetter
from typing import Any

from attrs import frozen

from omniq.codec import Codec
from omniq.context import running
from omniq.errors import WorkerLost
from omniq.execute import Attempt, describe_error, failed, interrupted, run_sync, timed_out
from omniq.executors import Done, PoolLane
from omniq.functions import TaskFunction
from omniq.log_forwarding import LogRecord, Outlet, forward_records, levels_here
from omniq.plugins import Plugins, default_plugins
from omniq.signals import STOP_SIGNALS, listening
from omniq.task import Failed, Outcome, Progress, Task

__all__ = ["ProcessLane", "ProcessLimits"]


LAST_WORDS = 5.0
"""Seconds that a process gets to end by itself once it is idle and told to."""


@frozen(kw_only=True)
class ProcessLimits:
    """When a child process is replaced."""

    tasks: int | None = 1000
    """After so many tasks; None: never for that reason."""
    memory: int | None = None
    """Once it takes more bytes of memory than this after a task; None: never for that reason."""


@frozen
class _Answer:
    """A child's last word on a task."""

    outcome: Outcome
    memory: int


class _Child:
    """A child process and the pipe to it. It leads a process group, of which what its tasks start is a part."""

    def __init__(self, codec: Codec) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        _ours.add(self)
        # As a daemon of this process, so that its end does not wait for it; its tasks may have children all the same.
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, lifeline, codec.for_child(), levels_here()), name="omniq-process", daemon=True
        )
        _start(self.process)
        theirs.close()
        lifeline.close()
        self.tasks = 0

    def kill(self) -> None:
        """End the process at once, and what its tasks have started."""
        with contextlib.suppress(ValueError):  # it has ended and was reaped
            pid = self.process.pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has not come to lead a group yet
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def reap(self, patience: float | None = None) -> int | None:
        """End the process, as soon as it waits for work, and free what it held.

        :param patience: seconds that it gets for that; None: it is ending already.
        :return: its exit code; negative: the signal that ended it.
        """
        self.pipe.close()
        if patience is not None:
            self.process.join(patience)  # for longer if a task left a child behind, of which it awaits the end
        if patience is None or self.process.exitcode is None:
            self.kill()
        self.process.join()
        code = self.process.exitcode
        self._lifeline.close()
        self.process.close()
        return code

    def disown(self) -> None:
        """Close what a forked process has inherited, or the child would not notice the end of its own parent."""
        self.pipe.close()
        self._lifeline.close()


_ours: weakref.WeakSet[_Child] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for child in list(_ours):
        with contextlib.suppress(OSError, AttributeError):  # another thread was just making it
            child.disown()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _start(process: BaseProcess) -> None:
    # Until it handles them, a child receives no signals that are meant for the worker and reach everyone.
    resource_tracker.ensure_running()  # or it would be started now, and unblock them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class ProcessLane(PoolLane):
    """Runs plain functions in child processes, one task at a time in each.

    :param codec: the queue's codec; each child makes its own like it.
    :param limits: when a child is replaced.
    """

    def __init__(
        self, slots: int, on_start: Callable[[Attempt], None], on_done: Done, *, codec: Codec, limits: ProcessLimits
    ) -> None:
        super().__init__(slots, on_start, on_done)
        self._codec = codec
        self._limits = limits
        self._mine = threading.local()
        self._children: set[_Child] = set()
        self._drivers: set[threading.Thread] = set()

    def _execute(self, attempt: Attempt) -> Outcome:
        while attempt.interruption is None:
            child = self._child()
            attempt.on_interrupt = child.kill
            try:
                return self._ask(child, attempt)
            except (EOFError, OSError):
                code = self._retire(child)
                # One that was killed while it had nothing to do has not run this task. The next one is new, and if
                # that does not even come to run it, the task is why.
                if attempt.started_at or child.tasks == 1:
                    return self._lost(attempt, code)
            finally:
                attempt.on_interrupt = None
        return interrupted(attempt)

    def _child(self) -> _Child:
        child: _Child | None = getattr(self._mine, "child", None)
        if child is None:
            child = self._mine.child = _Child(self._codec)
            self._children.add(child)
            self._drivers.add(threading.current_thread())
        return child

    def _ask(self, child: _Child, attempt: Attempt) -> Outcome:
        child.tasks += 1
        running.set(attempt.context)  # for what handles its log records; this thread's context is of this attempt alone
        child.pipe.send((attempt.task, _address(attempt.function)))
        timeout = attempt.task.timeout
        while True:
            # The clock of the timeout starts with the task: starting a process, and importing its module, is not its
            # work.
            left = timeout - attempt.seconds if timeout is not None and attempt.started_at else None
            # Time that is over is over, also for a child that goes on speaking.
            answer = child.pipe.recv() if left is None or child.pipe.poll(max(left, 0)) else None
            if left is not None and (answer is None or (left <= 0 and not isinstance(answer, _Answer))):
                child.kill()
                self._retire(child)
                return timed_out(attempt)
            if isinstance(answer, _Answer):
                attempt.note_end()
                if self._is_spent(child, answer.memory):
                    self._retire(child, LAST_WORDS)
                return answer.outcome
            if isinstance(answer, Progress):
                attempt.context.note(answer)
            elif isinstance(answer, LogRecord):
                answer.deliver()
            else:
                attempt.started_at = time.perf_counter()

    def _is_spent(self, child: _Child, memory: int) -> bool:
        limits = self._limits
        return (limits.tasks is not None and child.tasks >= limits.tasks) or (
            limits.memory is not None and memory > limits.memory
        )

    def _lost(self, attempt: Attempt, code: int | None) -> Outcome:
        if attempt.interruption is not None:
            return interrupted(attempt)
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return failed(attempt, WorkerLost(f"the process that ran {attempt.task.name} {how}"))

    def _retire(self, child: _Child, patience: float | None = None) -> int | None:
        self._mine.child = None
        code = child.reap(patience)
        self._children.discard(child)
        return code

    def _leave(self) -> None:
        child: _Child | None = getattr(self._mine, "child", None)
        if child is not None:
            self._retire(child, LAST_WORDS)
        self._drivers.discard(threading.current_thread())

    def close(self) -> None:
        super().close()
        # The idle ones end by themselves as their threads leave; what still runs was given up.
        for child in self._children.copy():
            child.kill()

    def join(self) -> None:
        for thread in self._drivers.copy():
            thread.join(timeout=LAST_WORDS + 1)


def _address(function: TaskFunction[Any, Any]) -> tuple[str, str]:
    return function.definition.function.__module__, function.definition.function.__qualname__


# In the child


def _serve(pipe: Connection, lifeline: Connection, settings: dict[str, Any], levels: dict[str, int]) -> None:
    """Run one task after the other until the pipe closes."""
    # Of its own, so that it can be killed together with what its tasks start.
    os.setpgid(0, 0)
    multiprocessing.current_process().daemon = False  # or its tasks could not use multiprocessing
    # What is to end, and when, is the worker's to say, also if a signal reaches all of its processes. Not SIG_IGN: what
    # the tasks start would inherit that.
    with listening(STOP_SIGNALS, lambda _: None):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        threading.Thread(target=_die_with_parent, args=(lifeline,), name="omniq-lifeline", daemon=True).start()
        codecs = _Codecs(settings)
        outlet = Outlet(pipe)
        forward_records(outlet, levels)
        own = os.getpid()
        while True:
            try:
                task, address = pipe.recv()
            except EOFError:
                return
            outcome = _run(outlet, codecs, task, address)
            if os.getpid() != own:  # the task has forked, and its child comes back here: it has nothing to say
                os._exit(1)
            try:
                outlet.send(_Answer(outcome, _memory()))
            except OSError:
                return


class _Codecs:
    """Makes the worker's codec in a child: with the plugins of the task's queue here, and the worker's settings."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._made: list[tuple[Plugins, Codec]] = []

    def codec(self, function: TaskFunction[Any, Any]) -> Codec:
        plugins: Plugins = getattr(function.owner, "plugins", default_plugins())
        for known, codec in self._made:
            if known is plugins:
                return codec
        codec = Codec.in_child(plugins, **self._settings)
        self._made.append((plugins, codec))
        return codec


def _run(outlet: Outlet, codecs: _Codecs, task: Task, address: tuple[str, str]) -> Outcome:
    try:
        function = _function(*address)
        codec = codecs.codec(function)
    except BaseException as error:  # whatever a module raises on import; a plugin that only the worker has
        return Failed(id=task.id, delivery=task.delivery, error=describe_error(error))
    outlet.send(None)  # it starts now
    attempt = Attempt(task, function, codec, lambda _, progress: outlet.send(progress))
    return run_sync(attempt)


def _function(module: str, qualname: str) -> TaskFunction[Any, Any]:
    # An address that the worker's own registry gave; never one out of the store.
    function = attrgetter(qualname)(import_module(module))
    if not isinstance(function, TaskFunction):
        raise TypeError(
            f"{module}.{qualname} is {function!r} in a new process, not the task function; "
            "a task for processes must keep the name that it was defined with"
        )
    return function


def _die_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()  # nothing is ever sent: it returns when the parent is gone
    os.killpg(0, signal.SIGKILL)  # itself, and what its tasks have started


def _memory() -> int:
    """Give the bytes of memory that this process takes now, or its peak where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
