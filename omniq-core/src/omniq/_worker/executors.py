"""Where a task's code runs: coroutines on the worker's loop, plain functions on threads.

An executor holds attempts: as many run as it has slots, the others wait in it for the moment that a slot frees, which
saves them a round trip to the store. What waits can be taken back.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

from omniq._runtime import signals
from omniq._worker.attempt import Attempt, failed, run_async, run_sync, timed_out
from omniq._worker.detaching import Detacher
from omniq.task import Outcome

__all__ = ["LoopExecutor", "PoolExecutor", "TaskExecutor", "ThreadExecutor"]

Done = Callable[[Attempt, Outcome], None]
"""Called on the loop, once for each attempt that was started."""


def _leave_fork() -> NoReturn:
    """End the process: it is a child that a task forked and that came back to the worker's code, and no worker."""
    os._exit(1)


class TaskExecutor(ABC):
    """Runs attempts, at most ``slots`` at a time. Belongs to the worker's loop: its methods are called there.

    :param slots: how many may run at once.
    :param on_start: called on the loop or the task's thread just before an attempt runs.
    :param on_done: called on the loop with each outcome.
    """

    def __init__(self, slots: int, on_start: Callable[[Attempt], None], on_done: Done) -> None:
        self.slots = slots
        self.load = 0
        """How many attempts run or wait."""
        self._loop = asyncio.get_running_loop()
        self._on_start = on_start
        self._on_done = on_done
        self._waiting: deque[Attempt] = deque()
        # Each attempt runs in a copy: it sees what was set when the worker started, and what it sets stays in it.
        self._context = contextvars.copy_context()
        self._forks = signals.forks

    @property
    def capacity(self) -> int:
        """How many attempts it has a use for at once."""
        return self.slots

    @abstractmethod
    def submit(self, attempt: Attempt) -> None:
        """Run an attempt as soon as a slot is free, in order of submission."""

    def take_back(self, waited: float = 0.0) -> list[Attempt]:
        """Remove attempts that have not been started.

        :param waited: only those that waited for longer than this many seconds.
        """
        bound = time.perf_counter() - waited
        taken: list[Attempt] = []
        while True:
            try:
                attempt = self._waiting.popleft()
            except IndexError:
                break
            if waited and attempt.queued_at > bound:
                self._waiting.appendleft(attempt)
                break
            taken.append(attempt)
        self.load -= len(taken)
        return taken

    def disown(self) -> None:  # noqa: B027  # a thread ends with the process
        """Stop waiting for attempts that were interrupted and go on all the same."""

    @abstractmethod
    def close(self) -> None:
        """Free what the executor holds. Attempts that still run are left to themselves."""

    def join(self) -> None:  # noqa: B027  # most executors are free as soon as they are closed
        """Block until a closed executor has freed everything. Callable from any thread."""


class LoopExecutor(TaskExecutor):
    """Runs coroutines, each as a task of the worker's loop."""

    def __init__(self, slots: int, on_start: Callable[[Attempt], None], on_done: Done) -> None:
        super().__init__(slots, on_start, on_done)
        # The loop itself keeps only weak references to its tasks, which the attempts hold.
        self._running: set[Attempt] = set()
        self._detacher = Detacher(self._loop)
        self._sentinel: asyncio.Task[Any] | None = None
        """Nothing but the loop's end, which cancels everything at once, cancels it."""

    def submit(self, attempt: Attempt) -> None:
        if self._sentinel is None:
            self._sentinel = self._loop.create_task(asyncio.Event().wait())
        self.load += 1
        if len(self._running) < self.slots:
            self._start(attempt)
        else:
            attempt.queued_at = time.perf_counter()
            self._waiting.append(attempt)

    def _start(self, attempt: Attempt) -> None:
        self._running.add(attempt)
        task = self._detacher.create_task(self._run(attempt), context=self._context.copy())
        if attempt in self._running:  # where the loop makes its tasks take their first step at once, it may have ended
            attempt.loop_task = task

    async def _run(self, attempt: Attempt) -> None:
        try:
            self._on_start(attempt)
            outcome = await run_async(attempt, self._loop_ends)
        except BaseException as error:  # whatever it is, it ends this attempt and not the loop
            outcome = failed(attempt, error)
        if self._forks != signals.forks:
            _leave_fork()
        attempt.loop_task = None
        self._running.discard(attempt)
        self.load -= 1
        if self._waiting:
            self._start(self._waiting.popleft())
        if not attempt.settled:
            attempt.settled = True
            self._on_done(attempt, outcome)

    def _loop_ends(self) -> bool:
        return self._sentinel is not None and self._sentinel.cancelling() > 0

    def close(self) -> None:
        self._waiting.clear()
        if self._sentinel is not None:
            self._sentinel.cancel()

    def disown(self) -> None:
        for attempt in self._running:
            task = attempt.loop_task
            if task is None:
                continue  # it is just ending
            # asyncio.run() would cancel it once more and wait for an end that may never come.
            self._detacher.detach(task)


class PoolExecutor(TaskExecutor):
    """Runs attempts from threads that it starts as they are needed and keeps.

    A thread takes attempt after attempt from the common line, and the loop is woken once for all outcomes that
    gathered: neither costs a wake-up for each task. Only one sleeping thread is woken at first; a supervisor wakes
    more, twice as many each millisecond, while attempts still wait. So short tasks are run by one thread without
    contention for the interpreter, and slow ones spread over all threads within a few milliseconds.

    Threads share two deques and no lock: an attempt leaves the line, and an outcome enters the other, in one step each.
    All counting is done on the loop.
    """

    RAMP = 0.001
    """Seconds between two looks of the supervisor."""

    def __init__(self, slots: int, on_start: Callable[[Attempt], None], on_done: Done) -> None:
        super().__init__(slots, on_start, on_done)
        self._threads = 0
        self._idle: deque[threading.Lock] = deque()
        self._outcomes: deque[tuple[Attempt, Outcome]] = deque()
        self._collecting = False
        self._supervisor: asyncio.TimerHandle | None = None
        self._wake_next = 1
        self._closed = False

    @abstractmethod
    def _run(self, attempt: Attempt) -> bool:
        """Run one attempt and deliver its outcome, on a thread of the pool; whether this thread shall go on."""

    def _leave(self) -> None:
        """Free what the calling thread of the pool holds, before it ends."""

    def submit(self, attempt: Attempt) -> None:
        self.load += 1
        attempt.contest()
        attempt.queued_at = time.perf_counter()
        self._waiting.append(attempt)
        if self._supervisor is None:
            self._wake(1)
            self._supervise_soon()

    def _supervise_soon(self) -> None:
        self._wake_next = 1
        self._supervisor = self._loop.call_later(self.RAMP, self._supervise)

    def _supervise(self) -> None:
        self._supervisor = None
        if self._waiting and not self._closed:
            self._wake(self._wake_next)
            if self._idle or self._threads < self.slots:
                self._wake_next *= 2
                self._supervisor = self._loop.call_later(self.RAMP, self._supervise)

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            try:
                self._idle.popleft().release()
            except IndexError:
                if self._threads == self.slots:
                    return
                self._threads += 1
                threading.Thread(target=self._work, name="omniq-thread", daemon=True).start()

    def _work(self) -> None:
        try:
            self._work_until_closed()
        finally:
            self._leave()

    def _work_until_closed(self) -> None:
        sleep = threading.Lock()
        sleep.acquire()
        while not self._closed:
            try:
                attempt = self._waiting.popleft()
            except IndexError:
                # Should an attempt arrive between these lines, the supervisor finds this thread a millisecond later.
                self._idle.append(sleep)
                if self._is_closed():
                    return
                sleep.acquire()
                continue
            if not self._context.copy().run(self._run, attempt):
                return

    def _is_closed(self) -> bool:
        return self._closed  # as it is now: another thread's doing

    def _deliver(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Hand an outcome to the loop; whether this thread shall go on."""
        if not (attempt.decided or attempt.decide()):
            return False  # its timeout was over, and another thread took this one's place
        self._outcomes.append((attempt, outcome))
        if not self._collecting:
            self._collecting = True
            try:
                self._loop.call_soon_threadsafe(self._collect)
            except RuntimeError:
                return False  # the worker's loop is closed: what it held goes back when the lease runs out
        return True

    def _collect(self) -> None:
        # Cleared first: an outcome that comes later than the last look below finds it so and wakes the loop again.
        self._collecting = False
        while True:
            try:
                attempt, outcome = self._outcomes.popleft()
            except IndexError:
                break
            self._collected(attempt)
            if not attempt.settled:
                attempt.settled = True
                self.load -= 1
                self._on_done(attempt, outcome)
        if self._waiting and self._supervisor is None:
            self._supervise_soon()

    def _collected(self, attempt: Attempt) -> None:
        """Take note that an attempt's outcome has come in."""

    def close(self) -> None:
        self._closed = True
        if self._supervisor is not None:
            self._supervisor.cancel()
        while self._idle:
            self._idle.popleft().release()


class ThreadExecutor(PoolExecutor):
    """Runs plain functions on threads. Nothing can stop a thread: one whose timeout is over is left to itself."""

    def __init__(self, slots: int, on_start: Callable[[Attempt], None], on_done: Done) -> None:
        super().__init__(slots, on_start, on_done)
        self._timeouts: dict[Attempt, asyncio.TimerHandle] = {}

    def _run(self, attempt: Attempt) -> bool:
        try:
            self._on_start(attempt)
            outcome = run_sync(attempt)
        except BaseException as error:  # whatever it is, it ends this attempt and no thread of the pool
            outcome = failed(attempt, error)
        if self._forks != signals.forks:
            _leave_fork()
        return self._deliver(attempt, outcome)

    def submit(self, attempt: Attempt) -> None:
        if attempt.given.timeout is not None:
            # Looked at this long after submission for the first time; an attempt that waited is given the rest then.
            self._watch(attempt, attempt.given.timeout)
        super().submit(attempt)

    def _watch(self, attempt: Attempt, seconds: float) -> None:
        self._timeouts[attempt] = self._loop.call_later(seconds, self._check_timeout, attempt)

    def _check_timeout(self, attempt: Attempt) -> None:
        del self._timeouts[attempt]
        if attempt.decided:
            return
        left = (attempt.given.timeout or 0.0) - attempt.seconds
        if left > 0:
            self._watch(attempt, left)
            return
        if not attempt.decide():
            return
        # Its task is settled now; another thread takes this one's place, and what it still returns is dropped.
        attempt.settled = True
        attempt.context.ask_to_stop()
        self.load -= 1
        self._threads -= 1
        self._on_done(attempt, timed_out(attempt))
        self._wake(1)

    def _collected(self, attempt: Attempt) -> None:
        timer = self._timeouts.pop(attempt, None)
        if timer is not None:
            timer.cancel()

    def take_back(self, waited: float = 0.0) -> list[Attempt]:
        taken = super().take_back(waited)
        for attempt in taken:
            self._collected(attempt)
        return taken

    def close(self) -> None:
        super().close()
        for timer in self._timeouts.values():
            timer.cancel()
