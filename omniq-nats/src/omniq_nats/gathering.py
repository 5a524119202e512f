"""Tasks that many callers enqueue in one step with the state of their queue: what comes meanwhile goes together.

Each call would have to wait for its turn otherwise, one after the other, and be in the way of other processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from attrs import define

from omniq.errors import StorageUnavailable
from omniq.storage import Enqueued
from omniq.task import NewTask

__all__ = ["Gathering"]


@define(eq=False)
class _Call:
    tasks: Sequence[NewTask]
    answers: asyncio.Future[list[Enqueued]]


class Gathering:
    """The calls of one storage.

    :param enqueue: stores tasks in one step.
    :param most: how many it takes.
    """

    def __init__(self, enqueue: Callable[[Sequence[NewTask]], Awaitable[list[Enqueued]]], most: int) -> None:
        self._enqueue = enqueue
        self._most = most
        self._waiting: dict[frozenset[str], list[_Call]] = {}
        """By their queues: calls that came while another is under way."""
        self._serving: set[asyncio.Task[None]] = set()

    async def enqueue(self, tasks: Sequence[NewTask]) -> list[Enqueued]:
        """Store tasks in one step, together with those of other calls."""
        loop = asyncio.get_running_loop()
        call = _Call(tasks, loop.create_future())
        queues = frozenset(task.queue for task in tasks)
        if queues in self._waiting:
            self._waiting[queues].append(call)
        else:
            self._waiting[queues] = waiting = [call]
            serving = loop.create_task(self._serve(queues, waiting))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)
            # Also if it is cancelled before it begins: the calls after it would wait for it for ever.
            serving.add_done_callback(lambda _: self._give_up(queues, waiting))
        # A caller that is cancelled meanwhile is passed over, unless its tasks are under way with those of others.
        return await call.answers

    def _give_up(self, queues: frozenset[str], waiting: list[_Call]) -> None:
        if self._waiting.get(queues) is waiting:
            del self._waiting[queues]
            for call in waiting:
                call.answers.cancel()

    async def _serve(self, queues: frozenset[str], waiting: list[_Call]) -> None:
        try:
            while waiting:
                calls, number = list[_Call](), 0
                while waiting and (not calls or number + len(waiting[0].tasks) <= self._most):
                    call = waiting.pop(0)
                    if not call.answers.done():
                        calls.append(call)
                        number += len(call.tasks)
                if calls:
                    await self._together(calls)
        finally:
            self._give_up(queues, waiting)

    async def _together(self, calls: Sequence[_Call]) -> None:
        try:
            answers = await self._enqueue([task for call in calls for task in call.tasks])
        except Exception as error:
            if len(calls) > 1 and not isinstance(error, StorageUnavailable):
                # What is wrong with one of them is no concern of the others.
                middle = len(calls) // 2
                await self._together(calls[:middle])
                await self._together(calls[middle:])
                return
            for call in calls:
                if not call.answers.done():
                    call.answers.set_exception(error)
            return
        except BaseException:
            for call in calls:
                call.answers.cancel()
            raise
        for call in calls:
            told, answers = answers[: len(call.tasks)], answers[len(call.tasks) :]
            if not call.answers.done():
                call.answers.set_result(told)
