"""A call takes effect and its answer is lost, or only half of it arrives. Its repetition does what is left to do.

What a store must look like afterwards is asked of the memory store, on which nothing was lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from omniq import StorageUnavailable
from omniq.plugins import default_plugins
from omniq.storage import Storage
from omniq.storage.urls import parse_url
from omniq.testing import await_until
from tests.faults.calls import CALLS, Call, differences, image
from tests.faults.stages import LOCAL, SERVERS, ServerStage, Stage
from tests.servers.starting import MOSTLY_LONG

on_servers = pytest.mark.parametrize("stage", SERVERS, indirect=True)

PATIENCE = 60.0
"""Seconds in which every call must have come to an end, whatever happens to the network."""
DAILY = {"enqueue", "claim", "finish"}
"""Calls in which a client stands still on PostgreSQL every day."""


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Storage]:
    storage = default_plugins().open_storage(parse_url(url))
    try:
        await _opened_at_last(storage)
        yield storage
    finally:
        await storage.close()


async def repeated_until_answered(call: Call, storage: Storage) -> Any:
    """Do what every caller does that is told that the store is unavailable."""
    for _ in range(20):
        try:
            async with asyncio.timeout(PATIENCE):
                return await call.call(storage)
        except StorageUnavailable:
            continue
    raise AssertionError(f"{call}: no answer")


async def as_it_must_be(call: Call) -> tuple[list[Any], dict[str, Any]]:
    """Return the answers to the call and to its repetition, and what the store looks like then."""
    async with opened("memory://") as storage:
        await call.prepare(storage)
        answers = [await call.call(storage) for _ in range(2)]
        return answers, await image(storage)


async def is_cut(call: Call, stage: ServerStage, what: str, nth: int) -> bool:
    """Cut the connection at the nth answer or request of a call.

    :return: whether there were so many.
    """
    answers, expected = await as_it_must_be(call)
    part = f"{what}-{nth}"
    async with opened(stage.url_of(part, patient=True)) as direct:
        await call.prepare(direct)
        async with opened(stage.disturbed_url_of(part)) as storage:
            cut = stage.proxy.cut_reply(nth=nth) if what == "answer" else stage.proxy.cut_request(nth=nth)
            try:
                answer = await repeated_until_answered(call, storage)
            finally:
                stage.proxy.pass_on()
        assert answer in answers, f"{call}, cut at {what} {nth}: {answer!r} is none of {answers!r}"
        assert differences(await image(direct), expected) == [], f"{call}, cut at {what} {nth}"
    return cut.happened


def growing() -> Iterator[int]:
    """Yield 1, 2, 3, 4 and so on, in steps that become larger."""
    number = 1.0
    while True:
        yield int(number)
        number = max(number + 1, number * 1.6)


@pytest.mark.parametrize("stage", LOCAL, indirect=True)
def test_calls_that_are_repeated_change_nothing(stage: Stage) -> None:
    async def repeated(number: int, call: Call) -> None:
        answers, expected = await as_it_must_be(call)
        async with opened(f"{stage.url}?namespace=repeated-{number}") as storage:
            await call.prepare(storage)
            assert [await call.call(storage) for _ in range(2)] == answers, str(call)
            assert differences(await image(storage), expected) == [], str(call)

    for number, call in enumerate(CALLS):
        asyncio.run(repeated(number, call))


@pytest.mark.parametrize("stage", MOSTLY_LONG, indirect=True)
@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("what", ["answer", "request"])
def test_a_call_that_is_cut_off_and_repeated_leaves_what_one_call_leaves(
    server_stage: ServerStage, what: str, call: Call
) -> None:
    for nth in growing():
        if not asyncio.run(is_cut(call, server_stage, what, nth)):
            break
    assert nth > 1, "nothing was cut: the call did not go through the proxy"


async def is_done_by_another(call: Call, stage: ServerStage, nth: int) -> bool:
    """Have a client stand still at the nth answer of a call, and another one do the same.

    :return: whether there were so many answers.
    """
    answers, expected = await as_it_must_be(call)
    part = f"still-{nth}"
    async with opened(stage.url_of(part, patient=True)) as direct:
        await call.prepare(direct)
        async with opened(stage.disturbed_url_of(part)) as storage:
            held = stage.proxy.hold_reply(nth=nth)
            still = asyncio.ensure_future(call.call(storage))
            try:
                await await_until(lambda: held.happened or still.done(), timeout=PATIENCE, what="an answer")
                if held.happened:
                    answer = await call.call(direct)
                    assert answer in answers, f"{call}, still at answer {nth}: {answer!r} is none of {answers!r}"
                    assert differences(await image(direct), expected) == [], f"{call}, still at answer {nth}"
            finally:
                stage.proxy.pass_on()
                await asyncio.gather(still, return_exceptions=True)
    return held.happened


# On NATS some calls are several steps, each of them whole, and another one does what is left of them.
@pytest.mark.parametrize(
    ("stage", "call"),
    [
        *(pytest.param("redis", call, id=f"redis-{call}") for call in CALLS),
        # On PostgreSQL each answer that is held back costs the tables of a store.
        *(
            pytest.param("postgres", call, id=f"postgres-{call}", marks=[] if str(call) in DAILY else pytest.mark.long)
            for call in CALLS
        ),
    ],
    indirect=["stage"],
)
def test_whoever_stands_still_in_the_middle_of_a_call_keeps_nobody_from_doing_it(
    server_stage: ServerStage, call: Call
) -> None:
    for nth in growing():
        if not asyncio.run(is_done_by_another(call, server_stage, nth)):
            break
    assert nth > 1, "nobody stood still: the call did not go through the proxy"


@on_servers
def test_a_store_that_was_made_while_answers_were_lost_is_whole(server_stage: ServerStage) -> None:
    call = CALLS[0]

    async def made_without_an_answer(nth: int) -> bool:
        answers, expected = await as_it_must_be(call)
        cut = server_stage.proxy.cut_reply(nth=nth)
        storage = default_plugins().open_storage(parse_url(server_stage.disturbed_url_of(f"{nth}", patient=True)))
        try:
            await _opened_at_last(storage)
            server_stage.proxy.pass_on()
            assert await call.call(storage) == answers[0]
            assert differences(await image(storage), expected) == [], f"answer {nth} of open() lost"
        finally:
            await storage.close()
        return cut.happened

    for nth in growing():
        if not asyncio.run(made_without_an_answer(nth)):
            break
    assert nth > 1


async def _opened_at_last(storage: Storage) -> None:
    async def is_open() -> bool:
        try:
            async with asyncio.timeout(PATIENCE):
                await storage.open()
        except StorageUnavailable:
            return False
        return True

    await await_until(is_open, timeout=PATIENCE, what="the storage to open")


@on_servers
def test_calls_into_a_black_hole_end_in_time_and_may_take_effect_late(server_stage: ServerStage) -> None:
    proxy = server_stage.proxy

    async def repeated_after_the_hole(number: int, call: Call, hole: asyncio.Event, closed: asyncio.Event) -> None:
        answers, expected = await as_it_must_be(call)
        async with opened(server_stage.url_of(f"{number}", patient=True)) as direct:
            await call.prepare(direct)
            async with opened(server_stage.disturbed_url_of(f"{number}")) as storage:
                waiting.append(call)
                await hole.wait()
                with pytest.raises(StorageUnavailable):
                    async with asyncio.timeout(PATIENCE):
                        await call.call(storage)
                waiting.remove(call)
                await closed.wait()
                answer = await repeated_until_answered(call, storage)
            # What was sent into the hole has arrived when all of its connections are through.
            await await_until(lambda: proxy.connections == 0, what="the end of the connections")
            assert answer in answers, f"{call}: {answer!r} is none of {answers!r}"
            assert differences(await image(direct), expected) == [], str(call)

    async def all_of_them() -> None:
        hole, closed = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number, call in enumerate(CALLS):
                group.create_task(repeated_after_the_hole(number, call, hole, closed))
            await await_until(lambda: len(waiting) == len(CALLS), timeout=60, what="the calls' preparation")
            proxy.blackhole()
            hole.set()
            await await_until(lambda: not waiting, timeout=PATIENCE + 10, what="the calls' end")
            proxy.pass_on()
            closed.set()

    waiting: list[Call] = []
    asyncio.run(all_of_them())
