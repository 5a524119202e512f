"""A queue under test: on memory, run by hand, with time that the test moves.

Three days pass in milliseconds::

    def test_a_reminder_goes_out_every_morning():
        with trial(shop.queue) as shop_trial:
            shop_trial.run_for(timedelta(days=3))
        assert len(outbox) == 3
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Any, TypeVar

from omniq.connections import Connections
from omniq.durations import duration
from omniq.errors import PayloadRejected, UnknownTask
from omniq.execute import Attempt, rejected, run_async, run_sync
from omniq.plugins import Plugins
from omniq.putbacks import bounded, put_back
from omniq.queue import TaskQueue
from omniq.scheduler import Scheduler
from omniq.storage import Lease, Storage, TaskQuery
from omniq.task import Outcome, Progress, Released, Task, TaskState
from omniq.testing.clock import ManualClock
from omniq.urls import parse_url

__all__ = ["Trial", "memory_storage", "trial"]

T = TypeVar("T")

WORKER = "trial"
LEASE = 60.0
MOST = 100_000
"""So many tasks in one drain are a loop: a task that enqueues itself, say."""


def memory_storage(clock: Callable[[], float], plugins: Plugins) -> Storage:
    """Give a private memory storage that runs by a clock.

    :raises UnknownScheme: if omniq-local is not installed.
    """
    factory: Any = plugins.storage_factory(parse_url("memory://"))
    storage: Storage = factory(parse_url("memory://"), clock=clock)
    return storage


class Trial:
    """Runs the tasks of a queue in a test: one at a time, on the calling thread, when the test says so.

    :param queue: the queue, on a memory storage that runs by ``clock``.
    :param clock: moved by the test, or by :meth:`run_for`.
    """

    def __init__(self, queue: TaskQueue, clock: ManualClock) -> None:
        self.queue = queue
        self.clock = clock

    def drain(self) -> int:
        """Run every task that is ready or due, with what those enqueue in turn, until none is left.

        A task that failed and is to be retried later waits for the clock.

        :return: how many attempts were run.
        :raises RuntimeError: if there seems to be no end.
        """
        return _run(self.adrain)

    async def adrain(self) -> int:
        """Run every task that is ready or due; see :meth:`drain`."""
        storage = (await self.queue.connections.current()).storage
        scheduler = Scheduler(storage, self.queue.plugins, self.queue.codec, is_waiting=lambda: False)
        count = 0
        while True:
            await scheduler.fire_due()
            await storage.recover(1000)
            queues = [stats.queue for stats in await storage.stats()]
            claimed = (
                await storage.claim(dict.fromkeys(queues, 1), worker=WORKER, lease=LEASE, limit=1) if queues else []
            )
            if not claimed:
                return count
            (task,) = claimed
            await storage.finish([await self._outcome(storage, task)])
            count += 1
            if count > MOST:
                raise RuntimeError(f"{MOST:,} tasks were run and there are more: does one enqueue itself?")

    async def _outcome(self, storage: Storage, task: Task) -> Outcome:
        try:
            self.queue.codec.admit(task)
        except PayloadRejected as error:
            return rejected(task, error)
        function = self.queue.runnable.get(task.name)
        if function is None:
            return bounded(put_back(task, UnknownTask(f"no function is registered as {task.name!r}")), task.error)
        told: list[Progress] = []
        attempt = Attempt(task, function, self.queue.codec, lambda _, progress: told.append(progress))
        outcome = await run_async(attempt) if function.definition.is_async else run_sync(attempt)
        if told:
            await storage.set_progress({Lease(task.id, task.delivery): told[-1]})
        if isinstance(outcome, Released) and outcome.error is not None:
            return bounded(outcome, task.error)
        return outcome

    def run_for(self, time: float | timedelta) -> int:
        """Let time pass: the clock stops at every moment at which a task or schedule is due, and those run.

        :param time: seconds (or a timedelta).
        :return: how many attempts were run.
        """
        return _run(functools.partial(self.arun_for, time))

    async def arun_for(self, time: float | timedelta) -> int:
        """Let time pass; see :meth:`run_for`."""
        end = self.clock.now + timedelta(seconds=duration(time, "time"))
        await self.queue.areconcile_schedules()
        count = await self.adrain()
        while (moment := await self._next_moment()) is not None and moment <= end:
            self.clock.set(max(moment, self.clock.now))
            count += await self.adrain()
        self.clock.set(end)
        return count + await self.adrain()

    async def _next_moment(self) -> datetime | None:
        storage = (await self.queue.connections.current()).storage
        moments = [
            schedule.next_run
            for schedule in await storage.get_schedules()
            if schedule.next_run is not None and not schedule.paused
        ]
        paused = {stats.queue for stats in await storage.stats() if stats.paused}
        cursor: str | None = None
        while True:
            page = await storage.list_tasks(TaskQuery(state=TaskState.SCHEDULED, limit=1000), cursor)
            moments += [task.run_at for task in page if task.queue not in paused]
            cursor = page.cursor
            if cursor is None:
                break
        later = [moment for moment in moments if moment > self.clock.now]
        return min(later, default=None)


@contextlib.contextmanager
def trial(queue: TaskQueue, *, clock: ManualClock | None = None, eager: bool = False) -> Iterator[Trial]:
    """Put a queue on memory for a while, whatever its URL, and give what runs its tasks.

    The application's own queue object is used, so that its tasks need no change: within the block, what they enqueue
    goes to memory, and nothing connects to the real store.

    :param queue: the application's queue.
    :param clock: the clock to run by; None: a new one.
    :param eager: run every task as soon as it is enqueued, before ``enqueue`` returns.
    """
    clock = clock or ManualClock()
    usual = queue.connections
    queue.connections = Connections(memory_storage(clock, queue.plugins))
    tried = Trial(queue, clock)
    try:
        with _eagerly(tried) if eager else contextlib.nullcontext():
            yield tried
    finally:
        _run(queue.connections.close)
        queue.connections = usual


@contextlib.contextmanager
def _eagerly(tried: Trial) -> Iterator[None]:
    queue: Any = tried.queue
    submit, asubmit, asubmit_many = queue.submit, queue.asubmit, queue.aenqueue_many

    def submit_and_run(call: Any) -> Any:
        handle = submit(call)
        tried.drain()
        return handle

    async def asubmit_and_run(call: Any) -> Any:
        handle = await asubmit(call)
        await tried.adrain()
        return handle

    async def asubmit_many_and_run(calls: Any) -> Any:
        handles = await asubmit_many(calls)
        await tried.adrain()
        return handles

    def submit_many_and_run(calls: Any) -> Any:
        return _run(functools.partial(asubmit_many_and_run, calls))

    queue.submit, queue.asubmit = submit_and_run, asubmit_and_run
    queue.aenqueue_many, queue.enqueue_many = asubmit_many_and_run, submit_many_and_run
    try:
        yield
    finally:
        del queue.submit, queue.asubmit, queue.aenqueue_many, queue.enqueue_many


def _run(coroutine: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from synchronous code, also where the caller itself is called by a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine())
    ended: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            ended.append(asyncio.run(coroutine()))
        except BaseException as error:  # it is raised where it was asked for
            failed.append(error)

    thread = threading.Thread(target=work, name="omniq-trial")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return ended[0]
