"""Limits on the stores of this distribution that processes share: what many of these at once, and any number of waiting
tasks, do to them."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from omniq.limit import Limit, Rate
from omniq.plugins import default_plugins
from omniq.storage import Lease, Storage
from omniq.storage.urls import parse_url
from omniq.task import StoredTask, Succeeded, TaskState
from omniq.testing import await_until
from omniq.testing.contract.limits import most_in
from tests.local import files_support, sqlite_support
from tests.local.sqlite_support import output_of, python
from tests.local.support import Clock, new_task

HELD = 300.0


@pytest.fixture(params=["sqlite", "files"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"sqlite": f"sqlite:///{tmp_path}/jobs.db", "files": f"file://{tmp_path}/jobs"}[request.param]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Storage]:
    store = default_plugins().open_storage(parse_url(url))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def succeed(store: Storage, tasks: list[StoredTask]) -> None:
    outcomes = [Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in tasks]
    assert await store.finish(outcomes) == [True] * len(tasks)


async def recovered(store: Storage, tasks: list[StoredTask]) -> bool:
    """Take back what is lapsed, and return whether some tasks are."""
    await store.recover(100)
    known = zip(tasks, await store.get([task.id for task in tasks]), strict=True)
    return all(now is not None and (now.state, now.delivery) != (task.state, task.delivery) for task, now in known)


# Many at once


async def claimers(url: str, number: int, keys: int, tasks: int, rng: random.Random) -> None:
    """Have claimers, some of which die with what they hold, work off tasks of many keys, and watch the limits."""
    most = {"queue": rng.randint(5, 40), "key": rng.randint(1, 3), "name": rng.randint(2, 9)}
    held: dict[str, StoredTask] = {}
    peak: Counter[str] = Counter()

    def watch() -> None:
        """What is held runs for certain: it is noted after its claim, and crossed out before its end."""
        per_key, named = Counter(task.key for task in held.values()), sum(task.limit == "api" for task in held.values())
        assert len(held) <= most["queue"]
        assert max(per_key.values(), default=0) <= most["key"]
        assert named <= most["name"]
        peak["queue"], peak["name"] = max(peak["queue"], len(held)), max(peak["name"], named)

    async def claimer(name: str, lot: random.Random) -> None:
        async with opened(url) as store:
            while True:
                found = await store.claim({"q": lot.randint(1, 20)}, worker=name, lease=HELD)
                held.update({task.id: task for task in found})
                watch()
                await asyncio.sleep(0)  # others claim
                for task in found:
                    del held[task.id]
                if found and lot.random() < 0.1:
                    # It dies, a moment before its leases run out.
                    await store.heartbeat(name, [Lease(task.id, task.delivery) for task in found], 0.01)
                    await await_until(partial(recovered, store, found))
                else:
                    await succeed(store, found)
                if not found:
                    counts = [stats.counts for stats in await store.stats() if stats.queue == "q"]
                    if not counts or not counts[0][TaskState.READY] + counts[0][TaskState.RUNNING]:
                        return
                    await store.wait_for_work(["q"], 0.1)

    async with opened(url) as store:
        per_key = Limit(concurrency=most["key"])
        await store.put_limit(Limit(queue="q", concurrency=most["queue"], per_key=per_key))
        await store.put_limit(Limit(name="api", concurrency=most["name"]))
        orders = [
            new_task(key=f"k{rng.randrange(keys)}", limit=rng.choice((None, None, "api")), max_retries=100)
            for _ in range(tasks)
        ]
        await store.enqueue(orders)
        await asyncio.gather(*[claimer(f"w{n}", random.Random(rng.random())) for n in range(number)])
        ended = {task.id: task.state for task in await store.get([task.id for task in orders]) if task is not None}
        assert Counter(ended.values()) == {TaskState.SUCCEEDED: tasks}
        assert [one.running for one in await store.get_limit_usage()] == [0, 0]
        assert all(peak[place] <= most[place] for place in ("queue", "name"))
        assert peak["name"] > 0


def test_claimers_of_which_some_die_stay_within_limits_and_all_slots_come_back(url: str) -> None:
    asyncio.run(claimers(url, 4, 50, 150, random.Random(1)))


@pytest.mark.long
def test_eight_claimers_work_off_a_thousand_keys_within_limits(url: str) -> None:
    seed = random.randrange(1000)
    try:
        asyncio.run(claimers(url, 8, 1000, 2000, random.Random(seed)))
    except AssertionError as error:
        raise AssertionError(f"with seed {seed}: {error}") from error


WORKER = """
    import asyncio, sys
    from omniq.plugins import default_plugins
    from omniq.storage.urls import parse_url
    from omniq.task import Succeeded, TaskState

    async def work(url, name):
        store = default_plugins().open_storage(parse_url(url))
        await store.open()
        while True:
            found = await store.claim({"q": 5}, worker=name, lease=300)
            await store.finish([Succeeded(id=task.id, delivery=task.delivery, result=b"1") for task in found])
            if not found:
                if not any(stats.counts[TaskState.READY] for stats in await store.stats()):
                    break
                await store.wait_for_work(["q"], 1)
        await store.close()

    asyncio.run(work(*sys.argv[1:]))
"""


@pytest.mark.long
def test_a_rate_holds_in_every_span_with_four_processes(url: str) -> None:
    """Of a queue, of each key and of a name."""
    rates = {"queue": Rate(40, per=1.0, burst=5), "key": Rate(5, per=0.5), "name": Rate(10, per=0.5, burst=3)}

    async def begin() -> list[str]:
        async with opened(url) as store:
            await store.put_limit(Limit(queue="q", rate=rates["queue"], per_key=Limit(rate=rates["key"])))
            await store.put_limit(Limit(name="api", rate=rates["name"]))
            tasks = [new_task(key=f"k{n % 8}", limit="api" if n % 4 == 0 else None) for n in range(120)]
            await store.enqueue(tasks)
            return [task.id for task in tasks]

    async def starts(ids: list[str]) -> list[StoredTask]:
        async with opened(url) as store:
            return [task for task in await store.get(ids) if task is not None]

    ids = asyncio.run(begin())
    with ExitStack() as stack:
        for process in [stack.enter_context(python(WORKER, url, f"w{n}")) for n in range(4)]:
            output_of(process, 120)
    tasks = asyncio.run(starts(ids))
    assert {task.state for task in tasks} == {TaskState.SUCCEEDED}

    def check(rate: Rate, those: Iterator[StoredTask]) -> None:
        moments = [task.started_at for task in those if task.started_at is not None]
        assert most_in(moments, rate.per) <= rate.count + rate.burst - 1

    check(rates["queue"], iter(tasks))
    check(rates["name"], (task for task in tasks if task.limit == "api"))
    for number in range(8):
        check(rates["key"], (task for task in tasks if task.key == f"k{number}"))


@pytest.mark.parametrize("place", [{}, {"key": "a"}, {"limit": "api"}], ids=["queue", "key", "name"])
@pytest.mark.parametrize("kind", ["sqlite", "files"])
def test_a_clock_that_is_put_back_stops_no_rate_for_longer_than_that_takes(
    tmp_path: Path, kind: str, place: dict[str, str]
) -> None:
    rate, clock = Rate(1, per=60), Clock()

    async def scenario() -> None:
        support = sqlite_support if kind == "sqlite" else files_support
        async with support.opened(tmp_path / "jobs", clock=clock) as store:
            await store.put_limit(Limit(queue="q", rate=None if place else rate, per_key=Limit(rate=rate)))
            await store.put_limit(Limit(name="api", rate=rate))
            await store.enqueue([new_task(**place) for _ in range(3)])
            assert len(await store.claim({"q": 9}, worker="w", lease=HELD)) == 1
            assert await store.claim({"q": 9}, worker="w", lease=HELD) == []
            await store.prune(100)
            clock.advance(-3600)
            await store.prune(100)
            assert await store.claim({"q": 9}, worker="w", lease=HELD) == []
            clock.advance(60)
            assert len(await store.claim({"q": 9}, worker="w", lease=HELD)) == 1
            assert await store.claim({"q": 9}, worker="w", lease=HELD) == []

    asyncio.run(scenario())


# Any number of waiting tasks


@pytest.mark.long
def test_a_tenant_at_its_limit_with_very_many_waiting_tasks_holds_up_no_other(url: str) -> None:
    async def scenario() -> None:
        async with opened(url) as store:
            await store.put_limit(Limit(queue="q", per_key=Limit(concurrency=1)))
            for _ in range(20):
                await store.enqueue([new_task(key="big") for _ in range(1000)])
            assert [task.key for task in await store.claim({"q": 9}, worker="w", lease=HELD)] == ["big"]
            others = [new_task(key=f"small {n}") for n in range(50)]
            await store.enqueue(others)
            found = await store.claim({"q": 50}, worker="w", lease=HELD)
            assert sorted(task.id for task in found) == sorted(task.id for task in others)
            assert await store.claim({"q": 50}, worker="w", lease=HELD) == []

    asyncio.run(scenario())
