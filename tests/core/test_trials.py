"""What users get to test their own tasks: three days pass in milliseconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from omniq import Cron, Every, Fixed, TaskFailed, TaskQueue, TaskState, current_task
from omniq.testing import ManualClock, Trial, trial

DAY = timedelta(days=1)


@pytest.fixture
def shop() -> TaskQueue:
    return TaskQueue("sqlite:////nonexistent/folder/shop.db")  # whoever connects to it fails


def test_the_queue_fixture_runs_by_the_clock_fixture(omniq_queue: TaskQueue, omniq_clock: ManualClock) -> None:
    @omniq_queue.task
    def double(x: int) -> int:
        return 2 * x

    handle = double.using(delay=DAY).enqueue(21)
    by_hand = Trial(omniq_queue, omniq_clock)

    assert by_hand.drain() == 0
    omniq_clock.advance(DAY)
    assert by_hand.drain() == 1
    assert handle.result() == 42


def test_an_applications_queue_is_put_on_memory_and_back(shop: TaskQueue) -> None:
    @shop.task
    async def double(x: int) -> int:
        return 2 * x

    usual = shop.connections
    with trial(shop) as tried:
        handle = double.enqueue(4)
        tried.drain()
        assert handle.result() == 8
    assert shop.connections is usual


def test_retries_wait_for_the_clock(shop: TaskQueue, omniq_trial: Callable[[TaskQueue], Trial]) -> None:
    attempts: list[datetime] = []
    tried = omniq_trial(shop)

    @shop.task(max_retries=2, retry=Fixed(3600))
    def flaky() -> str:
        attempts.append(tried.clock.now)
        if current_task().attempt < 3:
            raise ConnectionError
        return "done"

    handle = flaky.enqueue()
    assert tried.drain() == 1
    assert handle.task().state == "scheduled"
    tried.run_for(2 * 3600)

    assert handle.result() == "done"
    assert [later - attempts[0] for later in attempts] == [timedelta(hours=hour) for hour in range(3)]


def test_a_schedule_runs_at_each_of_its_times_while_days_pass(shop: TaskQueue) -> None:
    mornings: list[datetime] = []
    clock = ManualClock(datetime(2026, 3, 27, tzinfo=UTC))

    @shop.task(schedule=Cron("30 7 * * *", tz="Europe/Berlin"))
    def remind() -> None:
        mornings.append(clock.now)

    with trial(shop, clock=clock) as tried:
        assert tried.run_for(3 * DAY) == 3

    # The clocks were put forward in between.
    assert [moment.hour for moment in mornings] == [6, 6, 5]


def test_a_lease_that_ran_out_is_recovered_as_time_passes(shop: TaskQueue) -> None:
    @shop.task
    def job() -> str:
        return "ran"

    with trial(shop) as tried:
        handle = job.enqueue()

        async def claim_and_die() -> None:
            storage = (await shop.connections.current()).storage
            assert await storage.claim({"default": 1}, worker="dead", lease=30)

        shop.run(claim_and_die())
        assert tried.drain() == 0
        tried.clock.advance(31)
        assert tried.drain() == 1
        assert handle.result() == "ran"
        assert handle.task().delivery == 2


def test_a_result_is_gone_when_its_time_is_over(shop: TaskQueue) -> None:
    @shop.task(result_ttl=DAY)
    def job() -> None: ...

    with trial(shop) as tried:
        handle = job.enqueue()
        tried.drain()
        tried.clock.advance(2 * DAY)

        async def prune() -> int:
            return await (await shop.connections.current()).storage.prune(10)

        assert shop.run(prune()) == 1
        assert shop.get(handle.id) is None


def test_eager_runs_each_task_before_enqueue_returns(shop: TaskQueue) -> None:
    ran: list[str] = []

    @shop.task
    def child() -> None:
        ran.append("child")

    @shop.task
    def parent() -> None:
        child.enqueue()
        ran.append("parent")

    with trial(shop, eager=True):
        parent.enqueue()
        assert ran == ["child", "parent"]
        shop.enqueue_many([child.call(), child.call()])
        assert ran == ["child", "parent", "child", "child"]


def test_eager_works_inside_a_running_loop_too(shop: TaskQueue) -> None:
    @shop.task
    async def inner(x: int) -> int:
        return x + 1

    @shop.task
    async def outer(x: int) -> int:
        return await (await inner.aenqueue(x)) + 1

    async def scenario() -> None:
        assert await (await outer.aenqueue(1)) == 3
        assert (await inner.enqueue(1).atask()).state is TaskState.SUCCEEDED

    import asyncio

    with trial(shop, eager=True):
        asyncio.run(scenario())


def test_a_failure_is_seen_by_the_test(shop: TaskQueue) -> None:
    @shop.task(max_retries=0)
    def broken() -> None:
        raise ValueError("no")

    with trial(shop, eager=True), pytest.raises(TaskFailed, match="ValueError: no"):
        broken.enqueue().result()


def test_time_passes_in_order_for_several_rhythms(shop: TaskQueue) -> None:
    seen: list[str] = []

    @shop.task(schedule=Every(20))
    def often() -> None:
        seen.append("often")

    @shop.task(schedule=Every(30))
    def seldom() -> None:
        seen.append("seldom")

    with trial(shop, clock=ManualClock(datetime(2026, 1, 1, tzinfo=UTC))) as tried:
        tried.run_for(59)

    assert seen == ["often", "seldom", "often"]


def test_the_plugin_loads_nothing_of_omniq_until_a_fixture_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n"
        "def test_it():\n"
        "    assert 'omniq.testing.plugin' in sys.modules\n"
        "    assert 'omniq.queue' not in sys.modules\n"
    )

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert ended.returncode == 0, ended.stdout
