"""The contract that every store fulfils, ours and third parties'.

A :class:`Storage` is asynchronous and batch-first: whatever touches tasks takes a sequence and is one round trip. A
storage object belongs to one event loop; :meth:`Storage.sibling` makes another one on the same store for another loop
or thread.

What holds on every store, and what ``omniq.testing.StorageContract`` checks:

1. Nothing acknowledged is lost. When ``enqueue`` returned, the task survives the death of every client.
2. A task runs at least once, and is fenced: a delivery that lost its lease cannot finish, retry or fail the task.
   Exactly one outcome is recorded for each delivery, and one final outcome for the task.
3. Within a queue and a priority tasks are claimed in the order in which they became ready.
4. Every operation is atomic, as far as :attr:`Storage.limits` say. A client killed between any two instructions leaves
   each task in exactly one state.
5. ``claim`` and ``finish`` cost the same with a million tasks waiting, scheduled or ended as with a thousand.
6. Idle is cheap: at most one request a second from an idle worker.

Points in time are judged by the store's clock alone (:meth:`Storage.now`); durations are seconds.

A record that cannot be read (of a task, a result, a schedule, a worker, a queue's state, a pause, a unique key) harms
nothing but itself. Unreadable is what cannot be decoded, what :mod:`omniq.storage.validation` refuses, and what was
found by one id and names another. Then:

- ``claim`` ends an unreadable task as ``failed``, with an error of type ``CorruptRecord`` that says what is wrong,
  and keeps the rest of it as far as the store can. The other tasks of the batch are returned, and no lease is left on
  one that is not returned.
- ``get`` and ``list_tasks`` return in its place a task that was *salvaged*: the id by which it was found, state
  ``failed``, error ``CorruptRecord``, and what else could be read of it. ``wait_finished`` counts it as ended.
- ``finish``, ``heartbeat``, ``cancel``, ``retry``, ``run_now`` and ``set_progress`` do as ever as long as the store can
  tell what they need of it (its state, its delivery); else it counts as ended, and they change nothing. None of them
  ever acts on another task than the one that was named. ``enqueue`` takes its id as stored already.
- ``get_schedules`` and ``due_schedules`` leave an unreadable schedule out; ``put_schedule`` replaces it as if it were
  not there, with a larger revision as far as its own can be told.
- ``open``, ``recover``, ``stats``, ``workers``, ``prune``, ``purge`` and ``wait_for_work`` pass over what they cannot
  read, and log it once with its place. What they cannot tell of it counts as absent; ``recover`` ends a running one
  whose lease has run out, or cannot be told, as ``claim`` does.
- ``check`` returns a finding for each. ``delete`` and ``delete_schedule`` remove a record without reading it.

What holds of flows, on the stores that hold them, is in :mod:`omniq.storage.flows`, what holds of limits in
:mod:`omniq.storage.limits`; what the verbs take and return is
in :mod:`omniq.storage.values`.
"""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, Self

from attrs import evolve

from omniq.errors import ConfigurationError
from omniq.flow import Flow, NewFlow
from omniq.schedule import Schedule
from omniq.storage.flows import FlowStorage
from omniq.storage.limits import LimitStorage, Line
from omniq.storage.values import (
    Adoption,
    Capability,
    Count,
    Enqueued,
    Finding,
    Lease,
    LeaseState,
    QueueStats,
    Severity,
    StorageConfig,
    StorageLimits,
    StoredWorker,
    TaskPage,
    TaskQuery,
)
from omniq.task import NewTask, Outcome, Progress, StoredTask, TaskState

if TYPE_CHECKING:
    from omniq.storage.transactions import CallerTransaction

__all__ = ["Storage", "StorageFactory"]


CHECKED_AT_A_TIME = 1000
"""Tasks that :meth:`Storage.check` reads in one call."""
COUNTED_AT_A_TIME = 1000
"""Tasks that :meth:`Storage.count_tasks` reads in one call where the counters do not tell."""


class Storage(FlowStorage, LimitStorage, ABC):
    """A store of tasks and schedules, used from one event loop.

    Every method may raise :class:`~omniq.errors.StorageUnavailable` within a bounded time: 30 seconds, unless an option
    of the URL says otherwise. Then nothing was done, or the same call repeated changes nothing that was done already.
    So does every method that has something to ask the store before :meth:`open` and after :meth:`close`. The driver's
    own errors never come through.

    What a store cannot hold at all, such as a text that it cannot encode, raises :class:`ValueError` or
    :class:`~omniq.errors.PayloadTooLarge`, and nothing of the call is done: StorageUnavailable would have the caller
    repeat it for ever. Texts of 300 characters are held in every place.

    Ids that are not in the store are never an error: each method says what it returns for them. A ``limit`` of 0
    returns nothing and changes nothing.
    """

    capabilities: Set[Capability] = frozenset()

    @property
    def limits(self) -> StorageLimits:
        """How far this store goes where the contract leaves it to the store.

        Known before :meth:`open`; what depends on the server's settings is then that of its defaults.
        """
        return StorageLimits()

    @property
    def losses(self) -> int:
        """How often this storage found, since it was opened, that the store had lost what it held; 0 by default.

        After each time a worker stores the schedules anew that its code declares.
        """
        return 0

    # Life

    @abstractmethod
    def sibling(self) -> Self:
        """Return an unopened storage on the same store, for another event loop or thread. Does no I/O."""

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create or check what the store needs. Safe from many processes at once.

        :raises SchemaMismatch: if the store was written by another version; the message says what to do.
        :raises StorageUnavailable: if it cannot be reached or written.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnect and free everything this object opened. Safe to call twice, and after a failed :meth:`open`."""

    @abstractmethod
    async def now(self) -> datetime:
        """Return the store's clock, by which ``run_at``, ``expires``, leases and TTLs are judged."""

    # From producer to worker and back

    @abstractmethod
    async def enqueue(self, tasks: Sequence[NewTask], flow: NewFlow | None = None) -> list[Enqueued]:
        """Store tasks as ``ready``, or as ``scheduled`` while their ``run_at`` is in the future.

        Those of a flow that stand behind a gate which is not open are stored as ``blocked``.

        As many as :attr:`StorageLimits.atomic_tasks` says are stored all or none, whichever their queues.

        A ``run_at`` in the past counts as now: it gets no place ahead of tasks that are ready already.

        A task whose id is stored already changes nothing. A task whose ``unique`` key belongs to a live task (earlier
        in the same batch, too) is not stored. Both come back with ``created=False``. Of two that race for one key,
        one is stored. A tie of order within a batch goes to the earlier. Of two calls on one event loop of which the
        second is made before the first has returned, the first's tasks come first.

        A call that is repeated because its answer was lost returns ``created=False`` for what the first one stored.

        :param tasks: the tasks. Those of equal priority and time are claimed in this order.
        :param flow: stored with the tasks if it is not there; if it is, its new gates are added and its hold extended.
            The tasks are then all of this flow. None: tasks of a flow are added to one that is there, at most one flow
            a call.
        :return: one entry for each task, in order.
        :raises ValueError: if the store cannot hold one of the tasks, or the rules about flows refuse one; none is
            stored.
        :raises PayloadTooLarge: the same, where it is too large.
        :raises FlowClosed: if a task feeds a gate that is not shut, or the flow is cancelled; none is stored.
        :raises ConfigurationError: if a flow is given and this store holds none.
        """

    def enqueue_blocking(self, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        """Do :meth:`enqueue` at once on the calling thread, whichever that is, where the store is quicker that way.

        :param tasks: as for :meth:`enqueue`.
        :return: as :meth:`enqueue`, or None if this storage has no such way (the default) or it is not open at the
            moment.
        """
        return None

    def join(self, connection: object) -> CallerTransaction:
        """Take part in the caller's own transaction, on a store with ``Capability.TRANSACTIONS``.

        Does no I/O and may be called from any thread; what the store needs (its schema) must be there already.

        :param connection: the caller's connection or session; the store says of which kinds.
        :return: the storage inside that transaction.
        :raises ConfigurationError: if this store has no transactions to take part in.
        :raises TypeError: if it is of no kind that the store knows; the message names those that it does.
        :raises ValueError: if it can be told that it leads to another database than this store's.
        """
        raise ConfigurationError(
            f"{type(self).__name__} cannot take part in your transaction: that takes a store in your own database, "
            "postgresql:// or sqlite://"
        )

    @abstractmethod
    async def claim(
        self, demand: Mapping[str, int], *, worker: str, lease: float, limit: int | None = None
    ) -> list[StoredTask]:
        """Turn ready tasks into running ones that this worker holds for ``lease`` seconds.

        Scheduled tasks of these queues whose time has come are promoted first. Of each queue at most the demanded
        number is taken, larger priority first, then by the time at which they became ready, then in the order of
        enqueueing. Each claim raises ``attempt`` and ``delivery`` by one, and sets ``worker``, ``started_at`` and
        ``lease_until``; the error of the attempt before stays with the task, and comes with it, and its progress is
        cleared. Of paused queues nothing is returned; their scheduled tasks may be promoted or not, and take the place
        of their ``run_at`` either way once the queue is resumed. Tasks whose ``expires_at`` has come end as
        ``cancelled`` instead and take no place. Of several workers that race for a task one gets it.

        :param demand: queue → how many of it at most. The queues are served, and named in the result, in this order.
        :param worker: the claiming worker's id.
        :param lease: seconds until the claim lapses unless :meth:`heartbeat` extends it.
        :param limit: how many in all at most, so that an earlier queue can use up what a later one would get; None: the
            demands' sum.
        :return: the claimed tasks; fewer than demanded means that no more were ready. Never waits for work.
        """

    @abstractmethod
    async def finish(self, outcomes: Sequence[Outcome]) -> list[bool]:
        """Record how deliveries ended, each fenced by its token.

        An outcome is accepted where the task is still running under the same ``delivery``; the lease's time plays no
        part in it until another caller has recovered the task. Then: ``Succeeded``, ``Failed``, ``Cancelled`` end the
        task, free its ``unique`` key and keep the record for ``result_ttl`` seconds; ``Retry`` makes it ``scheduled``
        (``ready`` if the delay is 0) with its error in place of the one before, also if it is None; ``Released`` does
        the same, takes the attempt back, and with a delay of 0 puts the task back to its old place; without an error of
        its own it keeps the one before, as ``Cancelled`` does. A task whose cancellation was requested ends as
        ``cancelled`` also on ``Retry`` and ``Released``, with the same error and the same attempt as otherwise.
        ``Failed``, ``Retry`` and ``Cancelled`` replace the task's ``attempt_log`` by their own unless that is empty.
        But for that and :meth:`recover` a task's attempt log stays as it is, whatever happens to it. ``worker`` and
        ``started_at`` stay until the next claim. The whole batch is one atomic step, or one for each queue
        (:attr:`StorageLimits.atomic_across_queues`).

        :param outcomes: one for each delivery.
        :return: for each outcome whether it was accepted. A repeated call after a lost answer returns False and changes
            nothing.
        """

    @abstractmethod
    async def heartbeat(
        self, worker: str, leases: Sequence[Lease], lease: float, about: str | None = None
    ) -> list[LeaseState]:
        """Extend the leases of a worker, and note that it is alive.

        Only leases still held (running under that ``delivery``) are extended: a lost one is never taken back.

        :param worker: the worker's id; seen in :meth:`workers` for ``lease`` seconds from now.
        :param leases: all that it holds; may be empty.
        :param lease: seconds from now; 0 signs the worker off, and removes what is stored of it.
        :param about: what the worker tells about itself, up to 64 KB in UTF-8 without NUL characters, to be returned
            by :meth:`workers` as it is; no store reads it. None: what is stored stays. A worker sends it again with
            every tenth heartbeat, so a store may drop one that it was not sent for 20 leases.
        :return: one state for each lease, in order.
        """

    @abstractmethod
    async def recover(self, limit: int) -> list[StoredTask]:
        """Take back tasks whose lease has run out, whichever worker held them.

        With attempts left (``attempt <= max_retries``) a task becomes ``ready`` at its old place; without, it ends as
        ``failed`` with a ``WorkerLost`` error; one whose cancellation was requested ends as ``cancelled``. Unless it
        failed, the error of an attempt before stays. ``worker`` and ``started_at`` stay until the next claim. The
        attempt that was lost gets a line in ``attempt_log``, see :func:`omniq.storage.attempts.lost_line`; a log longer
        than ``LONGEST_LOG`` loses its beginning. Of several that recover at once, one gets each task. Also ends
        scheduled and ready tasks whose ``expires_at`` has come, within the same limit.

        :param limit: how many at most, so that a step stays short.
        :return: the tasks whose lease had run out, as they stand afterwards.
        """

    # Waiting

    @abstractmethod
    async def wait_for_work(self, queues: Sequence[str], timeout: float) -> None:
        """Return when something may be claimable in one of the queues, a schedule may be due, or the timeout is over.

        Returns at once if a task is ready or due in a queue that is not paused. May return early for no reason; must
        not return later than 100 ms after a task became ready or a schedule became due, in so far as notifications
        arrive, and if they are lost, not later than :attr:`StorageLimits.lost_wakeup` says. That holds for each
        caller that waits, as not each can fire every schedule, and for a schedule of any interval. Only a schedule that
        was due when the wait began is no reason to return at once, nor later, as long as it stays overdue: perhaps no
        caller can fire it. Sends at most one request a second meanwhile.

        :param queues: names, in any order.
        :param timeout: seconds.
        """

    @abstractmethod
    async def wait_finished(self, ids: Sequence[str], timeout: float) -> set[str]:
        """Return when at least one of the tasks has ended; as soon after it as :meth:`wait_for_work` after its reason.

        :param ids: of tasks, in any order.
        :param timeout: seconds.
        :return: those that have ended or are not in the store; empty if the timeout came first.
        """

    # Reading

    @abstractmethod
    async def get(self, ids: Sequence[str]) -> list[StoredTask | None]:
        """Return the records, in order; None for an id that is not in the store.

        A record that cannot be read is returned salvaged, see above.

        :param ids: of tasks; one may be asked for twice.
        """

    @abstractmethod
    async def list_tasks(self, query: TaskQuery, cursor: str | None = None) -> TaskPage[StoredTask]:
        """Return one page of the tasks that match, the latest enqueued first.

        Following the cursor shows each task that matched throughout exactly once, whatever is added meanwhile. To list
        the failed or the cancelled ones costs by the page, whatever else is stored; so should any other state.

        A store may take it that clocks are never put back by more than a minute: it need not look at what was enqueued
        before a task of a minute before :attr:`TaskQuery.enqueued_after`, nor after one of a minute after
        :attr:`TaskQuery.enqueued_before`. One that cannot be read is in a state as far as the store can tell.

        :param query: which tasks, and how many at most.
        :param cursor: the ``cursor`` of the page before, of the same query but for ``bare``, ``limit`` and ``look_at``;
            None: the first page.
        :raises ValueError: if the cursor is not one of this store's.
        """

    async def count_tasks(self, query: TaskQuery, limit: int | None = None) -> Count:
        """Return how many tasks match.

        By default the counters of :meth:`stats` tell, where only a queue and states are asked for, at the cost of these
        whatever the limit; else the tasks that match are listed, bare. Those that cannot be read may be left out.

        :param query: its own ``limit`` and ``bare`` play no part; with ``look_at``, no more tasks are looked at.
        :param limit: count no further than to this number, 1 or more; None: to the end.
        """
        others = query.name, query.tag, query.flow, query.enqueued_before, query.enqueued_after
        if not any(other is not None for other in others):
            return Count(
                sum(
                    number
                    for queue in await self.stats()
                    for state, number in queue.counts.items()
                    if query.queue in (None, queue.queue) and (query.states is None or state in query.states)
                )
            )
        found, cursor = 0, None
        looked_at_once = query.look_at is not None
        while True:
            most = query.look_at or COUNTED_AT_A_TIME
            page_limit = most if limit is None else min(most, limit - found)
            page = await self.list_tasks(evolve(query, bare=True, limit=page_limit), cursor)
            found, cursor = found + len(page), page.cursor
            if cursor is None or found == limit or looked_at_once:
                return Count(found, at_least=cursor is not None)

    @abstractmethod
    async def stats(self) -> list[QueueStats]:
        """Return every queue that has tasks or is paused, by name, without reading the tasks' records.

        A database may count the entries of an index.
        """

    @abstractmethod
    async def workers(self) -> list[StoredWorker]:
        """Return the workers heard of within their lease, by id."""

    # Control

    @abstractmethod
    async def cancel(self, ids: Sequence[str]) -> list[bool]:
        """End scheduled and ready tasks as ``cancelled``; ask running ones to stop (their next heartbeat says so).

        :param ids: of tasks.
        :return: for each whether it was scheduled, ready or running.
        """

    @abstractmethod
    async def retry(self, ids: Sequence[str]) -> list[bool]:
        """Make failed and cancelled tasks ready again, with all their attempts.

        ``attempt`` goes back to 0; ``delivery`` goes on, so that a worker of old stays fenced. One whose ``unique``
        key belongs to a live task by now stays as it is. An ``expires_at`` that has passed is dropped. ``worker`` and
        ``started_at`` stay until the next claim, and the error until another takes its place.

        :param ids: of tasks.
        :return: for each whether it was made ready.
        """

    @abstractmethod
    async def run_now(self, ids: Sequence[str]) -> list[bool]:
        """Make tasks ready that are scheduled for later, at the end of their queue.

        Their ``run_at`` is now; all else stays, such as the error of an attempt before, and ``expires_at``. One whose
        time has come already stays as it is.

        :param ids: of the tasks.
        :return: for each whether it was scheduled for later.
        """

    @abstractmethod
    async def delete(self, ids: Sequence[str]) -> list[bool]:
        """Remove tasks that are not running, with all that belongs to them.

        :param ids: of tasks.
        :return: for each whether it was removed; False if it is running or not there.
        """

    @abstractmethod
    async def purge(self, queue: str, state: TaskState | None = None) -> int:
        """Remove all tasks of a queue that are not running.

        :param queue: its name.
        :param state: only those in this state.
        :return: how many.
        """

    @abstractmethod
    async def pause(self, queue: str) -> bool:
        """Stop :meth:`claim` from giving tasks of a queue; tasks already running go on. Survives restarts.

        :param queue: its name.
        :return: False if it was paused already.
        """

    @abstractmethod
    async def resume(self, queue: str) -> bool:
        """Let a paused queue go on, and wake its workers.

        :param queue: its name.
        :return: False if it was not paused.
        """

    @abstractmethod
    async def set_progress(self, updates: Mapping[Lease, Progress]) -> None:
        """Note the progress of running tasks; updates of lost leases are dropped.

        It stays while the task is running. A store may forget it once the delivery is over; a claim clears it.

        :param updates: one for each delivery.
        """

    # Schedules

    @abstractmethod
    async def put_schedule(self, schedule: Schedule, expected_revision: int | None = None) -> Schedule | None:
        """Store a schedule, replacing the one with the same id.

        A revision is never used again: each change of a stored schedule raises it by one, and a new schedule begins
        with one that is larger than any that a schedule of this id has had, also if that was deleted. A caller that
        read a schedule before can therefore never replace its successor by mistake.

        :param schedule: the schedule to store.
        :param expected_revision: store only if the stored one has this revision (0: only if there is none); None: in
            any case.
        :return: what is stored, with its new revision (the given ``revision`` plays no part); None if the expected
            revision did not match.
        """

    @abstractmethod
    async def get_schedules(self, ids: Sequence[str] | None = None) -> list[Schedule]:
        """Return schedules by id, in order, leaving out those that are not there; without ids all, sorted by id.

        :param ids: of schedules; None: all.
        """

    @abstractmethod
    async def delete_schedule(self, schedule_id: str) -> bool:
        """Remove a schedule; tasks it enqueued stay.

        Keeps what a later schedule of the same id needs for a larger revision, see :meth:`put_schedule`: a number for
        the whole namespace will do, and nothing has to stay of each deleted schedule.

        :return: whether it was there.
        """

    @abstractmethod
    async def due_schedules(self, limit: int) -> list[Schedule]:
        """Return schedules that are not paused and whose ``next_run`` has come, the earliest first.

        :param limit: how many at most.
        """

    @abstractmethod
    async def fire(self, schedule: Schedule, tasks: Sequence[NewTask]) -> list[Enqueued] | None:
        """Replace a schedule and enqueue the tasks of its run, in one step, if it was not changed meanwhile.

        :param schedule: what to store: as it was read, revision included, but for its new ``next_run``, ``last_run``,
            ``last_task``.
        :param tasks: as for :meth:`enqueue`; may be empty.
        :return: one entry for each task, as :meth:`enqueue` returns them: a task whose ``unique`` key belongs to a live
            task is not stored, and the schedule is advanced all the same. None, and nothing stored, if the stored
            revision is another or the schedule is gone. Of any number that fire one tick, one succeeds.
        """

    # Upkeep

    @abstractmethod
    async def prune(self, limit: int) -> int:
        """Remove ended tasks whose ``result_ttl`` is over, and what dead workers left.

        :param limit: how many tasks at most, so that a step stays short.
        :return: how many tasks were removed.
        """

    async def namespaces(self) -> list[str]:
        """Return the namespaces that this store keeps tasks of, so that a command that finds nothing can name them.

        Looks at a bounded number of things, and may leave some out.

        :return: in any order; empty where the store cannot tell, which is the default.
        """
        return []

    async def check(self, limit: int = 100) -> list[Finding]:
        """Read every record, and return a finding for each that cannot be read: its place, and how it is removed.

        The default reads all tasks, page by page, and so finds tasks alone. A store overrides it to find what else is
        unreadable (schedules, workers, the state of queues), see :func:`omniq.storage.corrupt_records.finding`.

        :param limit: how many findings at most.
        """
        found: list[Finding] = []
        lines: dict[Line, None] = {}
        cursor: str | None = None
        while len(found) < limit:
            page = await self.list_tasks(TaskQuery(limit=CHECKED_AT_A_TIME), cursor)
            for task in page:
                if task.limited is not None and task.state is TaskState.READY:
                    lines[task.queue, task.key, task.limit] = None
                if task.error is not None and task.error.type == "CorruptRecord":
                    message = f"{task.error.message}; remove it with: omniq tasks delete {shlex.quote(task.id)}"
                    found.append(Finding(severity=Severity.ERROR, subject="task", message=message))
            cursor = page.cursor
            if cursor is None:
                break
        asked = list(lines)
        for begin in range(0, len(asked), CHECKED_AT_A_TIME):
            lost = await self.lost_lines(asked[begin : begin + CHECKED_AT_A_TIME])
            found += [_lost_line(task) for task in lost]
        return found[:limit]

    # Moving in

    async def adopt(self, tasks: Sequence[StoredTask], flows: Sequence[Flow] = ()) -> list[Adoption]:
        """Store records of another store as they stand, unless their ids are stored already.

        So a move from store to store can be repeated from its beginning, wherever it was interrupted. Nothing is
        counted, as what has happened in the other store is in the records: a gate is stored with what it still waits
        for, though the tasks that feed it come in later calls. What has still to follow does: tasks behind an open or
        a broken gate, or of a cancelled flow, move on as ever.

        The tasks stand behind all others in the order of enqueueing, in the order given. Their place among those that
        are ready is that of their priority and ``run_at``. A task that has not ended takes its ``unique`` key. Its
        ``delivery`` stays, so that the worker that held it before stays fenced; its progress may be forgotten.

        As many as :attr:`StorageLimits.atomic_tasks` says are stored all or none. A repeated call after a lost answer
        gives ``PRESENT`` for what the first one stored.

        :param tasks: whole records, none of them running, their lease None; those of flows after their flows.
        :param flows: flows as :meth:`get_flows` returned them; stored before the tasks.
        :return: one entry for each flow, in order, and then one for each task.
        :raises ValueError: if a task is running, was listed bare, could not be read, or cannot be held; then no task is
            stored.
        :raises PayloadTooLarge: if one is larger than this store can hold; then no task is stored.
        :raises ConfigurationError: if this store cannot adopt records.
        """
        raise ConfigurationError(f"{type(self).__name__} cannot adopt the tasks of another store, as omniq import asks")

    @abstractmethod
    async def diagnose(self) -> list[Finding]:
        """Return what ``omniq doctor`` shows: version, durability settings, limits, what is wrong and what to do."""


def _lost_line(task: StoredTask) -> Finding:
    named = "" if task.limit is None else f", limit {task.limit!r}"
    message = (
        f"task {task.id} (queue {task.queue!r}, key {task.key!r}{named}) is ready, and no claim finds it or the others "
        f"like it, as their line is lost; another task like it puts that right, or: "
        f"omniq tasks cancel {shlex.quote(task.id)}, then omniq tasks retry {shlex.quote(task.id)}"
    )
    return Finding(severity=Severity.ERROR, subject="line", message=message)


class StorageFactory(Protocol):
    """Makes an unopened storage. Called once for each queue; must do no I/O, and imports its driver only now."""

    def __call__(self, config: StorageConfig) -> Storage: ...
