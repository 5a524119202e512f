"""What a queue's owner can see and do besides enqueueing: look tasks up, list, cancel, retry, delete, pause."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from omniq._client.audit import tell_action
from omniq._client.explain import Reason, explained
from omniq._runtime.connections import Connections
from omniq._runtime.sync import sync
from omniq._tasks.options import check_queue
from omniq._tasks.payloads import FunctionDecoder
from omniq._worker.worker_info import WorkerInfo, as_worker_info
from omniq.errors import TaskNotFound
from omniq.plugins import Plugins
from omniq.storage import QueueStats, Storage, TaskPage, TaskQuery
from omniq.storage.body import as_task
from omniq.storage.validation import fetch
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
        name: str | None = None,
        tag: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> TaskPage[Task]:
        """Return one page of the tasks that match, the latest enqueued first.

        :param queue: only tasks of this queue.
        :param state: only tasks in this state.
        :param name: only tasks of the function registered under this name.
        :param tag: only tasks with this tag.
        :param limit: how many at most, 1 to 1000.
        :param cursor: the ``cursor`` of the page before.
        :return: the page; iterate over it, and ask with its ``cursor`` for the next one until that is None.
        :raises ValueError: if the state, limit or cursor cannot be used.
        """
        if not 1 <= limit <= MOST_IN_A_PAGE:
            raise ValueError(f"limit must be between 1 and {MOST_IN_A_PAGE}, not {limit!r}")
        query = TaskQuery(
            queue=queue, state=None if state is None else check_state(state), name=name, tag=tag, limit=limit
        )
        page = await (await self._storage()).list_tasks(query, cursor)
        return TaskPage(tuple(as_task(task, self.decoder) for task in page.tasks), page.cursor)

    tasks = sync(atasks)

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


def check_state(state: TaskState | str) -> TaskState:
    """Return a state by its name.

    :raises ValueError: naming the states there are.
    """
    try:
        return TaskState(state)
    except ValueError:
        raise ValueError(f"there is no state {state!r}; the states are {', '.join(TaskState)}") from None
