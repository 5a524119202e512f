"""The worker: claims tasks, runs them, records how they ended, and stops without loss."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Self

from omniq._runtime.signals import STOP_AT_ONCE, STOP_SIGNALS, call_on_signal, is_urgent
from omniq._runtime.threads import in_thread
from omniq._tasks.definitions import Executor
from omniq._tasks.options import Duration, check_count
from omniq._worker.attempt import Attempt, Interruption, about, rejected
from omniq._worker.completer import Completer
from omniq._worker.deadlock import DeadlockWatch
from omniq._worker.executors import LoopExecutor, TaskExecutor, ThreadExecutor
from omniq._worker.fetcher import Fetcher, Served
from omniq._worker.heartbeat import Heartbeat
from omniq._worker.interrupting import Interrupter
from omniq._worker.loop_monitor import LoopMonitor
from omniq._worker.maintenance import Maintenance
from omniq._worker.metrics import Metrics
from omniq._worker.prefetch import Prefetch
from omniq._worker.processes import ProcessExecutor, ProcessLimits
from omniq._worker.releasing import put_back
from omniq._worker.resolving import Resolver
from omniq._worker.resources import Resources
from omniq._worker.scheduler import Scheduler
from omniq._worker.worker_info import WorkerAbout, check_labels, dump_about, some_names
from omniq._worker.worker_options import WorkerHost, WorkerOptions, available_cores, positive_duration
from omniq.errors import PayloadRejected, UnknownTask
from omniq.storage.body import as_task
from omniq.storage.durations import duration
from omniq.storage.escaping import get_logger, shown
from omniq.storage.posix import require_posix
from omniq.task import Outcome, StoredTask, TaskState

__all__ = ["Worker", "WorkerHost", "WorkerOptions"]

_log = get_logger("omniq.worker")

STALE, LOOK_FOR_STALE = 0.75, 0.25
"""Seconds after which a claimed task that still waits for a slot is given back to other workers; looked for so often,
so that none waits for more than a second."""
LAST_WORDS = 2.0
"""Seconds that interrupted coroutines get to clean up after the grace period."""
FAREWELL = 3.0
"""Seconds that a store that does not answer gets for the last outcomes."""
IDLE_LOOKS, LOOK_FOR_IDLE = 100, 0.05
"""How often a worker looks whether it has no tasks before it removes garbage nevertheless; and the seconds between."""
LIMITS_WAIT = 1.0
"""Seconds within which a limit has to let a task start, or a worker that drains leaves it to others."""


@contextlib.asynccontextmanager
async def _frozen(is_idle: Callable[[], bool]) -> AsyncIterator[None]:
    """Keep the garbage collector from looking at what there is now: for tens of milliseconds no task would begin.

    What is garbage already is removed while there is no task that could begin, if that is soon.
    """

    async def clear() -> None:
        for _ in range(IDLE_LOOKS):
            if is_idle():
                break
            await asyncio.sleep(LOOK_FOR_IDLE)
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    gc.freeze()
    clearing = asyncio.create_task(clear())
    try:
        yield
    finally:
        clearing.cancel()
        gc.unfreeze()


class Worker:
    """Runs the tasks of a queue until it is told to stop. An async context manager: leaving it drains what runs.

    :param queue: whose tasks to run.
    :param queues: names of queues, served in strict order; or ``{name: weight}``, served in proportion; None: every
        queue that the store has, those of the registered functions first.
    :param concurrency: how many tasks may run at once.
    :param threads: how many of them may be plain functions, each on a thread; None: 20, or ``concurrency`` if that is
        less.
    :param processes: how many of them may be functions with ``executor="process"``, each in a process of its own;
        None: as many as there are cores.
    :param process_tasks: such a process is replaced after so many tasks; None: never for that reason.
    :param process_memory: and once it takes more bytes of memory than this after a task; None: never for that reason.
    :param lease: seconds (or a timedelta) for which a task is this worker's alone; renewed every third of it. A task
        whose worker dies runs again elsewhere when its lease has run out and one more ``recover_every`` is over.
    :param grace: seconds (or a timedelta) that running tasks get to end after :meth:`stop`.
    :param scheduler: whether to fire schedules and to keep the stored ones in step with those declared in code.
    :param recover_every: seconds (or a timedelta) between two looks for tasks whose worker died; None: half a lease.
    :param drain: whether to stop once no task is running, none is ready that its limits let start within a second, and
        no schedule is due. What is to run later, such as a retry after a delay, is left to other workers.
    :param app: whose code this is: the schedules that it declares belong to it, and go when it no longer declares them.
        ``omniq worker`` gives its ``module:attribute``; None: the name of the program's main module.
    :param labels: what it tells of itself beside the rest, such as ``{"zone": "a"}``: up to 20.
    :raises ValueError: if an option cannot be used.
    """

    def __init__(
        self,
        queue: WorkerHost,
        *,
        queues: Iterable[str] | Mapping[str, int] | None = None,
        concurrency: int = 100,
        threads: int | None = None,
        processes: int | None = None,
        process_tasks: int | None = 10_000,
        process_memory: int | None = None,
        lease: Duration = 30.0,
        grace: Duration = 25.0,
        scheduler: bool = True,
        recover_every: Duration | None = None,
        drain: bool = False,
        app: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self.queue = queue
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._called = f"worker {self.id}"
        self.concurrency = check_count(concurrency, "concurrency")
        self.threads = min(20, concurrency) if threads is None else check_count(threads, "threads")
        self.processes = available_cores() if processes is None else check_count(processes, "processes")
        self._limits = ProcessLimits(
            tasks=None if process_tasks is None else check_count(process_tasks, "process_tasks"),
            memory=None if process_memory is None else check_count(process_memory, "process_memory"),
        )
        self.lease = positive_duration(lease, "lease")
        self.grace = duration(grace, "grace")
        self.recover_every = (
            self.lease / 2 if recover_every is None else positive_duration(recover_every, "recover_every")
        )
        self.scheduler = scheduler
        self._drains = drain
        self._last_claim = False  # whether the next one is the last, if it brings nothing
        self.app = app
        self.labels = check_labels(labels or {})
        self._served = Served(queues, queue.runnable)
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._fetcher: Fetcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = queue.plugins.event("omniq_task_started")
        self._tasks: list[asyncio.Task[None]] = []
        self.signalled = False
        """Whether a signal has told it to stop."""
        self.metrics: Metrics | None = None
        """What it counts, to be set before it starts; None: nothing."""

    def __repr__(self) -> str:
        return f"<worker {self.id}>"

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop: it claims nothing more."""
        return self._stop.is_set()

    @property
    def heard_at(self) -> float | None:
        """When its latest heartbeat got through to the store, by the monotonic clock; None: none has."""
        return None if self._fetcher is None else self._heartbeat.through_at

    # Life

    async def start(self) -> None:
        """Connect, enter the queue's lifespan, and begin to claim tasks. A worker works once.

        :raises StorageUnavailable: if the store cannot be reached.
        :raises RuntimeError: if it was started before.
        :raises: what the lifespan raises.
        """
        if self._loop is not None:
            raise RuntimeError("a worker works once; make another one with queue.worker()")
        self._loop = asyncio.get_running_loop()
        self._storage = (await self.queue.connections.current()).storage
        self._resources = Resources(self.queue)
        try:
            if await self._resources.enter_unless(self._stop, self._called, self._on_lifespan_lost):
                await self._begin()
        except BaseException:
            await self._leave_lifespan()
            raise

    def _on_lifespan_lost(self, error: BaseException | None) -> None:
        _log.error("worker %s stops: the lifespan has ended by itself", self.id, exc_info=error)
        self.stop()

    async def _leave_lifespan(self) -> None:
        await self._resources.leave_within(self._now, LAST_WORDS, self._called)

    async def _begin(self) -> None:
        assert self._loop is not None
        self._make_parts(self._loop, datetime.now(UTC))
        # Before anything that takes a while: nothing is claimed until the first one has got through.
        self._heartbeat.start()
        try:
            await self._served.discover(self._storage, anew=False)
            await self._store_schedules()
        except BaseException:
            self._heartbeat.ask_to_stop()
            raise
        assert self._fetcher is not None
        loops = [self._fetcher.run, self._maintenance.run, self._give_back_stale]
        if self.scheduler:
            loops.append(self._scheduler.run)
        self._tasks = [self._loop.create_task(self._guard(run)) for run in loops]
        _log.info("worker %s serves %s on %s", self.id, ", ".join(self._served.names) or "no queue yet", self.queue.url)
        self._tell("omniq_worker_started", queues=self._served.names)

    def _make_parts(self, loop: asyncio.AbstractEventLoop, started_at: datetime) -> None:
        self.completer = Completer(self._storage, self.id, self.queue.plugins, self.metrics)
        # Tasks see what the lifespan has set in context variables.
        self._executors = self._resources.context.run(self._make_executors)
        self._interrupter = Interrupter(
            self.completer, self._executors, lambda attempt: self._tell("omniq_lease_lost", task=attempt.task)
        )
        self._resolver = Resolver(self._storage, self.queue.codec, self._on_done)
        self._prefetch = Prefetch(self._executors, self.concurrency, self.queue.runnable)
        self._heartbeat = Heartbeat(
            self.queue.connections.sibling(),
            worker=self.id,
            lease=self.lease,
            about=lambda: dump_about(self._describe(started_at)),
            held=self.completer.leases,
            on_news=lambda news: self._from_thread(self._interrupter.heed, news),
            on_change=lambda through: self._from_thread(self._on_heartbeat, through),
            on_silence=lambda: self._from_thread(self._interrupter.abandon_all),
            on_beat=self._on_beat(),
            is_deaf=lambda: self._fetcher is not None and self._fetcher.outage.lasts,
            monitor=LoopMonitor(loop, self.lease),
        )
        self._scheduler = Scheduler(
            self._storage, self.queue.plugins, self.queue.codec, is_waiting=self._is_waiting, tell=self._tell
        )
        self._maintenance = Maintenance(
            self._storage,
            self.id,
            self.queue.plugins,
            self.metrics,
            every=self.recover_every,
            on_loss=self._store_schedules,
        )
        self._fetcher = Fetcher(
            self._storage,
            worker=self.id,
            lease=self.lease,
            served=self._served,
            prefetch=self._prefetch,
            completer=self.completer,
            accept=self._accept,
            on_woken=self._scheduler.look,
            on_idle=self._stop_if_drained if self._drains else None,
        )

    def _make_executors(self) -> dict[Executor, TaskExecutor]:
        for function in self.queue.runnable.values():
            if function.definition.executor == "process":
                require_posix(f"the executor of {function.name}", "run its tasks on such a machine, or on a thread")
        told = (self._on_start, self._on_done)
        return {
            "loop": LoopExecutor(self.concurrency, *told),
            "thread": ThreadExecutor(self.threads, *told),
            "process": ProcessExecutor(self.processes, *told, codec=self.queue.codec, limits=self._limits),
        }

    def _describe(self, started_at: datetime) -> WorkerAbout:
        # On the heartbeat's thread: of what may change meanwhile a copy is taken in one step.
        functions = dict(self.queue.runnable)
        named = some_names(functions)
        return WorkerAbout(
            hostname=socket.gethostname(),
            pid=os.getpid(),
            started_at=started_at,
            versions=self.queue.plugins.versions(self.queue.url.partition(":")[0]),
            queues=self._served.chosen,
            concurrency=self.concurrency,
            slots={kind: executor.slots for kind, executor in self._executors.items()},
            lease=self.lease,
            recover_every=self.recover_every,
            serializers=self.queue.codec.accepted,
            functions=named,
            function_count=len(functions),
            process_functions=tuple(name for name in named if functions[name].definition.executor == "process"),
            labels=self.labels,
        )

    async def _store_schedules(self) -> None:
        if self.scheduler:
            await self.queue.stored_schedules.reconcile(self.app)

    def stop(self, *, now: bool = False) -> None:
        """Claim nothing more, and let what runs end. Callable from the worker's loop.

        :param now: do not wait for running tasks: interrupt them and put them back.
        """
        self._stop.set()
        if now:
            self._now.set()
        if self._fetcher is not None:
            self._fetcher.stop()

    async def drain(self) -> None:
        """Stop, and return when everything that was claimed has ended or gone back to its queue.

        Cancelled, it stops waiting: what runs is interrupted, and the leases run out.
        """
        self.stop()
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        try:
            await self._drain(*tasks)
        except BaseException:
            self._abandon(tasks)
            raise
        finally:
            await self._leave_lifespan()
        self._tell("omniq_worker_stopped")
        _log.info("worker %s has stopped", self.id)

    async def _drain(self, claiming: asyncio.Task[None], *others: asyncio.Task[None]) -> None:
        assert self._loop is not None
        deadline = self._loop.time() + self.grace
        # A claim that is under way may bring tasks; but a store that does not answer must not keep us.
        await self._ended_by(deadline, claiming)
        for task in others:
            task.cancel()
        self._interrupter.put_back()
        await self._ended_by(deadline, self.completer.empty())
        if self.completer.attempts:
            await self._interrupter.interrupt_all(LAST_WORDS)
        self.completer.give_up_waiting()
        await self.completer.drain(FAREWELL)
        for executor in self._executors.values():
            executor.close()
        self._heartbeat.ask_to_stop()
        await in_thread(self._heartbeat.join)
        await in_thread(self._executors["process"].join)
        await asyncio.gather(claiming, *others, return_exceptions=True)

    async def run(self, *, supervised: bool = False, own_process: bool = False) -> None:
        """Work until :meth:`stop`, or SIGTERM or SIGINT if this is the main thread; a second signal stops at once.

        Waits for a store that cannot be reached yet. Cancelled, it stops at once as well.

        :param supervised: whether another process passes signals on to this one: SIGTERM and SIGINT then count once,
            however often they come, and SIGQUIT stops at once.
        :param own_process: whether the process does nothing else: until this returns, the garbage collector leaves
            alone what was there when the worker had started (``gc.freeze``), and then looks at everything again.
        """

        def on_signal(number: signal.Signals) -> None:
            self._on_signal(number, urgent=is_urgent(number, again=self.signalled, supervised=supervised))

        with call_on_signal((*STOP_SIGNALS, *STOP_AT_ONCE) if supervised else STOP_SIGNALS, on_signal):
            try:
                if not await self._served.discover_patiently(self.queue.connections, self._stop, self._called):
                    return
                await self.start()
                async with _frozen(self._is_idle) if own_process else contextlib.nullcontext():
                    await self._stop.wait()
                    await self.drain()
            except asyncio.CancelledError:
                self.stop(now=True)
                await self.drain()
                raise

    async def _stop_if_drained(self, claims: int) -> None:
        """Stop if nothing is ready that may start.

        :param claims: how many claims in a row have brought nothing while nothing ran.
        """
        if claims > 1:
            if self._last_claim or not await self._is_held_back():
                self.stop()
                return
            # A claim in vain may have moved lines on, and the next give tasks: the store knows.
            began = time.monotonic()
            await self._storage.wait_for_work(self._served.names, LIMITS_WAIT)
            self._last_claim = time.monotonic() - began >= LIMITS_WAIT
            return
        self._last_claim = False
        # This may make some tasks ready. If so, the next claim brings them.
        await self._maintenance.recover()
        if self.scheduler:
            await self._scheduler.fire_due()
        # So may queues that are new to the store, into which a task has put others.
        await self._served.discover(self._storage)

    async def _is_held_back(self) -> bool:
        """Return whether tasks are ready that only a limit can keep from being claimed."""
        if not self._storage.limits.task_limits:
            return False
        served = [stats for stats in await self._storage.stats() if stats.queue in self._served.names]
        return any(stats.counts[TaskState.READY] for stats in served if not stats.paused)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.drain()

    def _on_signal(self, number: signal.Signals, *, urgent: bool) -> None:
        if urgent:
            _log.warning("%s again: stopping now; running tasks go back to their queues", number.name)
        elif not self.signalled:
            held = 0 if self._fetcher is None else len(self.completer)  # it may come while we start
            _log.info("%s: finishing %d tasks, for %g s at most", number.name, held, self.grace)
        self.signalled = True
        self.stop(now=urgent)

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        # A loop of the worker must never end silently: a worker that looks alive and claims nothing is the worst kind.
        while not self._stop.is_set():
            try:
                await work()
            except Exception:
                _log.exception("worker %s: %s broke; it starts again in a second", self.id, work.__qualname__)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), 1.0)
            else:
                return

    def _tell(self, hook: str, **arguments: Any) -> None:
        event = self.queue.plugins.event(hook)
        if event is not None:
            event(worker=self.id, **arguments)

    def _is_waiting(self) -> bool:
        return self._fetcher is not None and self._fetcher.waiting

    def _is_idle(self) -> bool:
        return self._is_waiting() and not self.completer

    # Running

    def _accept(self, stored: StoredTask) -> None:
        try:
            # Before anything of it is looked at: its name, its arguments, its retry policy.
            task = self.queue.codec.admit_record(stored)
        except PayloadRejected as error:
            # What it is called may have been chosen to look like something else in a log.
            _log.error("task %s (%s) is rejected: %s", shown(stored.id), shown(stored.name), error, extra=about(stored))
            self.completer.refuse(as_task(stored), rejected(stored, error))
            self._tell("omniq_task_rejected", task=as_task(stored), reason=str(error))
            return
        function = self.queue.runnable.get(task.name)
        if function is None:
            self.completer.refuse(
                task.task, put_back(task.task, UnknownTask(f"no function is registered as {task.name!r}"))
            )
            return
        attempt = Attempt(task, function, self.queue.codec, self.completer.note_progress, self._resources)
        self.completer.add(attempt)
        executor = self._executors[function.definition.executor]
        if task.header.references:
            self._resolver.resolve(attempt, task, executor)
        else:
            executor.submit(attempt)

    def _on_start(self, attempt: Attempt) -> None:
        if self._started is not None:
            self._started(task=attempt.task, worker=self.id)

    def _on_done(self, attempt: Attempt, outcome: Outcome) -> None:
        self.completer.settle(attempt, outcome)
        self._prefetch.freed()

    async def _give_back_stale(self) -> None:
        watch = DeadlockWatch(self._executors, self._storage)
        while True:
            await asyncio.sleep(LOOK_FOR_STALE)
            self._interrupter.put_back(waited=STALE)
            await watch.look(self.completer.attempts)

    # News from the heartbeat

    def _on_beat(self) -> Callable[..., None] | None:
        event = self.queue.plugins.event("omniq_worker_heartbeat")
        return None if event is None else partial(event, worker=self.id)

    def _on_heartbeat(self, through: bool) -> None:
        assert self._fetcher is not None
        self._fetcher.allow(through)
        self._maintenance.note_heartbeats(through)

    def _from_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the worker with it
            self._loop.call_soon_threadsafe(function, *arguments)

    # Stopping

    async def _ended_by(self, deadline: float, work: asyncio.Task[None] | Coroutine[Any, Any, None]) -> None:
        """Wait for some work until the deadline, or until all is to stop at once; then cancel it."""
        assert self._loop is not None
        ended = asyncio.ensure_future(work)
        cut_short = asyncio.ensure_future(self._now.wait())
        try:
            await asyncio.wait(
                [ended, cut_short],
                timeout=max(0.0, deadline - self._loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ended.cancel()
            cut_short.cancel()

    def _abandon(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        self._interrupter.put_back()
        for attempt in self.completer.attempts:
            # Also so that the cancellation of everything at a loop's end is not taken for the tasks' own failure.
            attempt.interrupt(Interruption.SHUTDOWN)
        self.completer.give_up_waiting()
        for executor in self._executors.values():
            executor.close()
        self._heartbeat.ask_to_stop()
