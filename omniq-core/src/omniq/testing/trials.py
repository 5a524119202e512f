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
import contextvars
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias, TypeVar

from omniq._client.declared import DeclaredSchedule
from omniq._client.queue import TaskQueue
from omniq._runtime.connections import Connections
from omniq._runtime.portal import is_on_running_loop
from omniq._worker.attempt import Attempt, failed, rejected, run_async, run_sync
from omniq._worker.releasing import put_back
from omniq._worker.resolving import parents_of
from omniq._worker.resources import Resources
from omniq._worker.scheduler import Scheduler
from omniq.errors import OmniQError, PayloadRejected, TaskFailed, UnknownScheme, UnknownTask
from omniq.plugins import Plugins
from omniq.storage import Lease, Storage, TaskQuery
from omniq.storage.body import as_task
from omniq.storage.durations import duration
from omniq.storage.urls import parse_url
from omniq.task import Failed, Outcome, Progress, StoredTask, Task, TaskState
from omniq.testing.clock import ManualClock

__all__ = ["Trial", "memory_storage", "trial"]

T = TypeVar("T")
Steps: TypeAlias = Generator[Coroutine[Any, Any, Any] | Attempt, Any, T]
"""What a trial does, one step after the other: a coroutine to be awaited on an event loop, or an attempt of a plain
function to be run on a thread without one. Each step is answered with its result."""

WORKER = "trial"
LEASE = 60.0
PRUNED = 1000
"""Tasks removed in a step once their ``result_ttl`` is over."""
MOST = 100_000
"""So many tasks in one drain are a loop: a task that enqueues itself, say."""


def memory_storage(clock: Callable[[], float], plugins: Plugins) -> Storage:
    """Return a private memory storage that runs by a clock, and takes ``using(connection=…)`` of any connection.

    :raises UnknownScheme: if omniq-local is not installed.
    """
    config = parse_url("memory://")
    try:
        factory: Any = plugins.storage_factory(config)
    except UnknownScheme:
        raise UnknownScheme(
            "tests of tasks keep them in memory, whatever the queue's URL, and that takes omniq-local; "
            "type: pip install 'omniq-core[local]'"
        ) from None
    storage: Storage = factory(config, clock=clock, any_connection=True)
    return storage


class Trial:
    """Runs the tasks of a queue in a test: one at a time, when the test says so.

    Tasks run on the calling thread: coroutines on an event loop, plain functions without one, as in a worker. Where a
    loop runs on the calling thread already, and in the methods whose names begin with ``a``, plain functions run on
    another thread.

    :param queue: the queue, on a memory storage that runs by ``clock``.
    :param clock: moved by the test, or by :meth:`run_for`.
    :param raise_failures: raise :class:`~omniq.TaskFailed` as soon as a task has failed for good.
    """

    def __init__(self, queue: TaskQueue, clock: ManualClock, *, raise_failures: bool = False) -> None:
        self.queue = queue
        self.clock = clock
        self.raise_failures = raise_failures
        self._declared: dict[str, DeclaredSchedule] | None = None
        self._resources = Resources(queue)

    def _storing_declared(self) -> Steps[None]:
        """Store the schedules that the code declares, as a worker does when it starts; their time counts from now."""
        if self._declared != self.queue.declared:
            yield self.queue.stored_schedules.reconcile()
            self._declared = dict(self.queue.declared)

    def drain(self) -> int:
        """Run every task that is ready or due, with what those enqueue in turn, until none is left.

        A task that failed and is to be retried later waits for the clock.

        :return: how many attempts were run.
        :raises RuntimeError: if there seems to be no end.
        :raises TaskFailed: if a task failed for good, in a trial with ``raise_failures``.
        """
        return _run(lambda: self._working(self._draining))

    async def adrain(self) -> int:
        """Run every task that is ready or due; see :meth:`drain`."""
        return await _arun(self._working(self._draining))

    def _working(self, work: Callable[[], Steps[T]]) -> Steps[T]:
        """Do what a worker does within the queue's lifespan, which it enters before and leaves afterwards."""
        usual, self._resources = self._resources, Resources(self.queue)
        try:
            yield self._resources.enter()
            result = yield from work()
        except BaseException:
            yield self._resources.leave()
            raise
        else:
            yield self._resources.leave()
        finally:
            self._resources = usual
        return result

    def _draining(self) -> Steps[int]:
        yield from self._storing_declared()
        storage: Storage = yield self._storage()
        scheduler = Scheduler(storage, self.queue.plugins, self.queue.codec, is_waiting=lambda: False)
        count = 0
        while (task := (yield self._claimed(storage, scheduler))) is not None:
            yield from self._performing(storage, task)
            count += 1
            if count > MOST:
                raise RuntimeError(f"{MOST:,} tasks were run and there are more: does one enqueue itself?")
        return count

    async def _storage(self) -> Storage:
        storage = (await self.queue.connections.current()).storage
        while await storage.prune(PRUNED) == PRUNED:
            pass
        return storage

    async def _claimed(self, storage: Storage, scheduler: Scheduler) -> StoredTask | None:
        await scheduler.fire_due()
        await storage.recover(1000)
        queues = [stats.queue for stats in await storage.stats()]
        if not queues:
            return None
        claimed = await storage.claim(dict.fromkeys(queues, 1), worker=WORKER, lease=LEASE, limit=1)
        return claimed[0] if claimed else None

    def _performing(self, storage: Storage, stored: StoredTask) -> Steps[None]:
        told: list[Progress] = []
        attempt: Attempt | None = None
        task, outcome = self._admitted(stored)
        if outcome is None:
            function = self.queue.runnable[task.name]
            codec, resources = self.queue.codec, self._resources
            attempt = Attempt(task, function, codec, lambda _, progress: told.append(progress), resources)
            attempt.context.join = storage.join
            missing = yield from self._resolving(storage, attempt, task)
            if missing is None:
                outcome = yield _run_on_loop(attempt) if function.definition.is_async else attempt
            else:
                outcome = failed(attempt, missing)
        if told:
            yield storage.set_progress({Lease(task.id, task.delivery): told[-1]})
        (accepted,) = yield storage.finish([outcome])
        error = None if attempt is None else attempt.error
        if isinstance(error, KeyboardInterrupt):
            raise error  # Ctrl-C while a task ran on the main thread ends the tests, not only the task
        if self.raise_failures and accepted and isinstance(outcome, Failed):
            raise TaskFailed(task.id, outcome.error) from error

    def _resolving(self, storage: Storage, attempt: Attempt, task: Task) -> Steps[OmniQError | None]:
        """Put others' results into the arguments; return why that cannot be done."""
        if task.references:
            parents = yield parents_of(storage, task.references)
            try:
                attempt.given = self.queue.codec.resolved(task, parents)
            except OmniQError as error:
                return error
        return None

    def _admitted(self, stored: StoredTask) -> tuple[Task, Outcome | None]:
        """Return the task, and its outcome if it cannot be run."""
        try:
            task = self.queue.codec.admit(stored)
        except PayloadRejected as error:
            return as_task(stored), rejected(stored, error)
        if task.name in self.queue.runnable:
            return task, None
        return task, put_back(task, UnknownTask(f"no function is registered as {task.name!r}"))

    def run_for(self, time: float | timedelta) -> int:
        """Let time pass: the clock stops at every moment at which a task or schedule is due, and those run.

        :param time: seconds (or a timedelta).
        :return: how many attempts were run.
        """
        return _run(lambda: self._working(lambda: self._passing(time)))

    async def arun_for(self, time: float | timedelta) -> int:
        """Let time pass; see :meth:`run_for`."""
        return await _arun(self._working(lambda: self._passing(time)))

    def _passing(self, time: float | timedelta) -> Steps[int]:
        end = self.clock.now + timedelta(seconds=duration(time, "time"))
        count = yield from self._draining()
        while (moment := (yield self._next_moment())) is not None and moment <= end:
            self.clock.set(max(moment, self.clock.now))
            count += yield from self._draining()
        self.clock.set(end)
        return count + (yield from self._draining())

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
            page = await storage.list_tasks(TaskQuery(states=[TaskState.SCHEDULED], limit=1000), cursor)
            moments += [task.run_at for task in page if task.queue not in paused]
            cursor = page.cursor
            if cursor is None:
                break
        later = [moment for moment in moments if moment > self.clock.now]
        return min(later, default=None)


@contextlib.contextmanager
def trial(
    queue: TaskQueue, *, clock: ManualClock | None = None, eager: bool = False, raise_failures: bool = False
) -> Iterator[Trial]:
    """Put a queue on memory for a while, whatever its URL.

    The application's own queue object is used, so that its tasks need no change: within the block, what they enqueue
    goes to memory, and nothing connects to the real store. What is enqueued with ``using(connection=…)`` is there at
    once, whether the transaction is committed or not. Needs ``omniq-core[local]``.

    :param queue: the application's queue.
    :param clock: the clock to run by; None: a new one.
    :param eager: run every task as soon as it is enqueued, before ``enqueue`` returns.
    :param raise_failures: raise :class:`~omniq.TaskFailed` where the tasks are run, as soon as one has failed for good;
        its ``__cause__`` is what the task raised. Otherwise a failure is seen by who asks for the result.
    :return: a context manager of a :class:`Trial`, which runs the tasks.
    :raises UnknownScheme: if omniq-local is not installed.
    """
    clock = clock or ManualClock()
    usual = queue.connections
    queue.connections = connections = Connections(memory_storage(clock, queue.plugins))
    tried = Trial(queue, clock, raise_failures=raise_failures)
    try:
        if queue.declared:
            _run(tried._storing_declared)
        with _eagerly(tried) if eager else contextlib.nullcontext():
            yield tried
    finally:
        queue.connections = usual
        _close(connections)


@contextlib.contextmanager
def _eagerly(tried: Trial) -> Iterator[None]:
    queue: Any = tried.queue

    def replace(name: str) -> None:
        enqueue, aenqueue = getattr(queue, name), getattr(queue, f"a{name}")

        def enqueue_and_run(*args: Any, **options: Any) -> Any:
            enqueued = enqueue(*args, **options)
            tried.drain()
            return enqueued

        async def aenqueue_and_run(*args: Any, **options: Any) -> Any:
            enqueued = await aenqueue(*args, **options)
            await tried.adrain()
            return enqueued

        setattr(queue, name, enqueue_and_run)
        setattr(queue, f"a{name}", aenqueue_and_run)

    replace("submit")
    replace("enqueue_many")
    try:
        yield
    finally:
        del queue.submit, queue.asubmit, queue.enqueue_many, queue.aenqueue_many


_closing: set[asyncio.Task[None]] = set()
"""A loop itself keeps only weak references to its tasks."""


def _close(connections: Connections) -> None:
    if not is_on_running_loop():
        asyncio.run(connections.close())
        return
    # A connection of this loop can only be closed on it, once it goes on.
    closing = asyncio.get_running_loop().create_task(connections.close())
    _closing.add(closing)
    closing.add_done_callback(_closing.discard)


# As in a worker: each attempt sees what the lifespan has set in context variables, and what it sets no other sees.


def _run_here(attempt: Attempt) -> Outcome:
    assert attempt.resources is not None
    return attempt.resources.context.copy().run(run_sync, attempt)


async def _run_on_loop(attempt: Attempt) -> Outcome:
    assert attempt.resources is not None
    context = attempt.resources.context.copy()
    return await asyncio.get_running_loop().create_task(run_async(attempt), context=context)


def _run(steps: Callable[[], Steps[T]]) -> T:
    """Take steps from synchronous code, also where the caller itself is called by a running loop."""
    if is_on_running_loop():
        with ThreadPoolExecutor(1, thread_name_prefix="omniq-trial") as pool:
            context = contextvars.copy_context()
            return pool.submit(lambda: context.run(lambda: _run(steps))).result()
    with asyncio.Runner() as runner:
        taking = steps()
        go_on = partial(next, taking)
        while True:
            try:
                step = go_on()
            except StopIteration as ended:
                result: T = ended.value
                return result
            # Each in a copy of the context, as in a worker: what a task sets no other sees.
            context = contextvars.copy_context()
            try:
                if isinstance(step, Attempt):
                    answer = _run_here(step)
                else:
                    # Not runner.run, whose care for Ctrl-C would cost more than the step itself.
                    loop = runner.get_loop()
                    answer = loop.run_until_complete(loop.create_task(step, context=context))
            except BaseException as error:
                go_on = partial(taking.throw, error)
            else:
                go_on = partial(taking.send, answer)


async def _arun(taking: Steps[T]) -> T:
    """Take steps on the running loop."""
    go_on = partial(next, taking)
    while True:
        try:
            step = go_on()
        except StopIteration as ended:
            result: T = ended.value
            return result
        try:
            answer = await (asyncio.to_thread(_run_here, step) if isinstance(step, Attempt) else step)
        except BaseException as error:
            go_on = partial(taking.throw, error)
        else:
            go_on = partial(taking.send, answer)
