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
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from operator import attrgetter
from typing import Any

from attrs import frozen

from omniq.codec import Codec
from omniq.errors import WorkerLost
from omniq.execute import Attempt, describe_error, failed, interrupted, run_sync, timed_out
from omniq.executors import Done, PoolLane
from omniq.functions import TaskFunction
from omniq.plugins import default_plugins
from omniq.task import Failed, Outcome, Progress, Task

__all__ = ["ProcessLane", "ProcessLimits"]


LAST_WORDS = 10.0
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
    """A child process and the pipe to it."""

    def __init__(self, codec: Codec) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, lifeline, codec.for_child()), name="omniq-process", daemon=True
        )
        self.process.start()
        theirs.close()
        lifeline.close()
        self.tasks = 0

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ValueError, ProcessLookupError):  # it has ended and was reaped
            self.process.kill()

    def reap(self) -> int | None:
        """End the process, as soon as it waits for work, and free what it held.

        :return: its exit code; negative: the signal that ended it.
        """
        self.pipe.close()
        self.process.join()
        code = self.process.exitcode
        self._lifeline.close()
        self.process.close()
        return code


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
        if attempt.interruption is not None:
            return interrupted(attempt)
        child = self._child()
        attempt.on_interrupt = child.kill
        try:
            return self._ask(child, attempt)
        except (EOFError, OSError):
            return self._lost(child, attempt)
        finally:
            attempt.on_interrupt = None

    def _child(self) -> _Child:
        child: _Child | None = getattr(self._mine, "child", None)
        if child is None:
            child = self._mine.child = _Child(self._codec)
            self._children.add(child)
            self._drivers.add(threading.current_thread())
        return child

    def _ask(self, child: _Child, attempt: Attempt) -> Outcome:
        child.tasks += 1
        child.pipe.send((attempt.task, _address(attempt.function)))
        timeout = attempt.task.timeout
        while True:
            # The clock of the timeout starts with the task: starting a process, and importing its module, is not its
            # work.
            left = timeout - attempt.seconds if timeout is not None and attempt.started_at else None
            if left is not None and not child.pipe.poll(max(left, 0)):
                child.kill()
                self._retire(child)
                return timed_out(attempt)
            answer = child.pipe.recv()
            if isinstance(answer, Progress):
                attempt.context.note(answer)
            elif isinstance(answer, _Answer):
                if self._is_spent(child, answer.memory):
                    self._retire(child)
                return answer.outcome
            else:
                attempt.started_at = time.perf_counter()

    def _is_spent(self, child: _Child, memory: int) -> bool:
        limits = self._limits
        return (limits.tasks is not None and child.tasks >= limits.tasks) or (
            limits.memory is not None and memory > limits.memory
        )

    def _lost(self, child: _Child, attempt: Attempt) -> Outcome:
        code = self._retire(child)
        if attempt.interruption is not None:
            return interrupted(attempt)
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return failed(attempt, WorkerLost(f"the process that ran {attempt.task.name} {how}"))

    def _retire(self, child: _Child) -> int | None:
        self._mine.child = None
        code = child.reap()
        self._children.discard(child)
        return code

    def _leave(self) -> None:
        child: _Child | None = getattr(self._mine, "child", None)
        if child is not None:
            self._retire(child)
        self._drivers.discard(threading.current_thread())

    def close(self) -> None:
        super().close()
        # The idle ones end by themselves as their threads leave; what still runs was given up.
        for child in self._children.copy():
            child.kill()

    def join(self) -> None:
        for thread in self._drivers.copy():
            thread.join(timeout=LAST_WORDS)


def _address(function: TaskFunction[Any, Any]) -> tuple[str, str]:
    return function.definition.function.__module__, function.definition.function.__qualname__


# In the child


def _serve(pipe: Connection, lifeline: Connection, settings: dict[str, Any]) -> None:
    """Run one task after the other until the pipe closes."""
    # Ctrl-C goes to the whole group of processes; what is to end, and when, is the worker's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(lifeline,), name="omniq-lifeline", daemon=True).start()
    codec = Codec.in_child(default_plugins(), **settings)
    while True:
        try:
            task, address = pipe.recv()
        except EOFError:
            return
        outcome = _run(pipe, codec, task, address)
        try:
            pipe.send(_Answer(outcome, _memory()))
        except OSError:
            return


def _run(pipe: Connection, codec: Codec, task: Task, address: tuple[str, str]) -> Outcome:
    try:
        function = _function(*address)
    except BaseException as error:  # whatever a module raises on import
        return Failed(id=task.id, delivery=task.delivery, error=describe_error(error))
    pipe.send(None)  # it starts now
    attempt = Attempt(task, function, codec, lambda _, progress: pipe.send(progress))
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
    os._exit(1)


def _memory() -> int:
    """Give the bytes of memory that this process takes now, or its peak where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
