"""Looks for due schedules: they cost what is due and what has changed, and see whatever others did."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from attrs import evolve

from omniq.schedule import Schedule
from omniq.testing.contract import new_schedule
from omniq_nats.schedule_encoding import encode_schedule
from omniq_nats.storage import NatsStorage
from omniq_nats.times import micros
from omniq_nats.transport import Write
from tests.nats.support import fresh, opened, task
from tests.servers.nats import NatsServer

LONG_AGO = datetime(2001, 2, 3, tzinfo=UTC)
FAR = datetime(2101, 2, 3, tzinfo=UTC)


async def put_many(storage: NatsStorage, number: int) -> None:
    """Store schedules for a day that is far away, a thousand in one step."""
    assert storage._opened is not None
    transport, names = storage._opened.transport, storage._opened.state_store.names
    writes = [
        Write(names.schedule(schedule.id), encode_schedule(schedule, "nonce"))
        for schedule in (new_schedule(f"s{number}", next_run=FAR, revision=1) for number in range(number))
    ]
    for start in range(0, number, 1000):
        await transport.batch(writes[start : start + 1000])


async def due(storage: NatsStorage) -> list[str]:
    return [schedule.id for schedule in await storage.due_schedules(100)]


async def put(storage: NatsStorage, schedule_id: str, **fields: object) -> Schedule:
    stored = await storage.put_schedule(new_schedule(schedule_id, **{"next_run": LONG_AGO, **fields}))
    assert stored is not None
    return stored


@asynccontextmanager
async def pair(url: str) -> AsyncIterator[tuple[NatsStorage, NatsStorage]]:
    """Yield two storages of which one has looked, and the other has not."""
    async with opened(url) as first, opened(url) as second:
        assert await due(first) == []
        yield first, second


class Traffic:
    """Counts the messages that a server had from its clients, and those that it sent to them.

    :param server: with nothing else to do meanwhile.
    """

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._before = self._now()

    def _now(self) -> tuple[int, int, int]:
        told = self._server.ask("varz")
        return told["in_msgs"], told["out_msgs"], told["out_bytes"]

    @property
    def since(self) -> tuple[int, int, int]:
        """Return how many messages came and went since this was made, and the bytes of those that went."""
        came, went, size = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return came, went, size


async def test_a_look_at_thousands_of_schedules_asks_once_and_is_answered_in_one_message(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with opened(fresh(server.url)) as storage:
            await put_many(storage, 2000)
            assert await due(storage) == []
            traffic = Traffic(server)
            for _ in range(3):
                assert await due(storage) == []
            came, went, size = traffic.since
            assert (came, went) == (3, 3)
            assert size < 3000
            schedule = await put(storage, "s1234")
            assert schedule.revision == 2
            await storage.stats()  # the server has had by now whatever came before
            traffic = Traffic(server)
            assert await due(storage) == ["s1234"]
            came, went, _ = traffic.since
            assert came == 2
            assert went <= 5, "the one that changed, and the one that is due"


async def test_a_wait_at_thousands_of_schedules_does_not_read_them_again(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server:
        async with opened(fresh(server.url)) as storage:
            await put_many(storage, 2000)
            await storage.wait_for_work(["work"], 0.01)
            traffic = Traffic(server)
            await storage.wait_for_work(["work"], 0.01)
            _, went, _ = traffic.since
            assert went < 200


async def test_what_others_do_to_schedules_is_seen_by_the_next_look(nats_server: NatsServer) -> None:
    async with pair(fresh(nats_server.url)) as (mine, other):
        schedule = await put(other, "a")
        await put(other, "b", next_run=LONG_AGO + timedelta(seconds=1))
        assert await due(mine) == ["a", "b"]
        paused = await put(other, "b", paused=True)
        assert await due(mine) == ["a"]
        await other.put_schedule(evolve(paused, paused=False))
        assert await other.fire(evolve(schedule, next_run=FAR), [task()]) is not None
        assert await due(mine) == ["b"]
        assert await other.delete_schedule("b") is True
        assert await due(mine) == []
        assert await mine.delete_schedule("b") is False
        assert (await put(mine, "b")).revision > paused.revision + 1
        assert await due(other) == ["b"]
        assert [one.id for one in await other.get_schedules()] == ["a", "b"]


async def test_behind_those_that_somebody_fired_meanwhile_others_are_found(nats_server: NatsServer) -> None:
    async with pair(fresh(nats_server.url)) as (mine, other):
        schedules = [await put(mine, name, next_run=LONG_AGO + timedelta(days=day)) for day, name in enumerate("abc")]
        assert mine._opened is not None
        due_cache = mine._opened.schedule_store._due_cache
        await due_cache.look()

        async def look() -> None:
            """Miss what happens from here on, as a look does that came a moment earlier."""

        due_cache.look = look  # type: ignore[method-assign]  # a race that cannot be had otherwise
        for schedule in schedules[:2]:
            assert await other.fire(evolve(schedule, next_run=FAR), []) == []
        assert [one.id for one in await mine.due_schedules(2)] == ["c"]


@pytest.mark.parametrize("broken", [b"{", b"[]", b'{"v": 1}'])
async def test_one_that_cannot_be_read_does_not_keep_the_others_from_firing(
    nats_server: NatsServer, broken: bytes
) -> None:
    async with pair(fresh(nats_server.url)) as (mine, other):
        await put(other, "broken")
        await put(other, "whole", next_run=LONG_AGO + timedelta(days=1))
        assert await due(mine) == ["broken", "whole"]
        assert other._opened is not None
        await other._opened.transport.store(Write(other._opened.state_store.names.schedule("broken"), broken))
        assert [one.id for one in await mine.due_schedules(1)] == ["whole"]


async def test_one_that_somebody_deleted_wakes_nobody_twice(nats_server: NatsServer) -> None:
    async with pair(fresh(nats_server.url)) as (mine, other):
        await put(other, "a")
        await put(other, "b", next_run=LONG_AGO + timedelta(days=1))
        assert await due(mine) == ["a", "b"]
        assert await other.delete_schedule("a") is True
        assert [one.id for one in await mine.due_schedules(1)] == ["b"]
        assert mine._opened is not None
        b_is_due = micros(LONG_AGO + timedelta(days=1))
        assert mine._opened.schedule_store._due_cache.outlook(b_is_due - 1) == (0, b_is_due)


async def test_a_server_that_lost_the_latest_is_believed(tmp_path: Path) -> None:
    """As after a power failure that came before the server had flushed."""
    with NatsServer(tmp_path) as server:
        async with opened(fresh(server.url, timeout="3")) as storage:
            await put(storage, "a")
            await asyncio.to_thread(server.stop)
            shutil.copytree(server.store, tmp_path / "flushed")
            await asyncio.to_thread(server.start)
            for name in "bcde":
                await put(storage, name)
            assert await due(storage) == ["a", "b", "c", "d", "e"]
            await asyncio.to_thread(server.kill)
            shutil.rmtree(server.store)
            shutil.copytree(tmp_path / "flushed", server.store)
            await asyncio.to_thread(server.start)
            async with opened(storage._settings.shown) as other:
                await put(other, "f")
                assert await due(storage) == ["a", "f"]
                assert await storage.delete_schedule("a") is True
                await put(other, "g")
                assert await due(storage) == ["f", "g"]


@pytest.mark.parametrize("content", [b"", b"7\n{}", b"[]", b"[1, 2]\n{}", b'["n", 1]\n{"id": "s"}', b"[" * 100_000])
async def test_what_cannot_be_read_hides_no_other(nats_server: NatsServer, content: bytes) -> None:
    async with opened(fresh(nats_server.url)) as storage:
        await put(storage, "good")
        await storage.heartbeat("good", [], 60)
        assert storage._opened is not None
        transport, names = storage._opened.transport, storage._opened.state_store.names
        await transport.publish(Write(names.schedule("bad"), content))
        await transport.publish(Write(names.worker("bad"), content))
        assert await due(storage) == ["good"]
        assert [worker.id for worker in await storage.workers()] == ["good"]
        assert await storage.get_schedules(["bad"]) == []
        assert [schedule.id for schedule in await storage.get_schedules()] == ["good"]
        # Stored anew it takes its place, and so it does when it was deleted.
        if len(content) % 2:
            assert await storage.delete_schedule("bad")
        await put(storage, "bad")
        assert sorted(await due(storage)) == ["bad", "good"]
