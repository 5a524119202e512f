"""What users get to test their own tasks: three days pass in milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from omniq import Cron, Every, Fixed, TaskFailed, TaskQueue, TaskState, UnknownScheme, current_task
from omniq.plugins import Plugins
from omniq.storage.ids import new_id
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


def test_declared_schedules_are_there_from_the_start_of_a_trial(shop: TaskQueue) -> None:
    ran: list[str] = []
    shop.task(name="minutely", schedule=Every(60))(lambda: ran.append("minutely"))

    with trial(shop) as tried:
        tried.clock.advance(61)
        tried.drain()
        assert ran == ["minutely"]
        shop.task(name="later", schedule=Every(60))(lambda: ran.append("later"))
        tried.drain()
        tried.clock.advance(61)
        tried.drain()
    assert sorted(ran) == ["later", "minutely", "minutely"]


def test_what_is_past_its_result_ttl_is_removed_as_time_passes(shop: TaskQueue) -> None:
    shop.task(name="minutely", schedule=Every(60), result_ttl=600)(lambda: None)

    with trial(shop) as tried:
        tried.run_for(timedelta(hours=2))
        (stats,) = shop.stats()

    assert 10 <= stats.counts[TaskState.SUCCEEDED] <= 12


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
        with pytest.warns(RuntimeWarning, match="aenqueue"):
            handle = inner.enqueue(1)
        assert (await handle.atask()).state is TaskState.SUCCEEDED

    with trial(shop, eager=True):
        asyncio.run(scenario())


def test_a_failure_is_seen_by_the_test(shop: TaskQueue) -> None:
    @shop.task(max_retries=0)
    def broken() -> None:
        raise ValueError("no")

    with trial(shop, eager=True), pytest.raises(TaskFailed, match="ValueError: no"):
        broken.enqueue().result()


def test_a_failure_ends_the_test_where_it_is_asked_to(shop: TaskQueue) -> None:
    @shop.task(max_retries=1, retry=Fixed(60))
    def broken() -> None:
        raise ValueError("no")

    @shop.task(max_retries=0)
    async def broken_too() -> None:
        raise KeyError("nor this")

    with trial(shop, raise_failures=True) as tried:
        handle = broken.enqueue()
        assert tried.drain() == 1, "it is to run again: that is no failure"
        with pytest.raises(TaskFailed, match="ValueError: no") as raised:
            tried.run_for(60)
        assert isinstance(raised.value.__cause__, ValueError)
        assert handle.task().state is TaskState.FAILED
        broken_too.enqueue()
        with pytest.raises(TaskFailed, match="nor this"):
            asyncio.run(tried.adrain())


def test_a_plain_function_runs_without_a_loop_on_the_tests_own_thread(shop: TaskQueue) -> None:
    async def answer() -> int:
        return 42

    @shop.task(max_retries=0)
    def plain() -> int:
        assert threading.current_thread() is threading.main_thread()
        return asyncio.run(answer())

    with trial(shop) as tried:
        handle = plain.enqueue()
        tried.drain()
        assert handle.result() == 42


async def test_a_plain_function_runs_without_a_loop_in_coroutines_too(shop: TaskQueue) -> None:
    async def answer() -> int:
        return current_task().attempt

    @shop.task(max_retries=0)
    def plain() -> int:
        return asyncio.run(answer())

    with trial(shop) as tried:
        first, second = await plain.aenqueue(), await plain.aenqueue()
        assert await tried.adrain() == 2
        assert (await first, await second) == (1, 1)
        await plain.aenqueue()
        assert tried.drain() == 1, "the synchronous form blocks the test's loop, which may be what the test wants"


def test_a_task_sees_what_was_set_around_it_and_nobody_sees_what_it_sets(shop: TaskQueue) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    @shop.task
    def plain() -> str:
        seen = variable.get()
        variable.set("set by a task")
        return seen

    with trial(shop) as tried:
        variable.set("set by the test")
        handles = [plain.enqueue(), plain.enqueue()]
        tried.drain()
        assert [handle.result() for handle in handles] == ["set by the test"] * 2


def test_the_traceback_of_a_failure_begins_in_the_task(shop: TaskQueue) -> None:
    @shop.task(max_retries=0)
    def broken() -> None:
        raise ValueError("no")

    @shop.task(max_retries=0, timeout=5)
    async def broken_too() -> None:
        raise ValueError("no")

    with trial(shop) as tried:
        handles = [broken.enqueue(), broken_too.enqueue()]
        tried.drain()
        for handle in handles:
            error = handle.task().error
            assert error is not None
            files = re.findall(r'File "(.+)", line', error.traceback)
            assert files == [__file__], error.traceback


def test_code_that_enqueues_and_completes_in_a_transaction_can_be_tried(shop: TaskQueue) -> None:
    @shop.task(max_retries=0)
    def charge(amount: int) -> int:
        with contextlib.closing(sqlite3.connect(":memory:")) as connection:
            current_task().complete_in(connection, amount)
        return 0

    with trial(shop) as tried, contextlib.closing(sqlite3.connect(":memory:")) as connection:
        handle = charge.using(connection=connection).enqueue(5)
        others = shop.enqueue_many([charge.call(6)], connection=connection)
        assert tried.drain() == 2
        assert [one.result() for one in (handle, *others)] == [5, 6]

        async def order() -> None:
            await charge.using(connection=connection).aenqueue(7)
            assert await tried.adrain() == 1

        asyncio.run(order())


def test_eager_takes_a_task_of_which_the_caller_has_made_the_record(shop: TaskQueue) -> None:
    @shop.task
    def double(x: int) -> int:
        return 2 * x

    call = double.call(21)
    with trial(shop, eager=True):
        # As the backend of Django's tasks framework enqueues, which needs the id before.
        handle = shop.submit(call, shop.order(call, id=new_id()))
        assert handle.result(timeout=0) == 42


def test_eager_takes_a_connection_for_many_tasks_at_once(shop: TaskQueue) -> None:
    @shop.task
    def double(x: int) -> int:
        return 2 * x

    with trial(shop, eager=True), contextlib.closing(sqlite3.connect(":memory:")) as connection:
        (handle,) = shop.enqueue_many([double.call(2)], connection=connection)
        assert handle.result() == 4


def test_a_trial_says_what_it_needs(shop: TaskQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop, "plugins", Plugins(discover=False))

    with pytest.raises(UnknownScheme, match=r"in memory.*pip install 'omniq-core\[local\]'"), trial(shop):
        pass


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
        "    assert 'omniq._client.queue' not in sys.modules\n"
    )

    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert ended.returncode == 0, ended.stdout
