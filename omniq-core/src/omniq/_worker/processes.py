"""Where CPU-bound tasks run: one child process a slot, each driven by a thread of the worker's.

A child runs one task at a time, already claimed, and answers with its outcome. It can be killed: that is how a timeout
and a cancellation work here, and a task that takes its process down fails alone. Tasks of a function that is known to
be quick are handed over several at a time; what has not begun is taken back before a child is killed, and when one of
them takes unexpectedly long. Children are replaced after a number of tasks or above a size in memory, so that what
leaks in a task does not add up.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

from attrs import frozen

from omniq._runtime.signals import STOP_SIGNALS
from omniq._tasks.context import running
from omniq._tasks.payloads import Codec
from omniq._worker.attempt import Attempt, about, failed, interrupted, timed_out
from omniq._worker.executors import Done, PoolExecutor
from omniq._worker.log_forwarding import LogRecord, levels_here
from omniq._worker.process_child import Answer, Ended, address_of, serve
from omniq.errors import WorkerLost
from omniq.storage.escaping import printable
from omniq.storage.posix import at_fork
from omniq.task import Outcome, Progress

__all__ = ["ProcessExecutor", "ProcessLimits"]


LAST_WORDS = 5.0
"""Seconds that a process gets to end by itself once it is idle and told to."""
QUICK = 0.005
"""A function that takes no more seconds than this, of late, is quick."""
BATCH_SECONDS = 0.02
"""For how long a child is to be busy with what it is handed at once."""
BATCH_TASKS = 32
"""How many tasks that may be at most."""
GATHER = 0.004
"""Seconds between two looks at what a child has answered while it runs several tasks."""
TOO_LONG = 0.05
"""Seconds after which tasks that wait in a child for another one to end are taken back."""


@frozen(kw_only=True)
class ProcessLimits:
    """When a child process is replaced."""

    tasks: int | None = 10_000
    """After so many tasks; None: never for that reason."""
    memory: int | None = None
    """Once it takes more bytes of memory than this after a task; None: never for that reason."""


class _Child:
    """A child process and the pipe to it. It leads a process group, of which what its tasks start is a part."""

    def __init__(self, codec: Codec) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        parent_watch, self._parent_watch = context.Pipe(duplex=False)
        self._tickets, self._give_ticket = context.Pipe(duplex=False)
        os.set_blocking(self._tickets.fileno(), False)
        self._waking = threading.Lock()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._events = select.poll()
        self._events.register(self.pipe, select.POLLIN)
        self._events.register(self._woken, select.POLLIN)
        _ours.add(self)
        # As a daemon of this process, so that its end does not wait for it; its tasks may have children all the same.
        self.process: BaseProcess = context.Process(
            target=serve,
            args=(theirs, self._tickets, parent_watch, codec.for_child(), levels_here()),
            name="omniq-process",
            daemon=True,
        )
        _start(self.process)
        assert self.process.pid is not None
        self._pid = self.process.pid
        theirs.close()
        parent_watch.close()
        self.tasks = 0
        """How many it has run."""
        self.is_busy = False
        """Whether it owes an answer."""

    def hand_over(self, batch: Sequence[Attempt]) -> None:
        """Have tasks of one function run, one after the other."""
        address = address_of(batch[0].function)
        self.is_busy = True
        os.write(self._give_ticket.fileno(), b"." * len(batch))
        self.pipe.send((address, [attempt.task for attempt in batch]))

    def take_back(self) -> int:
        """Take back what has not been started.

        :return: how many, counted from the last one that was handed over.
        """
        try:
            return len(os.read(self._tickets.fileno(), BATCH_TASKS))
        except BlockingIOError:
            return 0

    def wake(self, *_: object) -> None:
        """End a :meth:`wait`. Callable from any thread; quick."""
        with self._waking, contextlib.suppress(BlockingIOError):  # woken often enough
            if self._wake >= 0:
                os.write(self._wake, b".")

    def wait(self, seconds: float | None) -> bool:
        """Wait for an answer, or for :meth:`wake`, and say whether an answer is there (or the end of the process)."""
        ready = [descriptor for descriptor, _ in self._events.poll(None if seconds is None else seconds * 1000)]
        if self._woken in ready:
            os.read(self._woken, 4096)
        return self.pipe.fileno() in ready

    def kill(self) -> None:
        """End the process at once, and what its tasks have started."""
        with contextlib.suppress(ValueError):  # it has ended and was reaped
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has not come to lead a group yet
                os.killpg(self._pid, signal.SIGKILL)
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
        for end in (self._parent_watch, self._tickets, self._give_ticket):
            end.close()
        with self._waking:
            os.close(self._woken)
            os.close(self._wake)
            self._wake = -1
        self.process.close()
        return code

    def kill_left_behind(self) -> None:
        """End what its tasks have started, once it has ended itself."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # there is nothing
            os.killpg(self._pid, signal.SIGKILL)

    def disown(self) -> None:
        """Close what a forked process has inherited, or the child would not notice the end of its own parent."""
        self.pipe.close()
        self._parent_watch.close()


_ours: weakref.WeakSet[_Child] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for child in list(_ours):
        with contextlib.suppress(OSError, AttributeError):  # another thread was just making it
            child.disown()


at_fork(after_in_child=_after_fork_in_child)


def _about(attempt: Attempt) -> dict[str, str]:
    # Escaped, as the loggers of OmniQ do: the record may be of any other logger.
    return {name: printable(value) for name, value in about(attempt.task).items()}


def _start(process: BaseProcess) -> None:
    # Until it handles them, a child receives no signals that are meant for the worker and reach all of its processes.
    resource_tracker.ensure_running()  # or it would be started now, and unblock them
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class ProcessExecutor(PoolExecutor):
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
        self._seconds: dict[str, float] = {}
        """For how long tasks run, of late, by the name of their function."""
        self._batches: dict[str, int] = {}
        """How many of them a child is handed at once, at most."""
        self._batch_size = 1
        """The same of the function that ran last."""

    @property
    def capacity(self) -> int:
        # While the children run one batch, the next one is there.
        return self.slots if self._batch_size == 1 else 2 * self._batch_size * self.slots

    def _run(self, attempt: Attempt) -> bool:
        if attempt.interruption is not None:
            return self._deliver(attempt, interrupted(attempt))
        try:
            child = self._child()
            batch = self._batch(attempt, child)
        except BaseException as error:  # no memory, too many processes
            return self._deliver(attempt, failed(attempt, error))
        try:
            self._run_batch(child, batch)
        except BaseException as error:  # a function that cannot be sent; a hook that raises
            for left in batch:
                self._deliver(left, failed(left, error))
            if batch:
                child.kill()
                self._retire(child)
        return True

    def _batch(self, first: Attempt, child: _Child) -> deque[Attempt]:
        """Add to an attempt those that are to run after it in the same child."""
        batch = deque([first])
        definition = first.function.definition
        # Each child is to get its share of what waits.
        room = min(self._batches.get(first.task.name, 1), -(-(len(self._waiting) + 1) // self.slots))
        if self._limits.tasks is not None:
            room = min(room, self._limits.tasks - child.tasks)
        while len(batch) < room:
            try:
                attempt = self._waiting.popleft()
            except IndexError:
                break
            if attempt.function.definition is not definition or attempt.interruption is not None:
                self._waiting.appendleft(attempt)
                break
            batch.append(attempt)
        return batch

    def _run_batch(self, child: _Child, batch: deque[Attempt]) -> None:
        """Run a batch, which is empty afterwards."""
        is_new = child.tasks == 0
        for attempt in batch:
            attempt.on_interrupt = child.wake
        try:
            child.hand_over(batch)
            self._converse(child, batch)
        except (EOFError, OSError):
            left = child.take_back()
            # One that was killed while it had nothing to do has not run a task. The next one is new, and if that does
            # not even come to start one, the first is why.
            self._put_back(batch, min(left, len(batch) - 1) if is_new else left)
            code = self._retire(child)
            if batch:
                lost = batch.popleft()
                self._deliver(lost, self._lost(lost, code))
            self._put_back(batch)

    def _converse(self, child: _Child, batch: deque[Attempt]) -> None:
        """Follow what a child says until the last task that it has started has ended."""
        while child.is_busy:
            attempt = batch[0]
            # The clock of the timeout starts with the task: starting a process, and importing its module, is not its
            # work.
            timeout = attempt.task.timeout
            is_timed = timeout is not None and attempt.started_at and not attempt.ended_at
            left = timeout - attempt.seconds if timeout is not None and is_timed else None
            if attempt.interruption is not None or (left is not None and left <= 0):
                if self._stop(child, batch):
                    return
                continue
            others_wait = len(batch) > 1 and attempt.started_at
            if others_wait:
                # Being woken for each answer would cost more than the tasks do; they lie in the pipe meanwhile.
                time.sleep(min(GATHER, len(batch) * self._seconds.get(attempt.task.name, 0.0)))
            patience = TOO_LONG if others_wait and (left is None or left > TOO_LONG) else left
            if child.wait(patience):
                self._on_lease_news(child, batch, child.pipe.recv())
                while len(batch) > 1 and child.pipe.poll():
                    self._on_lease_news(child, batch, child.pipe.recv())
            elif others_wait:
                # This one takes longer than was thought, or one of the others is to be stopped.
                self._put_back(batch, child.take_back())

    def _on_lease_news(self, child: _Child, batch: deque[Attempt], said: object) -> None:
        if isinstance(said, Answer):
            self._answered(child, batch, said)
        elif isinstance(said, Progress):
            batch[0].context.note(said)
        elif isinstance(said, LogRecord):
            # Before its first task has started, a child speaks of itself: of what the module's import logs, say.
            said.deliver(_about(batch[0]) if batch[0].started_at else {})
        elif isinstance(said, Ended):
            batch[0].ended_at = batch[0].started_at + said.seconds
        else:
            self._started(batch[0])

    def _started(self, attempt: Attempt) -> None:
        attempt.started_at = time.perf_counter()
        running.set(attempt.context)  # for what handles its log records; this thread's context is of this batch alone
        self._on_start(attempt)

    def _answered(self, child: _Child, batch: deque[Attempt], answer: Answer) -> None:
        attempt = batch.popleft()
        attempt.ended_at = attempt.started_at + answer.seconds
        attempt.on_interrupt = None
        name = attempt.task.name
        seconds = self._seconds[name] = max(answer.seconds, self._seconds.get(name, 0.0) / 2)
        size = 1 if seconds > QUICK else min(BATCH_TASKS, int(BATCH_SECONDS / max(seconds, 1e-6)))
        self._batches[name] = self._batch_size = size
        child.tasks += 1
        child.is_busy = answer.goes_on
        self._deliver(attempt, answer.outcome)
        if answer.goes_on:
            self._started(batch[0])
        elif self._is_spent(child, answer.memory):
            self._retire(child, LAST_WORDS)

    def _stop(self, child: _Child, batch: deque[Attempt]) -> bool:
        """Kill the task that runs, unless it has just ended; return whether its process was killed."""
        self._put_back(batch, child.take_back())  # from here on it starts nothing more
        until = time.monotonic() + TOO_LONG  # it may go on speaking
        while batch and child.pipe.poll() and time.monotonic() < until:
            said = child.pipe.recv()
            self._on_lease_news(child, batch, said)
            if isinstance(said, Answer):
                return False
        child.kill()
        self._retire(child)
        if batch:
            attempt = batch.popleft()
            self._deliver(attempt, interrupted(attempt) if attempt.interruption is not None else timed_out(attempt))
            self._put_back(batch)
        return True

    def _put_back(self, batch: deque[Attempt], count: int | None = None) -> None:
        """Have the last of a batch, or all, run elsewhere, before what waits."""
        for _ in range(len(batch) if count is None else count):
            attempt = batch.pop()
            attempt.on_interrupt = None
            self._waiting.appendleft(attempt)
        with contextlib.suppress(RuntimeError):  # the worker's loop is closed
            self._loop.call_soon_threadsafe(self._collect)

    def _child(self) -> _Child:
        child: _Child | None = getattr(self._mine, "child", None)
        if child is None:
            child = self._mine.child = _Child(self._codec)
            self._children.add(child)
            self._drivers.add(threading.current_thread())
        return child

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
            child.kill_left_behind()
        self._drivers.discard(threading.current_thread())

    def close(self) -> None:
        super().close()
        # The idle ones leave the lifespan and end by themselves, as their threads do; what still runs was given up.
        for child in self._children.copy():
            if child.is_busy:
                child.kill()

    def join(self) -> None:
        for thread in self._drivers.copy():
            thread.join(timeout=LAST_WORDS + 1)
