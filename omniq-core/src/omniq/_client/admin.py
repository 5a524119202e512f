"""What a queue's owner can see and do besides enqueueing: look tasks up, list, cancel, retry, delete, pause."""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Iterable
from datetime import datetime
from typing import Any, TypeVar

from omniq._client.audit import tell_action
from omniq._client.explain import Reason, explained
from omniq._client.selection import Selection
from omniq._runtime.connections import Connections
from omniq._runtime.sync import sync
from omniq._tasks.options import check_queue
from omniq._tasks.payloads import FunctionDecoder
from omniq._worker.worker_info import WorkerInfo, as_worker_info
from omniq.errors import TaskNotFound
from omniq.plugins import Plugins
from omniq.storage import Count, QueueStats, Storage, TaskPage, TaskQuery
from omniq.storage.body import as_task
from omniq.storage.corrupt_records import fetch
from omniq.storage.durations import aware
from omniq.task import Task, TaskState

__all__ = ["Control"]

S = TypeVar("S")
N = TypeVar("N", bool, int)

MOST_IN_A_PAGE = 1000


class Control:
    """The controlling half of a :class:`~omniq.TaskQueue`."""

    connections: Connections
    decoder: FunctionDecoder
    plugins: Plugins

    def run(self, coroutine: Coroutine[Any, Any, S]) -> S:
        """Run a coroutine on the queue's background loop and wait for it.

        :raises RuntimeError: on a thread whose event loop runs: the coroutine can be awaited there.
        """
        name = getattr(coroutine, "__name__", "coroutine")
        return self.connections.run(coroutine, instead=f"await ….{name}(…)")

    async def _storage(self) -> Storage:
        return (await self.connections.current()).storage

    # Reading

    async def aget(self, task_id: str) -> Task | None:
        """Return a task's record as it stands now.

        :param task_id: the task's id.
        :return: None if it is not in the store.
        """
        task = await fetch(await self._storage(), task_id)
        return None if task is None else as_task(task, self.decoder)

    get = sync(aget)

    async def arecord(self, task_id: str) -> Task:
        """Return a task's record as it stands now.

        :raises TaskNotFound: if it is not in the store.
        """
        task = await self.aget(task_id)
        if task is None:
            raise TaskNotFound(task_id)
        return task

    async def atasks(
        self,
        *,
        queue: str | None = None,
        state: TaskState | str | None = None,
        states: Collection[TaskState | str] | None = None,
        name: str | None = None,
        tag: str | None = None,
        enqueued_before: datetime | None = None,
        enqueued_after: datetime | None = None,
        bare: bool = False,
        look_at: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> TaskPage[Task]:
        """Return one page of the tasks that match, the latest enqueued first.

        :param queue: only tasks of this queue.
        :param state: only tasks in this state.
        :param states: only tasks in one of these states.
        :param name: only tasks of the function registered under this name.
        :param tag: only tasks with this tag.
        :param enqueued_before: only tasks enqueued before this time, by the store's clock; aware.
        :param enqueued_after: only tasks enqueued at this time or later.
        :param bare: whether to leave out what can be large: the arguments and options, the result and the traceback.
            :attr:`Task.omitted` tells their sizes, and :meth:`get` returns them.
        :param look_at: how many tasks the store looks at for this page at most, whether they match or not; None: as
            many as it takes. Then a page may hold less than there is, even nothing, and have a ``cursor`` all the same.
        :param limit: how many at most, 1 to 1000.
        :param cursor: the ``cursor`` of the page before.
        :return: the page; iterate over it, and ask with its ``cursor`` for the next one until that is None.
        :raises ValueError: if a state, a time, the limit or the cursor cannot be used.
        """
        if not 1 <= limit <= MOST_IN_A_PAGE:
            raise ValueError(f"limit must be between 1 and {MOST_IN_A_PAGE}, not {limit!r}")
        query = task_query(
            queue=queue,
            state=state,
            states=states,
            name=name,
            tag=tag,
            enqueued_before=enqueued_before,
            enqueued_after=enqueued_after,
            bare=bare,
            look_at=look_at,
            limit=limit,
        )
        page = await (await self._storage()).list_tasks(query, cursor)
        return TaskPage(tuple(as_task(task, self.decoder) for task in page.tasks), page.cursor)

    tasks = sync(atasks)

    async def acount_tasks(
        self,
        *,
        queue: str | None = None,
        state: TaskState | str | None = None,
        states: Collection[TaskState | str] | None = None,
        name: str | None = None,
        tag: str | None = None,
        enqueued_before: datetime | None = None,
        enqueued_after: datetime | None = None,
        look_at: int | None = None,
        limit: int | None = 10_000,
    ) -> Count:
        """Return how many tasks match: at once for a queue and states, else by listing those that match.

        The parameters are those of :meth:`tasks`, but for:

        :param limit: count no further than to this number, 1 or more; None: to the end.
        :return: the number, and whether there may be more.
        :raises ValueError: if a state, a time or a limit cannot be used.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be 1 or more, or None, not {limit!r}")
        query = task_query(
            queue=queue,
            state=state,
            states=states,
            name=name,
            tag=tag,
            enqueued_before=enqueued_before,
            enqueued_after=enqueued_after,
            look_at=look_at,
        )
        return await (await self._storage()).count_tasks(query, limit)

    count_tasks = sync(acount_tasks)

    async def astats(self) -> list[QueueStats]:
        """Return every queue in numbers: counts by state, whether it is paused, the age of its oldest ready task."""
        return await (await self._storage()).stats()

    stats = sync(astats)

    async def aworkers(self) -> list[WorkerInfo]:
        """Return the workers that were heard of within their lease, by id: what they are, and what they run."""
        return [as_worker_info(worker) for worker in await (await self._storage()).workers()]

    workers = sync(aworkers)

    async def aexplain(self, task_id: str) -> list[Reason]:
        """Return why a task is not running: what holds it back, or what has become of it; else what it does.

        :param task_id: the task's id.
        :return: at least one reason, the one to see to first at the beginning.
        :raises TaskNotFound: if it is not in the store.
        """
        return await explained(await self._storage(), await self.arecord(task_id))

    explain = sync(aexplain)

    # Doing

    def select(
        self,
        *,
        queue: str | None = None,
        states: Collection[TaskState | str] | None = None,
        name: str | None = None,
        tag: str | None = None,
        enqueued_before: datetime | None = None,
        ids: Iterable[str] | None = None,
    ) -> Selection:
        """Return the tasks that match, to be counted, cancelled, retried, deleted or run now, all of them. Does no I/O.

        :param queue: only tasks of this queue.
        :param states: only tasks in one of these states.
        :param name: only tasks of the function registered under this name.
        :param tag: only tasks with this tag.
        :param enqueued_before: only tasks enqueued before this time, by the store's clock; aware. None: before the
            selection is used first.
        :param ids: only these tasks.
        :return: a selection; without any filter it is all tasks.
        :raises ValueError: if a state or the time cannot be used.
        :raises TypeError: if ``states`` or ``ids`` is a single text.
        """
        if isinstance(ids, str):
            raise TypeError(f"ids must be a list of ids, not the string {ids!r}; write [{ids!r}]")
        query = task_query(queue=queue, states=states, name=name, tag=tag, enqueued_before=enqueued_before)
        return Selection(self, query, ids)

    def _acted(self, action: str, target: str, done: N) -> N:
        """Tell plugins what was done to one thing, and return for how many things it took effect, as it was given."""
        tell_action(self.plugins, action, [target], int(done))
        return done

    async def acancel(self, task_id: str) -> bool:
        """Cancel a task: at once if it waits; a running one is asked to stop.

        A coroutine gets ``CancelledError``; a plain function polls ``current_task().cancelled``.

        :return: whether it was waiting or running.
        """
        return self._acted("cancel", task_id, (await (await self._storage()).cancel([task_id]))[0])

    cancel = sync(acancel)

    async def aretry(self, task_id: str) -> bool:
        """Make a failed or cancelled task ready again, with all its attempts.

        :return: whether it was made ready; False also where a live task has its ``unique`` key by now.
        """
        return self._acted("retry", task_id, (await (await self._storage()).retry([task_id]))[0])

    retry = sync(aretry)

    async def arun_now(self, task_id: str) -> bool:
        """Make a task ready that is scheduled for later, such as for its next attempt.

        :return: whether it was scheduled for later.
        """
        return self._acted("run_now", task_id, (await (await self._storage()).run_now([task_id]))[0])

    run_now = sync(arun_now)

    async def adelete(self, task_id: str) -> bool:
        """Remove a task that is not running, with its result.

        :return: whether it was removed.
        """
        return self._acted("delete", task_id, (await (await self._storage()).delete([task_id]))[0])

    delete = sync(adelete)

    async def apurge(self, queue: str, state: TaskState | str | None = None) -> int:
        """Remove all tasks of a queue that are not running.

        :param queue: the queue's name.
        :param state: only those in this state.
        :return: how many were removed.
        """
        chosen = None if state is None else check_state(state)
        return self._acted("purge", queue, await (await self._storage()).purge(check_queue(queue), chosen))

    purge = sync(apurge)

    async def apause(self, queue: str) -> bool:
        """Keep workers from claiming tasks of a queue. Tasks that run go on, and tasks can be enqueued.

        :return: False if it was paused already.
        """
        return self._acted("pause", queue, await (await self._storage()).pause(check_queue(queue)))

    pause = sync(apause)

    async def aresume(self, queue: str) -> bool:
        """Let workers claim tasks of a paused queue again.

        :return: False if it was not paused.
        """
        return self._acted("resume", queue, await (await self._storage()).resume(check_queue(queue)))

    resume = sync(aresume)


def task_query(
    *,
    state: TaskState | str | None = None,
    states: Collection[TaskState | str] | None = None,
    enqueued_before: datetime | None = None,
    enqueued_after: datetime | None = None,
    look_at: int | None = None,
    **others: Any,
) -> TaskQuery:
    """Return the query of what a caller asks for.

    :param others: further fields of a :class:`~omniq.storage.TaskQuery`, as they are.
    :raises ValueError: if one of them cannot be used; names it.
    :raises TypeError: if ``states`` is a single text.
    """
    if isinstance(states, str):
        raise TypeError(f"states must be several states, not {states!r}; a single one is state={states!r}")
    if state is not None and states is not None:
        raise ValueError("of state and states only one can be used")
    if look_at is not None and look_at < 1:
        raise ValueError(f"look_at must be 1 or more, or None, not {look_at!r}")
    wanted = states if state is None else [state]
    return TaskQuery(
        states=None if wanted is None else map(check_state, wanted),
        enqueued_before=_moment(enqueued_before, "enqueued_before"),
        enqueued_after=_moment(enqueued_after, "enqueued_after"),
        look_at=look_at,
        **others,
    )


def _moment(moment: datetime | None, name: str) -> datetime | None:
    return None if moment is None else aware(moment, name)


def check_state(state: TaskState | str) -> TaskState:
    """Return a state by its name.

    :raises ValueError: naming the states there are.
    """
    try:
        return TaskState(state)
    except ValueError:
        raise ValueError(f"there is no state {state!r}; the states are {', '.join(TaskState)}") from None
