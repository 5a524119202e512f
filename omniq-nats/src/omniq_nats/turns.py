"""Who changes a book when: one after the other, and all who came while another was under way together, in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from attrs import define

from omniq.errors import PayloadTooLarge
from omniq_nats.book import Book
from omniq_nats.rivals import Rivals

__all__ = ["Step", "Turn", "Turns"]

T = TypeVar("T")
Step = Callable[[Book], Awaitable[tuple[T, bool]]]
"""Looks at a book and may change it; gives a result and whether it did."""


@define(eq=False)
class Turn(Generic[T]):
    """A change that somebody wants to make."""

    step: Step[T]
    remembered: bool = True
    """Whether the step may first see the book as it is remembered."""
    share: float = 1.0
    """How much of a message's largest size the book may take after it."""
    frees: bool = False
    """Whether it is part of the removal of something, for which there is a reserve in a full stream."""
    result: T | None = None
    """What the step gave."""
    error: Exception | None = None
    """What the step raised, where those of others went on without it."""
    future: asyncio.Future[T] | None = None
    """Of who waits for it; None: he makes it himself."""


class Turns:
    """Lets the changes of each book come one after the other.

    :param change: makes changes in one step; gives the result of each turn, or its error.
    :param rivals: other processes that change the same books.
    """

    def __init__(self, change: Callable[[str, Sequence[Turn[Any]]], Awaitable[None]], rivals: Rivals) -> None:
        self._change = change
        self._rivals = rivals
        self._gathered: dict[str, list[Turn[Any]]] = {}
        """By queue: who came while a change is under way. A queue that is not here is free."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, queue: str, turn: Turn[T]) -> T:
        """Make a change, and give its result."""
        gathered = self._gathered.get(queue)
        if gathered is None and not self._rivals.are_there(queue):
            self._gathered[queue] = []
            try:
                await self._make(queue, [turn])
            finally:
                self._hand_on(queue)
            return cast(T, turn.result)
        turn.future = asyncio.get_running_loop().create_future()
        if gathered is None:
            self._gathered[queue] = [turn]
            self._hand_on(queue)
        else:
            gathered.append(turn)
        # Whoever is cancelled meanwhile is passed over, unless his change is under way, with others that go on.
        return await turn.future

    async def _make(self, queue: str, turns: Sequence[Turn[Any]]) -> None:
        try:
            await self._change(queue, turns)
        finally:
            await self._rivals.end(queue)

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
                await self._rivals.begin(queue)
                turns, self._gathered[queue] = self._gathered[queue], []
                await self._together(queue, turns)
        finally:
            for turn in self._gathered.pop(queue):
                assert turn.future is not None
                turn.future.cancel()

    async def _together(self, queue: str, turns: Sequence[Turn[Any]]) -> None:
        waiting = [(turn, turn.future) for turn in turns if turn.future is not None and not turn.future.done()]
        if not waiting:
            return
        error: BaseException | None = None
        try:
            await self._make(queue, [turn for turn, _ in waiting])
        except PayloadTooLarge as too_large:
            if len(waiting) > 1:
                for turn, _ in waiting:
                    await self._together(queue, [turn])
                return
            error = too_large
        except BaseException as raised:
            error = raised
        for turn, future in waiting:
            failure = turn.error or error
            if future.done():
                continue
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(turn.result)
        if error is not None and not isinstance(error, Exception):
            raise error
