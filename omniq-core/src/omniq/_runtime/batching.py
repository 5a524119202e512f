"""Group commit: many callers, few round trips, no timer.

The first item goes out at once. While its round trip is under way others gather, and leave together when it returns.
Each caller hears of its own item only when the store has answered. A caller that is alone sends its item itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

from omniq.errors import StorageUnavailable

__all__ = ["Answer", "Batcher"]

T = TypeVar("T")
R = TypeVar("R")
Answer: TypeAlias = Callable[[T, R | None, BaseException | None], None]
"""Called on the loop with an item and what the store answered to it, or the error that kept it from answering."""


class Batcher(Generic[T, R]):
    """Sends items in batches, one batch at a time. Belongs to one event loop.

    :param send: sends a batch; gives one answer for each item, in order. Must be idempotent for each item: if a batch
        of several fails for any reason but an unavailable store, its items are sent again one by one, so that a bad
        one fails alone.
    :param limit: the most items in one batch.
    :param answered: called on the loop when the items of a batch that was handed over have had their answers.
    """

    def __init__(
        self,
        send: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        limit: int = 500,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        self._send = send
        self._limit = limit
        self._answered = answered
        self._gathered: list[tuple[T, Answer[T, R]]] = []
        self._sender: asyncio.Task[None] | None = None
        self._lone: asyncio.Future[None] | None = None
        """Done when the caller that sends its own item has its answer; None: there is no such caller."""
        self._latest = 0
        """How many items the latest batch had."""
        self._given_up: StorageUnavailable | None = None

    def put(self, item: T, answer: Answer[T, R]) -> None:
        """Hand over an item.

        :param answer: called once, when the store has answered; must not raise.
        """
        self._gathered.append((item, answer))
        if self._sender is None and self._lone is None:
            self._sender = asyncio.get_running_loop().create_task(self._send_all())

    async def send(self, item: T) -> R:
        """Send an item, and return its answer; raise what ``send`` raised.

        Callers that come one after the other send their items themselves: a task that did would have to be woken
        first, and then wake the caller, at twice the turns of the event loop. One that is cancelled gives up the
        sending, too.
        """
        if self._sender is not None or self._lone is not None or self._latest > 1:
            return await self.submit(item)
        self._lone = asyncio.get_running_loop().create_future()
        try:
            (answer,) = await self._send([item])
            return answer
        finally:
            self._lone.set_result(None)
            self._lone = None
            if self._gathered:
                self._sender = asyncio.get_running_loop().create_task(self._send_all())

    def submit(self, item: T) -> asyncio.Future[R]:
        """Hand over an item.

        :return: a future of its answer; it raises what ``send`` raised.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()

        def answer(_: T, result: R | None, error: BaseException | None) -> None:
            # A caller that was cancelled meanwhile no longer listens; its item is stored all the same.
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]  # R itself may be Optional; without an error it is R

        self.put(item, answer)
        return future

    async def drain(self, timeout: float | None = None) -> None:
        """Return when everything handed over so far has been answered.

        :param timeout: seconds after which what has not been is given up, and answered with an error; None: never.
        """
        while (under_way := self._sender or self._lone) is not None:
            ended, _ = await asyncio.wait([under_way], timeout=timeout)
            if not ended and (sender := self._sender) is not None:
                self._given_up = StorageUnavailable("the store gave no answer before it was time to leave")
                sender.cancel()
                timeout = None

    async def _send_all(self) -> None:
        try:
            while self._gathered:
                batch, self._gathered = self._gathered[: self._limit], self._gathered[self._limit :]
                self._latest = len(batch)
                await self._send_batch(batch)
                if self._latest > 1:
                    # Those who have just been answered may hand over their next items, to leave with the others.
                    await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            _reject(self._gathered, self._given_up or error)
            self._gathered = []
            raise
        finally:
            self._sender = None

    async def _send_batch(self, batch: Sequence[tuple[T, Answer[T, R]]]) -> None:
        try:
            answers = await self._send([item for item, _ in batch])
        except asyncio.CancelledError as error:
            _reject(batch, self._given_up or error)
            raise
        except StorageUnavailable as error:
            _reject(batch, error)
        except Exception as error:
            if len(batch) == 1:
                _reject(batch, error)
                return
            for entry in batch:
                await self._send_batch([entry])
        else:
            for (item, answer), result in zip(batch, answers, strict=True):
                answer(item, result, None)
            self._answered()


def _reject(batch: Sequence[tuple[T, Answer[T, R]]], error: BaseException) -> None:
    for item, answer in batch:
        answer(item, None, error)
