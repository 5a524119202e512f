"""Changes of a queue state, one after the other: all that came while another was under way are made together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from attrs import define, field

from omniq.errors import PayloadTooLarge
from omniq_nats.contention import Contention
from omniq_nats.queue_state import QueueState

__all__ = ["Commit", "CommitQueue", "Step"]

T = TypeVar("T")
Step = Callable[[QueueState], Awaitable[tuple[T, bool]]]
"""Looks at a queue state and may change it; gives a result and whether it did."""


@define(eq=False)
class Commit(Generic[T]):
    """A change to be made."""

    step: Step[T]
    remembered: bool = True
    """Whether the step may first see the queue state as it is remembered."""
    share: float = 1.0
    """How much of a message's largest size the queue state may take after it."""
    frees: bool = False
    """Whether it is part of the removal of something, for which there is a reserve in a full stream."""
    result: T | None = None
    """What the step returned."""
    error: Exception | None = None
    """What the step raised, where those of others went on without it."""
    future: asyncio.Future[T] | None = None
    """Of the caller that waits for it; None: the caller makes it itself."""


@define(eq=False)
class _Turn:
    """Of one that changes the queue state in its own way."""

    begun: asyncio.Future[None]
    over: asyncio.Event = field(factory=asyncio.Event)


class CommitQueue:
    """Lets the changes of each queue state come one after the other.

    :param change: makes changes in one step; gives the result of each turn, or its error.
    :param contention: other processes that change the same queue states.
    """

    def __init__(self, change: Callable[[str, Sequence[Commit[Any]]], Awaitable[None]], contention: Contention) -> None:
        self._change = change
        self._contention = contention
        self._gathered: dict[str, list[Commit[Any] | _Turn]] = {}
        """By queue: who came while a change is under way. A queue that is not here is free."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, queue: str, commit: Commit[T]) -> T:
        """Make a change, and give its result."""
        gathered = self._gathered.get(queue)
        if gathered is None and not self._contention.are_there(queue):
            self._gathered[queue] = []
            try:
                await self._make(queue, [commit])
            finally:
                self._hand_on(queue)
            return cast(T, commit.result)
        commit.future = asyncio.get_running_loop().create_future()
        if gathered is None:
            self._gathered[queue] = [commit]
            self._hand_on(queue)
        else:
            gathered.append(commit)
        # A caller that is cancelled meanwhile is passed over, unless its change is under way, with others that go on.
        return await commit.future

    @contextlib.asynccontextmanager
    async def turn(self, queue: str) -> AsyncIterator[None]:
        """Keep others from changing a queue state meanwhile."""
        turn = _Turn(asyncio.get_running_loop().create_future())
        gathered = self._gathered.get(queue)
        if gathered is None:
            self._gathered[queue] = [turn]
            self._hand_on(queue)
        else:
            gathered.append(turn)
        try:
            await turn.begun
            yield
        finally:
            turn.over.set()

    async def _make(self, queue: str, commit_queue: Sequence[Commit[Any]]) -> None:
        try:
            await self._change(queue, commit_queue)
        finally:
            await self._contention.end(queue)

    def _hand_on(self, queue: str) -> None:
        if self._gathered[queue]:
            task = asyncio.get_running_loop().create_task(self._serve(queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            del self._gathered[queue]

    async def _serve(self, queue: str) -> None:
        try:
            while self._gathered[queue]:
                await self._contention.begin(queue)
                gathered, self._gathered[queue] = self._gathered[queue], []
                commits = [one for one in gathered if isinstance(one, Commit)]
                if commits:
                    await self._together(queue, commits)
                for turn in gathered:
                    if isinstance(turn, _Turn):
                        await self._give_turn(queue, turn)
        finally:
            for one in self._gathered.pop(queue):
                future = one.future if isinstance(one, Commit) else one.begun
                assert future is not None
                future.cancel()

    async def _give_turn(self, queue: str, turn: _Turn) -> None:
        if turn.over.is_set():
            return
        await self._contention.begin(queue)
        try:
            if not turn.begun.done():
                turn.begun.set_result(None)
            await turn.over.wait()
        finally:
            await self._contention.end(queue)

    async def _together(self, queue: str, commit_queue: Sequence[Commit[Any]]) -> None:
        waiting = [
            (commit, commit.future) for commit in commit_queue if commit.future is not None and not commit.future.done()
        ]
        if not waiting:
            return
        error: BaseException | None = None
        try:
            await self._make(queue, [commit for commit, _ in waiting])
        except PayloadTooLarge as too_large:
            if len(waiting) > 1:
                for commit, _ in waiting:
                    await self._together(queue, [commit])
                return
            error = too_large
        except BaseException as raised:
            error = raised
        for commit, future in waiting:
            failure = commit.error or error
            if future.done():
                continue
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(commit.result)
        if error is not None and not isinstance(error, Exception):
            raise error
