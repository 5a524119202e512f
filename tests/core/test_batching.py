"""Group commit: what leaves together, and who hears of what."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from omniq._runtime.batching import Batcher
from omniq.errors import StorageUnavailable


class Store:
    """Answers a batch when the test says so, and notes what it was sent."""

    def __init__(self, *, poison: Sequence[str] = ()) -> None:
        self.batches: list[list[str]] = []
        self.poison = poison
        self.failure: Exception | None = None
        self._go = asyncio.Semaphore(0)

    async def send(self, items: Sequence[str]) -> list[str]:
        self.batches.append(list(items))
        await self._go.acquire()
        if self.failure is not None:
            raise self.failure
        for item in items:
            if item in self.poison:
                raise ValueError(item)
        return [item.upper() for item in items]

    def answer(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._go.release()


async def turns(count: int = 10) -> None:
    """Let the loop do all that it can do without anybody's answer."""
    for _ in range(count):
        await asyncio.sleep(0)  # one turn of the loop


async def test_the_first_item_goes_out_at_once_and_others_gather_while_it_is_under_way() -> None:
    store = Store()
    batcher = Batcher(store.send)

    first = batcher.submit("a")
    await turns()
    assert store.batches == [["a"]]

    rest = [batcher.submit(item) for item in "bcd"]
    await turns()
    assert store.batches == [["a"]]
    assert not first.done()

    store.answer()
    assert await first == "A"
    await turns()
    assert store.batches == [["a"], ["b", "c", "d"]]
    assert not any(future.done() for future in rest)

    store.answer()
    assert await asyncio.gather(*rest) == ["B", "C", "D"]


async def test_items_that_are_handed_over_together_leave_together() -> None:
    store = Store()
    batcher = Batcher(store.send)

    futures = [batcher.submit(item) for item in "abc"]
    store.answer()

    assert await asyncio.gather(*futures) == ["A", "B", "C"]
    assert store.batches == [["a", "b", "c"]]


async def test_a_batch_has_at_most_so_many_items() -> None:
    store = Store()
    batcher = Batcher(store.send, limit=2)
    store.answer(3)

    assert await asyncio.gather(*(batcher.submit(item) for item in "abcde")) == list("ABCDE")
    assert store.batches == [["a", "b"], ["c", "d"], ["e"]]


async def test_a_bad_item_fails_alone() -> None:
    store = Store(poison=["b"])
    batcher = Batcher(store.send)
    store.answer(10)

    answers = await asyncio.gather(*(batcher.submit(item) for item in "abc"), return_exceptions=True)

    assert [str(answer) for answer in answers] == ["A", "b", "C"]
    assert isinstance(answers[1], ValueError)
    assert store.batches == [["a", "b", "c"], ["a"], ["b"], ["c"]]


async def test_a_store_that_cannot_be_reached_fails_all_without_being_asked_for_each() -> None:
    store = Store()
    store.failure = StorageUnavailable("down")
    batcher = Batcher(store.send)
    futures = [batcher.submit(item) for item in "abc"]
    store.answer()

    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert answers == [store.failure] * 3
    assert store.batches == [["a", "b", "c"]]

    store.failure = None
    store.answer()
    assert await batcher.submit("d") == "D", "what comes later is tried anew"


async def test_a_caller_that_was_cancelled_leaves_its_item_to_the_store_and_its_neighbours_alone() -> None:
    store = Store()
    batcher = Batcher(store.send)
    futures = [batcher.submit(item) for item in "abc"]
    await turns()

    futures[1].cancel()
    store.answer()

    assert await futures[0] == "A"
    assert await futures[2] == "C"
    assert futures[1].cancelled()
    assert store.batches == [["a", "b", "c"]]


async def test_every_item_is_answered_once() -> None:
    store = Store(poison=["b"])
    batcher = Batcher(store.send)
    heard: list[tuple[str, str | None, str | None]] = []

    def note(item: str, result: str | None, error: BaseException | None) -> None:
        heard.append((item, result, None if error is None else str(error)))

    for item in "abc":
        batcher.put(item, note)
    store.answer(10)
    await batcher.drain()

    assert heard == [("a", "A", None), ("b", None, "b"), ("c", "C", None)]


async def test_draining_waits_for_all_that_was_handed_over() -> None:
    store = Store()
    batcher = Batcher(store.send)
    futures = [batcher.submit("a")]
    await turns()
    futures.append(batcher.submit("b"))

    draining = asyncio.create_task(batcher.drain())
    await turns()
    assert not draining.done()
    store.answer(2)
    await draining

    assert [future.result() for future in futures] == ["A", "B"]


async def test_draining_nothing_returns_at_once() -> None:
    await Batcher(Store().send).drain()


async def test_whoever_waits_hears_of_it_when_the_sending_is_cancelled() -> None:
    store = Store()
    batcher = Batcher(store.send)
    future = batcher.submit("a")
    await turns()
    (sender,) = asyncio.all_tasks() - {asyncio.current_task()}

    sender.cancel()

    with pytest.raises(asyncio.CancelledError):
        await future


async def test_a_caller_that_is_alone_sends_its_item_itself_and_others_leave_together_after_it() -> None:
    store = Store()
    batcher = Batcher(store.send)
    callers = [asyncio.create_task(batcher.send(item)) for item in "abc"]
    await turns()

    assert store.batches == [["a"]]
    assert asyncio.all_tasks() == {asyncio.current_task(), *callers}, "nobody sends for them"
    store.answer(2)

    assert await asyncio.gather(*callers) == ["A", "B", "C"]
    assert store.batches == [["a"], ["b", "c"]]


async def test_callers_that_come_again_and_again_go_on_leaving_together() -> None:
    sizes: list[int] = []

    async def send(items: Sequence[str]) -> Sequence[str]:
        sizes.append(len(items))
        await turns()
        return items

    batcher = Batcher(send)

    async def caller(name: str) -> None:
        for number in range(4):
            assert await batcher.send(f"{name}{number}") == f"{name}{number}"

    await asyncio.gather(*map(caller, "abcd"))

    assert sizes == [1, 4, 4, 4, 3], "the first alone, then all who came while a batch was under way"


async def test_a_lone_caller_that_is_cancelled_holds_nobody_up() -> None:
    store = Store()
    batcher = Batcher(store.send)
    lone, other = (asyncio.create_task(batcher.send(item)) for item in "ab")
    await turns()

    lone.cancel()
    await turns()
    store.answer()

    assert await other == "B"
    assert lone.cancelled()
    assert store.batches == [["a"], ["b"]]


async def test_draining_waits_for_a_lone_caller_and_those_behind_it() -> None:
    store = Store()
    batcher = Batcher(store.send)
    callers = [asyncio.create_task(batcher.send(item)) for item in "ab"]
    await turns()

    draining = asyncio.create_task(batcher.drain())
    store.answer()
    await turns()
    assert not draining.done()
    store.answer()
    await draining

    assert await asyncio.gather(*callers) == ["A", "B"]
